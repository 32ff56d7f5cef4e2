//! The gate, by the requests of the manifest: reads it and who closed it, closes it and proves that (it says so AND a
//! public request is refused), and opens it and proves that a public request is served. When to close or open is not
//! decided here. Called by `observe`, `lockout` and `kill-switch`.

use crate::base::http::Client;
use crate::checks::ask::{ask, send};
use crate::stack::manifest::{GateRule, Position};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

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
    "rollback: not verified yet",
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

/// The service that lets the public in, and the requests of the manifest that close and open it.
pub struct Gateway {
    /// Asks it.
    pub client: Client,
    rule: GateRule,
}

impl Gateway {
    /// The gateway that this client reaches.
    pub fn new(client: Client, rule: &GateRule) -> Self {
        Self { client, rule: rule.clone() }
    }

    /// Asks for its position.
    pub fn position(&self) -> Gate {
        let Position { request, closed, open, reason } = &self.rule.position;
        let answer = match send(&self.client, request, None) {
            Ok(answer) => answer,
            Err(error) => return Gate::Unknown(format!("{error:#}")),
        };
        let body = answer.json();
        let has = |wanted: &BTreeMap<String, Value>| {
            wanted.iter().all(|(pointer, value)| body.pointer(pointer) == Some(value))
        };
        if has(closed) {
            let reason = body.pointer(reason).and_then(Value::as_str);
            Gate::Closed(reason.unwrap_or("no reason given").to_owned())
        } else if answer.status == 200 && has(open) {
            Gate::Open
        } else {
            Gate::Unknown(format!("{request} answered {}", answer.brief()))
        }
    }

    /// Closes the gate and proves that it is closed.
    pub fn close(&self, reason: &str) -> Result<()> {
        ask(&self.client, &self.rule.close, &[("REASON", reason)])?;
        self.prove_closed()
    }

    /// Both parts of the proof: it says so, and a public request is refused.
    pub fn prove_closed(&self) -> Result<()> {
        match self.position() {
            Gate::Closed(_) => ask(&self.client, &self.rule.refused, &[])
                .context("a public request is not refused while the gate is closed"),
            other => bail!("it does not say that it is closed: {other:?}"),
        }
    }

    /// Opens the gate and waits until a public request is served: only then is the service restored.
    pub fn open(&self) -> Result<()> {
        ask(&self.client, &self.rule.open, &[])?;
        ask(&self.client, &self.rule.served, &[])
    }

    /// Who closed it, if this was the reason.
    pub fn closer(&self, reason: &str) -> Closer {
        closer(reason, &self.rule.own_reasons)
    }
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
