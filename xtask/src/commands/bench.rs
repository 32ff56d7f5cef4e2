//! `bench`: measures the figures that the project promises. The work is done in `rehearsal::bench`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::output::Output;
use crate::deploy::event::Finished;
use crate::engine;
use crate::rehearsal::bench::{self, Only};
use crate::stack::pilot::Pilot;
use anyhow::Result;

/// `cargo xtask bench`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench --rounds 5\n  cargo xtask bench --large\n  cargo xtask bench --swarm"
)]
pub struct Args {
    /// How often each thing is measured; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Measure only what depends on size: three images and a volume of so many MB of random data, and a log of half as
    /// many
    #[arg(long, value_name = "MB", num_args = 0..=1, default_missing_value = "1000",
        value_parser = clap::value_parser!(u64).range(1..=20_000))]
    large: Option<u64>,
    /// Measure only rollbacks on the nodes of the Swarm that the docker client goes to; scripts/swarm-lab makes one
    #[arg(long, conflicts_with = "large")]
    swarm: bool,
}

/// Measures, and shows the table.
pub fn run(args: &Args, pilot: &Pilot, out: &Output) -> Result<Finished> {
    let daemon = engine::daemon(Deadline::after(pilot.manifest.limits.engine));
    if let Some(host) = daemon.as_ref().and_then(engine::Daemon::elsewhere).filter(|_| !args.swarm) {
        let what = format!("the engine is on {host}, and the benchmark measures that of this machine");
        return Err(fail(Exit::Usage, what, format!("run it on {host}, or with --context default")));
    }
    let only = if args.swarm { Some(Only::Nodes) } else { args.large.map(Only::Large) };
    bench::run(args.rounds as usize, only, pilot, out)
}
