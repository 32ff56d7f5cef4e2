//! Tells receivers outside of the stack (`[notify]` in the manifest) that a run begins and how it ended. What they are
//! told is made here, as a value; `base/courier` delivers it beside the work. Nothing here can fail a run: what went wrong
//! is a remark. A rehearsal tells nobody, or everybody would take it for the real stack. Called by `rollback` and `up`
//! when a run begins, and by `main` when a command has ended.

use crate::base::courier::{Courier, Letter, To};
use crate::base::failure::Exit;
use crate::base::machine;
use crate::base::output::Output;
use crate::base::secrets;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::run::Run;
use crate::deploy::session::Session;
use crate::stack::call::{filled, names};
use crate::stack::manifest::{Notify, Occasion};
use crate::stack::pilot::{Pilot, REHEARSALS};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;
use std::time::SystemTime;

/// The version of the messages.
const FORMAT: u32 = 1;

/// Set by the benchmark, which measures what messages cost.
pub const REHEARSED: &str = "PILOT_NOTIFY_IN_REHEARSAL";

/// Most characters of the sentence: chats cut longer ones.
const SENTENCE: usize = 3000;

/// What a receiver is told. The form is `notice` in `docs/events.schema.json`.
#[derive(Debug, Serialize)]
pub struct Notice<'a> {
    version: u32,
    /// Why it is told: one or several of `[notify] on`.
    about: Vec<Occasion>,
    /// RFC 3339.
    at: String,
    command: &'a str,
    project: &'a str,
    host: String,
    user: String,
    run: Option<&'a str>,
    /// For people.
    text: String,
    /// The last event of the command, once there is one.
    finished: Option<&'a Finished>,
}

/// What is needed to tell anybody: there may be no engine.
#[derive(Clone, Copy)]
pub struct Teller<'a> {
    /// The stack, whose manifest counts.
    pub pilot: &'a Pilot,
    /// Carries what is told.
    pub courier: &'a Courier,
    /// Where remarks go.
    pub out: &'a Output,
}

impl<'a> From<&'a Session> for Teller<'a> {
    fn from(session: &'a Session) -> Self {
        let Session { pilot, courier, out, .. } = session;
        Self { pilot, courier, out }
    }
}

/// A run begins. If it is killed, the receivers are told that too.
pub fn begins(session: &Session, run: &Run) {
    let by = Teller::from(session);
    let (command, id) = (run.request.command.as_str(), run.id.as_str());
    tell(by, "the beginning", |rule| {
        let again = if run.resumed() { "goes on" } else { "begins" };
        let whose = format!("{command} {id} of {} on {}", by.pilot.project, machine::host_name());
        let begun = format!("{whose} {again}");
        let mut notice = notice(by, command, Some(id), &[Occasion::Start], begun, None);
        if wants(rule, &notice.about) {
            by.courier.send(&letters(by, rule, &notice)?)?;
        }
        notice.about = vec![Occasion::End];
        notice.text = format!("✗ {whose} was cut off; the same command continues it");
        if wants(rule, &notice.about) {
            by.courier.will(&letters(by, rule, &notice)?)?;
        }
        Ok(())
    });
}

/// A command has ended that changes something. Says what could not be told.
pub fn ends(by: Teller<'_>, command: &str, finished: &Finished) {
    let about = occasions(command, finished);
    if !about.is_empty() {
        let text = sentence(&by.pilot.project, command, finished);
        let run = finished.rollback.as_deref();
        tell(by, "the end", |rule| {
            if !wants(rule, &about) {
                return Ok(());
            }
            let masked = finished.clone().masked();
            by.courier.send(&letters(by, rule, &notice(by, command, run, &about, text, Some(&masked)))?)
        });
    }
    for wrong in by.courier.over() {
        by.out.note(format!("[notify]: {wrong}"));
    }
}

fn tell(by: Teller<'_>, what: &str, told: impl FnOnce(&Notify) -> Result<()>) {
    let rehearsal = by.pilot.project.starts_with(REHEARSALS) && std::env::var_os(REHEARSED).is_none();
    let Some(rule) = by.pilot.manifest.notify.as_ref().filter(|_| !rehearsal) else { return };
    if let Err(error) = told(rule) {
        by.out.note(format!("[notify]: nobody was told of {what}: {error:#}"));
    }
}

/// Why somebody may want to know of this end: a run has ended, or a person has closed or opened the gate. Nothing for
/// other commands, unless the host has failed.
fn occasions(command: &str, finished: &Finished) -> Vec<Occasion> {
    let switched = command.starts_with("kill-switch");
    let calls = finished.escalation.as_ref().is_some_and(|escalation| escalation.level > 1);
    if finished.rollback.is_none() && !switched {
        // Nothing was begun. Only if the host is the reason, somebody must know: the stack may be broken.
        return Vec::from_iter((calls && finished.exit == Exit::Host).then_some(Occasion::Escalation));
    }
    let all =
        [(true, Occasion::End), (calls, Occasion::Escalation), (switched || finished.held, Occasion::Hold)];
    all.into_iter().filter(|(is, _)| *is).map(|(_, occasion)| occasion).collect()
}

fn wants(rule: &Notify, about: &[Occasion]) -> bool {
    about.iter().any(|occasion| rule.on.contains(occasion))
}

