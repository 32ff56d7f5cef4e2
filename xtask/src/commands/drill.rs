//! `drill`: a rehearsal on a pilot of its own. What it does is in `rehearsal::drill`.

use crate::base::output::Output;
use crate::deploy::event::Finished;
use crate::engine::roles::Kind;
use crate::rehearsal::drill;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use clap::ValueEnum;

/// `cargo xtask drill`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask drill\n  cargo xtask drill --fault ignore-sigterm\n  cargo xtask drill --keep"
)]
pub struct Args {
    /// What is wrong with the bad version [default: error-5xx, and a bad env file with it]
    #[arg(long, value_enum)]
    fault: Option<FaultName>,
    /// Leave the drill's pilot running afterwards, and say how to end it
    #[arg(long)]
    keep: bool,
}

/// The faults that an image can be built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FaultName {
    /// SIGTERM is swallowed
    IgnoreSigterm,
    /// The services end, again and again
    CrashLoop,
    /// The first token comes seconds late
    SlowFirstToken,
    /// Public routes answer 500
    #[value(name = "error-5xx")]
    Error5xx,
    /// Nothing is ever answered
    Hang,
    /// The databases are overwritten with noise
    CorruptStore,
    /// The gate says that it is closed, and lets everybody in
    LyingGate,
    /// Behind the closed gate all is well; once it is open, the public gets 500
    FailsWhenOpen,
}

impl FaultName {
    fn as_str(self) -> &'static str {
        match self {
            Self::IgnoreSigterm => "ignore-sigterm",
            Self::CrashLoop => "crash-loop",
            Self::SlowFirstToken => "slow-first-token",
            Self::Error5xx => "error-5xx",
            Self::Hang => "hang",
            Self::CorruptStore => "corrupt-store",
            Self::LyingGate => "lying-gate",
            Self::FailsWhenOpen => "fails-when-open",
        }
    }
}

/// Breaks a pilot and rolls it back.
pub fn run(args: &Args, engine: Option<Kind>, real: &Pilot, out: Output) -> Result<Finished> {
    drill::run(args.fault.map(FaultName::as_str), args.keep, engine, real, out)
}
