//! The stack by the manifest of one release. To close the gate, copy data and keep evidence, the manifest of
//! the release that runs counts. To apply, check and open, the manifest of the target release counts. `up`
//! uses the manifest of the source. Each is a `View`, so code that has one view cannot use another manifest
//! by mistake. Made by `Session`.

use crate::base::deadline::Deadline;
use crate::base::http::Client;
use crate::base::observed::Observed;
use crate::checks::target::Target;
use crate::deploy::drift::Wanted;
use crate::deploy::gate::exec::Exec;
use crate::deploy::gate::http::Http;
use crate::deploy::gate::stop::{self, Stop};
use crate::deploy::gate::{Gate, Switch};
use crate::deploy::observe::{self, Observation};
use crate::engine::reach::clients;
use crate::engine::roles::Engine;
use crate::release::description::Release;
use crate::release::store::Store;
use crate::stack::cover::Cover;
use crate::stack::definition::{Definition, Environment};
use crate::stack::endpoint::{Endpoint, endpoints};
use crate::stack::envfile::EnvFile;
use crate::stack::gate_rule::{GateRule, Kind};
use crate::stack::ledger::Ledger;
use crate::stack::manifest::Manifest;
use crate::stack::model::{Service, Stack};
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// The stack by one manifest.
pub struct View {
    /// The pilot with that manifest.
    pub pilot: Pilot,
    /// The engine, by that manifest.
    pub engine: Box<dyn Engine>,
    /// The release that has this manifest; none if it is the manifest of the source.
    pub release: Option<Release>,
    /// The settings of that release, or of the source; none if they cannot be read.
    pub env: Option<EnvFile>,
    /// The environment of each service of that release; none if it is not known.
    pub environment: Option<Environment>,
    /// The records of the stack.
    ledger: Ledger,
}

impl View {
    /// By the manifest of a release. It is an error if its manifest, its model or its settings cannot be
    /// read.
    pub fn of(pilot: &Pilot, engine: &dyn Engine, store: &Store, release: &Release) -> Result<Self> {
        let manifest = Manifest::in_folder(&store.dir(&release.id))?;
        let (layout, definition) = (release.layout.clone(), store.definition(release)?);
        let pilot = Pilot { manifest, layout, definition, ..pilot.clone() };
        let engine = engine.for_stack(&pilot)?;
        let (env, environment) = (store.settings(release)?, store.environment(release)?);
        let ledger = store.ledger();
        Ok(Self { pilot, engine, release: Some(release.clone()), env: Some(env), environment, ledger })
    }

    /// By the manifest of the source, or its substitute.
    pub fn tree(pilot: &Pilot, engine: &dyn Engine, store: &Store) -> Result<Self> {
        let (engine, env) = (engine.for_stack(pilot)?, pilot.env().ok());
        Ok(Self {
            pilot: pilot.clone(),
            engine,
            release: None,
            env,
            environment: None,
            ledger: store.ledger(),
        })
    }

    /// By the manifest of the release that runs: the one that is recorded, or the one whose images run. If
    /// what runs belongs to no known release, by the manifest of the source, without a release.
    pub fn running(pilot: &Pilot, engine: &dyn Engine, store: &Store, deadline: Deadline) -> Result<Self> {
        let by = |release: &Release| Self::of(pilot, engine, store, release).ok();
        if let Some(view) = store.current().ok().flatten().and_then(|release| by(&release)) {
            return Ok(view);
        }
        let limit = deadline.within(pilot.manifest.limits.engine);
        let services = engine.services(limit).unwrap_or_default();
        let releases = store.list().map(|(all, _)| all).unwrap_or_default();
        let found = releases.iter().rev().filter(|release| runs(&services, release)).find_map(by);
        found.map_or_else(|| Self::tree(pilot, engine, store), Ok)
    }

    /// The records of the stack, with those of every client.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The settings. It is an error if they could not be read.
    pub fn env(&self) -> Result<&EnvFile> {
        self.env.as_ref().with_context(|| format!("{} cannot be read", self.pilot.env_path.display()))
    }

