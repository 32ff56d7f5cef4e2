//! The records that every command must know: which release runs, who holds the gate closed, which command
//! changes the stack now, and which one is opening the gate. A small store: put if absent, read, replace,
//! remove. The truth is with the engine, for every client of it, where the engine keeps records (`shelf`); the files in
//! the state folder are a copy for the day when the engine has lost everything, and all there is for an engine that keeps
//! none. No other code opens these files. What a record means is not known here.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Mode};
use crate::base::lock;
use crate::base::signals;
use crate::stack::gone::Gone;
use crate::stack::lease::{EngineLock, Renewal};
use crate::stack::shared::Shared;
use crate::stack::shelf::Shelf;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result, anyhow};
use rustix::fs::OFlags;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What begins the names of holds at the engine.
const HOLD: &str = "hold.";

/// What was removed on purpose: the name of its record at the engine.
const GONE: &str = "gone";

/// How fresh an answer of the engine must be for a question that does not decide whether the public is let in.
const RECENT: Duration = Duration::from_secs(1);

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
    /// A record of an older version: `kill-switch on` had stopped the gateway. Only the state folder has it.
    Fence,
}

impl Record<'_> {
    /// Its name at the engine; none if the state folder alone has it.
    fn at_engine(self) -> Option<String> {
        match self {
            Self::Running => Some("running".into()),
            Self::Hold(id) => Some(format!("{HOLD}{id}")),
            Self::Closing => Some("closing".into()),
            Self::Fence => None,
        }
    }
}

/// The records of one stack.
#[derive(Clone, Debug)]
pub struct Ledger {
    state: StateDir,
    engine: Option<Arc<AtEngine>>,
}

#[derive(Debug)]
struct AtEngine {
    shared: Arc<Shared>,
    lock: EngineLock,
}

/// The lock of a command that is opening the gate. It is taken before the first look at the holds, and
/// released after the second.
#[must_use]
pub struct Opening(#[allow(dead_code, reason = "the file is the lock")] Option<File>);

/// The lock of a stack; it is free again when this is dropped.
#[must_use]
pub struct Lock {
    _folder: lock::Lock,
    engine: Option<Arc<AtEngine>>,
    renewal: Option<Renewal>,
    /// What was taken over, in words.
    pub over: Option<String>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // After a panic it is left as after a kill.
        if let Some(engine) = self.engine.take().filter(|_| !std::thread::panicking()) {
            signals::forget_release();
            drop(self.renewal.take());
            // It ends by itself, and a client of this machine sees that this process is gone.
            engine.lock.release().ok();
        }
    }
}

impl Ledger {
    /// The ledger in a state folder alone. The folder need not exist yet.
    pub fn new(state: &StateDir) -> Self {
        Self { state: state.clone(), engine: None }
    }

    /// The ledger of a stack whose engine keeps records on this shelf, if it keeps any. A change there may take `limit`.
    pub fn of(state: &StateDir, shelf: Option<Box<dyn Shelf>>, limit: Duration) -> Self {
        let at_engine = |shelf| {
            let shared = Arc::new(Shared::new(shelf, limit));
            Arc::new(AtEngine { lock: EngineLock::new(shared.clone()), shared })
        };
        Self { state: state.clone(), engine: shelf.map(at_engine) }
    }

    /// The records at the engine; none if it keeps none.
    pub fn shared(&self) -> Option<&Shared> {
        self.engine.as_ref().map(|engine| engine.shared.as_ref())
    }

    /// Takes the lock of the stack for `command`, which takes about as long as `need`. The error (exit 5) says who
    /// has it. An engine that does not answer gives no lock (exit 4).
    pub fn lock(&self, command: &str, need: Duration) -> Result<Lock> {
        let mut lock = self.lock_folder(command)?;
        if let Some(engine) = &self.engine {
            lock.over = engine.lock.acquire(command, need)?;
            let (renewing, releasing) = (engine.clone(), engine.clone());
            signals::on_release(move || drop(releasing.lock.release_now()));
            lock.renewal = Some(Renewal::begin(move || drop(renewing.lock.renew())));
            lock.engine = Some(engine.clone());
        }
        Ok(lock)
    }

    /// Takes the lock in the state folder alone.
    pub fn lock_folder(&self, command: &str) -> Result<Lock> {
        let folder = lock::take(self.state.path(), &self.state.lock(), command)?;
        Ok(Lock { _folder: folder, engine: None, renewal: None, over: None })
    }

