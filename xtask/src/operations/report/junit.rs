//! `report.xml`: the steps and the checks as test cases, in the JUnit format that CI systems read. Called by
//! `report`.

use crate::deploy::event::Finished;
use crate::operations::report::told::{checks, escape, plain, steps, title};
use anyhow::Result;
use serde_json::Value;
use std::fmt::Write;

/// One suite: the steps, the checks, and how the run ended.
pub fn suite(events: &[Value], finished: &Finished) -> Result<String> {
    let mut cases = String::new();
    let (mut count, mut failures) = (0, 0);
    let mut case = |class: &str, name: &str, seconds: f64, failure: Option<String>| {
        count += 1;
        write!(cases, "  <testcase classname=\"{class}\" name=\"{}\" time=\"{seconds}\"", text(name))?;
        match failure {
            None => writeln!(cases, "/>"),
            Some(why) => {
                failures += 1;
                writeln!(cases, "><failure message=\"{}\"/></testcase>", text(&why))
            }
        }
    };
    for step in steps(events) {
        let failed = (step["progress"] == "failed").then(|| plain(&step["detail"]));
        case("step", &plain(&step["step"]), step["took_ms"].as_f64().unwrap_or(0.0) / 1e3, failed)?;
    }
    for check in checks(finished) {
        let failed = (check["ok"] != true).then(|| plain(&check["detail"]));
        case("check", &plain(&check["name"]), 0.0, failed)?;
    }
    let failed = (!finished.exit.is_good())
        .then(|| finished.error.clone().unwrap_or_else(|| format!("exit code {}", u8::from(finished.exit))));
    let restored = finished.restored_ms.unwrap_or(0) as f64 / 1e3;
    // A failed step is reported as its own case. This case is for a failure before the first step.
    case("run", "done and verified", restored, failed)?;
    let title = text(&title(events, finished));
    Ok(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{title}\" tests=\"{count}\" failures=\"{failures}\">\n{cases}</testsuite>\n"
    ))
}

/// Removes control characters: XML 1.0 does not allow them, not even escaped.
fn text(raw: &str) -> String {
    escape(&raw.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
}
