//! Backups: verified copies of the env file, the compose file, the seed, logs and stored data, with
//! checksums. They are under `.pilot/backups/`. A run keeps the backup of what it will overwrite or remove in
//! its own folder, in the same format. A backup counts only when every copy in it was verified. Called by
//! `steps`, by `operations` and by the command `backup`.

use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Freed, Mode};
use crate::base::next::Next;
use crate::base::output::Output;
use crate::base::screen;
use crate::base::threads::side_by_side;
use crate::deploy::archives::{Archiving, Dumped, data_in};
use crate::deploy::paused::Longest;
use crate::engine::roles::Engine;
use crate::stack::layout::Layout;
use crate::stack::model::Instance;
use crate::stack::pilot::Pilot;
use crate::stack::state_dir::{self, RunDir, StateDir};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// In format 1 the files had the names of `Layout::default`; up to format 2 there were no dumps, and no archive was
/// compressed.
const FORMAT: u32 = 3;
/// What a backup has, in its folder.
pub const INDEX: &str = "backup.json";

/// How many logs are copied at a time, and how many bytes of each. These are in memory.
const LOGS: usize = 2;
const LOG: usize = 10 << 20;

/// `backup.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backup {
    version: u32,
    /// The project that was copied.
    pub project: String,
    /// Unix milliseconds.
    pub made_ms: u64,
    /// The release that was running.
    pub release: Option<String>,
    /// Which of the files Compose reads.
    #[serde(default)]
    pub layout: Layout,
    /// Checksums by name.
    pub files: BTreeMap<String, String>,
    /// Data that was dumped, with the way back. Other data was copied.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dumps: BTreeMap<String, Dumped>,
    /// Was it taken before a deployment changed anything? Then it belongs to `release`.
    #[serde(default)]
    pub snapshot: bool,
    /// What is worth knowing of the copies, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// A backup and its folder.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What the user calls it.
    pub id: String,
    /// Its folder.
    pub dir: PathBuf,
    /// What is in it.
    pub backup: Backup,
    /// The folder of the run that made it; none if a user made it.
    pub run: Option<RunDir>,
}

/// What to copy, besides the files of the pack.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// The release that runs.
    pub release: Option<&'a str>,
    /// Services whose stored data is copied.
    pub data: &'a [String],
    /// How long what uses the data may be paused.
    pub longest: Longest,
    /// Should the newest part of every log be copied too?
    pub logs: bool,
    /// Is it a snapshot that belongs to the release?
    pub snapshot: bool,
    /// Where progress is told.
    pub out: &'a Output,
}

impl Backup {
    /// Reads `backup.json`; none if the folder has none. A newer format is refused.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(INDEX);
        if !path.exists() {
            return Ok(None);
        }
        let backup: Self = files::read_json(&path)?;
        ensure!(backup.version <= FORMAT, "{} has the newer format {}", path.display(), backup.version);
        // These names become paths, so each must stay in the folder.
        let own = |name: &&String| files::stays_within(name) && *name != INDEX;
        if let Some(name) = backup.files.keys().find(|name| !own(name)) {
            bail!("{} names {name:?}, which cannot be a file of a backup", path.display());
        }
        Ok(Some(backup))
    }

    /// Services whose data is in it.
    pub fn data(&self) -> Vec<String> {
        self.files.keys().filter_map(|name| data_in(name)).map(str::to_owned).collect()
    }

    /// Are all its files there and unchanged? The error names the first that is not.
    pub fn check(&self, dir: &Path) -> Result<()> {
        self.files.keys().try_for_each(|name| self.file(dir, name).map(drop))
    }

    /// The archive with this data, verified.
    pub fn archive(&self, dir: &Path, data: &str) -> Result<PathBuf> {
        self.file(dir, self.name_of(data).with_context(|| format!("the backup has no data of {data}"))?)
    }

    fn name_of(&self, data: &str) -> Option<&String> {
        self.files.keys().find(|name| data_in(name) == Some(data))
    }

    /// How many bytes the archive with this data has; none if there is none.
    pub fn bytes(&self, dir: &Path, data: &str) -> Result<Option<u64>> {
        self.name_of(data).map(|name| files::size(&dir.join(name))).transpose()
    }

    /// One file, verified.
    fn file(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let path = dir.join(name);
        let sum = self.files.get(name).with_context(|| format!("the backup has no {name}"))?;
        ensure!(
            &files::sha256(&path)? == sum,
            "{} was altered: its checksum differs from the one in backup.json",
            path.display()
        );
        Ok(path)
    }
}

