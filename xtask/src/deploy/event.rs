//! Events: the lines of a run's journal and of `--format json`, as values, with the sentence that people see.
//! Nothing is printed or decided here. Every layer above `base` creates events, and `output` writes them.

use crate::base::failure::{Exit, exit_of, next_of};
use crate::base::files;
use crate::base::next::{Context as Whose, Next};
use crate::base::output::{Output, Tell};
use crate::base::screen::Change;
use crate::base::secrets;
use crate::checks::smoke::{Checked, Smoke};
use crate::deploy::difference::{Difference, Scenario};
use crate::deploy::lockout::Public;
use crate::deploy::plan::Plan;
use crate::deploy::step::Step;
use crate::release::description::Release;
use crate::stack::escalation::Escalation;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Restored and verified.
    Restored,
    /// Not restored.
    NotRestored,
    /// The pilot already matches the release and is healthy.
    NothingToDo,
    /// Nothing was begun.
    Refused,
    /// The new release serves.
    Deployed,
    /// The new release failed, and the release before it serves again.
    RolledBack,
}

impl Outcome {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::NotRestored => "not-restored",
            Self::NothingToDo => "nothing-to-do",
            Self::Refused => "refused",
            Self::Deployed => "deployed",
            Self::RolledBack => "rolled-back",
        }
    }

    /// The same for people.
    pub fn words(self) -> String {
        self.as_str().replace('-', " ")
    }
}

/// A release, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// Its id.
    pub id: String,
    /// The version that its services report.
    pub label: String,
    /// The commit that it was made from.
    pub commit: Option<String>,
}

impl From<&Release> for Brief {
    fn from(release: &Release) -> Self {
        Self { id: release.id.clone(), label: release.label.clone(), commit: release.commit.clone() }
    }
}

/// Something that a person can do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoOn {
    /// A command that can be pasted.
    pub command: String,
    /// What it is for.
    pub why: String,
}

/// The state of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// It began.
    Started,
    /// It ended well.
    Done,
    /// It failed, so the run failed.
    Failed,
    /// It ended, but something harmless went wrong. Older versions wrote `missed`.
    #[serde(alias = "missed")]
    Warned,
    /// There was nothing to do.
    Skipped,
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
        /// The engine, with its version.
        engine: &'a str,
        /// Unix milliseconds.
        at_ms: u64,
        /// Does it continue an interrupted run?
        resumed: bool,
        /// Milliseconds since the command began.
        since_ms: u64,
        /// The person who began it.
        who: String,
        /// The machine on which it runs.
        host: String,
        /// Version of this program.
        xtask: &'a str,
        /// The release that was running.
        running: Option<Brief>,
    },
    /// The releases that a run may go to, the best first.
    Targets {
        /// Their ids.
        releases: &'a [String],
    },
    /// What differs from the release.
    Drift {
        /// The release that the stack was compared with.
        release: &'a str,
        /// Each difference.
        differences: &'a [Difference],
    },
    /// What will be done.
    Planned {
        /// The same value that is executed.
        plan: &'a Plan,
        /// Milliseconds until the end of the budget.
        left_ms: u64,
    },
    /// A step began or ended.
    Step {
        /// The step as it was planned.
        action: &'a Step,
        /// The step in words.
        step: String,
        /// Its state.
        progress: Progress,
        /// Milliseconds since the command began.
        at_ms: u64,
        /// How many milliseconds it took; 0 when it begins.
        took_ms: u64,
        /// How many milliseconds it may take, if it has a limit of its own.
        #[serde(skip_serializing_if = "Option::is_none")]
        limit_ms: Option<u64>,
        /// Why it failed.
        detail: Option<String>,
        /// The folder in the run's folder that it has filled.
        #[serde(skip_serializing_if = "Option::is_none")]
        folder: Option<&'a Path>,
    },
    /// Stored data is being copied or restored.
    Bytes {
        /// What is done.
        what: &'a str,
        /// How many bytes so far.
        bytes: u64,
        /// Milliseconds since the command began.
        at_ms: u64,
    },
    /// The smoke checks.
    Smoke {
        /// Every check.
        smoke: &'a Smoke,
    },
    /// The result of a command that only reads.
    Result {
        /// As JSON.
        value: &'a Value,
    },
    /// A run has ended: what its report needs besides `finished`, which follows. Only in the journal.
    Ended {
        /// Unix milliseconds.
        at_ms: u64,
        /// Milliseconds since the command began.
        since_ms: u64,
        /// The engine, with its version.
        engine: String,
        /// The release that it went to.
        release: Option<Brief>,
        /// What to do next, the most useful first.
        go_on: Vec<GoOn>,
    },
    /// The last line; every command writes it.
    Finished(&'a Finished),
}

