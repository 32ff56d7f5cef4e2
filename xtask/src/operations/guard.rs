//! The story of `guard`: it looks at what runs, again and again, with the limits of `[watch]`. When that turns bad, it goes
//! back once, by a rollback as anybody would make it, and ends as that ends. It takes the lock for the rollback alone; while
//! another command is at work it does not judge, and afterwards it begins anew. Called by the command `guard`.

use crate::base::deadline::{Deadline, now};
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::next::Next;
use crate::base::screen;
use crate::base::signals;
use crate::deploy::drift;
use crate::deploy::event::Finished;
use crate::deploy::gate::Gate;
use crate::deploy::lockout;
use crate::deploy::run::{Command, Request};
use crate::deploy::session::Session;
use crate::deploy::view::View;
use crate::deploy::watch::look::{is_held, look};
use crate::deploy::watch::{Look, Seen, Verdict, Watch};
use crate::operations::{rollback, target};
use crate::stack::manifest::WatchRule;
use anyhow::Result;
use std::time::{Duration, Instant};

/// What is guarded: a release, since it was first seen.
struct Guarded {
    release: Option<String>,
    watch: Watch,
}

/// What one turn has found.
enum Turn {
    /// There is nothing to judge, and why.
    Aside(String),
    /// What the looks so far mean.
    Seen(Verdict, Box<View>),
}

/// Guards what runs for so long; without a time, until a signal ends it. Errors (exit 6): there is no release that it could
/// go back to.
pub fn run(time: Option<Duration>, session: &Session) -> Result<Finished> {
    if session.store.known_good()?.is_empty() {
        return Err(target::no_release(session));
    }
    let ready = session.pilot.manifest.limits.ready;
    let shown = screen::doing("guard what runs");
    let (mut guarded, mut at) = (None, Duration::ZERO);
    loop {
        let begun = Instant::now();
        let turn = turn(&mut guarded, at, session);
        let is_over = time.is_some_and(|time| at >= time);
        // What is not decided at the end is waited for, as long as a service may take to start.
        let turn = match turn {
            Ok(Turn::Seen(Verdict::NotYet(why), view)) if time.is_some_and(|time| at >= time + ready) => {
                Ok(Turn::Seen(Verdict::Bad(why), view))
            }
            turn => turn,
        };
        match turn {
            Ok(Turn::Seen(Verdict::Bad(why), view)) => {
                match gone_back(&why, &view, &mut guarded, at, session)? {
                    Some(finished) => return Ok(finished),
                    None => shown.detail("another command is at work".into()),
                }
            }
            Ok(Turn::Seen(Verdict::Unseen(why), _)) if is_over => return Err(unseen(&why)),
            Err(error) if is_over => return Err(unseen(&format!("{error:#}"))),
            Ok(Turn::Seen(Verdict::NotYet(why) | Verdict::Unseen(why), _)) => shown.detail(why),
            Err(error) => shown.detail(format!("{error:#}")),
            Ok(Turn::Aside(why)) if is_over => return Ok(over(session, &why)),
            Ok(Turn::Aside(why)) => shown.detail(why),
            Ok(Turn::Seen(Verdict::Well, _)) if is_over => return Ok(over(session, "all is well")),
            Ok(Turn::Seen(Verdict::Well, _)) => shown.detail("all is well".into()),
        }
        at += begun.elapsed() + session.engine.pass(session.pilot.manifest.watch.every);
    }
}

