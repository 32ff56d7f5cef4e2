//! `status`: what runs, whether the gate is open, and how the pilot differs from the release, on one screen.
//! Read-only.

use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::observed::Observed;
use crate::deploy::event::{Event, Finished};
use crate::deploy::gate::Gate;
use crate::deploy::session::Session;
use crate::deploy::step::left_open;
use crate::operations::look::{Look, look};
use crate::stack::model::Health;
use anyhow::Result;
use serde_json::json;
use std::time::Duration;

/// `cargo xtask status`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask status\n  cargo xtask status --watch\n  cargo xtask status --watch 10s --times 6"
)]
pub struct Args {
    /// Look again and again, until Ctrl-C; every 2 s, or as often as this says
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "2s", value_parser = humantime::parse_duration)]
    pub watch: Option<Duration>,
    /// With --watch: end after so many looks
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u32).range(1..))]
    pub times: Option<u32>,
}

/// Exit 0 if everything is fine, 1 if not, 4 if the engine does not answer.
pub fn run(session: &Session) -> Result<Finished> {
    let look = look(session, 0, Deadline::after(session.pilot.manifest.limits.ready))?;
    session.out.event(&Event::Result { value: &look.told(json!({})) });
    show(session, &look);
    Ok(verdict(session, &look))
}

/// Says in a line whether all is well.
pub fn verdict(session: &Session, look: &Look) -> Finished {
    let (exit, next) = look.verdict();
    session.out.verdict(format!("\n{}", session.out.marked(Some(exit == Exit::Ok), &look.sentence())));
    let release = look.current.as_ref().map(|release| release.id.clone());
    Finished { release, ..Finished::plain(exit) }.then(next.as_ref(), session.out.context())
}

/// Prints the screen: what is deployed, what runs, and how it differs from the release
/// that a rollback would go to.
pub fn show(session: &Session, look: &Look) {
    let Look { now, current, drift, .. } = look;
    let out = &session.out;
    let release =
        current.as_ref().map_or("none".into(), |r| format!("{} ({}, {})", r.id, r.label, r.state.as_str()));
    out.say(format!("{}  release {release}", session.pilot.project));
    for name in session.pilot.services() {
        let state = match (&now.stack, now.service(name)) {
            (Observed::Unknown(_), _) => "unknown",
            (_, None) => "missing",
            (_, Some(service)) => service.state(),
        };
        let (good, words) = match now.health(name) {
            Some(Health::Healthy { version }) => {
                let port = now.endpoints.get(name).map(|e| session.engine.shown(e.port)).unwrap_or_default();
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
        Gate::Closed(reason) if now.not_closed.is_empty() => (None, format!("closed: {reason}")),
        // Not all that is published is closed.
        Gate::Closed(reason) => (None, format!("closed in part: {reason}{}", left_open(&now.not_closed))),
        Gate::Unknown(why) => (Some(false), format!("unknown: {why}")),
    };
    out.say(out.marked(good, &format!("{:<10} {words}", "gate")));
    match &now.holds {
        Observed::Known(holds) => holds.iter().for_each(|hold| out.say(format!("             {hold}"))),
        Observed::Unknown(why) => {
            out.say(format!("             cannot tell whether somebody holds it: {why}"))
        }
    }
    let from = look.against().map(|release| format!("drift from {}", release.id));
    for difference in drift {
        out.say(out.marked(None, &format!("{}: {difference}", from.as_deref().unwrap_or("drift"))));
    }
    if let (Some(from), true) = (from, drift.is_empty()) {
        out.say(out.marked(Some(true), &format!("{from}: none")));
    }
}
