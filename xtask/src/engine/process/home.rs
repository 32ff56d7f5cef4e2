//! Where local processes of one pilot have what they need, and what a supervisor is told.

use crate::base::files;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Local processes of one pilot.
pub struct Processes {
    /// The stack.
    pub pilot: Pilot,
    /// Where everything is kept.
    pub home: PathBuf,
}

/// What a supervisor runs, in `service.json` (0600: the environment has secrets).
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Content id.
    pub image: String,
    /// What is run.
    pub program: PathBuf,
    /// Which service.
    pub role: String,
    /// Everything that it is started with.
    pub env: BTreeMap<String, String>,
    /// Where it listens.
    pub port: u16,
    /// Digest of the image and the environment.
    pub settings: String,
    /// Where its output goes.
    pub log: PathBuf,
    /// For older versions, which look for the supervisor's id in it.
    pub alive: PathBuf,
}

impl Processes {
    /// Everything it keeps is in the pilot's state folder.
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

    /// What a service was started with; nothing where it never was.
    pub fn read_spec(&self, service: &str) -> Result<Option<Spec>> {
        let path = self.dir(service).join("service.json");
        if path.exists() { files::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// Removes a folder as a whole or not at all: out of the way first, so that one which is there is never half
    /// of what it was. What a killed command has left out of the way goes with the next.
    pub fn remove_whole(&self, path: &Path) -> Result<()> {
        let trash = self.home.join("trash");
        files::make_folder(&trash)?;
        match std::fs::rename(path, trash.join(files::random()?)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        files::remove(&trash).map(drop)
    }
}
