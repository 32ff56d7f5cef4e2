//! `kill-switch on|off|status`: a person closes or opens the gate. `on` writes a hold (who, when, why); no
//! run opens the gate until the hold is lifted. If the gateway does not answer, it is stopped. `off` starts
//! what was stopped, verifies it, lifts the holds that stood when it began, and opens the gate. Where the gate
//! stops its services, `off` verifies what is behind them first, and them right after their start. Called by the command
//! `kill-switch`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::next::Next;
use crate::base::threads::joined;
use crate::deploy::event::{Event, Finished};
use crate::deploy::gate::{Gate, Switch};
use crate::deploy::lockout::{self, Closed, Lift, Opened, Public};
use crate::deploy::observe::Observation;
use crate::deploy::session::Session;
use crate::deploy::step::left_open;
use crate::deploy::view::View;
use crate::operations::reopen::reopen;
use crate::stack::hold::{self, Hold};
use anyhow::Result;
use serde_json::json;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// How long to wait for a gateway that another command is replacing at this moment.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says whether the gate is open, and who holds it closed. Errors (exit 1): that cannot be told.
pub fn status(session: &Session) -> Result<Finished> {
    let deadline = Deadline::after(session.pilot.manifest.limits.ready);
    let view = session.running(deadline)?;
    let now = view.observe(view.engine.as_ref(), deadline);
    let value = json!({"gate": now.gate, "not_closed": now.not_closed, "holds": now.holds});
    session.out.event(&Event::Result { value: &value });
    match &now.gate {
        Gate::Open => session.out.verdict("the gate is open"),
        Gate::Closed(reason) if now.not_closed.is_empty() => {
            session.out.verdict(format!("the gate is closed: {reason}"));
        }
        Gate::Closed(reason) => {
            session
                .out
                .verdict(format!("the gate is closed in part: {reason}{}", left_open(&now.not_closed)));
        }
        Gate::Unknown(_) => {}
    }
    let shut = Some(lockout::seen(&view, &now)).filter(Public::is_shut);
    let holds = hold::standing(&session.ledger())?;
    if let (Gate::Unknown(_), Some(public)) = (&now.gate, &shut) {
        session.out.verdict(public.to_string());
    }
    if let (Gate::Unknown(why), None) = (&now.gate, &shut) {
        return Err(fail(
            Exit::NotRestored,
            format!("cannot tell whether the gate is open: {why}"),
            Next::xtask("status"),
        ));
    }
    holds.iter().for_each(|hold| session.out.verdict(format!("  {hold}")));
    let hold = holds.first().map(ToString::to_string);
    Ok(Finished { held: hold.is_some(), hold, not_closed: now.not_closed, ..Finished::plain(Exit::Ok) })
}

/// Takes no lock, because closing is always allowed. The hold is written before anything is closed, so
/// every run sees it before it opens the gate. A run may already be opening at this moment: then this waits
/// for it, and proves once more that the gate is closed. So even if a process is killed here, the gate does
/// not stay open under the hold.
pub fn on(reason: &str, session: &Session) -> Result<Finished> {
    let deadline = Deadline::after(session.pilot.manifest.limits.ready);
    let ledger = session.ledger();
    let mut hold = Hold::mine(reason);
    let written = hold.place_here(&ledger);
    // An engine that hangs must not delay the closing. Whoever looked for holds before it knew of this one is waited for.
    let (closed, shared) = std::thread::scope(|scope| {
        let shared = scope.spawn(|| hold.share(&ledger));
        (close(session, reason, deadline), joined(shared))
    });
    if let Err(error) = shared {
        session.out.note(format!(
            "other clients do not know of this hold, until a command of this folder can tell the engine: {error:#}"
        ));
    }
    let closed = closed.map_err(|error| {
        let stands = if written.is_ok() { "; the hold stands, so no run opens the gate" } else { "" };
        fail(exit_of(&error), format!("{error:#}{stands}"), Next::xtask("kill-switch on"))
    })?;
    if let Closed::Stopped { services, .. } = &closed
        && !services.is_empty()
        && written.is_ok()
    {
        hold.note_stopped(&ledger, services.clone())?;
    }
    let limit = Deadline::after(lockout::OTHERS);
    let others = ledger.opening(limit);
    match ledger.others_opened(limit) {
        Ok(None) => {}
        Ok(Some(who)) => {
            session
                .out
                .note(format!("another client works on this stack, and leaves the gate closed: {who}"));
        }
        Err(error) => session.out.note(format!("cannot tell whether another client is at work: {error:#}")),
    }
    let limit = Deadline::after(session.pilot.manifest.limits.ready);
    let view = session.running(limit)?;
    let still = view.gate(lockout::REQUEST).is_ok_and(|gate| gate.prove_closed().is_ok())
        || lockout::public(&view, limit).is_shut();
    let closed = if still { closed } else { close(session, reason, limit)? };
    if let Err(error) = lockout::close_where_none(&view, reason, limit) {
        session.out.note(format!("{error:#}"));
    }
    let services = view.engine.services(limit).ok();
    let not_closed = view.not_closed(services.as_ref());
    session.out.verdict(format!("{closed}{}", left_open(&not_closed)));
    written.map_err(|error| {
        let what = format!(
            "{closed}, but the hold could not be written, so a run may open the gate again: {error:#}"
        );
        fail(Exit::Host, what, Next::xtask("host"))
    })?;
    drop(others.map_err(|error| {
        let what = format!("{closed}; but {error:#}, and it may open the gate for a moment");
        fail(Exit::NotRestored, what, Next::xtask("kill-switch on"))
    })?);
    session.out.verdict(format!("  {hold}"));
    session.out.verdict(format!(
        "  to verify the pilot, lift this hold and open the gate: {}",
        session.out.xtask("kill-switch off")
    ));
    Ok(Finished { held: true, hold: Some(hold.to_string()), not_closed, ..Finished::plain(Exit::Ok) })
}

