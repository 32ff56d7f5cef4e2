//! `drill`: a good release, then what a bad day brings (another env file, another version, deployed
//! past all checks), then the very rollback that an operator would call, as a process of its own so
//! that its times are the operator's.

use crate::base::output::Output;
use crate::deploy::event::Finished;
use crate::engine::roles::Kind;
use crate::rehearsal::Rehearsal;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::time::Duration;

/// Label of the broken version.
const BAD: &str = "v9.9.9-bad";

/// Runs the rehearsal with this fault of the bad version, or with the default and a bad env file; the result is that of the rollback in it.
pub fn run(
    fault: Option<&str>,
    keep: bool,
    asked: Option<Kind>,
    real: &Pilot,
    out: Output,
) -> Result<Finished> {
    out.say("1. a good release, in a project of its own");
    let rehearsal = Rehearsal::begin(real, asked, out, keep)?;
    let session = &rehearsal.session;
    let bad_env: &[(&str, &str)] = match fault {
        None => &[("USE_SIMULATION", "false"), ("ENABLE_CACHE", "true")],
        Some(_) => &[],
    };
    let fault = fault.unwrap_or("error-5xx");
    let also = if bad_env.is_empty() { "" } else { " and a bad env file" };
    session.out.say(format!("\n2. a bad day: version {BAD} with the fault {fault}{also}, deployed by hand"));
    rehearsal.deploy_by_hand(rehearsal.images(BAD, fault)?, bad_env)?;
    // The fault has to show before anybody would call for a rollback.
    std::thread::sleep(Duration::from_secs(1));
    session.out.say("\n3. the rollback");
    let finished = rehearsal.roll_back(true)?;
    if keep {
        session.out.say(format!("\nkept: {}", session.out.xtask("status")));
    }
    Ok(finished)
}