fn sentence(project: &str, command: &str, finished: &Finished) -> String {
    let release = finished.release.as_deref().unwrap_or("?");
    let how = match (finished.outcome, &finished.error) {
        (Some(Outcome::RolledBack), Some(error)) => format!("✗ {error}"),
        (_, Some(error)) => format!("✗ not done: {error}"),
        (Some(Outcome::Restored), None) if finished.held => format!("✓ release {release} is restored"),
        (Some(Outcome::Restored), None) => format!("✓ release {release} serves again"),
        (Some(Outcome::Deployed), None) => format!("✓ release {release} is deployed"),
        (Some(Outcome::NothingToDo), None) => format!("✓ nothing to do, release {release} runs"),
        (_, None) => "✓ done".into(),
    };
    let id = finished.rollback.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
    let mut all = format!("{command}{id} of {project} on {}: {how}", machine::host_name());
    if let Some(ms) = finished.downtime_ms {
        all += &format!("\ngate closed for {:.1} s", ms as f64 / 1e3);
    }
    let hold = finished.hold.as_ref().map(|hold| format!("the gate is {hold}"));
    let public = finished.public.as_ref().map(ToString::to_string);
    let level =
        finished.escalation.as_ref().filter(|escalation| escalation.level > 1).map(ToString::to_string);
    let next = finished.what_next().map(|next| format!("next: {next}"));
    for line in [hold, public, level, next].into_iter().flatten() {
        all += &format!("\n{line}");
    }
    secrets::mask(&all).chars().take(SENTENCE).collect()
}

fn notice<'a>(
    by: Teller<'a>,
    command: &'a str,
    run: Option<&'a str>,
    about: &[Occasion],
    text: String,
    finished: Option<&'a Finished>,
) -> Notice<'a> {
    Notice {
        version: FORMAT,
        about: about.to_vec(),
        at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        command,
        project: &by.pilot.project,
        host: machine::host_name(),
        user: machine::person(),
        run,
        text,
        finished,
    }
}

/// One for each receiver. A webhook gets the sentence alone: some chats refuse a key that they do not know.
fn letters(by: Teller<'_>, rule: &Notify, notice: &Notice<'_>) -> Result<Vec<Letter>> {
    let limit_ms = rule.limit.as_millis() as u64;
    let mut all = Vec::new();
    if let Some(url) = &rule.webhook {
        let body = json!({"text": secrets::mask(&notice.text)}).to_string();
        all.push(Letter { to: To::Webhook(whole(url, by.pilot)?), body, limit_ms });
    }
    if let Some(command) = &rule.command {
        let mut words = command.0.clone();
        if let Some(program) = words.first_mut().filter(|program| program.contains('/')) {
            *program = by.pilot.pack.join(&*program).display().to_string();
        }
        all.push(Letter {
            to: To::Command(words),
            body: secrets::mask_document(&serde_json::to_string(notice)?),
            limit_ms,
        });
    }
    Ok(all)
}

/// The URL with its variables: those of the environment, else those of the env file. The values are secrets from now on.
fn whole(url: &str, pilot: &Pilot) -> Result<String> {
    let mut values = Vec::new();
    for name in names(url)? {
        let own = std::env::var(name).ok().filter(|value| !value.is_empty());
        let value = match own {
            Some(value) => value,
            None => {
                let env = pilot.env()?;
                let value = env.get(name).filter(|value| !value.is_empty());
                value
                    .with_context(|| format!("{name} is set neither in the environment nor in the env file"))?
                    .to_owned()
            }
        };
        values.push((name, value));
    }
    secrets::learn(&values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect());
    filled(url, &values.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::escalation::Escalation;

    #[test]
    fn what_is_told_of_an_end() {
        let run =
            |exit, outcome| Finished { rollback: Some("0002".into()), outcome, ..Finished::plain(exit) };
        let good = Finished {
            release: Some("r1".into()),
            downtime_ms: Some(1260),
            ..run(Exit::Ok, Some(Outcome::Restored))
        };
        assert_eq!(occasions("rollback", &good), [Occasion::End]);
        let text = sentence("shop", "rollback", &good);
        assert!(text.starts_with("rollback 0002 of shop on "), "{text}");
        assert!(text.ends_with(": ✓ release r1 serves again\ngate closed for 1.3 s"), "{text}");
        let escalation =
            Escalation { level: 2, name: "lead".into(), contact: Some("Ann".into()), why: "none".into() };
        let bad = Finished {
            error: Some("gone".into()),
            next: Some("cargo xtask host".into()),
            escalation: Some(escalation),
            held: true,
            ..run(Exit::NotRestored, Some(Outcome::NotRestored))
        };
        assert_eq!(occasions("rollback", &bad), [Occasion::End, Occasion::Escalation, Occasion::Hold]);
        let text = sentence("shop", "rollback", &bad);
        assert!(
            text.contains("✗ not done: gone\nLevel 2, lead (Ann): none\nnext: cargo xtask host"),
            "{text}"
        );
        // A command that began no run tells nobody, but for the kill switch.
        assert_eq!(occasions("rollback", &Finished::plain(Exit::Usage)), []);
        let host = Finished { rollback: None, exit: Exit::Host, ..bad };
        assert_eq!(occasions("rollback", &host), [Occasion::Escalation]);
        assert_eq!(occasions("kill-switch off", &Finished::plain(Exit::Ok)), [Occasion::End, Occasion::Hold]);
    }
}
