//! `assess`: the 60-second overview. Services, gate, sessions, errors in the last log lines, drift, and which
//! scenario a rollback would choose and why. Read-only. It says what it could not find out.

use super::status;
use crate::base::count::count;
use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::observed::Observed;
use crate::base::output::Output;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use crate::operations::findings::{self, Finding};
use crate::operations::look::{Look, look};
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How many log lines of each service are searched for errors.
const LINES: usize = 50;

/// `cargo xtask assess`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask assess")]
pub struct Args {}

/// Is a log line an error? The services write JSON with a level. A line that is not JSON may be the message
/// of a process that could not start, so it is searched for words.
pub fn is_error(line: &str) -> bool {
    let json = line.find('{').and_then(|at| serde_json::from_str::<Value>(&line[at..]).ok());
    match json {
        Some(event) => event["level"] == "ERROR",
        None => {
            let line = line.to_lowercase();
            ["error", "panic", "cannot", "failed", "expected"].iter().any(|word| line.contains(word))
        }
    }
}

/// Prints the overview. Exit 0 if everything is fine, 1 if not, 4 if the engine does not answer.
pub fn run(session: &Session) -> Result<Finished> {
    let deadline = Deadline::after(session.pilot.manifest.limits.ready);
    let look = look(session, LINES, deadline)?;
    let out = &session.out;
    let errors: BTreeMap<&String, Vec<&String>> = look
        .logs
        .iter()
        .filter_map(|(name, lines)| Some((name, lines.known()?.iter().filter(|l| is_error(l)).collect())))
        .collect();
    let more = json!({
        "scenarios": look.reasons(), "plan": look.plan, "sessions": look.sessions, "errors": errors,
    });
    out.event(&Event::Result { value: &look.told(more) });
    status::show(session, &look);
    show_sessions(session, &look);
    for (name, lines) in &look.logs {
        match lines {
            Observed::Unknown(why) => {
                out.say(out.marked(None, &format!("{:<10} cannot read the log: {why}", name)))
            }
            Observed::Known(lines) => {
                let bad: Vec<&String> = lines.iter().filter(|line| is_error(line)).collect();
                if let Some(last) = bad.last() {
                    let text = format!(
                        "{name:<10} {} in {}, the last:",
                        count(bad.len(), "error"),
                        count(lines.len(), "log line")
                    );
                    out.say(out.marked(Some(false), &text));
                    out.say(format!("    {last}"));
                }
            }
        }
    }
    for finding in findings::of(&look, is_error, out.context()) {
        show_finding(out, &finding);
    }
    if look.target.is_none() {
        out.say("\na rollback is not possible: there is no known-good release");
    } else if let (Some(to), [_, ..]) = (&look.target, look.reasons().as_slice()) {
        let words: Vec<&str> = look.reasons().iter().map(|(scenario, _)| scenario.as_str()).collect();
        out.say(format!("\na rollback would go to release {} (scenario {})", to.id, words.join(" + ")));
    }
    let (exit, next) = look.verdict();
    out.verdict(format!("\n{}", out.marked(Some(exit == Exit::Ok), &look.sentence())));
    Ok(Finished::plain(exit).then(next.as_ref(), out.context()))
}

/// Prints what is wrong, why, and what to do.
pub fn show_finding(out: &Output, finding: &Finding) {
    out.say(format!("\n{}", out.marked(Some(false), &finding.what)));
    finding.why.iter().for_each(|why| out.say(format!("    why: {why}")));
    out.say(format!("    do:  {}", finding.fix));
}

/// Prints how many sessions run, if the manifest says how to ask.
pub fn show_sessions(session: &Session, look: &Look) {
    let out = &session.out;
    let (Some(sessions), Some(rule)) = (&look.sessions, &session.pilot.manifest.sessions) else { return };
    out.say(match sessions {
        Observed::Known(value) => match value.pointer(&rule.active).and_then(Value::as_u64) {
            Some(active) => out.marked(Some(true), &format!("{:<10} {active} active", "sessions")),
            None => out.marked(None, &format!("{:<10} cannot tell: {value}", "sessions")),
        },
        Observed::Unknown(why) => out.marked(None, &format!("{:<10} cannot tell: {why}", "sessions")),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_by_level_and_not_by_a_word_in_a_message() {
        assert!(is_error(r#"2026-11-24T00:00:00Z {"level":"ERROR","message":"store unusable"}"#));
        assert!(!is_error(r#"{"level":"INFO","message":"no error"}"#));
        assert!(is_error("scenario: LOG_LEVEL=x: expected error, warn"));
        assert!(!is_error(""));
    }
}
