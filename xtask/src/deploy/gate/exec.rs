//! The gate that is a service with commands in its container: they close it, open it and say whether it is
//! closed. Where the service has several containers, each is asked. Made by `View`.

use crate::base::deadline::Deadline;
use crate::base::http::Client;
use crate::checks::ask::ask;
use crate::deploy::gate::{Gate, Switch, forget, no_position, remember, remembered};
use crate::engine::roles::Runtime;
use crate::stack::gate_rule::{Command, ExecGate};
use crate::stack::ledger::Ledger;
use crate::stack::model::Instance;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// What is said of a gate that nobody closed with this tool.
const BY_HAND: &str = "closed without this tool";

/// The service that lets the public in, and the commands of the manifest.
pub struct Exec<'a> {
    /// Runs the commands.
    pub runtime: &'a dyn Runtime,
    /// Which commands.
    pub rule: &'a ExecGate,
    /// Asks the service as the public does; none if it is not published.
    pub client: Option<Client>,
    /// Has the reason: no command tells it.
    pub ledger: Ledger,
    /// Limit of one command.
    pub limit: Duration,
}

impl Exec<'_> {
    /// The instances that run. An error if there are none, or if one is between two starts.
    fn instances(&self) -> Result<Vec<Instance>> {
        let service = &self.rule.service;
        let found = self.runtime.services(Deadline::after(self.limit))?.remove(service);
        let live: Vec<Instance> =
            found.into_iter().flat_map(|found| found.0).filter(Instance::is_live).collect();
        ensure!(!live.is_empty(), "{service} does not run");
        if let Some(other) = live.iter().find(|instance| !instance.is_running()) {
            anyhow::bail!("{service} is {}", other.state);
        }
        Ok(live)
    }

    /// Runs a command in each instance. Returns the exit codes, with what was printed.
    fn run(&self, command: &Command, reason: &str) -> Result<Vec<(i32, String)>> {
        let words = command.words(reason);
        let deadline = Deadline::after(self.limit);
        let run = |instance: &Instance| {
            let ran = self.runtime.exec(instance, &words, &[("REASON", reason)], deadline);
            ran.with_context(|| format!("cannot run `{command}` in {}", self.rule.service))
        };
        self.instances()?.iter().map(run).collect()
    }

    /// The same; an error if one fails.
    fn succeed(&self, command: &Command, reason: &str) -> Result<()> {
        for (code, printed) in self.run(command, reason)? {
            let service = &self.rule.service;
            ensure!(code == 0, "`{command}` in {service} ended with {code}: {}", printed.trim());
        }
        Ok(())
    }

    fn asked(&self, call: Option<&crate::stack::call::Call>) -> Result<Option<()>> {
        let Some(call) = call else { return Ok(None) };
        let client = self.client.as_ref().with_context(|| format!("{} has no address", self.rule.service))?;
        ask(client, call, &[]).map(Some)
    }
}

impl Switch for Exec<'_> {
    fn position(&self) -> Gate {
        match self.run(&self.rule.closed, "") {
            Ok(said) if said.iter().all(|(code, _)| *code == 0) => {
                Gate::Closed(remembered(&self.ledger).unwrap_or_else(|| BY_HAND.to_owned()))
            }
            Ok(_) => Gate::Open,
            Err(error) => Gate::Unknown(format!("{error:#}")),
        }
    }

    fn close(&self, reason: &str) -> Result<String> {
        // Without this record the closing is taken for one by hand, which is a hold: the safe side.
        remember(&self.ledger, reason).ok();
        self.succeed(&self.rule.close, reason)?;
        self.prove_closed()
    }

    fn prove_closed(&self) -> Result<String> {
        let position = self.position();
        let Gate::Closed(_) = position else { return no_position(&position) };
        let refused = self
            .asked(self.rule.refused.as_ref())
            .context("a public request is not refused while the gate is closed")?;
        let also = if refused.is_some() { ", and a public request is refused" } else { "" };
        Ok(format!("the gate is closed: `{}` in {} says so{also}", self.rule.closed, self.rule.service))
    }

    fn open(&self) -> Result<()> {
        self.succeed(&self.rule.open, "")?;
        if self.asked(self.rule.served.as_ref())?.is_none() {
            let position = self.position();
            ensure!(position == Gate::Open, "it does not say that it is open: {position:?}");
        }
        forget(&self.ledger)
    }
}
