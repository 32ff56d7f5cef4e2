//! A release as one file that starts a pilot on another host: its folder, its images and its xtask, each with
//! a checksum. The file contains the env file with its secrets, so it is private (0600).
//!
//! An archive can come from anybody. An import therefore checks the whole archive before it writes anything.
//! Names in the archive are compared with expected names; they are never used as paths.

use crate::base::archive::{Archive, Timed};
use crate::base::deadline::{Deadline, for_bytes};
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode};
use crate::base::machine;
use crate::base::next::Next;
use crate::base::passing::Passing;
use crate::base::screen;
use crate::release::blobs::LARGEST_INDEX;
use crate::release::description::{Image, Release, mode_of};
use crate::release::form::{DESCRIPTION, is_release_id};
use crate::release::images::Needed;
use crate::release::store::Store;
use crate::stack::pilot::Pilot;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// In format 1 each image was an archive.
const FORMAT: u32 = 2;
const INDEX: &str = "export.json";

/// Limit for packing or unpacking, without the time for the bytes.
const LIMIT: Duration = Duration::from_secs(300);

/// Largest index and description, and largest other file of a release (apart from
/// images and xtask), in bytes.
const LARGEST_TEXT: u64 = 1 << 20;
const LARGEST_FILE: u64 = 64 << 20;

/// `export.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    project: String,
    release: String,
    /// Bytes of every other file, by name. Exports of older versions do not have it.
    #[serde(default)]
    sizes: Option<BTreeMap<String, u64>>,
}

/// One file of a release: its name in an archive, its path in a store, and its SHA-256.
struct Part {
    name: String,
    path: PathBuf,
    sum: String,
    mode: Mode,
    largest: u64,
}

impl Part {
    fn take(&self, archive: &Archive, to: &mut dyn Write, deadline: Deadline) -> Result<()> {
        let sum = archive.copy(&self.name, to, deadline)?;
        ensure!(sum == self.sum, "{} is damaged: its checksum is not the one in the release", self.name);
        Ok(())
    }

    fn unpack(&self, archive: &Archive, deadline: Deadline) -> Result<()> {
        files::make_private_folder(self.path.parent().context("a file needs a folder")?)?;
        let mut file = files::create_new(&self.path, self.mode)?;
        self.take(archive, &mut file, deadline)?;
        file.sync_all().with_context(|| format!("cannot sync {}", self.path.display()))
    }
}

/// All files of a release, except its description. `read` reads a file of the store.
fn parts(store: &Store, release: &Release, read: impl Fn(&Path) -> Result<Vec<u8>>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (name, sum) in &release.files {
        let mode = mode_of(name, &release.layout);
        let path = store.file(&release.id, name);
        let name = format!("releases/{}/{name}", release.id);
        parts.push(Part { name, path, sum: sum.clone(), mode, largest: LARGEST_FILE });
    }
    for image in release.images.values() {
        for Needed { path, sum } in store.needed_by(image, &read)? {
            let name = name_of(store, &path)?;
            parts.push(Part { name, path, sum, mode: Mode::Plain, largest: u64::MAX });
        }
    }
    let (name, path) = (format!("bin/{}", release.xtask), store.xtask(&release.xtask));
    parts.push(Part { name, path, sum: release.xtask.clone(), mode: Mode::Program, largest: u64::MAX });
    // Two services may use the same image, and two images the same blob.
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    parts.dedup_by(|a, b| a.name == b.name);
    Ok(parts)
}

/// The name of a file of the store in an archive.
fn name_of(store: &Store, path: &Path) -> Result<String> {
    Ok(path.strip_prefix(store.folder())?.display().to_string())
}

fn description(id: &str) -> String {
    format!("releases/{id}/{DESCRIPTION}")
}

/// The deadline for this number of bytes.
fn limit(bytes: u64) -> Deadline {
    Deadline::after(for_bytes(LIMIT, bytes))
}

/// Checks a release, writes it into one archive, and reads the archive back.
pub fn export(pilot: &Pilot, store: &Store, release: &Release, to: &Path) -> Result<()> {
    let _shown = screen::doing(format!("write release {} into one archive", release.id));
    store.check(release)?;
    let mut paths = vec![(description(&release.id), store.file(&release.id, DESCRIPTION))];
    paths.extend(parts(store, release, files::read)?.into_iter().map(|part| (part.name, part.path)));
    let sizes: BTreeMap<String, u64> =
        paths.iter().map(|(name, path)| Ok((name.clone(), files::size(path)?))).collect::<Result<_>>()?;
    let deadline = limit(sizes.values().sum());
    let index = Index {
        version: FORMAT,
        project: pilot.project.clone(),
        release: release.id.clone(),
        sizes: Some(sizes.clone()),
    };
    let staging = to.with_extension(format!("{}.new", std::process::id()));
    files::write(&staging, b"", Mode::Private)?;
    let packed = pack(&staging, &index, &paths, deadline).and_then(|()| {
        let mut written = Archive::open(&staging, deadline)?.sizes();
        written.remove(INDEX);
        ensure!(written == sizes, "a file of release {} changed while it was packed", release.id);
        files::rename(&staging, to).with_context(|| format!("cannot write {}", to.display()))
    });
    if packed.is_err() {
        files::remove(&staging).ok();
    }
    packed
}

