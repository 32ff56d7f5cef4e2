//! How a run ends, for `rollback` and `up`: what the public gets is checked (if something is wrong, the
//! public is shut out), evidence is collected if there is none yet, and the last event and the report are
//! written. Also the end of a command that cannot begin because no release can be deployed.

use crate::base::deadline::{Deadline, now_ms};
use crate::base::failure::{Exit, exit_of, fail, next_of};
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::checks::smoke::{verify, verify_behind};
use crate::checks::target::Target;
use crate::deploy::backup;
use crate::deploy::difference::Scenario;
use crate::deploy::drift::{self, Wanted};
use crate::deploy::event::{Brief, Event, Finished, GoOn, Outcome};
use crate::deploy::evidence;
use crate::deploy::execution::{Measured, Stance};
use crate::deploy::gate::Gate;
use crate::deploy::lockout::{self, Public};
use crate::deploy::observe::Observation;
use crate::deploy::past::Past;
use crate::deploy::run::{self, CutOff, Run};
use crate::deploy::session::Session;
use crate::deploy::step::Step;
use crate::deploy::view::View;
use crate::operations::beginning::started;
use crate::operations::{pipeline, report};
use crate::stack::envfile::EnvFile;
use crate::stack::escalation;
use crate::stack::hold;
use crate::stack::model::Health;
use anyhow::{Result, bail, ensure};
use std::time::Duration;

/// The result of a run.
pub struct Ended {
    /// The release that runs now, or that was tried last.
    pub release: Option<String>,
    /// Why this release was the target.
    pub scenarios: Vec<Scenario>,
    /// How it ended.
    pub result: Result<Outcome>,
}

impl Ended {
    /// A run that failed before it had a target release.
    pub fn failed(error: anyhow::Error) -> Self {
        Self { release: None, scenarios: Vec::new(), result: Err(error) }
    }
}

/// Ends a run and writes its report. Only this function makes the last event of a run.
pub fn conclude(session: &Session, run: &Run, ended: Ended, measured: &Measured) -> Finished {
    let exit = match &ended.result {
        Ok(_) if measured.held.is_some() => Exit::Held,
        Ok(_) => Exit::Ok,
        Err(error) => exit_of(error),
    };
    let mut finished = Finished {
        outcome: Some(match &ended.result {
            Ok(outcome) => *outcome,
            Err(_) if exit == Exit::RolledBack => Outcome::RolledBack,
            Err(_) => Outcome::NotRestored,
        }),
        rollback: Some(run.id.clone()),
        scenarios: ended.scenarios,
        release: ended.release,
        hold: measured.held.clone(),
        stopped: measured.stopped.clone(),
        not_closed: measured.not_closed.clone(),
        gate_closed_ms: measured.gate_closed_ms,
        restored_ms: measured.restored_ms,
        downtime_ms: measured
            .restored_ms
            .zip(measured.gate_closed_ms)
            .map(|(end, start)| end.saturating_sub(start)),
        smoke: measured.smoke.as_ref().and_then(|smoke| serde_json::to_value(smoke).ok()),
        ..Finished::plain(exit)
    };
    if let Err(error) = &ended.result {
        finished.error = Some(format!("{error:#}"));
        let next = next_of(error).cloned().unwrap_or_else(|| Next::xtask("diagnose"));
        finished = finished.then(Some(&next), session.out.context());
        finished.public = Some(
            secure(session, run, measured, exit == Exit::Locked)
                .unwrap_or_else(|e| Public::Unknown(format!("{e:#}"))),
        );
        finished.hold = Observed::from(hold::standing(&session.ledger())).held(&[]);
        match run.owes(&measured.past) {
            Ok(Some(cut)) => tell_where_data_is(session, &cut),
            Ok(None) => {}
            Err(error) => session.out.note(format!("cannot record that its backups are needed: {error:#}")),
        }
    }
    finished.held = finished.hold.is_some();
    if finished.exit == Exit::Ok {
        let limit = Deadline::after(session.pilot.manifest.limits.engine);
        finished.address = session.running(limit).ok().and_then(|view| view.address());
    }
    let evidence = run.dir.evidence();
    finished.evidence = evidence.exists().then(|| evidence.display().to_string());
    let level =
        if run.request.command == run::Command::Up { escalation::of_a_deployment } else { escalation::of };
    finished.escalation = Some(level(finished.exit, &session.pilot.manifest));
    finished.report = Some(run.dir.page().display().to_string());
    finished = finished.masked();
    session.out.record(&ended_event(session, &finished));
    // `main` shows it to the user at the very end; the journal has it now.
    session.out.record(&Event::Finished(&finished));
    // The work was done, even if the report cannot be written.
    match report::write(&run.dir, &finished) {
        Ok(()) => pipeline::ended(&session.pilot.project, &run.dir),
        Err(error) => {
            session.out.note(format!("no report: {error:#}"));
            finished.report = None;
        }
    }
    finished
}

