//! Reading a tar archive that came from elsewhere, strictly: plain files alone, each once, under names that
//! lead nowhere, and no more bytes than the archive itself has. Nothing is unpacked by name: a caller takes
//! out the files that it knows, to places of its own choice. Called by `portable`.

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

/// More than a release has files.
const MOST: usize = 10_000;

/// An archive whose entries were all looked at.
#[derive(Debug)]
pub struct Archive {
    file: File,
    entries: BTreeMap<String, Place>,
}

/// Where a file is in the archive.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    bytes: u64,
}

impl Archive {
    /// Looks at every entry. The first that is not a plain file (or the folder of one) refuses it all.
    pub fn open(path: &Path, deadline: Deadline) -> Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        // A pipe would keep us waiting until somebody writes to it.
        let flags = i32::try_from(OFlags::NONBLOCK.bits())?;
        let file = File::options().read(true).custom_flags(flags).open(path).with_context(cannot)?;
        let data = file.metadata().with_context(cannot)?;
        ensure!(data.is_file(), "{} is no regular file", path.display());
        let entries =
            entries(&file, data.len(), deadline).with_context(|| format!("{} is refused", path.display()))?;
        Ok(Self { file, entries })
    }

    /// Its files with their sizes, by name.
    pub fn sizes(&self) -> BTreeMap<String, u64> {
        self.entries.iter().map(|(name, place)| (name.clone(), place.bytes)).collect()
    }

    /// A small file.
    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        let place = self.entries.get(name).with_context(|| format!("it has no {name}"))?;
        ensure!(place.bytes <= most, "{name} is larger than {}", files::human(most));
        let mut bytes = Vec::new();
        self.at(*place)?.read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
        Ok(bytes)
    }

    /// Takes a file out, and gives its checksum.
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
    // Raw: no header changes what another one says, and none is read into memory.
    for (n, entry) in archive.entries_with_seek()?.raw(true).enumerate() {
        ensure!(n < MOST, "it has more than {MOST} entries");
        ensure!(!deadline.passed(), "it could not be read in time");
        let entry = entry?;
        let name = String::from_utf8(entry.path_bytes().into_owned()).ok();
        let name = name.context("a name in it is not UTF-8 text")?;
        let kind = entry.header().entry_type();
        let folder = kind == EntryType::Directory;
        let place = Place { at: entry.raw_file_position(), bytes: entry.size() };
        ensure!(folder || kind == EntryType::Regular, "{name:?} in it is no plain file ({kind:?})");
        let plain = if folder { name.strip_suffix('/').unwrap_or(&name) } else { &name };
        ensure!(files::stays_within(plain), "the name {name:?} in it leads elsewhere");
        let end =
            place.at.checked_add(place.bytes).filter(|end| *end <= length && !(folder && place.bytes > 0));
        ensure!(end.is_some(), "{name:?} in it claims {} bytes, more than there are", place.bytes);
        if folder {
            folders.push(format!("{plain}/"));
        } else if found.insert(name.clone(), place).is_some() {
            bail!("{name:?} stands in it twice");
        }
    }
    // They are made as files need them, and there are no others.
    let needed = |folder: &&String| found.keys().any(|name| name.starts_with(folder.as_str()));
    let stray = folders.iter().find(|folder| !needed(folder));
    ensure!(stray.is_none(), "the folder {stray:?} in it has no file");
    Ok(found)
}

/// Ends reading when time is up.
pub struct Timed<R> {
    /// What is read.
    pub inner: R,
    /// Until when.
    pub deadline: Deadline,
}

impl<R: Read> Read for Timed<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.deadline.passed() {
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "it took too long"));
        }
        self.inner.read(into)
    }
}
