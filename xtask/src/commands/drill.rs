//! `drill`: a rehearsal on a separate pilot. The work is done in `rehearsal::drill`.

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
    /// What is wrong with the bad version [default: error-5xx, with a bad env file]
    #[arg(long, value_enum)]
    fault: Option<FaultName>,
    /// Leave the drill's pilot running afterwards, and say how to remove it
    #[arg(long)]
    keep: bool,
}

/// The faults that an image can be built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FaultName {
    /// SIGTERM is ignored
    IgnoreSigterm,
    /// The services crash again and again
    CrashLoop,
    /// The first token comes seconds late
    SlowFirstToken,
    /// Public routes answer 500
    #[value(name = "error-5xx")]
    Error5xx,
    /// No request is ever answered
    Hang,
    /// The databases are overwritten with noise
    CorruptStore,
    /// The gate says that it is closed, but lets everybody in
    LyingGate,
    /// All is well behind the closed gate; once it is open, the public gets 500
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

/// Breaks a separate pilot and rolls it back.
pub fn run(args: &Args, engine: Option<Kind>, real: &Pilot, out: Output) -> Result<Finished> {
    drill::run(args.fault.map(FaultName::as_str), args.keep, engine, real, out)
}
