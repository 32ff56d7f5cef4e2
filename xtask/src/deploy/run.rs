//! Runs: a rollback, a reset or a deployment. Each has its own folder (`rollbacks/SEQ-TIME/`) with its
//! request, journal, evidence, backups and report. Runs are ordered by their number, never by the clock. This
//! file begins a run or continues an interrupted one. Nothing is executed here. Called by `rollback`, `up` and
//! `ending`.

use crate::base::files::{self, Mode};
use crate::base::observed::Observed;
use crate::deploy::difference::Scenario;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::gate;
use crate::deploy::past::Past;
use crate::stack::hold::{self, Hold};
use crate::stack::ledger::Ledger;
use crate::stack::state_dir::{RunDir, StateDir};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The format of `request.json`.
const FORMAT: u32 = 2;

/// How many runs say how long the public will be out.
const MEASURED: usize = 5;

/// The command that began a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Roll back to a release.
    #[default]
    Rollback,
    /// A clean stack.
    Reset,
    /// Restore data and files from a backup.
    Restore,
    /// Deploy a new release.
    Up,
}

impl Command {
    /// The words that the user types.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Reset => "reset",
            Self::Restore => "backup restore",
            Self::Up => "up",
        }
    }
}

/// What the user asked for. It is saved, so that an interrupted run can be continued.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The version of this format.
    pub version: u32,
    /// The command. Older versions saved only rollbacks and resets.
    #[serde(default)]
    pub command: Command,
    /// A release, a commit or a label.
    pub to: Option<String>,
    /// Scenarios that the user named.
    pub scenarios: Vec<Scenario>,
    /// A reset restores the data that it backed up.
    #[serde(default)]
    pub keep_data: bool,
    /// The backup that is restored is the snapshot of the release.
    #[serde(default)]
    pub with_data: bool,
    /// The backup to restore data from, and the services to restore.
    #[serde(default)]
    pub backup: Option<(PathBuf, Vec<String>)>,
    /// The holds that stood when the user asked to open the gate (`--open`).
    #[serde(default)]
    pub lift: Vec<String>,
    /// Should the gate be open at the end, even if a person closed it?
    #[serde(default)]
    pub open: bool,
}

impl Request {
    /// A request for this command, without any options.
    pub fn by(command: Command) -> Self {
        Self { version: FORMAT, command, ..Self::default() }
    }

    /// A request to deploy this release.
    pub fn to_deploy(release: &str) -> Self {
        Self { to: Some(release.to_owned()), ..Self::by(Command::Up) }
    }

    /// Do both requests ask for the same? `--open` is not compared.
    fn same(&self, other: &Self) -> bool {
        let asked = |request: &Self| Self { lift: Vec::new(), open: false, ..request.clone() };
        asked(self) == asked(other)
    }

    /// Asks to open the gate at the end. This lifts the holds that stand now, but no later ones.
    pub fn lift_standing(&mut self, ledger: &Ledger) -> Result<()> {
        self.open = true;
        self.lift = hold::standing(ledger)?.into_iter().map(|hold| hold.id).collect();
        Ok(())
    }

    /// The words of the command line that ask for the same again.
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.command.as_str().split(' ').map(str::to_owned).collect();
        if let Some(to) = self.to.as_ref().filter(|_| self.command == Command::Rollback) {
            words.extend(["--to".to_owned(), to.clone()]);
        }
        for scenario in self.scenarios.iter().filter(|_| self.command == Command::Rollback) {
            words.extend(["--scenario".to_owned(), scenario.as_str().to_owned()]);
        }
        if self.with_data {
            words.push("--with-data".into());
        }
        if self.keep_data {
            words.push("--keep-data".into());
        }
        words
    }
}

/// One run.
#[derive(Debug)]
pub struct Run {
    /// For example `0012-20261124T084736659`.
    pub id: String,
    /// Its folder.
    pub dir: RunDir,
    /// What was asked for.
    pub request: Request,
    /// What its journal proves, if the run was interrupted before.
    pub past: Option<Past>,
}

/// A run that was interrupted or has failed, with the data that may exist only in its backups.
#[derive(Clone, Debug)]
pub struct CutOff {
    /// Its id.
    pub id: String,
    /// Its folder.
    pub dir: RunDir,
    /// What was asked for.
    pub request: Request,
    /// What its journal proves.
    pub past: Past,
    /// It ended by itself but failed, and data may exist only in its backups.
    pub ended: bool,
}

impl CutOff {
    /// Its backups whose originals may be gone, by their names in `backup list`, newest last.
    pub fn only_copies(&self) -> Vec<String> {
        let mut gone = self.past.clone();
        gone.copies.retain(|service, _| self.past.touched.contains(service));
        gone.backups(&self.id)
    }
}

/// Begins a run, or continues the newest one if it was interrupted and had the same request. A run that had
/// begun to open its gate is never continued: a new run begins.
pub fn begin(state: &StateDir, request: &Request) -> Result<Run> {
    let all = state.every_run()?;
    if let Some((_, dir)) = all.last().filter(|(number, _)| *number > 0)
        && let Some(cut) = cut_off(dir)?
        && cut.request.same(request)
        && !cut.past.opening
        && !cut.ended
    {
        return Ok(Run { id: cut.id, dir: cut.dir, request: request.clone(), past: Some(cut.past) });
    }
    let dir = state.new_run(|run| files::write_json(&run.request(), request, Mode::Plain))?;
    Ok(Run { id: dir.id(), dir, request: request.clone(), past: None })
}

