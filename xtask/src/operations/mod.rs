//! The stories, each from top to bottom: deploying a release, going back to one, and how either ends.

pub mod candidate;
pub mod ending;
#[cfg(test)]
mod in_memory;
pub mod look;
pub mod report;
pub mod rollback;
pub mod up;