/// How long the engine may take to tell its version.
const VERSION: Duration = Duration::from_secs(2);

/// What the report needs besides `finished`. By now nobody waits for the public to be served.
fn ended_event(session: &Session, finished: &Finished) -> Event<'static> {
    let limit = Deadline::after(VERSION);
    let release = finished.release.as_ref().and_then(|id| session.store.named(id).ok());
    let go_on = go_on(finished)
        .into_iter()
        .map(|(words, why)| GoOn { command: session.out.xtask(words), why: why.into() });
    let first = finished.next.iter().map(|command| GoOn {
        command: command.clone(),
        why: finished.advice.clone().unwrap_or_else(|| "the next command to run".into()),
    });
    Event::Ended {
        at_ms: now_ms(),
        since_ms: session.out.elapsed_ms(),
        engine: session.engine.describe(limit),
        release: release.as_ref().map(Brief::from),
        go_on: first.chain(go_on).collect(),
    }
}

/// What a person can do next, besides the next command: words of this program, and what they are for.
fn go_on(finished: &Finished) -> Vec<(&'static str, &'static str)> {
    match finished.outcome {
        Some(Outcome::Restored | Outcome::Deployed | Outcome::NothingToDo) if finished.held => {
            vec![("kill-switch off", "checks everything, lifts the hold and opens the gate")]
        }
        Some(Outcome::Restored) => vec![
            ("releases list", "what differs between the releases: look for the cause there"),
            ("up", "deploys again, once the cause is fixed"),
        ],
        Some(Outcome::Deployed | Outcome::NothingToDo) => {
            vec![(
                "rollback --to previous",
                "goes back to the release before, if something is wrong after all",
            )]
        }
        _ => vec![
            ("diagnose", "a full examination, with a fix for each finding"),
            ("rollback --plan", "what a rollback would do now; it changes nothing"),
        ],
    }
}

/// The end of a run that failed. If the stack is wrong or its state is unknown, the public is shut out
/// (unless it already is), and evidence is collected if there is none. A stack that was not changed and is
/// healthy keeps serving the public. If the lock was `lost`, somebody else works on the stack: nothing is done.
fn secure(session: &Session, run: &Run, measured: &Measured, lost: bool) -> Result<Public> {
    // Do this even if the budget is used up: the public must not get bad answers.
    let limits = &session.pilot.manifest.limits;
    let limit = || Deadline::after(limits.engine);
    let view = &session.running(limit())?;
    let now = view.observe(view.engine.as_ref(), limit());
    let mut public = lockout::seen(view, &now);
    if lost {
        return Ok(public);
    }
    let untouched = measured.stance == Stance::Open && measured.gate_closed_ms.is_none();
    if measured.stance == Stance::LeftServed || untouched && judge(session, view, &now, limit()).is_ok() {
        return Ok(public);
    }
    if !public.is_shut() {
        public = match lockout::shut(view, &now, &run.reason(), limit()) {
            Ok(closed) => {
                session.out.note(closed.to_string());
                lockout::public(view, limit())
            }
            Err(error) => Public::Unknown(format!("{error:#}")),
        };
    }
    if public.is_shut()
        && let Err(error) = lockout::close_where_none(view, &run.reason(), limit())
    {
        session.out.note(format!("{error:#}"));
    }
    // The evidence is of what there was before the run changed anything. A failed run needs its own end too.
    let to = match run.dir.evidence().join(evidence::INDEX).exists() {
        false => Some(run.dir.evidence()),
        true => measured.past.changed.then(|| run.dir.evidence_of_the_end()),
    };
    if let Some(to) = to {
        let limit = Deadline::after(limits.evidence);
        let items = evidence::items(&view.pilot, view.engine.as_ref(), &now, limit);
        if let Err(error) = evidence::gather(&view.pilot, items, &to) {
            session.out.note(format!("no evidence: {error:#}"));
        }
    }
    Ok(public)
}

