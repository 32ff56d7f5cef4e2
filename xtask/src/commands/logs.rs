//! `logs`: the newest log lines of the services, with secrets masked. Read-only.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::base::secrets;
use crate::base::threads::side_by_side;
use crate::deploy::backup::numbered;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use anyhow::{Context, Result};
use serde_json::json;

/// How many services are asked at a time.
const AT_A_TIME: usize = 4;

/// Most lines that can be asked for: what is read is held in memory.
const MOST: i64 = 10_000;

/// `cargo xtask logs`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask logs\n  cargo xtask logs engine --lines 500\n  cargo xtask --format json logs engine"
)]
pub struct Args {
    /// Only this service [default: all]
    service: Option<String>,
    /// How many of the newest lines of each
    #[arg(long, default_value = "50", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    lines: u32,
}

/// Exit 1 if a log could not be read, 2 if there is no such service.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let Session { engine, out, pilot, .. } = session;
    let limit = Deadline::after(pilot.manifest.limits.evidence);
    let services = engine.services(limit)?;
    if let Some(name) = args.service.as_ref().filter(|name| !services.contains_key(*name)) {
        let there: Vec<&str> = services.keys().map(String::as_str).collect();
        let there =
            if there.is_empty() { "nothing runs".into() } else { format!("there are {}", there.join(", ")) };
        return Err(fail(
            Exit::Usage,
            format!("there is no container of {name}; {there}"),
            Next::xtask("status"),
        ));
    }
    let wanted = services.iter().filter(|(name, _)| args.service.as_ref().is_none_or(|one| one == *name));
    let instances: Vec<_> = wanted
        .flat_map(|(name, all)| all.0.iter().enumerate().map(|(n, instance)| (numbered(name, n), instance)))
        .collect();
    let names: Vec<String> = instances.iter().map(|(name, _)| name.clone()).collect();
    let read = side_by_side(AT_A_TIME, instances, |(name, instance)| {
        let text = engine.logs(instance, args.lines as usize, limit);
        text.with_context(|| format!("cannot read the log of {name}"))
    });
    let mut missed = Vec::new();
    for (name, text) in names.iter().zip(read) {
        match text {
            Ok(text) => {
                let text = secrets::mask(&text);
                let lines: Vec<&str> = text.lines().collect();
                out.event(&Event::Result { value: &json!({"service": name, "lines": lines}) });
                lines.iter().for_each(|line| out.say(format!("{name}  {line}")));
            }
            Err(error) => missed.push(format!("{error:#}")),
        }
    }
    if missed.is_empty() {
        return Ok(Finished::plain(Exit::Ok));
    }
    Err(fail(Exit::NotRestored, missed.join("; "), Next::xtask("status")))
}
