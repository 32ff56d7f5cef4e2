//! Files on disk. A write goes to a temporary name, is synced and then renamed, so that a file is never half written. A rename
//! and a new folder are there after a power cut too: the folder that they are in is synced. Also checksums, sizes, and
//! temporary folders. Nothing here knows what the files mean.

use crate::base::deadline::Deadline;
pub use crate::base::durable::{rename, sync, sync_below, sync_folder};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest file that is read into memory. Files that the pilot writes are far smaller.
const WHOLE: u64 = 64 << 20;

/// How much of a file is read at a time for its checksum. With less, the reading takes longer than the checksum.
const BLOCK: usize = 256 << 10;

/// How long a folder that is removed may still be written to.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// Something that was removed to free space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// What was removed.
    pub what: String,
    /// Bytes that this freed; 0 if something else still uses them.
    pub bytes: u64,
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 0600: the file holds secrets.
    Private,
    /// 0644.
    Plain,
    /// 0755.
    Program,
}

/// Writes `path` completely or not at all, also in a power cut.
pub fn write(path: &Path, bytes: &[u8], mode: Mode) -> Result<()> {
    publish(path, mode, |out| out.write_all(bytes))
}

/// Copies a file with the same promise as `write`, compares the copy, and returns its SHA-256.
pub fn copy(from: &Path, to: &Path, mode: Mode) -> Result<String> {
    let mut source = open_regular(from)?;
    publish(to, mode, |out| std::io::copy(&mut source, out).map(drop))?;
    let sum = sha256(to)?;
    if sum != sha256(from)? {
        bail!("{} is not the same as {} after copying", to.display(), from.display());
    }
    Ok(sum)
}

/// Before each change to a file: tests fail it here, or end the process.
pub fn before(what: &'static str) -> std::io::Result<()> {
    #[cfg(test)]
    crate::base::fake::change(what)?;
    #[cfg(not(test))]
    let _ = what;
    Ok(())
}

fn bits(mode: Mode) -> u32 {
    match mode {
        Mode::Private => 0o600,
        Mode::Plain => 0o644,
        Mode::Program => 0o755,
    }
}

/// The folder that a file is in; the current one, if the path is only a name.
fn folder_of(path: &Path) -> Result<&Path> {
    let folder = path.parent().context("a file needs a folder")?;
    Ok(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

fn publish(path: &Path, mode: Mode, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let folder = folder_of(path)?;
    make_folder(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.new", random()?));
    before("write a file")?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(bits(mode))
        .open(&temporary)
        .and_then(|mut out| fill(&mut out).and_then(|()| out.sync_all()))
        .and_then(|()| before("rename a file"))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        std::fs::remove_file(&temporary).ok();
    }
    written.with_context(|| format!("cannot write {}", path.display()))?;
    // The rename is durable only when the folder is synced.
    sync_folder(folder)
}

/// Replaces `to` with a copy of `from` in one atomic exchange (renameat2(2)), and returns the bytes that `to`
/// had at that moment. On a file system without exchange, `to` is read just before it is replaced.
pub fn exchange(from: &Path, to: &Path, mode: Mode) -> Result<Option<Vec<u8>>> {
    let folder = folder_of(to)?;
    let beside = folder.join(format!(".{}.new", random()?));
    copy(from, &beside, mode)?;
    before("exchange files")?;
    let old = match swap(&beside, to) {
        Ok(()) => read_if_there(&beside),
        Err(_) => read_if_there(to).and_then(|old| {
            let moved = std::fs::rename(&beside, to);
            moved.with_context(|| format!("cannot write {}", to.display())).map(|()| old)
        }),
    };
    remove(&beside)?;
    sync_folder(folder)?;
    old
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn swap(one: &Path, other: &Path) -> std::io::Result<()> {
    let cwd = rustix::fs::CWD;
    Ok(rustix::fs::renameat_with(cwd, one, cwd, other, rustix::fs::RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn swap(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Opens a regular file for reading. Anything else is an error: a pipe could block, and
/// a device may have no end.
pub fn open_regular(path: &Path) -> Result<File> {
    opened_regular(path).with_context(|| format!("cannot read {}", path.display()))
}

fn opened_regular(path: &Path) -> std::io::Result<File> {
    regular(OpenOptions::new().read(true).custom_flags(flags(OFlags::NONBLOCK)).open(path)?)
}

/// Opens a log file for appending. Never follows a symbolic link.
pub fn append(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o644);
    regular(options.custom_flags(flags(OFlags::NONBLOCK | OFlags::NOFOLLOW)).open(path)?)
}

fn regular(file: File) -> std::io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("it is not a regular file")) }
}

/// Flags of open(2) in the type that the standard library takes.
pub fn flags(flags: OFlags) -> i32 {
    flags.bits() as i32
}

/// Reads a whole file; one larger than `WHOLE` is an error.
fn whole(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = opened_regular(path)?.take(WHOLE + 1).read_to_end(&mut bytes)?;
    if read as u64 > WHOLE {
        return Err(std::io::Error::other(format!("it is larger than {}", human(WHOLE))));
    }
    Ok(bytes)
}

/// Reads a file. A missing file is an error.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    whole(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Reads a text file (UTF-8).
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = read(path)?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))
}

