//! `drill`: a rehearsal on a separate stack. The work is done in `rehearsal::drill`.

use crate::base::output::Output;
use crate::deploy::event::Finished;
use crate::engine::roles::Kind;
use crate::rehearsal::drill::{self, Fault};
use crate::stack::pilot::Pilot;
use anyhow::Result;
use clap::ValueEnum;

/// `cargo xtask drill`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask drill\n  cargo xtask drill --fault ignore-sigterm\n  cargo xtask drill --keep\nWith a stack of your own:\n  cargo xtask --stack DIR drill --stop api\n  cargo xtask --stack DIR drill --image api=shop:2.0\n  cargo xtask --stack DIR drill --set LIMIT=0\n  cargo xtask --stack DIR drill --corrupt db"
)]
#[command(group = clap::ArgGroup::new("what").multiple(false))]
pub struct Args {
    /// What is wrong with the bad version [default: error-5xx, with a bad env file]
    #[arg(long, value_enum, group = "what")]
    fault: Option<FaultName>,
    /// A service gets another image, which is on this machine
    #[arg(long, value_name = "SERVICE=IMAGE", value_parser = pair, group = "what")]
    image: Option<(String, String)>,
    /// The containers of a service are stopped
    #[arg(long, value_name = "SERVICE", group = "what")]
    stop: Option<String>,
    /// A setting of the env file gets another value
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, group = "what")]
    set: Option<(String, String)>,
    /// Stored data is overwritten, after a backup
    #[arg(long, value_name = "DATA", group = "what")]
    corrupt: Option<String>,
    /// Leave the drill's stack running afterwards, and say how to remove it
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
    /// All is well until the gate has been open for five seconds; then the gateway is not healthy
    TurnsBad,
    /// The services take seconds to start, and all is well then
    SlowStart,
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
            Self::TurnsBad => "turns-bad",
            Self::SlowStart => "slow-start",
        }
    }
}

/// `LEFT=RIGHT`; the right one may have more of them.
fn pair(text: &str) -> Result<(String, String), String> {
    let (left, right) = text.split_once('=').filter(|(left, _)| !left.is_empty()).ok_or("it needs a =")?;
    Ok((left.to_owned(), right.to_owned()))
}

impl Args {
    fn fault(&self) -> Fault {
        match self {
            Self { image: Some((service, tag)), .. } => {
                Fault::Image { service: service.clone(), tag: tag.clone() }
            }
            Self { stop: Some(service), .. } => Fault::Stopped(service.clone()),
            Self { set: Some((name, value)), .. } => {
                Fault::Setting { name: name.clone(), value: value.clone() }
            }
            Self { corrupt: Some(data), .. } => Fault::Corrupted(data.clone()),
            Self { fault, .. } => Fault::Built(fault.map(FaultName::as_str)),
        }
    }
}

/// Breaks a separate stack and rolls it back.
pub fn run(args: &Args, engine: Option<Kind>, real: &Pilot, out: Output) -> Result<Finished> {
    drill::run(&args.fault(), args.keep, engine, real, out)
}
