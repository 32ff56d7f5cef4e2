//! What a look has found, as a doctor says it: what is wrong, why, and the command that helps. Called by `assess` and
//! `diagnose`. Nothing is asked here.

use crate::base::next::{Context, Next};
use crate::deploy::difference::Difference;
use crate::deploy::gate::Gate;
use crate::operations::look::Look;
use serde::Serialize;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// Why, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do.
    #[serde(skip)]
    pub next: Next,
    /// The same as a line that can be pasted.
    pub fix: String,
}

impl Finding {
    /// For a stack with this context.
    pub fn new(what: String, why: Option<String>, next: Next, context: &Context) -> Self {
        Self { what, why, fix: context.line(&next), next }
    }
}

/// What is wrong by this look. `is_error`: is a line of a log an error?
pub fn of(look: &Look, is_error: fn(&str) -> bool, context: &Context) -> Vec<Finding> {
    let repair = if look.target.is_some() { Next::xtask("rollback") } else { Next::xtask("up") };
    let last_error = |service: &str| {
        let lines = look.logs.get(service)?.known()?;
        lines.iter().rev().find(|line| is_error(line)).map(|line| format!("its log says: {}", line.trim()))
    };
    let mut found = Vec::new();
    for difference in look.drift.iter().filter(|d| **d != Difference::ComposeFile) {
        let next = match difference {
            Difference::Unknown { .. } => Next::xtask("host"),
            Difference::Shortage { fix, .. } => fix.clone(),
            _ => repair.clone(),
        };
        found.push(Finding::new(difference.to_string(), why(difference, last_error), next, context));
    }
    match &look.now.gate {
        Gate::Open => {}
        Gate::Closed(reason) => {
            let why = look.now.holds.held(&[]).map(|hold| format!("it is {hold}"));
            let next = Next::xtask("kill-switch off");
            found.push(Finding::new(format!("the gate is closed: {reason}"), why, next, context));
        }
        Gate::Unknown(why) => {
            let next = Next::xtask("kill-switch on").so(format!("then {}", context.line(&repair)));
            found.push(Finding::new(format!("the gate: {why}"), None, next, context));
        }
    }
    found
}

/// Why something differs, as far as its kind tells.
fn why(difference: &Difference, last_error: impl Fn(&str) -> Option<String>) -> Option<String> {
    let text = match difference {
        Difference::Image { .. } => "another version was started since the release was verified",
        Difference::Env { .. } => "it was started with other settings than the release has",
        Difference::EnvFile { .. } => "the env file was edited since; it counts at the next start",
        Difference::Settings { .. } => "the compose file was changed, or somebody changed the container",
        Difference::Paused { .. } => "somebody has paused it by hand",
        Difference::Extra { .. } => "somebody has started it by hand, or an older release had it",
        Difference::ImageLost { .. } => "somebody has removed it from the engine; the release has a copy",
        Difference::DataMissing { .. } => "somebody has removed the volume",
        Difference::Release { .. } => "a deployment was begun and not finished, or failed",
        Difference::Down { service, .. }
        | Difference::Unhealthy { service, .. }
        | Difference::StoreCorrupt { service, .. } => return last_error(service),
        Difference::Shortage { .. } | Difference::ComposeFile | Difference::Unknown { .. } => return None,
    };
    Some(text.to_owned())
}
