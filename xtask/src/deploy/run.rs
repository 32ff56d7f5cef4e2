//! Runs: a rollback, a reset or a deployment. Each has its own folder (`rollbacks/SEQ-TIME/`) with its
//! request, journal, evidence, backups and report. Runs are ordered by their number, never by the clock. This
//! file begins a run or continues an interrupted one, and reads from its journal what that proves: was the
//! gate opened, which data was removed, where are the copies. Nothing is executed here. Called by `rollback`,
//! `up` and `ending`.

use crate::base::files::{self, Mode};
use crate::base::observed::Observed;
use crate::deploy::difference::Scenario;
use crate::deploy::gate;
use crate::deploy::step::Step;
use crate::stack::hold::{self, Hold};
use crate::stack::ledger::Ledger;
use crate::stack::state_dir::{self, RunDir, StateDir};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The format of `request.json`.
const FORMAT: u32 = 2;

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

/// What the journal of a run proves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// When it began, in Unix milliseconds.
    pub began_ms: Option<u64>,
    /// It had begun to open the gate, or to leave it closed under a hold. Everything before that was done, so
    /// the run is not continued.
    pub opening: bool,
    /// The last step as it was planned, if it was done.
    pub last: Option<Step>,
    /// The releases that it could go to, the best first.
    pub targets: Vec<String>,
    /// The step that it was executing, in words.
    pub at: Option<String>,
    /// Copies of data, by service: the last copy that was made while the original was whole.
    pub copies: BTreeMap<String, PathBuf>,
    /// Services whose original is gone: a step removed it, or a step that restores it did not finish.
    pub gone: BTreeSet<String>,
    /// Services whose original may be gone: a step that removes it had begun.
    pub touched: BTreeSet<String>,
}

impl Past {
    /// Reads a journal. An incomplete last line is ignored.
    fn read(dir: &RunDir) -> Result<Self> {
        let bytes = files::read_if_there(&dir.journal())?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut past = Self::default();
        events.for_each(|event| past.learn(&event, dir.path()));
        Ok(past)
    }

