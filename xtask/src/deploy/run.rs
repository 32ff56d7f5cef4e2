//! Runs: a rollback, a reset or a deployment, each with a folder of its own (`rollbacks/SEQ-TIME/`) that has what
//! was asked for, the journal, evidence, backups and the report. Their order is the number in front, never
//! the clock. Here a run begins, or one that was cut off is taken up again, and its journal is read for what
//! it proves: was the gate opened, which originals are gone, where their copies are. Nothing is executed here.

use crate::base::files;
use crate::base::files::Mode;
use crate::base::observed::Observed;
use crate::deploy::difference::Scenario;
use crate::deploy::gate;
use crate::deploy::step::Step;
use crate::stack::hold;
use crate::stack::hold::Hold;
use crate::stack::ledger::Ledger;
use crate::stack::state_dir;
use crate::stack::state_dir::{RunDir, StateDir};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Format of `request.json`.
const FORMAT: u32 = 2;

/// What began a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Back to a release.
    #[default]
    Rollback,
    /// A clean stack.
    Reset,
    /// Data and files of a backup.
    Restore,
    /// A new release.
    Up,
}

impl Command {
    /// As the user types it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Reset => "reset",
            Self::Restore => "backup restore",
            Self::Up => "up",
        }
    }
}

/// What was asked for, kept so that a run which was cut off can be taken up again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Of this format.
    pub version: u32,
    /// What began it. Older versions kept rollbacks and resets alone.
    #[serde(default)]
    pub command: Command,
    /// Release, commit or label.
    pub to: Option<String>,
    /// Scenarios that the user named.
    pub scenarios: Vec<Scenario>,
    /// A reset brings the data back that it backed up.
    #[serde(default)]
    pub keep_data: bool,
    /// Backup whose data comes back, and the services that it is brought back for.
    #[serde(default)]
    pub backup: Option<(PathBuf, Vec<String>)>,
    /// Holds that stood when the user asked for an open gate (`--open`).
    #[serde(default)]
    pub lift: Vec<String>,
    /// The user asked for an open gate at the end, whoever closed it.
    #[serde(default)]
    pub open: bool,
}

impl Request {
    /// A request by this command, for nothing in particular.
    pub fn by(command: Command) -> Self {
        Self { version: FORMAT, command, ..Self::default() }
    }

    /// Is that what the other one asked for? Whether the gate is to open at the end is not a part of it.
    fn same(&self, other: &Self) -> bool {
        let asked = |request: &Self| Self { lift: Vec::new(), open: false, ..request.clone() };
        asked(self) == asked(other)
    }

    /// The user wants an open gate at the end: the holds that stand now are lifted then, and no later ones.
    pub fn lift_standing(&mut self, ledger: &Ledger) -> Result<()> {
        self.open = true;
        self.lift = hold::standing(ledger)?.into_iter().map(|hold| hold.id).collect();
        Ok(())
    }

    /// The words that ask for it again.
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
    /// `0012-20261124T084736659`.
    pub id: String,
    /// Its folder.
    pub dir: RunDir,
    /// What was asked for.
    pub request: Request,
    /// What its journal proves, when it was cut off before.
    pub past: Option<Past>,
}

/// What the journal of a run proves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Unix milliseconds of its beginning.
    pub began_ms: Option<u64>,
    /// It came to opening the gate, or to leaving it closed under a hold: all else was done, and it is not taken
    /// up again.
    pub opening: bool,
    /// That was done: the last step, as it was planned.
    pub last: Option<Step>,
    /// Releases that it meant to go to, the best first.
    pub targets: Vec<String>,
    /// Step that it was at, in words.
    pub at: Option<String>,
    /// Copies of data, by service: the last that was made while the original was whole.
    pub copies: BTreeMap<String, PathBuf>,
    /// Services whose original is gone: the step that removed it was done, or one that fills it was not.
    pub gone: BTreeSet<String>,
    /// Services whose original may be gone: a step that removes it had begun.
    pub touched: BTreeSet<String>,
}

impl Past {
    /// Reads a journal. A line that was cut off is no event.
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

