//! The processes of this host as `/proc` tells them (proc(5)): what each was started with, what it has open,
//! who holds a lock, and ending exactly the process that was looked at. Nothing here knows a pilot. Called by
//! `lock` and by the engines.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A process, by its id: it may have ended since, so everything that is asked of it may have no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(i32);

/// What `/proc/PID/stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `T` (stopped), …
    pub state: char,
    /// Threads.
    pub threads: u64,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Clock ticks from the boot of the host to the start of the process.
    started: u64,
}

/// All processes that there are now.
pub fn all() -> Result<Vec<Process>> {
    let entries = std::fs::read_dir("/proc").context("cannot read /proc, where the processes are listed")?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids.map(Process).collect())
}

/// Who holds an advisory lock on this file (flock(2)), through whichever name it was opened. Nothing where
/// that cannot be seen: another user's process, or another host's.
pub fn holder_of(file: &File) -> Option<Process> {
    let wanted = file.metadata().ok()?;
    all().ok()?.into_iter().find(|process| {
        let fds = std::fs::read_dir(process.path("fdinfo")).into_iter().flatten().flatten();
        let fds = fds.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let mut locked = fds.filter(|fd| {
            process.text(&format!("fdinfo/{fd}")).is_some_and(|text| {
                text.lines().any(|l| l.starts_with("lock:") && l.contains(&format!(":{} ", wanted.ino())))
            })
        });
        locked.any(|fd| process.has_open(fd, &wanted))
    })
}

impl Process {
    /// With this id.
    pub fn new(pid: i32) -> Self {
        Self(pid)
    }

    /// Its id.
    pub fn id(self) -> i32 {
        self.0
    }

    fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }

    fn text(self, name: &str) -> Option<String> {
        let bytes = std::fs::read(self.path(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What it was started with, the program first; nothing where it has ended.
    pub fn words(self) -> Vec<String> {
        let text = self.text("cmdline").unwrap_or_default();
        text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
    }

    /// Its short name.
    pub fn name(self) -> String {
        self.text("comm").unwrap_or_default().trim().to_owned()
    }

    /// The environment that it was started with.
    pub fn env(self) -> Vec<(String, String)> {
        let text = self.text("environ").unwrap_or_default();
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// One variable of it.
    pub fn variable(self, name: &str) -> Option<String> {
        self.env().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Do paths mean the same to it as to us? Not for what runs in a container.
    pub fn sees_our_files(self) -> bool {
        let ours = std::fs::read_link("/proc/self/ns/mnt");
        matches!((std::fs::read_link(self.path("ns/mnt")), ours), (Ok(theirs), Ok(ours)) if theirs == ours)
    }

    /// Is this very file open in it under this number? The inode is compared first, because a look at a file
    /// of a server that does not answer would hang.
    pub fn has_open(self, fd: u32, file: &Metadata) -> bool {
        let inode =
            |text: &str| text.lines().find_map(|l| l.strip_prefix("ino:")?.trim().parse::<u64>().ok());
        let Some(info) = self.text(&format!("fdinfo/{fd}")) else { return false };
        if inode(&info).is_some_and(|inode| inode != file.ino()) {
            return false;
        }
        let found = std::fs::metadata(self.path(&format!("fd/{fd}")));
        found.is_ok_and(|found| found.dev() == file.dev() && found.ino() == file.ino())
    }

    /// Does one of its open files have this text as its link (`socket:[123]`)?
    pub fn has_link(self, text: &str) -> bool {
        let fds = std::fs::read_dir(self.path("fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|link| link.as_os_str() == text)
    }

    /// State, size and start; nothing where it has ended.
    pub fn stat(self) -> Option<Stat> {
        let text = self.text("stat")?;
        // Behind the name, which may hold anything; the third field of proc(5) comes first.
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Stat {
            state: fields.first()?.chars().next()?,
            threads: number(20)?,
            memory: number(24)? * rustix::param::page_size() as u64,
            started: number(22)?,
        })
    }

    /// When it was started.
    pub fn since(self) -> Option<SystemTime> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: u64 = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
        let ticks = rustix::param::clock_ticks_per_second();
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(boot + self.stat()?.started / ticks.max(1)))
    }

    /// Is it there, whoever's it is?
    pub fn is_there(self) -> bool {
        let Some(pid) = Pid::from_raw(self.0) else { return false };
        !matches!(test_kill_process(pid), Err(error) if error == rustix::io::Errno::SRCH)
    }

    /// Ends it at once if it is `still` the one that is meant. The process is held on to before that is
    /// asked, so that its id cannot pass to another meanwhile.
    pub fn end(self, still: impl Fn(Self) -> bool) {
        let Some(pid) = Pid::from_raw(self.0).filter(|_| self.0 > 1) else { return };
        #[cfg(target_os = "linux")]
        if let Ok(held) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            if still(self) {
                rustix::process::pidfd_send_signal(held, Signal::KILL).ok();
            }
            return;
        }
        if still(self) {
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::files;
    use std::process::{Command, Stdio};

    #[test]
    fn what_another_process_has_open_and_holds_is_seen_even_without_a_name() {
        let scratch = files::Scratch::new("proctable-test").unwrap();
        let path = scratch.path().join("f");
        let file = File::create(&path).unwrap();
        file.lock().unwrap();
        let started = Command::new("sleep").arg("600").stdin(Stdio::from(file)).spawn();
        let mut child = started.unwrap();
        let process = Process::new(i32::try_from(child.id()).unwrap());
        let again = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(holder_of(&again), Some(process));
        assert!(process.has_open(0, &again.metadata().unwrap()));
        assert!(process.sees_our_files() && all().unwrap().contains(&process));
        assert_eq!(process.words().last().unwrap(), "600");
        let age = process.since().unwrap().elapsed().unwrap_or_default();
        assert!(age < Duration::from_secs(3600), "{age:?}");
        process.end(|_| false);
        assert!(child.try_wait().unwrap().is_none());
        process.end(|p| p.words().contains(&"600".to_owned()));
        child.wait().unwrap();
        assert!(!process.is_there());
        assert_eq!((process.stat(), holder_of(&again)), (None, None));
    }
}
