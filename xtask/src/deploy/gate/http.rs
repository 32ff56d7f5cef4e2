//! The gate that is a service with requests: they close it, open it and say whether it is closed. Made by
//! `View`, and by the benchmark.

use crate::base::http::Client;
use crate::checks::ask::{ask, send};
use crate::deploy::gate::{Gate, Switch, no_position};
use crate::stack::gate_rule::{HttpGate, Position};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// The service that lets the public in, and the requests of the manifest.
pub struct Http {
    /// Asks it.
    pub client: Client,
    /// What is asked.
    pub rule: HttpGate,
}

impl Switch for Http {
    fn position(&self) -> Gate {
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

    fn close(&self, reason: &str) -> Result<String> {
        ask(&self.client, &self.rule.close, &[("REASON", reason)])?;
        self.prove_closed()
    }

    /// Both parts of the proof: it says so, and a public request is refused.
    fn prove_closed(&self) -> Result<String> {
        let position = self.position();
        let Gate::Closed(_) = position else { return no_position(&position) };
        ask(&self.client, &self.rule.refused, &[])
            .context("a public request is not refused while the gate is closed")?;
        Ok("the gate is closed: the gateway says so, and a public request is refused".to_owned())
    }

    fn open(&self) -> Result<()> {
        ask(&self.client, &self.rule.open, &[])?;
        ask(&self.client, &self.rule.served, &[])
    }
}