/// The folder for the next backup of a run. A complete backup is never changed. An incomplete one was
/// interrupted while its original still existed, so it is made again.
pub fn next_of_run(run: &RunDir) -> Result<PathBuf> {
    for n in 1.. {
        let dir = run.backup(n);
        if !dir.join(INDEX).exists() {
            files::remove(&dir)?;
            return Ok(dir);
        }
    }
    bail!("no name is left for a backup in {}", run.path().display())
}

/// Makes a backup in the folder `to`, which has nothing else in it, and verifies each copy.
pub fn create(
    pilot: &Pilot,
    engine: &dyn Engine,
    what: Contents<'_>,
    to: &Path,
    deadline: Deadline,
) -> Result<Backup> {
    files::make_private_folder(to)?;
    let mut backup = Backup {
        version: FORMAT,
        project: pilot.project.clone(),
        made_ms: now_ms(),
        release: what.release.map(str::to_owned),
        layout: pilot.layout.clone(),
        files: BTreeMap::new(),
        dumps: BTreeMap::new(),
        snapshot: what.snapshot,
        remarks: Vec::new(),
    };
    for name in pilot.layout.files().chain(&pilot.layout.seed) {
        let from = pilot.source(name, &pilot.env_path);
        if from.is_file() {
            backup.files.insert(name.clone(), files::copy(&from, &to.join(name), Mode::Private)?);
        }
    }
    let Contents { longest, out, .. } = what;
    let archiving = Archiving { pilot, engine, longest, deadline, out };
    for data in what.data {
        let _shown = screen::doing(format!("copy the data of {data}"));
        let archived = archiving.make(data, to);
        let archived = archived.with_context(|| format!("backing up {data}"))?;
        backup.files.insert(archived.name, archived.sum);
        backup.dumps.extend(archived.dumped.map(|dumped| (data.clone(), dumped)));
        backup.remarks.extend(archived.remarks);
    }
    if what.logs {
        let _shown = screen::doing("copy the logs");
        copy_logs(pilot, engine, &mut backup, to, deadline);
    }
    files::write_json(&to.join(INDEX), &backup, Mode::Plain)?;
    Ok(backup)
}

/// Copies the newest part of every log. They are there to be read, and nothing depends on them: what cannot be copied in
/// time is named, and holds up nothing.
fn copy_logs(pilot: &Pilot, engine: &dyn Engine, backup: &mut Backup, to: &Path, deadline: Deadline) {
    let deadline = deadline.within(pilot.manifest.limits.evidence);
    let services = match engine.services(deadline) {
        Ok(services) => services,
        Err(error) => return backup.remarks.push(format!("there is no log in it: {error:#}")),
    };
    let instances = services.iter().flat_map(|(service, all)| {
        all.0.iter().enumerate().map(move |(n, instance)| (numbered(service, n), instance))
    });
    let copy = |(name, instance): (String, &Instance)| {
        let copied = engine.newest_log(instance, LOG, deadline).and_then(|log| {
            files::write(&to.join(format!("{name}.log")), &log.bytes, Mode::Private)?;
            Ok((files::sha256_bytes(&log.bytes), log.is_cut))
        });
        Ok((name, copied))
    };
    for (name, copied) in side_by_side(LOGS, instances.collect(), copy).into_iter().flatten() {
        match copied {
            Ok((sum, is_cut)) => {
                if is_cut {
                    let kept = files::human(LOG as u64);
                    backup.remarks.push(format!("of the log of {name}, only the newest {kept} are in it"));
                }
                backup.files.insert(format!("{name}.log"), sum);
            }
            Err(error) => backup.remarks.push(format!("the log of {name} is not in it: {error:#}")),
        }
    }
}

