//! `reset`: a clean stack (scenario C). The same rollback with the scenario `reset` named: it asks, backs
//! up, tears down, checks that nothing is left, and deploys the last known-good release with its seed.

use crate::deadline::Deadline;
use crate::deploy::Session;
use crate::drift::Scenario;
use crate::journal::Finished;
use crate::lock;
use crate::rollback::{self, Request};
use anyhow::Result;
use std::time::Instant;

/// `cargo xtask reset`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask reset\n  cargo xtask reset --yes --keep-data")]
pub struct Args {
    /// Bring the data back from the backup that is made first
    #[arg(long)]
    keep_data: bool,
}

/// Asks, then does it.
pub fn run(args: &Args, yes: bool, session: &Session) -> Result<Finished> {
    let request = Request {
        version: 1,
        scenarios: vec![Scenario::Reset],
        keep_data: args.keep_data,
        ..Request::default()
    };
    let deadline = Deadline::from(session.out.start(), session.pilot.manifest.limits.budget);
    rollback::confirmed(&request, yes, session, deadline)?;
    let _lock = lock::take(&session.pilot.state, "reset")?;
    // The time that an answer took is not the budget's.
    let deadline = Deadline::from(Instant::now(), session.pilot.manifest.limits.budget);
    rollback::locked(&request, session, deadline)
}
