//! The host against the limits of `pilot.toml`: disk space, inodes, memory, the engine (does it answer, its
//! clock, its disk use) and ports. Each check says what would fix it. Read-only. Called by `deploy`,
//! `operations/look` and the commands.

pub mod restic;

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::machine::{self, Space};
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::engine::roles::Engine;
use crate::stack::envfile::EnvFile;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::Path;

/// One check of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostCheck {
    /// What was checked.
    pub name: String,
    /// Is it within its limit? None if it could not be found out.
    pub ok: Option<bool>,
    /// The value and its limit, or the error.
    pub detail: String,
    /// What would fix it.
    pub fix: Next,
}

fn check(name: impl Into<String>, found: Result<(bool, String)>, fix: impl Into<Next>) -> HostCheck {
    let (ok, detail) = match found {
        Ok((ok, detail)) => (Some(ok), detail),
        Err(error) => (None, format!("cannot tell: {error:#}")),
    };
    HostCheck { name: name.into(), ok, detail, fix: fix.into() }
}

/// The checks that are very cheap: disk space and inodes of the state folder, and memory. A rollback does not
/// act on a check whose result is unknown. The services of an engine that is `elsewhere` need no memory of this machine.
pub fn quick(pilot: &Pilot, elsewhere: Option<&str>) -> Vec<HostCheck> {
    let folder = if elsewhere.is_some() { "state folder on this machine" } else { "state folder" };
    let mut all = disk(folder, pilot.state.path(), pilot).to_vec();
    if let Some(host) = elsewhere {
        let unknown = Err(anyhow::anyhow!("the engine is on {host}"));
        all.push(check(format!("memory of {host}"), unknown, "look there (free -m)"));
        return all;
    }
    let least = pilot.manifest.host.memory_free_mib;
    let memory = machine::available_memory()
        .map(|bytes| (bytes >> 20 >= least, format!("{} available, limit {least} MiB", files::human(bytes))));
    all.push(check("memory", memory, "find what uses the memory (free -m, top), and end it"));
    all
}

/// All checks.
pub fn checks(
    pilot: &Pilot,
    engine: &dyn Engine,
    env: Option<&EnvFile>,
    deadline: Deadline,
) -> Vec<HostCheck> {
    let elsewhere = engine.elsewhere();
    let mut all = quick(pilot, elsewhere.as_deref());
    let host = engine.host(deadline.within(pilot.manifest.limits.engine));
    let restart = match &elsewhere {
        Some(there) => Next::shell("docker version").so(format!("then look at {there}")),
        None => Next::xtask("host --restart-engine"),
    };
    match &host {
        Ok(host) => {
            all.push(check("engine answers", Ok((true, host.version.clone())), restart.clone()));
            match &host.root {
                Observed::Known(root) if *root == *pilot.state.path() => {}
                Observed::Known(root) => all.extend(disk("engine's folder", root, pilot)),
                Observed::Unknown(why) => {
                    let unknown = Err(anyhow::anyhow!("{why}"));
                    let fix = elsewhere.as_ref().map_or("look in Docker Desktop", |_| "look there (df -h)");
                    all.push(check("disk, engine's folder", unknown, fix));
                }
            }
            let most = pilot.manifest.host.clock_skew;
            let skew = host.skew.context("the engine does not report its time").map(|skew| {
                (skew <= most, format!("{} ms from ours, limit {} ms", skew.as_millis(), most.as_millis()))
            });
            let fix = match &elsewhere {
                Some(there) => format!("correct the clock of this machine or of {there}"),
                None => "correct the clock of the host, or restart Docker Desktop".to_owned(),
            };
            all.push(check("engine's clock", skew, fix));
            match &host.used {
                Observed::Known(lines) => {
                    all.extend(lines.iter().map(|line| check("engine uses", Ok((true, line.clone())), "")));
                }
                Observed::Unknown(why) => {
                    all.push(check(
                        "engine uses",
                        Err(anyhow::anyhow!("{why}")),
                        Next::shell("docker system df"),
                    ));
                }
            }
        }
        Err(error) => all.push(HostCheck {
            ok: Some(false),
            ..check("engine answers", Err(anyhow::anyhow!("{error:#}")), restart)
        }),
    }
    all.extend(ports(pilot, engine, env, deadline));
    all
}

fn disk(name: &str, path: &Path, pilot: &Pilot) -> [HostCheck; 2] {
    let limits = &pilot.manifest.host;
    let found = machine::space(path);
    let told = |of: &dyn Fn(Space, &Path) -> (bool, String)| match &found {
        Ok((space, there)) => Ok(of(*space, there)),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    let space = told(&|space, there| {
        let least = limits.disk_free_mib;
        let free = files::human(space.bytes);
        (space.bytes >> 20 >= least, format!("{free} free in {}, limit {least} MiB", there.display()))
    });
    let inodes = told(&|space, _| match space.inodes {
        None => (true, "made as needed".into()),
        Some(free) => (free >= limits.inodes_free, format!("{free} free, limit {}", limits.inodes_free)),
    });
    let fix = Next::xtask("host --free");
    [check(format!("disk, {name}"), space, fix.clone()), check(format!("inodes, {name}"), inodes, fix)]
}

/// The port of each service: used by the service itself, free, or used by another process.
fn ports(pilot: &Pilot, engine: &dyn Engine, env: Option<&EnvFile>, deadline: Deadline) -> Vec<HostCheck> {
    let Some(env) = env else {
        let why = anyhow::anyhow!("the env file is missing or cannot be read");
        return vec![check("ports", Err(why), Next::xtask("rollback").so("to restore the env file"))];
    };
    let services = engine.services(deadline.within(pilot.manifest.limits.engine));
    let one = |service: &str| {
        let Some(port) = pilot.port(service, env)? else { return Ok((true, "none".to_owned())) };
        let services = services.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?;
        let ours = services.get(service).is_some_and(|s| s.is_live() && s.port() == Some(port));
        let limit = deadline.within(pilot.manifest.limits.engine);
        Ok(match (engine.taken_by(port, limit)?, engine.elsewhere()) {
            _ if ours => (true, format!("{port}: used by the pilot itself")),
            (None, Some(host)) => {
                bail!("{port}: no container of {host} has it; its other programs are not seen")
            }
            (None, None) => (true, format!("{port}: free")),
            (Some(owner), _) => (false, format!("{port}: taken by {owner}")),
        })
    };
    let fix = format!("end that process, or change the port in {}", pilot.env_path.display());
    pilot.services().map(|service| check(format!("port of {service}"), one(service), fix.clone())).collect()
}
