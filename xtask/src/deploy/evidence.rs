//! Evidence: states, inspect output, logs, metrics, sessions and settings, saved before anything is changed.
//! Several parts are collected at the same time, within a deadline, and secrets are masked. A manifest lists the
//! checksum of each file, and the reason for each file that is missing. `execute` collects it in a run; the
//! command `evidence` adds what takes longer, and packs it.

use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::files::{self, Mode};
use crate::base::screen;
use crate::base::secrets;
use crate::base::threads::side_by_side;
use crate::checks::ask::send;
use crate::deploy::backup::numbered;
use crate::deploy::observe::Observation;
use crate::engine::roles::Engine;
use crate::stack::call::Line;
use crate::stack::hiding;
use crate::stack::manifest::Document;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// How many log lines of each service are kept.
const LOG_LINES: usize = 200;

/// How many files are collected at a time: for most of them, another program is started.
pub const AT_A_TIME: usize = 8;

/// The name of the manifest.
pub const INDEX: &str = "manifest.json";

/// `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    project: String,
    made_ms: u64,
    /// Checksums by name.
    pub files: BTreeMap<String, String>,
    /// What is missing, and why.
    pub missed: BTreeMap<String, String>,
}

/// One file of the evidence, and how to get its text.
pub struct Item<'a> {
    name: String,
    get: Box<dyn FnOnce() -> Result<String> + Send + 'a>,
}

/// Describes one file.
pub fn item<'a>(name: impl Into<String>, get: impl FnOnce() -> Result<String> + Send + 'a) -> Item<'a> {
    Item { name: name.into(), get: Box::new(get) }
}

/// The files of every bundle; all are quick to get.
pub fn items<'a>(
    pilot: &'a Pilot,
    engine: &'a dyn Engine,
    now: &'a Observation,
    deadline: Deadline,
) -> Vec<Item<'a>> {
    let mut items = vec![
        item("observation.json", move || Ok(serde_json::to_string_pretty(now)?)),
        item("env.masked", move || {
            let path = &pilot.env_path;
            Ok(hiding::masked(&String::from_utf8_lossy(&files::read(path)?)))
        }),
    ];
    for service in pilot.services() {
        // If there is no instance, the manifest says what is missing and why.
        for n in 0..now.service(service).map_or(1, |seen| seen.0.len().max(1)) {
            let instance = move || now.instances(service)?.get(n).context("it is gone");
            let name = numbered(service, n);
            items.push(item(format!("{name}.log"), move || engine.logs(instance()?, LOG_LINES, deadline)));
            items.push(item(format!("{name}.inspect.json"), move || Ok(instance()?.inspect.clone())));
        }
    }
    for document in &pilot.manifest.evidence {
        let Document { request, file, service } = document;
        let mut add = |name: String, service: &'a str| {
            items.push(item(name, move || ask(pilot, engine, now, service, request, deadline)));
        };
        match service {
            Some(service) => add(file.clone(), service),
            None => pilot.services().for_each(|service| add(format!("{service}.{file}"), service)),
        }
    }
    items
}

fn ask(
    pilot: &Pilot,
    engine: &dyn Engine,
    now: &Observation,
    service: &str,
    request: &Line,
    deadline: Deadline,
) -> Result<String> {
    let endpoint = now.endpoints.get(service).with_context(|| format!("{service} does not run"))?;
    let limit = deadline.left().min(pilot.manifest.limits.probe);
    let answer = send(&engine.reach(endpoint, limit), request, None)?;
    ensure!(answer.status == 200, "{request} answered {}", answer.brief());
    Ok(answer.body)
}

/// Collects the items into `to`, several at the same time, masked. It fails only if the folder cannot be written.
/// What is missing is listed in the manifest.
pub fn gather(pilot: &Pilot, items: Vec<Item<'_>>, to: &Path) -> Result<Manifest> {
    files::make_private_folder(to)?;
    let _shown = screen::doing("gather the evidence");
    let mut manifest = Manifest {
        version: 1,
        project: pilot.project.clone(),
        made_ms: now_ms(),
        files: BTreeMap::new(),
        missed: BTreeMap::new(),
    };
    let keep = |Item { name, get }: Item<'_>| {
        let path = to.join(&name);
        files::write(&path, secrets::mask_document(&get()?).as_bytes(), Mode::Private)?;
        files::sha256(&path)
    };
    let names: Vec<String> = items.iter().map(|item| item.name.clone()).collect();
    let got = side_by_side(AT_A_TIME, items, keep);
    for (name, outcome) in names.into_iter().zip(got) {
        match outcome {
            Ok(sum) => drop(manifest.files.insert(name, sum)),
            Err(error) => drop(manifest.missed.insert(name, secrets::mask(&format!("{error:#}")))),
        }
    }
    files::write_json(&to.join(INDEX), &manifest, Mode::Private)?;
    Ok(manifest)
}
