//! What the journal of a run proves: was the gate opened, which data was removed, where are the copies. Read
//! from disk for a run that was interrupted, and kept up to date while a run is executed. Called by `run` and
//! by `execution`.

use crate::base::files;
use crate::deploy::step::Step;
use crate::stack::state_dir::{self, RunDir};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What the journal of a run proves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// When it began, in Unix milliseconds.
    pub began_ms: Option<u64>,
    /// It had begun to open the gate, or to leave it closed under a hold. Everything before that was done, so
    /// the run is not continued.
    pub opening: bool,
    /// It had let the public in, or left it shut out under a hold, and its watch was not over: nothing was recorded yet.
    pub on_watch: bool,
    /// Its plan ends with a watch.
    watches: bool,
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
    /// The folder of the snapshot that it has taken before it changed anything.
    pub snapshot: Option<PathBuf>,
    /// It had begun to change what runs, or which release that is. What it starts may write to the data.
    pub changed: bool,
}

impl Past {
    /// Reads a journal. An incomplete last line is ignored.
    pub fn read(dir: &RunDir) -> Result<Self> {
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
            Some("planned") => {
                let steps = event["plan"]["steps"].as_array().into_iter().flatten();
                let mut steps = steps.filter_map(|step| serde_json::from_value::<Step>(step.clone()).ok());
                self.watches = steps.any(|step| matches!(step, Step::KeepWatch { .. }));
            }
            Some("finished") => self.on_watch = false,
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

    /// The originals of this data are there again, as they were copied.
    pub fn is_back(&mut self, data: &[String]) {
        self.gone.retain(|name| !data.contains(name));
        self.touched.retain(|name| !data.contains(name));
    }

    /// From its beginning, a step may have removed data. Data is removed completely or not at all, so what
    /// still exists is whole. While data is restored, it is not whole.
    pub fn begins(&mut self, step: &Step) {
        match step {
            Step::OpenGate | Step::StartGate { .. } | Step::KeepClosed { .. } => self.opening = true,
            // The run before this one has opened the gate.
            Step::KeepWatch { .. } => (self.opening, self.on_watch) = (true, true),
            Step::TearDown => self.touched.extend(self.copies.keys().cloned()),
            Step::RemoveData { services } => self.touched.extend(services.iter().cloned()),
            Step::ReturnData { .. } => self.gone.extend(self.copies.keys().cloned()),
            Step::RestoreData { services, .. } => {
                self.touched.extend(services.iter().cloned());
                self.gone.extend(services.iter().cloned());
            }
            Step::RecordRelease | Step::Apply { .. } | Step::RemoveServices { .. } => self.changed = true,
            // Every step is named, so that the compiler asks about a new one.
            Step::CloseGate
            | Step::StopGate { .. }
            | Step::StopGateway
            | Step::StopPublished { .. }
            | Step::FreeSpace
            | Step::Preserve { .. }
            | Step::LoadImages { .. }
            | Step::Retag
            | Step::RestoreEnvFile
            | Step::AskEngine
            | Step::CloseGateOnDisk
            | Step::Snapshot { .. }
            | Step::Settle
            | Step::Seed
            | Step::Steady
            | Step::Verify => {}
        }
    }

    /// A copy counts only if its step was done, and only if the original was whole.
    pub fn ends(&mut self, step: &Step, folder: Option<PathBuf>) {
        match (step, folder) {
            (Step::Preserve { data, .. }, Some(folder)) => {
                for service in data.iter().filter(|service| !self.gone.contains(*service)) {
                    self.copies.insert(service.clone(), folder.clone());
                }
            }
            (Step::TearDown, _) => self.gone.extend(self.copies.keys().cloned()),
            (Step::OpenGate | Step::StartGate { .. } | Step::KeepClosed { .. }, _) => {
                self.last = Some(step.clone());
                self.on_watch = self.watches;
            }
            (Step::RemoveData { services }, _) => self.gone.extend(services.iter().cloned()),
            (Step::ReturnData { .. }, _) => {
                self.gone.clear();
                self.touched.clear();
            }
            (Step::RestoreData { services, .. }, _) => {
                self.gone.retain(|service| !services.contains(service))
            }
            (Step::Snapshot { .. }, Some(folder)) => self.snapshot = Some(folder),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn step(step: &Step, progress: &str, folder: Option<&str>) -> String {
        json!({"event": "step", "action": step, "progress": progress, "folder": folder}).to_string()
    }

    fn past(lines: &[String]) -> Past {
        let scratch = files::Scratch::new("past-test").unwrap();
        std::fs::write(scratch.path().join("journal.jsonl"), lines.join("\n")).unwrap();
        let mut past = Past::read(&RunDir::new(scratch.path())).unwrap();
        past.copies.values_mut().for_each(|path| *path = path.file_name().unwrap().into());
        past
    }

    #[test]
    fn a_copy_is_the_last_that_was_made_while_the_original_was_whole() {
        let preserve = Step::Preserve { data: vec!["engine".into(), "jobs".into()], stop: Vec::new() };
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

    /// As a version of before wrote it: `missed` for `warned`, `point-tags` for `retag`, `replace` for `apply`.
    #[test]
    fn a_journal_of_before_is_read() {
        let lines: Vec<String> =
            include_str!("captured/journal_1.jsonl").lines().map(str::to_owned).collect();
        let past = past(&lines);
        assert_eq!(
            (past.began_ms, past.targets.as_slice()),
            (Some(1_795_570_212_345), &["r2", "r1"].map(str::to_owned)[..])
        );
        let copies: Vec<_> =
            past.copies.iter().map(|(data, folder)| (data.as_str(), folder.display().to_string())).collect();
        assert_eq!(copies, [("gateway", "backup".to_owned()), ("jobs", "backup".to_owned())]);
        assert_eq!(past.gone.len(), 2, "{past:?}");
        assert_eq!(past.at.as_deref(), Some("apply the release"));
        assert!(past.changed && !past.opening);
    }

    #[test]
    fn what_was_called_watch_is_the_wait_before_the_gate_opens() {
        let steady = json!({"event": "step", "action": {"step": "watch"}, "progress": "started"}).to_string();
        let past = past(&[steady]);
        assert_eq!(past.at, Some(Step::Steady.to_string()));
        assert!(!past.opening);
    }

    #[test]
    fn a_run_is_on_watch_from_its_opening_until_it_has_ended() {
        let plan = |steps: &[Step]| {
            json!({"event": "planned", "plan": {"release": "r2", "scenarios": [], "steps": steps}})
                .to_string()
        };
        let watch = Step::KeepWatch { for_ms: 10_000 };
        let planned = plan(&[Step::OpenGate, Step::Retag, watch.clone()]);
        let opened = [planned, step(&Step::OpenGate, "done", None)];
        let on_watch = |more: &[String]| past(&[&opened, more].concat()).on_watch;
        assert!(!past(&opened[..1]).on_watch && on_watch(&[]));
        assert!(on_watch(&[step(&watch, "started", None)]) && on_watch(&[step(&watch, "done", None)]));
        assert!(!on_watch(&[json!({"event": "finished"}).to_string()]));
        // Without a watch in its plan, a run is over when its gate is open.
        assert!(!past(&[plan(&[Step::OpenGate, Step::Retag]), opened[1].clone()]).on_watch);
        // It does nothing else.
        let only = past(&[plan(std::slice::from_ref(&watch)), step(&watch, "started", None)]);
        assert!(only.on_watch && only.opening && !only.changed);
    }
}
