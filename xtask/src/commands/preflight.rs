//! `preflight`: go or no-go before a demo. Every row is looked at now; a row that cannot be told is a no-go.

use super::assess;
use crate::base::deadline::Deadline;
use crate::base::fact::Fact;
use crate::base::failure::Exit;
use crate::base::next::Next;
use crate::checks::smoke::{Target, verify};
use crate::deploy::backup;
use crate::deploy::drift::Difference;
use crate::deploy::event::{Event, Finished};
use crate::deploy::gate::Gate;
use crate::deploy::session::Session;
use crate::host;
use anyhow::{Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// `cargo xtask preflight`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask preflight")]
pub struct Args {}

/// A pilot that is to be shown runs already: nobody waits for it to start.
const READY: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Row {
    name: &'static str,
    go: bool,
    detail: String,
    fix: String,
}

/// Exit 0 is GO.
pub fn run(session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let deadline = Deadline::after(pilot.manifest.limits.ready);
    let env = pilot.env().ok();
    let look = assess::look(session, 1, deadline);
    let mut rows: Vec<Row> = Vec::new();
    let context = session.out.context();
    let mut row = |name, outcome: Result<String>, fix: Next| {
        let (go, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        rows.push(Row { name, go, detail, fix: context.line(&fix) });
    };
    row(
        "the engine answers",
        match &look.now.stack {
            Fact::Known(_) => Ok(session.engine.describe(deadline)),
            Fact::Unknown(why) => Err(anyhow::anyhow!("{why}")),
        },
        Next::xtask("host"),
    );
    row(
        "a known-good release is deployed",
        match &look.current {
            Some(release) if release.is_known_good() => Ok(format!("{} ({})", release.id, release.label)),
            Some(release) => Err(anyhow::anyhow!("{} is {}", release.id, release.state.word())),
            None => Err(anyhow::anyhow!("none is recorded")),
        },
        Next::xtask("up"),
    );
    row(
        "nothing differs from it",
        {
            let all: Vec<String> = look
                .drift
                .iter()
                .filter(|d| **d != Difference::ComposeFile)
                .map(ToString::to_string)
                .collect();
            if all.is_empty() { Ok("no drift".into()) } else { Err(anyhow::anyhow!("{}", all.join("; "))) }
        },
        Next::xtask("rollback"),
    );
    row(
        "the gate is open",
        match &look.now.gate {
            Gate::Open => Ok("open".into()),
            Gate::Closed(reason) => Err(anyhow::anyhow!("closed: {reason}")),
            Gate::Unknown(why) => Err(anyhow::anyhow!("{why}")),
        },
        Next::xtask("kill-switch off"),
    );
    row("all smoke checks pass", smoke(session), Next::xtask("smoke"));
    row("there is a way back", way_back(session), Next::xtask("releases verify"));
    row(
        "the data is backed up",
        backup::list(&pilot.state).and_then(|(all, _)| match all.last() {
            Some(kept) => kept.backup.check(&kept.dir).map(|()| format!("backup {}", kept.id)),
            None => bail!("there is no backup"),
        }),
        Next::xtask("backup create"),
    );
    row(
        "the host is within its limits",
        {
            let checks = host::checks(pilot, session.engine.as_ref(), env.as_ref(), deadline);
            let wrong: Vec<String> = checks
                .iter()
                .filter(|c| c.ok != Some(true))
                .map(|c| format!("{}: {}", c.name, c.detail))
                .collect();
            if wrong.is_empty() {
                Ok(format!("{} checks", checks.len()))
            } else {
                Err(anyhow::anyhow!("{}", wrong.join("; ")))
            }
        },
        Next::xtask("host"),
    );
    let out = &session.out;
    let go = rows.iter().all(|row| row.go);
    out.event(&Event::Result { value: &json!({"go": go, "rows": rows}) });
    for row in &rows {
        out.say(out.marked(Some(row.go), &format!("{:<34} {}", row.name, row.detail)));
        if !row.go {
            out.say(format!("    fix: {}", row.fix));
        }
    }
    out.say(if go { "\nGO" } else { "\nNO-GO" });
    let exit = match &look.now.stack {
        Fact::Unknown(_) => Exit::Host,
        Fact::Known(_) if go => Exit::Ok,
        Fact::Known(_) => Exit::NotRestored,
    };
    let next = rows.iter().find(|row| !row.go).map(|row| row.fix.clone());
    Ok(Finished { next, ..Finished::plain(exit) })
}

fn smoke(session: &Session) -> Result<String> {
    let smoke = verify(&Target::new(&session.pilot, &session.pilot.env()?)?, Deadline::after(READY));
    ensure!(smoke.passed, "{}", smoke.summary());
    Ok(smoke.summary())
}

/// The last known-good release is whole: every file and every image is there and as it was.
fn way_back(session: &Session) -> Result<String> {
    let good = session.store.known_good()?;
    let Some(release) = good.first() else { bail!("there is no known-good release") };
    session.store.check(release)?;
    Ok(format!("release {}, every file and image as it was; {} known-good in all", release.id, good.len()))
}
