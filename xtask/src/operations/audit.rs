//! The audit log: one line for each command that changes something, in `.pilot/audit.log`. Who, when, what, how it ended.
//! Each line is appended in one write, so two commands never mix theirs. Called by `register`.

use crate::base::files;
use crate::base::machine;
use crate::base::next;
use crate::base::secrets;
use crate::deploy::event::{Finished, Outcome};
use crate::stack::pilot::Pilot;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result};
use serde::Serialize;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

/// The version of the lines.
const FORMAT: u32 = 1;

/// The log is put aside once it has this many bytes; one older file is kept.
const FULL: u64 = 4 << 20;

/// Most characters of a command line.
const WORDS: usize = 2000;

/// A line. The form is `audit` in `docs/events.schema.json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    version: u32,
    /// RFC 3339; when the command ended.
    at: String,
    user: String,
    host: String,
    project: &'a str,
    /// What the command is called: `rollback`, `kill-switch on`.
    command: &'a str,
    /// The whole command line, with secrets masked.
    line: String,
    outcome: Option<Outcome>,
    exit_code: u8,
    run: Option<&'a str>,
}

/// Writes the line of a command that has ended.
pub fn write(pilot: &Pilot, command: &str, finished: &Finished) -> Result<()> {
    let words = std::env::args_os().skip(1).map(|word| next::quoted(&word.to_string_lossy()));
    let line: Vec<String> = std::iter::once("xtask".to_owned()).chain(words).collect();
    let line = Line {
        version: FORMAT,
        at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        user: machine::person(),
        host: machine::host_name(),
        project: &pilot.project,
        command,
        line: secrets::mask(&line.join(" ")).chars().take(WORDS).collect(),
        outcome: finished.outcome,
        exit_code: finished.exit.into(),
        run: finished.rollback.as_deref(),
    };
    append(&pilot.state, &(serde_json::to_string(&line)? + "\n"), FULL)
}

fn append(state: &StateDir, line: &str, full: u64) -> Result<()> {
    let [log, before] = state.audit();
    put_aside(&log, &before, full)?;
    let what = || format!("cannot write to {}", log.display());
    let written = files::append(&log).and_then(|mut file| {
        file.write_all(line.as_bytes())?;
        file.sync_data()
    });
    written.with_context(what)
}

/// Renames a log that is full. Of several commands at once, one does it: the one that has the lock on that very file.
fn put_aside(log: &Path, before: &Path, full: u64) -> Result<()> {
    let Ok(data) = std::fs::symlink_metadata(log) else { return Ok(()) };
    if data.len() < full {
        return Ok(());
    }
    let file = files::open_regular(log)?;
    let same =
        || std::fs::symlink_metadata(log).is_ok_and(|now| (now.dev(), now.ino()) == (data.dev(), data.ino()));
    if file.try_lock().is_ok() && file.metadata()?.ino() == data.ino() && same() {
        files::rename(log, before).with_context(|| format!("cannot put {} aside", log.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_loses_no_line_to_another_command() {
        let scratch = files::Scratch::new("audit-test").unwrap();
        let state = StateDir::new(scratch.path());
        let line = "x".repeat(99) + "\n";
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..20).for_each(|_| append(&state, &line, 20_000).unwrap()));
            }
        });
        // All of them: the first file was full with the last line that fits.
        let [log, before] = state.audit();
        assert!(!before.exists());
        append(&state, &line, 16_000).unwrap();
        let texts = [before, log].map(|path| std::fs::read_to_string(path).unwrap());
        assert_eq!(texts.each_ref().map(|text| text.lines().count()), [160, 1]);
        assert!(texts.concat().lines().all(|one| one.len() == 99));
    }
}
