//! `kill-switch on|off|status`: the gate by hand. `on` needs no lock: closing is always allowed, and where
//! the gateway does not answer it is stopped and fenced. `off` undoes that and verifies first: the gate never
//! opens on something that was not checked.

use crate::deadline::Deadline;
use crate::deploy::Session;
use crate::failure::{Exit, fail};
use crate::fence::{self, Closed};
use crate::gate::{self, Gate};
use crate::journal::{Event, Finished};
use crate::lock;
use crate::observe::{clients, observe, release_env};
use crate::verify::{Target, verify};
use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;
use std::time::Duration;

/// `cargo xtask kill-switch`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask kill-switch on --reason \"bad answers\"\n  cargo xtask kill-switch off\n  cargo xtask kill-switch status"
)]
pub struct Args {
    /// What to do with it
    #[arg(value_enum)]
    action: Action,
    /// Why it is closed; clients are told
    #[arg(long, default_value = "closed by hand")]
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Close the gate: nothing but health, metrics and admin is answered
    On,
    /// Verify the pilot and open the gate
    Off,
    /// Say where it stands
    Status,
}

/// Closes, opens or tells.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let deadline = Deadline::after(pilot.manifest.limits.ready);
    let env = pilot.env().ok();
    let now = observe(pilot, session.engine.as_ref(), env.as_ref(), deadline);
    match args.action {
        Action::Status => {
            session.out.event(&Event::Result { value: &json!({"gate": now.gate}) });
            match &now.gate {
                Gate::Open => session.out.say("the gate is open"),
                Gate::Closed(reason) => session.out.say(format!("the gate is closed: {reason}")),
                Gate::Unknown(why) => {
                    return Err(fail(Exit::NotRestored, format!("cannot tell: {why}"), "cargo xtask status"));
                }
            }
        }
        Action::On => match fence::close(session, &now, &args.reason, deadline)? {
            Closed::Proved => session.out.say("the gate is closed: healthz says so, and a stream is refused"),
            Closed::Fenced(how) => session.out.note(how),
        },
        Action::Off => {
            let _lock = lock::take(&pilot.state, "kill-switch off")?;
            if fence::lift(session, &now, deadline)? {
                session.out.note("the gateway, which kill-switch on had stopped, is started again");
            } else if now.stack.known().is_some() && now.service(pilot.gateway()).is_none_or(|s| !s.is_live())
            {
                let what = "the gateway does not run, and it was not kill-switch on that stopped it";
                return Err(fail(Exit::NotRestored, what, "cargo xtask rollback"));
            }
            let env = match session.store.current()? {
                Some(release) => release_env(&session.store, &release)?,
                None => pilot.env()?,
            };
            let gateway = clients(pilot, &env, Duration::from_secs(10))?.remove(pilot.gateway());
            let gateway = gateway.ok_or_else(|| {
                fail(Exit::NotRestored, "pilot.toml names no gateway", "cargo xtask status")
            })?;
            let smoke = verify(&Target::new(pilot, &env)?, deadline);
            session.out.event(&Event::Smoke { smoke: &smoke });
            if !smoke.passed {
                let what = format!("the gate stays closed: {}", smoke.summary());
                return Err(fail(Exit::NotRestored, what, "cargo xtask rollback"));
            }
            gate::open(&gateway)?;
            session.out.say("the gate is open: a public stream gave its first token");
        }
    }
    Ok(Finished::plain(Exit::Ok))
}
