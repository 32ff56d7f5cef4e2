//! Who must be called: one of the three levels of the runbook, chosen by the exit code. Pure; the contacts
//! come from `pilot.toml`. Called by `main` for `rollback`, `reset` and `diagnose`, and by `up`.

use crate::base::failure::Exit;
use crate::stack::manifest::Manifest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A level, the person, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escalation {
    /// 1 self-service, 2 technical lead, 3 infrastructure.
    pub level: u8,
    /// Name of the level.
    pub name: String,
    /// The person, from `pilot.toml`.
    pub contact: Option<String>,
    /// Why this level.
    pub why: String,
}

impl fmt::Display for Escalation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Level {}, {}", self.level, self.name)?;
        if let Some(contact) = &self.contact {
            write!(f, " ({contact})")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// The level for the exit code of a rollback. The codes are those of the table in `--help`.
pub fn of(exit: Exit, manifest: &Manifest) -> Escalation {
    let (level, why) = match exit {
        Exit::Ok => (1, "nothing to escalate"),
        Exit::RolledBack => (1, "the previous release serves again; the new one must be fixed"),
        Exit::Changes => (1, "there is something to do; nothing was changed"),
        Exit::Held => (1, "verified; a person holds the gate closed"),
        Exit::Usage => (1, "the command or its input is wrong; nothing was begun"),
        Exit::Locked => (1, "another command is running"),
        Exit::OverBudget => (2, "the budget is used up, and the pilot is not restored"),
        Exit::Host => (3, "the host or the engine failed; a rollback cannot fix that"),
        Exit::NoRelease => (2, "there is no known-good release to go back to"),
        Exit::Interrupted => (1, "it was interrupted; run the same command again to continue"),
        Exit::NotRestored => (2, "no known-good release could be verified"),
    };
    level_of(level, why, manifest)
}

/// The level for a command that only looks. Nothing was tried yet, so nobody must be called
/// for what a rollback can fix.
pub fn of_a_look(exit: Exit, manifest: &Manifest) -> Escalation {
    match exit {
        Exit::NotRestored => level_of(1, "something is wrong; try a rollback first", manifest),
        exit => of(exit, manifest),
    }
}

/// The level for a deployment. If it fails, the new release is wrong, and the user can
/// go back to the one before.
pub fn of_a_deployment(exit: Exit, manifest: &Manifest) -> Escalation {
    match exit {
        Exit::NotRestored => level_of(1, "the new release could not be verified", manifest),
        exit => of(exit, manifest),
    }
}

fn level_of(level: u8, why: &str, manifest: &Manifest) -> Escalation {
    let known = manifest.escalation.iter().find(|contact| contact.level == level);
    let name = match (known, level) {
        (Some(contact), _) => contact.name.clone(),
        (None, 1) => "self-service".into(),
        (None, 2) => "technical lead".into(),
        (None, _) => "infrastructure".into(),
    };
    Escalation {
        level,
        name,
        contact: known.filter(|c| !c.is_nobody()).map(|c| c.contact.clone()),
        why: why.into(),
    }
}
