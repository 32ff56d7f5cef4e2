//! The one way to bring a stack to a release, stage by stage: `observe` what is true, `drift` from the release, `plan`
//! as data, `execute` with a journal, verify, open. `converge` is the whole of it, used by `up` and by `rollback`.

pub mod backup;
pub mod cleanup;
pub mod converge;
pub mod difference;
pub mod drift;
pub mod event;
pub mod evidence;
pub mod execute;
pub mod execution;
pub mod gate;
#[cfg(test)]
pub mod invariants;
pub mod lockout;
pub mod observe;
pub mod plan;
pub mod run;
pub mod session;
pub mod step;
mod steps;
pub mod view;
