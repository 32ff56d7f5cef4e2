//! `guard`: watches what runs, and goes back once if it turns bad. The work is done in `operations::guard`.

use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::operations::guard;
use anyhow::Result;
use std::time::Duration;

/// `cargo xtask guard`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask guard --for 10m\n  cargo xtask guard")]
pub struct Args {
    /// How long to watch [default: until Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
}

/// Exit 0 if nothing was wrong; otherwise as the rollback ends.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    guard::run(args.time, session)
}
