//! The steps of a plan, as plain data: what `--plan` prints, what the journal keeps, what is executed.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Close the gate over HTTP and prove it; where that fails, stop the gateway (Option B).
    CloseGate,
    /// Stop the gateway, which does not answer (Option B), so that the public is out at once.
    StopGateway,
    /// Stop every service that is published: what runs belongs to no release that is known, so nobody can
    /// tell how its gate is closed.
    StopPublished {
        /// Which.
        services: Vec<String>,
    },
    /// Free what is the pilot's own and no longer needed.
    FreeSpace,
    /// Evidence and backup, side by side: logs, inspect output and metrics before anything is replaced,
    /// and a verified copy of the env file and of stored state that will be removed. Evidence that
    /// cannot be had is recorded as missed; without the backup nothing goes on.
    Preserve {
        /// Services whose stored data is backed up.
        data: Vec<String>,
    },
    /// Remove the project's containers, volumes and network, and check that nothing of it is left.
    TearDown,
    /// Take images in from the release, which the engine has lost.
    LoadImages {
        /// Services whose image is missing.
        services: Vec<String>,
    },
    /// Move the image tags to the release.
    #[serde(alias = "point-tags")]
    Retag,
    /// Put the release's env file in place of the tree's.
    RestoreEnvFile,
    /// Remove the stored data of these services; a verified backup exists.
    RemoveData {
        /// Which.
        services: Vec<String>,
    },
    /// Bring back the stored data that `Preserve` has copied.
    ReturnData {
        /// Services whose data stays out: it is corrupt.
        except: Vec<String>,
    },
    /// Bring stored data from a backup.
    RestoreData {
        /// Its folder.
        from: PathBuf,
        /// Whose.
        services: Vec<String>,
    },
    /// See whether the engine answers again: without it nothing can be changed, with it the plan is another.
    AskEngine,
    /// Close the gate on disk, so that the gateway comes up closed.
    CloseGateOnDisk,
    /// Remove services that the release does not have.
    RemoveServices {
        /// Which.
        services: Vec<String>,
    },
    /// Bring the services to the release.
    #[serde(alias = "replace")]
    Apply {
        /// Services that restart, as far as the drift tells: the engine compares for itself.
        #[serde(default)]
        services: Vec<String>,
        /// Services that are replaced even though the engine sees no difference.
        force: Vec<String>,
    },
    /// Load the release's demo scenario, which is there already unless the store is new.
    Seed,
    /// Watch restarts, memory and the host until they are steady.
    Watch,
    /// The new gateway proves that it is closed; what runs is compared with the release; all smoke checks.
    Verify,
    /// Open the gate and wait for a public stream's first token.
    OpenGate,
    /// Leave the gate closed, and prove it: a person holds it.
    KeepClosed {
        /// Who, since when and why.
        hold: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloseGate => write!(f, "close the gate and prove it"),
            Self::StopGateway => write!(f, "stop the gateway, which does not answer"),
            Self::StopPublished { services } => {
                write!(f, "stop all that is published: {}", services.join(", "))
            }
            Self::RemoveServices { services } => {
                write!(f, "remove what the release does not have: {}", services.join(", "))
            }
            Self::KeepClosed { hold } => write!(f, "leave the gate closed, {hold}"),
            Self::Preserve { data } if data.is_empty() => write!(f, "capture evidence, back up the env file"),
            Self::Preserve { data } => {
                write!(f, "capture evidence, back up {}", data.join(", "))
            }
            Self::FreeSpace => write!(f, "free what is the pilot's own and not needed"),
            Self::TearDown => write!(f, "tear the project down, check that nothing is left"),
            Self::ReturnData { except } if except.is_empty() => write!(f, "bring the data back"),
            Self::ReturnData { except } => write!(f, "bring the data back, but not of {}", except.join(", ")),
            Self::RestoreData { services, .. } => write!(f, "restore data of {}", services.join(", ")),
            Self::AskEngine => write!(f, "see whether the engine answers again"),
            Self::Watch => write!(f, "watch resources until they are steady"),
            Self::LoadImages { services } => write!(f, "load lost images of {}", services.join(", ")),
            Self::Retag => write!(f, "move the image tags"),
            Self::RestoreEnvFile => write!(f, "restore the env file"),
            Self::RemoveData { services } => write!(f, "remove the data of {}", services.join(", ")),
            Self::CloseGateOnDisk => write!(f, "close the gate on disk"),
            Self::Apply { services, .. } if services.is_empty() => {
                write!(f, "apply the release; no service has to restart")
            }
            Self::Apply { services, .. } => write!(f, "restart {}", services.join(", ")),
            Self::Seed => write!(f, "load the demo scenario"),
            Self::Verify => write!(f, "verify behind the closed gate"),
            Self::OpenGate => write!(f, "open the gate, first public token"),
        }
    }
}
