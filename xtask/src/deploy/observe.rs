//! What is true now, read-only and side by side. A fact that could not be found out is unknown, with
//! the reason; nothing is guessed. Called by every command that looks.

use crate::base::deadline::Deadline;
use crate::base::fact::Fact;
use crate::base::files;
use crate::base::http::Client;
use crate::checks::endpoint::{Endpoint, endpoints};
use crate::checks::health::{Health, health};
use crate::deploy::gate;
use crate::deploy::gate::Gate;
use crate::engine::roles::Engine;
use crate::host;
use crate::host::HostCheck;
use crate::release::description::{ENV_FILE, Release};
use crate::release::store::Store;
use crate::stack::envfile::EnvFile;
use crate::stack::hold;
use crate::stack::hold::Hold;
use crate::stack::ledger::Ledger;
use crate::stack::model::{ServiceState, Stack};
use crate::stack::pilot::Pilot;
use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The env file in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeEnv {
    /// There is none.
    Missing,
    /// It cannot be read as an env file.
    Malformed(String),
    /// Its settings.
    Fine(BTreeMap<String, String>),
}

/// Everything that was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// What the engine says.
    pub stack: Fact<Stack>,
    /// Where the services answer: as the engine says, or where it says nothing, by the env file.
    #[serde(skip)]
    pub endpoints: BTreeMap<String, Endpoint>,
    /// What the services say; those that do not run are left out.
    pub health: BTreeMap<String, Health>,
    /// The kill switch.
    pub gate: Gate,
    /// Who holds the gate closed.
    pub holds: Fact<Vec<Hold>>,
    /// The env file in the tree; holds secrets.
    #[serde(skip)]
    pub tree_env: Fact<TreeEnv>,
    /// Is the tree's compose file that of the running release?
    pub tree_compose: Fact<Option<String>>,
    /// What is outside its limits on the host, as far as it costs nothing to know.
    pub shortages: Vec<HostCheck>,
}

impl Observation {
    /// A service as the engine has it.
    pub fn service(&self, name: &str) -> Option<&ServiceState> {
        self.stack.known()?.services.get(name)
    }

    /// The same where it is missed: the error is why there is none.
    pub fn state(&self, name: &str) -> anyhow::Result<&ServiceState> {
        match &self.stack {
            Fact::Known(stack) => stack.services.get(name).with_context(|| format!("{name} is not there")),
            Fact::Unknown(why) => anyhow::bail!("{why}"),
        }
    }

    /// A client for the running gateway.
    pub fn gateway(&self, pilot: &Pilot, limit: Duration) -> Option<Client> {
        Some(self.endpoints.get(pilot.gateway())?.client(pilot, limit))
    }
}

/// Looks at everything. `env` says where to ask when the engine says nothing.
pub fn observe(pilot: &Pilot, engine: &dyn Engine, env: Option<&EnvFile>, deadline: Deadline) -> Observation {
    let limit = deadline.within(pilot.manifest.limits.engine);
    let stack = Fact::from(engine.observe(limit));
    let endpoints: BTreeMap<String, Endpoint> = match &stack {
        Fact::Known(stack) => {
            let own = |name: &str| Some((name.to_owned(), Endpoint::of(stack.services.get(name)?)?));
            pilot.services().filter_map(own).collect()
        }
        Fact::Unknown(_) => env.and_then(|env| endpoints(pilot, env).ok()).unwrap_or_default(),
    };
    let client = &|endpoint: &Endpoint| endpoint.client(pilot, pilot.manifest.limits.probe);
    let (health, gate) = std::thread::scope(|scope| {
        let jobs: Vec<_> = endpoints
            .iter()
            .map(|(name, endpoint)| (name.clone(), scope.spawn(move || health(&client(endpoint)))))
            .collect();
        let gate = match endpoints.get(pilot.gateway()) {
            Some(endpoint) => gate::position(&client(endpoint)),
            None => Gate::Unknown("the gateway does not run".into()),
        };
        let silent = |_| Health::Silent("the probe panicked".into());
        let health = jobs.into_iter().map(|(name, job)| (name, job.join().unwrap_or_else(silent)));
        (health.collect(), gate)
    });
    let (tree_env, tree_compose) = (tree_env(pilot).into(), compose(pilot).into());
    let mut shortages = host::quick(pilot);
    shortages.retain(|check| check.ok == Some(false));
    let holds = hold::standing(&Ledger::new(&pilot.state)).into();
    Observation { stack, endpoints, health, gate, holds, tree_env, tree_compose, shortages }
}

fn tree_env(pilot: &Pilot) -> anyhow::Result<TreeEnv> {
    Ok(match files::read_if_there(&pilot.env_path)? {
        None => TreeEnv::Missing,
        Some(bytes) => match EnvFile::parse(&pilot.env_path.display().to_string(), &bytes) {
            Ok(env) => TreeEnv::Fine(env.map()),
            Err(error) => TreeEnv::Malformed(error.to_string()),
        },
    })
}

fn compose(pilot: &Pilot) -> anyhow::Result<Option<String>> {
    let path = pilot.pack.join(&pilot.manifest.compose_file);
    Ok(files::read_if_there(&path)?.map(|bytes| files::sha256_bytes(&bytes)))
}

/// Settings of a release's env file.
pub fn release_env(store: &Store, release: &Release) -> anyhow::Result<EnvFile> {
    let path = store.file(&release.id, ENV_FILE);
    let bytes = files::read(&path)?;
    EnvFile::parse(&path.display().to_string(), &bytes)
}
