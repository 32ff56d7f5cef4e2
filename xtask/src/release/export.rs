//! A release as one file that brings a pilot up on another host: its folder, its images and its xtask, with
//! a checksum for each. Made and taken in here; the store does the rest. Holds the env file with its
//! secrets, so it is private (0600). What is taken in was made by anybody: it is looked at as a whole before
//! anything of it is written, and names in it are compared, never followed.

use crate::base::archive::{Archive, Timed};
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::files::Mode;
use crate::base::next::Next;
use crate::release::description::{ENV_FILE, Release};
use crate::release::form::{DESCRIPTION, is_release_id};
use crate::release::store::Store;
use crate::stack::pilot::Pilot;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const FORMAT: u32 = 1;
const INDEX: &str = "export.json";

/// Longest that packing and unpacking takes, and slowest.
const LIMIT: Duration = Duration::from_secs(300);
const BYTES_A_SECOND: u64 = 10 << 20;

/// Largest index and description, and largest file of a release beside its images and its xtask.
const LARGEST_TEXT: u64 = 1 << 20;
const LARGEST_FILE: u64 = 64 << 20;

/// `export.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    project: String,
    release: String,
    /// Bytes of every other file, by name; exports of older versions do not tell them.
    #[serde(default)]
    sizes: Option<BTreeMap<String, u64>>,
}

/// One file of a release: its name in an archive, where a store has it, and its checksum.
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
        ensure!(sum == self.sum, "{} is damaged: its checksum is not that of the release", self.name);
        Ok(())
    }

    fn unpack(&self, archive: &Archive, deadline: Deadline) -> Result<()> {
        files::make_private_folder(self.path.parent().context("a file needs a folder")?)?;
        let mut file = files::create_new(&self.path, self.mode)?;
        self.take(archive, &mut file, deadline)?;
        file.sync_all().with_context(|| format!("cannot sync {}", self.path.display()))
    }
}

/// Everything of a release but its description.
fn parts(store: &Store, release: &Release) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (name, sum) in &release.files {
        let mode = if name == ENV_FILE { Mode::Private } else { Mode::Plain };
        let path = store.file(&release.id, name);
        let name = format!("releases/{}/{name}", release.id);
        parts.push(Part { name, path, sum: sum.clone(), mode, largest: LARGEST_FILE });
    }
    for image in release.images.values() {
        let sum = image.archive.clone().with_context(|| format!("image {} was never saved", image.id))?;
        let name = format!("images/{}.tar", image.id.trim_start_matches("sha256:"));
        parts.push(Part { name, path: store.archive(&image.id), sum, mode: Mode::Plain, largest: u64::MAX });
    }
    let (name, path) = (format!("bin/{}", release.xtask), store.xtask(&release.xtask));
    parts.push(Part { name, path, sum: release.xtask.clone(), mode: Mode::Program, largest: u64::MAX });
    // Services may share an image.
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    parts.dedup_by(|a, b| a.name == b.name);
    Ok(parts)
}

fn description(id: &str) -> String {
    format!("releases/{id}/{DESCRIPTION}")
}

/// Time for so many bytes.
fn limit(bytes: u64) -> Deadline {
    Deadline::after(LIMIT + Duration::from_secs(bytes / BYTES_A_SECOND))
}

/// Writes a release, checked whole, into one archive, and reads it back.
pub fn export(pilot: &Pilot, store: &Store, release: &Release, to: &Path) -> Result<()> {
    store.check(release)?;
    let mut paths = vec![(description(&release.id), store.file(&release.id, DESCRIPTION))];
    paths.extend(parts(store, release)?.into_iter().map(|part| (part.name, part.path)));
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
        std::fs::rename(&staging, to).with_context(|| format!("cannot write {}", to.display()))
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
        // This form has room for names of 255 bytes, and no others are taken in.
        let mut header = tar::Header::new_ustar();
        header.set_path(name).with_context(|| format!("{name:?} is too long a name for an archive"))?;
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
        add(name, bytes, &mut file.take(bytes))?;
    }
    archive.into_inner().and_then(|file| file.sync_all()).with_context(cannot)
}

/// Takes a release in under a number of its own; one with the same content that is there already is given
/// back instead.
pub fn import(pilot: &Pilot, store: &Store, from: &Path) -> Result<Release> {
    store.remove_cut_off_imports()?;
    let scratch = store.import_folder();
    let taken = take_in(pilot, store, from, &scratch);
    files::remove(&scratch)?;
    taken
}

