//! What a Compose stack is on a Swarm, as values: the objects that the engine creates (API 1.41, Docker 20.10), what is
//! different there, and what cannot be carried over. Pure: no process, no network; the caller reads the files. Called by
//! the other files of `swarm`.

mod container;
mod deploy;
mod digest;
mod files;
mod mounts;
mod networks;
mod parts;
mod reading;
mod service;
#[cfg(test)]
mod tests;
mod unsupported;

pub use digest::digest;
pub use parts::{File, Plan, STACK, Source};
pub use service::{SERVICE, SETTINGS};

use anyhow::{Context, Result, ensure};
use parts::Draft;
use reading::{is_empty, map};

/// The parts of a compose file that are understood.
const SECTIONS: [&str; 7] = ["name", "version", "services", "networks", "volumes", "configs", "secrets"];

/// What a stack is on a Swarm. All that cannot be carried over is in `refusals`, at once. Error: `config` is not what
/// Compose prints, or it does not have one of the services.
pub fn plan(source: &Source<'_>) -> Result<Plan> {
    let services = source.config["services"].as_object();
    let services = services.context("the output of docker compose config has no services")?;
    let mut draft = Draft { source, plan: Plan::default() };
    for (key, value) in map(source.config) {
        if !SECTIONS.contains(&key.as_str()) && !key.starts_with("x-") && !is_empty(value) {
            draft.refuse("the compose file", format!("`{key}` is not supported; remove it"));
        }
    }
    for name in source.services {
        let settings = services.get(name).filter(|settings| settings.is_object());
        let settings = settings.with_context(|| format!("the stack has no service {name}"))?;
        let spec = service::service(&mut draft, name, settings);
        draft.plan.services.insert(name.clone(), spec);
    }
    let mut plan = draft.plan;
    plan.networks.sort_by(|one, other| one.name.cmp(&other.name));
    for files in [&mut plan.configs, &mut plan.secrets] {
        files.sort_by(|one, other| one.name.cmp(&other.name));
    }
    ensure!(!plan.services.is_empty(), "the stack has no service to start");
    Ok(plan)
}