/// Removes a folder, pipe or link from a path where a regular file will be written.
pub fn clear_way(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(data) if !data.is_file() => remove(path).map(drop),
        _ => Ok(()),
    }
}

/// The path without links and `..`. The last parts of it need not exist.
pub fn real_path(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    let Some((above, real)) = there else { return path.to_owned() };
    path.strip_prefix(above).map_or_else(|_| path.to_owned(), |rest| real.join(rest))
}

/// 128 random bits from the system, as hex.
pub fn random() -> Result<String> {
    let mut bytes = [0u8; 16];
    let mut source = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    source.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Makes a new, empty file. An existing file or link is an error.
pub fn create_new(path: &Path, mode: Mode) -> Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(bits(mode)).open(path);
    file.with_context(|| format!("cannot create {}", path.display()))
}

/// Does this path stay inside a folder when it is joined to it?
pub fn stays_within(path: &str) -> bool {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..") && !part.contains(|c: char| c == '\\' || c.is_control())
    };
    path.len() <= 255 && path.split('/').all(plain)
}

/// Makes a folder and its missing parents.
pub fn make_folder(path: &Path) -> Result<()> {
    make_missing(path, 0o777)
}

/// The same with mode 0700: no other user can look into it.
pub fn make_private_folder(path: &Path) -> Result<()> {
    make_missing(path, 0o700)
}

/// Each new one is durable, or what is synced in it could not be reached after a power cut.
fn make_missing(path: &Path, mode: u32) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("cannot create folder {}", path.display()))?;
    let named = missing.iter().filter(|folder| !folder.as_os_str().is_empty());
    named.rev().try_for_each(|folder| sync_folder(folder_of(folder)?))
}

/// The time as a name that sorts: `20261124T000821734`.
pub fn stamp() -> String {
    let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    now.chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect()
}

/// SHA-256 of a file as lowercase hex.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = open_regular(path)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(format!("{:x}", hash.finalize())),
            Ok(read) => hash.update(&block[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// SHA-256 of bytes as lowercase hex.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Reads a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read(path)?;
    serde_json::from_slice(&bytes).with_context(|| format!("cannot understand {}", path.display()))
}

/// Writes a value as a JSON file.
pub fn write_json(path: &Path, value: &impl Serialize, mode: Mode) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write(path, &text, mode)
}

/// Reads a file, or returns nothing if it does not exist. Any other problem is an error.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match whole(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The names in a folder, sorted; none if the folder does not exist.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
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

/// The names of all files in a folder and below it, relative to `root`. An error if there are more than `most`.
pub fn below(root: &Path, folder: &str, most: usize) -> Result<Vec<String>> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for name in names(&root.join(&folder))? {
            let name = format!("{folder}/{name}");
            if root.join(&name).is_dir() {
                open.push(name)
            } else {
                found.push(name)
            }
            ensure!(
                found.len() + open.len() <= most,
                "{} has more than {most} files",
                root.join(&folder).display()
            );
        }
    }
    Ok(found)
}

/// Removes a file, or a folder with everything in it, and returns the bytes that this
/// freed; 0 if it does not exist.
pub fn remove(path: &Path) -> Result<u64> {
    let bytes = size(path)?;
    before("remove a file")?;
    let removed = if path.is_dir() && !path.is_symlink() {
        // What is just being ended may write into it once more.
        let ask = || match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Continue(e),
            other => Break(other),
        };
        Deadline::after(LAST_WRITES).poll(Duration::from_millis(5), ask).unwrap_or_else(Err)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(bytes),
    }
}

/// Bytes in a file, or in all files below a folder; 0 if it does not exist.
pub fn size(path: &Path) -> Result<u64> {
    let data = match std::fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e).with_context(|| format!("cannot read the size of {}", path.display())),
    };
    if !data.is_dir() {
        return Ok(data.len());
    }
    names(path)?.iter().map(|name| size(&path.join(name))).sum()
}

/// A number of bytes for people, such as `1.5 MiB`.
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

