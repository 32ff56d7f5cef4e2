//! The sink of all that a command says: one JSON line each in a run's journal, synced as it is written; the same
//! lines with `--format json`; and sentences on a terminal. The one place that prints while something is being
//! done. It masks secrets, and knows no event.

use crate::base::files;
use crate::base::next::Context as Whose;
use crate::base::secrets;
use crate::base::signals;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// How a command says what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Sentences for people.
    Text,
    /// One event a line.
    Json,
    /// Nothing: a part of something that tells its own story.
    Silent,
}

/// Something that can be told.
pub trait Tell: Serialize {
    /// For people; none where it is nothing to them.
    fn sentence(&self, out: &Output) -> Option<String>;
}

/// Something worth saying.
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

/// Where events go.
pub struct Output {
    context: Whose,
    format: Format,
    color: bool,
    start: Instant,
    /// Milliseconds that times are ahead of `start`: an earlier try's, less what a person took to answer.
    shift_ms: AtomicI64,
    journal: Mutex<Option<File>>,
}

impl Output {
    /// Events count their time from `start`.
    pub fn new(format: Format, start: Instant, context: Whose) -> Self {
        let color = format == Format::Text
            && std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { context, format, color, start, shift_ms: AtomicI64::new(0), journal: Mutex::new(None) }
    }

    /// One that says nothing; a journal is still written.
    pub fn silent(start: Instant) -> Self {
        Self::new(Format::Silent, start, Whose::default())
    }

    /// What is said from now on is of this stack.
    pub fn of(self, context: Whose) -> Self {
        Self { context, ..self }
    }

    /// Whose commands are shown.
    pub fn context(&self) -> &Whose {
        &self.context
    }

    /// A command of this program as the user can paste it.
    pub fn xtask(&self, words: &str) -> String {
        self.context.xtask(words)
    }

    /// From now on events are also appended to this file.
    pub fn open_journal(&self, path: &Path) -> Result<()> {
        let folder = path.parent().context("a journal needs a folder")?;
        files::make_folder(folder)?;
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        *self.journal.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Milliseconds since the start of the run's first process, without the time that a person took to answer.
    pub fn elapsed_ms(&self) -> u64 {
        let own = self.start.elapsed().as_millis() as u64;
        own.saturating_add_signed(self.shift_ms.load(Ordering::Relaxed))
    }

    /// The run began so much earlier than this process (in milliseconds), or the clock stood still for so long.
    pub fn shift(&self, ms: i64) {
        self.shift_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// When the process started.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// JSON was asked for?
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One event: to the journal (synced), then to the user.
    pub fn event(&self, event: &impl Tell) {
        let line = self.record(event);
        match self.format {
            Format::Silent => {}
            Format::Json => self.print(line.trim_end()),
            Format::Text => {
                if let Some(text) = event.sentence(self) {
                    self.print(&secrets::mask(&text));
                }
            }
        }
    }

    /// One event to the journal alone; its line. A journal that cannot be written does not stop a
    /// rollback; the user is told.
    pub fn record(&self, event: &impl Tell) -> String {
        signals::pass();
        let line = match serde_json::to_string(event) {
            Ok(line) => secrets::mask_document(&line) + "\n",
            Err(error) => format!("{{\"event\":\"note\",\"text\":\"cannot write an event: {error}\"}}\n"),
        };
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = journal.as_mut() {
            let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
            if let Err(error) = written {
                *journal = None;
                eprintln!("warning: cannot write the journal any more: {error}");
            }
        }
        line
    }

    /// A line for people; nothing in JSON.
    pub fn say(&self, text: impl AsRef<str>) {
        if self.format == Format::Text {
            self.print(&secrets::mask(text.as_ref()));
        }
    }

    /// A worthwhile sentence in either format.
    pub fn note(&self, text: impl Into<String>) {
        self.event(&Note { text: text.into() });
    }

    fn print(&self, line: &str) {
        // A reader that has gone (`| head`) does not stop a rollback.
        let mut out = std::io::stdout().lock();
        if signals::stopped() {
            drop(out);
            signals::wait_for_the_end();
        }
        writeln!(out, "{line}").and_then(|()| out.flush()).ok();
    }

    /// The mark before a line: right, wrong, or so-so.
    pub fn mark(&self, good: Option<bool>) -> &'static str {
        match (good, self.color) {
            (Some(true), true) => "\x1b[32m✓\x1b[0m",
            (Some(true), false) => "✓",
            (Some(false), true) => "\x1b[31m✗\x1b[0m",
            (Some(false), false) => "✗",
            (None, true) => "\x1b[33m!\x1b[0m",
            (None, false) => "!",
        }
    }

    /// A line with its mark, cut where the terminal ends; whole where it is piped.
    pub fn marked(&self, good: Option<bool>, text: &str) -> String {
        // Before it is cut: nobody knows half a secret again.
        let text = &secrets::mask(text);
        let width =
            rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| usize::from(size.ws_col));
        let text = match width.checked_sub(2) {
            Some(room) if text.chars().count() > room => {
                text.chars().take(room - 1).chain("…".chars()).collect()
            }
            _ => text.to_owned(),
        };
        format!("{} {text}", self.mark(good))
    }
}