    /// Takes the lock in the state folder now, and that at the engine before anything else than shutting the public out is
    /// done: for an engine that does not answer.
    pub fn lock_later(&self, command: &str, need: Duration) -> Result<Lock> {
        let mut lock = self.lock_folder(command)?;
        if let Some(engine) = &self.engine {
            engine.lock.acquire_later(command, need);
            lock.engine = Some(engine.clone());
        }
        Ok(lock)
    }

    /// Makes sure that this process still has the lock at the engine, for what takes `need` at most. The error (exit 5)
    /// says who has it.
    pub fn keep(&self, need: Duration) -> Result<()> {
        self.engine.as_ref().map_or(Ok(()), |engine| engine.lock.keep(need))
    }

    /// Has this process the lock at the engine? Always if the engine keeps no records.
    pub fn has_lock(&self) -> bool {
        self.engine.as_ref().is_none_or(|engine| engine.lock.has_lock())
    }

    /// Which command is changing the stack at this moment, in words; none if there is none. It is an error if the engine
    /// does not tell it.
    pub fn holder(&self) -> Result<Option<String>> {
        match lock::holder(self.state.path(), &self.state.lock()) {
            Some(holder) => Ok(Some(holder)),
            None => self.other_client(),
        }
    }

    /// The command of a client with another state folder, in words; none if none works.
    fn other_client(&self) -> Result<Option<String>> {
        match self.engine.as_ref().filter(|engine| !engine.lock.has_lock()) {
            Some(engine) => engine.lock.holder(),
            None => Ok(None),
        }
    }

