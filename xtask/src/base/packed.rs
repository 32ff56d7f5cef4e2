//! Archives of stored data: compressed and written as the data comes, and read back once, with constant memory. What
//! broke off, or what the disk did not keep, is found before it counts as a copy. Nothing here knows whose data it is.
//! Called by `deploy/backup`, and by what restores data.

use crate::base::archive::Timed;
use crate::base::deadline::Deadline;
use crate::base::files;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How the name of a compressed archive ends. Those of older versions are not compressed.
pub const COMPRESSED: &str = ".lz4";

/// The end of every tar archive: two blocks of zeros (POSIX pax, "ustar Interchange Format").
const END: usize = 1024;

/// Bytes that are read or written at a time.
const BLOCK: usize = 256 << 10;

/// What is in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A tar archive with at least one entry.
    Tar,
    /// What a program printed: at least one byte.
    Printed,
}

/// An archive that is being written. It counts only after `finish`.
pub struct Packing {
    path: PathBuf,
    out: lz4::Writer,
    content: Content,
    bytes: u64,
}

impl Packing {
    /// A new archive, readable by its owner alone: a user may copy it to a folder that is not private. Replaces a file
    /// with this name.
    pub fn new(path: &Path, content: Content) -> Result<Self> {
        let mut options = File::options();
        let out = options.write(true).create(true).truncate(true).mode(0o600).open(path);
        let out = out.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path: path.to_owned(), out: lz4::Writer::new(out), content, bytes: 0 })
    }

    /// Syncs it and reads it back: the disk must have what was written, which the checksum in the frame shows, and it
    /// must be whole. Returns the SHA-256 of the file as hex.
    pub fn finish(self, deadline: Deadline) -> Result<String> {
        let Self { path, out, content, bytes } = self;
        let deadline = deadline.for_bytes(bytes);
        let file = out.finish().with_context(|| format!("cannot write {}", path.display()))?;
        file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
        read_back(&path, content, deadline).with_context(|| format!("{} is no copy", path.display()))
    }
}

impl Write for Packing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// What is in an archive, as a stream.
pub fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(BLOCK, files::open_regular(path)?);
    let is_compressed = path.to_string_lossy().ends_with(COMPRESSED);
    Ok(if is_compressed { Box::new(lz4::Reader::new(file)) } else { Box::new(file) })
}

/// Gives all of `from` to `into`, in blocks that are large enough for a pipe.
pub fn pass(from: &mut dyn Read, into: &mut dyn Write) -> std::io::Result<u64> {
    std::io::copy(&mut BufReader::with_capacity(BLOCK, from), into)
}

/// Reads an archive once, to its end: its checksum, if its content is whole.
fn read_back(path: &Path, content: Content, deadline: Deadline) -> Result<String> {
    let file = Timed { inner: files::open_regular(path)?, deadline };
    let file = Hashed { inner: file, hash: Sha256::new() };
    let mut hashed = BufReader::with_capacity(BLOCK, file);
    let mut inside = lz4::Reader::new(&mut hashed);
    match content {
        Content::Tar => check_tar(&mut inside)?,
        Content::Printed => {
            let bytes = std::io::copy(&mut inside, &mut std::io::sink())?;
            ensure!(bytes > 0, "nothing was printed");
        }
    }
    // Nothing comes after the frame; if something does, it is part of the checksum.
    std::io::copy(&mut hashed, &mut std::io::sink())?;
    Ok(format!("{:x}", hashed.into_inner().hash.finalize()))
}

fn check_tar(inside: &mut dyn Read) -> Result<()> {
    let mut content = Ending { inner: BufReader::with_capacity(BLOCK, inside), end: Vec::new() };
    let mut count = 0;
    for entry in tar::Archive::new(&mut content).entries()? {
        entry?;
        count += 1;
    }
    // What comes after the last entry: the mark of the end, and more zeros.
    std::io::copy(&mut content, &mut std::io::sink())?;
    let is_end = content.end.len() == END && content.end.iter().all(|byte| *byte == 0);
    ensure!(is_end, "it breaks off before its end");
    ensure!(count > 0, "it is empty");
    Ok(())
}

/// Passes bytes on and adds them to a checksum.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(into)?;
        self.hash.update(&into[..read]);
        Ok(read)
    }
}

/// Passes bytes on and keeps the last ones.
struct Ending<R> {
    inner: R,
    end: Vec<u8>,
}

impl<R: Read> Read for Ending<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(into)?;
        let new = &into[..read];
        let new = &new[new.len().saturating_sub(END)..];
        self.end.drain(..(self.end.len() + new.len()).saturating_sub(END));
        self.end.extend_from_slice(new);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn an_archive_that_broke_off_is_empty_or_was_altered_is_no_copy() {
        let scratch = files::Scratch::new("packed-test").unwrap();
        let pack = |bytes: &[u8]| {
            let mut packing = Packing::new(&scratch.path().join("a.tar.lz4"), Content::Tar).unwrap();
            packing.write_all(bytes).unwrap();
            packing
        };
        let whole = tar_of(&[("f", &[7; 100_000]), (&"long".repeat(60), b"x")]);
        let sum = pack(&whole).finish(soon()).unwrap();
        assert_eq!(sum, files::sha256(&scratch.path().join("a.tar.lz4")).unwrap());
        let error = |packing: Packing| format!("{:#}", packing.finish(soon()).unwrap_err());
        for cut in [whole.len() - 1024, whole.len() - 1536, 50_000, 512, 100] {
            error(pack(&whole[..cut]));
        }
        assert!(error(pack(&tar_of(&[]))).contains("it is empty"));
        assert!(error(pack(&[])).contains("breaks off"));
        let path = scratch.path().join("a.tar.lz4");
        let read = |path: &Path| std::io::copy(&mut open(path).unwrap(), &mut std::io::sink());
        pack(&whole).finish(soon()).unwrap();
        let packed = std::fs::read(&path).unwrap();
        assert!(packed.len() < whole.len() / 10, "it is not compressed");
        let back = read_back(&path, Content::Tar, soon()).unwrap();
        assert_eq!((back, read(&path).unwrap()), (sum, whole.len() as u64));
        // Altered on the disk, or cut there.
        for at in (0..packed.len()).step_by(37).chain([packed.len() - 1]) {
            let mut bad = packed.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(read_back(&path, Content::Tar, soon()).is_err(), "byte {at}");
            std::fs::write(&path, &packed[..at]).unwrap();
            assert!(read_back(&path, Content::Tar, soon()).is_err(), "cut at {at}");
        }
        let print = |bytes: &[u8]| {
            let mut packing = Packing::new(&path, Content::Printed).unwrap();
            packing.write_all(bytes).unwrap();
            packing.finish(soon())
        };
        print(b"select 1;").unwrap();
        assert!(format!("{:#}", print(b"").unwrap_err()).contains("nothing was printed"));
        assert!(pack(&whole).finish(Deadline::after(Duration::ZERO)).is_err());
    }
}
