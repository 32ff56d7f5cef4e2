//! What an engine does, as four small roles: a caller asks for those that it needs. They speak of a stack and of
//! its named data, not of containers, so that a swarm could be a third engine. An engine decides nothing.

use crate::base::deadline::Deadline;
use crate::base::files::Freed;
use crate::base::http::Client;
use crate::release::description::{Image, Release};
use crate::stack::endpoint::Endpoint;
use crate::stack::model::{Instance, Service};
use crate::stack::pilot::Pilot;
use anyhow::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which engine; the word of `--engine` and of `release.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Docker Compose, 1 or 2.
    Compose,
    /// Local processes, no Docker.
    Process,
}

impl Kind {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Compose, Self::Process].into_iter().find(|kind| kind.as_str() == name)
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compose => "compose",
            Self::Process => "process",
        }
    }
}

/// How much of a project is taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Services and the network.
    Services,
    /// Stored data too.
    Data,
    /// Images too.
    Everything,
}

/// What one running service uses, in the engine's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Container, or service.
    pub name: String,
    /// Per cent of one core.
    pub cpu: String,
    /// In use, of its limit.
    pub memory: String,
    /// Processes or threads.
    pub processes: String,
}

/// The engine as a part of the host.
#[derive(Clone, Debug, Serialize)]
pub struct EngineHost {
    /// Its version.
    pub version: String,
    /// Where it keeps images and volumes, if that is on this host.
    pub root: Option<PathBuf>,
    /// Its clock against ours; none when it tells no time.
    pub skew: Option<Duration>,
    /// Containers that run, of every project.
    pub running: Option<u64>,
    /// What it uses on disk, a line each, in its own words.
    pub used: Vec<String>,
}

/// What images are made of.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// The static binary.
    pub binary: &'a Path,
    /// How it is wrapped, where an engine needs telling.
    pub dockerfile: &'a Path,
    /// Version that `healthz` reports, and tag of the images.
    pub label: &'a str,
    /// Defect for a drill; empty otherwise.
    pub fault: &'a str,
}

/// Runs the services of a stack.
pub trait Runtime: Sync {
    /// Which engine it is.
    fn kind(&self) -> Kind;

    /// With versions, for people.
    fn describe(&self, deadline: Deadline) -> String;

    /// The same engine for a stack as another manifest has it.
    fn for_stack(&self, pilot: &Pilot) -> Result<Box<dyn Engine>>;

    /// The services as they are. Read-only.
    fn services(&self, deadline: Deadline) -> Result<BTreeMap<String, Service>>;

    /// A client for a service of the stack, whose requests take `limit` at most.
    fn reach(&self, endpoint: &Endpoint, limit: Duration) -> Client {
        Client::new(endpoint.port, self.project(), endpoint.token.as_deref(), limit)
    }

    /// Name of the stack's project.
    fn project(&self) -> &str;

    /// Brings the stack to a release whose files are in `dir`. What is as it should be is left alone,
    /// but for the services in `force`. Does not wait for stop graces nor for health.
    fn apply(&self, release: &Release, dir: &Path, force: &[String], deadline: Deadline) -> Result<()>;

    /// Runs the image of a service once, with its volume and these words.
    fn run_once(
        &self,
        release: &Release,
        dir: &Path,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<String>;

    /// Stops one service at once and keeps what is left of it for evidence.
    fn stop(&self, service: &str, deadline: Deadline) -> Result<()>;

    /// Starts a service again that was stopped.
    fn start(&self, service: &str, deadline: Deadline) -> Result<()>;

    /// Removes services; their data stays.
    fn remove(&self, services: &[String], deadline: Deadline) -> Result<()>;

    /// Starts services beside the pilot's own (prometheus, grafana) from the files in `dir`.
    fn add(&self, dir: &Path, services: &[String], deadline: Deadline) -> Result<()>;

    /// Takes the project down.
    fn down(&self, extent: Extent, deadline: Deadline) -> Result<()>;

    /// Names of all that the project has on this host, images apart.
    fn resources(&self, deadline: Deadline) -> Result<Vec<String>>;
}

/// Has images, by their content ids.
pub trait Images: Sync {
    /// Content ids of those that there are.
    fn images(&self, deadline: Deadline) -> Result<Vec<String>>;

    /// Wraps the binary for each service.
    fn build(&self, build: &Build<'_>, deadline: Deadline) -> Result<BTreeMap<String, Image>>;

    /// Existing images with this tag, by service.
    fn tagged(&self, tag: &str, deadline: Deadline) -> Result<BTreeMap<String, Image>>;

    /// Gives images this tag, as `build` does.
    fn tag(&self, images: &BTreeMap<String, Image>, tag: &str, deadline: Deadline) -> Result<()>;

    /// Moves the tags that the compose file names, and gives each image a tag of the release, so that
    /// a clean-up of untagged images leaves it.
    fn retag(&self, release: &Release, deadline: Deadline) -> Result<()>;

    /// Writes an image to an archive.
    fn save(&self, image: &Image, archive: &Path, deadline: Deadline) -> Result<()>;

    /// Takes an image in from an archive.
    fn load(&self, image: &Image, archive: &Path, deadline: Deadline) -> Result<()>;

    /// Removes what is the project's own and neither runs nor is among the images to keep.
    fn forget(&self, keep: &[String], deadline: Deadline) -> Result<Vec<Freed>>;
}

/// Has the stored data of services.
pub trait Data: Sync {
    /// Services whose stored data exists; data of none goes by its own name.
    fn stored(&self, deadline: Deadline) -> Result<BTreeSet<String>>;

    /// Copies the data of a service, as of one moment, into an archive.
    fn snapshot(&self, service: &str, archive: &Path, deadline: Deadline) -> Result<()>;

    /// Fills the data of a service, which has none, from an archive. The release's files are in `dir`.
    fn restore(&self, dir: &Path, service: &str, archive: &Path, deadline: Deadline) -> Result<()>;

    /// Removes a service and its data.
    fn remove_data(&self, service: &str, deadline: Deadline) -> Result<()>;
}

/// Tells of what runs. Read-only.
pub trait Inspect: Sync {
    /// Log lines of an instance: the last so many, or all that there are.
    fn logs(&self, instance: &Instance, lines: Option<usize>, deadline: Deadline) -> Result<String>;

    /// What the running services use.
    fn usage(&self, deadline: Deadline) -> Result<Vec<Usage>>;

    /// What there is around the services, by name, as the engine tells it.
    fn networks_and_volumes(&self, deadline: Deadline) -> Result<BTreeMap<String, String>>;

    /// The engine as a part of the host.
    fn host(&self, deadline: Deadline) -> Result<EngineHost>;
}

/// All four. Whoever needs one or two asks for those alone.
pub trait Engine: Runtime + Images + Data + Inspect {}

impl<T: Runtime + Images + Data + Inspect> Engine for T {}
