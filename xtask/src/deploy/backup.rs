//! Backups: env file, compose file, seed, logs and stored data of a pilot, each with its checksum, under
//! `.pilot/backups/`; and the backup that a rollback makes of what it will overwrite or remove, in the
//! rollback's own folder. One format for both. A backup counts once every copy was verified.

use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::files::{Freed, Mode};
use crate::base::next::Next;
use crate::base::proc::cmd;
use crate::engine::roles::Engine;
use crate::release::description::{COMPOSE_FILE, ENV_FILE, SEED_FILE};
use crate::stack::pilot::Pilot;
use crate::stack::state_dir;
use crate::stack::state_dir::{RunDir, StateDir};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;
const INDEX: &str = "backup.json";
const DATA: &str = ".data.tar";

/// `backup.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backup {
    version: u32,
    /// Project that it is of.
    pub project: String,
    /// Unix milliseconds.
    pub made_ms: u64,
    /// Release that ran.
    pub release: Option<String>,
    /// Checksums by name.
    pub files: BTreeMap<String, String>,
}

/// A backup and where it is.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What the user calls it.
    pub id: String,
    /// Its folder.
    pub dir: PathBuf,
    /// What is in it.
    pub backup: Backup,
    /// Folder of the run that made it; none when it was made by hand.
    pub run: Option<RunDir>,
}

/// What goes into a backup beside the files of the pack.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Release that runs.
    pub release: Option<&'a str>,
    /// Services whose stored data is copied.
    pub data: &'a [String],
    /// All log lines of every service too?
    pub logs: bool,
}

impl Backup {
    /// Reads it, or nothing where there is none. A newer format is refused.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(INDEX);
        if !path.exists() {
            return Ok(None);
        }
        let backup: Self = files::read_json(&path)?;
        ensure!(backup.version <= FORMAT, "{} has the newer format {}", path.display(), backup.version);
        // Names are joined to paths, and tell services: each is of one file in the folder.
        let own = |name: &&String| files::stays_within(name) && !name.contains('/') && *name != INDEX;
        if let Some(name) = backup.files.keys().find(|name| !own(name)) {
            bail!("{} names {name:?}, which is no file of a backup", path.display());
        }
        Ok(Some(backup))
    }

    /// Services whose data it has.
    pub fn data(&self) -> Vec<String> {
        self.files.keys().filter_map(|name| name.strip_suffix(DATA)).map(str::to_owned).collect()
    }

    /// Are all its files there and as they were? The error names the first that is not.
    pub fn check(&self, dir: &Path) -> Result<()> {
        self.files.keys().try_for_each(|name| self.file(dir, name).map(drop))
    }

    /// The archive with a service's data, verified.
    pub fn archive(&self, dir: &Path, service: &str) -> Result<PathBuf> {
        self.file(dir, &format!("{service}{DATA}"))
    }

    /// One file, verified.
    fn file(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let path = dir.join(name);
        let sum = self.files.get(name).with_context(|| format!("the backup has no {name}"))?;
        ensure!(
            &files::sha256(&path)? == sum,
            "{} was altered: its checksum is not that of the backup",
            path.display()
        );
        Ok(path)
    }
}

/// A folder for the next backup of a run. Whole ones are never touched again; what was cut off while it was
/// made has its original still, and is made anew.
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

/// Makes a backup in `to`, a folder of its own, verifying each copy.
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
        files: BTreeMap::new(),
    };
    let pack = |file: &str| pilot.pack.join(file);
    let tree = [
        (ENV_FILE, pilot.env_path.clone()),
        (COMPOSE_FILE, pack(&pilot.manifest.compose_file)),
        (SEED_FILE, pack(&pilot.manifest.seed_file)),
    ];
    for (name, from) in tree.iter().filter(|(_, from)| from.is_file()) {
        backup.files.insert((*name).to_owned(), files::copy(from, &to.join(name), Mode::Private)?);
    }
    for service in what.data {
        let name = format!("{service}{DATA}");
        let path = to.join(&name);
        engine.snapshot(service, &path, deadline).with_context(|| format!("backing up {service}"))?;
        let file = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
        // The folder is private already; so is what somebody takes out of it.
        let private = std::fs::Permissions::from_mode(0o600);
        file.set_permissions(private).with_context(|| format!("cannot make {} private", path.display()))?;
        // Readable to its end, or it is no backup.
        let list = cmd("tar", &["--list", "--file", &path.display().to_string()]).run(deadline)?;
        ensure!(!list.trim().is_empty(), "{} is empty", path.display());
        backup.files.insert(name, files::sha256(&path)?);
    }
    if what.logs {
        for (service, instances) in engine.services(deadline)? {
            for (n, instance) in instances.0.iter().enumerate() {
                let name = format!("{}.log", numbered(&service, n));
                let path = to.join(&name);
                let text =
                    engine.logs(instance, None, deadline).with_context(|| format!("logs of {service}"))?;
                files::write(&path, text.as_bytes(), Mode::Private)?;
                backup.files.insert(name, files::sha256(&path)?);
            }
        }
    }
    files::write_json(&to.join(INDEX), &backup, Mode::Plain)?;
    backup.check(to)?;
    Ok(backup)
}

