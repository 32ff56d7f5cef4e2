//! `torture`: searches for counter-examples to what this program promises. The work is done in `rehearsal::torture`.

use crate::base::output::Output;
use crate::deploy::event::Finished;
use crate::rehearsal::torture::{self, Options};
use crate::stack::pilot::Pilot;
use anyhow::Result;

/// `cargo xtask torture`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask torture\n  cargo xtask torture --sequences 100000\n  cargo xtask torture --sequences 1 --seed 7\n  cargo xtask torture --kills 500\n  cargo xtask torture --mutations"
)]
pub struct Args {
    /// Play so many random sequences of commands and faults in memory [default: 1000, if nothing else is asked for]
    #[arg(long, value_name = "N")]
    sequences: Option<u64>,
    /// Seed of the first sequence; each next one has the next seed [default: from the clock]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Kill so many commands at random moments, on stacks of their own of local processes
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "500")]
    kills: Option<u64>,
    /// Plant each fault of scripts/mutations in a copy of the source, and see that a test or the search finds it
    #[arg(long)]
    mutations: bool,
}

/// Searches, and shows what was tried and what held.
pub fn run(args: &Args, pilot: &Pilot, out: &Output) -> Result<Finished> {
    let Args { sequences, seed, kills, mutations } = *args;
    torture::run(&Options { sequences, seed, kills, mutations }, pilot, out)
}
