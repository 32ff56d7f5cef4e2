//! The services of a stack as they are seen, whatever engine runs them. Values only.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What an engine knows of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceState {
    /// The engine's word: `running`, `restarting`, `exited`, …
    pub state: String,
    /// Content id of its image.
    pub image: String,
    /// Environment it was started with. Holds secrets: never serialized.
    #[serde(skip)]
    pub env: BTreeMap<String, String>,
    /// Published port on 127.0.0.1.
    pub port: Option<u16>,
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

impl ServiceState {
    /// Is a process there, as far as the engine knows?
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Could it let requests in, now or in a moment? A crash-looping service is between two starts.
    pub fn is_live(&self) -> bool {
        !matches!(self.state.as_str(), "exited" | "created" | "dead")
    }
}

/// What an engine knows of the whole stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// By name; a service that is not there is missing.
    pub services: BTreeMap<String, ServiceState>,
    /// Content ids of the images that it has.
    #[serde(skip)]
    pub images: Vec<String>,
    /// Services whose stored data exists.
    pub data: BTreeSet<String>,
}
