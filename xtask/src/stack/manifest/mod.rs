//! What `pilot.toml` says, as values. `reading` reads TOML and goes on after a mistake, `sections` and `requests` read
//! the parts into `values`. Which manifest a command uses is decided in `pilot`. Called by `pilot` and by everything that reads a part
//! of the manifest.

mod gate;
mod outward;
mod reading;
mod requests;
mod sections;
mod values;

use crate::base::files;
use crate::stack::check::Kind;
use anyhow::{Result, ensure};
use reading::Need;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
pub use values::{
    Contact, DataRule, DataRules, Document, Dump, Flags, HealthRule, Limits, LoadRule, Manifest, MemoryRule,
    Metrics, Notify, Occasion, Remote, Service, SessionRule, WatchRule,
};

/// What manifests of version 1 do not say, because this program knew it.
const NOT_IN_VERSION_1: &str = include_str!("../not_in_version_1.toml");

/// What manifests do not say that were written before their checks were data.
const BEFORE_CHECKS: &str = include_str!("../before_checks.toml");

/// Sections that a manifest has only since checks are data.
const WITH_CHECKS: [&str; 8] = ["auth", "health", "check", "criteria", "memory", "sessions", "load", "drill"];

/// The manifest in the folder of a stack, and in that of a release.
pub const MANIFEST_FILE: &str = "pilot.toml";

/// How many texts of manifests are kept in memory, with what they say.
const READ_ONCE: usize = 8;

/// The parts of a stack that a manifest may name.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Its services.
    pub services: BTreeSet<String>,
    /// Its stored data, also by the names of the volumes.
    pub data: BTreeSet<String>,
}

impl Manifest {
    /// Reads the manifest in a folder, if there is one. The error has all mistakes, each with line and column.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_FILE);
        if path.exists() {
            Self::load(&path)
        } else {
            Ok(Self { folder: Some(folder.to_owned()), ..Self::none() })
        }
    }

    /// That of a stack without a manifest.
    pub fn none() -> Self {
        Self::default()
    }

    fn load(path: &Path) -> Result<Self> {
        let text = files::read_text(path)?;
        let read = Self::parse(&path.display().to_string(), &text)?;
        Ok(Self { folder: path.parent().map(Path::to_owned), ..read })
    }

    /// The manifest that this program was built with. It is used if no other can be read, because the public
    /// must be shut out even then.
    pub fn built_in() -> Result<Self> {
        Self::parse("pilot.toml", include_str!("../../../../pilot-deploy/pilot.toml"))
    }

    /// Reads the text of a manifest. `file` is its name in messages.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        Ok(Self { file: file.to_owned(), ..Self::read_once(file, text)? })
    }

    /// A run comes back to the manifests of its source and of its releases again and again. They are mostly the same, and
    /// took a quarter of the time of `status`.
    fn read_once(file: &str, text: &str) -> Result<Self> {
        static READ: Mutex<Vec<(String, Manifest)>> = Mutex::new(Vec::new());
        let known = || READ.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, manifest)) = known().iter().find(|(known, _)| known == text) {
            return Ok(manifest.clone());
        }
        let (read, needs) = reading::read(file, text, &older, sections::manifest)?;
        let manifest = Self { needs, ..read };
        let mut known = known();
        known.truncate(READ_ONCE - 1);
        known.insert(0, (text.to_owned(), manifest.clone()));
        Ok(manifest)
    }

    /// The programs of its checks, which are files of the stack.
    pub fn scripts(&self) -> impl Iterator<Item = &String> {
        self.checks.iter().filter_map(|check| match &check.kind {
            Kind::Script(path) => Some(path),
            _ => None,
        })
    }

    /// An error that names everything that the manifest needs and is not there: variables of the env file, and parts of
    /// the stack, if they are known.
    pub fn check_needs(&self, has: impl Fn(&str) -> bool, known: Option<&Parts>) -> Result<()> {
        let mut missing: Vec<(&Need, String)> = Vec::new();
        let lacks = |kind: &str, name: &String, known: &BTreeSet<String>| {
            let all: Vec<&str> = known.iter().map(String::as_str).collect();
            (!known.contains(name))
                .then(|| format!("there is no {kind} {name}; there are: {}", all.join(", ")))
        };
        for (need, place) in &self.needs {
            let place = match place {
                Some((line, column)) => format!("{}:{line}:{column}", self.file),
                None => format!("{}, which is of an older version,", self.file),
            };
            let what = match (need, known) {
                (Need::Variable(name), _) => {
                    (!has(name)).then(|| format!("{name} is missing in the env file"))
                }
                (Need::Service(name), Some(known)) => lacks("service", name, &known.services),
                (Need::Data(name), Some(known)) => lacks("data", name, &known.data),
                (Need::Service(_) | Need::Data(_), None) => None,
            };
            let Some(what) = what else { continue };
            if missing.iter().all(|(known, _)| *known != need) {
                missing.push((need, format!("{what} ({place} needs it)")));
            }
        }
        let missing: Vec<String> = missing.into_iter().map(|(_, what)| what).collect();
        ensure!(missing.is_empty(), "{}", missing.join("; "));
        Ok(())
    }
}

/// What is added to an older manifest, so that it says what this program knew when it was written.
fn older(top: &reading::Table<'_>) -> Vec<&'static str> {
    let version = top.value("version").and_then(|version| version.is_number());
    let asks = top.value("flags").and_then(|flags| flags.table()).is_none_or(|flags| flags.has("request"));
    match version {
        Some(1) => vec![NOT_IN_VERSION_1, BEFORE_CHECKS],
        Some(2) if !asks && WITH_CHECKS.iter().all(|key| !top.has(key)) => vec![BEFORE_CHECKS],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