/// No release can be deployed (there is none, none is whole, or there is no configuration). If what runs
/// drifts, fails a check, or its state is unknown, the public is shut out and evidence is collected. A stack
/// that passes its checks keeps serving, and nothing is changed. The exit code is 2 only for a healthy stack.
pub fn nowhere_to_go(session: &Session, request: &run::Request, error: anyhow::Error) -> Result<Finished> {
    // This does not depend on the run's budget: a healthy stack must not be shut out because the budget was
    // short.
    let deadline = Deadline::after(session.pilot.manifest.limits.ready);
    let view = session.running(deadline)?;
    let now = view.observe(view.engine.as_ref(), deadline);
    let refused = |seen: &str| {
        let next = next_of(&error).cloned().unwrap_or_default();
        Err(fail(exit_of(&error), format!("{error:#}; nothing was touched: {seen}"), next))
    };
    if now.stack.known().is_some_and(|stack| stack.services.is_empty()) {
        return refused("nothing of this stack runs");
    }
    let Err(wrong) = judge(session, &view, &now, deadline) else {
        let public = match &now.gate {
            Gate::Open => "the public is still served",
            _ => "the gate is held closed",
        };
        return refused(&format!("what runs passes its checks, and {public}"));
    };
    let run = run::begin(&session.pilot.state, request)?;
    if let Err(error) = session.out.open_journal(&run.dir.journal()) {
        session.out.note(format!("no journal: {error:#}"));
    }
    let engine = session.engine.kind().as_str();
    session.out.record(&started(session, request.command, engine, Some(&run)));
    session.out.note(format!("what runs is not well, and there is no release to go back to: {wrong:#}"));
    let exit = match exit_of(&error) {
        _ if matches!(now.stack, Observed::Unknown(_)) => Exit::Host,
        Exit::Usage => Exit::NotRestored,
        exit => exit,
    };
    let next = next_of(&error).cloned().unwrap_or_else(|| Next::xtask("diagnose"));
    let ended = Ended::failed(fail(exit, format!("{error:#}"), next));
    let measured = Measured { stance: Stance::Wrong, ..Measured::default() };
    Ok(conclude(session, &run, ended, &measured))
}

/// Does what runs match its release, and does it pass every check, with the settings that it was started
/// with? If not, or if this is unknown, the error says why.
fn judge(session: &Session, view: &View, now: &Observation, deadline: Deadline) -> Result<()> {
    let stack = match &now.stack {
        Observed::Known(stack) => stack,
        Observed::Unknown(why) => bail!("the engine does not say what runs: {why}"),
    };
    ensure!(now.gate == Gate::Open || now.holds.held(&[]).is_some(), "the gate is not open");
    let closed = now.gate != Gate::Open;
    let stopped = if closed { view.cover()?.stopped() } else { Vec::new() };
    for service in view.pilot.services() {
        ensure!(stack.services.contains_key(service), "{service} does not run");
        if stopped.iter().any(|name| name == service) {
            continue;
        }
        match now.health(service) {
            Some(Health::Healthy { .. }) => {}
            Some(Health::StoreCorrupt(why) | Health::Unhealthy(why) | Health::Silent(why)) => {
                bail!("{service}: {why}")
            }
            None => bail!("the health of {service} is unknown"),
        }
    }
    if let Some(release) = &view.release {
        // Settings that were changed in the store say nothing about what runs. The image ids are in
        // `release.json`.
        let whole = session.store.check_files(release).is_ok();
        let wanted = if whole { view.wanted() } else { Wanted::default() };
        let differs = drift::applied(&stack.services, release, &wanted);
        let all: Vec<String> = differs.iter().map(ToString::to_string).collect();
        ensure!(all.is_empty(), "{}", all.join("; "));
    }
    let env = EnvFile::of(&now.instances(view.pilot.gateway())?[0].env);
    let (target, ready) = (
        Target::new(&view.pilot, view.engine.as_ref(), &env)?,
        deadline.within(view.pilot.manifest.limits.probe),
    );
    let smoke = match stopped.is_empty() {
        true => verify(&target, ready),
        false => verify_behind(&target, &stopped.into_iter().collect(), ready),
    };
    ensure!(smoke.passed, "{}", smoke.summary());
    Ok(())
}