fn take_in(pilot: &Pilot, store: &Store, from: &Path, scratch: &Path) -> Result<Release> {
    let refused = |error: anyhow::Error| {
        let what = format!("{} is no export of a release that can be taken in: {error:#}", from.display());
        fail(
            Exit::NotRestored,
            what,
            Next::xtask("releases export RELEASE").so("on the host that it comes from"),
        )
    };
    let archive = Archive::open(from, Deadline::after(LIMIT)).map_err(refused)?;
    let index = index(&archive).map_err(refused)?;
    if index.project != pilot.project {
        let what = format!("{} is of project {:?}", from.display(), index.project);
        let next = Next::xtask(&format!("--project {} releases import FILE", index.project));
        return Err(fail(Exit::Usage, what, next));
    }
    let packed = Store::new(&StateDir::new(scratch));
    let release = described(pilot, &archive, &index).map_err(refused)?;
    let parts = parts(&packed, &release).map_err(refused)?;
    compare(&archive, &index, &parts).map_err(refused)?;
    let ids = |r: &Release| -> Vec<(String, String)> {
        r.images.iter().map(|(service, image)| (service.clone(), image.id.clone())).collect()
    };
    let same =
        |r: &&Release| r.files == release.files && ids(r) == ids(&release) && r.engine == release.engine;
    let bytes = archive.sizes().values().sum();
    let deadline = limit(bytes);
    if let Some(known) = store.list()?.0.iter().find(same) {
        // Damaged on its way, it is refused all the same.
        parts
            .iter()
            .try_for_each(|part| part.take(&archive, &mut std::io::sink(), deadline))
            .map_err(refused)?;
        return Ok(known.clone());
    }
    ensure_room(pilot.state.path(), bytes)?;
    files::make_private_folder(scratch)?;
    parts.iter().try_for_each(|part| part.unpack(&archive, deadline)).map_err(refused)?;
    publish(store, &packed, release)
}

/// The index, as long as it can be understood.
fn index(archive: &Archive) -> Result<Index> {
    let text = archive.read(INDEX, LARGEST_TEXT)?;
    let index: Index = serde_json::from_slice(&text).with_context(|| format!("cannot understand {INDEX}"))?;
    ensure!(index.version <= FORMAT, "it has the newer format {}", index.version);
    ensure!(is_release_id(&index.release), "{:?} is no release id (r and a number)", index.release);
    Ok(index)
}

/// The description, every word of which is of the form that it has to have.
fn described(pilot: &Pilot, archive: &Archive, index: &Index) -> Result<Release> {
    let text = archive.read(&description(&index.release), LARGEST_TEXT)?;
    let release = Release::parse(&text)?;
    ensure!(release.id == index.release, "release {} says that it is {:?}", index.release, release.id);
    for (service, image) in &release.images {
        // Deploying it moves this tag: it is never one of somebody else's images.
        let own = format!("{}:latest", pilot.image_name(service));
        ensure!(image.tag == own, "the image of {service} has the tag {:?} and not {own}", image.tag);
    }
    Ok(release)
}

/// Has the archive what the release says, all of it and nothing else?
fn compare(archive: &Archive, index: &Index, parts: &[Part]) -> Result<()> {
    let mut sizes = archive.sizes();
    sizes.remove(INDEX);
    if let Some(told) = &index.sizes {
        ensure!(*told == sizes, "its files are not those that {INDEX} tells");
    }
    sizes.remove(&description(&index.release));
    for part in parts {
        let bytes = sizes.remove(&part.name).with_context(|| format!("it has no {}", part.name))?;
        ensure!(bytes <= part.largest, "{} is larger than {}", part.name, files::human(part.largest));
    }
    let stray: Vec<&String> = sizes.keys().take(3).collect();
    ensure!(stray.is_empty(), "no release has {stray:?}");
    Ok(())
}

fn ensure_room(state: &Path, bytes: u64) -> Result<()> {
    let free = files::free(state)?;
    if bytes.saturating_add(LARGEST_FILE) > free {
        let (needed, free) = (files::human(bytes), files::human(free));
        let what = format!("the release needs {needed}, and {free} are free in {}", state.display());
        return Err(fail(Exit::NotRestored, what, Next::xtask("host --free")));
    }
    Ok(())
}

/// Moves what was unpacked to where the store has it, the release last.
fn publish(store: &Store, packed: &Store, mut release: Release) -> Result<Release> {
    let old = packed.dir(&release.id);
    // What a cut-off import has moved is known by this.
    files::write_json(&old.join(DESCRIPTION), &release, Mode::Plain)?;
    let known = store.list()?.0;
    for image in release.images.values_mut() {
        // One of its own with the same content may be packed in another way.
        let kept = known.iter().flat_map(|r| r.images.values()).find(|other| other.id == image.id);
        match kept.filter(|kept| store.check_archive(kept).is_ok()) {
            Some(kept) => image.archive.clone_from(&kept.archive),
            None => move_to(&packed.archive(&image.id), &store.archive(&image.id))?,
        }
    }
    move_to(&packed.xtask(&release.xtask), &store.xtask(&release.xtask))?;
    release.id = store.free_id()?;
    // What its images were built from, and when it was verified, is another host's word.
    release.inputs = None;
    release.verified_run = None;
    files::write_json(&old.join(DESCRIPTION), &release, Mode::Plain)?;
    move_to(&old, &store.dir(&release.id))?;
    Ok(release)
}

fn move_to(old: &Path, new: &Path) -> Result<()> {
    // Shared by two services, it was moved with the first.
    if !old.exists() && new.exists() {
        return Ok(());
    }
    files::make_folder(new.parent().context("a file needs a folder")?)?;
    std::fs::rename(old, new).with_context(|| format!("cannot write {}", new.display()))
}
