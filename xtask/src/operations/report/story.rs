//! The story of a run, as one value: what its journal, its last event and its evidence tell. `report.json` is this value,
//! and the other reports are made of it. Nothing is formatted for one of them here. Journals of older versions have
//! less: what they do not tell is unknown. Made by `reading`.

use crate::checks::smoke::Checked;
use crate::deploy::difference::Scenario;
use crate::deploy::event::{Brief, Finished, GoOn, Outcome, Progress};
use crate::deploy::step::Step;
use serde::Serialize;

/// The version of `report.json`. In version 1 it had only the last event.
pub const FORMAT: u32 = 2;

/// A setting or an image that differed. Services with the same difference share it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The name of the setting, or `image`.
    pub what: String,
    /// The services, or the env file, that had it.
    pub of: Vec<String>,
    /// Before the run; none if it was not set. A secret is not shown.
    pub old: Option<String>,
    /// In the release that the run went to; none if it is not set there.
    pub new: Option<String>,
}

/// The newest log lines of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    /// The service.
    pub service: String,
    /// The file with more of them, relative to the folder of the run.
    pub file: String,
    /// The lines, oldest first.
    pub lines: Vec<String>,
}

/// A step, or an attempt at it.
#[derive(Clone, Debug, Serialize)]
pub struct Stepped {
    /// As it was planned; none if a newer version wrote it.
    #[serde(skip)]
    pub action: Option<Step>,
    /// In words.
    pub step: String,
    /// How it ended; `started` if the run was cut off in it.
    pub progress: Progress,
    /// When it began, in milliseconds since the run began.
    pub from_ms: u64,
    /// How long it took, in milliseconds; none if it did not end.
    pub took_ms: Option<u64>,
    /// What went wrong.
    pub detail: Option<String>,
    /// The folder in the run's folder that it filled.
    pub folder: Option<String>,
}

/// A file or folder of the run, relative to its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The path.
    pub path: String,
    /// What it is.
    pub what: String,
}

/// The story.
#[derive(Clone, Debug, Serialize)]
pub struct Story {
    /// Version of this format.
    pub version: u32,
    /// The last event.
    #[serde(flatten)]
    pub finished: Finished,
    /// Id of the run.
    pub run: String,
    /// The command, such as `rollback`.
    pub command: Option<String>,
    /// Compose project.
    pub project: Option<String>,
    /// The engine, with its version if that is known.
    pub engine: Option<String>,
    /// Who began it.
    pub who: Option<String>,
    /// On which machine.
    pub host: Option<String>,
    /// The version of this program.
    pub xtask: Option<String>,
    /// When it began, in Unix milliseconds.
    pub began_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// How often it was continued after it had been cut off.
    pub resumed: usize,
    /// The release that was running.
    pub left: Option<Brief>,
    /// The release that it went to.
    pub went_to: Option<Brief>,
    /// Settings and images that differed.
    pub changes: Vec<Change>,
    /// Other differences, in sentences.
    pub differences: Vec<String>,
    /// The steps, in order.
    pub steps: Vec<Stepped>,
    /// The length of the timeline, in milliseconds.
    pub length_ms: u64,
    /// What was restored, and from where.
    pub restored: Vec<String>,
    /// The checks of the last verification.
    pub checks: Vec<Checked>,
    /// Remarks, in order.
    pub notes: Vec<String>,
    /// Log lines around the failure.
    pub logs: Vec<Excerpt>,
    /// What to do next.
    pub go_on: Vec<GoOn>,
    /// The files of the run.
    pub links: Vec<Link>,
}

/// How a run ended, for the eye: calm or loud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It is as it should be.
    Good,
    /// It is as it should be, but a person keeps the gate closed; or the run has not ended.
    Held,
    /// Something must be done.
    Bad,
}

impl Story {
    /// The command that began the run, and its id.
    pub fn title(&self) -> String {
        format!("{} {}", self.command.as_deref().unwrap_or("run"), self.run)
    }

    /// Calm or loud?
    pub fn mood(&self) -> Mood {
        match self.finished.outcome {
            None => Mood::Held,
            Some(Outcome::Restored | Outcome::NothingToDo | Outcome::Deployed) => {
                if self.finished.held {
                    Mood::Held
                } else {
                    Mood::Good
                }
            }
            Some(Outcome::NotRestored | Outcome::Refused | Outcome::RolledBack) => Mood::Bad,
        }
    }

    /// The verdict, as a headline.
    pub fn verdict(&self) -> String {
        let release = self.finished.release.as_deref().unwrap_or("none");
        let held = if self.finished.held { "the gate is held closed" } else { "" };
        match (self.finished.outcome, self.finished.held) {
            (None, _) => "Not ended".into(),
            (Some(Outcome::Restored), false) => format!("Restored: release {release} serves again"),
            (Some(Outcome::Restored), true) => format!("Restored: release {release} is verified; {held}"),
            (Some(Outcome::Deployed), false) => format!("Deployed: release {release} serves"),
            (Some(Outcome::Deployed), true) => format!("Deployed: release {release} is verified; {held}"),
            (Some(Outcome::NothingToDo), false) => format!("Nothing to do: release {release} runs, verified"),
            (Some(Outcome::NothingToDo), true) => {
                format!("Nothing to do: release {release} is verified; {held}")
            }
            (Some(Outcome::RolledBack), _) => "Not deployed: what ran before is back".into(),
            (Some(Outcome::Refused), _) => "Refused: nothing was begun".into(),
            (Some(Outcome::NotRestored), _) if self.command.as_deref() == Some("up") => "Not deployed".into(),
            (Some(Outcome::NotRestored), _) => "Not restored".into(),
        }
    }

    /// What to do next, where that is no command.
    pub fn advice(&self) -> Option<String> {
        let Finished { next, advice, .. } = &self.finished;
        advice.as_ref().filter(|_| next.is_none()).map(|advice| format!("next: {advice}"))
    }

    /// The heading of `restored`.
    pub fn restored_title(&self) -> &'static str {
        match self.command.as_deref() {
            Some("up") => "Applied, and from where",
            _ => "Restored, and from where",
        }
    }

    /// How it ended, in a word.
    pub fn outcome(&self) -> String {
        self.finished.outcome.map_or("not ended".into(), Outcome::words)
    }

    /// Why it was done: the scenarios.
    pub fn scenarios(&self) -> String {
        let words: Vec<&str> = self.finished.scenarios.iter().map(|s: &Scenario| s.as_str()).collect();
        if words.is_empty() { "none".into() } else { words.join(" + ") }
    }

    /// Who holds the gate closed, what this leaves open, and what the public got at the end, if this is known.
    pub fn gate(&self) -> Vec<String> {
        let Finished { hold, not_closed, public, .. } = &self.finished;
        let hold = hold.as_ref().map(|hold| format!("the gate is {hold}"));
        let beside = (!not_closed.is_empty()).then(|| format!("not closed: {}", not_closed.join(", ")));
        hold.into_iter().chain(beside).chain(public.as_ref().map(ToString::to_string)).collect()
    }
}
