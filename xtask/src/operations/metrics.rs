//! Figures for the textfile collector of node_exporter (`[metrics]` in the manifest): how many commands changed the stack
//! and how they ended, how long the last ones took, whether the gate is closed, and when a drill and a backup succeeded
//! last. What is counted is kept in the state folder. The format of the file is that of
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>. Called by `register`.

use crate::base::deadline::{Deadline, now_ms};
use crate::base::failure::Exit;
use crate::base::files::{self, Mode};
use crate::deploy::backup;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::lockout::Public;
use crate::stack::manifest::Metrics;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// The version of what is kept.
const FORMAT: u32 = 1;

/// How long another command may count.
const OTHERS: Duration = Duration::from_secs(1);

/// What is kept. Times are in Unix milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    version: u32,
    /// By command and outcome.
    runs: BTreeMap<String, BTreeMap<String, u64>>,
    /// The last one of each command.
    last: BTreeMap<String, Last>,
    /// None if that is not known.
    gate_closed: Option<bool>,
    drill_ms: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Last {
    ended_ms: u64,
    took_ms: u64,
    downtime_ms: Option<u64>,
}

/// Counts a command that has ended and took so long, and writes the file.
pub fn write(pilot: &Pilot, rule: &Metrics, command: &str, finished: &Finished, took_ms: u64) -> Result<()> {
    let folder = pilot.pack.join(&rule.textfile);
    ensure!(
        folder.is_dir(),
        "there is no folder {}; make it, or change [metrics] textfile",
        folder.display()
    );
    let [path, lock] = pilot.state.counts();
    let lock = File::options()
        .create(true)
        .append(true)
        .open(&lock)
        .with_context(|| format!("cannot open {}", lock.display()))?;
    let taken = Deadline::after(OTHERS).poll(Duration::from_millis(5), || match lock.try_lock() {
        Ok(()) => Break(()),
        Err(error) => Continue(error),
    });
    taken.context("another command counts")?;
    let mut counts = match path.exists() {
        true => files::read_json::<Counts>(&path)?,
        false => Counts { version: FORMAT, ..Counts::default() },
    };
    if counts.version > FORMAT {
        bail!("{} was written by a newer version of this program", path.display());
    }
    counts.add(command, finished, now_ms(), took_ms);
    files::write_json(&path, &counts, Mode::Plain)?;
    let (backups, _) = backup::list(&pilot.state)?;
    let backup_ms =
        backups.iter().filter(|kept| !kept.backup.data().is_empty()).map(|kept| kept.backup.made_ms).max();
    let page = page(&counts, &pilot.project, backup_ms);
    files::write(&folder.join(format!("pilot-{}.prom", pilot.project)), page.as_bytes(), Mode::Plain)
}

impl Counts {
    fn add(&mut self, command: &str, finished: &Finished, ended_ms: u64, took_ms: u64) {
        let outcome = outcome(finished);
        *self.runs.entry(command.to_owned()).or_default().entry(outcome.to_owned()).or_default() += 1;
        self.last.insert(command.to_owned(), Last { ended_ms, took_ms, downtime_ms: finished.downtime_ms });
        if command == "drill" {
            // Its gate is not the real one.
            self.drill_ms = if finished.exit == Exit::Ok { Some(ended_ms) } else { self.drill_ms };
        } else if let Some(closed) = gate_closed(command, finished) {
            self.gate_closed = closed;
        }
    }
}

/// Is the gate closed after this command: yes, no, or not known? None if the command has left it as it was.
fn gate_closed(command: &str, finished: &Finished) -> Option<Option<bool>> {
    if finished.held {
        return Some(Some(true));
    }
    if let Some(public) = &finished.public {
        return Some(match public {
            Public::ShutOut(_) | Public::Partly(_) => Some(true),
            Public::Served => Some(false),
            Public::Unknown(_) => None,
        });
    }
    match finished.outcome {
        Some(Outcome::Refused) => None,
        Some(Outcome::NotRestored) => Some(None),
        Some(_) => Some(Some(false)),
        None if command == "kill-switch off" && finished.exit == Exit::Ok => Some(Some(false)),
        // Nobody knows how far it came.
        None if finished.exit == Exit::Interrupted => Some(None),
        None => None,
    }
}

fn outcome(finished: &Finished) -> &'static str {
    match finished.outcome {
        Some(outcome) => outcome.as_str(),
        None if finished.exit.is_good() => "done",
        None if finished.exit == Exit::Interrupted => "interrupted",
        None => "failed",
    }
}

