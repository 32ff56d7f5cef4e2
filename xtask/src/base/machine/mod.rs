//! The machine that this program runs on: its processes, locks, ports, memory, disks and names. The only module that
//! asks the operating system for them. What a system does not tell is nothing or an error, never a guess: Linux tells
//! everything (`linux`), other systems what the crate sysinfo and lsof(8) find out (`elsewhere`). Nothing here knows a
//! stack.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
use elsewhere as system;
#[cfg(target_os = "linux")]
use linux as system;

pub use system::{
    BIND_TELLS, SHOWS_OPEN_FILES, all, available_memory, holder_of, is_locked, listener_on, load, processes,
};

use crate::base::deadline::Deadline;
use crate::base::proc::cmd;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process, by its id. It may have ended in the meantime, so every question about it may have no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(i32);

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R` (running), `S` (sleeping), `T` (stopped), …
    state: char,
    /// Number of threads.
    pub threads: u64,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Clock ticks from the boot of the host to the start of the process.
    started: u64,
}

impl Process {
    /// The process with this id.
    pub fn new(pid: i32) -> Self {
        Self(pid)
    }

    /// Its id.
    pub fn id(self) -> i32 {
        self.0
    }

    /// One variable of the environment that it was started with; nothing if it is not set or not known.
    pub fn variable(self, name: &str) -> Option<String> {
        self.env().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Does it exist, as a process of any user?
    pub fn is_there(self) -> bool {
        let Some(pid) = Pid::from_raw(self.0) else { return false };
        !matches!(test_kill_process(pid), Err(error) if error == rustix::io::Errno::SRCH)
    }

    /// Has it ended, whether or not its parent has noticed?
    pub fn has_ended(self) -> bool {
        !self.is_there() || self.stat().is_some_and(|stat| matches!(stat.state, 'Z' | 'X'))
    }

    /// Stops (SIGSTOP) or continues it, and with it everything in its process group if it leads one.
    pub fn halt(self, stop: bool) {
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        let Some(pid) = Pid::from_raw(self.0).filter(|_| self.0 > 1) else { return };
        if rustix::process::getpgid(Some(pid)).is_ok_and(|group| group == pid) {
            kill_process_group(pid, signal).ok();
        } else {
            kill_process(pid, signal).ok();
        }
    }

    /// Can it still do something: has it neither stopped nor ended? Nothing is known of one of another user.
    pub fn may_run(self) -> bool {
        self.stat().is_some_and(|stat| !matches!(stat.state, 'T' | 't' | 'Z' | 'X'))
    }

    /// When it was started, in clock ticks from the boot of the host: together with its id, this names one process.
    pub fn started(self) -> Option<u64> {
        self.stat().map(|stat| stat.started)
    }

    /// Kills it if `still` says that it is the right process. On Linux a pidfd is opened before that question, so that
    /// the id cannot pass to another process in between.
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

/// What is free in a file system, for this user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub bytes: u64,
    /// Inodes; none if the file system makes them as needed (btrfs, overlay on btrfs).
    pub inodes: Option<u64>,
}

/// What is free in the file system of a path, and the path that was asked: the nearest one that exists.
pub fn space(path: &Path) -> Result<(Space, &Path)> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there)
        .with_context(|| format!("cannot find out how much space is free in {}", there.display()))?;
    let inodes = Some(stat.f_favail).filter(|_| stat.f_files != 0);
    Ok((Space { bytes: stat.f_bavail * stat.f_frsize, inodes }, there))
}

/// The path of this program, to copy it or to start it again, also if a build has replaced the file in the meantime.
pub fn this_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find this program")?;
    let kept = system::own_file().filter(|kept| kept.exists() && !path.exists());
    Ok(kept.unwrap_or(path))
}

/// The name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The version of its kernel. An engine in a virtual machine has another one.
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The user of this program: as /etc/passwd has it, else as id(1) names it, else the user id. To ask id(1) takes some
/// milliseconds, in which somebody may wait.
pub fn user_name() -> String {
    let id = rustix::process::geteuid().as_raw();
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let own = known.lines().find_map(|line| named(line, id));
    let asked = || cmd("id", &["-un"]).run(Deadline::after(Duration::from_secs(2))).ok();
    let named = own.or_else(asked).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    named.unwrap_or_else(|| format!("uid {id}"))
}

/// The name in a line of passwd(5), if it is that of this user.
fn named(line: &str, id: u32) -> Option<String> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
}

/// The person who runs this program: the user; under sudo, the user who called sudo.
pub fn person() -> String {
    let typed = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    typed.unwrap_or_else(user_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_machine_is_asked_and_what_it_tells_is_true() {
        let (space, there) = space(Path::new("/nonexistent/folder")).unwrap();
        assert!(there == Path::new("/") && space.bytes > 0, "{space:?}");
        assert!(available_memory().unwrap() > 1 << 20);
        let said = |program: &str, word: &str| {
            let output = Command::new(program).arg(word).output().unwrap().stdout;
            String::from_utf8(output).unwrap().trim().to_owned()
        };
        assert_eq!(
            (host_name(), kernel(), user_name()),
            (said("uname", "-n"), said("uname", "-r"), said("id", "-un"))
        );
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::new(i32::try_from(child.id()).unwrap());
        assert!(process.is_there() && !process.is_stopped());
        assert!(process.since().unwrap().elapsed().unwrap_or_default() < Duration::from_secs(3600));
        let signal =
            |name: &str| Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(signal("-STOP").success());
        let limit = Deadline::after(Duration::from_secs(10));
        while !process.is_stopped() {
            assert!(!limit.passed());
        }
        // A child that was just made has the words of its maker, until it runs its own program.
        assert_eq!(process.words().last().unwrap(), "600");
        process.end(|_| true);
        child.wait().unwrap();
        assert!(!process.is_there() && process.words().concat().is_empty());
    }
}
