//! The engine `process`: the services as local processes, for machines without Docker. Each service
//! is run by a supervisor (this program, `supervise`) that starts it again when it ends. Both hold a lock on
//! the service's `alive` file through their standard input, so "is it running" and "may this be ended" are
//! never a guess by process id (`members`). One file for each role of an engine.

mod data;
pub mod home;
mod images;
mod inspect;
mod members;
mod runtime;
pub mod supervise;
