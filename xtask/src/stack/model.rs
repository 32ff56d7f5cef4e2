//! The services of a stack as they are seen, whatever engine runs them. Values only.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// What a service says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It is well.
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

/// One copy of a service, as an engine knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// The engine's word: `running`, `restarting`, `exited`, …
    pub state: String,
    /// Content id of its image.
    pub image: String,
    /// Environment it was started with. Holds secrets: never serialized.
    #[serde(skip)]
    pub env: BTreeMap<String, String>,
    /// Where it is published.
    pub address: Option<SocketAddr>,
    /// The machine that it runs on, where an engine has several.
    pub node: Option<String>,
    /// What it says of itself; none where it was not asked.
    pub health: Option<Health>,
    /// Digest of its settings.
    pub settings: String,
    /// State folder that it was deployed from, where the engine can tell.
    pub state_dir: Option<String>,
    /// Times it was started anew by itself.
    pub restarts: u64,
    /// Handle for the engine: container id, or folder of the service.
    #[serde(skip)]
    pub handle: String,
    /// All that the engine tells of it, as text for the evidence. Holds secrets.
    #[serde(skip)]
    pub inspect: String,
}

impl Instance {
    /// Is a process there, as far as the engine knows?
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Could it let requests in, now or in a moment? A crash-looping service is between two starts.
    pub fn is_live(&self) -> bool {
        !matches!(self.state.as_str(), "exited" | "created" | "dead")
    }
}

/// The instances of one service: one, several, or none where it is scaled to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Service(pub Vec<Instance>);

impl Service {
    /// Does it run, with every instance?
    pub fn is_running(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(Instance::is_running)
    }

    /// Could any instance let requests in?
    pub fn is_live(&self) -> bool {
        self.0.iter().any(Instance::is_live)
    }

    /// Could any instance let the public in from outside?
    pub fn is_published(&self) -> bool {
        self.0.iter().any(|instance| instance.is_live() && instance.address.is_some())
    }

    /// The port that it is published at, whatever state it is in.
    pub fn port(&self) -> Option<u16> {
        self.0.iter().find_map(|instance| instance.address).map(|address| address.port())
    }

    /// Does every instance have this image?
    pub fn has_image(&self, id: &str) -> bool {
        !self.0.is_empty() && self.0.iter().all(|instance| instance.image == id)
    }

    /// The engine's word: of the first instance that does not run, else of all.
    pub fn state(&self) -> &str {
        let down = self.0.iter().find(|instance| !instance.is_running());
        down.or(self.0.first()).map_or("missing", |instance| &instance.state)
    }

    /// Times that its instances were started anew by themselves.
    pub fn restarts(&self) -> u64 {
        self.0.iter().map(|instance| instance.restarts).sum()
    }
}

/// What an engine knows of the whole stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// By name; a service that is not there is missing.
    pub services: BTreeMap<String, Service>,
    /// Content ids of the images that it has.
    #[serde(skip)]
    pub images: Vec<String>,
    /// Services whose stored data exists.
    pub data: BTreeSet<String>,
}
