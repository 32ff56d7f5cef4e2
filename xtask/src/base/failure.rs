//! How a command fails: its exit code and the next command to run. The one table of exit codes is also in
//! `--help` and the docs; a test compares them. A failure travels as context of an `anyhow::Error`, and
//! `main` prints it.

use crate::base::next::Next;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The exit codes. Any other code is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Exit {
    /// Done and verified, or nothing to do.
    Ok = 0,
    /// Not restored: Level 2, technical lead.
    NotRestored = 1,
    /// The command or its input is wrong; nothing was begun.
    Usage = 2,
    /// Not restored within the budget: Level 2.
    OverBudget = 3,
    /// Host or engine failure: Level 3, infrastructure.
    Host = 4,
    /// Another command holds the lock.
    Locked = 5,
    /// No known-good release to go back to.
    NoRelease = 6,
    /// The new release failed. The one before serves again, unless a hold keeps the gate closed.
    RolledBack = 7,
    /// `--plan --detailed-exitcode`: there is something to do.
    Changes = 8,
    /// Done and verified; a hold keeps the gate closed.
    Held = 9,
    /// Interrupted; the same command continues the run.
    Interrupted = 130,
}

impl Exit {
    const ALL: [Self; 11] = [
        Self::Ok,
        Self::NotRestored,
        Self::Usage,
        Self::OverBudget,
        Self::Host,
        Self::Locked,
        Self::NoRelease,
        Self::RolledBack,
        Self::Changes,
        Self::Held,
        Self::Interrupted,
    ];

    /// Was the work done and verified? A hold may still keep the gate closed.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Ok | Self::Held)
    }
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

impl TryFrom<u8> for Exit {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|exit| *exit as u8 == code);
        found.ok_or_else(|| format!("{code} is no exit code of this program"))
    }
}

/// The table that `--help` and the docs show.
pub const EXIT_TABLE: &str = "\
Exit codes:
  0    done and verified, or nothing to do
  1    not restored: Level 2, technical lead
  2    usage: the command or its input is wrong; nothing was begun
  3    not restored within the budget: Level 2
  4    host or engine failure: Level 3, infrastructure
  5    another command holds the lock
  6    no known-good release to go back to
  7    the new release failed; the previous one serves again (or is ready, but a hold keeps the gate closed)
  8    with --plan --detailed-exitcode: there is something to do
  9    done and verified (restored or deployed); a hold keeps the gate closed
  130  interrupted; the same command continues it";

/// A failure: the exit code, what happened, and what to do next.
#[derive(Debug)]
pub struct Failure {
    /// Exit code of the process.
    pub exit: Exit,
    /// What was tried, on what, and what came back.
    pub what: String,
    /// What to do next.
    pub next: Next,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}

/// The budget of a run is used up. Added as context to the error of the step that it cut short.
pub fn over_budget() -> Failure {
    Failure {
        exit: Exit::OverBudget,
        what: "the budget (the time limit of the run) is used up".into(),
        next: Next::xtask("rollback --budget 15m")
            .so("to try again with more time; call the technical lead (Level 2)"),
    }
}

/// A new error with its exit code and next command.
pub fn fail(exit: Exit, what: impl Into<String>, next: impl Into<Next>) -> anyhow::Error {
    anyhow::Error::new(Failure { exit, what: what.into(), next: next.into() })
}

/// The exit code of an error: from the outermost `Failure` in its chain; 1 if there is none.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<Failure>().map_or(Exit::NotRestored, |f| f.exit)
}

/// The next command of an error, if it has one.
pub fn next_of(error: &anyhow::Error) -> Option<&Next> {
    error.downcast_ref::<Failure>().map(|f| &f.next).filter(|next| !next.is_empty())
}
