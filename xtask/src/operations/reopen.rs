//! Opens the gate of what runs, after its checks: `kill-switch off`, and a deployment that failed before it changed
//! anything. Nothing is started but what the gate has stopped. Called by `up` and by `kill-switch off`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::deploy::drift;
use crate::deploy::edge;
use crate::deploy::event::Event;
use crate::deploy::gate::Gate;
use crate::deploy::lockout::{self, Lift, Opened};
use crate::deploy::session::Session;
use crate::deploy::view::View;
use anyhow::Result;

/// Verifies what runs, and then opens its gate, unless a hold stands that `lift` does not name. If it cannot be opened, the
/// public is shut out with `reason`. Errors: what runs is not its release; a check fails; the gate does not open.
pub fn reopen(
    session: &Session,
    view: &View,
    gate: &Gate,
    lift: Lift<'_>,
    reason: &str,
    deadline: Deadline,
) -> Result<Opened> {
    what_runs_is_the_release(session, view, deadline)?;
    let closed = view.cover()?.stops() && *gate != Gate::Open;
    let smoke = edge::verify(view, closed, deadline)?;
    session.out.event(&Event::Smoke { smoke: &smoke });
    if !smoke.passed {
        return Err(not_opened(view, &smoke.summary(), deadline));
    }
    let mut started = || edge::check_started(view, &session.store, &session.out, deadline).map(drop);
    lockout::open(view, &session.ledger(), lift, reason, deadline, &mut started)
}

/// An error if the running images or settings differ from the release: such a gate is not opened.
fn what_runs_is_the_release(session: &Session, view: &View, deadline: Deadline) -> Result<()> {
    let Some(release) = &view.release else { return Ok(()) };
    let services = view.engine.services(deadline.within(session.pilot.manifest.limits.engine))?;
    let differs = drift::applied(&services, release, &view.wanted());
    let all: Vec<String> = differs.iter().map(ToString::to_string).collect();
    if all.is_empty() { Ok(()) } else { Err(not_opened(view, &all.join("; "), deadline)) }
}

/// The error that says why the gate was not opened, and what the public gets now.
fn not_opened(view: &View, why: &str, deadline: Deadline) -> anyhow::Error {
    let what = format!("the gate was not opened: {why}; {}", lockout::public(view, deadline));
    fail(Exit::NotRestored, what, Next::xtask("rollback"))
}
