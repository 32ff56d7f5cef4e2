//! What systems other than Linux (macOS, the BSDs) tell about the machine: processes and memory through the crate
//! sysinfo, listeners through lsof(8). Which process has which file open is unknown here, so local processes cannot
//! be told apart (`SHOWS_OPEN_FILES`). Called only by `machine`.

use super::{Process, Stat};
use crate::base::deadline::Deadline;
use crate::base::proc::cmd;
use anyhow::{Result, bail, ensure};
use std::fs::{File, Metadata, TryLockError};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

/// Can this system say which process has which file open?
pub const SHOWS_OPEN_FILES: bool = false;

/// Does a port that can be bound have no listener? Here an address can be bound beside a listener on all addresses.
pub const BIND_TELLS: bool = false;

/// Nobody asks for processes where their open files are unknown.
pub fn all() -> Result<Vec<Process>> {
    bail!("this system does not tell which files a process has open")
}

/// Who holds a lock is unknown here.
pub fn holder_of(_: &File) -> Option<Process> {
    None
}

/// Does a process hold an advisory lock on this file? It is locked for a moment to find out; who wants the lock in that
/// moment asks again.
pub fn is_locked(file: &File) -> bool {
    match file.try_lock_shared() {
        Ok(()) => file.unlock().is_err(),
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    }
}

/// The process that listens on a TCP port; nothing if it cannot be seen.
pub fn listener_on(port: u16) -> Option<Process> {
    let of_port = format!("-iTCP:{port}");
    let asked = cmd("lsof", &["-nP", &of_port, "-sTCP:LISTEN", "-t"]);
    let found = asked.run(Deadline::after(Duration::from_secs(2))).ok()?;
    found.lines().next()?.trim().parse().ok().map(Process::new)
}

/// Which processes this one can see, as a word: this system does not tell it.
pub fn processes() -> Option<String> {
    None
}

/// How many processes ran or waited to run in the last minute, on average.
pub fn load() -> Option<f64> {
    Some(System::load_average().one).filter(|load| *load > 0.0)
}

/// Memory that programs can still get, in bytes.
pub fn available_memory() -> Result<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let bytes = system.available_memory();
    ensure!(bytes > 0, "this system does not tell how much memory is available");
    Ok(bytes)
}

/// The file of a running program has no other name here.
pub fn own_file() -> Option<PathBuf> {
    None
}

impl Process {
    fn ask<T>(self, question: impl FnOnce(&sysinfo::Process) -> T) -> Option<T> {
        let id = Pid::from_u32(u32::try_from(self.id()).ok()?);
        let mut system = System::new();
        let what = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always);
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), true, what);
        system.process(id).map(question)
    }

    /// Its command line, the program first; empty if it has ended or belongs to another user.
    pub fn words(self) -> Vec<String> {
        let words = |process: &sysinfo::Process| {
            process.cmd().iter().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        self.ask(words).unwrap_or_default()
    }

    /// Its short name.
    pub fn name(self) -> String {
        self.ask(|process| process.name().to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The environment that it was started with is unknown here.
    pub fn env(self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// There are no namespaces here.
    pub fn sees_our_files(self) -> bool {
        true
    }

    /// Which files it has open is unknown here.
    pub fn has_open(self, _: u32, _: &Metadata) -> bool {
        false
    }

    /// Was it stopped (SIGSTOP, Ctrl-Z)? False if it has ended.
    pub fn is_stopped(self) -> bool {
        self.ask(|process| process.status() == ProcessStatus::Stop).unwrap_or(false)
    }

    /// Threads and memory are asked for only where processes can be told apart.
    pub fn stat(self) -> Option<Stat> {
        None
    }

    /// When it was started; nothing if it has ended.
    pub fn since(self) -> Option<SystemTime> {
        let started = self.ask(sysinfo::Process::start_time)?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(started))
    }
}
