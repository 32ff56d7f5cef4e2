//! `drill`: deploys a good release, then a bad version and a bad env file by hand, without any checks, and
//! then runs the same rollback that an operator would run. The rollback is a separate process, so its times
//! are the operator's. Called by the command `drill`.

use crate::base::output::Output;
use crate::deploy::event::Finished;
use crate::engine::roles::Kind;
use crate::rehearsal::Rehearsal;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::time::Duration;

/// The label of the bad version.
const BAD: &str = "v9.9.9-bad";

/// Runs the drill with this fault in the bad version, or with the default fault and a bad env file. Returns
/// the result of the rollback.
pub fn run(
    fault: Option<&str>,
    keep: bool,
    asked: Option<Kind>,
    real: &Pilot,
    out: Output,
) -> Result<Finished> {
    out.say("1. deploy a good release in a separate project");
    let rehearsal = Rehearsal::begin(real, asked, out, keep)?;
    let session = &rehearsal.session;
    let settings = &session.pilot.manifest.drill;
    let bad_env = if fault.is_none() { settings.pairs() } else { Vec::new() };
    let fault = fault.unwrap_or("error-5xx");
    let also = if bad_env.is_empty() { "" } else { " and a bad env file" };
    session.out.say(format!("\n2. deploy by hand: version {BAD} with the fault {fault}{also}"));
    rehearsal.deploy_by_hand(rehearsal.images(BAD, fault)?, &bad_env)?;
    // Give the fault time to show, as it would before a person starts a rollback.
    std::thread::sleep(Duration::from_secs(1));
    session.out.say("\n3. roll back");
    let finished = rehearsal.roll_back(true)?;
    if keep {
        session.out.say(format!("\nthe drill's pilot still runs: {}", session.out.xtask("status")));
    }
    Ok(finished)
}
