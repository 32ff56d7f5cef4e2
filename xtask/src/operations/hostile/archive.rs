//! Tests: a file that is to be imported as a release, and the stream of an image, which may be anything. An archive is taken
//! in whole or leaves nothing; a stream comes back byte for byte. Random changes would hardly ever have a header with the
//! right checksum, so each input is also tried with its checksums corrected. Called by `hostile`.

use super::folder::Folder;
use crate::base::archive::Archive;
use crate::base::deadline::Deadline;
use crate::base::files;
use crate::release::blobs::{Joined, cut, parts};
use crate::release::export;
use crate::release::store::Store;
use crate::stack::pilot::{By, Pilot};
use crate::stack::state_dir::StateDir;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The unit of a tar, where a header has its checksum, and where its size.
const UNIT: usize = 512;
const SUM: std::ops::Range<usize> = 148..156;

pub(super) fn body(bytes: &[u8]) {
    for bytes in [bytes, &corrected(bytes)] {
        opened(bytes);
        streamed(bytes);
    }
}

fn limit() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// With the right checksum in each header.
fn corrected(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + UNIT) {
        if header.iter().any(|byte| *byte != 0) {
            header[SUM].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = tar::Header::from_byte_slice(header).entry_size().unwrap_or(0);
        let units = usize::try_from(size.div_ceil(UNIT as u64)).unwrap_or(usize::MAX);
        at = at.saturating_add(units.saturating_add(1).saturating_mul(UNIT));
        if at.checked_add(UNIT).is_none() {
            break;
        }
    }
    bytes
}

/// What a strict archive says of itself holds of its bytes.
fn opened(bytes: &[u8]) {
    let folder = Folder::new();
    let path = folder.0.join("any.release.tar");
    assert!(std::fs::write(&path, bytes).is_ok());
    if let Ok(archive) = Archive::open(&path, limit()) {
        let sizes = archive.sizes();
        assert!(sizes.values().sum::<u64>() <= bytes.len() as u64, "it has more than its bytes: {sizes:?}");
        assert!(sizes.keys().all(|name| files::stays_within(name)), "a name leads out: {sizes:?}");
        let all: BTreeMap<&String, Vec<u8>> =
            sizes.iter().map(|(name, size)| (name, contents(&archive, name, *size))).collect();
        if let Some(packed) = packed(&all) {
            assert!(std::fs::write(&path, packed).is_ok());
            let again = Archive::open(&path, limit()).map(|again| again.sizes());
            assert_eq!(again.ok(), Some(sizes), "packed again, it is another archive");
        }
        assert!(std::fs::write(&path, bytes).is_ok());
    }
    imported(&folder.0, &path);
}

fn contents(archive: &Archive, name: &str, size: u64) -> Vec<u8> {
    let read = archive.read(name, size);
    assert!(read.is_ok(), "{name}: {read:?}");
    let read = read.unwrap_or_default();
    assert_eq!(read.len() as u64, size, "{name} has another size than it says");
    assert!(size == 0 || archive.read(name, size - 1).is_err(), "{name} is longer than it may be");
    let mut copied = Vec::new();
    let sum = archive.copy(name, &mut copied, limit()).ok();
    assert!(copied == read && sum == Some(files::sha256_bytes(&read)), "{name} is not what was read");
    read
}

/// The same files in an archive; none if a name does not fit into a plain header.
fn packed(all: &BTreeMap<&String, Vec<u8>>) -> Option<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in all {
        let mut header = tar::Header::new_ustar();
        header.set_path(name.as_str()).ok()?;
        header.set_mode(0o600);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        archive.append(&header, bytes.as_slice()).ok()?;
    }
    archive.into_inner().ok()
}

/// Every file below a folder.
fn below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() && !path.is_symlink() => all.extend(below(&path)),
            path => drop(all.insert(path)),
        }
    }
    all
}

/// It becomes a release of the store that is whole, or leaves nothing at all.
fn imported(folder: &Path, path: &Path) {
    let pack = folder.join("stack");
    let state = StateDir::new(folder.join("state"));
    assert!(std::fs::create_dir_all(&pack).is_ok());
    assert!(std::fs::write(pack.join("compose.yml"), "services: {}\n").is_ok());
    let pilot = Pilot::at(&pack, "memory", state.clone(), By::Tree);
    let Ok(pilot) = pilot else { unreachable!("the stack is read: {pilot:?}") };
    let store = Store::new(&state);
    let before = below(folder);
    match export::import(&pilot, &store, path) {
        Err(error) => {
            assert!(!format!("{error:#}").is_empty());
            assert_eq!(below(folder), before, "it was refused, and has left something");
        }
        Ok(release) => {
            let whole = store.check(&release);
            assert!(whole.is_ok(), "it was taken in, and is not whole: {whole:?}");
            let out =
                below(folder).into_iter().find(|new| !before.contains(new) && !new.starts_with(state.path()));
            assert_eq!(out, None, "it has written outside of the state folder");
        }
    }
}

/// The stream of an image, cut into its parts and joined again.
fn streamed(bytes: &[u8]) {
    let folder = Folder::new();
    let state = StateDir::new(&folder.0);
    // A member may end early; anything else is kept as it is.
    let Ok(index) = cut(&mut &*bytes, &state) else { return };
    let joined = || -> Result<Vec<u8>> {
        let mut all = Vec::new();
        Joined::new(&state, index.clone(), parts(&index)?).read_to_end(&mut all)?;
        Ok(all)
    };
    assert_eq!(joined().ok().as_deref(), Some(bytes), "the stream does not come back");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise what is tried with it would be refused at once.
    #[test]
    fn one_seed_is_the_archive_of_a_release() {
        let folder = Folder::new();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/archive/whole");
        imported(&folder.0, &path);
        let store = Store::new(&StateDir::new(folder.0.join("state")));
        assert_eq!(store.list().unwrap().0.len(), 1);
    }
}
