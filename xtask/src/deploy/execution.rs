//! What a run needs, and what it has done so far, for its steps. The loop is in `execute`, the steps are in
//! `steps`. Made by `converge`.

use crate::base::deadline::Deadline;
use crate::base::output::Output;
use crate::checks::health::StoreCorrupt;
use crate::checks::smoke::Smoke;
use crate::deploy::difference::Difference;
use crate::deploy::observe::Observation;
use crate::deploy::past::Past;
use crate::deploy::run::Run;
use crate::deploy::view::View;
use crate::release::description::Release;
use crate::release::store::Store;
use crate::stack::envfile::EnvFile;
use std::fmt;
use std::path::PathBuf;

/// What a step may use.
pub struct Execution<'a> {
    /// The stack by the manifest of the release that runs: to close the gate, copy data and keep evidence.
    pub running: &'a View,
    /// The stack by the manifest of the target release: to apply, check and open.
    pub target: &'a View,
    /// The store of releases.
    pub store: &'a Store,
    /// Where events go.
    pub out: &'a Output,
    /// The end of the budget.
    pub deadline: Deadline,
    /// The target release.
    pub release: &'a Release,
    /// The settings of the target release.
    pub env: &'a EnvFile,
    /// The observation that the plan was made from.
    pub now: &'a Observation,
    /// The run; its folder has the evidence and the backups.
    pub run: &'a Run,
}

/// What was measured in this run.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// When the gate was proved closed, in milliseconds since the process began.
    pub gate_closed_ms: Option<u64>,
    /// When a public request was served.
    pub restored_ms: Option<u64>,
    /// The last verification.
    pub smoke: Option<Smoke>,
    /// Who holds the gate closed at the end, and why.
    pub held: Option<String>,
    /// Services that a hold keeps down.
    pub stopped: Vec<String>,
    /// What stays published although the gate is closed.
    pub not_closed: Vec<String>,
    /// What is known of the running stack, for the end of a run that fails.
    pub stance: Stance,
    /// What this run has done so far, including what its journal proves of an earlier attempt.
    pub past: Past,
}

/// What is known of a stack that could not be brought to the release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    /// Nothing yet; it is checked at the end.
    #[default]
    Open,
    /// The gate is left as it is on purpose: the engine does not answer, but the services answer and are healthy; or
    /// the release serves and was verified, and only that could not be recorded.
    LeftServed,
    /// Something is wrong.
    Wrong,
}

/// How a step ended, if it did not fail.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was done.
    Done,
    /// It was done, and it filled this folder in the run's folder.
    Filled(PathBuf),
    /// It was done, but something harmless went wrong; it may have filled a folder.
    Warned(String, Option<PathBuf>),
    /// There was nothing to do, and why.
    Skipped(String),
}

/// The stack changed after the plan was made: observe and plan again.
#[derive(Debug)]
pub struct Stale {
    why: String,
    /// What was found that an observation does not show, because the service is down again.
    pub found: Option<Difference>,
}

impl Stale {
    /// For this reason.
    pub fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), found: None }
    }

    /// A service that did not run has a store that it cannot use.
    pub fn corrupt(StoreCorrupt { service, reason }: &StoreCorrupt) -> Self {
        let found = Difference::StoreCorrupt { service: service.clone(), reason: reason.clone() };
        Self { why: format!("{service}: {reason}"), found: Some(found) }
    }
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Stale {}

/// The release with this id runs and was verified, but it could not be made known-good.
#[derive(Debug)]
pub struct Unrecorded(pub String);

impl fmt::Display for Unrecorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "release {} runs and was verified, but no rollback can go to it", self.0)
    }
}

impl std::error::Error for Unrecorded {}

/// The release with this id was verified, and did not stay well while it was watched: it is shut out.
#[derive(Debug)]
pub struct TurnedBad(pub String);

impl fmt::Display for TurnedBad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "release {} did not stay well", self.0)
    }
}

impl std::error::Error for TurnedBad {}

impl Execution<'_> {
    /// What the public is told: a person's reason for closing the gate; if there is none, what the run does.
    pub fn reason(&self) -> String {
        self.run.reason_under(&self.now.holds)
    }
}
