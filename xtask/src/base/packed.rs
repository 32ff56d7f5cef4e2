//! Archives of stored data: written as the data comes, and read back once, with constant memory. A tar archive that
//! broke off, or that the disk did not keep, is found before it counts as a copy. Nothing here knows whose data it is.
//! Called by `deploy/backup`.

use crate::base::archive::Timed;
use crate::base::deadline::Deadline;
use crate::base::files;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The end of every archive: two blocks of zeros (POSIX pax, "ustar Interchange Format").
const END: usize = 1024;

/// Bytes that are read or written at a time.
const BLOCK: usize = 256 << 10;

/// An archive that is being written. It counts only after `finish`.
pub struct Packing {
    path: PathBuf,
    out: Hashed<File>,
    bytes: u64,
}

impl Packing {
    /// A new archive, readable by its owner alone: a user may copy it to a folder that is not private. Replaces a file
    /// with this name.
    pub fn new(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let out = options.write(true).create(true).truncate(true).mode(0o600).open(path);
        let out = out.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path: path.to_owned(), out: Hashed { inner: out, hash: Sha256::new() }, bytes: 0 })
    }

    /// Syncs it and reads it back: the disk must have what was written, and that must be a whole tar archive with an
    /// entry. Returns its SHA-256 as hex.
    pub fn finish(self, deadline: Deadline) -> Result<String> {
        let Self { path, out, bytes } = self;
        let deadline = deadline.for_bytes(bytes);
        out.inner.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
        let written = format!("{:x}", out.hash.finalize());
        let read = read_back(&path, deadline).with_context(|| format!("{} is no copy", path.display()))?;
        ensure!(read == written, "{} was read back with another content than was written", path.display());
        Ok(read)
    }
}

impl Write for Packing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.inner.write(bytes)?;
        self.out.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.inner.flush()
    }
}

/// Reads an archive once, to its end: its checksum, if it is a whole tar archive with at least one entry.
fn read_back(path: &Path, deadline: Deadline) -> Result<String> {
    let file = Timed { inner: files::open_regular(path)?, deadline };
    let file = Hashed { inner: file, hash: Sha256::new() };
    let mut content = Ending { inner: std::io::BufReader::with_capacity(BLOCK, file), end: Vec::new() };
    let mut count = 0;
    for entry in tar::Archive::new(&mut content).entries()? {
        entry?;
        count += 1;
    }
    // What comes after the last entry: the mark of the end, and more zeros.
    std::io::copy(&mut content, &mut std::io::sink())?;
    ensure!(
        content.end.len() == END && content.end.iter().all(|byte| *byte == 0),
        "it breaks off before its end"
    );
    ensure!(count > 0, "it is empty");
    Ok(format!("{:x}", content.inner.into_inner().hash.finalize()))
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
            let mut packing = Packing::new(&scratch.path().join("a.tar")).unwrap();
            packing.write_all(bytes).unwrap();
            packing
        };
        let whole = tar_of(&[("f", &[7; 100_000]), (&"long".repeat(60), b"x")]);
        let sum = pack(&whole).finish(soon()).unwrap();
        assert_eq!(sum, files::sha256(&scratch.path().join("a.tar")).unwrap());
        let error = |packing: Packing| format!("{:#}", packing.finish(soon()).unwrap_err());
        for cut in [whole.len() - 1024, whole.len() - 1536, 50_000, 512, 100] {
            error(pack(&whole[..cut]));
        }
        assert!(error(pack(&tar_of(&[]))).contains("it is empty"));
        assert!(error(pack(&[])).contains("breaks off"));
        let mut altered = pack(&whole);
        altered.flush().unwrap();
        let mut bytes = whole.clone();
        bytes[600] ^= 1;
        std::fs::write(&altered.path, &bytes).unwrap();
        assert!(error(altered).contains("another content"));
        assert!(pack(&whole).finish(Deadline::after(Duration::ZERO)).is_err());
    }
}
