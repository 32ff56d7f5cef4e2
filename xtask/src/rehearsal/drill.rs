//! `drill`: a good release, then what a bad day brings (another env file, another version, deployed
//! past all checks), then the very rollback that an operator would call, as a process of its own so
//! that its times are the operator's.

use crate::base::output::Output;
use crate::deploy::event::Finished;
use crate::engine::roles::Kind;
use crate::rehearsal::Rehearsal;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use clap::ValueEnum;
use std::time::Duration;

/// Label of the broken version.
const BAD: &str = "v9.9.9-bad";

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

/// Runs the rehearsal; the result is that of the rollback in it.
pub fn run(args: &Args, asked: Option<Kind>, real: &Pilot, out: Output) -> Result<Finished> {
    out.say("1. a good release, in a project of its own");
    let rehearsal = Rehearsal::begin(real, asked, out, args.keep)?;
    let session = &rehearsal.session;
    let fault = args.fault.unwrap_or(FaultName::Error5xx).as_str();
    let bad_env: &[(&str, &str)] = match args.fault {
        None => &[("USE_SIMULATION", "false"), ("ENABLE_CACHE", "true")],
        Some(_) => &[],
    };
    let also = if bad_env.is_empty() { "" } else { " and a bad env file" };
    session.out.say(format!("\n2. a bad day: version {BAD} with the fault {fault}{also}, deployed by hand"));
    rehearsal.deploy_by_hand(rehearsal.images(BAD, fault)?, bad_env)?;
    // The fault has to show before anybody would call for a rollback.
    std::thread::sleep(Duration::from_secs(1));
    session.out.say("\n3. the rollback");
    let finished = rehearsal.roll_back(true)?;
    if args.keep {
        session.out.say(format!("\nkept: {}", session.out.xtask("status")));
    }
    Ok(finished)
}
