//! `history`: every rollback, deployment, reset and restore of data, newest first. Needs no engine.

use crate::base::deadline::utc;
use crate::base::failure::Exit;
use crate::base::output::Output;
use crate::deploy::event::{Event, Finished};
use crate::operations::history;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use serde_json::json;

/// `cargo xtask history`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask history")]
pub struct Args {}

/// Shows the table.
pub fn run(pilot: &Pilot, out: &Output) -> Result<Finished> {
    let all = history::all(&pilot.state)?;
    out.event(&Event::Result { value: &json!({"runs": all}) });
    let head = ["run", "began", "command", "outcome", "release", "downtime", "who"].map(str::to_owned);
    let rows = all.iter().map(|entry| {
        let held = if entry.held { ", held" } else { "" };
        let who = match (&entry.who, &entry.host) {
            (Some(who), Some(host)) => format!("{who}@{host}"),
            _ => "-".into(),
        };
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        [
            entry.run.clone(),
            entry.began_ms.map_or_else(|| "-".into(), utc),
            or(&entry.command),
            format!("{}{held}", entry.outcome),
            or(&entry.release),
            entry.downtime_ms.map_or_else(|| "-".into(), |ms| format!("{:.2} s", ms as f64 / 1e3)),
            who,
        ]
    });
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(rows).collect();
    if all.is_empty() {
        out.say(format!("there was no rollback, deployment or reset yet; to begin: {}", out.xtask("up")));
        return Ok(Finished::plain(Exit::Ok));
    }
    for row in &rows {
        let cell = |n: usize| {
            let width = rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
            format!("{:<width$}", row[n])
        };
        let line: Vec<String> = (0..row.len()).map(cell).collect();
        out.say(line.join("  ").trim_end());
    }
    out.say(format!("to read one: {}", out.xtask("report RUN")));
    Ok(Finished::plain(Exit::Ok))
}