/// The first part of the file names of the n-th instance of a service, counted from 0.
pub fn numbered(service: &str, n: usize) -> String {
    if n == 0 { service.to_owned() } else { format!("{service}-{}", n + 1) }
}

/// Makes a backup outside a run. It is in the list only when it is complete.
pub fn keep(pilot: &Pilot, engine: &dyn Engine, what: Contents<'_>, deadline: Deadline) -> Result<Kept> {
    let id = pilot.state.next_id()?;
    let staging = pilot.state.backups().join(format!(".{id}"));
    let made = create(pilot, engine, what, &staging, deadline);
    if made.is_err() {
        files::remove(&staging).ok();
    }
    let backup = made?;
    let dir = pilot.state.backups().join(&id);
    files::rename(&staging, &dir).with_context(|| format!("cannot publish {}", dir.display()))?;
    Ok(Kept { id, dir, backup, run: None })
}

/// How many bytes the newest archive of this data has; none if there is none.
pub fn last_size(state: &StateDir, data: &str) -> Result<Option<u64>> {
    let (all, _) = list(state)?;
    let newest = all.iter().rev().find(|kept| kept.backup.name_of(data).is_some());
    newest.map_or(Ok(None), |kept| kept.backup.bytes(&kept.dir, data))
}

/// All backups, also those of runs, oldest first; and what is wrong with the backups that cannot be read.
pub fn list(state: &StateDir) -> Result<(Vec<Kept>, Vec<String>)> {
    let (mut all, mut broken) = (Vec::new(), Vec::new());
    let folder = state.backups();
    for id in files::names(&folder)?.into_iter().filter(|id| !id.starts_with('.')) {
        let dir = folder.join(&id);
        match Backup::read(&dir) {
            Ok(Some(backup)) => all.push(Kept { id, dir, backup, run: None }),
            Ok(None) => broken.push(format!("{} has no {INDEX}", dir.display())),
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    for (_, run) in state.every_run()? {
        for (id, dir) in run.backups()? {
            match Backup::read(&dir) {
                Ok(Some(backup)) => all.push(Kept { id, dir, backup, run: Some(run.clone()) }),
                // It was interrupted while it was made, so its original still exists.
                Ok(None) => {}
                Err(error) => broken.push(format!("{error:#}")),
            }
        }
    }
    all.sort_by_key(|kept| (state_dir::number(&kept.id), kept.backup.made_ms));
    Ok((all, broken))
}

/// Finds the backup that the user named, and checks all its files. `latest` is the newest one that has the
/// wanted content.
pub fn named(state: &StateDir, name: &str, wanted: impl Fn(&Backup) -> bool) -> Result<Kept> {
    let (mut all, _) = list(state)?;
    let at = match name {
        "latest" => all.iter().rposition(|kept| wanted(&kept.backup)),
        _ => all.iter().position(|kept| kept.id == name),
    };
    let Some(at) = at else {
        let ids: Vec<&str> = all.iter().rev().take(5).map(|kept| kept.id.as_str()).collect();
        let there = if ids.is_empty() {
            "there are none".into()
        } else {
            format!("the newest are {}", ids.join(", "))
        };
        return Err(fail(Exit::Usage, format!("no backup {name}; {there}"), Next::xtask("backup list")));
    };
    let kept = all.swap_remove(at);
    kept.backup.check(&kept.dir)?;
    Ok(kept)
}

/// Retention: removes the backups that `surplus` lists, and incomplete ones. `releases` are those that are kept.
pub fn retain(state: &StateDir, keep: usize, releases: &BTreeSet<String>) -> Result<Vec<Freed>> {
    let (all, _) = list(state)?;
    let mut freed = Vec::new();
    for kept in surplus(all, keep, releases) {
        // Rename it first: then a removal that is interrupted leaves no incomplete backup in the list.
        let staging = kept.dir.with_file_name(format!(".old-{}", kept.id));
        if let Err(error) = files::rename(&kept.dir, &staging) {
            bail!("cannot remove {}: {error}", kept.dir.display());
        }
        freed.push(Freed { what: format!("backup {}", kept.id), bytes: files::remove(&staging)? });
    }
    let folder = state.backups();
    for name in files::names(&folder)?.iter().filter(|name| name.starts_with('.')) {
        let bytes = files::remove(&folder.join(name))?;
        freed.push(Freed { what: format!("the incomplete backup {name}"), bytes });
    }
    Ok(freed)
}

/// The folders of the backups that retention does not keep. If one cannot be read, it is kept.
pub fn not_kept(state: &StateDir, keep: usize, releases: &BTreeSet<String>) -> Result<BTreeSet<PathBuf>> {
    let (all, _) = list(state)?;
    Ok(surplus(all, keep, releases).into_iter().map(|kept| kept.dir).collect())
}

/// The backups past the newest `keep` of each kind: of runs or made by a user, with data or without; and the snapshots
/// of each release that is kept. The kinds are counted separately, so a backup without data never displaces one with
/// data. The backups of an interrupted run stay: they may be the only copies of data that it removed. The list is
/// oldest first.
fn surplus(all: Vec<Kept>, keep: usize, releases: &BTreeSet<String>) -> Vec<Kept> {
    let over = |run: &RunDir| run.report().exists() && !run.owes().exists();
    let all = all.into_iter().filter(|kept| kept.run.as_ref().is_none_or(over));
    let mut sorts: BTreeMap<(bool, bool, Option<String>), Vec<Kept>> = BTreeMap::new();
    for kept in all {
        let Backup { snapshot, release, .. } = &kept.backup;
        let belongs_to = release.clone().filter(|release| *snapshot && releases.contains(release));
        let sort = (kept.run.is_some(), kept.backup.data().is_empty(), belongs_to);
        sorts.entry(sort).or_default().push(kept);
    }
    let oldest = |mut sort: Vec<Kept>| {
        sort.truncate(sort.len().saturating_sub(keep.max(1)));
        sort
    };
    sorts.into_values().flat_map(oldest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV_FILE: &str = ".env";

    fn kept(state: &StateDir, id: &str, made_ms: u64) -> PathBuf {
        let dir = state.backups().join(id);
        files::write(&dir.join(ENV_FILE), b"A=1\n", Mode::Private).unwrap();
        let sum = files::sha256(&dir.join(ENV_FILE)).unwrap();
        let files = BTreeMap::from([(ENV_FILE.to_owned(), sum)]);
        let backup = Backup {
            version: FORMAT,
            project: "p".into(),
            made_ms,
            release: None,
            layout: Layout::default(),
            files,
            dumps: BTreeMap::new(),
            snapshot: false,
            remarks: Vec::new(),
        };
        files::write_json(&dir.join(INDEX), &backup, Mode::Plain).unwrap();
        dir
    }

    #[test]
    fn retention_removes_the_oldest_and_what_was_cut_off() {
        let scratch = files::Scratch::new("backup-test").unwrap();
        let state = StateDir::new(scratch.path());
        for n in 1..=4 {
            kept(&state, &format!("b{n}"), n);
        }
        std::fs::create_dir(state.backups().join(".b5")).unwrap();
        let freed = retain(&state, 2, &BTreeSet::new()).unwrap();
        assert_eq!(freed.len(), 3);
        assert!(freed[0].bytes > 0);
        let left: Vec<String> = list(&state).unwrap().0.into_iter().map(|k| k.id).collect();
        assert_eq!(left, ["b3", "b4"]);
    }

    #[test]
    fn an_altered_backup_is_refused_by_name() {
        let scratch = files::Scratch::new("backup-test").unwrap();
        let state = StateDir::new(scratch.path());
        let dir = kept(&state, "b1", 1);
        assert_eq!(named(&state, "latest", |_| true).unwrap().id, "b1");
        std::fs::write(dir.join(ENV_FILE), "A=2\n").unwrap();
        assert!(named(&state, "b1", |_| true).unwrap_err().to_string().contains("was altered"));
        let error = named(&state, "b9", |_| true).unwrap_err().to_string();
        assert!(error.contains("no backup b9") && error.contains("b1"), "{error}");
    }
}
