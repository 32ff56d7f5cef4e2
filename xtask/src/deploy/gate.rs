//! The gateway's kill switch over HTTP: reads it and who closed it, closes it and proves that (healthz says
//! so AND a public stream is refused), and opens it and proves that a public stream works. When to close or
//! open is not decided here. Called by `observe`, `lockout` and `kill-switch`.

use crate::base::http::Client;
use crate::stack::contract::{self, Switch};
use anyhow::{Result, bail};
use serde::Serialize;

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

/// Compares the whole reason, because a person's reason may begin with the same words.
pub fn closer(reason: &str) -> Closer {
    let id = reason.strip_prefix("run ").and_then(|rest| rest.split_once(": ")).map(|(id, _)| id);
    let is_id = |id: &str| {
        let (number, time) = id.split_once('-').unwrap_or_default();
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        number.len() >= 4 && digits(number) && time.len() == 18 && digits(&time.replacen('T', "", 1))
    };
    if id.is_some_and(is_id) || OLDER.contains(&reason) {
        Closer::Run
    } else if contract::OWN_REASONS.contains(&reason) {
        Closer::Gateway
    } else {
        Closer::Person
    }
}

/// Asks the gateway for its position.
pub fn position(gateway: &Client) -> Gate {
    match contract::switch(gateway) {
        Ok(Switch::Open) => Gate::Open,
        Ok(Switch::Closed(reason)) => Gate::Closed(reason),
        Ok(Switch::Other(what)) => Gate::Unknown(what),
        Err(error) => Gate::Unknown(format!("{error:#}")),
    }
}

/// Closes the gate and proves that it is closed.
pub fn close(gateway: &Client, reason: &str) -> Result<()> {
    contract::set_switch(gateway, Some(reason))?;
    prove_closed(gateway)
}

/// Both parts of the proof.
pub fn prove_closed(gateway: &Client) -> Result<()> {
    match position(gateway) {
        Gate::Closed(_) => contract::refuses_public(gateway),
        other => bail!("healthz does not say disabled after closing: {other:?}"),
    }
}

/// Opens the gate and waits for the first token of a public stream: only then is the service restored.
pub fn open(gateway: &Client) -> Result<()> {
    contract::set_switch(gateway, None)?;
    contract::serves_public(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_tells_a_person_from_a_run() {
        assert_eq!(closer(&run_reason("0001-20261124T084736659", "a rollback restores")), Closer::Run);
        assert_eq!(closer("run away costs, Ann"), Closer::Person);
        assert_eq!(closer("run 0001-soon: Ann"), Closer::Person);
        assert_eq!(closer("rollback: Ann"), Closer::Person);
        assert_eq!(closer("rollback: not verified yet"), Closer::Run);
        assert_eq!(closer("GLOBAL_KILL_SWITCH is true"), Closer::Gateway);
        assert_eq!(closer("Emergency rollback"), Closer::Person);
        assert_eq!(closer("closed by hand"), Closer::Person);
    }
}