/// What the files of the n-th instance of a service begin with, counted from 0.
pub fn numbered(service: &str, n: usize) -> String {
    if n == 0 { service.to_owned() } else { format!("{service}-{}", n + 1) }
}

/// Makes a backup by itself: listed once it is whole.
pub fn keep(pilot: &Pilot, engine: &dyn Engine, what: Contents<'_>, deadline: Deadline) -> Result<Kept> {
    let id = pilot.state.next_id()?;
    let staging = pilot.state.backups().join(format!(".{id}"));
    let made = create(pilot, engine, what, &staging, deadline);
    if made.is_err() {
        files::remove(&staging).ok();
    }
    let backup = made?;
    let dir = pilot.state.backups().join(&id);
    std::fs::rename(&staging, &dir).with_context(|| format!("cannot publish {}", dir.display()))?;
    Ok(Kept { id, dir, backup, run: None })
}

/// All backups, oldest first, those of runs too, and what is wrong with the others.
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
                // It was cut off while it was made: its original is still there.
                Ok(None) => {}
                Err(error) => broken.push(format!("{error:#}")),
            }
        }
    }
    all.sort_by_key(|kept| (state_dir::number(&kept.id), kept.backup.made_ms));
    Ok((all, broken))
}

/// A backup by what the user typed, checked whole; `latest` is the newest that has what is wanted.
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

/// Retention: removes what `surplus` says, and what was cut off while it was made.
pub fn retain(state: &StateDir, keep: usize) -> Result<Vec<Freed>> {
    let (all, _) = list(state)?;
    let mut freed = Vec::new();
    for kept in surplus(all, keep) {
        // Out of the list first: a removal that is cut off leaves no half backup in it.
        let staging = kept.dir.with_file_name(format!(".old-{}", kept.id));
        if let Err(error) = std::fs::rename(&kept.dir, &staging) {
            bail!("cannot remove {}: {error}", kept.dir.display());
        }
        freed.push(Freed { what: format!("backup {}", kept.id), bytes: files::remove(&staging)? });
    }
    let folder = state.backups();
    for name in files::names(&folder)?.iter().filter(|name| name.starts_with('.')) {
        let bytes = files::remove(&folder.join(name))?;
        freed.push(Freed { what: format!("half a backup, {name}"), bytes });
    }
    Ok(freed)
}

/// Of these backups, oldest first, those past the newest `keep` of each sort (of runs or by hand, with data or
/// without), so that none without data pushes one with data out. A run that was cut off keeps its own: they may be
/// the only copies of what it has removed.
fn surplus(all: Vec<Kept>, keep: usize) -> Vec<Kept> {
    let over = |run: &RunDir| run.report().exists() && !run.owes().exists();
    let all = all.into_iter().filter(|kept| kept.run.as_ref().is_none_or(over));
    let mut sorts: BTreeMap<(bool, bool), Vec<Kept>> = BTreeMap::new();
    for kept in all {
        sorts.entry((kept.run.is_some(), kept.backup.data().is_empty())).or_default().push(kept);
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

    fn kept(state: &StateDir, id: &str, made_ms: u64) -> PathBuf {
        let dir = state.backups().join(id);
        files::write(&dir.join(ENV_FILE), b"A=1\n", Mode::Private).unwrap();
        let sum = files::sha256(&dir.join(ENV_FILE)).unwrap();
        let files = BTreeMap::from([(ENV_FILE.to_owned(), sum)]);
        let backup = Backup { version: FORMAT, project: "p".into(), made_ms, release: None, files };
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
        let freed = retain(&state, 2).unwrap();
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
