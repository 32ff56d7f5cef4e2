//! `assess`: the 60-second look. Services, gate, sessions, errors in the last log lines, drift, and which
//! scenario a rollback would choose and why. Looks alone; what it cannot tell it says. `diagnose` and
//! `evidence` start from the same look.

use super::status;
use crate::deadline::Deadline;
use crate::deploy::{Goal, Outlook, Session};
use crate::drift::{Difference, Scenario, scenarios};
use crate::failure::Exit;
use crate::journal::{Event, Finished};
use crate::observe::{Fact, Observation, observe};
use crate::plan::{Plan, Purpose};
use crate::release::Release;
use crate::secrets;
use crate::threads::joined;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Log lines of each service that are read for errors.
const LINES: usize = 50;

/// `cargo xtask assess`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask assess")]
pub struct Args {}

/// What was seen.
pub struct Look {
    /// The release that is deployed, if any is recorded.
    pub current: Option<Release>,
    /// Id of the release that a rollback would go to, and that the drift is from.
    pub target: Option<String>,
    /// What is.
    pub now: Observation,
    /// What differs from the release; nothing where there is none.
    pub drift: Vec<Difference>,
    /// What a rollback would do.
    pub plan: Option<Plan>,
    /// Streams that run.
    pub sessions: Fact<Value>,
    /// Last log lines of each service, secrets masked.
    pub logs: BTreeMap<String, Fact<Vec<String>>>,
}

/// Looks at the pilot and reads so many log lines of each service.
pub fn look(session: &Session, lines: usize, deadline: Deadline) -> Look {
    let current = session.store.current().ok().flatten();
    // Where a rollback would go: never to one that failed.
    let target = match &current {
        Some(release) if release.is_known_good() => Some(release.clone()),
        _ => session.store.known_good().ok().and_then(|good| good.into_iter().next()).or(current.clone()),
    };
    let plain = |release| session.outlook(&Goal::plain(release, Purpose::Rollback), deadline);
    let outlook = target.as_ref().map(plain);
    let (now, drift, plan) = match outlook {
        Some(Ok(Outlook { now, drift, plan })) => (now, drift, Some(plan)),
        other => {
            let env = session.pilot.env().ok();
            let now = observe(&session.pilot, session.engine.as_ref(), env.as_ref(), deadline);
            let why = other.and_then(Result::err).map(|error| Difference::Unknown {
                what: "what the release has".into(),
                why: format!("{error:#}"),
            });
            (now, why.into_iter().collect(), None)
        }
    };
    let sessions = now
        .gateway(&session.pilot, session.pilot.manifest.limits.probe)
        .context("the gateway does not run")
        .and_then(|gateway| Ok(gateway.get("/admin/sessions")?.json()))
        .into();
    let logs = std::thread::scope(|scope| {
        let read = |name: &str| -> Result<Vec<String>> {
            let text = session.engine.logs(now.state(name)?, Some(lines), deadline)?;
            Ok(secrets::mask(&text).lines().map(str::to_owned).collect())
        };
        let jobs: Vec<_> =
            session.pilot.services().map(|name| (name.to_owned(), scope.spawn(move || read(name)))).collect();
        jobs.into_iter().map(|(name, job)| (name, joined(job).into())).collect()
    });
    Look { current, target: target.map(|release| release.id), now, drift, plan, sessions, logs }
}

impl Look {
    /// How `status` ends for the same, and what to run next.
    pub fn verdict(&self) -> (Exit, Option<&'static str>) {
        status::verdict(&self.now, self.current.as_ref(), &self.drift)
    }

    /// The scenarios that a rollback would choose, with the differences that make each.
    pub fn reasons(&self) -> Vec<(Scenario, String)> {
        let all = scenarios(&self.drift);
        let why = |scenario: &Scenario| {
            let own = |d: &&Difference| scenarios(std::slice::from_ref(*d)).contains(scenario);
            self.drift.iter().filter(own).map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        all.iter().map(|scenario| (*scenario, why(scenario))).collect()
    }
}

/// Does a log line tell of an error? The services write JSON with a level; what is not JSON is the last
/// word of a process that could not start.
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

/// Prints what was seen. Exit 0 when all is well, 1 when not, 4 when the engine does not answer.
pub fn run(session: &Session) -> Result<Finished> {
    let deadline = Deadline::after(session.pilot.manifest.limits.ready);
    let look = look(session, LINES, deadline);
    let out = &session.out;
    let errors: BTreeMap<&String, Vec<&String>> = look
        .logs
        .iter()
        .filter_map(|(name, lines)| Some((name, lines.known()?.iter().filter(|l| is_error(l)).collect())))
        .collect();
    out.event(&Event::Result {
        value: &json!({
            "release": look.current.as_ref().map(|r| &r.id),
            "target": look.target,
            "observation": look.now,
            "drift": look.drift,
            "scenarios": look.reasons(),
            "plan": look.plan,
            "sessions": look.sessions,
            "errors": errors,
        }),
    });
    status::show(session, &look.now, look.current.as_ref(), &look.drift);
    show_sessions(session, &look);
    for (name, lines) in &look.logs {
        match lines {
            Fact::Unknown(why) => {
                out.say(out.marked(None, &format!("{:<10} cannot read the log: {why}", name)))
            }
            Fact::Known(lines) => {
                let bad: Vec<&String> = lines.iter().filter(|line| is_error(line)).collect();
                if let Some(last) = bad.last() {
                    let text =
                        format!("{name:<10} {} errors in {} log lines, the last:", bad.len(), lines.len());
                    out.say(out.marked(Some(false), &text));
                    out.say(format!("    {last}"));
                }
            }
        }
    }
    for (scenario, why) in look.reasons() {
        let why =
            if why.is_empty() { "nothing differs from the release, and services are not well" } else { &why };
        let to = look.target.as_deref().unwrap_or("none");
        out.say(format!("\na rollback, to release {to}, would choose `{}`: {why}", scenario.word()));
    }
    let (exit, next) = look.verdict();
    if exit == Exit::Ok {
        out.say("\nall is well");
    }
    Ok(Finished { next: next.map(str::to_owned), ..Finished::plain(exit) })
}

/// How many streams run.
pub fn show_sessions(session: &Session, look: &Look) {
    let out = &session.out;
    out.say(match &look.sessions {
        Fact::Known(value) if value["active"].is_u64() => {
            out.marked(Some(true), &format!("{:<10} {} active", "sessions", value["active"]))
        }
        Fact::Known(value) => out.marked(None, &format!("{:<10} cannot tell: {value}", "sessions")),
        Fact::Unknown(why) => out.marked(None, &format!("{:<10} cannot tell: {why}", "sessions")),
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
