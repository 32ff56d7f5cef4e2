//! `snapshot`: measures the running stack and writes the metrics file: every check with what it measured, the values to
//! which the manifest gives a name (`metric`), the limits, and whether all held. It has measured values only. A value
//! that could not be measured is null, and fails.

use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::failure::Exit;
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::checks::smoke::{metrics, verify_for_snapshot};
use crate::checks::target::Target;
use crate::deploy::event::{Event, Finished, check_line};
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
    let smoke = verify_for_snapshot(&target, Deadline::after(pilot.manifest.limits.ready));
    let (values, limits) = metrics(&smoke, &target.checks);
    let passed = smoke.passed;
    let release = session.store.current()?;
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(now_ms())).to_string();
    let mut value = json!({
        "version": 1,
        "time": time,
        "project": pilot.project,
        "commit": release.as_ref().and_then(|r| r.commit.clone()),
        "release": release.as_ref().map(|r| &r.id),
        "thresholds": limits,
        "checks": smoke.checks,
        "passed": passed,
    });
    for (name, measured) in values {
        value[name] = measured;
    }
    let path = args.output.clone().unwrap_or_else(|| pilot.state.snapshot());
    files::write_json(&path, &crate::base::secrets::mask_json(&value), Mode::Plain)?;
    let out = &session.out;
    out.event(&Event::Result { value: &value });
    out.say(smoke.summary());
    for check in smoke.checks.iter().filter(|check| !check.ok) {
        out.say(check_line(out, check));
    }
    out.say(format!("{} {}", if passed { "passed:" } else { "FAILED:" }, path.display()));
    let exit = if passed { Exit::Ok } else { Exit::NotRestored };
    let next = (!passed).then(|| Next::xtask("smoke"));
    Ok(Finished::plain(exit).then(next.as_ref(), out.context()))
}
