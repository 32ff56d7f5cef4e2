//! The gate that is a service with requests: they close it, open it and say whether it is closed. Made by
//! `View`, and by the benchmark.

use crate::base::http::Client;
use crate::base::threads::side_by_side;
use crate::checks::ask::{ask, send};
use crate::deploy::gate::{Gate, Switch, no_position};
use crate::stack::gate_rule::{HttpGate, Position};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// How many instances are asked at a time.
const AT_A_TIME: usize = 16;

/// The service that lets the public in, and the requests of the manifest.
pub struct Http {
    /// Asks it: one for each instance.
    pub clients: Vec<Client>,
    /// What is asked.
    pub rule: HttpGate,
}

impl Http {
    /// The position of one instance.
    fn position_of(&self, client: &Client) -> Gate {
        let Position { request, closed, open, reason } = &self.rule.position;
        let answer = match send(client, request, None) {
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

    /// Asks every instance at the same time; an error if one fails.
    fn each(&self, ask: impl Fn(&Client) -> Result<()> + Sync) -> Result<()> {
        // One alone is asked by this thread.
        let most = self.clients.len().min(AT_A_TIME);
        side_by_side(most, self.clients.iter().collect(), ask).into_iter().collect()
    }
}

/// The position of several instances together: open if one is, and closed only if each is. Pure.
fn joint(each: Vec<Gate>) -> Gate {
    let rank = |gate: &Gate| match gate {
        Gate::Open => 0,
        Gate::Unknown(_) => 1,
        Gate::Closed(_) => 2,
    };
    each.into_iter().min_by_key(rank).unwrap_or_else(|| Gate::Unknown("the gateway does not run".into()))
}

impl Switch for Http {
    fn position(&self) -> Gate {
        let most = self.clients.len().min(AT_A_TIME);
        let each = side_by_side(most, self.clients.iter().collect(), |client| Ok(self.position_of(client)));
        joint(each.into_iter().flatten().collect())
    }

    fn close(&self, reason: &str) -> Result<String> {
        self.each(|client| ask(client, &self.rule.close, &[("REASON", reason)]))?;
        self.prove_closed()
    }

    /// Both parts of the proof, of each instance: it says so, and a public request is refused.
    fn prove_closed(&self) -> Result<String> {
        let position = self.position();
        let Gate::Closed(_) = position else { return no_position(&position) };
        self.each(|client| {
            ask(client, &self.rule.refused, &[])
                .context("a public request is not refused while the gate is closed")
        })?;
        Ok(match self.clients.len() {
            1 => "the gate is closed: the gateway says so, and a public request is refused".to_owned(),
            all => format!(
                "the gate is closed: each of {all} instances of the gateway says so and refuses a public request"
            ),
        })
    }

    fn open(&self) -> Result<()> {
        self.each(|client| ask(client, &self.rule.open, &[]))?;
        self.each(|client| ask(client, &self.rule.served, &[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_instances_are_closed_only_if_each_is() {
        let (closed, unknown) = (|| Gate::Closed("r".into()), || Gate::Unknown("no answer".into()));
        assert_eq!(joint(vec![closed(), closed()]), closed());
        assert_eq!(joint(vec![closed(), Gate::Open, unknown()]), Gate::Open);
        assert_eq!(joint(vec![closed(), unknown()]), unknown());
        assert!(matches!(joint(Vec::new()), Gate::Unknown(_)));
    }
}
