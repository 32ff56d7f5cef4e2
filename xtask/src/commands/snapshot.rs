//! `snapshot`: measures the running pilot and writes the metrics file: time to first token, cancel latency,
//! time to comparison, determinism, the limits, and whether all limits held. It has measured values only. A
//! value that could not be measured is null, and fails.

use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::failure::Exit;
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::checks::smoke::{SAME, comparison, verify};
use crate::checks::target::Target;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use anyhow::Result;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

/// `cargo xtask snapshot`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask snapshot\n  cargo xtask snapshot --output pilot-metrics.json"
)]
pub struct Args {
    /// File to write [default: .pilot/pilot-metrics.json]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Exit 1 if a limit did not hold. The file is written in any case.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let target = Target::new(pilot, session.engine.as_ref(), &pilot.env()?)?;
    let smoke = verify(&target, Deadline::after(pilot.manifest.limits.ready));
    let compared = comparison(&target);
    let check = |name: &str| smoke.checks.iter().find(|c| c.name == name).map(|c| c.ok);
    let seconds = compared.as_ref().ok().map(Duration::as_secs_f64);
    let in_time = seconds.is_some_and(|s| s < target.comparison_s);
    let passed = smoke.passed && in_time;
    let release = session.store.current()?;
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(now_ms())).to_string();
    let value = json!({
        "version": 1,
        "time": time,
        "project": pilot.project,
        "commit": release.as_ref().and_then(|r| r.commit.clone()),
        "release": release.as_ref().map(|r| &r.id),
        "timeToFirstToken": smoke.first_token,
        "cancelLatency": smoke.cancel,
        "timeToComparisonSeconds": seconds,
        "deterministic": check(SAME),
        "thresholds": {
            "timeToFirstTokenMs": target.first_token_ms,
            "cancelLatencyMs": target.cancel_ms,
            "timeToComparisonSeconds": target.comparison_s,
        },
        "checks": smoke.checks,
        "passed": passed,
    });
    let path = args.output.clone().unwrap_or_else(|| pilot.state.snapshot());
    files::write_json(&path, &crate::base::secrets::mask_json(&value), Mode::Plain)?;
    let out = &session.out;
    out.event(&Event::Result { value: &value });
    out.say(smoke.summary());
    out.say(match &compared {
        Ok(took) => {
            format!("time to comparison {:.2} s, limit {} s", took.as_secs_f64(), target.comparison_s)
        }
        Err(error) => format!("time to comparison not measured: {error:#}"),
    });
    out.say(format!("{} {}", if passed { "passed:" } else { "FAILED:" }, path.display()));
    let exit = if passed { Exit::Ok } else { Exit::NotRestored };
    let next = (!passed).then(|| Next::xtask("smoke"));
    Ok(Finished::plain(exit).then(next.as_ref(), out.context()))
}
