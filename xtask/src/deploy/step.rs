//! The steps of a plan, as plain data: `--plan` prints them, the journal keeps them, `execute` runs them.
//! Nothing is decided or done here. Made by `plan`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Close the gate over HTTP and prove it; if that fails, stop the gateway (Option B).
    CloseGate,
    /// Stop the services that let the public in, keep them down, and prove it: a gate of the kind `stop`.
    StopGate {
        /// Which services.
        services: Vec<String>,
        /// What stays published.
        not_closed: Vec<String>,
    },
    /// Stop the gateway, which does not answer (Option B): then the public is out at once.
    StopGateway,
    /// Stop these published services: what runs belongs to no known release, so it is unknown how to close its
    /// gate; or the release gone to has no switch that could open it again.
    StopPublished {
        /// Which services.
        services: Vec<String>,
    },
    /// Delete what the pilot made and no longer needs.
    FreeSpace,
    /// Collect evidence and make the backup, at the same time: logs, inspect output and metrics before
    /// anything is replaced, and a verified copy of the env file and of the stored data that will be removed.
    /// Missing evidence is recorded; without the backup, the run stops.
    Preserve {
        /// Services whose stored data is backed up.
        data: Vec<String>,
        /// Services that are stopped before, because they could write to data that will be replaced.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stop: Vec<String>,
    },
    /// Take a snapshot of data that belongs to the release that is left.
    Snapshot {
        /// Which data.
        data: Vec<String>,
    },
    /// Remove the project's containers, volumes and network, and check that nothing is left.
    TearDown,
    /// Load images of the release that the engine does not have.
    LoadImages {
        /// Services whose image is missing.
        services: Vec<String>,
        /// The public is served meanwhile.
        #[serde(default)]
        served: bool,
    },
    /// Record which release is deployed from here on.
    RecordRelease,
    /// Replace the env file of the source with that of the release.
    RestoreEnvFile,
    /// Remove the stored data of these services. A verified backup exists.
    RemoveData {
        /// Which services.
        services: Vec<String>,
    },
    /// Restore the stored data that `Preserve` has copied.
    ReturnData {
        /// Services whose data is not restored, because it is corrupt.
        except: Vec<String>,
    },
    /// Restore stored data from a backup.
    RestoreData {
        /// The folder of the backup.
        from: PathBuf,
        /// Which services.
        services: Vec<String>,
    },
    /// Ask whether the engine answers again. If not, nothing can be changed. If it does, a new plan is
    /// needed.
    AskEngine,
    /// Close the gate on disk, so that the gateway comes up closed.
    CloseGateOnDisk,
    /// Remove services that the release does not have.
    RemoveServices {
        /// Which services.
        services: Vec<String>,
    },
    /// Start the services as the release has them.
    #[serde(alias = "replace")]
    Apply {
        /// Services that will restart, as far as the drift shows. The engine also compares by itself.
        #[serde(default)]
        services: Vec<String>,
        /// Services that are replaced even if the engine sees no difference.
        force: Vec<String>,
        /// Services that are made ready and not started: they let the public in.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        held_back: Vec<String>,
    },
    /// Wait until every service is healthy, as far as it is started.
    Settle,
    /// Load the demo scenario of the release. This changes nothing unless the store is new.
    Seed,
    /// Wait until restarts, memory and the host are steady. Older versions called it `watch`.
    #[serde(alias = "watch")]
    Steady,
    /// Prove that the new gateway is closed, compare what runs with the release, and run all smoke checks.
    Verify,
    /// Open the gate and wait until a public request is served.
    OpenGate,
    /// Start the services that let the public in, check them at once, and stop them again if a check fails:
    /// the opening of a gate of the kind `stop`.
    StartGate {
        /// Which services.
        services: Vec<String>,
    },
    /// Leave the gate closed, and prove that it is: a person holds it.
    KeepClosed {
        /// Who holds it, since when and why.
        hold: String,
        /// Services that are left down, if the gate is of the kind `stop`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stopped: Vec<String>,
        /// What stays published.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        not_closed: Vec<String>,
    },
    /// Move the tags of the images that this tool built, so that plain Compose starts the release too. Older
    /// versions did this before they applied the release.
    #[serde(alias = "point-tags")]
    Retag,
    /// Watch whether what runs stays well, while the public is served, or behind the gate under a hold. Meanwhile the images
    /// of a new release are saved.
    KeepWatch {
        /// How long, in milliseconds.
        for_ms: u64,
    },
}

impl Step {
    /// Where the gate is when this step has ended well; none if it does not move the gate.
    pub fn gate(&self) -> Option<&'static str> {
        match self {
            Self::CloseGate
            | Self::StopGate { .. }
            | Self::StopGateway
            | Self::StopPublished { .. }
            | Self::CloseGateOnDisk => Some("closed"),
            Self::KeepClosed { .. } => Some("closed, held"),
            Self::OpenGate | Self::StartGate { .. } => Some("open"),
            _ => None,
        }
    }
}

impl Step {
    /// Does it follow the opening of the gate? The stack is restored by then, so the budget is kept.
    pub fn follows_the_opening(&self) -> bool {
        matches!(self, Self::Retag | Self::KeepWatch { .. })
    }

