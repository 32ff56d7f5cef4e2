//! Backups off the host: which of them are sent to the repository of `[remote]`, which it keeps, and how one comes back.
//! How restic is called is in `host/restic`. Called by the command `backup`.
//!
//! A backup is known by the checksum of its `backup.json`, which has the checksums of its files. Ids only name it: two
//! clones of a project may give the same one. So what is here is found again under any id, and nothing is overwritten.
//!
//! The lock of the stack is not taken, because a rollback must not wait for a line that is slow. A backup never changes
//! once it has its `backup.json`. If retention removes one while it is sent, what was stored is not whole; that is seen,
//! and it is removed again. A backup that is fetched comes into the list by one rename. Two commands that use the
//! repository exclude each other by a lock of their own.

mod stored;

use crate::base::failure::{Exit, exit_of, fail, next_of};
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::base::output::Output;
use crate::deploy::backup::{self, Backup, INDEX, Kept};
use crate::deploy::remote::stored::{Age, age, is_id, name_apart, newest, surplus, tags};
use crate::host::restic::Repository;
use crate::stack::ledger::{Ledger, Lock};
use crate::stack::manifest::{MANIFEST_FILE, Manifest, Remote};
use crate::stack::pilot::Pilot;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Error, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
pub use stored::Stored;

/// Files that a backup may have.
const MOST_FILES: usize = 10_000;

/// The repository of a project, and what is sent there.
pub struct Place<'a> {
    repository: Repository,
    rules: Remote,
    project: &'a str,
    state: &'a StateDir,
}

/// What a push did.
#[derive(Debug, Serialize)]
pub struct Pushed {
    /// Where to.
    pub repository: String,
    /// What was sent, and is listed there.
    pub pushed: Vec<String>,
    /// How many backups of this machine were there before.
    pub there: usize,
    /// What is older than what the repository keeps, and so was not sent.
    pub too_old: Vec<String>,
    /// What the repository no longer keeps.
    pub forgotten: Vec<String>,
    /// How much of the data of the repository was read back.
    pub checked: String,
}

/// What a pull did.
#[derive(Debug, Serialize)]
pub struct Pulled {
    /// The backup, as it is called on this machine.
    pub backup: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Was it here already, whole?
    pub was_here: bool,
}

/// `sent-to.json`.
#[derive(Debug, Serialize, Deserialize)]
struct SentTo {
    repository: String,
}

impl<'a> Place<'a> {
    /// The repository that the manifest names. It is that of the stack's folder: where backups go does not depend on
    /// the release that runs. Errors (exit 2 or 4) say what is missing.
    pub fn of(pilot: &'a Pilot) -> Result<Self> {
        // If that cannot be read, a warning has been given, and another one is used.
        let rules =
            Manifest::in_folder(&pilot.pack).map_or_else(|_| pilot.manifest.remote.clone(), |m| m.remote);
        let Some(rules) = rules else {
            let path = pilot.pack.join(MANIFEST_FILE);
            let what = format!("{} has no [remote]: it is unknown where backups go", path.display());
            let version = if path.exists() { "" } else { "version = 2\n" };
            let next = format!(
                "add these lines to it:\n{version}[remote]\nrepository = \"sftp:user@host:/srv/restic\"\n\
                 password_file = \"/etc/restic-password\""
            );
            return Err(fail(Exit::Usage, what, next));
        };
        let repository = Repository::at(&rules.repository, &pilot.pack.join(&rules.password_file))?;
        Ok(Self { repository, rules, project: &pilot.project, state: &pilot.state })
    }

    /// Where it is.
    pub fn location(&self) -> &str {
        self.repository.location()
    }

