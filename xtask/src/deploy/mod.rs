//! The only way to bring a stack to a release: `observe` what is true, find the `drift` from the release,
//! make a `plan`, `execute` it with a journal, verify, open the gate. `converge` does all of this; `up` and
//! `rollback` call it.

pub mod archives;
pub mod backup;
pub mod cleanup;
pub mod converge;
pub mod difference;
pub mod drift;
pub mod edge;
pub mod event;
pub mod evidence;
pub mod execute;
pub mod execution;
pub mod gate;
#[cfg(test)]
pub mod invariants;
pub mod lockout;
pub mod observe;
pub mod old_runs;
pub mod past;
pub mod paused;
pub mod plan;
mod progress;
pub mod remote;
mod restoring;
pub mod run;
#[cfg(test)]
mod schema;
pub mod session;
pub mod step;
mod steps;
pub mod view;
pub mod watch;
