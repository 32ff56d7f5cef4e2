//! The folders of the local processes of one pilot, and the description that a supervisor gets.

use crate::base::files;
use crate::engine::roles::Ledger;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Local processes of one pilot.
pub struct Processes {
    /// The stack.
    pub pilot: Pilot,
    /// The folder that has everything of this engine.
    pub home: PathBuf,
}

/// What a supervisor runs: `service.json` (0600, because the environment has secrets).
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Content id of the image.
    pub image: String,
    /// Path of the program.
    pub program: PathBuf,
    /// Name of the service; the program gets it as its argument.
    pub role: String,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// The port on 127.0.0.1 at which it listens.
    pub port: u16,
    /// SHA-256 of image id and environment.
    pub settings: String,
    /// Path of its log.
    pub log: PathBuf,
    /// Path of the `alive` file. Older versions look for the supervisor's id in it.
    pub alive: PathBuf,
}

impl Processes {
    /// The engine for this pilot; its folder is in the pilot's state folder.
    pub fn new(pilot: &Pilot) -> Self {
        Self { pilot: pilot.clone(), home: pilot.state.process() }
    }

    /// Folder of a service.
    pub fn dir(&self, service: &str) -> PathBuf {
        self.home.join("services").join(service)
    }

    /// Its stored data.
    pub fn data(&self, service: &str) -> PathBuf {
        self.home.join("volumes").join(service)
    }

    /// What a service was started with; nothing if it was never started.
    pub fn read_spec(&self, service: &str) -> Result<Option<Spec>> {
        let path = self.dir(service).join("service.json");
        if path.exists() { files::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// Removes a folder completely or not at all: it is renamed first, so a folder that still has its name is
    /// complete. If the command is killed after that, the next removal deletes the rest.
    pub fn remove_whole(&self, path: &Path) -> Result<()> {
        let trash = self.home.join("trash");
        files::make_folder(&trash)?;
        match files::rename(path, &trash.join(files::random()?)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        files::remove(&trash).map(drop)
    }
}

/// The state folder is all there is: it is on the machine that runs the processes.
impl Ledger for Processes {}
