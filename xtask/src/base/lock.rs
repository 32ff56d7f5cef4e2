//! One change at a time. A command that changes the pilot takes this lock; a command that only reads does
//! not.
//!
//! The lock is the kernel's advisory lock on the state folder itself. So the lock of a dead process is free
//! at once, and deleting or replacing a file in the folder does not let a second command in. The file `lock`
//! in the folder names the holder. It is locked too, because older versions lock only that file.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::machine::{self, Process};
use crate::base::next::Next;
use crate::base::stderr;
use anyhow::{Context, Error, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{File, TryLockError};
use std::io::{Seek, Write};
use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// Bytes of the holder's note that are read.
const NOTE: usize = 1000;

/// How long a child of a killed command may keep the lock.
const AFTER_A_KILL: Duration = Duration::from_secs(2);

/// The lock; it is free again when this is dropped.
#[must_use]
pub struct Lock {
    _folder: File,
    _file: Option<File>,
}

/// Takes the lock of a state folder for `command`, or says who has it (exit 5).
pub fn take(state: &Path, file: &Path, command: &str) -> Result<Lock> {
    files::make_folder(state)?;
    let folder = File::options()
        .read(true)
        .custom_flags(files::flags(OFlags::DIRECTORY))
        .open(state)
        .with_context(|| format!("cannot open {}", state.display()))?;
    let mut file = lock_file(file);
    let on_folder = hold(&folder, state, file.as_ref())?;
    let on_file = file.as_ref().map(|locked| hold(locked, state, Some(locked))).transpose()?;
    if !on_folder && on_file != Some(true) {
        let what = format!("cannot lock {}: its file system has no locks", state.display());
        return Err(fail(Exit::Host, what, "set PILOT_STATE_DIR to a folder on a local disk"));
    }
    if let Some(file) = file.as_mut().filter(|file| is_ours(file, &folder)) {
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
        let note = format!("`cargo xtask {command}`, process {}, since {now}\n", std::process::id());
        // The note only tells other users who has the lock. If it cannot be written (a full disk), go on.
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(note.as_bytes())).ok();
    }
    Ok(Lock { _folder: folder, _file: file })
}

/// Is a command changing the pilot at this moment? Does not take the lock, so it
/// never blocks another command.
pub fn is_held(state: &Path) -> bool {
    File::open(state).is_ok_and(|folder| machine::is_locked(&folder))
}

/// Locks the file or folder. False if the file system has no locks (some servers do not lock
/// folders). The child of a killed command can keep the lock for a moment, so the lock is refused at
/// once only if its holder is known.
fn hold(file: &File, state: &Path, note: Option<&File>) -> Result<bool> {
    let ask = || match file.try_lock() {
        Ok(()) => Break(Ok(true)),
        Err(TryLockError::WouldBlock) => {
            let holder = Holder::of(file, note);
            if holder.is_known() { Break(Err(holder.refusal(state))) } else { Continue(holder) }
        }
        Err(TryLockError::Error(error)) => {
            let none = [Errno::BADF, Errno::INVAL, Errno::NOLCK, Errno::NOTSUP, Errno::NOSYS];
            let without = none.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
            let failed = Err(error).with_context(|| format!("cannot lock {}", state.display()));
            Break(if without { Ok(false) } else { failed })
        }
    };
    match Deadline::after(AFTER_A_KILL).poll(Duration::from_millis(5), ask) {
        Ok(locked) => locked,
        Err(holder) => Err(holder.refusal(state)),
    }
}

/// Opens the file `lock`, and makes it if it is missing. Nothing if the folder cannot be written, or if the
/// name belongs to something that is not a regular file; that is left alone, and only the folder is locked.
fn lock_file(path: &Path) -> Option<File> {
    let mut options = File::options();
    options.read(true).custom_flags(files::flags(OFlags::NOFOLLOW | OFlags::NONBLOCK));
    let written = options.clone().write(true).create(true).truncate(false).open(path);
    let file = written.or_else(|_| options.open(path)).ok();
    let file = file.filter(|file| file.metadata().is_ok_and(|data| data.is_file()));
    if file.is_none() && path.symlink_metadata().is_ok() {
        stderr::line(format!(
            "warning: {} is not a regular file, so it is neither locked nor changed",
            path.display()
        ));
    }
    file
}

/// May the note be written? Not if the file has a second name (a hard link), or belongs to another user.
fn is_ours(file: &File, folder: &File) -> bool {
    let (Ok(file), Ok(folder)) = (file.metadata(), folder.metadata()) else { return false };
    let me = rustix::process::geteuid().as_raw();
    file.nlink() == 1 && (file.uid() == me || file.uid() == folder.uid())
}

/// Who has the lock, as far as it can be found out.
struct Holder {
    /// The note of the last holder.
    note: String,
    /// The process that the note names.
    noted: Option<Process>,
    /// The process that has the lock; nothing if it is gone or cannot be seen.
    process: Option<Process>,
}

/// Who has the lock at this moment, in words; none if nobody has.
pub fn holder(state: &Path, file: &Path) -> Option<String> {
    let folder = File::open(state).ok().filter(machine::is_locked)?;
    let note = files::open_regular(file).ok();
    let holder = Holder::of(&folder, note.as_ref());
    Some(match holder.process {
        Some(_) if holder.is_known() => holder.note,
        Some(process) => described(process),
        None => "a process that this user cannot see".into(),
    })
}