/// The last event of a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Code of the process.
    #[serde(rename = "exit_code")]
    pub exit: Exit,
    /// The id of the run.
    pub rollback: Option<String>,
    /// The reason for the rollback.
    pub scenarios: Vec<Scenario>,
    /// The release that runs now, or that was tried last.
    pub release: Option<String>,
    /// Does a person hold the gate closed?
    #[serde(default)]
    pub held: bool,
    /// Who holds it, since when and why.
    #[serde(default)]
    pub hold: Option<String>,
    /// Services that a hold keeps down, and that were not checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped: Vec<String>,
    /// What stays published although a hold keeps the gate closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_closed: Vec<String>,
    /// What the public gets at the end, as it was checked.
    #[serde(default)]
    pub public: Option<Public>,
    /// Where the public reaches it, if it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// When the gate was proved closed, in milliseconds since the process began.
    pub gate_closed_ms: Option<u64>,
    /// When a public request was served through the open gate.
    pub restored_ms: Option<u64>,
    /// The time between the two.
    pub downtime_ms: Option<u64>,
    /// The smoke checks of the release that runs now.
    pub smoke: Option<Value>,
    /// The folder with the evidence.
    pub evidence: Option<String>,
    /// The report.
    pub report: Option<String>,
    /// What failed.
    pub error: Option<String>,
    /// The next command to run; it can be pasted.
    pub next: Option<String>,
    /// Other advice for the user, or the reason for that command.
    #[serde(default)]
    pub advice: Option<String>,
    /// Who to call, if the command says so.
    #[serde(default)]
    pub escalation: Option<Escalation>,
}

impl Finished {
    /// A command that ended like this and says no more.
    pub fn plain(exit: Exit) -> Self {
        Self {
            outcome: None,
            exit,
            rollback: None,
            scenarios: Vec::new(),
            release: None,
            held: false,
            hold: None,
            stopped: Vec::new(),
            not_closed: Vec::new(),
            public: None,
            address: None,
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

    /// A run that has not ended: no outcome.
    pub fn unended() -> Self {
        Self::plain(Exit::Interrupted)
    }

    /// A signal interrupted the command.
    pub fn interrupted() -> Self {
        Self {
            error: Some("interrupted; the same command continues it".into()),
            ..Self::plain(Exit::Interrupted)
        }
    }

    /// With secrets masked: an error may repeat the output of a program.
    pub fn masked(mut self) -> Self {
        for text in [&mut self.error, &mut self.next, &mut self.advice, &mut self.hold] {
            *text = text.take().map(|text| secrets::mask(&text));
        }
        self.smoke = self.smoke.as_ref().map(secrets::mask_json);
        self
    }

    /// A command that failed before it had a result.
    pub fn refused(error: &anyhow::Error, context: &Whose) -> Self {
        let refused = Self {
            outcome: Some(Outcome::Refused),
            error: Some(format!("{error:#}")),
            ..Self::plain(exit_of(error))
        };
        refused.then(next_of(error), context)
    }

    /// With the next command, written so that the user can paste it.
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

impl Tell for Event<'_> {
    fn sentence(&self, out: &Output) -> Option<String> {
        Some(match self {
            Self::Started { command, rollback, project, engine, resumed, .. } => {
                let id = rollback.map(|id| format!(" {id}")).unwrap_or_default();
                let again = if *resumed { ", resumed" } else { "" };
                format!("{command}{id} of {project} on {engine}{again}")
            }
            Self::Drift { differences, release } => {
                if differences.is_empty() {
                    return Some(format!("  no drift from release {release}"));
                }
                let lines: Vec<String> = differences.iter().map(|d| format!("  - {d}")).collect();
                format!("drift from release {release}:\n{}", lines.join("\n"))
            }
            Self::Planned { plan, .. } => {
                let words: Vec<&str> = plan.scenarios.iter().map(|s| s.as_str()).collect();
                let why = if words.is_empty() { String::new() } else { format!(" ({})", words.join(" + ")) };
                format!("to release {}{why}:", plan.release)
            }
            Self::Step { progress: Progress::Started, .. } => return None,
            Self::Step { step, progress, at_ms, took_ms, detail, .. } => {
                let mark = out.mark(match progress {
                    Progress::Done | Progress::Skipped => Some(true),
                    Progress::Failed => Some(false),
                    _ => None,
                });
                let line = format!("{mark} {step:<52} {took_ms:>6} ms  at {:>6.2} s", *at_ms as f64 / 1e3);
                match detail {
                    Some(detail) => format!("{line}\n    {detail}"),
                    None => line,
                }
            }
            Self::Smoke { smoke } => {
                let shown = smoke.checks.iter().filter(|check| !check.ok || out.is_verbose());
                let mut lines: Vec<String> = shown.map(|check| check_line(out, check)).collect();
                if smoke.checks.iter().all(|check| check.ok) {
                    lines.push(format!("  {}", smoke.summary()));
                }
                lines.join("\n")
            }
            Self::Targets { .. }
            | Self::Result { .. }
            | Self::Ended { .. }
            | Self::Finished(_)
            | Self::Bytes { .. } => return None,
        })
    }

    fn change(&self) -> Option<Change> {
        Some(match self {
            Self::Planned { plan, left_ms } => {
                let steps = plan.steps.iter().map(ToString::to_string).collect();
                Change::Planned(steps, Duration::from_millis(*left_ms))
            }
            Self::Step { progress: Progress::Started, step, limit_ms, .. } => {
                Change::Begins(step.clone(), limit_ms.map(Duration::from_millis))
            }
            Self::Step { action, progress, .. } => {
                let moved = matches!(progress, Progress::Done | Progress::Skipped);
                Change::Ended(action.gate().filter(|_| moved))
            }
            Self::Bytes { what, bytes, .. } => Change::Detail(format!("{what}: {}", files::human(*bytes))),
            _ => return None,
        })
    }
}

/// One check as a line. If it failed, the full reason is below it.
pub fn check_line(out: &Output, check: &Checked) -> String {
    match check.ok {
        true => out.marked(Some(true), &format!("{:<38} {}", check.name, check.detail)),
        false => format!("{}\n    {}", out.marked(Some(false), &check.name), check.detail.trim()),
    }
}
