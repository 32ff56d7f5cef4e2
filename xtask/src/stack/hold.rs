//! Holds: closings of the gate by a person. A hold says who, from where, when and why. Only `kill-switch off`
//! and `rollback` or `reset` with `--open` lift it; a run that meets one restores, verifies and stays closed. A hold that
//! cannot be read still stands. Records are in the `ledger`; nothing here talks to a gateway.

use crate::base::deadline::now_ms;
use crate::base::files;
use crate::base::observed::Observed;
use crate::stack::ledger::{Ledger, Record};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

const FORMAT: u32 = 1;

/// One closing by a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    version: u32,
    /// Name of its record.
    pub id: String,
    /// Who closed the gate.
    pub user: String,
    /// On which host.
    pub host: String,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Why; clients are told.
    pub reason: String,
    /// Services that were stopped because the gate could not be closed otherwise; lifting starts them again.
    #[serde(default)]
    pub stopped: Vec<String>,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, host, at_ms, reason, .. } = self;
        // Past the year 9999 there is no such form; the file may hold anything.
        if *at_ms > 253_402_300_799_000 {
            return write!(f, "held by {user}@{host} since an unknown time: {reason}");
        }
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(*at_ms));
        write!(f, "held by {user}@{host} since {at}: {reason}")
    }
}

impl Hold {
    /// One by whoever runs this program.
    pub fn mine(reason: &str) -> Self {
        Self::by(&user(), reason)
    }

    /// One by somebody who closed the gate without this program, with the reason that the gateway tells.
    pub fn found(reason: &str) -> Self {
        Self::by("somebody without this tool", reason)
    }

    fn by(user: &str, reason: &str) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let at_ms = now_ms();
        // Two that are made in the same millisecond are made by two processes.
        let id = format!("{at_ms:x}-{:x}", std::process::id());
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

    /// The first that is not among those to lift.
    pub fn first_of<'a>(holds: &'a [Self], lift: &[String]) -> Option<&'a Self> {
        holds.iter().find(|hold| !lift.contains(&hold.id))
    }

    /// Was the gateway stopped for it?
    pub fn has_stopped(&self, service: &str) -> bool {
        self.id == FENCE || self.stopped.iter().any(|stopped| stopped == service)
    }

    /// Writes it down, before anything is closed.
    pub fn place(&self, ledger: &Ledger) -> Result<()> {
        if !ledger.put(Record::Hold(&self.id), &serde_json::to_vec(self)?)? {
            bail!("there is a hold {} already", self.id);
        }
        Ok(())
    }

    /// Notes which services were stopped for it.
    pub fn note_stopped(&mut self, ledger: &Ledger, services: Vec<String>) -> Result<()> {
        self.stopped = services;
        ledger.replace(Record::Hold(&self.id), &serde_json::to_vec(self)?)
    }

    /// Takes it away.
    pub fn lift(&self, ledger: &Ledger) -> Result<()> {
        ledger.remove(if self.id == FENCE { Record::Fence } else { Record::Hold(&self.id) })
    }
}

/// Whoever runs this program: behind sudo, who typed it; else by the user id, as passwd(5) names it.
fn user() -> String {
    let typed = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    let id = rustix::process::getuid().as_raw().to_string();
    let named = || {
        let text = files::read_text(Path::new("/etc/passwd")).ok()?;
        let line = text.lines().find(|line| line.split(':').nth(2) == Some(id.as_str()))?;
        line.split(':').next().map(str::to_owned)
    };
    typed.or_else(named).unwrap_or_else(|| format!("uid {id}"))
}

/// Id of the hold that an older version left as a file of its own.
const FENCE: &str = "fence.json";

/// Every hold that stands. One that cannot be understood is a hold by somebody unknown.
pub fn standing(ledger: &Ledger) -> Result<Vec<Hold>> {
    let mut all = Vec::new();
    for id in ledger.holds()? {
        // Lifted since the list was read.
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
    /// What keeps the gate closed, in words, but for holds that are to be lifted. A hold that cannot be told is one.
    pub fn held(&self, lift: &[String]) -> Option<String> {
        match self {
            Self::Known(holds) => Hold::first_of(holds, lift).map(ToString::to_string),
            Self::Unknown(why) => Some(format!("because nobody can tell whether it is held: {why}")),
        }
    }
}

fn read(id: &str, bytes: &[u8]) -> Result<Hold> {
    let hold: Hold = serde_json::from_slice(bytes).context("cannot understand it")?;
    if hold.version > FORMAT {
        bail!("it has the newer format {}", hold.version);
    }
    if hold.id != id {
        bail!("it says that it is {}", hold.id);
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
        ledger.put(Record::Hold("noise"), b"\xff").unwrap();
        ledger.put(Record::Fence, b"{}").unwrap();
        let all = standing(&ledger).unwrap();
        assert_eq!(all.len(), 3);
        assert!(all.iter().any(|h| h.id == "noise" && h.reason.contains("cannot be read")), "{all:?}");
        all.iter().try_for_each(|hold| hold.lift(&ledger)).unwrap();
        assert_eq!(standing(&ledger).unwrap(), []);
    }
}
