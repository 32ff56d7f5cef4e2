//! `status`: what runs, where the gate stands and what differs from the release, on one screen.

use crate::deadline::Deadline;
use crate::deploy::{Goal, Session};
use crate::drift::Difference;
use crate::failure::Exit;
use crate::gate::Gate;
use crate::journal::{Event, Finished};
use crate::observe::{Fact, Health, Observation, observe};
use crate::plan::Purpose;
use crate::release::Release;
use anyhow::Result;
use serde_json::json;

/// `cargo xtask status`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask status")]
pub struct Args {}

/// Looks and tells. Exit 0 when all is well, 1 when not, 4 when the engine does not answer.
pub fn run(session: &Session) -> Result<Finished> {
    let deadline = Deadline::after(session.pilot.manifest.limits.ready);
    let current = session.store.current()?;
    let (now, drift) = match &current {
        Some(release) => {
            let outlook = session.outlook(&Goal::plain(release, Purpose::Rollback), deadline)?;
            (outlook.now, outlook.drift)
        }
        None => {
            let env = session.pilot.env().ok();
            (observe(&session.pilot, session.engine.as_ref(), env.as_ref(), deadline), Vec::new())
        }
    };
    session.out.event(&Event::Result {
        value: &json!({"release": current.as_ref().map(|r| &r.id), "observation": now, "drift": drift}),
    });
    show(session, &now, current.as_ref(), &drift);
    let (exit, next) = verdict(&now, current.as_ref(), &drift);
    Ok(Finished { release: current.map(|r| r.id), next: next.map(str::to_owned), ..Finished::plain(exit) })
}

/// How a look ends: 0 when all is well, 1 when not, 4 when the engine does not answer; and what to run next.
pub fn verdict(
    now: &Observation,
    current: Option<&Release>,
    drift: &[Difference],
) -> (Exit, Option<&'static str>) {
    let well = current.is_some_and(Release::is_known_good)
        && now.gate == Gate::Open
        && drift.iter().all(|d| *d == Difference::ComposeFile);
    let held = now.holds.known().is_none_or(|holds| !holds.is_empty());
    match &now.stack {
        Fact::Unknown(_) => (Exit::Host, Some("cargo xtask host")),
        Fact::Known(_) if well => (Exit::Ok, None),
        Fact::Known(_) if current.is_none() => (Exit::NotRestored, Some("cargo xtask up")),
        Fact::Known(_) if held && drift.iter().all(|d| *d == Difference::ComposeFile) => {
            (Exit::NotRestored, Some("cargo xtask kill-switch off"))
        }
        Fact::Known(_) => (Exit::NotRestored, Some("cargo xtask rollback")),
    }
}

/// The screen.
pub fn show(session: &Session, now: &Observation, current: Option<&Release>, drift: &[Difference]) {
    let out = &session.out;
    let release = current.map_or("none".into(), |r| format!("{} ({}, {})", r.id, r.label, r.state.word()));
    out.say(format!("{}  release {release}", session.pilot.project));
    for name in session.pilot.services() {
        let state = match (&now.stack, now.service(name)) {
            (Fact::Unknown(_), _) => "unknown",
            (_, None) => "missing",
            (_, Some(state)) => &state.state,
        };
        let (good, words) = match now.health.get(name) {
            Some(Health::Healthy { version }) => {
                let port =
                    now.endpoints.get(name).map(|e| format!("127.0.0.1:{}", e.port)).unwrap_or_default();
                (true, format!("healthy   {version:<10} {port}"))
            }
            Some(Health::StoreCorrupt(why) | Health::Unhealthy(why) | Health::Silent(why)) => {
                (false, format!("{state}: {why}"))
            }
            None => (false, state.to_owned()),
        };
        out.say(out.marked(Some(good), &format!("{name:<10} {words}")));
    }
    let (good, words) = match &now.gate {
        Gate::Open => (Some(true), "open".to_owned()),
        Gate::Closed(reason) => (None, format!("closed: {reason}")),
        Gate::Unknown(why) => (Some(false), format!("unknown: {why}")),
    };
    out.say(out.marked(good, &format!("{:<10} {words}", "gate")));
    match &now.holds {
        Fact::Known(holds) => holds.iter().for_each(|hold| out.say(format!("             {hold}"))),
        Fact::Unknown(why) => out.say(format!("             cannot tell whether it is held: {why}")),
    }
    for difference in drift {
        out.say(out.marked(None, &format!("drift      {difference}")));
    }
    if current.is_some() && drift.is_empty() {
        out.say(out.marked(Some(true), "drift      none"));
    }
}