impl Holder {
    fn of(locked: &File, note: Option<&File>) -> Self {
        let mut bytes = [0; NOTE];
        let read = note.and_then(|file| file.read_at(&mut bytes, 0).ok()).unwrap_or(0);
        let note = String::from_utf8_lossy(&bytes[..read]).trim().to_owned();
        let noted = note.split("process ").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok());
        let noted = noted.map(Process::new);
        let process = machine::holder_of(locked).or(noted.filter(|process| process.is_there()));
        Self { note, noted, process }
    }

    fn is_known(&self) -> bool {
        self.process.is_some() && self.process == self.noted
    }

    /// The error (exit 5), with what to do about it.
    fn refusal(&self, state: &Path) -> Error {
        let Some(process) = self.process else {
            let what = format!("{} is locked by a process that this user cannot see", state.display());
            let next = Next::shell(format!("sudo fuser --verbose {}", state.display()))
                .so("to see which process it is");
            return fail(Exit::Locked, what, next);
        };
        let who = if self.is_known() { self.note.clone() } else { described(process) };
        let what = format!("{} is locked by {who}", state.display());
        let pid = process.id();
        if process.is_stopped() {
            let what = format!(
                "{what}; it is stopped: let it continue (kill -CONT {pid}), or kill it; \
                 the same command then continues its work"
            );
            return fail(Exit::Locked, what, Next::shell(format!("kill -KILL {pid}")));
        }
        fail(
            Exit::Locked,
            what,
            format!("wait until it has ended, or end it (kill {pid}); then run this command again"),
        )
    }
}

fn described(process: Process) -> String {
    let words = process.words();
    let name = words.first().map(|program| program.rsplit('/').next().unwrap_or_default());
    let words: Vec<&str> = name.into_iter().chain(words.iter().skip(1).map(String::as_str)).collect();
    let since = process.since().map(|since| humantime::format_rfc3339_seconds(since).to_string());
    let since = since.unwrap_or_else(|| "an unknown time".into());
    format!("`{}`, process {}, since {since}", words.join(" "), process.id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::{exit_of, next_of};
    use std::process::{Command, Stdio};

    /// A child that another test starts keeps the lock until it runs its own program, which closes it.
    fn is_free(state: &Path) {
        let ask = || take(state, &state.join("lock"), "up").map_or_else(Continue, |_| Break(()));
        Deadline::after(Duration::from_secs(10)).poll(Duration::from_millis(5), ask).unwrap();
    }

    #[test]
    fn the_second_is_refused_and_a_left_file_is_no_obstacle() {
        let scratch = files::Scratch::new("lock-test").unwrap();
        std::fs::write(scratch.path().join("lock"), "`cargo xtask up`, process 1, long dead\n").unwrap();
        let held = take(scratch.path(), &scratch.path().join("lock"), "rollback").unwrap();
        let error = take(scratch.path(), &scratch.path().join("lock"), "up").err().unwrap();
        assert_eq!(exit_of(&error), Exit::Locked);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        is_free(scratch.path());
    }

    /// What is called `lock` in the folder: neither followed, nor written, nor in the way.
    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "who holds a lock is known on Linux alone")]
    fn a_file_that_is_not_the_locks_own_is_left_as_it_was() {
        for what in ["link", "second name", "folder", "pipe"] {
            let scratch = files::Scratch::new("lock-test").unwrap();
            let precious = scratch.path().join("precious");
            std::fs::write(&precious, "precious").unwrap();
            let state = scratch.path().join("state");
            std::fs::create_dir(&state).unwrap();
            let lock = state.join("lock");
            match what {
                "link" => std::os::unix::fs::symlink(&precious, &lock).unwrap(),
                "second name" => std::fs::hard_link(&precious, &lock).unwrap(),
                "folder" => std::fs::create_dir(&lock).unwrap(),
                _ => assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success()),
            }
            let held = take(&state, &lock, "up").unwrap();
            let error = take(&state, &lock, "rollback").err().unwrap();
            assert_eq!(exit_of(&error), Exit::Locked, "{what}");
            assert!(error.to_string().contains(&std::process::id().to_string()), "{what}: {error}");
            assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious", "{what}");
            drop(held);
        }
    }

    #[test]
    fn a_lock_file_that_is_deleted_lets_nobody_in() {
        let scratch = files::Scratch::new("lock-test").unwrap();
        let held = take(scratch.path(), &scratch.path().join("lock"), "up").unwrap();
        std::fs::remove_file(scratch.path().join("lock")).unwrap();
        let error = take(scratch.path(), &scratch.path().join("lock"), "rollback").err().unwrap();
        assert_eq!(exit_of(&error), Exit::Locked);
        drop(held);
        is_free(scratch.path());
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "who holds a lock is known on Linux alone")]
    fn a_stopped_holder_is_told_with_the_way_round() {
        let scratch = files::Scratch::new("lock-test").unwrap();
        let folder = File::open(scratch.path()).unwrap();
        folder.lock().unwrap();
        // The folder, and with it the lock, goes to a process that stops.
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::from(folder)).spawn().unwrap();
        let pid = child.id().to_string();
        let error = take(scratch.path(), &scratch.path().join("lock"), "up").err().unwrap();
        assert!(error.to_string().contains("`sleep 600`, process "), "{error}");
        assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
        let limit = std::time::Instant::now() + Duration::from_secs(10);
        let error = loop {
            let error = take(scratch.path(), &scratch.path().join("lock"), "up").err().unwrap();
            if error.to_string().contains("it is stopped") || std::time::Instant::now() > limit {
                break error;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(error.to_string().contains("it is stopped"), "{error}");
        assert_eq!(next_of(&error), Some(&Next::shell(format!("kill -KILL {pid}"))));
        is_free(scratch.path());
    }
}
