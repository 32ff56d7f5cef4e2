//! Strict reading of a tar archive that came from another host: only plain files, each once, under names that
//! stay inside the archive's folder, and no more bytes than the archive has. Nothing is unpacked by name: the
//! caller takes out the files that it knows and chooses where they go. Called by `release/export`.

use crate::base::deadline::Deadline;
use crate::base::files;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tar::EntryType;

/// Most entries that an archive may have; a release has far fewer.
const MOST: usize = 10_000;

/// An archive whose entries were all checked.
#[derive(Debug)]
pub struct Archive {
    file: File,
    entries: BTreeMap<String, Place>,
}

/// Where the bytes of a file are in the archive: offset and length.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    bytes: u64,
}

impl Archive {
    /// Checks every entry. If one is not a plain file, or a folder that has one, the archive is refused.
    pub fn open(path: &Path, deadline: Deadline) -> Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        // Opening a pipe would wait until another process writes to it.
        let flags = i32::try_from(OFlags::NONBLOCK.bits())?;
        let file = File::options().read(true).custom_flags(flags).open(path).with_context(cannot)?;
        let data = file.metadata().with_context(cannot)?;
        ensure!(data.is_file(), "{} is not a regular file", path.display());
        let entries =
            entries(&file, data.len(), deadline).with_context(|| format!("{} is refused", path.display()))?;
        Ok(Self { file, entries })
    }

    /// Its files with their sizes, by name.
    pub fn sizes(&self) -> BTreeMap<String, u64> {
        self.entries.iter().map(|(name, place)| (name.clone(), place.bytes)).collect()
    }

    /// Reads a file of at most `most` bytes.
    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        let place = self.entries.get(name).with_context(|| format!("it has no {name}"))?;
        ensure!(place.bytes <= most, "{name} is larger than {}", files::human(most));
        let mut bytes = Vec::new();
        self.at(*place)?.read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
        Ok(bytes)
    }

    /// Copies a file to `to`, and returns its SHA-256 as hex.
    pub fn copy(&self, name: &str, to: &mut dyn Write, deadline: Deadline) -> Result<String> {
        let place = self.entries.get(name).with_context(|| format!("it has no {name}"))?;
        let mut from = Timed { inner: self.at(*place)?, deadline };
        let mut hash = Sha256::new();
        let mut block = vec![0; 1 << 16];
        let mut copied = 0;
        loop {
            let read = from.read(&mut block).with_context(|| format!("cannot read {name}"))?;
            if read == 0 {
                break;
            }
            hash.update(&block[..read]);
            to.write_all(&block[..read]).with_context(|| format!("cannot write {name}"))?;
            copied += read as u64;
        }
        ensure!(copied == place.bytes, "{name} ends early");
        Ok(format!("{:x}", hash.finalize()))
    }

    fn at(&self, place: Place) -> Result<impl Read> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(place.at))?;
        Ok(file.take(place.bytes))
    }
}

fn entries(file: &File, length: u64, deadline: Deadline) -> Result<BTreeMap<String, Place>> {
    let (mut found, mut folders) = (BTreeMap::new(), Vec::new());
    let mut archive = tar::Archive::new(file);
    // Raw: extension headers (long names, PAX) are refused as entries, so none can change the next entry.
    for (n, entry) in archive.entries_with_seek()?.raw(true).enumerate() {
        ensure!(n < MOST, "it has more than {MOST} entries");
        ensure!(!deadline.passed(), "reading it took longer than allowed");
        let entry = entry?;
        let name = String::from_utf8(entry.path_bytes().into_owned()).ok();
        let name = name.context("it has an entry whose name is not UTF-8 text")?;
        let kind = entry.header().entry_type();
        let folder = kind == EntryType::Directory;
        let place = Place { at: entry.raw_file_position(), bytes: entry.size() };
        ensure!(folder || kind == EntryType::Regular, "its entry {name:?} is not a plain file ({kind:?})");
        let plain = if folder { name.strip_suffix('/').unwrap_or(&name) } else { &name };
        ensure!(files::stays_within(plain), "the name of its entry {name:?} leads outside the archive");
        let end =
            place.at.checked_add(place.bytes).filter(|end| *end <= length && !(folder && place.bytes > 0));
        ensure!(end.is_some(), "its entry {name:?} claims {} bytes, more than the archive has", place.bytes);
        if folder {
            folders.push(format!("{plain}/"));
        } else if found.insert(name.clone(), place).is_some() {
            bail!("it has two entries named {name:?}");
        }
    }
    // A folder is made when a file needs it, so a folder without files has no purpose here.
    let needed = |folder: &&String| found.keys().any(|name| name.starts_with(folder.as_str()));
    let stray = folders.iter().find(|folder| !needed(folder));
    ensure!(stray.is_none(), "its folder {stray:?} has no file");
    Ok(found)
}

/// A reader that fails once its deadline has passed.
pub struct Timed<R> {
    /// Where the bytes come from.
    pub inner: R,
    /// When reading must have ended.
    pub deadline: Deadline,
}

impl<R: Read> Read for Timed<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.deadline.passed() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "reading took longer than allowed",
            ));
        }
        self.inner.read(into)
    }
}
