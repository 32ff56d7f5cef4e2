//! What happens, as events: one line each in a rollback's journal, synced as it is written; the same
//! lines with `--format json`; and sentences on a terminal. `Output` is the one place that prints
//! while something is being done. It decides nothing.

use crate::drift::{Difference, Scenario};
use crate::escalation::Escalation;
use crate::failure::{Exit, exit_of, next_of};
use crate::files;
use crate::lockout::Public;
use crate::next::{Context as Whose, Next};
use crate::plan::{Plan, Step};
use crate::secrets;
use crate::signals;
use crate::verify::Smoke;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// How a command says what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Sentences for people.
    Text,
    /// One event a line.
    Json,
    /// Nothing: a part of something that tells its own story.
    #[value(skip)]
    Silent,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Restored and verified.
    Restored,
    /// Not restored.
    NotRestored,
    /// The pilot is as the release has it, and healthy.
    NothingToDo,
    /// Nothing was begun.
    Refused,
    /// The new release serves.
    Deployed,
    /// The new release failed; the one before serves again.
    RolledBack,
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// It began.
    Started,
    /// It ended well.
    Done,
    /// It failed and the rollback with it.
    Failed,
    /// It failed, is recorded, and the rollback goes on.
    Missed,
}

/// One line of the journal.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event<'a> {
    /// A rollback or a deployment begins.
    Started {
        /// Version of this format.
        version: u32,
        /// `up`, `rollback`, …
        command: &'a str,
        /// Id of the rollback, if it is one.
        rollback: Option<&'a str>,
        /// Compose project.
        project: &'a str,
        /// Engine with its version.
        engine: &'a str,
        /// Unix milliseconds.
        at_ms: u64,
        /// Taken up again after it was cut off.
        resumed: bool,
    },
    /// The releases that a run may go to, the best first.
    Targets {
        /// Their ids.
        releases: &'a [String],
    },
    /// What differs from the release.
    Drift {
        /// Release it was compared with.
        release: &'a str,
        /// Each difference.
        differences: &'a [Difference],
    },
    /// What will be done.
    Planned {
        /// The very value that is executed.
        plan: &'a Plan,
    },
    /// A step began or ended.
    Step {
        /// The step as it was planned.
        action: &'a Step,
        /// In words.
        step: String,
        /// How it stands.
        progress: Progress,
        /// Milliseconds since the command began.
        at_ms: u64,
        /// Milliseconds that it took; 0 at its start.
        took_ms: u64,
        /// Why it failed.
        detail: Option<String>,
        /// Folder within the run's that it has filled.
        #[serde(skip_serializing_if = "Option::is_none")]
        folder: Option<&'a Path>,
    },
    /// The smoke checks.
    Smoke {
        /// Every check.
        smoke: &'a Smoke,
    },
    /// Something worth saying.
    Note {
        /// A sentence.
        text: String,
    },
    /// The answer of a command that only looks.
    Result {
        /// As JSON.
        value: &'a Value,
    },
    /// The last line, always.
    Finished(&'a Finished),
}

/// The last event of a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Code of the process.
    pub exit_code: u8,
    /// Id of the rollback.
    pub rollback: Option<String>,
    /// Why it was rolled back.
    pub scenarios: Vec<Scenario>,
    /// Release that runs now, or that was tried last.
    pub release: Option<String>,
    /// A person holds the gate closed.
    #[serde(default)]
    pub held: bool,
    /// Who that is, since when and why.
    #[serde(default)]
    pub hold: Option<String>,
    /// What the public met at the end, as it was seen.
    #[serde(default)]
    pub public: Option<Public>,
    /// When the gate was proved closed, from the start of the process.
    pub gate_closed_ms: Option<u64>,
    /// When a public stream through the open gate had its first token.
    pub restored_ms: Option<u64>,
    /// Time between the two.
    pub downtime_ms: Option<u64>,
    /// Smoke checks of the release that runs now.
    pub smoke: Option<Value>,
    /// Folder with the evidence.
    pub evidence: Option<String>,
    /// The report.
    pub report: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// The next command to run, as it can be pasted.
    pub next: Option<String>,
    /// What else there is to do next, or why that command.
    #[serde(default)]
    pub advice: Option<String>,
    /// Who is called, where a command says so.
    #[serde(default)]
    pub escalation: Option<Escalation>,
}

impl Finished {
    /// A command that ended like this and has no more to say.
    pub fn plain(exit: Exit) -> Self {
        Self {
            outcome: None,
            exit_code: exit as u8,
            rollback: None,
            scenarios: Vec::new(),
            release: None,
            held: false,
            hold: None,
            public: None,
            gate_closed_ms: None,
            restored_ms: None,
            downtime_ms: None,
            smoke: None,
            evidence: None,
            report: None,
            error: None,
            next: None,
            advice: None,
            escalation: None,
        }
    }

