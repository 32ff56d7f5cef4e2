//! Releases: immutable, self-contained restore points under `.pilot/releases/`, with their images in
//! `.pilot/images/` and the xtask that made them in `.pilot/bin/`. The store lists, makes, checks and
//! promotes them. It does not deploy anything.

use crate::base::deadline::now_ms;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

const FORMAT: u32 = 1;

/// Names of a release's files, in its folder, whatever they are called in the tree.
pub const COMPOSE_FILE: &str = "docker-compose.poc.yml";
/// The env file (0600).
pub const ENV_FILE: &str = ".env.poc";
/// The demo scenario.
pub const SEED_FILE: &str = "demo-scenario.json";
/// The manifest it was made with.
pub const MANIFEST_FILE: &str = "pilot.toml";

/// How far a release has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Recorded, not yet verified.
    Candidate,
    /// Its smoke checks passed.
    KnownGood,
    /// They did not.
    Failed,
}

impl State {
    /// As it is written in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::KnownGood => "known-good",
            Self::Failed => "failed",
        }
    }
}

/// An image by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Content id, `sha256:…`.
    pub id: String,
    /// The tag that moves to it when the release is deployed.
    pub tag: String,
    /// Checksum of its archive in the store; none until it is saved.
    pub archive: Option<String>,
}

/// `release.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Release {
    pub(super) version: u32,
    /// `r1`, `r2`, … in the order they were made.
    pub id: String,
    /// Candidate, known-good or failed.
    pub state: State,
    /// Why it failed.
    pub reason: Option<String>,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// When its smoke checks last passed on a running pilot, in Unix milliseconds.
    pub verified_ms: Option<u64>,
    /// Number of the run that verified it last. The last known-good release is the one with the highest: a clock
    /// can jump.
    #[serde(default)]
    pub verified_run: Option<u64>,
    /// What `healthz` calls it, `v1.0.0`.
    pub label: String,
    /// Git commit of the tree it was made from, `-dirty` behind it where that was changed.
    pub commit: Option<String>,
    /// Other commits that came out the very same.
    #[serde(default)]
    pub same_commits: Vec<String>,
    /// `compose` or `process`.
    pub engine: String,
    /// Images by service.
    pub images: BTreeMap<String, Image>,
    /// Checksum of all that the images were built from; none where they were not built here.
    #[serde(default)]
    pub inputs: Option<String>,
    /// Checksums of the files in the folder.
    pub files: BTreeMap<String, String>,
    /// Checksum (and name in `bin/`) of the xtask that made it.
    pub xtask: String,
    /// Digest of each service's settings as the engine deployed them.
    pub settings: BTreeMap<String, String>,
}

impl Release {
    /// A release that is not in the store: the same to an engine, nothing to a rollback.
    pub fn unrecorded(label: &str, engine: &str, images: BTreeMap<String, Image>) -> Self {
        Self {
            version: FORMAT,
            id: "unrecorded".into(),
            state: State::Candidate,
            reason: None,
            created_ms: now_ms(),
            verified_ms: None,
            verified_run: None,
            label: label.into(),
            commit: None,
            same_commits: Vec::new(),
            engine: engine.into(),
            images,
            inputs: None,
            files: BTreeMap::new(),
            xtask: String::new(),
            settings: BTreeMap::new(),
        }
    }

    /// From the text of a `release.json`. A newer format is refused, and one that says what no release does.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(text).context("it is no JSON")?;
        let version = value["version"].as_u64().context("it tells no version")?;
        ensure!(version <= FORMAT.into(), "it has the newer format {version}; use the xtask that wrote it");
        let release: Self = serde_json::from_value(value).context("it is no release")?;
        release.check_form()?;
        Ok(release)
    }

    /// Is this what that commit makes?
    pub fn is_of(&self, commit: &str) -> bool {
        self.commit.as_deref() == Some(commit) || self.same_commits.iter().any(|same| same == commit)
    }

    /// Sorts releases by when they were verified: by the run, and among those of older versions by the clock.
    pub fn verified(&self) -> (Option<u64>, Option<u64>) {
        (self.verified_run, self.verified_ms)
    }

    /// Is there nothing in which they differ, but for when and from what they were made?
    pub fn same_content(&self, other: &Self) -> bool {
        let ids = |release: &Self| -> Vec<(String, String)> {
            release.images.iter().map(|(service, image)| (service.clone(), image.id.clone())).collect()
        };
        self.engine == other.engine && ids(self) == ids(other) && self.files == other.files
    }

    /// May a rollback go here?
    pub fn is_known_good(&self) -> bool {
        self.state == State::KnownGood
    }
}

/// What a new release is made of.
pub struct Parts<'a> {
    /// See `Release::label`.
    pub label: String,
    /// See `Release::commit`.
    pub commit: Option<String>,
    /// See `Release::engine`.
    pub engine: &'a str,
    /// By service.
    pub images: BTreeMap<String, Image>,
    /// See `Release::inputs`.
    pub inputs: Option<String>,
    /// Name in the release, and where it is copied from.
    pub files: BTreeMap<String, PathBuf>,
}