    fn learn(&mut self, event: &Value, dir: &Path) {
        match event["event"].as_str() {
            Some("started") => self.began_ms = self.began_ms.or(event["at_ms"].as_u64()),
            Some("targets") => {
                let ids = event["releases"].as_array().into_iter().flatten();
                self.targets = ids.filter_map(Value::as_str).map(str::to_owned).collect();
            }
            Some("step") => {
                let Ok(step) = serde_json::from_value::<Step>(event["action"].clone()) else { return };
                match event["progress"].as_str() {
                    Some("started") => {
                        self.at = Some(step.to_string());
                        self.begins(&step);
                    }
                    // Older versions wrote `missed` for `warned`.
                    Some("done" | "warned" | "skipped" | "missed") => {
                        self.ends(&step, event["folder"].as_str().map(|f| dir.join(f)))
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The backups of run `id` that have its copies of data, by their names in `backup list`, oldest first.
    pub fn backups(&self, id: &str) -> Vec<String> {
        let mut ids: Vec<String> =
            self.copies.values().filter_map(|folder| state_dir::backup_id(id, folder)).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// From its beginning, a step may have removed data. Data is removed completely or not at all, so what
    /// still exists is whole. While data is restored, it is not whole.
    pub fn begins(&mut self, step: &Step) {
        match step {
            Step::OpenGate | Step::KeepClosed { .. } => self.opening = true,
            Step::TearDown => self.touched.extend(self.copies.keys().cloned()),
            Step::RemoveData { services } => self.touched.extend(services.iter().cloned()),
            Step::ReturnData { .. } => self.gone.extend(self.copies.keys().cloned()),
            Step::RestoreData { services, .. } => {
                self.touched.extend(services.iter().cloned());
                self.gone.extend(services.iter().cloned());
            }
            _ => {}
        }
    }

    /// A copy counts only if its step was done, and only if the original was whole.
    pub fn ends(&mut self, step: &Step, folder: Option<PathBuf>) {
        match (step, folder) {
            (Step::Preserve { data }, Some(folder)) => {
                for service in data.iter().filter(|service| !self.gone.contains(*service)) {
                    self.copies.insert(service.clone(), folder.clone());
                }
            }
            (Step::TearDown, _) => self.gone.extend(self.copies.keys().cloned()),
            (Step::OpenGate | Step::KeepClosed { .. }, _) => self.last = Some(step.clone()),
            (Step::RemoveData { services }, _) => self.gone.extend(services.iter().cloned()),
            (Step::ReturnData { .. }, _) => {
                self.gone.clear();
                self.touched.clear();
            }
            (Step::RestoreData { services, .. }, _) => {
                self.gone.retain(|service| !services.contains(service))
            }
            _ => {}
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn step(step: &Step, progress: &str, folder: Option<&str>) -> String {
        json!({"event": "step", "action": step, "progress": progress, "folder": folder}).to_string()
    }

    fn past(lines: &[String]) -> Past {
        let scratch = files::Scratch::new("run-test").unwrap();
        std::fs::write(scratch.path().join("journal.jsonl"), lines.join("\n")).unwrap();
        let mut past = Past::read(&RunDir::new(scratch.path())).unwrap();
        past.copies.values_mut().for_each(|path| *path = path.file_name().unwrap().into());
        past
    }

    #[test]
    fn a_copy_is_the_last_that_was_made_while_the_original_was_whole() {
        let preserve = Step::Preserve { data: vec!["engine".into(), "jobs".into()] };
        let remove = Step::RemoveData { services: vec!["engine".into()] };
        let first = [step(&preserve, "done", Some("backup"))];
        let again = [step(&preserve, "done", Some("backup-2"))];
        let copies =
            |past: Past| past.copies.into_values().map(|p| p.display().to_string()).collect::<Vec<_>>();
        // Nothing was removed, so the newer copy counts.
        assert_eq!(copies(past(&[first.clone(), again.clone()].concat())), ["backup-2", "backup-2"]);
        // A removal had begun. What still exists is whole.
        let begun = past(&[first.clone(), [step(&remove, "started", None)], again.clone()].concat());
        assert_eq!(begun.touched, BTreeSet::from(["engine".to_owned()]));
        assert_eq!(copies(begun), ["backup-2", "backup-2"]);
        // If the original is gone, the older copy counts.
        let removed = past(&[first.clone(), [step(&remove, "done", None)], again.clone()].concat());
        assert_eq!(removed.gone, BTreeSet::from(["engine".to_owned()]));
        assert_eq!(copies(removed), ["backup", "backup-2"]);
        let torn = [first.clone(), [step(&Step::TearDown, "done", None)]].concat();
        assert_eq!(copies(past(&[torn.clone(), again.to_vec()].concat())), ["backup", "backup"]);
        // Data is not an original while it is being restored. After the restore is done, it is.
        let back = Step::ReturnData { except: Vec::new() };
        let half = [first, [step(&back, "started", None)], again.clone()].concat();
        assert_eq!(copies(past(&half)), ["backup", "backup"]);
        let whole =
            [torn, [step(&back, "started", None), step(&back, "done", None)].into(), again.to_vec()].concat();
        assert_eq!(copies(past(&whole)), ["backup-2", "backup-2"]);
        // A copy does not count if its step did not end.
        assert!(past(&[step(&preserve, "started", None)]).copies.is_empty());
    }

    #[test]
    fn a_run_is_over_once_it_began_to_open_the_gate() {
        assert!(!past(&[step(&Step::Verify, "done", None)]).opening);
        let cut = past(&[step(&Step::OpenGate, "started", None), "{\"cut o".into()]);
        assert!(cut.opening && cut.last.is_none());
    }
}
