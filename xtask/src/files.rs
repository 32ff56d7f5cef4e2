//! Files on disk: written to a temporary name, synced, renamed; checksums; scratch folders. Knows
//! nothing of what the files mean.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Something that was removed to get space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// What.
    pub what: String,
    /// How much that gave; 0 where something else still holds it.
    pub bytes: u64,
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 0600: holds secrets.
    Private,
    /// 0644.
    Plain,
    /// 0755.
    Program,
}

/// Replaces `path` as a whole or not at all, and survives a power cut.
pub fn write(path: &Path, bytes: &[u8], mode: Mode) -> Result<()> {
    publish(path, mode, |out| out.write_all(bytes))
}

/// Copies with the same promise, and gives the checksum of what was copied.
pub fn copy(from: &Path, to: &Path, mode: Mode) -> Result<String> {
    let mut source = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    publish(to, mode, |out| std::io::copy(&mut source, out).map(drop))?;
    let sum = sha256(to)?;
    if sum != sha256(from)? {
        bail!("{} is not the same as {} after copying", to.display(), from.display());
    }
    Ok(sum)
}

fn bits(mode: Mode) -> u32 {
    match mode {
        Mode::Private => 0o600,
        Mode::Plain => 0o644,
        Mode::Program => 0o755,
    }
}

fn publish(path: &Path, mode: Mode, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    make_folder(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(bits(mode))
        .open(&temporary)
        .and_then(|mut out| fill(&mut out).and_then(|()| out.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        std::fs::remove_file(&temporary).ok();
    }
    written.with_context(|| format!("cannot write {}", path.display()))?;
    // The name is durable once its folder is.
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("cannot sync {}", folder.display()))
}

/// A new file, to be filled by the caller; one that is there already, or a link, is an error.
pub fn create_new(path: &Path, mode: Mode) -> Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(bits(mode)).open(path);
    file.with_context(|| format!("cannot make {}", path.display()))
}

/// Is this the path of something below a folder, whichever folder it is joined to?
pub fn stays_within(path: &str) -> bool {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..") && !part.contains(|c: char| c == '\\' || c.is_control())
    };
    path.len() <= 255 && path.split('/').all(plain)
}

/// Bytes that are free for us in the file system of a folder, which need not be there yet.
pub fn free(folder: &Path) -> Result<u64> {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there)
        .with_context(|| format!("cannot tell what is free in {}", there.display()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Makes a folder and those above it.
pub fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make folder {}", path.display()))
}

/// The same, for nobody else to look into.
pub fn make_private_folder(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make folder {}", path.display()))
}

/// The time as a name that sorts: `20261124T000821734`.
pub fn stamp() -> String {
    let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    now.chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect()
}

/// Checksum of a file as lowercase hex.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(format!("{:x}", hash.finalize()))
}

/// Checksum of bytes as lowercase hex.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// A JSON file, read.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("cannot understand {}", path.display()))
}

/// A JSON file, written.
pub fn write_json(path: &Path, value: &impl Serialize, mode: Mode) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write(path, &text, mode)
}

/// A text file, or nothing where there is no such file. Other trouble is an error.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Names in a folder, sorted; none where there is no such folder.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", folder.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes a file, or a folder with all that is in it, and tells how many bytes that gave; 0 where there
/// is none.
pub fn remove(path: &Path) -> Result<u64> {
    let bytes = size(path)?;
    let removed = if path.is_dir() && !path.is_symlink() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(bytes),
    }
}

/// Bytes in a file, or in all files below a folder; 0 where there is nothing.
pub fn size(path: &Path) -> Result<u64> {
    let data = match std::fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
    };
    if !data.is_dir() {
        return Ok(data.len());
    }
    names(path)?.iter().map(|name| size(&path.join(name))).sum()
}

/// This program, to be copied or started again. A build may have replaced it meanwhile: what runs can still
/// be had through the link that proc(5) keeps.
pub fn this_program() -> Result<PathBuf> {
    let kept = PathBuf::from("/proc/self/exe");
    let path = std::env::current_exe().context("cannot find this program")?;
    Ok(if path.exists() || !kept.exists() { path } else { kept })
}

/// Bytes as people say them.
pub fn human(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", units[unit]) }
}

/// The last `bytes` of an open file, for messages.
pub fn tail(mut file: &File, bytes: u64) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A file without a name, for nobody else's eyes: nothing is left of it however this process ends.
pub fn anonymous() -> Result<File> {
    let path = unique("out");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&path).with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(file)
}

/// A name in the system's temporary folder that nobody else has.
fn unique(purpose: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("pilot-{purpose}-{}-{n}", std::process::id()))
}

/// A folder for intermediate files, gone when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one under the system's temporary folder.
    pub fn new(purpose: &str) -> Result<Self> {
        let path = unique(purpose);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make folder {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_shorter_text_leaves_nothing_of_the_longer_and_secrets_are_private() {
        let scratch = Scratch::new("files-test").unwrap();
        let path = scratch.path().join("f");
        write(&path, b"a long text", Mode::Private).unwrap();
        write(&path, b"short", Mode::Private).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn checksums_are_sha256() {
        assert_eq!(sha256_bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
