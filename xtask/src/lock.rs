//! One change at a time. An advisory lock on `.pilot/lock`, so a dead holder's lock is free at once;
//! the file names the holder. Commands that change the pilot take it, those that look do not.

use crate::failure::{Exit, fail};
use crate::files;
use anyhow::{Context, Result};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// Held until dropped.
#[must_use]
pub struct Lock {
    _file: File,
}

/// Takes the lock of a state folder for `command`, or says who has it (exit 5).
pub fn take(state: &Path, command: &str) -> Result<Lock> {
    files::make_folder(state)?;
    let path = state.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).ok();
            let holder = if holder.trim().is_empty() { "somebody" } else { holder.trim() };
            let what = format!("{} is held by {holder}", path.display());
            return Err(fail(Exit::Locked, what, "wait for it to end, or end it and run this again"));
        }
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
    let holder = format!("`cargo xtask {command}`, process {}, since {now}\n", std::process::id());
    // The lock is the kernel's; the name is for others to read. A full disk is no reason to stop.
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(holder.as_bytes())).ok();
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_of;

    #[test]
    fn the_second_is_refused_with_the_holders_name_and_a_left_file_is_no_obstacle() {
        let scratch = files::Scratch::new("lock-test").unwrap();
        std::fs::write(scratch.path().join("lock"), "`cargo xtask up`, process 1, long dead\n").unwrap();
        let held = take(scratch.path(), "rollback").unwrap();
        let error = take(scratch.path(), "up").err().unwrap();
        assert_eq!(exit_of(&error), Exit::Locked);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        take(scratch.path(), "up").map(drop).unwrap();
    }
}