/// The text of the file.
fn page(counts: &Counts, project: &str, backup_ms: Option<u64>) -> String {
    let mut all = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: Vec<(String, f64)>| {
        if rows.is_empty() {
            return;
        }
        write!(all, "# HELP {name} {help}\n# TYPE {name} {kind}\n").ok();
        for (labels, value) in rows {
            writeln!(all, "{name}{{project=\"{project}\"{labels}}} {value}").ok();
        }
    };
    let seconds = |ms: u64| ms as f64 / 1e3;
    let one = |value: Option<f64>| value.map(|value| (String::new(), value)).into_iter().collect::<Vec<_>>();
    let runs = counts.runs.iter().flat_map(|(command, outcomes)| {
        let row = move |(outcome, count): (&String, &u64)| {
            (format!(",command=\"{command}\",outcome=\"{outcome}\""), *count as f64)
        };
        outcomes.iter().map(row)
    });
    let each = |value: &dyn Fn(&Last) -> Option<u64>| {
        let row = |(command, last): (&String, &Last)| {
            Some((format!(",command=\"{command}\""), seconds(value(last)?)))
        };
        counts.last.iter().filter_map(row).collect::<Vec<_>>()
    };
    family(
        "pilot_runs_total",
        "counter",
        "Commands that change something, by how they ended.",
        runs.collect(),
    );
    let (took, ended) = (each(&|last| Some(last.took_ms)), each(&|last| Some(last.ended_ms)));
    family("pilot_last_run_duration_seconds", "gauge", "How long the last one took.", took);
    family("pilot_last_run_timestamp_seconds", "gauge", "When the last one ended.", ended);
    let downtime = each(&|last| last.downtime_ms);
    family(
        "pilot_last_run_downtime_seconds",
        "gauge",
        "How long the gate was closed in the last one.",
        downtime,
    );
    let closed = one(counts.gate_closed.map(|closed| f64::from(u8::from(closed))));
    family(
        "pilot_gate_closed",
        "gauge",
        "Was the gate closed (1) after the last command; absent if unknown.",
        closed,
    );
    let drill = one(counts.drill_ms.map(seconds));
    family("pilot_drill_success_timestamp_seconds", "gauge", "When a drill last succeeded.", drill);
    let backup = one(backup_ms.map(seconds));
    family(
        "pilot_backup_timestamp_seconds",
        "gauge",
        "When the newest verified backup of data was made.",
        backup,
    );
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_counted_and_what_is_not_known_is_absent() {
        let mut counts = Counts::default();
        let ended = |exit, outcome| Finished { outcome, ..Finished::plain(exit) };
        let restored = Finished { downtime_ms: Some(1260), ..ended(Exit::Ok, Some(Outcome::Restored)) };
        counts.add("rollback", &restored, 1_000_500, 1400);
        counts.add("rollback", &restored, 2_000_500, 1500);
        let text = page(&counts, "shop", None);
        for line in [
            "pilot_runs_total{project=\"shop\",command=\"rollback\",outcome=\"restored\"} 2",
            "pilot_last_run_duration_seconds{project=\"shop\",command=\"rollback\"} 1.5",
            "pilot_last_run_downtime_seconds{project=\"shop\",command=\"rollback\"} 1.26",
            "pilot_last_run_timestamp_seconds{project=\"shop\",command=\"rollback\"} 2000.5",
            "pilot_gate_closed{project=\"shop\"} 0",
        ] {
            assert!(text.lines().any(|one| one == line), "no {line} in {text}");
        }
        assert!(!text.contains("drill") && !text.contains("backup"), "{text}");
        // A refusal leaves the gate as it was; a drill has another one.
        counts.add("kill-switch on", &Finished { held: true, ..ended(Exit::Ok, None) }, 3_000_000, 9);
        counts.add("rollback", &ended(Exit::Usage, Some(Outcome::Refused)), 3_000_000, 9);
        counts.add("drill", &restored, 4_000_000, 9);
        assert_eq!((counts.gate_closed, counts.drill_ms), (Some(true), Some(4_000_000)));
        counts.add("drill", &ended(Exit::NotRestored, None), 5_000_000, 9);
        assert_eq!(counts.drill_ms, Some(4_000_000));
        let unknown = Finished { public: Some(Public::Unknown("no answer".into())), ..restored };
        counts.add("rollback", &unknown, 6_000_000, 9);
        assert!(!page(&counts, "shop", Some(7_000)).contains("pilot_gate_closed"));
    }
}
