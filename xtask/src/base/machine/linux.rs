//! What Linux tells about the machine, in `/proc` (proc(5)). No other file of this program reads it. Called only by
//! `machine`.

use super::{Process, Stat};
use anyhow::{Context, Result};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Can this system say which process has which file open?
pub const SHOWS_OPEN_FILES: bool = true;

/// Does a port that can be bound have no listener?
pub const BIND_TELLS: bool = true;

/// All processes of this moment.
pub fn all() -> Result<Vec<Process>> {
    let entries = std::fs::read_dir("/proc").context("cannot read /proc, where the processes are listed")?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids.map(Process).collect())
}

/// The process that holds an advisory lock on this file (flock(2)), whatever name it used to open the file.
/// Nothing if it cannot be seen: a process of another user or of another host.
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
    fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.id()))
    }

    fn text(self, name: &str) -> Option<String> {
        let bytes = std::fs::read(self.path(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Its command line, the program first; empty if it has ended.
    pub fn words(self) -> Vec<String> {
        let text = self.text("cmdline").unwrap_or_default();
        text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
    }

    /// Its short name (`comm`).
    pub fn name(self) -> String {
        self.text("comm").unwrap_or_default().trim().to_owned()
    }

    /// The environment that it was started with.
    pub fn env(self) -> Vec<(String, String)> {
        let text = self.text("environ").unwrap_or_default();
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Does it see the same file system as this process? A process in a container does not.
    pub fn sees_our_files(self) -> bool {
        let ours = std::fs::read_link("/proc/self/ns/mnt");
        matches!((std::fs::read_link(self.path("ns/mnt")), ours), (Ok(theirs), Ok(ours)) if theirs == ours)
    }

    /// Has it opened exactly this file, under this number? The inode is compared first, because stat(2) on a
    /// file of a file server that does not answer would hang.
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

    /// Is this the link of one of its open files (`socket:[123]`)?
    fn has_link(self, text: &str) -> bool {
        let fds = std::fs::read_dir(self.path("fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|link| link.as_os_str() == text)
    }

    /// Was it stopped (SIGSTOP, Ctrl-Z)? False if it has ended.
    pub fn is_stopped(self) -> bool {
        self.stat().is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    }

    /// State, memory and start; nothing if it has ended.
    pub fn stat(self) -> Option<Stat> {
        let text = self.text("stat")?;
        // The name (field 2) may contain anything, so parse after its `)`. The first field there is field 3.
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Stat {
            state: fields.first()?.chars().next()?,
            threads: number(20)?,
            memory: number(24)? * rustix::param::page_size() as u64,
            started: number(22)?,
        })
    }

    /// When it was started; nothing if it has ended.
    pub fn since(self) -> Option<SystemTime> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: u64 = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
        let ticks = rustix::param::clock_ticks_per_second();
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(boot + self.stat()?.started / ticks.max(1)))
    }
}

/// Does a process hold an advisory lock on this file?
pub fn is_locked(file: &File) -> bool {
    holder_of(file).is_some()
}

/// The process that listens on a TCP port (field 10 of `/proc/net/tcp` is the socket's inode); nothing if it cannot be
/// seen.
pub fn listener_on(port: u16) -> Option<Process> {
    let hex = format!(":{port:04X}");
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A is LISTEN.
            let listens = fields.get(1)?.ends_with(&hex) && *fields.get(3)? == "0A";
            listens.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]"))).flatten()
        })
    })?;
    all().ok()?.into_iter().find(|process| process.has_link(&inode))
}

/// Which processes this one can see, as a word that no other set has: this boot of the machine, and the namespace of
/// process ids (pid_namespaces(7)).
pub fn processes() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// How many processes ran or waited to run in the last minute, on average (proc(5), `/proc/loadavg`).
pub fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Memory that programs can still get, in bytes (`MemAvailable`).
pub fn available_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).context("/proc/meminfo has no MemAvailable")
}

/// The file of this program, also if it has lost its name.
pub fn own_file() -> Option<PathBuf> {
    Some(PathBuf::from("/proc/self/exe"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::files;
    use std::process::{Command, Stdio};

    #[test]
    fn what_another_process_has_open_and_holds_is_seen_even_without_a_name() {
        let scratch = files::Scratch::new("machine-test").unwrap();
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