/// Was the newest run that has done anything cut off while it watched what it had opened, and did it have this request?
/// Then there is nothing to do but to watch, unless something has changed since.
pub fn is_on_watch(state: &StateDir, request: &Request) -> Result<bool> {
    for (_, dir) in state.every_run()?.into_iter().rev() {
        let past = Past::read(&dir)?;
        if past.at.is_some() {
            let same = files::read_json::<Request>(&dir.request()).is_ok_and(|own| own.same(request));
            return Ok(past.on_watch && same && !dir.given_up().exists());
        }
    }
    Ok(false)
}

impl Run {
    /// Marks a failed run whose backups may have the only copies of data. These backups are not deleted, and
    /// the next commands name them.
    pub fn owes(&self, past: &Past) -> Result<Option<CutOff>> {
        let cut = CutOff {
            id: self.id.clone(),
            dir: self.dir.clone(),
            request: self.request.clone(),
            past: past.clone(),
            ended: true,
        };
        if cut.only_copies().is_empty() {
            return Ok(None);
        }
        files::write(&self.dir.owes(), b"", Mode::Plain)?;
        Ok(Some(cut))
    }

    /// All copies of a file in the backups of this run.
    pub fn copies_of(&self, file: &str) -> Vec<PathBuf> {
        let backups = self.dir.backups().unwrap_or_default();
        backups.into_iter().map(|(_, dir)| dir.join(file)).collect()
    }

    /// What the public is told while the run keeps the gate closed.
    pub fn reason(&self) -> String {
        let why = match self.request.command {
            Command::Up => "a release is being deployed",
            Command::Rollback => "the last known-good release is being restored",
            Command::Reset => "the stack is being reset",
            Command::Restore => "a backup is being restored",
        };
        gate::run_reason(&self.id, why)
    }

    /// The same while a person holds the gate closed: that person's reason stays.
    pub fn reason_under(&self, holds: &Observed<Vec<Hold>>) -> String {
        let hold = holds.known().and_then(|holds| Hold::first_of(holds, &self.request.lift));
        hold.map_or_else(|| self.reason(), |hold| hold.reason.clone())
    }

    /// Does it continue an interrupted run?
    pub fn resumed(&self) -> bool {
        self.past.is_some()
    }

    /// Is its folder somewhere else because the state folder had no room?
    pub fn elsewhere(&self, state: &StateDir) -> bool {
        !self.dir.path().starts_with(state.path())
    }
}

/// All runs that were interrupted or failed and were not given up, oldest first, except the run `but`.
pub fn all_cut_off(state: &StateDir, but: Option<&str>) -> Result<Vec<CutOff>> {
    let mut all = Vec::new();
    for (_, dir) in state.every_run()? {
        all.extend(cut_off(&dir)?.filter(|cut| but != Some(cut.id.as_str())));
    }
    Ok(all)
}

/// The snapshot of the deployment before this run, if it was cut off after it had begun to change the stack, and before it
/// let the public in. What it had started may have changed the data since.
pub fn snapshot_before(state: &StateDir, run: &Run) -> Result<Option<PathBuf>> {
    let all = state.every_run()?;
    let Some((_, dir)) = all.iter().rev().find(|(_, dir)| dir.id() != run.id) else { return Ok(None) };
    let left = |cut: &CutOff| cut.request.command == Command::Up && !cut.ended && !cut.past.opening;
    let Some(past) = cut_off(dir)?.filter(left).map(|cut| cut.past) else { return Ok(None) };
    // If the snapshot is that of a still earlier run, the change was made there.
    Ok(past.snapshot.filter(|folder| past.changed || !folder.starts_with(dir.path())))
}

/// How long the public was out in the newest rollbacks that restored a release, in milliseconds.
pub fn downtimes(state: &StateDir) -> Vec<u64> {
    let runs = state.every_run().unwrap_or_default();
    let ended = runs.iter().rev().filter_map(|(_, dir)| files::read_json::<Finished>(&dir.report()).ok());
    let restored = ended.filter(|finished| finished.outcome == Some(Outcome::Restored));
    restored.filter_map(|finished| finished.downtime_ms).take(MEASURED).collect()
}

/// Gives up an interrupted run: it is not continued, and no command names it again. Its backups stay.
pub fn give_up(cut: &CutOff) -> Result<()> {
    files::remove(&cut.dir.owes())?;
    files::write(&cut.dir.given_up(), b"", Mode::Plain)
}

/// Was this run interrupted, or may its backups have the only copies of data? A run whose request cannot be
/// read, such as one of a newer version, cannot be continued.
fn cut_off(dir: &RunDir) -> Result<Option<CutOff>> {
    let ended = dir.report().exists();
    if dir.given_up().exists() || ended && !dir.owes().exists() {
        return Ok(None);
    }
    let Ok(request) = files::read_json::<Request>(&dir.request()) else { return Ok(None) };
    if request.version > FORMAT {
        return Ok(None);
    }
    Ok(Some(CutOff { id: dir.id(), dir: dir.clone(), request, past: Past::read(dir)?, ended }))
}
