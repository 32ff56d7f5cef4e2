//! The gate: what lets the public in. Its position, who closed it, and the role that its three kinds have: `http`,
//! `exec`, `stop`. When to close or open is not decided here. Called by `view`, `observe`, `lockout` and `steps`.

pub mod exec;
pub mod http;
pub mod stop;

use crate::base::deadline::Deadline;
use crate::stack::gate_rule::{GateRule, NOT_VERIFIED};
use crate::stack::ledger::{Ledger, Record};
use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// The position of the gate, if it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// Requests are accepted.
    Open,
    /// Requests are refused, with this reason.
    Closed(String),
    /// Unknown, and why.
    Unknown(String),
}

/// Who closed a gate, derived from its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closer {
    /// A run of this tool, or of an older version of it.
    Run,
    /// The gateway itself, because of a setting or because it could not read its file.
    Gateway,
    /// Anybody else: a person, also with `kill-switch on` of an older version.
    Person,
}

/// The reason that a run gives when it closes the gate.
pub fn run_reason(run: &str, why: &str) -> String {
    format!("run {run}: {why}")
}

/// The reasons that runs of older versions gave.
const OLDER: [&str; 4] = [
    "rollback: restoring the last known-good release",
    NOT_VERIFIED,
    "rollback: building the commit to go back to",
    "a release is being deployed",
];

/// Compares the whole reason, because a person's reason may begin with the same words. `own` are the reasons that the
/// gateway gives if it closed the gate by itself.
pub fn closer(reason: &str, own: &[String]) -> Closer {
    let id = reason.strip_prefix("run ").and_then(|rest| rest.split_once(": ")).map(|(id, _)| id);
    let is_id = |id: &str| {
        let (number, time) = id.split_once('-').unwrap_or_default();
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        number.len() >= 4 && digits(number) && time.len() == 18 && digits(&time.replacen('T', "", 1))
    };
    if id.is_some_and(is_id) || OLDER.contains(&reason) {
        Closer::Run
    } else if own.iter().any(|own| own == reason) {
        Closer::Gateway
    } else {
        Closer::Person
    }
}

/// Who closed a gate of this kind, if this was the reason. Where services are stopped, nobody can close it without
/// this tool: what is down without a reason has ended by itself.
pub fn closer_by(rule: &GateRule, reason: &str) -> Closer {
    match rule {
        GateRule::Http(http) => closer(reason, &http.own_reasons),
        GateRule::Exec(_) => closer(reason, &[]),
        GateRule::Stop(_) if closer(reason, &[]) == Closer::Run => Closer::Run,
        GateRule::Stop(_) => Closer::Gateway,
    }
}

/// What lets the public in: it is read, closed with proof, and opened. Each kind of gate implements it.
pub trait Switch {
    /// Reads its position.
    fn position(&self) -> Gate;

    /// Closes the gate and proves that it is closed. Says what was seen.
    fn close(&self, reason: &str) -> Result<String>;

    /// Proves that it is closed. Says what was seen.
    fn prove_closed(&self) -> Result<String>;

    /// Opens the gate and waits until the public is served.
    fn open(&self) -> Result<()>;

    /// Waits for a gate that was just applied, closes it if it came up open, and proves that it is closed.
    /// Returns true if it had come up open.
    fn close_applied(&self, reason: &str, deadline: Deadline) -> Result<bool> {
        let (open, proved) = deadline.poll(PAUSE, || match self.position() {
            Gate::Closed(_) => Break((false, self.prove_closed())),
            Gate::Open => Break((true, self.close(reason))),
            Gate::Unknown(why) => Continue(anyhow!("the gateway does not answer: {why}")),
        })?;
        proved.map(|_| open)
    }
}

/// The pause between two looks at a gate that is starting.
const PAUSE: Duration = Duration::from_millis(5);

fn no_position<T>(other: &Gate) -> Result<T> {
    bail!("it does not say that it is closed: {other:?}")
}

/// Writes down why the gate is closed, for a kind of gate that cannot tell it.
pub fn remember(ledger: &Ledger, reason: &str) -> Result<()> {
    ledger.replace(Record::Closing, reason.as_bytes())
}

fn remembered(ledger: &Ledger) -> Option<String> {
    let bytes = ledger.read(Record::Closing).ok()??;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn forget(ledger: &Ledger) -> Result<()> {
    ledger.remove(Record::Closing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_tells_a_person_from_a_run() {
        let who = |reason: &str| closer(reason, &["it closes by itself".into()]);
        assert_eq!(who(&run_reason("0001-20261124T084736659", "a rollback restores")), Closer::Run);
        assert_eq!(who("run away costs, Ann"), Closer::Person);
        assert_eq!(who("run 0001-soon: Ann"), Closer::Person);
        assert_eq!(who("rollback: Ann"), Closer::Person);
        assert_eq!(who("rollback: not verified yet"), Closer::Run);
        assert_eq!(who("it closes by itself"), Closer::Gateway);
        assert_eq!(who("Emergency rollback"), Closer::Person);
        assert_eq!(who("closed by hand"), Closer::Person);
    }
}
