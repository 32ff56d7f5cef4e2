//! What a release is: `release.json` and the files beside it, under `.pilot/releases/`. A release never
//! changes and needs nothing else. Its images are in `.pilot/blobs/`, the xtask that made it in
//! `.pilot/bin/`. Values only; the store reads and writes them.

use crate::base::deadline::now_ms;
use crate::base::files::Mode;
use crate::stack::layout::Layout;
use crate::stack::pilot::MODEL_FILE;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// In format 1 the files had the names of `Layout::default`. In formats 1 and 2 each image had an archive.
const FORMAT: u32 = 3;

/// The environment of its services (0600), as the engine understood the other files. Releases of older versions do not
/// have it.
pub const ENVIRONMENT_FILE: &str = "environment.json";

/// The id of a release that is not in the store.
const UNRECORDED: &str = "unrecorded";

/// How far a release has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Recorded, not yet verified.
    Candidate,
    /// Its smoke checks passed.
    KnownGood,
    /// Its smoke checks failed.
    Failed,
}

impl State {
    /// The word for it in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::KnownGood => "known-good",
            Self::Failed => "failed",
        }
    }
}

/// An image, identified by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Content id, `sha256:…`.
    pub id: String,
    /// The tag that is moved to it when the release is deployed.
    pub tag: String,
    /// SHA-256 of its index in the store; none until it is saved.
    #[serde(default)]
    pub index: Option<String>,
    /// SHA-256 of its archive in the store, if an older version has saved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
}

impl Image {
    /// One that is not saved yet.
    pub fn new(id: String, tag: String) -> Self {
        Self { id, tag, index: None, archive: None }
    }

    /// Does the store have it?
    pub fn is_saved(&self) -> bool {
        self.index.is_some() || self.archive.is_some()
    }
}

/// What a person wrote about a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The text.
    pub text: String,
    /// Who wrote it, as `user@host`.
    pub who: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
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
    /// When it was made, in Unix milliseconds.
    pub created_ms: u64,
    /// When its smoke checks last passed on a running pilot, in Unix milliseconds.
    pub verified_ms: Option<u64>,
    /// Number of the run that verified it last. The last known-good release is the one with the highest
    /// number. A time is not used for this, because a clock can jump.
    #[serde(default)]
    pub verified_run: Option<u64>,
    /// The version that `healthz` reports, such as `v1.0.0`.
    pub label: String,
    /// The git commit that it was made from, with `-dirty` at the end if there were uncommitted changes.
    pub commit: Option<String>,
    /// Other commits that gave exactly the same release.
    #[serde(default)]
    pub same_commits: Vec<String>,
    /// `compose` or `process`.
    pub engine: String,
    /// Images by service.
    pub images: BTreeMap<String, Image>,
    /// SHA-256 of everything that the images were built from; none if they were not built here.
    #[serde(default)]
    pub inputs: Option<String>,
    /// Which files Compose reads.
    #[serde(default)]
    pub layout: Layout,
    /// SHA-256 of each file in the folder, by name.
    pub files: BTreeMap<String, String>,
    /// SHA-256 of the xtask that made it, which is also its name in `bin/`.
    pub xtask: String,
    /// The engine's digest of each service's settings, as they were deployed.
    pub settings: BTreeMap<String, String>,
    /// The newest note about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
    /// A person wants to keep it: retention never removes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

impl Release {
    /// A release that is not in the store. An engine can deploy it; a rollback cannot go to it.
    pub fn unrecorded(label: &str, engine: &str, images: BTreeMap<String, Image>) -> Self {
        Self {
            version: FORMAT,
            id: UNRECORDED.into(),
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
            layout: Layout::default(),
            files: BTreeMap::new(),
            xtask: String::new(),
            settings: BTreeMap::new(),
            note: None,
            pinned: false,
        }
    }

    /// Parses a `release.json`. Errors: a newer format, or a value that no release can have.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(text).context("it is not JSON")?;
        let version = value["version"].as_u64().context("it has no format version")?;
        ensure!(version <= FORMAT.into(), "it has the newer format {version}; use the xtask that wrote it");
        let release: Self = serde_json::from_value(value).context("it does not describe a release")?;
        release.check_form()?;
        Ok(release)
    }

    /// Was it made from this commit, or does this commit give the same?
    pub fn is_of(&self, commit: &str) -> bool {
        self.commit.as_deref() == Some(commit) || self.same_commits.iter().any(|same| same == commit)
    }

    /// The key that sorts releases by when they were verified: the number of the run, then (for releases of
    /// older versions) the time.
    pub fn verified(&self) -> (Option<u64>, Option<u64>) {
        (self.verified_run, self.verified_ms)
    }

    /// Have both the same engine, images and files? When and from which commit they were made does not count.
    /// Nor does what Compose made of the files: another version of Compose may word it differently.
    pub fn same_content(&self, other: &Self) -> bool {
        let ids = |release: &Self| -> Vec<(String, String)> {
            release.images.iter().map(|(service, image)| (service.clone(), image.id.clone())).collect()
        };
        let files = |release: &Self| -> Vec<(String, String)> {
            release.files.clone().into_iter().filter(|(name, _)| !is_derived(name)).collect()
        };
        self.engine == other.engine && ids(self) == ids(other) && files(self) == files(other)
    }

    /// Is it in the store? What is not was put together by hand.
    pub fn is_recorded(&self) -> bool {
        self.id != UNRECORDED
    }

    /// May a rollback go to it?
    pub fn is_known_good(&self) -> bool {
        self.state == State::KnownGood
    }
}

/// Did the engine make this file from the others?
fn is_derived(name: &str) -> bool {
    [MODEL_FILE, ENVIRONMENT_FILE].contains(&name)
}

/// The mode of a file of a release. Only its owner may read settings.
pub fn mode_of(name: &str, layout: &Layout) -> Mode {
    if name == ENVIRONMENT_FILE || layout.is_private(name) { Mode::Private } else { Mode::Plain }
}

/// What a new release is made from.
pub struct Parts<'a> {
    /// See `Release::label`.
    pub label: String,
    /// See `Release::commit`.
    pub commit: Option<String>,
    /// See `Release::engine`.
    pub engine: &'a str,
    /// Images by service.
    pub images: BTreeMap<String, Image>,
    /// See `Release::inputs`.
    pub inputs: Option<String>,
    /// Which of the files Compose reads.
    pub layout: Layout,
    /// Each file: its name in the release, and the path that it is copied from.
    pub files: BTreeMap<String, PathBuf>,
}