    /// What the release wants of the engine.
    pub fn wanted(&self) -> Wanted {
        let definition = self.pilot.definition.as_ref().filter(|_| self.environment.is_some());
        let optional =
            self.pilot.every_service().filter(|name| self.pilot.services().all(|own| own != *name));
        let observability = self.pilot.manifest.observability.iter().map(|service| service.name.clone());
        Wanted {
            file: self.env.as_ref().map(EnvFile::map).unwrap_or_default(),
            environment: self.environment.clone(),
            data: definition.map(Definition::own_data),
            beside: optional.map(str::to_owned).chain(observability).collect(),
        }
    }

    /// What the stack is, by the release; of one of an older version, which has no model, by its manifest. None if it is
    /// not known: a manifest that names no service does not say that there is none.
    pub fn definition(&self) -> Option<Definition> {
        let by_manifest = || {
            let env = self.env.as_ref().filter(|_| !self.pilot.manifest.services.is_empty())?;
            self.pilot.by_manifest(env).ok()
        };
        self.pilot.definition.clone().or_else(by_manifest)
    }

    /// What the gate covers.
    pub fn cover(&self) -> Result<Cover> {
        Cover::of(&self.pilot.manifest.gate, self.definition().as_ref())
    }

    /// Where the public reaches the stack: a URL if it is HTTP as far as the manifest says; none if nothing is published.
    pub fn address(&self) -> Option<String> {
        let cover = self.cover().ok()?;
        let all = endpoints(&self.pilot, self.env.as_ref()?).ok()?;
        let (_, endpoint) = all.into_iter().find(|(service, _)| cover.services.contains(service))?;
        let at = self.engine.shown(endpoint.port);
        let is_address = !at.contains(' ') && cover.kind == Kind::Http;
        Some(if is_address { format!("http://{at}") } else { at })
    }