/// How an attempt to close the gate ended: with a proof, or with what was seen last.
enum Asked {
    Closed(String),
    Not(Box<(View, Observation)>),
}

/// Closes the gate. First at the address that the release has for the gateway, so that an engine that hangs
/// cannot delay it; then at the address that the engine reports. While another command is working (it may be
/// replacing the gateway), this tries again before it stops the gateway.
fn close(session: &Session, reason: &str, deadline: Deadline) -> Result<Closed> {
    let closes = |gate: Result<Box<dyn Switch + '_>>| gate.and_then(|gate| gate.close(reason));
    let asked = deadline.within(PATIENCE).poll(Duration::from_millis(50), || {
        let view = match session.running(deadline) {
            Ok(view) => view,
            Err(error) => return Break(Err(error)),
        };
        if let Ok(proof) = closes(view.gate(lockout::REQUEST)) {
            return Break(Ok(Asked::Closed(proof)));
        }
        let now = view.observe(view.engine.as_ref(), deadline);
        if let Ok(proof) = closes(view.gate_seen(&now, lockout::REQUEST)) {
            return Break(Ok(Asked::Closed(proof)));
        }
        let at_work = session.ledger().is_locked();
        let not = Box::new((view, now));
        if at_work { Continue(not) } else { Break(Ok(Asked::Not(not))) }
    });
    let (view, now) = match asked.unwrap_or_else(|last| Ok(Asked::Not(last)))? {
        Asked::Closed(proof) => return Ok(Closed::Proved(proof)),
        Asked::Not(last) => *last,
    };
    let closed = lockout::shut(&view, &now, reason, deadline)?;
    // However that gateway is started, it must come up closed.
    if let (Closed::Stopped { .. }, Some(_)) = (&closed, view.pilot.manifest.gate.offline()) {
        session.out.note(match lockout::close_on_disk(&view, &session.store, reason, deadline) {
            Ok(()) => {
                "the gate is closed on disk, so the gateway comes up closed however it is started".into()
            }
            Err(error) => format!("the gate could not be closed on disk: {error:#}"),
        });
    }
    Ok(closed)
}

/// Verifies, then opens the gate. Lifts the holds that stood when it began, and no later one.
pub fn off(session: &Session) -> Result<Finished> {
    let deadline = Deadline::after(session.pilot.manifest.limits.ready);
    let ledger = session.ledger();
    let holds = hold::standing(&ledger)?;
    let _lock = session.lock("kill-switch off")?;
    let view = session.running(deadline)?;
    let now = view.observe(view.engine.as_ref(), deadline);
    if !view.cover()?.stops() {
        start_again(session, &view, &now, &holds, deadline)?;
    }
    let lift: Vec<String> = holds.into_iter().map(|hold| hold.id).collect();
    let lift = Lift { holds: &lift, by_hand: true };
    match reopen(session, &view, &now.gate, lift, "opening by hand failed", deadline)? {
        Opened::Open => {
            session.out.verdict("the gate is open: a public request was served");
            Ok(Finished::plain(Exit::Ok))
        }
        Opened::Held(hold) => {
            session.out.verdict(format!("the gate stays closed, {hold}"));
            Ok(Finished { held: true, hold: Some(hold.to_string()), ..Finished::plain(Exit::Held) })
        }
    }
}

/// Starts a gateway again that a hold has stopped because it could not be closed. A gateway that is down for
/// another reason is an error.
fn start_again(
    session: &Session,
    view: &View,
    now: &Observation,
    holds: &[Hold],
    deadline: Deadline,
) -> Result<()> {
    let Some(stack) = now.stack.known() else { return Ok(()) };
    if stack.services.get(view.pilot.gateway()).is_some_and(|state| state.is_live()) {
        return Ok(());
    }
    let down = stack.services.iter().filter(|(_, service)| !service.is_live()).map(|(name, _)| name.clone());
    let ours: Vec<String> = down.filter(|name| holds.iter().any(|hold| hold.has_stopped(name))).collect();
    if ours.is_empty() {
        let what = "the gateway does not run, and `kill-switch on` did not stop it";
        return Err(fail(Exit::NotRestored, what, Next::xtask("rollback")));
    }
    view.engine.start(&ours, deadline)?;
    session.out.note(format!("started again, because kill-switch on had stopped it: {}", ours.join(", ")));
    lockout::closed_after_start(view, "not verified yet", deadline).map(drop)
}
