//! Everything that a command says goes through here: as JSON lines to the journal of a run (each line is
//! synced), as the same lines with `--format json`, or as sentences on a terminal. It masks secrets. No other
//! code prints while a command works. Nothing here knows an event.

use crate::base::files;
use crate::base::next::Context as Whose;
use crate::base::screen::{self, Change};
use crate::base::secrets;
use crate::base::signals;
use crate::base::stderr;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The form in which a command says what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Sentences for people
    Text,
    /// One JSON event a line
    Json,
    /// Nothing, for a part of a larger command that has its own output.
    Silent,
}

/// An event that can be told.
pub trait Tell: Serialize {
    /// The sentence for people; none if the event is not for people.
    fn sentence(&self, out: &Output) -> Option<String>;

    /// What changes of what is shown while a command works.
    fn change(&self) -> Option<Change> {
        None
    }
}

/// A remark.
#[derive(Serialize)]
#[serde(tag = "event", rename = "note")]
struct Note {
    /// A sentence.
    text: String,
}

impl Tell for Note {
    fn sentence(&self, _: &Output) -> Option<String> {
        Some(format!("  {}", self.text))
    }
}

/// How much people are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loudness {
    /// Only how it ended.
    Quiet,
    /// What people want to know.
    #[default]
    Normal,
    /// Also each check that passed, and each command that is run.
    Verbose,
}

/// The form of the output, as the user wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Text, or JSON.
    pub format: Format,
    /// With colours?
    pub color: bool,
    /// How much is told.
    pub loudness: Loudness,
}

impl Style {
    /// Text without colours.
    pub const PLAIN: Self = Self { format: Format::Text, color: false, loudness: Loudness::Normal };

    /// Prints nothing.
    const SILENT: Self = Self { format: Format::Silent, color: false, loudness: Loudness::Quiet };
}

/// Where events go.
pub struct Output {
    context: Whose,
    style: Style,
    start: Instant,
    /// Milliseconds to add to the time since `start`: the time of an earlier attempt, minus the time
    /// that a person took to answer.
    shift_ms: AtomicI64,
    journal: Mutex<Option<File>>,
}

impl Output {
    /// The times of events count from `start`.
    pub fn new(style: Style, start: Instant, context: Whose) -> Self {
        Self { context, style, start, shift_ms: AtomicI64::new(0), journal: Mutex::new(None) }
    }

    /// An output that prints nothing; a journal is still written.
    pub fn silent(start: Instant) -> Self {
        Self::new(Style::SILENT, start, Whose::default())
    }

    /// The same output for another stack: suggested commands are for that one.
    pub fn of(self, context: Whose) -> Self {
        Self { context, ..self }
    }

    /// The stack that suggested commands are for.
    pub fn context(&self) -> &Whose {
        &self.context
    }

    /// A command of this program that the user can paste.
    pub fn xtask(&self, words: &str) -> String {
        self.context.xtask(words)
    }

