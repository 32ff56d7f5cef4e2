//! The engine `process`: the services as local processes, for machines without Docker. Each service has a
//! supervisor (this program, `supervise`) that restarts it. Both hold a lock on the service's `alive` file
//! through their standard input. So "does it run" and "may it be killed" never depend on a process id alone
//! (`members`). One file for each role of an engine.

pub mod data;
pub mod home;
mod images;
mod inspect;
mod members;
mod runtime;
pub mod supervise;