    /// What happens if this step fails.
    pub fn if_it_fails(&self) -> &'static str {
        match self {
            Self::CloseGate => "the gateway is stopped",
            Self::StopGate { .. } | Self::StopGateway | Self::StopPublished { .. } => {
                "the run ends, and says that the public may still be let in"
            }
            Self::FreeSpace | Self::Retag | Self::Steady => "a warning; the run goes on",
            Self::Preserve { .. } => {
                "missing evidence is a warning; without the backup the run ends, and nothing was changed"
            }
            Self::Snapshot { .. } => "the run ends, and nothing was changed",
            Self::LoadImages { served: true, .. } => "the gate is closed, and they are loaded then",
            Self::LoadImages { .. } => "the run ends, before anything is removed",
            Self::AskEngine => "the run ends; what answers and is healthy keeps serving",
            Self::TearDown | Self::RemoveData { .. } | Self::ReturnData { .. } | Self::RestoreData { .. } => {
                "the run ends with the public shut out; the data is in the backup, which is named"
            }
            Self::RecordRelease
            | Self::RestoreEnvFile
            | Self::CloseGateOnDisk
            | Self::RemoveServices { .. }
            | Self::Apply { .. }
            | Self::Settle
            | Self::Seed
            | Self::Verify => "the public stays shut out, and the next older known-good release is tried",
            Self::OpenGate | Self::StartGate { .. } => "the gate is closed again",
            Self::KeepClosed { .. } => "the run ends; what serves the public is stopped",
            Self::KeepWatch { .. } => {
                "the gate is closed; a deployment goes back to the release before, a rollback ends"
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloseGate => write!(f, "close the gate and prove it"),
            Self::StopGate { services, not_closed } => {
                write!(f, "stop {} and prove it{}", services.join(", "), left_open(not_closed))
            }
            Self::StopGateway => write!(f, "stop the gateway, which does not answer"),
            Self::StopPublished { services } => {
                write!(f, "stop what is published: {}", services.join(", "))
            }
            Self::RemoveServices { services } => {
                write!(f, "remove what the release does not have: {}", services.join(", "))
            }
            Self::KeepClosed { hold, stopped, .. } if stopped.is_empty() => {
                write!(f, "leave the gate closed, {hold}")
            }
            Self::KeepClosed { hold, stopped, not_closed } => {
                write!(f, "leave {} stopped, {hold}{}", stopped.join(", "), left_open(not_closed))
            }
            Self::Preserve { data, .. } if data.is_empty() => {
                write!(f, "capture evidence, back up the env file")
            }
            Self::Preserve { data, stop } if stop.is_empty() => {
                write!(f, "capture evidence, back up {}", data.join(", "))
            }
            Self::Preserve { data, stop } => {
                write!(f, "capture evidence, stop {}, back up {}", stop.join(", "), data.join(", "))
            }
            Self::Snapshot { data } => {
                write!(f, "take a snapshot of {} for the way back", data.join(", "))
            }
            Self::FreeSpace => write!(f, "free what is the pilot's own and not needed"),
            Self::TearDown => write!(f, "tear the project down, check that nothing is left"),
            Self::ReturnData { except } if except.is_empty() => write!(f, "bring the data back"),
            Self::ReturnData { except } => write!(f, "bring the data back, but not of {}", except.join(", ")),
            Self::RestoreData { services, .. } => write!(f, "restore data of {}", services.join(", ")),
            Self::AskEngine => write!(f, "see whether the engine answers again"),
            Self::Steady => write!(f, "wait until the use of resources is steady"),
            Self::KeepWatch { for_ms } => write!(f, "watch for {} whether it stays well", time(*for_ms)),
            Self::LoadImages { services, served } => {
                let meanwhile = if *served { ", while what runs is served" } else { "" };
                write!(f, "load lost images of {}{meanwhile}", services.join(", "))
            }
            Self::RecordRelease => write!(f, "record which release is deployed"),
            Self::Retag => write!(f, "move the image tags"),
            Self::RestoreEnvFile => write!(f, "restore the env file"),
            Self::RemoveData { services } => write!(f, "remove the data of {}", services.join(", ")),
            Self::CloseGateOnDisk => write!(f, "close the gate on disk"),
            Self::Apply { services, held_back, .. } => {
                let what = if services.is_empty() {
                    "apply the release".into()
                } else {
                    format!("restart {}", services.join(", "))
                };
                let held = if held_back.is_empty() {
                    String::new()
                } else {
                    format!(", but do not start {} yet", held_back.join(", "))
                };
                write!(f, "{what}{held}")
            }
            Self::Settle => write!(f, "wait until the services are healthy"),
            Self::Seed => write!(f, "load the demo scenario"),
            Self::Verify => write!(f, "verify behind the closed gate"),
            Self::OpenGate => write!(f, "open the gate, first public token"),
            Self::StartGate { services } if services.is_empty() => {
                write!(f, "check everything again: nothing is published, so there is no gate to open")
            }
            Self::StartGate { services } => {
                let names = services.join(", ");
                write!(
                    f,
                    "start {names}, check at once, stop again if a check fails \
                     (weaker than a kill switch: the public is served during the checks)"
                )
            }
        }
    }
}

impl Step {
    /// Does it only shut the public out, copy what is there, or ask whether the engine answers? That is allowed while nobody
    /// can be asked for the lock.
    pub fn needs_no_lock(&self) -> bool {
        match self {
            Self::CloseGate
            | Self::StopGate { .. }
            | Self::StopGateway
            | Self::StopPublished { .. }
            | Self::AskEngine => true,
            Self::Preserve { stop, .. } => stop.is_empty(),
            _ => false,
        }
    }
}

fn time(ms: u64) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(ms))
}

/// What stays published, to be added to a sentence.
pub fn left_open(not_closed: &[String]) -> String {
    if not_closed.is_empty() { String::new() } else { format!("; not closed: {}", not_closed.join(", ")) }
}