    /// The backups of this project in the repository, oldest first.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let mut all: Vec<Stored> = self
            .repository
            .list(self.project)?
            .iter()
            .filter_map(|snapshot| Stored::read(snapshot, self.project))
            .collect();
        all.sort_by(|a, b| (a.made_ms, &a.sum).cmp(&(b.made_ms, &b.sum)));
        name_apart(&mut all);
        Ok(all)
    }

    /// Sends backups: the named one, or every one that is not there and that the repository would keep. Then removes
    /// what it no longer keeps, and checks the repository.
    pub fn push(&self, name: Option<&str>, out: &Output) -> Result<Pushed> {
        let _lock = self.lock("backup push")?;
        let wanted = match name {
            Some(name) => vec![backup::named(self.state, name, |_| true)?],
            None => self.own()?,
        };
        self.open(out)?;
        let before = self.list()?;
        let there: BTreeSet<&String> = before.iter().map(|stored| &stored.sum).collect();
        let of_own = wanted.into_iter().map(|kept| Ok((sum_of(&kept)?, kept)));
        let (known, new): (Vec<_>, Vec<_>) =
            of_own.collect::<Result<Vec<_>>>()?.into_iter().partition(|(sum, _)| there.contains(sum));
        let ages = before.iter().map(Stored::age);
        let ages: Vec<Age> = ages.chain(new.iter().map(|(sum, kept)| age(sum, &kept.backup))).collect();
        let stays = newest(&ages, self.rules.keep);
        let (send, old): (Vec<_>, Vec<_>) = new.into_iter().partition(|(sum, _)| stays.contains(sum));
        let too_old: Vec<String> = old.into_iter().map(|(_, kept)| kept.id).collect();
        if let (Some(id), Some(_)) = (too_old.first(), name) {
            let keep = self.rules.keep;
            let what = format!(
                "backup {id} is older than the newest {keep} of its kind, which the repository keeps"
            );
            return Err(fail(Exit::Usage, what, "raise `keep` of [remote] in pilot.toml"));
        }
        let (mut pushed, mut unsound) = (Vec::new(), Vec::new());
        for (sum, kept) in &send {
            // One that is not whole keeps none of the others from being sent.
            match kept.backup.check(&kept.dir) {
                Err(error) if kept.dir.exists() => unsound.push(format!("{error:#}")),
                Err(_) => removed_meanwhile(kept, out),
                Ok(()) if self.send(sum, kept, out)? => pushed.push((sum, kept.id.clone())),
                Ok(()) => {}
            }
        }
        let after = self.list()?;
        for (sum, id) in &pushed {
            let listed = after.iter().any(|stored| stored.sum == **sum);
            ensure!(listed, "backup {id} was sent to {}, but restic does not list it", self.location());
            out.say(format!("{} pushed {id}", out.mark(Some(true))));
        }
        let forgotten = self.tidy(&after, out).map_err(|error| self.sent_but(&pushed, error))?;
        if !unsound.is_empty() {
            let what = format!("not sent, because it is not whole: {}", unsound.join("; "));
            let next = Next::xtask("backup create").so("makes a new one; that one can no longer be restored");
            return Err(self.sent_but(&pushed, fail(Exit::NotRestored, what, next)));
        }
        let checked = self.rules.check.clone();
        let pushed = pushed.into_iter().map(|(_, id)| id).collect();
        Ok(Pushed {
            repository: self.location().to_owned(),
            pushed,
            there: known.len(),
            too_old,
            forgotten,
            checked,
        })
    }

    /// Gets a backup: the named one, or the newest (`latest`). It comes beside the others, and replaces none.
    pub fn pull(&self, name: &str, out: &Output) -> Result<Pulled> {
        let _lock = self.lock("backup pull")?;
        let stored = self.named(name)?;
        for kept in self.own()?.into_iter().filter(|kept| sum_of(kept).is_ok_and(|sum| sum == stored.sum)) {
            match kept.backup.check(&kept.dir) {
                Ok(()) => return Ok(Pulled { backup: kept.id, folder: kept.dir, was_here: true }),
                Err(error) => out.note(format!("backup {} is here, but not whole: {error:#}", kept.id)),
            }
        }
        let staging = self.state.remote().fetched();
        for left in self.state.remote().every_fetched()? {
            files::remove(&left).ok();
        }
        files::make_private_folder(&staging)?;
        let whole = self.fetch(&stored, &staging);
        if whole.is_err() {
            files::remove(&staging).ok();
        }
        whole?;
        files::make_private_folder(&self.state.backups())?;
        let ids: BTreeSet<String> = self.own()?.into_iter().map(|kept| kept.id).collect();
        let short = stored.short();
        let free = |id: &String| !ids.contains(id) && !self.state.backups().join(id).exists();
        let mut names =
            [stored.id.clone(), format!("{}-{short}", stored.id), format!("{}-{short}-2", stored.id)]
                .into_iter();
        let id = names.find(free).with_context(|| {
            format!("every name for backup {} is taken in {}", stored.id, self.state.backups().display())
        })?;
        let folder = self.state.backups().join(&id);
        // What restic has written. After a power cut too a backup is whole, or not in the list.
        files::sync_below(&staging)?;
        // A folder that came meanwhile is not replaced: only an empty one could be.
        files::rename(&staging, &folder).with_context(|| format!("cannot publish {}", folder.display()))?;
        Ok(Pulled { backup: id, folder, was_here: false })
    }

    /// Is it on this machine too?
    pub fn here(&self) -> Result<BTreeSet<String>> {
        Ok(self.own()?.iter().filter_map(|kept| sum_of(kept).ok()).collect())
    }

    fn lock(&self, command: &str) -> Result<Lock> {
        Ledger::new(&self.state.remote()).lock_folder(command)
    }

    /// The backups on this machine.
    fn own(&self) -> Result<Vec<Kept>> {
        let (all, _) = backup::list(self.state)?;
        Ok(all.into_iter().filter(|kept| kept.backup.project == self.project).collect())
    }

    /// The backup that the user named.
    fn named(&self, name: &str) -> Result<Stored> {
        let mut all = self.list()?;
        let at = match name {
            "latest" => all.len().checked_sub(1),
            _ => all.iter().position(|stored| stored.name == name),
        };
        let Some(at) = at else {
            let same: Vec<&str> =
                all.iter().filter(|stored| stored.id == name).map(|stored| stored.name.as_str()).collect();
            let place = self.location();
            let what = match same.as_slice() {
                [] => format!("there is no backup {name} of {} in {place}", self.project),
                same => format!("{place} has several backups {name}: {}", same.join(", ")),
            };
            return Err(fail(Exit::Usage, what, Next::xtask("backup list --remote")));
        };
        Ok(all.swap_remove(at))
    }

    /// Makes sure that there is a repository, and that it is not locked by a process that has ended. It is made if
    /// restic says that there is none, unless one was there before or what is there is something else.
    fn open(&self, out: &Output) -> Result<()> {
        let note = self.state.remote().sent_to();
        let locks = match self.repository.locks()? {
            Some(locks) => locks,
            None => {
                let last: Option<SentTo> = files::read_json(&note).ok();
                if last.is_some_and(|last| last.repository == self.location()) {
                    return Err(self.gone("to which backups were sent before"));
                }
                // restic would begin anew in a folder whose file `config` is lost.
                if self.repository.is_empty_folder() == Some(false) {
                    return Err(self.gone("but other files are in that folder"));
                }
                self.repository.init()?;
                out.note(format!("made a new repository: {}", self.location()));
                0
            }
        };
        if locks > 0 {
            self.repository.unlock()?;
            let stale = locks.saturating_sub(self.repository.locks()?.unwrap_or(0));
            if stale > 0 {
                out.note(format!(
                    "removed from the repository the locks that an interrupted restic had left: {stale}"
                ));
            }
        }
        files::write_json(&note, &SentTo { repository: self.location().to_owned() }, Mode::Plain)
    }

    /// There is no repository where one is expected.
    fn gone(&self, why: &str) -> Error {
        let what = format!("there is no repository at {}, {why}; no new one was made", self.location());
        let next = self.repository.init_by_hand();
        fail(Exit::Host, what, next.so("only if it is lost for good; else find it: is its disk mounted?"))
    }

    /// Sends one backup, and compares what restic stored. False if retention has removed it meanwhile.
    fn send(&self, sum: &str, kept: &Kept, out: &Output) -> Result<bool> {
        ensure!(is_id(&kept.id), "the folder of backup {:?} has a name that no backup has", kept.id);
        let names = kept.backup.files.keys().map(String::as_str).chain([INDEX]);
        let bytes = names.map(|name| files::size(&kept.dir.join(name))).sum::<Result<u64>>()?;
        let count = kept.backup.files.len() as u64 + 1;
        let tags = tags(self.project, sum, kept, bytes);
        let stored = self.repository.store(&kept.dir, self.project, &tags, bytes);
        match stored {
            Ok(stored) if (stored.files, stored.bytes) == (count, bytes) => return Ok(true),
            // Only a part of it may be there, which must not be taken for the whole.
            _ => {
                let all = self.list()?.into_iter().filter(|stored| stored.sum == sum);
                let part: Vec<String> = all.map(|stored| stored.snapshot).collect();
                if !part.is_empty() {
                    self.repository.forget(&part, bytes)?;
                }
            }
        }
        if !kept.dir.exists() {
            removed_meanwhile(kept, out);
            return Ok(false);
        }
        Err(match stored {
            Err(error) => error,
            Ok(stored) => Error::msg(format!(
                "restic stored {} files ({}) of backup {}, which has {count} ({})",
                stored.files,
                files::human(stored.bytes),
                kept.id,
                files::human(bytes)
            )),
        })
    }

    /// Removes what the repository no longer keeps of this project, by its ids, and checks the repository. Returns what
    /// was removed.
    fn tidy(&self, all: &[Stored], out: &Output) -> Result<Vec<String>> {
        let bytes = self.repository.bytes()?;
        let over = surplus(all, self.rules.keep);
        if !over.is_empty() {
            let snapshots: Vec<String> = over.iter().map(|stored| stored.snapshot.clone()).collect();
            self.repository.forget(&snapshots, bytes)?;
        }
        let over: Vec<String> = over.into_iter().map(|stored| stored.name.clone()).collect();
        for name in &over {
            let keep = self.rules.keep;
            out.note(format!("removed backup {name} there: the newest {keep} of each kind are kept"));
        }
        self.repository.check(&self.rules.check, bytes)?;
        Ok(over)
    }

    /// What a push came to that could not tidy up.
    fn sent_but(&self, pushed: &[(&String, String)], error: Error) -> Error {
        let ids: Vec<&str> = pushed.iter().map(|(_, id)| id.as_str()).collect();
        let ids = if ids.is_empty() { "nothing".to_owned() } else { ids.join(", ") };
        let (exit, next) = (exit_of(&error), next_of(&error));
        fail(exit, format!("pushed {ids}; but then: {error:#}"), next.cloned().unwrap_or_default())
    }

    /// Writes a backup of the repository into an empty folder, and verifies that it is the one, whole, and no more.
    fn fetch(&self, stored: &Stored, into: &Path) -> Result<()> {
        self.repository.fetch(&stored.snapshot, into, stored.bytes)?;
        let unsound = |why: String| {
            let what = format!("backup {} in {} is not what was sent: {why}", stored.name, self.location());
            fail(Exit::Host, what, Next::xtask("backup list --remote").so("choose another one"))
        };
        let mut found = BTreeSet::new();
        for name in files::names(into)? {
            let path = into.join(&name);
            let more = if path.is_dir() { files::below(into, &name, MOST_FILES)? } else { vec![name] };
            found.extend(more);
        }
        let link = |name: &&String| into.join(name).symlink_metadata().is_ok_and(|data| !data.is_file());
        if let Some(name) = found.iter().find(link) {
            return Err(unsound(format!("{name} is no file")));
        }
        let backup = match Backup::read(into) {
            Ok(Some(backup)) => backup,
            Ok(None) => return Err(unsound(format!("it has no {INDEX}"))),
            Err(error) => return Err(unsound(format!("{error:#}"))),
        };
        if let Some(name) = found.iter().find(|name| *name != INDEX && !backup.files.contains_key(*name)) {
            return Err(unsound(format!("{name} is not one of its files")));
        }
        if files::sha256(&into.join(INDEX))? != stored.sum {
            return Err(unsound(format!("its {INDEX} was altered")));
        }
        backup.check(into).map_err(|error| unsound(format!("{error:#}")))
    }
}

fn sum_of(kept: &Kept) -> Result<String> {
    files::sha256(&kept.dir.join(INDEX))
}

/// Retention has removed a backup before it was sent.
fn removed_meanwhile(kept: &Kept, out: &Output) {
    out.note(format!("backup {} was removed here before it was sent", kept.id));
}