    /// The backups of run `id` that its copies of data are in, as `backup list` calls them, oldest first.
    pub fn backups(&self, id: &str) -> Vec<String> {
        let mut ids: Vec<String> =
            self.copies.values().filter_map(|folder| state_dir::backup_id(id, folder)).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// From its first moment on a step may have removed something. Data is removed as a whole or not at all, so
    /// what is still there is whole; while it is filled, it is not.
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

    /// A copy counts once its step is done, and only where the original was whole.
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

/// A run that was cut off, with what it has left behind.
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
    /// It came to an end of its own, which was no good one, with data that may exist in its backups alone.
    pub ended: bool,
}

impl CutOff {
    /// Backups of it whose originals may be gone, as `backup list` calls them, newest last.
    pub fn only_copies(&self) -> Vec<String> {
        let mut gone = self.past.clone();
        gone.copies.retain(|service, _| self.past.touched.contains(service));
        gone.backups(&self.id)
    }
}

/// Begins a run, or takes up the newest one where that was cut off and asked for the same. One that had come
/// as far as opening its gate is over: it is never taken up, and what is asked for now begins anew.
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
    /// As one that has failed, where data may exist in its backups alone: none of them is cleared away, and the
    /// next commands name them.
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

    /// Every copy of a file that the backups of this run have.
    pub fn copies_of(&self, file: &str) -> Vec<PathBuf> {
        let backups = self.dir.backups().unwrap_or_default();
        backups.into_iter().map(|(_, dir)| dir.join(file)).collect()
    }

    /// What the public is told while the gate is closed for it.
    pub fn reason(&self) -> String {
        let why = match self.request.command {
            Command::Up => "a release is being deployed",
            Command::Rollback => "the last known-good release is being restored",
            Command::Reset => "the stack is being reset",
            Command::Restore => "a backup is being restored",
        };
        gate::run_reason(&self.id, why)
    }

    /// The same while somebody holds the gate: what that person gave as the reason stays.
    pub fn reason_under(&self, holds: &Observed<Vec<Hold>>) -> String {
        let hold = holds.known().and_then(|holds| Hold::first_of(holds, &self.request.lift));
        hold.map_or_else(|| self.reason(), |hold| hold.reason.clone())
    }

    /// Was it cut off and taken up again?
    pub fn resumed(&self) -> bool {
        self.past.is_some()
    }

    /// Is it where the state folder had no room for it?
    pub fn elsewhere(&self, state: &StateDir) -> bool {
        !self.dir.path().starts_with(state.path())
    }
}

/// All runs that were cut off and not given up, oldest first; `but` is at work.
pub fn all_cut_off(state: &StateDir, but: Option<&str>) -> Result<Vec<CutOff>> {
    let mut all = Vec::new();
    for (_, dir) in state.every_run()? {
        all.extend(cut_off(&dir)?.filter(|cut| but != Some(cut.id.as_str())));
    }
    Ok(all)
}

/// Gives up a run that was cut off: it is not taken up again, nor spoken of. Its backups stay.
pub fn give_up(cut: &CutOff) -> Result<()> {
    files::remove(&cut.dir.owes())?;
    files::write(&cut.dir.given_up(), b"", Mode::Plain)
}

/// Was this one cut off, or does it owe data? A run whose request cannot be understood, a newer version's too, is
/// none that could be taken up.
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
        // Nothing was removed: the newer copy counts.
        assert_eq!(copies(past(&[first.clone(), again.clone()].concat())), ["backup-2", "backup-2"]);
        // A removal that began may have removed it, and what is still there is whole.
        let begun = past(&[first.clone(), [step(&remove, "started", None)], again.clone()].concat());
        assert_eq!(begun.touched, BTreeSet::from(["engine".to_owned()]));
        assert_eq!(copies(begun), ["backup-2", "backup-2"]);
        // Of what is gone, the older copy counts.
        let removed = past(&[first.clone(), [step(&remove, "done", None)], again.clone()].concat());
        assert_eq!(removed.gone, BTreeSet::from(["engine".to_owned()]));
        assert_eq!(copies(removed), ["backup", "backup-2"]);
        let torn = [first.clone(), [step(&Step::TearDown, "done", None)]].concat();
        assert_eq!(copies(past(&[torn.clone(), again.to_vec()].concat())), ["backup", "backup"]);
        // Half brought back is no original; wholly brought back it is one again.
        let back = Step::ReturnData { except: Vec::new() };
        let half = [first, [step(&back, "started", None)], again.clone()].concat();
        assert_eq!(copies(past(&half)), ["backup", "backup"]);
        let whole =
            [torn, [step(&back, "started", None), step(&back, "done", None)].into(), again.to_vec()].concat();
        assert_eq!(copies(past(&whole)), ["backup-2", "backup-2"]);
        // A copy whose step did not end is none.
        assert!(past(&[step(&preserve, "started", None)]).copies.is_empty());
    }

    #[test]
    fn a_run_is_over_once_it_began_to_open_the_gate() {
        assert!(!past(&[step(&Step::Verify, "done", None)]).opening);
        let cut = past(&[step(&Step::OpenGate, "started", None), "{\"cut o".into()]);
        assert!(cut.opening && cut.last.is_none());
    }
}
