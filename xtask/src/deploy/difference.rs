//! The differences between a stack and a release, as values, with the sentence that describes each; and the
//! scenarios. Possible secrets are not shown. Nothing is compared here: that is in `drift`. Used by `drift`,
//! `plan` and the reports.

use crate::base::next::Next;
use crate::base::secrets;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a rollback is done: the scenarios of the runbook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// A: the settings differ from the release.
    Config,
    /// B: the images differ from the release.
    Version,
    /// C: stored data is corrupt or missing.
    Reset,
    /// D: nothing changed, but services are missing or do not answer, or the host lacks something.
    Host,
    /// A commit, or a label of `known-good.toml`, that the user named with `--to`.
    Commit,
}

impl Scenario {
    /// The name in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Version => "version",
            Self::Reset => "reset",
            Self::Host => "host",
            Self::Commit => "commit",
        }
    }
}

/// A setting whose value differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Its value now; none if it is not set. A secret is not shown.
    pub now: Option<String>,
    /// Its value in the release; none if the release does not set it.
    pub release: Option<String>,
}

/// How many changes one line shows. The others are only counted.
const SHOWN: usize = 6;

/// Shown instead of a secret value.
const HIDDEN: &str = "(a secret)";

impl Change {
    /// A change of this setting between two values.
    pub fn new(name: &str, now: Option<&String>, release: Option<&String>) -> Self {
        let shown = |value: &String| {
            if secrets::hides(name, value) { HIDDEN.to_owned() } else { value.clone() }
        };
        Self { name: name.to_owned(), now: now.map(shown), release: release.map(shown) }
    }

    /// `ENABLE_CACHE is true, release r1 has false`.
    fn words(&self, release: &str) -> String {
        let Self { name, .. } = self;
        match (&self.now, &self.release) {
            (Some(now), Some(wanted)) if now == wanted => {
                format!("{name} has another value than in release {release}")
            }
            (Some(now), Some(wanted)) => format!("{name} is {now}, release {release} has {wanted}"),
            (Some(now), None) => format!("{name} is {now}, release {release} does not set it"),
            (None, _) => format!("{name} is not set, release {release} sets it"),
        }
    }
}

/// The first changes, and how many more there are.
fn listed(changes: &[Change], release: &str) -> String {
    let mut all: Vec<String> = changes.iter().take(SHOWN).map(|change| change.words(release)).collect();
    if changes.len() > SHOWN {
        all.push(format!("and {} more settings", changes.len() - SHOWN));
    }
    all.join("; ")
}

/// One difference from the release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "drift")]
pub enum Difference {
    /// Another image runs.
    Image {
        /// Which service.
        service: String,
        /// Content id that runs.
        running: String,
        /// The version that the service reports.
        running_version: Option<String>,
        /// Id of the release.
        release: String,
        /// Content id of the release's image.
        image: String,
        /// The version of the release.
        version: String,
    },
    /// The service was started with other values for these settings.
    Env {
        /// Which service.
        service: String,
        /// Id of the release.
        release: String,
        /// The settings.
        changes: Vec<Change>,
    },
    /// The engine has other settings for the service (limits, volumes, health check).
    Settings {
        /// Which service.
        service: String,
    },
    /// The env file has other values for these settings, or is missing or malformed.
    EnvFile {
        /// Id of the release.
        release: String,
        /// The settings.
        changes: Vec<Change>,
        /// Set if the file as a whole is the problem, not single settings.
        trouble: Option<String>,
    },
    /// The service does not run.
    Down {
        /// Which service.
        service: String,
        /// The state that the engine reports, or `missing`.
        state: String,
    },
    /// The service is paused, and not because its data is copied.
    Paused {
        /// Which service.
        service: String,
    },
    /// The service runs, but the release does not have it.
    Extra {
        /// Which service.
        service: String,
    },
    /// The service runs but is not healthy.
    #[serde(alias = "sick")]
    Unhealthy {
        /// Which service.
        service: String,
        /// What it answered, or that it did not answer.
        reason: String,
    },
    /// Its stored data cannot be used.
    StoreCorrupt {
        /// Which service.
        service: String,
        /// The reason that it gave.
        reason: String,
    },
    /// Its stored data is missing.
    DataMissing {
        /// Which service.
        service: String,
    },
    /// The engine does not have the image of the release.
    ImageLost {
        /// Which service.
        service: String,
    },
    /// The host lacks something.
    Shortage {
        /// What it lacks, and how much.
        what: String,
        /// How to fix it.
        fix: Next,
    },
    /// Another release was deployed last, even if its services look the same.
    Release {
        /// Its id; none if no deployment is recorded.
        deployed: Option<String>,
    },
    /// The compose file in the source differs. The deployment uses the file of the release, and leaves this
    /// one alone.
    ComposeFile,
    /// Something could not be found out.
    Unknown {
        /// What is unknown.
        what: String,
        /// Why.
        why: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |id: &str| id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        match self {
            Self::Image { service, running, running_version, release, image, version } => {
                let now = running_version.as_deref().unwrap_or("an unknown version");
                let (running, image) = (short(running), short(image));
                write!(f, "{service} runs {now} ({running}), release {release} has {version} ({image})")
            }
            Self::Env { service, release, changes } => write!(f, "{service}: {}", listed(changes, release)),
            Self::Settings { service } => {
                write!(
                    f,
                    "{service}: the engine has other settings for it (limits, volumes, health check, number of instances)"
                )
            }
            Self::EnvFile { trouble: Some(trouble), .. } => write!(f, "env file: {trouble}"),
            Self::EnvFile { release, changes, .. } => write!(f, "env file: {}", listed(changes, release)),
            Self::Down { service, state } => write!(f, "{service} does not run: {state}"),
            Self::Paused { service } => {
                write!(f, "{service} is paused, and nothing of this tool has paused it")
            }
            Self::Extra { service } => write!(f, "{service} runs, and the release does not have it"),
            Self::Unhealthy { service, reason } => write!(f, "{service} is not healthy: {reason}"),
            Self::StoreCorrupt { service, reason } => write!(f, "{service}: {reason}"),
            Self::DataMissing { service } => write!(f, "{service}: its stored data is gone"),
            Self::ImageLost { service } => write!(f, "{service}: the engine has lost the release's image"),
            Self::Shortage { what, .. } => write!(f, "host: {what}"),
            Self::Release { deployed: Some(id) } => write!(f, "release {id} was deployed last"),
            Self::Release { deployed: None } => write!(f, "no deployment is recorded"),
            Self::ComposeFile => write!(f, "the tree's compose file is not the release's (left as it is)"),
            Self::Unknown { what, why } => write!(f, "cannot tell {what}: {why}"),
        }
    }
}

impl Difference {
    /// The service that must restart because of this difference.
    pub fn restarts(&self) -> Option<&str> {
        match self {
            Self::Image { service, .. }
            | Self::Env { service, .. }
            | Self::Settings { service }
            | Self::Down { service, .. }
            | Self::Paused { service }
            | Self::Unhealthy { service, .. }
            | Self::StoreCorrupt { service, .. }
            | Self::DataMissing { service } => Some(service),
            _ => None,
        }
    }
}