fn pack(to: &Path, index: &Index, paths: &[(String, PathBuf)], deadline: Deadline) -> Result<()> {
    let cannot = || format!("cannot write {}", to.display());
    let file = File::options().write(true).open(to).with_context(cannot)?;
    let mut archive = tar::Builder::new(file);
    let mut add = |name: &str, bytes: u64, from: &mut dyn Read| -> Result<()> {
        // The ustar format allows names of up to 255 bytes. An import accepts no other format.
        let mut header = tar::Header::new_ustar();
        header.set_path(name).with_context(|| format!("the name {name:?} is too long for a tar archive"))?;
        header.set_mode(0o600);
        header.set_size(bytes);
        header.set_cksum();
        archive.append(&header, Timed { inner: from, deadline }).with_context(cannot)
    };
    let text = serde_json::to_vec_pretty(index)?;
    add(INDEX, text.len() as u64, &mut text.as_slice())?;
    for (name, path) in paths {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let bytes = files::size(path)?;
        add(name, bytes, &mut Passing::new(file.take(bytes), format!("pack {name}"), Some(bytes)))?;
    }
    archive.into_inner().and_then(|file| file.sync_all()).with_context(cannot)
}

/// Imports a release and gives it a new id. If the store has a release with the same content, that
/// one is returned. Errors: exit 1 if the archive is refused or there is no space, exit 2 if the file is no
/// archive of a release, or if it belongs to another project.
pub fn import(pilot: &Pilot, store: &Store, from: &Path) -> Result<Release> {
    let _shown = screen::doing(format!("read {}", from.display()));
    store.remove_cut_off_imports()?;
    let scratch = store.import_folder();
    let taken = take_in(pilot, store, from, &scratch);
    files::remove(&scratch)?;
    taken
}

/// Why this file cannot be an archive of a release; nothing if it begins as one does.
fn no_archive(path: &Path) -> Option<String> {
    let begins = || -> Result<bool> {
        let mut file = files::open_regular(path)?;
        let mut head = [0; 512];
        Ok(file.read_exact(&mut head).is_ok() && head[257..262] == *b"ustar")
    };
    match begins() {
        Ok(true) => None,
        Ok(false) => Some("it does not begin as a tar archive does".into()),
        Err(error) => Some(format!("{error:#}")),
    }
}

fn take_in(pilot: &Pilot, store: &Store, from: &Path, scratch: &Path) -> Result<Release> {
    let wrong = |why: String| {
        let what = format!("cannot import {}, which is no archive of a release: {why}", from.display());
        let next = Next::xtask("releases export RELEASE")
            .so("on the host that has the release, then import the file that it names");
        fail(Exit::Usage, what, next)
    };
    if let Some(why) = no_archive(from) {
        return Err(wrong(why));
    }
    let refused = |error: anyhow::Error| {
        let what = format!("cannot import {}: {error:#}", from.display());
        fail(
            Exit::NotRestored,
            what,
            Next::xtask("releases export RELEASE")
                .so("on the host that the archive comes from, to make it again"),
        )
    };
    let archive = Archive::open(from, Deadline::after(LIMIT)).map_err(refused)?;
    if !archive.sizes().contains_key(INDEX) {
        return Err(wrong(format!("it has no {INDEX}")));
    }
    let index = index(&archive).map_err(refused)?;
    if index.project != pilot.project {
        let what = format!("cannot import {}: it belongs to project {:?}", from.display(), index.project);
        let next = Next::xtask(&format!("--project {} releases import FILE", index.project));
        return Err(fail(Exit::Usage, what, next));
    }
    let packed = Store::new(&StateDir::new(scratch));
    let release = described(&archive, &index).map_err(refused)?;
    let read = |path: &Path| archive.read(&name_of(&packed, path)?, LARGEST_INDEX);
    let parts = parts(&packed, &release, read).map_err(refused)?;
    compare(&archive, &index, &parts).map_err(refused)?;
    let ids = |r: &Release| -> Vec<(String, String)> {
        r.images.iter().map(|(service, image)| (service.clone(), image.id.clone())).collect()
    };
    let same =
        |r: &&Release| r.files == release.files && ids(r) == ids(&release) && r.engine == release.engine;
    let bytes = archive.sizes().values().sum();
    let deadline = limit(bytes);
    if let Some(known) = store.list()?.0.iter().find(same) {
        // A damaged archive is refused even if the release is here already.
        parts
            .iter()
            .try_for_each(|part| part.take(&archive, &mut std::io::sink(), deadline))
            .map_err(refused)?;
        // Of one of another client, this folder has the files alone.
        if store.is_fetched(&known.id) {
            ensure_room(pilot.state.path(), bytes)?;
            files::make_private_folder(scratch)?;
            parts.iter().try_for_each(|part| part.unpack(&archive, deadline)).map_err(refused)?;
            fill(store, &packed, &release)?;
            store.is_complete(&known.id)?;
        }
        return Ok(known.clone());
    }
    ensure_room(pilot.state.path(), bytes)?;
    files::make_private_folder(scratch)?;
    parts.iter().try_for_each(|part| part.unpack(&archive, deadline)).map_err(refused)?;
    publish(store, &packed, release)
}