/// Names runs that were interrupted or failed, the data in their backups, and how to continue or give them
/// up. If such a run had begun to open its gate, its report is written now. If it removed nothing, it is
/// given up.
pub fn tell_of_cut_off(session: &Session, at_work: &Run) {
    let told = run::all_cut_off(&session.pilot.state, Some(&at_work.id))
        .and_then(|all| all.iter().try_for_each(|cut| tell_of(session, cut)));
    if let Err(error) = told {
        session.out.note(format!("cannot read what earlier runs have left behind: {error:#}"));
    }
}

fn tell_of(session: &Session, cut: &CutOff) -> Result<()> {
    let at = cut.past.at.as_deref().unwrap_or("its beginning");
    let words = cut.request.words().join(" ");
    let how = if cut.ended { "failed" } else { "was cut off" };
    session.out.note(format!("run {} (`{words}`) {how} at: {at}", cut.id));
    if cut.past.opening && !cut.ended {
        tell_where_data_is(session, cut);
        return write_down(session, cut);
    }
    if cut.only_copies().is_empty() {
        return run::give_up(cut);
    }
    tell_where_data_is(session, cut);
    let abandon = session.out.xtask("rollback --abandon");
    session.out.note(format!("to give up this run and leave the data in its backup: {abandon}"));
    Ok(())
}

/// Says which backups have the data that a run has removed.
pub fn tell_where_data_is(session: &Session, cut: &CutOff) {
    for id in cut.only_copies() {
        let restore = session.out.xtask(&format!("backup restore {id} --only data --yes"));
        session.out.note(format!("data that it removed is in backup {id}: {restore}"));
    }
}

/// Writes only what the journal proves.
fn write_down(session: &Session, cut: &CutOff) -> Result<()> {
    let up = cut.request.command == run::Command::Up;
    let done = if up { Outcome::Deployed } else { Outcome::Restored };
    let (outcome, exit, held, how) = match &cut.past.last {
        _ if cut.past.on_watch => (
            Outcome::NotRestored,
            Exit::Interrupted,
            None,
            "before its watch was over, so nothing was recorded",
        ),
        Some(Step::KeepClosed { hold, .. }) => (done, Exit::Held, Some(hold.clone()), "after its last step"),
        Some(_) => (done, Exit::Ok, None, "after the gate was open"),
        None => (Outcome::NotRestored, Exit::Interrupted, None, "in its last step; its result is unknown"),
    };
    let finished = Finished {
        outcome: Some(outcome),
        rollback: Some(cut.id.clone()),
        error: Some(format!("cut off {how}; written down by a later command")),
        held: held.is_some(),
        hold: held,
        ..Finished::plain(exit)
    };
    report::write(&cut.dir, &finished.masked()).or_else(|error| {
        session.out.note(format!("cannot write the report of run {}: {error:#}", cut.id));
        Ok(())
    })
}

/// After a reset, says which backups have the old data: those that this run made while it was whole. A backup of
/// a corrupt store does not count; then it is an older one.
pub fn tell_of_old_data(session: &Session, run: &Run, past: &Past, whole: bool) {
    let mut ids = past.backups(&run.id);
    if !whole {
        let all = backup::list(&session.pilot.state).map(|(all, _)| all).unwrap_or_default();
        let older =
            |kept: &&backup::Kept| !kept.backup.data().is_empty() && kept.run.as_ref() != Some(&run.dir);
        ids = all.iter().rev().find(older).map(|kept| kept.id.clone()).into_iter().collect();
    }
    for id in ids {
        let restore = session.out.xtask(&format!("backup restore {id} --only data --yes"));
        session.out.note(format!("data from before is in backup {id}: {restore}"));
    }
}
