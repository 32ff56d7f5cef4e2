//! What is true now, read-only and side by side. A fact that could not be found out is unknown, with
//! the reason; nothing is guessed. Called by every command that looks.

use crate::deadline::Deadline;
use crate::engine::{Engine, ServiceState, Stack};
use crate::envfile::EnvFile;
use crate::files;
use crate::gate::{self, Gate};
use crate::hold::{self, Hold};
use crate::host::{self, HostCheck};
use crate::http::Client;
use crate::ledger::Ledger;
use crate::pilot::Pilot;
use crate::release::{ENV_FILE, Release, Store};
use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Something that is known, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fact<T> {
    /// Found out.
    Known(T),
    /// Could not be found out.
    Unknown(String),
}

impl<T> Fact<T> {
    /// The value, if it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// Why it is not known; nothing when it is.
    pub fn why(&self) -> &str {
        match self {
            Self::Known(_) => "",
            Self::Unknown(why) => why,
        }
    }
}

impl<T> From<anyhow::Result<T>> for Fact<T> {
    fn from(result: anyhow::Result<T>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(error) => Self::Unknown(format!("{error:#}")),
        }
    }
}

impl Fact<Vec<Hold>> {
    /// What keeps the gate closed, in words, but for holds that are to be lifted. A hold that cannot be told is one.
    pub fn held(&self, lift: &[String]) -> Option<String> {
        match self {
            Self::Known(holds) => Hold::first_of(holds, lift).map(ToString::to_string),
            Self::Unknown(why) => Some(format!("because nobody can tell whether it is held: {why}")),
        }
    }
}

/// What `healthz` of a service came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// 200.
    Healthy {
        /// The release it claims to be.
        version: String,
    },
    /// Its stored data cannot be used: the reason it gave.
    StoreCorrupt(String),
    /// It answered something else: the reason it gave.
    Unhealthy(String),
    /// Nothing answered in time.
    Silent(String),
}

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

/// Where a service answers, and the token it was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// On 127.0.0.1.
    pub port: u16,
    token: Option<String>,
}

impl Endpoint {
    /// A client for it.
    pub fn client(&self, pilot: &Pilot, limit: Duration) -> Client {
        Client::new(self.port, &pilot.project, self.token.as_deref(), limit)
    }
}

/// By the env file: of a release, or the tree's.
fn endpoints(pilot: &Pilot, env: &EnvFile) -> anyhow::Result<BTreeMap<String, Endpoint>> {
    let token = env.get("ADMIN_TOKEN").map(str::to_owned);
    let endpoint = |service: &str| {
        Ok((service.to_owned(), Endpoint { port: pilot.port(service, env)?, token: token.clone() }))
    };
    pilot.services().map(endpoint).collect()
}

/// Clients for all services of a release, by the env file it was deployed with.
pub fn clients(pilot: &Pilot, env: &EnvFile, limit: Duration) -> anyhow::Result<BTreeMap<String, Client>> {
    let all = endpoints(pilot, env)?;
    Ok(all.into_iter().map(|(name, endpoint)| (name, endpoint.client(pilot, limit))).collect())
}

/// Looks at everything. `env` says where to ask when the engine says nothing.
pub fn observe(pilot: &Pilot, engine: &dyn Engine, env: Option<&EnvFile>, deadline: Deadline) -> Observation {
    let limit = deadline.within(pilot.manifest.limits.engine);
    let stack = Fact::from(engine.observe(limit));
    let endpoints: BTreeMap<String, Endpoint> = match &stack {
        Fact::Known(stack) => {
            let own = |name: &str| Some((name.to_owned(), running(stack.services.get(name)?)?));
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

fn running(state: &ServiceState) -> Option<Endpoint> {
    let port = state.port.filter(|_| state.is_running())?;
    Some(Endpoint { port, token: state.env.get("ADMIN_TOKEN").cloned() })
}

/// One probe of `healthz`. The word itself is compared: `unhealthy` contains `healthy`.
pub fn health(client: &Client) -> Health {
    let answer = match client.get("/healthz") {
        Ok(answer) => answer,
        Err(error) => return Health::Silent(format!("{error:#}")),
    };
    let body = answer.json();
    if let Some(other) = body["project"].as_str().filter(|project| *project != client.project()) {
        return Health::Silent(format!("project {other} answers there"));
    }
    match body["status"].as_str() {
        Some("healthy" | "disabled") if answer.status == 200 => {
            Health::Healthy { version: body["version"].as_str().unwrap_or("?").to_owned() }
        }
        _ => match body["reason"].as_str() {
            Some(reason) if reason.starts_with("store corrupt") => Health::StoreCorrupt(reason.to_owned()),
            Some(reason) => Health::Unhealthy(reason.to_owned()),
            None => Health::Unhealthy(format!("healthz: {}", answer.brief())),
        },
    }
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
