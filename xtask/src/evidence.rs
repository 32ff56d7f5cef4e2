//! What was there before a rollback changed it: logs, inspect output, metrics and sessions, gathered
//! side by side under a deadline, with secrets masked. What could not be had is listed as missed.
//! Also the backup of what will be overwritten or removed, verified before it counts.

use crate::deadline::Deadline;
use crate::engine::Engine;
use crate::files::{self, Mode};
use crate::observe::Observation;
use crate::pilot::Pilot;
use crate::proc::cmd;
use crate::threads::joined;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Log lines of each service that are kept.
const LOG_LINES: usize = 200;

/// Replaces every secret value in `text`. Values come from whatever env is known: the tree's, the
/// release's, and that of the running services.
pub fn mask(text: &str, secrets: &BTreeSet<String>) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "********"))
}

/// The values that must not be shown.
pub fn secrets(pilot: &Pilot, now: &Observation) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let names = &pilot.manifest.secrets.variables;
    for state in now.stack.known().into_iter().flat_map(|s| s.services.values()) {
        found.extend(names.iter().filter_map(|name| state.env.get(name)).cloned());
    }
    if let Ok(env) = pilot.env() {
        found.extend(names.iter().filter_map(|name| env.get(name)).map(str::to_owned));
    }
    // A value of two letters would mask half the text and is no secret.
    found.retain(|value| value.len() >= 4);
    found
}

/// Gathers the evidence into `to`. The error lists what was missed; the rest is there all the same.
pub fn capture(
    pilot: &Pilot,
    engine: &dyn Engine,
    now: &Observation,
    to: &Path,
    deadline: Deadline,
) -> Result<()> {
    files::make_folder(to)?;
    let secrets = secrets(pilot, now);
    let keep = |name: String, text: &str| {
        files::write(&to.join(name), mask(text, &secrets).as_bytes(), Mode::Private)
    };
    keep("observation.json".into(), &serde_json::to_string_pretty(now)?)?;
    let services = now.stack.known().map(|stack| &stack.services);
    let missed: Vec<(String, String)> = std::thread::scope(|scope| {
        let (keep, mut jobs) = (&keep, Vec::new());
        for (service, state) in services.into_iter().flatten() {
            let logs = scope.spawn(move || {
                let name = format!("{service}.log");
                let path = to.join(&name);
                engine.logs(state, LOG_LINES, &path, deadline)?;
                let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                keep(name, &String::from_utf8_lossy(&text))
            });
            let inspect = scope.spawn(move || keep(format!("{service}.inspect.json"), &state.inspect));
            jobs.push((format!("logs of {service}"), logs));
            jobs.push((format!("inspect output of {service}"), inspect));
        }
        for (path, name) in [
            ("/admin/metrics", "metrics.json"),
            ("/admin/sessions", "sessions.json"),
            ("/metrics", "metrics.txt"),
        ] {
            jobs.push((
                path.to_owned(),
                scope.spawn(move || {
                    let gateway = now.gateway(pilot, deadline.left().min(pilot.manifest.limits.probe));
                    let answer = gateway.context("the gateway does not run")?.get(path)?;
                    ensure!(answer.status == 200, "answered {}", answer.brief());
                    keep(name.to_owned(), &answer.body)
                }),
            ));
        }
        let failed = |(what, job): (String, std::thread::ScopedJoinHandle<'_, Result<()>>)| {
            joined(job).err().map(|error| (what, format!("{error:#}")))
        };
        jobs.into_iter().filter_map(failed).collect()
    });
    if missed.is_empty() {
        return Ok(());
    }
    let why: String = missed.iter().map(|(what, why)| format!("{what}: {why}\n")).collect();
    keep("missed.txt".into(), &why)?;
    let what: Vec<&str> = missed.iter().map(|(what, _)| what.as_str()).collect();
    bail!("missed {} (why: evidence/missed.txt)", what.join(", "))
}

/// What a backup holds, by name, with checksums that restoring checks.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    version: u32,
    files: BTreeMap<String, String>,
}

/// Copies the tree's env file and the stored state of `data`, and verifies each copy. What a backup
/// has already (the rollback was cut off and is resumed) is left: it is what was there first.
pub fn backup(
    pilot: &Pilot,
    engine: &dyn Engine,
    data: &[String],
    to: &Path,
    deadline: Deadline,
) -> Result<()> {
    let manifest = to.join("backup.json");
    let mut contents = match manifest.exists() {
        true => files::read_json(&manifest)?,
        false => Contents { version: 1, files: BTreeMap::new() },
    };
    files::make_folder(to)?;
    let env = ".env.poc".to_owned();
    if pilot.env_path.exists() && !manifest.exists() {
        let sum = files::copy(&pilot.env_path, &to.join(&env), Mode::Private)?;
        contents.files.insert(env, sum);
    }
    for service in data {
        let name = format!("{service}.data.tar");
        if contents.files.contains_key(&name) {
            continue;
        }
        let path = to.join(&name);
        engine.save_data(service, &path, deadline).with_context(|| format!("backing up {service}"))?;
        let file = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
        // Readable to its end, or it is no backup.
        let list = cmd("tar", &["--list", "--file", &path.display().to_string()]).run(deadline)?;
        ensure!(!list.trim().is_empty(), "{} is empty", path.display());
        contents.files.insert(name, files::sha256(&path)?);
    }
    files::write_json(&manifest, &contents, Mode::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        let secrets = BTreeSet::from(["t0ken-value".to_owned()]);
        let text = mask(r#"{"Env":["ADMIN_TOKEN=t0ken-value"],"log":"Bearer t0ken-value"}"#, &secrets);
        assert!(!text.contains("t0ken-value"));
        assert_eq!(text.matches("********").count(), 2);
    }
}