    /// Is a command changing the stack at this moment, as far as is known?
    pub fn is_locked(&self) -> bool {
        lock::is_held(self.state.path()) || self.other_client().is_ok_and(|who| who.is_some())
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

    /// The same for clients with another state folder, which may have looked for holds just before one was placed: waits
    /// while one of them works, until the deadline. By then it has seen the hold. Says who still works. It is an error if
    /// the engine does not tell it.
    pub fn others_opened(&self, deadline: Deadline) -> Result<Option<String>> {
        let waited = deadline.poll(Duration::from_millis(200), || match self.other_client() {
            Ok(Some(who)) => Continue(who),
            Ok(None) => Break(Ok(None)),
            Err(error) => Break(Err(error)),
        });
        waited.unwrap_or_else(|who| Ok(Some(who)))
    }

    /// Writes a record into the state folder if there is none; returns false if there is one. Synced before it returns.
    pub fn put_here(&self, record: Record<'_>, bytes: &[u8]) -> Result<bool> {
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
        files::sync_folder(folder).map(|()| true)
    }

    /// Puts a record at the engine if there is none; returns false if there is one.
    pub fn share(&self, record: Record<'_>, bytes: &[u8]) -> Result<bool> {
        match (self.shared(), record.at_engine()) {
            (Some(shared), Some(name)) => shared.add(&name, &text(bytes), false),
            _ => Ok(true),
        }
    }

    /// Writes a record and replaces an existing one, completely or not at all.
    pub fn replace(&self, record: Record<'_>, bytes: &[u8]) -> Result<()> {
        if let (Some(shared), Some(name)) = (self.shared(), record.at_engine()) {
            shared.replace(&name, &text(bytes), false)?;
        }
        files::write(&self.path(record), bytes, Mode::Private)
    }

    /// Reads a record; nothing if there is none. Any other problem is an error. What the engine has lost is in the
    /// state folder, but for `Closing`: another client may have opened the gate since.
    pub fn read(&self, record: Record<'_>) -> Result<Option<Vec<u8>>> {
        let known = self.shared().filter(|shared| shared.is_known()).zip(record.at_engine());
        if let Some((shared, name)) = known {
            let kept = shared.newest(&name);
            if kept.is_some() || record == Record::Closing {
                return Ok(kept.map(|kept| kept.text.into_bytes()));
            }
        }
        files::read_if_there(&self.path(record))
    }

    /// Removes a record. It is no error if the record is gone already. That a hold is lifted is written down first: its
    /// copies in the folders of other clients must not bring it back.
    pub fn remove(&self, record: Record<'_>) -> Result<()> {
        if let (Some(shared), Some(name)) = (self.shared(), record.at_engine()) {
            if let Record::Hold(id) = record {
                self.note_gone(&|gone| gone.lift(id))?;
            }
            shared.remove(&name)?;
        }
        self.remove_here(record)
    }

    fn remove_here(&self, record: Record<'_>) -> Result<()> {
        let path = self.path(record);
        files::remove(&path)?;
        path.parent().filter(|folder| folder.exists()).map_or(Ok(()), files::sync_folder)
    }

    /// Ids of the holds that stand: at the engine, which is asked, or in the state folder. It is an error if the engine
    /// does not answer.
    pub fn holds(&self) -> Result<Vec<String>> {
        if let Some(shared) = self.shared() {
            shared.look()?;
        }
        self.known_holds()
    }

    /// The same, as far as is known without asking the engine.
    fn known_holds(&self) -> Result<Vec<String>> {
        let names = files::names(&self.state.holds())?;
        let mut all: BTreeSet<String> = names.into_iter().filter(|name| !name.starts_with('.')).collect();
        if let Some(shared) = self.shared() {
            all.extend(shared.named(HOLD).into_iter().map(|(id, _)| id));
            let gone = self.gone()?;
            all.retain(|id| !gone.is_lifted(id));
        }
        Ok(all.into_iter().collect())
    }

    /// What was removed on purpose, as the engine and the state folder know it.
    pub fn gone(&self) -> Result<Gone> {
        let here = files::read_if_there(&self.state.gone())?;
        let there = self.shared().and_then(|shared| shared.newest(GONE));
        let mut all = Gone::default();
        for text in here.iter().map(Vec::as_slice).chain(there.as_ref().map(|kept| kept.text.as_bytes())) {
            all.add(&Gone::parse(text)?);
        }
        Ok(all)
    }

    /// Writes down that something is removed on purpose.
    pub fn note_gone(&self, how: &dyn Fn(&mut Gone)) -> Result<()> {
        let Some(shared) = self.shared() else { return Ok(()) };
        let mut all = self.gone()?;
        how(&mut all);
        shared.change(GONE, false, &|now| {
            let mut gone = now.map(|text| Gone::parse(text.as_bytes())).transpose()?.unwrap_or_default();
            gone.add(&all);
            gone.text()
        })?;
        files::write(&self.state.gone(), self.gone()?.text()?.as_bytes(), Mode::Private)
    }

    /// Asks the engine, unless it was asked a moment ago, and copies what it knows into the state folder.
    pub fn look(&self) -> Result<()> {
        let Some(shared) = self.shared() else { return Ok(()) };
        shared.look_within(RECENT)?;
        let gone = self.gone()?;
        let here = files::names(&self.state.holds())?;
        for id in here.iter().filter(|id| gone.is_lifted(id)) {
            self.remove_here(Record::Hold(id))?;
        }
        for (id, kept) in shared.named(HOLD).into_iter().filter(|(id, _)| !gone.is_lifted(id)) {
            if files::stays_within(&id) && !id.contains('/') && !here.contains(&id) {
                self.put_here(Record::Hold(&id), kept.text.as_bytes())?;
            }
        }
        if let Some(kept) = shared.newest("running") {
            let path = self.path(Record::Running);
            if files::read_if_there(&path)?.as_deref() != Some(kept.text.as_bytes()) {
                files::write(&path, kept.text.as_bytes(), Mode::Private)?;
            }
        }
        if shared.newest(GONE).is_some()
            && files::read_if_there(&self.state.gone())? != Some(gone.text()?.into())
        {
            files::write(&self.state.gone(), gone.text()?.as_bytes(), Mode::Private)?;
        }
        Ok(())
    }

    /// Puts what the engine has lost back there: holds, which release runs, and what was removed on purpose. Returns what
    /// it was, in words. Called under the lock.
    pub fn put_back(&self) -> Result<Vec<String>> {
        let Some(shared) = self.shared().filter(|shared| shared.is_known()) else { return Ok(Vec::new()) };
        let (gone, mut told) = (self.gone()?, Vec::new());
        if shared.newest(GONE).is_none() && !gone.is_empty() {
            shared.add(GONE, &gone.text()?, false)?;
        }
        for id in self.known_holds()? {
            let record = Record::Hold(&id);
            if let Some(bytes) =
                files::read_if_there(&self.path(record))?.filter(|_| self.share_missing(record))
            {
                self.share(record, &bytes)?;
                told.push(format!("hold {id}"));
            }
        }
        if let Some(bytes) =
            files::read_if_there(&self.path(Record::Running))?.filter(|_| self.share_missing(Record::Running))
        {
            self.share(Record::Running, &bytes)?;
            told.push("which release runs".into());
        }
        Ok(told)
    }

    fn share_missing(&self, record: Record<'_>) -> bool {
        let name = record.at_engine();
        self.shared().zip(name).is_some_and(|(shared, name)| shared.newest(&name).is_none())
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

/// A record as text: what the engine keeps has no other bytes.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
        assert!(ledger.put_here(hold, b"one").unwrap());
        assert!(!ledger.put_here(hold, b"two").unwrap());
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
