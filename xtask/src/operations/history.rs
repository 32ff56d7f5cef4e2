//! All runs of a stack, from their folders: what was asked for, when, by whom, and how it ended. Only reads. Called by the
//! commands `history` and `report`.

use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::run::Request;
use crate::stack::ledger::Ledger;
use crate::stack::state_dir::{RunDir, StateDir, number};
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use std::io::Read;
use std::time::UNIX_EPOCH;

/// How many bytes at the start of a journal are read for its first event.
const HEAD: u64 = 64 << 10;

/// One run.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its id.
    pub run: String,
    /// The command that asks for the same; none if the request cannot be read.
    pub command: Option<String>,
    /// When it began, in Unix milliseconds.
    pub began_ms: Option<u64>,
    /// Who began it; not known of runs of older versions.
    pub who: Option<String>,
    /// On which machine.
    pub host: Option<String>,
    /// How it ended, in words.
    pub outcome: String,
    /// Did a hold keep the gate closed at its end?
    pub held: bool,
    /// The release that ran at its end, or that was tried last.
    pub release: Option<String>,
    /// How long the public was shut out, in milliseconds; none if it was not, or if the gate is still closed.
    pub downtime_ms: Option<u64>,
}

/// All runs, newest first.
pub fn all(state: &StateDir) -> Result<Vec<Entry>> {
    let mut all: Vec<Entry> = state.every_run()?.iter().map(|(_, dir)| entry(dir)).collect();
    // The command that has the lock works on the newest one.
    if let Some(newest) = all.last_mut().filter(|newest| newest.outcome == CUT_OFF)
        && Ledger::new(state).is_locked()
    {
        newest.outcome = "runs now".into();
    }
    all.reverse();
    Ok(all)
}

/// How a run ended that has no end, and that was not given up.
const CUT_OFF: &str = "cut off";

fn entry(dir: &RunDir) -> Entry {
    let request = files::read_json::<Request>(&dir.request()).ok();
    let begun = first_event(dir);
    let text = |key: &str| begun.as_ref().and_then(|event| event[key].as_str()).map(str::to_owned);
    let finished = dir.report().exists().then(|| files::read_json::<Finished>(&dir.report()));
    let outcome = match &finished {
        Some(Ok(finished)) => finished.outcome.map_or("unknown".into(), Outcome::words),
        Some(Err(_)) => "its report cannot be read".into(),
        None if dir.given_up().exists() => "given up".into(),
        None => CUT_OFF.into(),
    };
    let finished = finished.and_then(Result::ok);
    Entry {
        run: dir.id(),
        command: request.map(|request| request.words().join(" ")).or_else(|| text("command")),
        began_ms: begun.as_ref().and_then(|event| event["at_ms"].as_u64()).or_else(|| stamped(&dir.id())),
        who: text("who"),
        host: text("host"),
        outcome,
        held: finished.as_ref().is_some_and(|finished| finished.held),
        release: finished.as_ref().and_then(|finished| finished.release.clone()),
        downtime_ms: finished.and_then(|finished| finished.downtime_ms),
    }
}

/// The event with which a run began.
fn first_event(dir: &RunDir) -> Option<Value> {
    let mut text = Vec::new();
    files::open_regular(&dir.journal()).ok()?.take(HEAD).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.find(|event| event["event"] == "started")
}

/// The time in the id of a run, in Unix milliseconds: `0012-20261124T084736659`.
fn stamped(id: &str) -> Option<u64> {
    let stamp = id.split_once('-').map_or(id, |(_, stamp)| stamp);
    let part = |from: usize, to: usize| stamp.get(from..to);
    let (day, time) = ([part(0, 4)?, part(4, 6)?, part(6, 8)?], [part(9, 11)?, part(11, 13)?, part(13, 15)?]);
    let text = format!("{}T{}Z", day.join("-"), time.join(":"));
    let time = humantime::parse_rfc3339(&text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(time.as_millis()).ok()
}

/// The run that the user named, by its id or its number; the newest one if none was named. The error (exit 2) names
/// those that there are.
pub fn named(state: &StateDir, name: Option<&str>) -> Result<RunDir> {
    let mut all: Vec<RunDir> = state.every_run()?.into_iter().map(|(_, dir)| dir).collect();
    let is_it = |dir: &RunDir| match name {
        None => true,
        Some(name) => dir.id() == name || name.parse::<u64>().is_ok_and(|n| n > 0 && n == number(&dir.id())),
    };
    if let Some(at) = all.iter().rposition(is_it) {
        return Ok(all.swap_remove(at));
    }
    let newest: Vec<String> = all.iter().rev().take(5).map(RunDir::id).collect();
    let there = match newest.is_empty() {
        true => "there was no rollback, deployment or reset yet".to_owned(),
        false => format!("the newest are {}", newest.join(", ")),
    };
    let what = name.map_or_else(|| there.clone(), |name| format!("there is no run {name}; {there}"));
    Err(fail(Exit::Usage, what, Next::xtask("history")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::files::{Mode, Scratch};

    #[test]
    fn runs_of_every_kind_are_told_newest_first() {
        let scratch = Scratch::new("history-test").unwrap();
        let state = StateDir::new(scratch.path());
        let runs = state.runs();
        let write =
            |path: &str, text: &str| files::write(&runs.join(path), text.as_bytes(), Mode::Plain).unwrap();
        write(
            "0001-20261124T084736659/request.json",
            "{\"version\":2,\"command\":\"up\",\"to\":\"r1\",\"scenarios\":[]}",
        );
        write(
            "0001-20261124T084736659/report.json",
            "{\"outcome\":\"deployed\",\"exit_code\":0,\"scenarios\":[],\"release\":\"r1\",\"downtime_ms\":1200}",
        );
        write(
            "0002-20261124T090000000/request.json",
            "{\"version\":2,\"to\":\"r1\",\"scenarios\":[\"config\"]}",
        );
        write(
            "0002-20261124T090000000/journal.jsonl",
            "{\"event\":\"started\",\"at_ms\":5000,\"who\":\"ann\",\"host\":\"h\"}\n{\"ev",
        );
        write("0003-20261124T100000000/given-up", "");
        write("0004-20261124T110000000/report.json", "noise");
        let all = all(&state).unwrap();
        let told: Vec<_> = all.iter().map(|e| (e.outcome.as_str(), e.command.as_deref())).collect();
        assert_eq!(
            told,
            [
                ("its report cannot be read", None),
                ("given up", None),
                ("cut off", Some("rollback --to r1 --scenario config")),
                ("deployed", Some("up")),
            ]
        );
        assert_eq!((all[2].began_ms, all[2].who.as_deref()), (Some(5000), Some("ann")));
        // Without an event, the id has the time.
        assert_eq!((all[3].began_ms, all[3].downtime_ms), (Some(1_795_510_056_000), Some(1200)));
        assert_eq!(named(&state, None).unwrap().id(), "0004-20261124T110000000");
        assert_eq!(named(&state, Some("2")).unwrap().id(), "0002-20261124T090000000");
        let error = named(&state, Some("9")).unwrap_err().to_string();
        assert!(error.contains("no run 9; the newest are 0004-"), "{error}");
    }
}