    /// Opens a journal: from now on events are also appended to this file. What a run that was cut off has not written
    /// to its end is removed, or the next line would be a part of it.
    pub fn open_journal(&self, path: &Path) -> Result<()> {
        let folder = path.parent().context("a journal needs a folder")?;
        files::make_folder(folder)?;
        let written = files::read_if_there(path)?.unwrap_or_default();
        let lines = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let file = File::options().create(true).append(true).open(path).and_then(|file| {
            let torn = lines < written.len();
            if torn { file.set_len(lines as u64).map(|()| file) } else { Ok(file) }
        });
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        // Each line is synced; so must be the name of the file that has them.
        files::sync_folder(folder)?;
        *self.journal.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Milliseconds since the first process of the run started, without the time
    /// that a person took to answer.
    pub fn elapsed_ms(&self) -> u64 {
        let own = self.start.elapsed().as_millis() as u64;
        own.saturating_add_signed(self.shift_ms.load(Ordering::Relaxed))
    }

    /// Moves the clock: positive if the run began `ms` milliseconds before this
    /// process, negative for a pause.
    pub fn shift(&self, ms: i64) {
        self.shift_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// When the process started.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Did the user ask for JSON?
    pub fn is_json(&self) -> bool {
        self.style.format == Format::Json
    }

    /// Writes an event to the journal (synced), then shows it to the user.
    pub fn event(&self, event: &impl Tell) {
        let line = self.record(event);
        match self.style.format {
            Format::Silent => {}
            Format::Json => self.print(line.trim_end()),
            Format::Text => {
                // First, or what is drawn below the sentence would be older than it.
                if let Some(change) = event.change() {
                    screen::change(change);
                }
                if let Some(text) = event.sentence(self) {
                    self.say(text);
                }
            }
        }
    }

    /// Writes an event only to the journal, and returns its line. If the journal cannot be written, the user
    /// is warned and the rollback goes on.
    pub fn record(&self, event: &impl Tell) -> String {
        signals::pass();
        let line = match serde_json::to_string(event) {
            Ok(line) => secrets::mask_document(&line) + "\n",
            Err(error) => format!("{{\"event\":\"note\",\"text\":\"cannot write an event: {error}\"}}\n"),
        };
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = journal.as_mut() {
            let written = files::before("write to the journal")
                .and_then(|()| file.write_all(line.as_bytes()))
                .and_then(|()| file.sync_data());
            if let Err(error) = written {
                *journal = None;
                stderr::line(format!("warning: cannot write to the journal any more: {error}"));
            }
        }
        line
    }

    /// Prints a line for people. Does nothing with `--format json`, and nothing with `--quiet`.
    pub fn say(&self, text: impl AsRef<str>) {
        if self.style.loudness > Loudness::Quiet {
            self.verdict(text);
        }
    }

    /// Prints a line for people that says how it ended. Does nothing with `--format json`.
    pub fn verdict(&self, text: impl AsRef<str>) {
        if self.style.format == Format::Text {
            self.print(&secrets::mask(text.as_ref()));
        }
    }

    /// Does the user want to see everything?
    pub fn is_verbose(&self) -> bool {
        self.style.loudness == Loudness::Verbose
    }

    /// A remark: a sentence for people, an event `note` in JSON and in the journal.
    pub fn note(&self, text: impl Into<String>) {
        self.event(&Note { text: text.into() });
    }

    fn print(&self, line: &str) {
        if !screen::print(line, signals::stopped) {
            signals::wait_for_the_end();
        }
    }

    /// The mark before a line: good, bad, or (none) neither.
    pub fn mark(&self, good: Option<bool>) -> &'static str {
        match (good, self.style.color) {
            (Some(true), true) => "\x1b[32m✓\x1b[0m",
            (Some(true), false) => "✓",
            (Some(false), true) => "\x1b[31m✗\x1b[0m",
            (Some(false), false) => "✗",
            (None, true) => "\x1b[33m!\x1b[0m",
            (None, false) => "!",
        }
    }

    /// A sign of a change: `+`, `-` or `~`.
    pub fn sign(&self, sign: char) -> String {
        let color = match sign {
            '+' => 32,
            '-' => 31,
            _ => 33,
        };
        if self.style.color { format!("\x1b[{color}m{sign}\x1b[0m") } else { sign.to_string() }
    }

    /// A line with its mark, cut to the width of the terminal. It is not cut if the output is not a terminal.
    pub fn marked(&self, good: Option<bool>, text: &str) -> String {
        // Masked before it is cut: half a secret would not be recognised.
        let text = &secrets::mask(text);
        let width = screen::size().map_or(0, |(width, _)| width);
        let text = match width.checked_sub(2) {
            Some(room) if text.chars().count() > room => {
                text.chars().take(room - 1).chain("…".chars()).collect()
            }
            _ => text.to_owned(),
        };
        format!("{} {text}", self.mark(good))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_takes_no_other_with_it() {
        let scratch = files::Scratch::new("output-test").unwrap();
        let path = scratch.path().join("journal.jsonl");
        for left in [&b"{\"event\":\"sta"[..], &[0; 40]] {
            std::fs::write(&path, [b"{\"event\":\"note\"}\n", left].concat()).unwrap();
            let out = Output::silent(Instant::now());
            out.open_journal(&path).unwrap();
            out.note("again");
            let text = std::fs::read_to_string(&path).unwrap();
            let lines: Vec<serde_json::Value> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(lines.iter().map(|line| &line["event"]).collect::<Vec<_>>(), ["note", "note"]);
            assert_eq!(lines[1]["text"], "again");
        }
    }
}
