//! Holds: a person has closed the gate. A hold says who, where, when and why. Only `kill-switch off`, and
//! `--open` of `rollback` and `reset`, lift it. A run that finds a hold restores and verifies, but leaves the
//! gate closed. A hold that cannot be read still stands. The `ledger` keeps the records. Nothing here talks
//! to a gateway.

use crate::base::deadline::{now_ms, utc};
use crate::base::machine;
use crate::base::observed::Observed;
use crate::stack::ledger::{Ledger, Record};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};

const FORMAT: u32 = 1;

/// One hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    version: u32,
    /// Id of its record in the ledger.
    pub id: String,
    /// Who closed the gate.
    pub user: String,
    /// On which host.
    pub host: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Why. The gateway tells this to its clients.
    pub reason: String,
    /// Services that were stopped because the gate could not be closed. They are started
    /// again when the hold is lifted.
    #[serde(default)]
    pub stopped: Vec<String>,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, host, at_ms, reason, .. } = self;
        write!(f, "held by {user}@{host} since {}: {reason}", utc(*at_ms))
    }
}

impl Hold {
    /// A hold by the user of this program.
    pub fn mine(reason: &str) -> Self {
        Self::by(&machine::person(), reason)
    }

    /// A hold by somebody who closed the gate without this program. The reason is the
    /// one that the gateway gives.
    pub fn found(reason: &str) -> Self {
        Self::by("somebody without this tool", reason)
    }

    fn by(user: &str, reason: &str) -> Self {
        let host = machine::host_name();
        let at_ms = now_ms();
        // Two clients may close it in the same millisecond, and in containers they have the same process id. The number is
        // random: the system seeds the standard library's hash maps.
        let id = format!("{at_ms:x}-{:08x}", RandomState::new().build_hasher().finish() as u32);
        Self {
            version: FORMAT,
            id,
            user: user.into(),
            host,
            at_ms,
            reason: reason.into(),
            stopped: Vec::new(),
        }
    }

    /// The first hold that is not in the list to lift.
    pub fn first_of<'a>(holds: &'a [Self], lift: &[String]) -> Option<&'a Self> {
        holds.iter().find(|hold| !lift.contains(&hold.id))
    }

    /// Was this service stopped for the hold?
    pub fn has_stopped(&self, service: &str) -> bool {
        self.id == FENCE || self.stopped.iter().any(|stopped| stopped == service)
    }

    /// Writes the hold to the ledger. Called before the gate is closed.
    pub fn place(&self, ledger: &Ledger) -> Result<()> {
        self.place_here(ledger)?;
        self.share(ledger)
    }

    /// Writes it into the state folder alone, which takes no time.
    pub fn place_here(&self, ledger: &Ledger) -> Result<()> {
        self.ensure_new(ledger.put_here(Record::Hold(&self.id), &serde_json::to_vec(self)?)?)
    }

    /// Puts it at the engine, for every client.
    pub fn share(&self, ledger: &Ledger) -> Result<()> {
        self.ensure_new(ledger.share(Record::Hold(&self.id), &serde_json::to_vec(self)?)?)
    }

    fn ensure_new(&self, is_new: bool) -> Result<()> {
        if !is_new {
            bail!("cannot write hold {}: a hold with this id exists already", self.id);
        }
        Ok(())
    }

    /// Notes in the hold which services were stopped for it.
    pub fn note_stopped(&mut self, ledger: &Ledger, services: Vec<String>) -> Result<()> {
        self.stopped = services;
        ledger.replace(Record::Hold(&self.id), &serde_json::to_vec(self)?)
    }

    /// Removes the hold.
    pub fn lift(&self, ledger: &Ledger) -> Result<()> {
        ledger.remove(if self.id == FENCE { Record::Fence } else { Record::Hold(&self.id) })
    }
}

/// Id of the hold that older versions kept in a separate file.
const FENCE: &str = "fence.json";

/// Every hold that stands, oldest first. One that cannot be read counts as a hold by somebody unknown.
pub fn standing(ledger: &Ledger) -> Result<Vec<Hold>> {
    let mut all = Vec::new();
    for id in ledger.holds()? {
        // If it is gone, it was lifted after the list was read.
        let Some(bytes) = ledger.read(Record::Hold(&id))? else { continue };
        all.push(read(&id, &bytes).unwrap_or_else(|error| unreadable(&id, &error)));
    }
    if ledger.read(Record::Fence)?.is_some() {
        let mut old = Hold::by("an older version", "the gateway was stopped by kill-switch on");
        old.id = FENCE.into();
        all.push(old);
    }
    all.sort_by(|a, b| (a.at_ms, &a.id).cmp(&(b.at_ms, &b.id)));
    Ok(all)
}

impl Observed<Vec<Hold>> {
    /// Why the gate must stay closed, in words, apart from the holds to lift. If the holds are
    /// unknown, it stays closed.
    pub fn held(&self, lift: &[String]) -> Option<String> {
        match self {
            Self::Known(holds) => Hold::first_of(holds, lift).map(ToString::to_string),
            Self::Unknown(why) => Some(format!("because it is unknown whether somebody holds it: {why}")),
        }
    }
}

fn read(id: &str, bytes: &[u8]) -> Result<Hold> {
    let hold: Hold = serde_json::from_slice(bytes).context("it is not a valid hold")?;
    if hold.version > FORMAT {
        bail!("it has the newer format {}", hold.version);
    }
    if hold.id != id {
        bail!("its id is {}, which is not its name", hold.id);
    }
    Ok(hold)
}

fn unreadable(id: &str, error: &anyhow::Error) -> Hold {
    let mut hold = Hold::by("somebody", &format!("a hold that cannot be read ({error:#})"));
    hold.id = id.to_owned();
    hold
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::files::Scratch;
    use crate::stack::state_dir::StateDir;

    #[test]
    fn no_two_holds_have_the_same_id() {
        let ids: std::collections::BTreeSet<String> = (0..1000).map(|_| Hold::mine("at once").id).collect();
        assert_eq!(ids.len(), 1000);
    }

    #[test]
    fn a_hold_stands_until_it_is_lifted_and_one_that_cannot_be_read_stands_too() {
        let scratch = Scratch::new("hold-test").unwrap();
        let ledger = Ledger::new(&StateDir::new(scratch.path()));
        assert_eq!(standing(&ledger).unwrap(), []);
        let mut hold = Hold::mine("bad answers");
        hold.place(&ledger).unwrap();
        hold.note_stopped(&ledger, vec!["gateway".into()]).unwrap();
        assert_eq!(standing(&ledger).unwrap(), std::slice::from_ref(&hold));
        let far = Hold { at_ms: u64::MAX, ..hold.clone() };
        assert!(far.to_string().contains("unknown time"), "{far}");
        ledger.put_here(Record::Hold("noise"), b"\xff").unwrap();
        ledger.put_here(Record::Fence, b"{}").unwrap();
        let all = standing(&ledger).unwrap();
        assert_eq!(all.len(), 3);
        assert!(all.iter().any(|h| h.id == "noise" && h.reason.contains("cannot be read")), "{all:?}");
        all.iter().try_for_each(|hold| hold.lift(&ledger)).unwrap();
        assert_eq!(standing(&ledger).unwrap(), []);
    }
}
