//! What is true now. This only reads, and asks everything at the same time. What could not be found out is
//! unknown, with the reason; nothing is guessed. Called by every command that needs the state of the stack.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::observed::Observed;
use crate::base::threads::joined;
use crate::checks::health::health;
use crate::deploy::gate::Gate;
use crate::deploy::paused;
use crate::engine::roles::{Engine, Runtime};
use crate::host;
use crate::host::HostCheck;
use crate::stack::endpoint::{Endpoint, endpoints};
use crate::stack::envfile::EnvFile;
use crate::stack::hold::{self, Hold};
use crate::stack::ledger::Ledger;
use crate::stack::model::Health;
use crate::stack::model::{Instance, Service, Stack};
use crate::stack::pilot::Pilot;
use anyhow::{Result, bail, ensure};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The env file of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeEnv {
    /// It does not exist.
    Missing,
    /// It cannot be read as an env file.
    Malformed(String),
    /// Its settings.
    Fine(BTreeMap<String, String>),
}

/// Everything that was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// What the engine reports.
    pub stack: Observed<Stack>,
    /// The addresses of the services: from the engine, or from the env file if the engine does not answer.
    #[serde(skip)]
    pub endpoints: BTreeMap<String, Endpoint>,
    /// The health of the services if the engine does not answer. Otherwise each instance has its own health.
    pub unseen: BTreeMap<String, Health>,
    /// The gate.
    pub gate: Gate,
    /// What stays published while the gate is closed.
    pub not_closed: Vec<String>,
    /// Who holds the gate closed.
    pub holds: Observed<Vec<Hold>>,
    /// The env file of the source. It has secrets.
    #[serde(skip)]
    pub tree_env: Observed<TreeEnv>,
    /// The checksums of the compose files of the source, to compare with the release; none for a file that is missing.
    pub tree_compose: Observed<Vec<Option<String>>>,
    /// Services that are paused at this moment because their data is copied.
    #[serde(skip)]
    pub copied: BTreeSet<String>,
    /// Host checks that are quick enough to run every time.
    pub shortages: Vec<HostCheck>,
    /// Every check of what runs passed at this moment. Asked only where images have to be loaded.
    #[serde(skip)]
    pub passes: bool,
}

impl Observation {
    /// A service as the engine reports it.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.stack.known()?.services.get(name)
    }

    /// The instances of a service. If there are none, the error says why.
    pub fn instances(&self, name: &str) -> Result<&[Instance]> {
        let stack = match &self.stack {
            Observed::Known(stack) => stack,
            Observed::Unknown(why) => bail!("{why}"),
        };
        let found = stack.services.get(name).map(|service| service.0.as_slice()).unwrap_or_default();
        ensure!(!found.is_empty(), "{name} is not there");
        Ok(found)
    }

    /// The health of a service: of the first instance that is not healthy, or of the first one if all are.
    pub fn health(&self, name: &str) -> Option<&Health> {
        let seen = self.service(name).into_iter().flat_map(|service| &service.0);
        let mut all = seen.filter_map(|instance| instance.health.as_ref()).chain(self.unseen.get(name));
        let first = all.clone().next();
        all.find(|health| !matches!(health, Health::Healthy { .. })).or(first)
    }
}

/// Finds the position of the gate, from what the engine reports and the addresses of the services.
pub type Position<'a> = &'a (dyn Fn(&Observed<Stack>, &BTreeMap<String, Endpoint>) -> Gate + Sync);

