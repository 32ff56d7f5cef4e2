//! Closing the gate by any means: over HTTP with proof; where that fails the gateway is stopped and its gate
//! closed on disk, so that whoever starts it, it comes up closed. What was done is noted, so that
//! `kill-switch off` undoes just that. Called by `kill-switch`, and by a rollback to a commit before it
//! builds.

use crate::deadline::Deadline;
use crate::deploy::Session;
use crate::files::{self, Mode};
use crate::gate;
use crate::observe::Observation;
use crate::release::now_ms;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Longest that one request to the gate takes.
const REQUEST: Duration = Duration::from_secs(2);

/// How the public was shut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The gateway says so, and refuses a stream.
    Proved,
    /// It did not answer; this was done instead.
    Fenced(String),
}

/// `.pilot/fence.json`: what `kill-switch off` has to undo.
#[derive(Debug, Serialize, Deserialize)]
struct Fence {
    version: u32,
    since_ms: u64,
    reason: String,
}

fn note(session: &Session) -> PathBuf {
    session.pilot.state.join("fence.json")
}

/// Closes the gate, or stops and fences the gateway. Safe while somebody else is at work: closing is
/// always allowed.
pub fn close(session: &Session, now: &Observation, reason: &str, deadline: Deadline) -> Result<Closed> {
    let pilot = &session.pilot;
    let gateway = now.gateway(pilot, REQUEST).context("the gateway does not run");
    let Err(error) = gateway.and_then(|gateway| gate::close(&gateway, reason)) else {
        return Ok(Closed::Proved);
    };
    let there = now.service(pilot.gateway());
    let stopped = there.is_some_and(|state| state.is_live());
    if stopped {
        session.engine.stop(pilot.gateway(), deadline).with_context(|| {
            format!("the gate could not be closed ({error:#}), and the gateway not be stopped")
        })?;
        let fence = Fence { version: 1, since_ms: now_ms(), reason: reason.to_owned() };
        // The public is out, whether or not that can be written down.
        if let Err(error) = files::write_json(&note(session), &fence, Mode::Plain) {
            session.out.note(format!("kill-switch off will not start the gateway again: {error:#}"));
        }
    } else if now.stack.known().is_none() {
        bail!(
            "the gate could not be closed ({error:#}), and the engine does not tell whether the gateway runs"
        );
    }
    let on_disk = close_on_disk(session, reason, deadline);
    let mut done =
        vec![if stopped { "the gateway was stopped" } else { "the gateway does not run" }.to_owned()];
    done.push(match on_disk {
        Ok(()) => "its gate is closed on disk, so it comes up closed".into(),
        Err(error) => format!("its gate could not be closed on disk: {error:#}"),
    });
    Ok(Closed::Fenced(format!("{} ({error:#})", done.join("; "))))
}

fn close_on_disk(session: &Session, reason: &str, deadline: Deadline) -> Result<()> {
    let release = session.store.current()?.context("no release is deployed")?;
    let dir = session.store.dir(&release.id);
    let words = ["gate", "close", reason];
    let said = session.engine.run_once(&release, &dir, session.pilot.gateway(), &words, deadline)?;
    if said.trim() != "closed" {
        bail!("the gate on disk is {:?} after closing it", said.trim());
    }
    Ok(())
}

/// Starts the gateway again if it was this that stopped it. Its gate stays closed.
pub fn lift(session: &Session, now: &Observation, deadline: Deadline) -> Result<bool> {
    if !note(session).exists() {
        return Ok(false);
    }
    if now.stack.known().is_some() && now.service(session.pilot.gateway()).is_none() {
        // Taken down since: there is nothing to start.
        forget(session)?;
        return Ok(false);
    }
    session.engine.start(session.pilot.gateway(), deadline)?;
    forget(session)?;
    Ok(true)
}

/// The gateway was replaced: there is nothing to undo any more.
pub fn forget(session: &Session) -> Result<()> {
    files::remove(&note(session)).map(drop)
}