    /// A signal came.
    pub fn interrupted() -> Self {
        Self {
            error: Some("interrupted; the same command takes it up again".into()),
            ..Self::plain(Exit::Interrupted)
        }
    }

    /// As it can be shown and kept: what went wrong repeats what programs said.
    pub fn masked(mut self) -> Self {
        for text in [&mut self.error, &mut self.next, &mut self.advice, &mut self.hold] {
            *text = text.take().map(|text| secrets::mask(&text));
        }
        self.smoke = self.smoke.as_ref().map(secrets::mask_json);
        self
    }

    /// A command that failed before it had anything to tell.
    pub fn refused(error: &anyhow::Error, context: &Whose) -> Self {
        let refused = Self {
            outcome: Some(Outcome::Refused),
            error: Some(format!("{error:#}")),
            ..Self::plain(exit_of(error))
        };
        refused.then(next_of(error), context)
    }

    /// With what to do next, as whoever asked can paste it.
    pub fn then(self, next: Option<&Next>, context: &Whose) -> Self {
        let words = next.map(|next| next.words().to_owned()).filter(|words| !words.is_empty());
        Self { next: next.and_then(|next| context.command(next)), advice: words, ..self }
    }

    /// What to do next, on one line.
    pub fn what_next(&self) -> Option<String> {
        match (&self.next, &self.advice) {
            (Some(command), Some(words)) => Some(format!("{command}   # {words}")),
            (Some(one), None) | (None, Some(one)) => Some(one.clone()),
            (None, None) => None,
        }
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
    pub fn event(&self, event: &Event<'_>) {
        let line = self.record(event);
        match self.format {
            Format::Silent => {}
            Format::Json => self.print(line.trim_end()),
            Format::Text => {
                if let Some(text) = self.sentence(event) {
                    self.print(&secrets::mask(&text));
                }
            }
        }
    }

    /// One event to the journal alone; its line. A journal that cannot be written does not stop a
    /// rollback; the user is told.
    pub fn record(&self, event: &Event<'_>) -> String {
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
        self.event(&Event::Note { text: text.into() });
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

    fn sentence(&self, event: &Event<'_>) -> Option<String> {
        Some(match event {
            Event::Started { command, rollback, project, engine, resumed, .. } => {
                let id = rollback.map(|id| format!(" {id}")).unwrap_or_default();
                let again = if *resumed { ", resumed" } else { "" };
                format!("{command}{id} of {project} on {engine}{again}")
            }
            Event::Drift { differences, release } => {
                if differences.is_empty() {
                    return Some(format!("  no drift from release {release}"));
                }
                let lines: Vec<String> = differences.iter().map(|d| format!("  - {d}")).collect();
                format!("drift from release {release}:\n{}", lines.join("\n"))
            }
            Event::Planned { plan } => {
                let words: Vec<&str> = plan.scenarios.iter().map(|s| s.word()).collect();
                let why = if words.is_empty() { String::new() } else { format!(" ({})", words.join(" + ")) };
                format!("to release {}{why}:", plan.release)
            }
            Event::Step { progress: Progress::Started, .. } => return None,
            Event::Step { step, progress, at_ms, took_ms, detail, .. } => {
                let mark = self.mark(match progress {
                    Progress::Done => Some(true),
                    Progress::Failed => Some(false),
                    _ => None,
                });
                let line = format!("{mark} {step:<52} {took_ms:>6} ms  at {:>6.2} s", *at_ms as f64 / 1e3);
                match detail {
                    Some(detail) => format!("{line}\n    {detail}"),
                    None => line,
                }
            }
            Event::Smoke { smoke } => {
                let failed: Vec<String> =
                    smoke.checks.iter().filter(|c| !c.ok).map(|c| self.check(c)).collect();
                if failed.is_empty() {
                    return Some(format!("  {}", smoke.summary()));
                }
                failed.join("\n")
            }
            Event::Note { text } => format!("  {text}"),
            Event::Targets { .. } | Event::Result { .. } | Event::Finished(_) => return None,
        })
    }

    /// One smoke check as a line; why it failed stands below, whole.
    pub fn check(&self, check: &crate::verify::Check) -> String {
        match check.ok {
            true => self.marked(Some(true), &format!("{:<38} {}", check.name, check.detail)),
            false => format!("{}\n    {}", self.marked(Some(false), check.name), check.detail.trim()),
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
