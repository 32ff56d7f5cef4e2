//! Releases at the engine, for every client of it: a record for each, with what `release.json` says, and its files. The
//! folder has a copy of the files, and the images, which the engine has by themselves. Which of both is missing decides
//! the direction: `pull` fetches what the folder lacks, `put_back` gives the engine what it has lost. Called by `store`,
//! by every command when it begins, and under the lock when its work is done.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Mode};
use crate::release::description::{Release, mode_of};
use crate::release::form::{DESCRIPTION, is_release_id};
use crate::release::store::{Store, number};
use crate::stack::shelf::Kept;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// What begins the names of releases at the engine.
const RELEASE: &str = "release.";

/// How long the files of one release may take: all but its images, which the engine has by themselves.
const FILES: Duration = Duration::from_secs(60);

/// The name of the mark in the folder of a release that was fetched. It is not one of its files.
const FETCHED: &str = ".fetched";

/// The largest file of a release, in bytes, as in `export`.
const LARGEST: u64 = 64 << 20;

fn name(id: &str) -> String {
    format!("{RELEASE}{id}")
}

impl Store {
    /// Ids of the releases whose folders are here.
    pub(super) fn ids_here(&self) -> Result<BTreeSet<String>> {
        // A name that begins with a dot is an unpublished release.
        let names = files::names(&self.state.releases())?;
        Ok(names.into_iter().filter(|name| !name.starts_with('.')).collect())
    }

    /// Ids of the releases at the engine, as far as it has answered.
    pub(super) fn shared_ids(&self) -> Result<BTreeSet<String>> {
        let Some(shared) = self.ledger.shared() else { return Ok(BTreeSet::new()) };
        let gone = self.ledger.gone()?;
        let all = shared.named(RELEASE).into_iter().map(|(id, _)| id);
        Ok(all.filter(|id| is_release_id(id) && !gone.is_removed(number(id))).collect())
    }

    fn kept(&self, id: &str) -> Option<Kept> {
        self.ledger.shared()?.newest(&name(id))
    }

    /// A release as every client knows it; nothing if the engine does not have it, or has not answered.
    pub(super) fn shared(&self, id: &str) -> Option<Result<Release>> {
        let kept = self.kept(id)?;
        let release = Release::parse(kept.text.as_bytes());
        Some(release.and_then(|release| {
            ensure!(release.id == id, "the record of release {id} is about release {}", release.id);
            Ok(release)
        }))
    }

    /// Gives the engine a new release, whose files are in `folder`. It is an error if it has one with this id.
    pub(super) fn share(&self, release: &Release, folder: &Path) -> Result<()> {
        let Some(shared) = self.ledger.shared() else { return Ok(()) };
        let (id, name) = (&release.id, name(&release.id));
        shared.shelf.store(&name, folder, Deadline::after(FILES))?;
        let added = shared.add(&name, &serde_json::to_string(release)?, true)?;
        ensure!(added, "another client has made a release {id} at this moment; run the command again");
        Ok(())
    }

    /// Tells every client what has changed of a release.
    pub(super) fn share_change(&self, release: &Release) -> Result<()> {
        let Some(shared) = self.ledger.shared() else { return Ok(()) };
        let name = name(&release.id);
        if !shared.is_known() {
            shared.look()?;
        }
        match shared.newest(&name) {
            Some(_) => shared.replace(&name, &serde_json::to_string(release)?, true),
            // The engine has lost it: it gets all of it back when the work is done.
            None => Ok(()),
        }
    }

    /// Removes a release at the engine. Other clients learn that this was on purpose.
    pub(super) fn unshare(&self, id: &str) -> Result<()> {
        let Some(shared) = self.ledger.shared() else { return Ok(()) };
        self.ledger.note_gone(&|gone| gone.remove(number(id)))?;
        shared.remove(&name(id))?;
        shared.shelf.forget(&name(id), Deadline::after(FILES))
    }

    /// Fetches the files of every release that the folder lacks. One that cannot be fetched is no reason not to go back to
    /// another one. Returns those, in words.
    fn pull(&self) -> Result<Vec<String>> {
        let missing = self.shared_ids()?.into_iter().filter(|id| !self.dir(id).exists());
        let failed = missing.filter_map(|id| {
            let error = self.fetch(&id).err()?;
            Some(format!("release {id} of another client could not be fetched: {error:#}"))
        });
        Ok(failed.collect())
    }

    /// Was it fetched from the engine? Then another client has its images and the xtask that made it.
    pub fn is_fetched(&self, id: &str) -> bool {
        self.file(id, FETCHED).exists()
    }

    /// From now on its images and the xtask that made it are here too.
    pub(super) fn is_complete(&self, id: &str) -> Result<()> {
        files::remove(&self.file(id, FETCHED)).map(drop)
    }