/// Looks once, if there is something to judge.
fn turn(guarded: &mut Option<Guarded>, at: Duration, session: &Session) -> Result<Turn> {
    session.meet()?;
    if let Some(holder) = session.ledger().holder()? {
        *guarded = None;
        return Ok(Turn::Aside(format!("not judged: {holder}")));
    }
    let view = session.running(Deadline::after(session.pilot.manifest.limits.engine))?;
    let release = view.release.as_ref().map(|release| release.id.clone());
    if guarded.as_ref().is_some_and(|guarded| guarded.release != release) {
        *guarded = None;
    }
    // A run that failed has left it so, or a person without this tool: the public is out already.
    let gate = view.gate(lockout::REQUEST).map(|gate| gate.position());
    if matches!(gate, Ok(Gate::Closed(_))) && !is_held(&view) {
        *guarded = None;
        return Ok(Turn::Aside("not judged: the gate is closed".into()));
    }
    let rule = rule(&view);
    let looked = look(&view, &rule, at);
    if is_down(&looked) {
        *guarded = None;
        return Ok(Turn::Aside("not judged: nothing of this stack runs".into()));
    }
    let guarded = guarded.get_or_insert_with(|| {
        let watch = Watch::new(rule, view.pilot.manifest.limits.ready, false);
        Guarded { release, watch }
    });
    let verdict = guarded.watch.see(&looked);
    Ok(Turn::Seen(verdict, Box::new(view)))
}

/// Restarts are counted within the time of the watch, also where a deployment is not watched.
fn rule(view: &View) -> WatchRule {
    let time = Some(view.pilot.watched_for()).filter(|time| !time.is_zero());
    WatchRule { time: time.unwrap_or(WatchRule::default().time), ..view.pilot.manifest.watch.clone() }
}

/// Was the whole stack taken down? That was a person.
fn is_down(look: &Look) -> bool {
    look.services.known().is_some_and(|services| services.values().all(|seen| seen.handles.is_empty()))
}

/// Goes back, if it is still bad when the lock is taken. None if another command has it, or if all is well by now.
fn gone_back(
    why: &str,
    view: &View,
    guarded: &mut Option<Guarded>,
    at: Duration,
    session: &Session,
) -> Result<Option<Finished>> {
    let lock = match session.lock("guard") {
        Ok(lock) => lock,
        Err(error) if exit_of(&error) == Exit::Locked => {
            *guarded = None;
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let looked = look(view, &rule(view), at);
    let last = guarded.as_mut().map(|guarded| guarded.watch.see(&looked));
    let Some(Verdict::Bad(_)) = last else { return Ok(None) };
    // From here on a signal interrupts a rollback. Its times count from its own beginning.
    signals::only_looks(false);
    session.out.shift(-i64::try_from(session.out.elapsed_ms()).unwrap_or(0));
    let name = view.release.as_ref().map_or("what runs".into(), |release| format!("release {}", release.id));
    session.out.note(format!("{name} did not stay well: {why}; rolling back"));
    let request = request(view, &looked, session);
    let deadline = Deadline::from(now(), session.pilot.manifest.limits.budget);
    let finished = rollback::locked(&request, session, deadline);
    drop(lock);
    finished.map(Some)
}

/// If it is the release itself that runs, and it does not stay well, the one before is gone to. What was changed by hand or
/// is gone is brought back by a rollback without a target.
fn request(view: &View, looked: &Look, session: &Session) -> Request {
    let request = Request::by(Command::Rollback);
    let gone = |seen: &Seen| seen.ill.as_ref().is_some_and(|ill| ill.is_gone);
    let is_gone = looked.services.known().is_none_or(|services| services.values().any(gone));
    let is_itself = view.release.as_ref().is_some_and(|release| {
        let services = view.engine.services(Deadline::after(view.pilot.manifest.limits.engine));
        services.is_ok_and(|services| drift::applied(&services, release, &view.wanted()).is_empty())
    });
    let previous = Request { to: Some("previous".into()), ..request.clone() };
    let has_one = target::targets(&previous, session).and_then(|targets| target::admitted(targets, session));
    if is_itself && !is_gone && has_one.is_ok() { previous } else { request }
}

fn over(session: &Session, how: &str) -> Finished {
    session.out.verdict(format!("\n{} guarded to the end: {how}", session.out.mark(Some(true))));
    let release = session.store.current().ok().flatten().map(|release| release.id);
    Finished { release, ..Finished::plain(Exit::Ok) }
}

fn unseen(why: &str) -> anyhow::Error {
    fail(Exit::Host, format!("cannot tell whether what runs is well: {why}"), Next::xtask("host"))
}
