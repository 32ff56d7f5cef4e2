//! What must be known whoever asks: which release runs, who holds the gate closed, who changes the stack
//! now, and whether somebody opens the gate at this moment. One small store of records: put if absent, read,
//! replace, remove. Its only place today is the state folder; no other code opens these files. Knows
//! nothing of what the records mean.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::files::Mode;
use crate::base::lock;
use crate::base::lock::Lock;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result, anyhow};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Id of the release that runs, or that was being deployed when something went wrong.
    Running,
    /// A hold of the gate, by its id.
    Hold(&'a str),
    /// Left by an older version: `kill-switch on` had stopped the gateway.
    Fence,
}

/// The records of one stack.
#[derive(Clone, Debug)]
pub struct Ledger {
    state: StateDir,
}

/// Held by whoever is between deciding to open the gate and having looked at the holds again.
#[must_use]
pub struct Opening(#[allow(dead_code, reason = "the file is the lock")] Option<File>);

impl Ledger {
    /// The ledger in a state folder, which need not exist yet.
    pub fn new(state: &StateDir) -> Self {
        Self { state: state.clone() }
    }

    /// Takes the lock of the stack for `command`, or says who has it (exit 5).
    pub fn lock(&self, command: &str) -> Result<Lock> {
        lock::take(self.state.path(), &self.state.lock(), command)
    }

    /// Does somebody change the stack at this moment?
    pub fn is_locked(&self) -> bool {
        lock::is_held(self.state.path())
    }

    /// Waits until nobody opens the gate, and keeps everybody else from it until dropped. Where the file
    /// cannot be made no hold can be written either, so there is nobody to wait for. Errors when somebody is
    /// still at it at the deadline.
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
            Err(TryLockError::WouldBlock) => Continue(anyhow!("somebody is still opening the gate")),
            Err(TryLockError::Error(error)) => {
                Break(Err(error).with_context(|| format!("cannot lock {}", path.display())))
            }
        });
        locked.flatten().map(|()| Opening(Some(file)))
    }

    /// Writes a record unless there is one; false where there is. Synced before it returns.
    pub fn put(&self, record: Record<'_>, bytes: &[u8]) -> Result<bool> {
        let path = self.path(record);
        let folder = path.parent().context("a record needs a folder")?;
        files::make_folder(folder)?;
        // Written under another name first, and published by a link, which is never half there and never
        // replaces anything.
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

    /// Writes a record in place of the one that is there, if any, as a whole or not at all.
    pub fn replace(&self, record: Record<'_>, bytes: &[u8]) -> Result<()> {
        files::write(&self.path(record), bytes, Mode::Private)
    }

    /// A record, or nothing where there is none. Other trouble is an error.
    pub fn read(&self, record: Record<'_>) -> Result<Option<Vec<u8>>> {
        files::read_if_there(&self.path(record))
    }

    /// Removes a record; one that is gone already is no error.
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
