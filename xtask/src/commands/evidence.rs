//! `evidence`: the complete evidence as a folder and an archive: states, inspect output, logs, resource use,
//! metrics, sessions, settings with secrets masked, networks and volumes, host, drift, plan and the last
//! journal. What is missing is listed with the reason.

use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::base::proc::cmd;
use crate::deploy::event::{Event, Finished};
use crate::deploy::evidence::{self, item};
use crate::deploy::session::Session;
use crate::engine::roles::Engine;
use crate::host;
use crate::operations::look::look;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// `cargo xtask evidence`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask evidence\n  cargo xtask evidence --output incident-7")]
pub struct Args {
    /// Folder to create; the archive is written beside it [default: .pilot/evidence/TIME]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Log lines that are read for the overview. The logs in the evidence are longer.
const LINES: usize = 50;

/// Exit 0 if the evidence was written; 4 if it was, but the engine did not answer.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let to = args.output.clone().unwrap_or_else(|| pilot.state.evidence().join(files::stamp()));
    let to = std::path::absolute(&to)
        .with_context(|| format!("cannot find the absolute path of {}", to.display()))?;
    anyhow::ensure!(!to.exists(), "cannot write the evidence to {}: it exists already", to.display());
    let deadline = Deadline::after(pilot.manifest.limits.ready);
    let limit = deadline.within(pilot.manifest.limits.engine);
    let engine: &dyn Engine = session.engine.as_ref();
    let look = look(session, LINES, deadline)?;
    let env = pilot.env().ok();
    let mut items = evidence::items(pilot, engine, &look.now, limit);
    let pretty = |value: serde_json::Value| Ok(serde_json::to_string_pretty(&value)?);
    items.push(item("stats.json", move || pretty(json!(engine.usage(limit)?))));
    items.push(item("networks-and-volumes.json", move || {
        let all = engine.networks_and_volumes(limit)?.into_iter();
        let parsed = all.map(|(k, v)| (k, serde_json::from_str(&v).unwrap_or(serde_json::Value::String(v))));
        pretty(json!(parsed.collect::<serde_json::Map<_, _>>()))
    }));
    items.push(item("host.json", || pretty(json!(host::checks(pilot, engine, env.as_ref(), deadline)))));
    items.push(item("drift.json", || pretty(json!(look.drift))));
    items.push(item("plan.json", || pretty(json!(look.plan.as_ref().context("no release is deployed")?))));
    items.push(item("release.json", || {
        pretty(json!(look.current.as_ref().context("no release is deployed")?))
    }));
    items.push(item("journal.jsonl", || {
        let (_, last) = pilot.state.every_run()?.pop().context("there has been no run yet")?;
        files::read_text(&last.journal())
    }));
    let manifest = evidence::gather(pilot, items, &to)?;
    let archive = pack(&to, deadline)?;
    let out = &session.out;
    out.event(&Event::Result {
        value: &json!({"folder": to, "archive": archive, "files": manifest.files, "missed": manifest.missed}),
    });
    out.say(format!("{} files in {}", manifest.files.len(), to.display()));
    out.say(format!("the same files in the archive {}", archive.display()));
    for (what, why) in &manifest.missed {
        out.say(out.marked(None, &format!("no {what}: {why}")));
    }
    let exit = if matches!(look.now.stack, Observed::Unknown(_)) { Exit::Host } else { Exit::Ok };
    let next = (exit == Exit::Host).then(|| Next::xtask("host"));
    let finished = Finished { evidence: Some(to.display().to_string()), ..Finished::plain(exit) };
    Ok(finished.then(next.as_ref(), out.context()))
}

/// Writes the folder as one private archive beside it, completely or not at all.
fn pack(folder: &Path, deadline: Deadline) -> Result<PathBuf> {
    let archive = PathBuf::from(format!("{}.tar", folder.display()));
    let staging = PathBuf::from(format!("{}.tar.{}.new", folder.display(), std::process::id()));
    let (parent, name) = folder.parent().zip(folder.file_name()).context("a folder needs a parent")?;
    // Make it private before anything is in it.
    files::write(&staging, b"", Mode::Private)?;
    let tar = cmd("tar", &["--create", "--file", &staging.display().to_string(), "--directory"]);
    let packed =
        tar.args([&parent.to_string_lossy(), &*name.to_string_lossy()]).run(deadline).and_then(|_| {
            files::sync(&staging)?;
            files::rename(&staging, &archive).with_context(|| format!("cannot write {}", archive.display()))
        });
    if packed.is_err() {
        files::remove(&staging).ok();
    }
    packed.map(|()| archive)
}
