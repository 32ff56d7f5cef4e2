//! The gate of a stack without a switch: the services that let the public in are stopped, and started last.
//! A container that is down says nothing, so the ledger has the reason. Made by `View`.

use crate::base::deadline::Deadline;
use crate::deploy::gate::{Gate, Switch, no_position, remember, remembered};
use crate::engine::roles::Runtime;
use crate::stack::cover::Cover;
use crate::stack::definition::Definition;
use crate::stack::hold;
use crate::stack::ledger::Ledger;
use crate::stack::model::Service;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// What is said of services that are down although nobody has closed the gate.
pub const BY_ITSELF: &str = "what lets the public in does not run";

/// The policy under which nothing is started again.
const NEVER: &str = "no";

/// Limit of one attempt to connect.
const CONNECT: Duration = Duration::from_millis(500);

/// How long a port may still answer after its container is down: Docker's proxy ends a moment later.
const RELEASED: Duration = Duration::from_secs(2);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The services that let the public in.
pub struct Stop<'a> {
    /// Runs them.
    pub runtime: &'a dyn Runtime,
    /// Which ones, and their ports.
    pub cover: Cover,
    /// When the engine starts each of them again while the gate is open.
    pub policies: BTreeMap<String, String>,
    /// Has the reason.
    pub ledger: Ledger,
    /// Limit of one action of the engine.
    pub limit: Duration,
    /// Limit of starting the services.
    pub start: Duration,
    /// Limit from their start until they take connections.
    pub ready: Duration,
}

/// The policies of the services in a definition.
pub fn policies(definition: &Definition) -> BTreeMap<String, String> {
    let policy = |service: &crate::stack::definition::Service| service.restart.clone();
    let all = definition.services.iter().filter_map(|(name, service)| Some((name.clone(), policy(service)?)));
    all.collect()
}

/// The position of the gate, from what runs and what answers. `reason` is who closed it, if somebody did.
/// Pure.
fn judge(
    cover: &Cover,
    policies: &BTreeMap<String, String>,
    services: &BTreeMap<String, Service>,
    answers: impl Fn(SocketAddr) -> Result<bool>,
    reason: Option<String>,
) -> Gate {
    if cover.services.is_empty() {
        return reason.map_or(Gate::Open, Gate::Closed);
    }
    let live: Vec<&String> = cover.services.iter().filter(|name| is_live(services, name)).collect();
    if live.is_empty() {
        return match refuse(cover, answers) {
            Ok(()) => Gate::Closed(reason.unwrap_or_else(|| BY_ITSELF.to_owned())),
            Err(error) => Gate::Unknown(format!("its services are down, but {error:#}")),
        };
    }
    match live.iter().find(|name| is_kept_down(policies, services, name)) {
        // The opening restores the policy when its checks have passed.
        Some(name) => Gate::Unknown(format!("{name} runs, but its opening or closing was not finished")),
        None => Gate::Open,
    }
}

fn is_live(services: &BTreeMap<String, Service>, name: &str) -> bool {
    services.get(name).is_some_and(Service::is_live)
}

/// Has any instance of a service a restart policy for which this holds?
fn has_policy(services: &BTreeMap<String, Service>, name: &str, holds: impl Fn(&str) -> bool) -> bool {
    let instances = services.get(name).into_iter().flat_map(|service| &service.0);
    instances.into_iter().filter_map(|one| one.restart.as_deref()).any(holds)
}

/// Does the engine not start a service again by itself, if it is down?
pub fn stays_down(services: &BTreeMap<String, Service>, name: &str) -> bool {
    !has_policy(services, name, |policy| policy != NEVER)
}

/// Was a service, which starts again while the gate is open, kept from it?
fn is_kept_down(
    policies: &BTreeMap<String, String>,
    services: &BTreeMap<String, Service>,
    name: &str,
) -> bool {
    policies.contains_key(name) && has_policy(services, name, |policy| policy == NEVER)
}

/// Do all ports of the gate refuse a connection?
fn refuse(cover: &Cover, answers: impl Fn(SocketAddr) -> Result<bool>) -> Result<()> {
    for port in &cover.ports {
        if answers(*port)? {
            bail!("something answers at {port}");
        }
    }
    Ok(())
}

impl Stop<'_> {
    fn services(&self) -> Result<BTreeMap<String, Service>> {
        self.runtime.services(Deadline::after(self.limit))
    }

    fn answers(&self, port: SocketAddr) -> Result<bool> {
        self.runtime.answers_at(port, CONNECT)
    }

    /// Who closed the gate: a hold, or the command that wrote the record.
    fn reason(&self) -> Option<String> {
        let held =
            hold::standing(&self.ledger).ok().and_then(|holds| holds.first().map(|h| h.reason.clone()));
        held.or_else(|| remembered(&self.ledger))
    }

    /// The position, from services that were just observed.
    pub fn position_of(&self, services: &BTreeMap<String, Service>) -> Gate {
        judge(&self.cover, &self.policies, services, |port| self.answers(port), self.reason())
    }

    /// The position while the engine does not say what runs: only an answer proves something.
    pub fn position_without_engine(&self, why: &str) -> Gate {
        let answers = self.cover.ports.iter().any(|port| self.answers(*port).unwrap_or(false));
        if answers { Gate::Open } else { Gate::Unknown(format!("the engine does not say what runs: {why}")) }
    }

    /// Is everything down, and does it stay down?
    fn down(&self) -> Result<String> {
        let services = self.services()?;
        for name in &self.cover.services {
            if is_live(&services, name) {
                bail!("{name} is {}", services.get(name).map_or("there", Service::state));
            }
            if !stays_down(&services, name) {
                bail!("{name} is down, but the engine may start it again");
            }
        }
        refuse(&self.cover, |port| self.answers(port))?;
        let names = self.cover.stopped().join(", ");
        let open = self.cover.not_closed(Some(&services));
        Ok(match (names.is_empty(), open.is_empty()) {
            (true, true) => "nothing is published, so there is nothing to close".to_owned(),
            (true, false) => "nothing was stopped".to_owned(),
            (false, true) => format!("the gate is closed: {names} stopped, and no port of the gate answers"),
            (false, false) => format!("{names} stopped, and no port of the gate answers"),
        })
    }
}

