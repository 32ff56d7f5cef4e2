//! `reset`: a clean stack (scenario C). It is a rollback with the scenario `reset`: it asks, backs up,
//! removes everything, checks that nothing is left, and deploys the last known-good release with its seed.
//! The work is done in `operations::rollback`.

use crate::deploy::difference::Scenario;
use crate::deploy::event::Finished;
use crate::deploy::run::{Command, Request};
use crate::deploy::session::Session;
use crate::operations::rollback::{self, Options};
use anyhow::Result;

/// `cargo xtask reset`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask reset\n  cargo xtask reset --yes --keep-data")]
pub struct Args {
    /// Restore the data from the backup that is made first
    #[arg(long)]
    keep_data: bool,
    /// Open the gate at the end, even if a person closed it; lifts the holds that stand now
    #[arg(long)]
    open: bool,
}

/// Asks the user, then runs it.
pub fn run(args: &Args, yes: bool, session: &Session) -> Result<Finished> {
    let mut request = Request {
        scenarios: vec![Scenario::Reset],
        keep_data: args.keep_data,
        ..Request::by(Command::Reset)
    };
    if args.open {
        request.lift_standing(&session.ledger())?;
    }
    rollback::run(&Options { request, ..Options::default() }, yes, session)
}
