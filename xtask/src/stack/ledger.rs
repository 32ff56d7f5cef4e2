//! The records that every command must know: which release runs, who holds the gate closed, which command
//! changes the stack now, and which one is opening the gate. A small store: put if absent, read, replace,
//! remove. The records are files in the state folder, and no other code opens these files. Nothing here knows
//! what a record means.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Mode};
use crate::base::lock::{self, Lock};
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result, anyhow};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Id of the release that runs, or that was being deployed when a run was cut off.
    Running,
    /// A hold, by its id.
    Hold(&'a str),
    /// Why the gate was closed, for a gate that cannot tell it. Written by whoever closed it; removed when it
    /// is open.
    Closing,
    /// A record of an older version: `kill-switch on` had stopped the gateway.
    Fence,
}

/// The records of one stack.
#[derive(Clone, Debug)]
pub struct Ledger {
    state: StateDir,
}

/// The lock of a command that is opening the gate. It is taken before the first look at the holds, and
/// released after the second.
#[must_use]
pub struct Opening(#[allow(dead_code, reason = "the file is the lock")] Option<File>);

impl Ledger {
    /// The ledger in a state folder. The folder need not exist yet.
    pub fn new(state: &StateDir) -> Self {
        Self { state: state.clone() }
    }

    /// Takes the lock of the stack for `command`. The error (exit 5) says who has it.
    pub fn lock(&self, command: &str) -> Result<Lock> {
        lock::take(self.state.path(), &self.state.lock(), command)
    }

    /// Which command is changing the stack at this moment, in words; none if there is none.
    pub fn holder(&self) -> Option<String> {
        lock::holder(self.state.path(), &self.state.lock())
    }

    /// Is a command changing the stack at this moment?
    pub fn is_locked(&self) -> bool {
        lock::is_held(self.state.path())
    }

    /// Waits until no other command is opening the gate, and keeps others from it until the result is
    /// dropped. If the file cannot be created, no hold can be written either, so there is nobody to wait for.
    /// Errors if another command is still opening the gate at the deadline.
    pub fn opening(&self, deadline: Deadline) -> Result<Opening> {
        let path = self.state.opening();
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(files::flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
            .open(&path);
        let Ok(file) = made else { return Ok(Opening(None)) };
        let locked = deadline.poll(Duration::from_millis(5), || match file.try_lock() {
            Ok(()) => Break(Ok(())),
            Err(TryLockError::WouldBlock) => Continue(anyhow!("another command is still opening the gate")),
            Err(TryLockError::Error(error)) => {
                Break(Err(error).with_context(|| format!("cannot lock {}", path.display())))
            }
        });
        locked.flatten().map(|()| Opening(Some(file)))
    }

    /// Writes a record if there is none; returns false if there is one. Synced before it returns.
    pub fn put(&self, record: Record<'_>, bytes: &[u8]) -> Result<bool> {
        let path = self.path(record);
        let folder = path.parent().context("a record needs a folder")?;
        files::make_folder(folder)?;
        // Written under another name first, then published by a hard link. A link is never half there,
        // and never replaces a file.
        let staging = folder.join(format!(".{}.{}.new", name(&path), std::process::id()));
        files::remove(&staging)?;
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staging);
        let published = written
            .and_then(|mut out| out.write_all(bytes).and_then(|()| out.sync_all()))
            .and_then(|()| std::fs::hard_link(&staging, &path));
        files::remove(&staging).ok();
        match published {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
        sync(folder).map(|()| true)
    }

    /// Writes a record and replaces an existing one, completely or not at all.
    pub fn replace(&self, record: Record<'_>, bytes: &[u8]) -> Result<()> {
        files::write(&self.path(record), bytes, Mode::Private)
    }

    /// Reads a record; nothing if there is none. Any other problem is an error.
    pub fn read(&self, record: Record<'_>) -> Result<Option<Vec<u8>>> {
        files::read_if_there(&self.path(record))
    }

    /// Removes a record. It is no error if the record is gone already.
    pub fn remove(&self, record: Record<'_>) -> Result<()> {
        let path = self.path(record);
        files::remove(&path)?;
        path.parent().filter(|folder| folder.exists()).map_or(Ok(()), sync)
    }

    /// Ids of the holds that stand.
    pub fn holds(&self) -> Result<Vec<String>> {
        let names = files::names(&self.state.holds())?;
        Ok(names.into_iter().filter(|name| !name.starts_with('.')).collect())
    }

    fn path(&self, record: Record<'_>) -> PathBuf {
        match record {
            Record::Running => self.state.current(),
            Record::Hold(id) => self.state.holds().join(id),
            Record::Closing => self.state.closing(),
            Record::Fence => self.state.fence(),
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("cannot sync {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_put_once_and_read_until_it_is_removed() {
        let scratch = files::Scratch::new("ledger-test").unwrap();
        let ledger = Ledger::new(&StateDir::new(scratch.path().join("state")));
        let hold = Record::Hold("a");
        assert_eq!(ledger.read(hold).unwrap(), None);
        assert!(ledger.put(hold, b"one").unwrap());
        assert!(!ledger.put(hold, b"two").unwrap());
        assert_eq!(ledger.read(hold).unwrap().unwrap(), b"one");
        ledger.replace(hold, b"three").unwrap();
        assert_eq!(ledger.holds().unwrap(), ["a"]);
        ledger.remove(hold).unwrap();
        ledger.remove(hold).unwrap();
        assert_eq!(ledger.holds().unwrap(), [""; 0]);
        assert_eq!(ledger.read(hold).unwrap(), None);
    }

    #[test]
    fn only_one_is_opening_at_a_time() {
        let scratch = files::Scratch::new("opening-test").unwrap();
        let ledger = Ledger::new(&StateDir::new(scratch.path()));
        let soon = || Deadline::after(Duration::from_millis(20));
        let first = ledger.opening(soon()).unwrap();
        assert!(ledger.opening(soon()).is_err());
        drop(first);
        drop(ledger.opening(soon()).unwrap());
    }
}
