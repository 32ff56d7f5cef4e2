//! `assess`: the 60-second look. Services, gate, sessions, errors in the last log lines, drift, and which
//! scenario a rollback would choose and why. Looks alone; what it cannot tell it says. `status`, `diagnose`,
//! `preflight` and `evidence` start from the same look, so that all of them see the same.

use super::status;
use crate::base::deadline::Deadline;
use crate::base::fact::Fact;
use crate::base::failure::Exit;
use crate::base::next::Next;
use crate::base::secrets;
use crate::base::threads::joined;
use crate::deploy::converge::Goal;
use crate::deploy::converge::Outlook;
use crate::deploy::drift::{Difference, Scenario, scenarios};
use crate::deploy::event::{Event, Finished};
use crate::deploy::gate::Gate;
use crate::deploy::observe::{Observation, observe};
use crate::deploy::plan::{Plan, Purpose};
use crate::deploy::session::Session;
use crate::operations::rollback;
use crate::release::description::Release;
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
    /// The release that a rollback would go to, if there is one.
    pub target: Option<Release>,
    /// What is.
    pub now: Observation,
    /// What differs from the release; nothing where there is none.
    pub drift: Vec<Difference>,
    /// What a rollback would do.
    pub plan: Option<Plan>,
    /// Streams that run.
    pub sessions: Fact<Value>,
    /// Last log lines of each service, secrets masked; of none where none were asked for.
    pub logs: BTreeMap<String, Fact<Vec<String>>>,
}

/// Looks at the pilot and reads so many log lines of each service, which may be none.
pub fn look(session: &Session, lines: usize, deadline: Deadline) -> Look {
    let (current, target, trouble) = releases(session);
    let plain = |release| session.outlook(&Goal::plain(release, Purpose::Rollback), deadline);
    let outlook = target.as_ref().or(current.as_ref()).map(plain);
    let (now, mut drift, plan) = match outlook {
        Some(Ok(Outlook { now, drift, plan, .. })) => (now, drift, target.is_some().then_some(plan)),
        other => {
            let env = session.pilot.env().ok();
            let now = observe(&session.pilot, session.engine.as_ref(), env.as_ref(), deadline);
            let why = other.and_then(Result::err).map(|error| cannot_tell("what the release has", &error));
            (now, why.into_iter().collect(), None)
        }
    };
    drift.extend(trouble);
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
        let services = session.pilot.services().filter(|_| lines > 0);
        let jobs: Vec<_> = services.map(|name| (name.to_owned(), scope.spawn(move || read(name)))).collect();
        jobs.into_iter().map(|(name, job)| (name, joined(job).into())).collect()
    });
    Look { current, target, now, drift, plan, sessions, logs }
}

/// The release that is deployed, the one that a rollback would go to, and what cannot be told of them.
fn releases(session: &Session) -> (Option<Release>, Option<Release>, Vec<Difference>) {
    let mut trouble = Vec::new();
    let current = session.store.current().unwrap_or_else(|error| {
        trouble.push(cannot_tell("which release is deployed", &error));
        None
    });
    let target = rollback::default_target(session).unwrap_or_else(|error| {
        trouble.push(cannot_tell("where a rollback would go", &error));
        None
    });
    (current, target, trouble)
}

fn cannot_tell(what: &str, error: &anyhow::Error) -> Difference {
    Difference::Unknown { what: what.into(), why: format!("{error:#}") }
}

impl Look {
    /// The release that the drift is from: where a rollback would go, else what is deployed.
    pub fn against(&self) -> Option<&Release> {
        self.target.as_ref().or(self.current.as_ref())
    }

    /// How a look ends: 0 when all is well, 1 when not, 4 when the engine does not answer; and what to run next.
    pub fn verdict(&self) -> (Exit, Option<Next>) {
        let same = self.drift.iter().all(|d| *d == Difference::ComposeFile);
        let held = self.now.holds.held(&[]).is_some();
        let well = self.current.as_ref().is_some_and(Release::is_known_good)
            && self.now.gate == Gate::Open
            && !held
            && same;
        match &self.now.stack {
            Fact::Unknown(_) => (Exit::Host, Some(Next::xtask("host"))),
            Fact::Known(_) if well => (Exit::Ok, None),
            Fact::Known(_) if self.target.is_none() => (Exit::NotRestored, Some(Next::xtask("up"))),
            // As it should be, but for a person who holds the gate closed.
            Fact::Known(_) if held && same => (Exit::NotRestored, Some(Next::xtask("kill-switch off"))),
            Fact::Known(_) => (Exit::NotRestored, Some(Next::xtask("rollback"))),
        }
    }

    /// In JSON, with what else a command tells.
    pub fn told(&self, more: Value) -> Value {
        let mut told = json!({
            "release": self.current.as_ref().map(|release| &release.id),
            "target": self.target.as_ref().map(|release| &release.id),
            "drift_from": self.against().map(|release| &release.id),
            "observation": self.now,
            "drift": self.drift,
        });
        if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
            told.extend(more);
        }
        told
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
    let more = json!({
        "scenarios": look.reasons(), "plan": look.plan, "sessions": look.sessions, "errors": errors,
    });
    out.event(&Event::Result { value: &look.told(more) });
    status::show(session, &look);
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
    if look.target.is_none() {
        out.say("\na rollback has nowhere to go: there is no known-good release");
    }
    for (scenario, why) in look.reasons().into_iter().filter(|_| look.target.is_some()) {
        let why =
            if why.is_empty() { "nothing differs from the release, and services are not well" } else { &why };
        let to = look.target.as_ref().map_or("none", |release| &release.id);
        out.say(format!("\na rollback, to release {to}, would choose `{}`: {why}", scenario.word()));
    }
    let (exit, next) = look.verdict();
    if exit == Exit::Ok {
        out.say("\nall is well");
    }
    Ok(Finished::plain(exit).then(next.as_ref(), out.context()))
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