impl Switch for Stop<'_> {
    fn position(&self) -> Gate {
        match self.services() {
            Ok(services) => self.position_of(&services),
            Err(error) => self.position_without_engine(&format!("{error:#}")),
        }
    }

    fn close(&self, reason: &str) -> Result<String> {
        // The record is for people: the gate closes without it too.
        remember(&self.ledger, reason).ok();
        self.runtime.keep_down(&self.cover.stopped(), Deadline::after(self.limit))?;
        Deadline::after(RELEASED).poll(PAUSE, || match self.down() {
            Ok(proof) => Break(Ok(proof)),
            Err(error) => Continue(error),
        })?
    }

    fn prove_closed(&self) -> Result<String> {
        match self.position() {
            Gate::Closed(_) => self.down(),
            // A gate that covers nothing has no other position than what the records say.
            _ if self.cover.services.is_empty() => self.down(),
            other => no_position(&other),
        }
    }

    /// Starts the services and waits until they take connections. The restart policy is restored by `settle`.
    fn open(&self) -> Result<()> {
        let names = self.cover.stopped();
        if names.is_empty() {
            return Ok(());
        }
        self.runtime.start(&names, Deadline::after(self.start))?;
        let taken = Deadline::after(self.ready).poll(PAUSE, || {
            let services = match self.services() {
                Ok(services) => services,
                Err(error) => return Continue(error),
            };
            if let Some(name) = names.iter().find(|name| !is_live(&services, name)) {
                let state = services.get(name.as_str()).map_or("missing", Service::state);
                return Break(Err(anyhow!("{name} ended right after it was started: it is {state}")));
            }
            match self.cover.ports.iter().find(|port| !self.answers(**port).unwrap_or(false)) {
                Some(port) => Continue(anyhow!("nothing answers at {port} yet")),
                None => Break(Ok(())),
            }
        });
        taken.flatten()
    }

    /// What was just created is not started yet; whatever runs of it is stopped.
    fn close_applied(&self, reason: &str, _: Deadline) -> Result<bool> {
        let came_up = self
            .cover
            .services
            .iter()
            .any(|name| self.services().is_ok_and(|services| is_live(&services, name)));
        self.close(reason).map(|_| came_up)
    }
}

/// After an opening: lets the engine start the services again by itself, as their release has it, and removes
/// the record of the closing. A gate of another kind does this too, for services that the one before it has
/// stopped.
pub fn settle(
    runtime: &dyn Runtime,
    definition: Option<&Definition>,
    ledger: &Ledger,
    deadline: Deadline,
) -> Result<()> {
    let Some(definition) = definition else { return Ok(()) };
    let services = runtime.services(deadline)?;
    let mut wanted = policies(definition);
    let kept_down: Vec<String> =
        wanted.keys().filter(|name| is_kept_down(&wanted, &services, name)).cloned().collect();
    wanted.retain(|name, _| kept_down.contains(name));
    if !wanted.is_empty() {
        runtime.restart_as(&wanted, deadline).context("the restart policy was not restored")?;
    }
    super::forget(ledger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::drift::tests::matching;
    use crate::stack::model::Instance;

    fn gate(how: impl Fn(&mut Instance), answers: Result<bool, ()>, reason: Option<&str>) -> Gate {
        let (now, ..) = matching();
        let mut services = now.stack.known().unwrap().services.clone();
        services.values_mut().for_each(|service| service.0.iter_mut().for_each(&how));
        let port = SocketAddr::from(([127, 0, 0, 1], 1));
        let cover = Cover { services: ["gateway".into()].into(), ports: [port].into(), ..Cover::stop() };
        let policies = [("gateway".to_owned(), "always".to_owned())].into();
        let answers = |_| answers.map_err(|()| anyhow!("timeout"));
        judge(&cover, &policies, &services, answers, reason.map(str::to_owned))
    }

    fn down(one: &mut Instance) {
        (one.state, one.restart) = ("exited".into(), Some("no".into()));
    }

    #[test]
    fn closed_is_what_is_down_and_refuses_and_anything_that_runs_is_open() {
        let up = |one: &mut Instance| one.restart = Some("always".into());
        assert_eq!(gate(up, Ok(true), None), Gate::Open);
        assert_eq!(gate(down, Ok(false), Some("bad answers")), Gate::Closed("bad answers".into()));
        assert_eq!(gate(down, Ok(false), None), Gate::Closed(BY_ITSELF.into()));
        // A port that answers, or of which nobody can tell, is not closed.
        assert!(
            matches!(gate(down, Ok(true), None), Gate::Unknown(why) if why.contains("something answers"))
        );
        assert!(matches!(gate(down, Err(()), None), Gate::Unknown(why) if why.contains("timeout")));
        // Between two starts it may answer at any moment.
        assert_eq!(gate(|one| one.state = "restarting".into(), Ok(false), None), Gate::Open);
        // It was started, but nobody knows whether its checks have passed.
        let started = |one: &mut Instance| one.restart = Some("no".into());
        assert!(matches!(gate(started, Ok(true), None), Gate::Unknown(why) if why.contains("not finished")));
    }
}
