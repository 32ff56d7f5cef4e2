//! What is written down of every command that changes something: its line in the audit log, and its figures for
//! Prometheus. Called by `main` when such a command begins, and when it has ended, also by a signal.

use crate::base::output::Output;
use crate::deploy::event::Finished;
use crate::operations::{audit, metrics};
use crate::stack::pilot::{Pilot, REHEARSALS};
use std::sync::{Mutex, PoisonError};

/// The command that this process carries out, until it is written down.
static OPEN: Mutex<Option<(Pilot, String)>> = Mutex::new(None);

/// This process carries out a command that changes something.
pub fn begin(pilot: &Pilot, command: &str) {
    *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = Some((pilot.clone(), command.to_owned()));
}

/// It has ended. It is written down once, whoever calls this first. What cannot be written is a remark.
pub fn end(finished: &Finished, out: &Output) {
    let Some((pilot, command)) = OPEN.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // A command that was refused leaves nothing behind where there was nothing.
    if !pilot.state.path().is_dir() {
        return;
    }
    if let Err(error) = audit::write(&pilot, &command, finished) {
        out.note(format!("no line in the audit log: {error:#}"));
    }
    // A rehearsal is counted by its drill, for the real stack.
    let rule = pilot.manifest.metrics.as_ref().filter(|_| !pilot.project.starts_with(REHEARSALS));
    if let Some(rule) = rule
        && let Err(error) = metrics::write(&pilot, rule, &command, finished, out.elapsed_ms())
    {
        out.note(format!("[metrics]: no figures for Prometheus: {error:#}"));
    }
}
