//! `kill-switch on|off|status`: the gate by hand. `on` needs no lock: closing is always allowed, and
//! where the gateway does not answer it is stopped. `off` verifies first: the gate never opens on
//! something that was not checked.

use crate::deadline::Deadline;
use crate::deploy::Session;
use crate::failure::{Exit, fail};
use crate::gate::{self, Gate};
use crate::journal::{Event, Finished};
use crate::lock;
use crate::observe::{observe, release_env};
use crate::verify::{Target, verify};
use anyhow::{Context, Result};
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
    let gateway = now.gateway(pilot, Duration::from_secs(10));
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
        Action::On => {
            let closed =
                gateway.context("the gateway does not run").and_then(|g| gate::close(&g, &args.reason));
            match closed {
                Ok(()) => session.out.say("the gate is closed: healthz says so, and a stream is refused"),
                Err(error) => {
                    session.engine.stop(pilot.gateway(), deadline).with_context(|| {
                        format!("the gate could not be closed ({error:#}), and the gateway not be stopped")
                    })?;
                    session
                        .out
                        .note(format!("the gate could not be closed, the gateway was stopped: {error:#}"));
                }
            }
        }
        Action::Off => {
            let _lock = lock::take(&pilot.state, "kill-switch off")?;
            let gateway = gateway
                .ok_or_else(|| fail(Exit::NotRestored, "the gateway does not run", "cargo xtask rollback"))?;
            let env = match session.store.current()? {
                Some(release) => release_env(&session.store, &release)?,
                None => pilot.env()?,
            };
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