/// The last `bytes` of an open file as text, for messages.
pub fn tail(mut file: &File, bytes: u64) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A private file without a name. Nothing is left of it, however this process ends.
pub fn anonymous() -> Result<File> {
    let name = format!("pilot-out-{}", random()?);
    temporary(|folder| {
        let path = folder.join(&name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    })
}

/// Makes something in the system's temporary folder, or in the next one if that is missing or
/// cannot be written. `make` must use a random name and must not replace anything, because
/// other users share the folder.
fn temporary<T>(make: impl Fn(&Path) -> std::io::Result<T>) -> Result<T> {
    let mut tried = Vec::new();
    for folder in temporary_folders() {
        match make(&folder) {
            Ok(made) => return Ok(made),
            Err(error) => tried.push(format!("{}: {error}", folder.display())),
        }
    }
    bail!("cannot create a temporary file: {}; set TMPDIR to a folder that can be written", tried.join("; "))
}

fn temporary_folders() -> Vec<PathBuf> {
    let first = std::env::temp_dir();
    let others = ["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from).into_iter().filter(|f| *f != first);
    std::iter::once(first.clone()).chain(others.collect::<Vec<_>>()).collect()
}

/// The private folders for this purpose in the system's temporary folders. They outlive the process
/// that made them. Their names end in random digits, or another user could make them first; only
/// folders of this user are found.
pub fn own_temporaries(purpose: &str) -> Vec<PathBuf> {
    let me = rustix::process::geteuid().as_raw();
    let ours = |path: &PathBuf| {
        let data = std::fs::symlink_metadata(path);
        data.is_ok_and(|data| data.is_dir() && data.uid() == me && data.mode() & 0o077 == 0)
    };
    let begin = format!("{purpose}-");
    let mut found = Vec::new();
    for folder in temporary_folders() {
        let mut names = names(&folder).unwrap_or_default();
        names.retain(|name| name.strip_prefix(&begin).is_some_and(|end| end.len() == 32));
        found.extend(names.iter().map(|name| folder.join(name)).filter(ours));
    }
    found
}

/// The first of these folders, or a new one.
pub fn own_temporary(purpose: &str) -> Result<PathBuf> {
    if let Some(found) = own_temporaries(purpose).into_iter().next() {
        return Ok(found);
    }
    let name = format!("{purpose}-{}", random()?);
    temporary(|folder| private_folder(folder.join(&name)))
}

fn private_folder(path: PathBuf) -> std::io::Result<PathBuf> {
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// A temporary folder, removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one in the system's temporary folder. `purpose` is a part of its name.
    pub fn new(purpose: &str) -> Result<Self> {
        let name = format!("pilot-{purpose}-{}", random()?);
        temporary(|folder| private_folder(folder.join(&name))).map(Self)
    }

    /// Its path.
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
    fn a_path_that_is_only_a_name_is_in_the_current_folder() {
        assert_eq!(folder_of(Path::new("plan.json")).unwrap(), Path::new("."));
        assert_eq!(folder_of(Path::new("a/plan.json")).unwrap(), Path::new("a"));
    }

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
    fn what_is_no_regular_file_is_neither_waited_for_nor_read() {
        let scratch = Scratch::new("files-test").unwrap();
        let at = |name: &str| scratch.path().join(name);
        std::fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        );
        made.unwrap();
        File::create(at("endless")).unwrap().set_len(WHOLE + 1).unwrap();
        for name in ["folder", "zero", "pipe", "endless"] {
            assert!(read_if_there(&at(name)).is_err(), "{name}");
            assert!(read_json::<serde_json::Value>(&at(name)).is_err(), "{name}");
        }
        assert!(sha256(&at("pipe")).is_err() && copy(&at("pipe"), &at("copy"), Mode::Plain).is_err());
        assert!(append(&at("pipe")).is_err() && append(&at("zero")).is_err());
        assert!(read_if_there(&at("nothing")).unwrap().is_none());
    }

    #[test]
    fn a_temporary_folder_is_found_again_unless_it_is_somebody_elses() {
        let purpose = format!("pilot-own-{}", random().unwrap());
        // What another may have put there: a link, and a folder that all may write.
        let open = std::env::temp_dir().join(format!("{purpose}-{}", "0".repeat(32)));
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let link = std::env::temp_dir().join(format!("{purpose}-{}", "1".repeat(32)));
        std::os::unix::fs::symlink(&open, &link).unwrap();
        let first = own_temporary(&purpose).unwrap();
        let second = own_temporary(&purpose).unwrap();
        for path in [&open, &link, &first] {
            remove(path).unwrap();
        }
        assert_eq!(first, second);
        assert!(first != open && first != link, "{}", first.display());
    }

    #[test]
    fn checksums_are_sha256() {
        assert_eq!(sha256_bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