    /// The gate, with the port and token of these settings. A request to it takes `limit` at most.
    pub fn gate(&self, limit: Duration) -> Result<Box<dyn Switch + '_>> {
        self.gate_over(|| self.each_of(None, limit))
    }

    /// A client for the gateway, with the port and token of these settings.
    pub fn client(&self, limit: Duration) -> Result<Client> {
        self.client_of(None, limit)
    }

    /// A client for each instance of a service that runs; without a name, of the gateway.
    pub fn each_of(&self, service: Option<&str>, limit: Duration) -> Result<Vec<Client>> {
        let service = service.unwrap_or(self.pilot.gateway());
        let all = endpoints(&self.pilot, self.env()?)?;
        let own = all.get(service).with_context(|| format!("{service:?} publishes no port"))?;
        self.engine.reach_each(own, true, limit)
    }

    /// A client for a service; without a name, for the gateway.
    pub fn client_of(&self, service: Option<&str>, limit: Duration) -> Result<Client> {
        let service = service.unwrap_or(self.pilot.gateway());
        let mut all = clients(&self.pilot, self.engine.as_ref(), self.env()?, limit)?;
        all.remove(service).with_context(|| format!("{service:?} publishes no port"))
    }

    /// The gate that runs, at the address that the engine reports.
    pub fn gate_seen(&self, now: &Observation, limit: Duration) -> Result<Box<dyn Switch + '_>> {
        self.gate_over(|| self.clients_at(&now.endpoints, true, limit))
    }

    /// The same, of the instances of this observation, if it was made a moment ago. `close_where_none` looks again.
    pub fn gate_just_seen(&self, now: &Observation, limit: Duration) -> Result<Box<dyn Switch + '_>> {
        self.gate_over(|| self.clients_at(&now.endpoints, false, limit))
    }

    /// Clients for the instances of the gateway that runs.
    fn clients_at(
        &self,
        endpoints: &BTreeMap<String, Endpoint>,
        anew: bool,
        limit: Duration,
    ) -> Result<Vec<Client>> {
        let endpoint = endpoints.get(self.pilot.gateway()).context("the gateway's address is unknown")?;
        self.engine.reach_each(endpoint, anew, limit)
    }

    /// The gate by its kind. `clients` reach the instances of its service.
    fn gate_over(&self, clients: impl FnOnce() -> Result<Vec<Client>>) -> Result<Box<dyn Switch + '_>> {
        let (ledger, limits) = (self.ledger.clone(), &self.pilot.manifest.limits);
        Ok(match &self.pilot.manifest.gate {
            GateRule::Http(rule) => Box::new(Http { clients: clients()?, rule: rule.as_ref().clone() }),
            GateRule::Exec(rule) => {
                let runtime = self.engine.as_ref();
                Box::new(Exec {
                    runtime,
                    rule,
                    client: clients().ok().and_then(|mut all| all.pop()),
                    ledger,
                    limit: limits.engine,
                })
            }
            GateRule::Stop(_) => Box::new(self.stop_gate()?),
        })
    }

    fn stop_gate(&self) -> Result<Stop<'_>> {
        let limits = &self.pilot.manifest.limits;
        Ok(Stop {
            runtime: self.engine.as_ref(),
            cover: self.cover()?,
            policies: self.definition().as_ref().map(stop::policies).unwrap_or_default(),
            ledger: self.ledger.clone(),
            limit: limits.engine,
            start: limits.deploy,
            ready: limits.ready,
        })
    }

    /// The position of the gate, from an observation that is being made.
    fn position(&self, stack: &Observed<Stack>, endpoints: &BTreeMap<String, Endpoint>) -> Gate {
        let unknown = |error: anyhow::Error| Gate::Unknown(format!("{error:#}"));
        match (&self.pilot.manifest.gate, stack) {
            (GateRule::Http(_), _) if !endpoints.contains_key(self.pilot.gateway()) => {
                Gate::Unknown("the gateway does not run".into())
            }
            (GateRule::Stop(_), Observed::Known(stack)) => {
                self.stop_gate().map_or_else(unknown, |gate| gate.position_of(&stack.services))
            }
            (GateRule::Stop(_), Observed::Unknown(why)) => {
                self.stop_gate().map_or_else(unknown, |gate| gate.position_without_engine(why))
            }
            _ => {
                let limit = self.pilot.manifest.limits.probe;
                let gate = self.gate_over(|| self.clients_at(endpoints, false, limit));
                gate.map_or_else(unknown, |gate| gate.position())
            }
        }
    }

    /// The settings and limits that the smoke checks use.
    pub fn target(&self) -> Result<Target<'_>> {
        Target::new(&self.pilot, self.engine.as_ref(), self.env()?)
    }

    /// What stays published while the gate is closed, and what cannot be asked whether it does.
    pub fn not_closed(&self, services: Option<&BTreeMap<String, Service>>) -> Vec<String> {
        let mut all = self.cover().map(|cover| cover.not_closed(services)).unwrap_or_default();
        all.extend(self.beyond_reach());
        all
    }

    /// What may serve the public and cannot be asked.
    pub fn beyond_reach(&self) -> Vec<String> {
        let all = self.engine.beyond_reach();
        all.unwrap_or_else(|error| vec![format!("what is not reached: {error:#}")])
    }

    /// Observes the stack by this view. `stored` is the engine that knows which data exists: the target
    /// release may use other names for volumes.
    pub fn observe(&self, stored: &dyn Engine, deadline: Deadline) -> Observation {
        let position: observe::Position<'_> = &|stack, endpoints| self.position(stack, endpoints);
        let mut now = observe::observe(
            &self.pilot,
            self.engine.as_ref(),
            stored,
            self.env.as_ref(),
            &self.ledger,
            position,
            deadline,
        );
        if matches!(now.gate, Gate::Closed(_)) {
            now.not_closed = self.not_closed(now.stack.known().map(|stack| &stack.services));
        }
        now
    }
}

/// Do exactly the images of this release run?
fn runs(services: &BTreeMap<String, Service>, release: &Release) -> bool {
    let same = |(service, image): (&String, &crate::release::description::Image)| {
        services.get(service).is_some_and(|service| service.has_image(&image.id))
    };
    !release.images.is_empty() && release.images.iter().all(same)
}
