//! What a run needs and what it has done so far, as its steps see it. The loop is in `execute`, the steps in `steps`.

use crate::base::deadline::Deadline;
use crate::base::output::Output;
use crate::checks::smoke::Smoke;
use crate::deploy::observe::Observation;
use crate::deploy::run::{Past, Run};
use crate::deploy::view::View;
use crate::release::description::Release;
use crate::release::store::Store;
use crate::stack::envfile::EnvFile;
use std::fmt;
use std::path::PathBuf;

/// What every step may need.
pub struct Execution<'a> {
    /// The stack by the manifest of what runs: it is closed, copied and kept as evidence.
    pub running: &'a View,
    /// The stack by the manifest of the release gone to: it is applied, checked and opened.
    pub target: &'a View,
    /// The releases.
    pub store: &'a Store,
    /// Where events go.
    pub out: &'a Output,
    /// End of the budget.
    pub deadline: Deadline,
    /// The release that the plan leads to.
    pub release: &'a Release,
    /// Its settings.
    pub env: &'a EnvFile,
    /// What the plan was made from.
    pub now: &'a Observation,
    /// The run, whose folder has evidence and backups.
    pub run: &'a Run,
}

/// What was measured on the way.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The gate was proved closed, from the start of the process.
    pub gate_closed_ms: Option<u64>,
    /// A public stream had its first token.
    pub restored_ms: Option<u64>,
    /// The last verification.
    pub smoke: Option<Smoke>,
    /// Who holds the gate closed at the end, and why.
    pub held: Option<String>,
    /// Whether what runs is known to be well or wrong, for the end of a run that fails.
    pub stance: Stance,
    /// What this run has done so far, with what its journal proves of an earlier try.
    pub past: Past,
}

/// What is known of a stack that could not be brought to a release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    /// Nothing yet: it is judged at the end.
    #[default]
    Open,
    /// The services answer and are healthy although the engine does not: their gate is left open on purpose.
    LeftServed,
    /// It is wrong.
    Wrong,
}

/// How a step ended, when it did not fail.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was done.
    Done,
    /// The same, and it filled this folder within the run's.
    Filled(PathBuf),
    /// It was done but for something that does no harm: what. It may have filled a folder.
    Warned(String, Option<PathBuf>),
    /// There was nothing to do: why.
    Skipped(String),
}

/// The world is no longer what the plan was made from; make a new one.
#[derive(Debug)]
pub struct Stale(pub String);

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stale {}

impl Execution<'_> {
    /// What the public is told: why a person holds the gate closed, else what the run is about.
    pub fn reason(&self) -> String {
        self.run.reason_under(&self.now.holds)
    }
}
