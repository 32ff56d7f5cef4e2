//! The services of a stack as an engine reports them: the same values for every engine. Nothing is read or
//! changed here. Filled in by the engines.

use crate::base::observed::Observed;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// The health that a service reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It is healthy.
    Healthy {
        /// The version that it reports.
        version: String,
    },
    /// It cannot use its stored data, and gave this reason.
    StoreCorrupt(String),
    /// It is unhealthy, and gave this reason.
    Unhealthy(String),
    /// It did not answer in time; this is the error.
    Silent(String),
}

/// The state of an instance that is paused, for every engine.
pub const PAUSED: &str = "paused";

/// One copy of a service, as an engine knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// The engine's word: `running`, `restarting`, `exited`, …
    pub state: String,
    /// Content id of its image.
    pub image: String,
    /// The environment that it was started with. It has secrets, so it is never serialized.
    #[serde(skip)]
    pub env: BTreeMap<String, String>,
    /// The address at which it is published, if it is.
    pub address: Option<SocketAddr>,
    /// The machine that it runs on, if the engine has several.
    pub node: Option<String>,
    /// What it says of itself; none if it was not asked.
    pub health: Option<Health>,
    /// Digest of its settings.
    pub settings: String,
    /// State folder that it was deployed from, if the engine knows it.
    pub state_dir: Option<String>,
    /// How often the engine restarted it by itself.
    pub restarts: u64,
    /// When the engine starts it again, in the words of a compose file; none if the engine has no such rule.
    pub restart: Option<String>,
    /// How the engine finds it: a container id, or the folder of the service.
    #[serde(skip)]
    pub handle: String,
    /// Everything that the engine says about it, as text for the evidence. It has secrets.
    #[serde(skip)]
    pub inspect: String,
}

impl Instance {
    /// Does it run, as far as the engine knows?
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Could it answer requests, now or soon? A service in a crash loop may be between two starts.
    pub fn is_live(&self) -> bool {
        !matches!(self.state.as_str(), "exited" | "created" | "dead")
    }
}

/// The instances of one service: one, several, or none if it is scaled to zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Service(pub Vec<Instance>);

impl Service {
    /// Does every instance run?
    pub fn is_running(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(Instance::is_running)
    }

    /// Is any instance paused?
    pub fn is_paused(&self) -> bool {
        self.0.iter().any(|instance| instance.state == PAUSED)
    }

    /// Could any instance answer requests?
    pub fn is_live(&self) -> bool {
        self.0.iter().any(Instance::is_live)
    }

    /// Could the public reach any instance?
    pub fn is_published(&self) -> bool {
        self.0.iter().any(|instance| instance.is_live() && instance.address.is_some())
    }

    /// The port at which it is published, in whatever state it is.
    pub fn port(&self) -> Option<u16> {
        self.0.iter().find_map(|instance| instance.address).map(|address| address.port())
    }

    /// Does every instance have this image?
    pub fn has_image(&self, id: &str) -> bool {
        !self.0.is_empty() && self.0.iter().all(|instance| instance.image == id)
    }

    /// The engine's word for its state: of the first instance that does not run, else of any.
    pub fn state(&self) -> &str {
        let down = self.0.iter().find(|instance| !instance.is_running());
        down.or(self.0.first()).map_or("missing", |instance| &instance.state)
    }

    /// How often the engine restarted its instances by itself.
    pub fn restarts(&self) -> u64 {
        self.0.iter().map(|instance| instance.restarts).sum()
    }
}

/// A machine of an engine that has several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `ready`, or the engine's word for what is wrong.
    pub state: String,
    /// May it get work: `active`, `pause` or `drain`.
    pub availability: String,
    /// The part that it has in the decisions of the engine; none if it has no part.
    pub manager: Option<String>,
    /// Where the ports of its instances are.
    pub address: Option<IpAddr>,
    /// How many of the images that were asked for it has.
    pub images: Observed<usize>,
    /// The instances on it, in words.
    pub services: Vec<String>,
    /// Its memory.
    pub memory_bytes: Observed<u64>,
    /// The room that is left on the disk of its engine.
    pub free_bytes: Observed<u64>,
}

/// What an engine knows of the whole stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// By name. A service that does not exist has no entry.
    pub services: BTreeMap<String, Service>,
    /// Content ids of the images that the engine has.
    #[serde(skip)]
    pub images: Vec<String>,
    /// Services whose stored data exists.
    pub data: BTreeSet<String>,
}
