//! Complete stories, each readable from top to bottom: deploy a release, roll back, and how a run ends. How a
//! stack is brought to a release is in `deploy`. Called by `commands`.

mod audit;
mod beginning;
pub mod candidate;
pub mod ending;
pub mod findings;
pub mod forecast;
pub mod foresee;
pub mod guard;
pub mod history;
#[cfg(any(test, fuzzing))]
pub mod hostile;
#[cfg(test)]
mod in_memory;
pub mod init;
pub mod kill_switch;
pub mod look;
mod metrics;
pub mod notify;
pub mod pipeline;
pub mod planned;
pub mod register;
pub mod reopen;
pub mod report;
pub mod rollback;
pub mod target;
pub mod up;
pub mod with_data;