    fn fetch(&self, id: &str) -> Result<()> {
        let (shared, kept) =
            self.ledger.shared().zip(self.kept(id)).context("the engine does not have it")?;
        let release = self.shared(id).context("the engine does not have it")??;
        let staging = self.dir(&format!(".{id}.{}", std::process::id()));
        files::remove(&staging)?;
        files::make_private_folder(&staging)?;
        let taken = shared
            .shelf
            .fetch(&kept, &mut |from| unpack(from, &release, &staging), Deadline::after(FILES))
            .and_then(|()| {
                for (name, sum) in &release.files {
                    let found = files::sha256(&staging.join(name))?;
                    ensure!(found == *sum, "{name} is damaged: its checksum is not the one in the release");
                }
                for folder in &release.layout.build_folders {
                    files::make_folder(&staging.join(folder))?;
                }
                files::write(&staging.join(FETCHED), b"", Mode::Plain)?;
                files::write_json(&staging.join(DESCRIPTION), &release, Mode::Plain)
            });
        // Another command of this folder may have fetched it meanwhile.
        let published = taken.and_then(|()| match files::rename(&staging, &self.dir(id)) {
            Err(_) if self.dir(id).join(DESCRIPTION).exists() => Ok(()),
            other => other.with_context(|| format!("cannot publish release {id}")),
        });
        files::remove(&staging).ok();
        published
    }

    /// Copies what other clients have done into the folder, as far as this needs no lock. Returns what could not be
    /// copied, in words. It is an error if the engine does not answer.
    pub fn meet(&self) -> Result<Vec<String>> {
        self.ledger.look()?;
        self.pull()
    }

    /// Makes the folder agree with what every client knows. Called under the lock, before anything is decided: a
    /// release that another client has removed is removed here; one of the same id that is another release gets an id
    /// of its own; the description is that of the engine. Returns what was done, in words.
    pub fn agree(&self) -> Result<Vec<String>> {
        let (gone, shared, mut told) = (self.ledger.gone()?, self.shared_ids()?, Vec::new());
        for id in self.ids_here()?.into_iter().filter(|id| is_release_id(id)) {
            if gone.is_removed(number(&id)) {
                // Rename it first: then a removal that is cut off leaves no incomplete release in the list.
                let staging = self.dir(&format!(".{id}-old"));
                files::rename(&self.dir(&id), &staging)
                    .with_context(|| format!("cannot remove release {id}"))?;
                files::remove(&staging)?;
                told.push(format!("release {id} was removed here too: another client had removed it"));
                continue;
            }
            if !shared.contains(&id) {
                continue;
            }
            let (Ok(here), Ok(there)) = (self.read_here(&id), self.read(&id)) else { continue };
            if is_same(&here, &there) {
                if serde_json::to_value(&here)? != serde_json::to_value(&there)? {
                    files::write_json(&self.file(&id, DESCRIPTION), &there, Mode::Plain)?;
                }
                continue;
            }
            told.push(self.renumber(here)?);
        }
        told.extend(self.pull()?);
        Ok(told)
    }

    /// Two clients that did not know of each other have made a release of the same id.
    fn renumber(&self, mut release: Release) -> Result<String> {
        let old = std::mem::replace(&mut release.id, self.free_id()?);
        let (from, to) = (self.dir(&old), self.dir(&release.id));
        files::rename(&from, &to).with_context(|| format!("cannot rename {}", from.display()))?;
        files::write_json(&to.join(DESCRIPTION), &release, Mode::Plain)?;
        files::remove(&self.state.pin(&old))?;
        Ok(format!("release {old} of this folder is now {}: another client has a release {old}", release.id))
    }

    /// Gives the engine the releases that it has lost, and those of a folder that was used before the engine kept any.
    /// Returns their ids. Called under the lock.
    pub fn put_back(&self) -> Result<Vec<String>> {
        if !self.ledger.shared().is_some_and(|shared| shared.is_known()) {
            return Ok(Vec::new());
        }
        let (gone, there, mut put) = (self.ledger.gone()?, self.shared_ids()?, Vec::new());
        for id in self.ids_here()?.into_iter().filter(|id| is_release_id(id) && !there.contains(id)) {
            let Ok(release) = self.read_here(&id) else { continue };
            if !gone.is_removed(number(&id)) && self.check_files(&release).is_ok() {
                self.share(&release, &self.dir(&id))?;
                put.push(id);
            }
        }
        Ok(put)
    }
}

/// Are both the same release, whatever became of it since? It may have been restored on another engine meanwhile.
fn is_same(one: &Release, other: &Release) -> bool {
    let here = Release { engine: one.engine.clone(), ..other.clone() };
    one.created_ms == other.created_ms && one.files == other.files && one.same_content(&here)
}

/// Unpacks the files of a release, and no others, from what the engine gives out.
fn unpack(from: &mut dyn Read, release: &Release, to: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries().context("it is no archive")? {
        let mut entry = entry.context("it is no archive")?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().context("it has a name that cannot be read")?.into_owned();
        // The first part is the folder that all of them are in.
        let name: std::path::PathBuf = path.components().skip(1).collect();
        let name = name.display().to_string();
        if name == DESCRIPTION || name == FETCHED {
            continue;
        }
        if !release.files.contains_key(&name) {
            bail!("it has the file {name:?}, which the release does not have");
        }
        ensure!(entry.size() <= LARGEST, "{name} is larger than {}", files::human(LARGEST));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
        files::write(&to.join(&name), &bytes, mode_of(&name, &release.layout))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_that_was_restored_on_another_engine_is_the_same_one() {
        let made = Release::unrecorded("v1.0.0", "compose", Default::default());
        let restored = Release { engine: "swarm".into(), verified_run: Some(3), ..made.clone() };
        assert!(is_same(&made, &restored));
        let other = Release { created_ms: made.created_ms + 1, ..made.clone() };
        assert!(!is_same(&made, &other));
    }
}
