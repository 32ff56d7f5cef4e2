//! A release as one file that brings a pilot up on another host: its folder, its images and its xtask, with
//! a checksum for each. Made and taken in here; the store does the rest. Holds the env file with its
//! secrets, so it is private (0600).

use crate::deadline::Deadline;
use crate::failure::{Exit, fail};
use crate::files::{self, Mode};
use crate::pilot::Pilot;
use crate::proc::cmd;
use crate::release::{Release, Store};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

const FORMAT: u32 = 1;
const INDEX: &str = "export.json";

/// Longest that packing and unpacking takes.
const LIMIT: Duration = Duration::from_secs(300);

/// `export.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    project: String,
    release: String,
}

/// Writes a release, checked whole, into one archive.
pub fn export(pilot: &Pilot, store: &Store, release: &Release, to: &Path) -> Result<()> {
    store.check(release)?;
    let scratch = files::Scratch::new("export")?;
    let index = Index { version: FORMAT, project: pilot.project.clone(), release: release.id.clone() };
    files::write_json(&scratch.path().join(INDEX), &index, Mode::Plain)?;
    let within = |path: PathBuf| -> Result<String> {
        let path = path.strip_prefix(&pilot.state).context("a release lies outside the state folder")?;
        Ok(path.display().to_string())
    };
    let mut paths = vec![within(store.dir(&release.id))?, within(store.xtask(&release.xtask))?];
    for image in release.images.values() {
        paths.push(within(store.archive(&image.id))?);
    }
    let half = to.with_extension(format!("{}.new", std::process::id()));
    files::write(&half, b"", Mode::Private)?;
    let state = std::fs::canonicalize(&pilot.state).context("cannot find the state folder")?;
    let tar = cmd("tar", &["--create", "--file", &half.display().to_string()])
        .args(["--directory", &scratch.path().display().to_string(), INDEX])
        .args(["--directory", &state.display().to_string()])
        .args(paths);
    let packed = tar.run(Deadline::after(LIMIT)).and_then(|_| {
        let file = std::fs::File::open(&half).context("cannot read what was packed")?;
        file.sync_all()
            .and_then(|()| std::fs::rename(&half, to))
            .with_context(|| format!("cannot write {}", to.display()))
    });
    if packed.is_err() {
        files::remove(&half).ok();
    }
    packed
}

/// Takes a release in under a number of its own; one with the same content that is there already is given
/// back instead.
pub fn import(pilot: &Pilot, store: &Store, from: &Path) -> Result<Release> {
    let scratch = pilot.state.join(format!("import.{}.new", std::process::id()));
    files::make_private_folder(&scratch)?;
    let taken = unpack(pilot, store, from, &scratch);
    files::remove(&scratch)?;
    taken
}

fn unpack(pilot: &Pilot, store: &Store, from: &Path, scratch: &Path) -> Result<Release> {
    let tar = cmd("tar", &["--extract", "--file", &from.display().to_string()]);
    tar.args(["--directory", &scratch.display().to_string()]).run(Deadline::after(LIMIT))?;
    let index: Index = files::read_json(&scratch.join(INDEX))
        .with_context(|| format!("{} is no export of a release", from.display()))?;
    ensure!(index.version <= FORMAT, "{} has the newer format {}", from.display(), index.version);
    if index.project != pilot.project {
        let what = format!("{} is of project {}", from.display(), index.project);
        return Err(fail(
            Exit::Usage,
            what,
            format!("cargo xtask --project {} releases import FILE", index.project),
        ));
    }
    let packed = Store::new(scratch);
    let mut release = packed.named(&index.release)?;
    packed.check(&release).with_context(|| format!("{} is damaged", from.display()))?;
    let same =
        |r: &&Release| r.files == release.files && r.images == release.images && r.engine == release.engine;
    if let Some(known) = store.list()?.0.iter().find(same) {
        return Ok(known.clone());
    }
    let moves = release
        .images
        .values()
        .map(|image| (packed.archive(&image.id), store.archive(&image.id)))
        .chain([(packed.xtask(&release.xtask), store.xtask(&release.xtask))]);
    for (old, new) in moves.filter(|(_, new)| !new.exists()) {
        files::make_folder(new.parent().context("a file needs a folder")?)?;
        std::fs::rename(&old, &new).with_context(|| format!("cannot write {}", new.display()))?;
    }
    let old = packed.dir(&release.id);
    release.id = store.free_id()?;
    // What its images were built from is another host's word: a build here does not take them for its own.
    release.inputs = None;
    files::write_json(&old.join("release.json"), &release, Mode::Plain)?;
    let new = store.dir(&release.id);
    files::make_folder(new.parent().context("a release needs a folder")?)?;
    std::fs::rename(&old, &new).with_context(|| format!("cannot publish release {}", release.id))?;
    Ok(release)
}
