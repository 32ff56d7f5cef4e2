//! Reads the story of a run from its folder. Called by `report` and by the command `report`.

use crate::base::files;
use crate::deploy::difference::Difference;
use crate::deploy::event::{Brief, Finished, Progress};
use crate::operations::report::changes::changes;
use crate::operations::report::logs::excerpts;
use crate::operations::report::restored::restored;
use crate::operations::report::story::{FORMAT, Link, Stepped, Story};
use crate::stack::state_dir::RunDir;
use anyhow::Result;
use serde_json::Value;

/// Reads the story of the run in `dir`. A line of the journal that a crash left incomplete is ignored.
pub fn read(dir: &RunDir, finished: &Finished) -> Result<Story> {
    let journal = files::read_if_there(&dir.journal())?.unwrap_or_default();
    let text = String::from_utf8_lossy(&journal);
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut story = of(&events, finished, &dir.id());
    story.logs = excerpts(dir, &story);
    story.links = links(dir);
    Ok(story)
}

/// The story that events tell.
pub fn of(events: &[Value], finished: &Finished, run: &str) -> Story {
    let all = |name: &'static str| events.iter().filter(move |event| event["event"] == name);
    let text = |event: Option<&Value>, key: &str| event.and_then(|e| e[key].as_str()).map(str::to_owned);
    let begun: Vec<&Value> = all("started").collect();
    let (first, last) = (begun.first().copied(), begun.last().copied());
    let ended = all("ended").next_back();
    let at = |event: Option<&Value>| event.and_then(|e| e["at_ms"].as_u64());
    let since = |event: Option<&Value>| event.and_then(|e| e["since_ms"].as_u64()).unwrap_or(0);
    let steps = steps(events);
    let drift = drift(events, finished);
    let scenario = finished.smoke.as_ref().and_then(|smoke| smoke.get("checks"));
    let checks = scenario.and_then(|checks| serde_json::from_value(checks.clone()).ok());
    let last_step = steps.iter().map(|step| step.from_ms + step.took_ms.unwrap_or(0)).max();
    let known = [last_step, finished.gate_closed_ms, finished.restored_ms, ended.map(|e| since(Some(e)))];
    let brief = |event: Option<&Value>, key: &str| {
        event.and_then(|event| serde_json::from_value::<Option<Brief>>(event[key].clone()).ok()).flatten()
    };
    let went_to = brief(ended, "release");
    let target = went_to.as_ref().map(|release| release.id.clone()).or_else(|| finished.release.clone());
    Story {
        version: FORMAT,
        run: run.to_owned(),
        command: text(first, "command"),
        project: text(first, "project"),
        engine: text(ended, "engine").or_else(|| text(last, "engine")),
        who: text(first, "who"),
        host: text(first, "host"),
        xtask: text(last, "xtask"),
        began_ms: at(first).map(|at| at.saturating_sub(since(first))),
        ended_ms: at(ended),
        resumed: begun.iter().filter(|event| event["resumed"] == true).count(),
        left: brief(first, "running"),
        went_to,
        differences: drift.iter().filter(|d| !is_change(d)).map(ToString::to_string).collect(),
        changes: changes(&drift),
        length_ms: known.into_iter().flatten().max().unwrap_or(0),
        restored: restored(&steps, target.as_deref()),
        steps,
        checks: checks.unwrap_or_default(),
        notes: all("note").filter_map(|note| text(Some(note), "text")).collect(),
        logs: Vec::new(),
        go_on: ended.and_then(|e| serde_json::from_value(e["go_on"].clone()).ok()).unwrap_or_default(),
        links: Vec::new(),
        finished: finished.clone(),
    }
}

/// The steps with their times. One that was begun and not ended was cut off.
fn steps(events: &[Value]) -> Vec<Stepped> {
    let mut all = Vec::new();
    let mut open: Option<Stepped> = None;
    for event in events.iter().filter(|event| event["event"] == "step") {
        let Ok(progress) = serde_json::from_value::<Progress>(event["progress"].clone()) else { continue };
        let text = |key: &str| event[key].as_str().map(str::to_owned);
        let (at, took) = (event["at_ms"].as_u64().unwrap_or(0), event["took_ms"].as_u64().unwrap_or(0));
        let is_over = progress != Progress::Started;
        let step = Stepped {
            action: serde_json::from_value(event["action"].clone()).ok(),
            step: text("step").unwrap_or_default(),
            progress,
            from_ms: at.saturating_sub(took),
            took_ms: is_over.then_some(took),
            detail: text("detail"),
            folder: text("folder"),
        };
        let begun = open.take();
        if is_over {
            all.push(step);
            continue;
        }
        all.extend(begun);
        open = Some(step);
    }
    all.extend(open);
    all
}

/// What differed from the release that the run went to, each difference once. If it went to none: from all of them.
fn drift(events: &[Value], finished: &Finished) -> Vec<Difference> {
    let mut all: Vec<Difference> = Vec::new();
    for event in events.iter().filter(|event| event["event"] == "drift") {
        if finished.release.as_deref().is_some_and(|release| event["release"] != release) {
            continue;
        }
        let found = event["differences"].as_array().into_iter().flatten();
        for difference in found.filter_map(|value| serde_json::from_value(value.clone()).ok()) {
            if !all.contains(&difference) {
                all.push(difference);
            }
        }
    }
    all
}

fn is_change(difference: &Difference) -> bool {
    match difference {
        Difference::Image { .. } | Difference::Env { .. } => true,
        Difference::EnvFile { trouble, .. } => trouble.is_none(),
        _ => false,
    }
}

/// The files of a run that are there.
fn links(dir: &RunDir) -> Vec<Link> {
    let backups = dir.backups().unwrap_or_default().into_iter().map(|(_, path)| (path, "verified backup"));
    let all = [
        (dir.evidence(), "evidence: logs, states, metrics and settings"),
        (dir.evidence_of_the_end(), "evidence: the same when the run failed"),
    ];
    let files = [
        (dir.journal(), "journal: each event, one a line"),
        (dir.markdown(), "this report as Markdown, for a ticket"),
        (dir.junit(), "this report as JUnit, for CI"),
        (dir.report(), "this report as JSON"),
    ];
    // The reports are written together, so they are there when somebody reads this one.
    let there = all.into_iter().chain(backups).filter(|(path, _)| path.exists()).chain(files);
    let link = |(path, what): (std::path::PathBuf, &str)| {
        let is_folder = path.is_dir();
        let name = path.file_name()?.to_str()?;
        Some(Link { path: if is_folder { format!("{name}/") } else { name.to_owned() }, what: what.into() })
    };
    there.filter_map(link).collect()
}
