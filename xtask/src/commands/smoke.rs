//! `smoke`: runs all checks against the running pilot, and prints them with the runbook's success criteria.

use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::next::Next;
use crate::base::screen;
use crate::checks::smoke::{criteria, verify};
use crate::checks::target::Target;
use crate::deploy::event::check_line;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use anyhow::Result;
use std::time::Duration;

/// `cargo xtask smoke`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask smoke")]
pub struct Args {}

/// Limit for services that have just started to become healthy.
const READY: Duration = Duration::from_secs(5);

/// Exit 1 if a check failed.
pub fn run(session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let target = Target::new(pilot, session.engine.as_ref(), &pilot.env()?)?;
    let shown = screen::doing("run all checks");
    let smoke = verify(&target, Deadline::after(READY));
    drop(shown);
    if session.out.is_json() {
        session.out.event(&Event::Smoke { smoke: &smoke });
    }
    for check in &smoke.checks {
        session.out.say(check_line(&session.out, check));
    }
    session.out.say("");
    for (criterion, holds) in criteria(&smoke, &target)? {
        session.out.say(format!("- [{}] {criterion}", if holds { "x" } else { " " }));
    }
    session.out.say("");
    session.out.verdict(session.out.marked(Some(smoke.passed), &smoke.summary()));
    let exit = if smoke.passed { Exit::Ok } else { Exit::NotRestored };
    let next = (!smoke.passed).then(|| Next::xtask("rollback"));
    let finished = Finished { smoke: Some(serde_json::to_value(&smoke)?), ..Finished::plain(exit) };
    Ok(finished.then(next.as_ref(), session.out.context()))
}