/// Observes everything. `env` has the addresses to ask if the engine does not answer. `stored` is the engine
/// that is asked for images and data.
pub fn observe(
    pilot: &Pilot,
    runtime: &dyn Runtime,
    stored: &dyn Engine,
    env: Option<&EnvFile>,
    ledger: &Ledger,
    position: Position<'_>,
    deadline: Deadline,
) -> Observation {
    std::thread::scope(|scope| {
        let holds = scope.spawn(|| hold::standing(ledger));
        let mut stack = Observed::from(stack(runtime, stored, deadline.within(pilot.manifest.limits.engine)));
        let endpoints: BTreeMap<String, Endpoint> = match &stack {
            Observed::Known(stack) => {
                let own =
                    |name: &str| Some((name.to_owned(), Endpoint::any_of(stack.services.get(name)?, pilot)?));
                pilot.services().filter_map(own).collect()
            }
            Observed::Unknown(_) => env.and_then(|env| endpoints(pilot, env).ok()).unwrap_or_default(),
        };
        let seen = stack.clone();
        let client = |endpoint: &Endpoint| runtime.reach(endpoint, pilot.manifest.limits.probe);
        let mut unseen = BTreeMap::new();
        let gate = std::thread::scope(|scope| {
            let gate = scope.spawn(|| position(&seen, &endpoints));
            match &mut stack {
                Observed::Known(stack) => ask_health(pilot, runtime, &mut stack.services),
                Observed::Unknown(_) => {
                    let asked = pilot
                        .manifest
                        .health
                        .iter()
                        .flat_map(|rule| endpoints.iter().map(move |e| (rule, e)));
                    let jobs: Vec<_> = asked
                        .map(|(rule, (name, endpoint))| {
                            let client = client(endpoint);
                            (name, scope.spawn(move || health(&client, rule)))
                        })
                        .collect();
                    let told =
                        jobs.into_iter().map(|(name, job)| (name.clone(), job.join().unwrap_or_else(lost)));
                    unseen = told.collect();
                }
            }
            gate.join().unwrap_or_else(|_| Gate::Unknown("the check of the gate panicked".into()))
        });
        let (tree_env, tree_compose) = (tree_env(pilot).into(), compose(pilot).into());
        let mut shortages = host::quick(pilot, runtime.elsewhere().as_deref());
        shortages.retain(|check| check.ok == Some(false));
        let holds = joined(holds).into();
        let (not_closed, copied) = (Vec::new(), paused::services(&pilot.state));
        Observation {
            stack,
            endpoints,
            unseen,
            gate,
            not_closed,
            holds,
            tree_env,
            tree_compose,
            copied,
            shortages,
            passes: false,
        }
    })
}

/// What the engine reports of the whole stack. The parts are asked at the same time.
fn stack(runtime: &dyn Runtime, stored: &dyn Engine, deadline: Deadline) -> Result<Stack> {
    std::thread::scope(|scope| {
        let images = scope.spawn(|| stored.images(deadline));
        let data = scope.spawn(|| stored.stored(deadline));
        let services = runtime.services(deadline)?;
        Ok(Stack { services, images: joined(images)?, data: joined(data)? })
    })
}

/// Asks every instance of the stack's own services for its health, all at the same time. Without `[health]` the engine's
/// word stays.
pub fn ask_health(pilot: &Pilot, runtime: &dyn Runtime, services: &mut BTreeMap<String, Service>) {
    let Some(rule) = &pilot.manifest.health else { return };
    let client = |endpoint: &Endpoint| runtime.reach(endpoint, pilot.manifest.limits.probe);
    let own = services.iter_mut().filter(|(name, _)| pilot.services().any(|own| own == name.as_str()));
    let instances = own.flat_map(|(_, service)| &mut service.0);
    let client = &client;
    std::thread::scope(|scope| {
        let jobs: Vec<_> = instances
            .filter_map(|instance| Some((Endpoint::of(instance, pilot)?, instance)))
            .map(|(endpoint, instance)| (scope.spawn(move || health(&client(&endpoint), rule)), instance))
            .collect();
        for (job, instance) in jobs {
            instance.health = Some(job.join().unwrap_or_else(lost));
        }
    });
}

fn lost(_: Box<dyn std::any::Any + Send>) -> Health {
    Health::Silent("the probe panicked".into())
}

fn tree_env(pilot: &Pilot) -> Result<TreeEnv> {
    Ok(match files::read_if_there(&pilot.env_path)? {
        None if pilot.layout.env.is_none() => TreeEnv::Fine(BTreeMap::new()),
        None => TreeEnv::Missing,
        Some(bytes) => match EnvFile::parse(&pilot.env_path.display().to_string(), &bytes) {
            Ok(env) => TreeEnv::Fine(env.map()),
            Err(error) => TreeEnv::Malformed(error.to_string()),
        },
    })
}

/// The checksum of each compose file.
fn compose(pilot: &Pilot) -> Result<Vec<Option<String>>> {
    let own = pilot.layout.compose.iter().map(|name| pilot.pack.join(name));
    let sum = |path: PathBuf| Ok(files::read_if_there(&path)?.map(|bytes| files::sha256_bytes(&bytes)));
    own.map(sum).collect()
}
