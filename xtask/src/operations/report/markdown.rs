//! `report.md`: the story of a run, to paste into the page of an incident. Called by `report`.

use crate::deploy::difference::Difference;
use crate::deploy::event::Finished;
use crate::operations::report::told::{checks, gate, of, outcome, plain, seconds, steps, title};
use anyhow::Result;
use serde_json::Value;
use std::fmt::Write;

/// The page.
pub fn page(events: &[Value], finished: &Finished) -> Result<String> {
    let mut page = format!("# {}: {}\n\n", title(events, finished), outcome(finished)?);
    let scenarios: Vec<&str> = finished.scenarios.iter().map(|s| s.as_str()).collect();
    writeln!(page, "- release: {}", finished.release.as_deref().unwrap_or("none"))?;
    writeln!(
        page,
        "- scenario: {}",
        if scenarios.is_empty() { "none".into() } else { scenarios.join(" + ") }
    )?;
    writeln!(page, "- gate proved closed: {}", seconds(finished.gate_closed_ms))?;
    writeln!(page, "- first public token: {}", seconds(finished.restored_ms))?;
    for line in gate(finished) {
        writeln!(page, "- {}", one_line(&line))?;
    }
    if let Some(error) = &finished.error {
        writeln!(page, "- error: {}", one_line(error))?;
    }
    if let Some(escalation) = &finished.escalation {
        writeln!(page, "- {escalation}")?;
    }
    if let Some(next) = &finished.next {
        writeln!(page, "- next: `{next}`")?;
    }
    if let Some(advice) = &finished.advice {
        writeln!(page, "- {}", one_line(advice))?;
    }
    page += "\n## What differed from the release\n\n";
    for event in of(events, "drift") {
        let differences: Vec<Difference> = serde_json::from_value(event["differences"].clone())?;
        differences
            .iter()
            .try_for_each(|difference| writeln!(page, "- {}", one_line(&difference.to_string())))?;
    }
    page += "\n## Steps\n\n| step | how it ended | took |\n| --- | --- | --- |\n";
    for step in steps(events) {
        let detail = step["detail"].as_str().map(|d| format!(": {d}")).unwrap_or_default();
        let how = cell(&format!("{}{detail}", plain(&step["progress"])));
        writeln!(page, "| {} | {how} | {} ms |", cell(&plain(&step["step"])), step["took_ms"])?;
    }
    page += "\n## Checks\n\n| check | | measured |\n| --- | --- | --- |\n";
    for check in checks(finished) {
        let word = if check["ok"] == true { "passed" } else { "failed" };
        writeln!(page, "| {} | {word} | {} |", cell(&plain(&check["name"])), cell(&plain(&check["detail"])))?;
    }
    Ok(page)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Escapes `|`, which would begin the next cell.
fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}
