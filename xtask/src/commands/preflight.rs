//! `preflight`: is the pilot ready for a demo, go or no-go? Every row is checked now. A row that cannot be
//! checked is a no-go.

use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::checks::smoke::verify;
use crate::checks::target::Target;
use crate::deploy::backup;
use crate::deploy::difference::Difference;
use crate::deploy::event::{Event, Finished};
use crate::deploy::gate::Gate;
use crate::deploy::session::Session;
use crate::host;
use crate::operations::look::{Look, look};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// `cargo xtask preflight`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask preflight")]
pub struct Args {}

/// Limit for the services to be healthy. Before a demo the pilot runs already, so
/// there is no wait for a start.
const READY: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Row {
    name: &'static str,
    go: bool,
    detail: String,
    fix: String,
}

/// Exit 0 means GO.
pub fn run(session: &Session) -> Result<Finished> {
    let look = look(session, 1, Deadline::after(session.pilot.manifest.limits.ready))?;
    let rows = rows(session, &look);
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
        Observed::Unknown(_) => Exit::Host,
        Observed::Known(_) if go => Exit::Ok,
        Observed::Known(_) => Exit::NotRestored,
    };
    let next = rows.iter().find(|row| !row.go).map(|row| row.fix.clone());
    Ok(Finished { next, ..Finished::plain(exit) })
}

fn rows(session: &Session, look: &Look) -> Vec<Row> {
    let context = session.out.context();
    let row = |name, outcome: Result<String>, fix: &str| {
        let (go, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        Row { name, go, detail, fix: context.line(&Next::xtask(fix)) }
    };
    vec![
        row("the engine answers", engine(session, look), "host"),
        row("a known-good release is deployed", deployed(look), "up"),
        row("nothing differs from it", same(look), "rollback"),
        row("the gate is open", gate(look), "kill-switch off"),
        row("all smoke checks pass", smoke(session), "smoke"),
        row("there is a way back", way_back(session), "releases verify"),
        row("the data is backed up", backed_up(session), "backup create"),
        row("the host is within its limits", host(session), "host"),
    ]
}

fn engine(session: &Session, look: &Look) -> Result<String> {
    match &look.now.stack {
        Observed::Known(_) => {
            Ok(session.engine.describe(Deadline::after(session.pilot.manifest.limits.engine)))
        }
        Observed::Unknown(why) => bail!("{why}"),
    }
}

fn deployed(look: &Look) -> Result<String> {
    match &look.current {
        Some(release) if release.is_known_good() => Ok(format!("{} ({})", release.id, release.label)),
        Some(release) => bail!("{} is {}", release.id, release.state.as_str()),
        None => bail!("no release is recorded as deployed"),
    }
}

fn same(look: &Look) -> Result<String> {
    let matters = look.drift.iter().filter(|d| **d != Difference::ComposeFile);
    let all: Vec<String> = matters.map(ToString::to_string).collect();
    ensure!(all.is_empty(), "{}", all.join("; "));
    Ok("no drift".into())
}

fn gate(look: &Look) -> Result<String> {
    match &look.now.gate {
        Gate::Open => Ok("open".into()),
        Gate::Closed(reason) => bail!("closed: {reason}"),
        Gate::Unknown(why) => bail!("{why}"),
    }
}

fn backed_up(session: &Session) -> Result<String> {
    let (all, _) = backup::list(&session.pilot.state)?;
    let kept = all.last().context("there is no backup")?;
    kept.backup.check(&kept.dir)?;
    Ok(format!("backup {}", kept.id))
}

fn host(session: &Session) -> Result<String> {
    let (pilot, engine) = (&session.pilot, session.engine.as_ref());
    let checks =
        host::checks(pilot, engine, pilot.env().ok().as_ref(), Deadline::after(pilot.manifest.limits.ready));
    let wrong = checks.iter().filter(|check| check.ok != Some(true));
    let wrong: Vec<String> = wrong.map(|check| format!("{}: {}", check.name, check.detail)).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(format!("{} checks", checks.len()))
}

fn smoke(session: &Session) -> Result<String> {
    let smoke = verify(
        &Target::new(&session.pilot, session.engine.as_ref(), &session.pilot.env()?)?,
        Deadline::after(READY),
    );
    ensure!(smoke.passed, "{}", smoke.summary());
    Ok(smoke.summary())
}

/// Is the last known-good release complete, with every file and image unchanged?
fn way_back(session: &Session) -> Result<String> {
    let good = session.store.known_good()?;
    let Some(release) = good.first() else { bail!("there is no known-good release") };
    session.store.check(release)?;
    Ok(format!(
        "release {}, every file and image unchanged; {} known-good releases in all",
        release.id,
        good.len()
    ))
}