/// Reads and checks the index.
fn index(archive: &Archive) -> Result<Index> {
    let text = archive.read(INDEX, LARGEST_TEXT)?;
    let index: Index = serde_json::from_slice(&text).with_context(|| format!("{INDEX} is malformed"))?;
    ensure!(index.version <= FORMAT, "it has the newer format {}", index.version);
    ensure!(is_release_id(&index.release), "{:?} is not a release id (r and a number)", index.release);
    Ok(index)
}

/// Reads the description and checks each value in it.
fn described(archive: &Archive, index: &Index) -> Result<Release> {
    let text = archive.read(&description(&index.release), LARGEST_TEXT)?;
    let release = Release::parse(&text)?;
    ensure!(
        release.id == index.release,
        "the description of release {} has the id {:?}",
        index.release,
        release.id
    );
    Ok(release)
}

/// Has the archive exactly the files of the release?
fn compare(archive: &Archive, index: &Index, parts: &[Part]) -> Result<()> {
    let mut sizes = archive.sizes();
    sizes.remove(INDEX);
    if let Some(told) = &index.sizes {
        ensure!(*told == sizes, "its files are not the ones that {INDEX} lists");
    }
    sizes.remove(&description(&index.release));
    for part in parts {
        let bytes = sizes.remove(&part.name).with_context(|| format!("it has no file {}", part.name))?;
        ensure!(bytes <= part.largest, "{} is larger than {}", part.name, files::human(part.largest));
    }
    let stray: Vec<&String> = sizes.keys().take(3).collect();
    ensure!(stray.is_empty(), "it has files that do not belong to the release: {stray:?}");
    Ok(())
}

fn ensure_room(state: &Path, bytes: u64) -> Result<()> {
    let free = machine::space(state)?.0.bytes;
    if bytes.saturating_add(LARGEST_FILE) > free {
        let (needed, free) = (files::human(bytes), files::human(free));
        let what = format!("the release needs {needed}, but only {free} are free in {}", state.display());
        return Err(fail(Exit::NotRestored, what, Next::xtask("host --free")));
    }
    Ok(())
}

/// Moves the unpacked images and the xtask of a release, whose folder is there, to their places in the store.
fn fill(store: &Store, packed: &Store, release: &Release) -> Result<()> {
    let images: BTreeMap<&String, &Image> = release.images.values().map(|image| (&image.id, image)).collect();
    for image in images.into_values() {
        // The index, which is the first, names the others.
        for Needed { path, .. } in packed.needed_by(image, files::read)?.into_iter().rev() {
            move_to(&path, &store.folder().join(name_of(packed, &path)?))?;
        }
    }
    move_to(&packed.xtask(&release.xtask), &store.xtask(&release.xtask))
}

/// Moves the unpacked files to their places in the store; the release folder last, because that publishes it.
fn publish(store: &Store, packed: &Store, mut release: Release) -> Result<Release> {
    let old = packed.dir(&release.id);
    // If this import is cut off, the next one finds here which archives it has moved.
    files::write_json(&old.join(DESCRIPTION), &release, Mode::Plain)?;
    let known = store.list()?.0;
    let mut moved = BTreeSet::new();
    for image in release.images.values_mut() {
        // If the store has this image already, keep that; the bytes of two archives may differ.
        let mut all = known.iter().flat_map(|r| r.images.values());
        if let Some(kept) = all.find(|other| other.id == image.id && store.is_whole(other)) {
            (image.index, image.archive) = (kept.index.clone(), kept.archive.clone());
            continue;
        }
        // Two services may share it.
        if !moved.insert(image.id.clone()) {
            continue;
        }
        // The index, which is the first, names the others.
        for Needed { path, .. } in packed.needed_by(image, files::read)?.into_iter().rev() {
            move_to(&path, &store.folder().join(name_of(packed, &path)?))?;
        }
    }
    move_to(&packed.xtask(&release.xtask), &store.xtask(&release.xtask))?;
    release.id = store.free_id()?;
    // These values are only valid on the host that made them.
    release.inputs = None;
    release.verified_run = None;
    release.pinned = false;
    files::write_json(&old.join(DESCRIPTION), &release, Mode::Plain)?;
    store.share(&release, &old)?;
    // Its files are synced; the names of those in its folders are not.
    files::sync_below(&old)?;
    move_to(&old, &store.dir(&release.id))?;
    Ok(release)
}

fn move_to(old: &Path, new: &Path) -> Result<()> {
    // An image that two services share was moved already.
    if !old.exists() && new.exists() {
        return Ok(());
    }
    files::make_folder(new.parent().context("a file needs a folder")?)?;
    files::rename(old, new).with_context(|| format!("cannot write {}", new.display()))
}
