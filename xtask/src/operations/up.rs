//! The story of a deployment: make a release from the source (or from existing images, or from a commit),
//! start it behind the closed gate, verify it, and promote it to known-good or mark it as failed. Called by
//! the command `up`.

use crate::base::deadline::{Deadline, for_bytes};
use crate::base::failure::{Exit, exit_of, fail, next_of};
use crate::base::files;
use crate::base::machine;
use crate::base::next::Next;
use crate::deploy::backup;
use crate::deploy::converge::Preview;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::execution::{Measured, Stance, Unrecorded};
use crate::deploy::gate::Gate;
use crate::deploy::lockout::{Lift, Opened};
use crate::deploy::past::Past;
use crate::deploy::paused::Longest;
use crate::deploy::plan::{Goal, Purpose};
use crate::deploy::run::{self, Command, Request, Run};
use crate::deploy::session::Session;
use crate::deploy::step::Step;
use crate::deploy::view::View;
use crate::operations::beginning::started;
use crate::operations::candidate::Source;
use crate::operations::ending::Ended;
use crate::operations::reopen::reopen;
use crate::operations::{candidate, ending, init, notify, rollback, with_data};
use crate::release::description::Release;
use crate::stack::escalation;
use crate::stack::manifest::MANIFEST_FILE;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::time::Instant;

/// What the user asked for.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// What to make the release from.
    pub source: Source<'a>,
    /// Replace the env file with a new one; the old one is backed up.
    pub defaults: bool,
    /// Roll back to the last known-good release if this one fails.
    pub rollback_on_failure: bool,
}

/// A deployment from the command line.
pub fn run(options: &Options<'_>, session: &Session) -> Result<Finished> {
    let _lock = session.lock("up")?;
    let pilot = &session.pilot;
    if options.defaults && pilot.env_path.exists() {
        let what = backup::Contents {
            release: None,
            data: &[],
            longest: Longest::Copy,
            logs: false,
            snapshot: false,
            out: &session.out,
        };
        let limit = Deadline::after(pilot.manifest.limits.deploy);
        let kept = backup::keep(pilot, session.engine.as_ref(), what, limit)?;
        session.out.note(format!("a new env file is made; the old one is in backup {}", kept.id));
        files::remove(&pilot.env_path)?;
    }
    let chosen = candidate::ensure_env(session)?;
    let candidate = candidate::stack(options.source, &pilot.env_path, session)?;
    if !candidate.pilot.pack.join(MANIFEST_FILE).exists() {
        session.out.note(init::assumed(candidate.definition(), session.out.context()));
    }
    if chosen.is_empty() {
        check_ports(&candidate.pilot, session)?;
    }
    let engine = session.engine.describe(Deadline::after(pilot.manifest.limits.engine));
    session.out.event(&started(session, Command::Up, &engine, None));
    let release = candidate.release()?;
    drop(chosen);
    session.out.say(format!("  release {} ({})", release.id, release.label));
    session.admissible(&release).map_err(|error| {
        let what = format!("release {} cannot be deployed: {error:#}", release.id);
        fail(Exit::Usage, what, format!("fix that, or {}; nothing was begun", pilot.env_path.display()))
    })?;
    has_restorable_dumps(&release, session)?;
    let budget = pilot.manifest.limits.budget;
    let deadline = Deadline::from(Instant::now(), budget);
    let mut goal = Goal::plain(&release, Purpose::Deploy);
    let preview = session.preview(&goal, deadline)?.in_time(deadline)?;
    if preview.plan.steps.is_empty() {
        // If this release already runs, it is checked, and left alone if it is healthy.
        let mut measured = Measured::default();
        goal.known = session.look_closer(&release, deadline, &mut measured)?;
        if goal.known.is_empty() {
            return nothing_changed(&release, &preview, &measured);
        }
    }
    let mut bytes = 0;
    for step in &preview.plan.steps {
        if let Step::Snapshot { data } = step {
            bytes += ensure_room(data, &preview.target, session)?;
        }
    }
    // A snapshot is written and read back.
    let deadline = Deadline::from(Instant::now(), for_bytes(budget, 2 * bytes));
    deploy(goal, options.rollback_on_failure, &engine, session, deadline)
}

/// Refuses a dump of a database that the gate stops. A release that was made before this was refused is still gone back
/// to, so it is asked here alone.
fn has_restorable_dumps(release: &Release, session: &Session) -> Result<()> {
    let view = session.by(release)?;
    let data = &view.pilot.manifest.data;
    let Some(name) = view.cover()?.not_restorable(data).first().copied() else { return Ok(()) };
    let what = format!(
        "release {} cannot be deployed: [data.{name}] has a dump, but the gate stops its database, so the dump could be \
         restored only while the public is let in",
        release.id
    );
    let next = format!(
        "remove `backup` and `restore` from [data.{name}] in pilot.toml, then its volume is copied; or name other services \
         in [gate]; nothing was begun"
    );
    Err(fail(Exit::Usage, what, next))
}

/// Refuses a deployment whose snapshot would have no room, before anything is touched. A copy may need as many bytes as
/// the data has; a dump, as many as the last one had. Returns how many bytes that is, as far as it is known.
fn ensure_room(data: &[String], target: &View, session: &Session) -> Result<u64> {
    let View { pilot, engine, .. } = target;
    let deadline = Deadline::after(pilot.manifest.limits.deploy);
    let (folder, mut needed) = (pilot.state.path(), 0);
    for name in data {
        let is_dumped = pilot.data_rule(name).is_some_and(|rule| rule.dump.is_some());
        let bytes =
            if is_dumped { backup::last_size(&pilot.state, name)? } else { engine.bytes(name, deadline)? };
        match bytes {
            Some(bytes) => needed += bytes,
            None => session.out.note(format!("how much room the first dump of {name} needs is not known")),
        }
    }
    let free = machine::space(folder)?.0.bytes;
    if free >= needed {
        return Ok(needed);
    }
    let what = format!(
        "there is no room for the snapshot of {}: it may need {}, and {} are free in {}; nothing was begun",
        data.join(", "),
        files::human(needed),
        files::human(free),
        folder.display()
    );
    Err(fail(Exit::Host, what, Next::xtask("host --free")))
}

fn nothing_changed(release: &Release, preview: &Preview, measured: &Measured) -> Result<Finished> {
    let hold = preview.now.holds.held(&[]);
    let held = hold.is_some();
    let exit = if held { Exit::Held } else { Exit::Ok };
    Ok(Finished {
        outcome: Some(Outcome::NothingToDo),
        release: Some(release.id.clone()),
        smoke: measured.smoke.as_ref().map(serde_json::to_value).transpose()?,
        address: if held { None } else { preview.target.address() },
        held,
        hold,
        stopped: if held { preview.target.cover()?.stopped() } else { Vec::new() },
        not_closed: preview.now.not_closed.clone(),
        ..Finished::plain(exit)
    })
}

/// Starts a release, and decides whether it is good.
pub fn deploy(
    mut goal: Goal<'_>,
    rollback_on_failure: bool,
    engine: &str,
    session: &Session,
    deadline: Deadline,
) -> Result<Finished> {
    let release = goal.release;
    let request = Request { to: Some(release.id.clone()), ..Request::by(Command::Up) };
    let run = run::begin(&session.pilot.state, &request)?;
    if let Err(error) = session.out.open_journal(&run.dir.journal()) {
        session.out.note(format!("no journal: {error:#}"));
    }
    session.out.record(&started(session, Command::Up, engine, Some(&run)));
    notify::begins(session, &run);
    let mut measured = Measured { past: run.past.clone().unwrap_or_default(), ..Measured::default() };
    take_over_snapshot(session, &run, &mut measured.past);
    ending::tell_of_cut_off(session, &run);
    let converged = session.converge(&mut goal, &run, deadline, &mut measured);
    // It serves, and nothing is wrong with it.
    let serves = converged.as_ref().is_err_and(|error| error.is::<Unrecorded>());
    // What ran before is as it was, but shut out.
    let untouched = !measured.past.changed && measured.gate_closed_ms.is_some();
    let result = match converged {
        Ok(plan) if plan.steps.is_empty() => Ok(Outcome::NothingToDo),
        Ok(_) => Ok(Outcome::Deployed),
        Err(error) if serves => {
            let next = Next::xtask("host").so("and when that is fixed, `up` again");
            Err(fail(exit_of(&error), format!("{error:#}"), next))
        }
        Err(error) if untouched => Err(left_as_it_was(&error, session, &mut measured)),
        Err(error) => Err(failed(release, session, &measured.past, &error)),
    };
    let serves_again = result.as_ref().is_err_and(|error| exit_of(error) == Exit::RolledBack);
    let back = rollback_on_failure && !serves && !serves_again && result.is_err();
    let runs = || session.store.current().ok().flatten().map(|release| release.id);
    let at = if serves_again { runs() } else { Some(release.id.clone()) };
    let ended = Ended { release: at, scenarios: Vec::new(), result };
    let finished = ending::conclude(session, &run, ended, &measured);
    if !back {
        return Ok(finished);
    }
    let request = with_data::after(&measured.past, session);
    let request = request.unwrap_or_else(|| Request::by(Command::Rollback));
    // To restore data takes a time of its own.
    let deadline = match request.backup {
        Some(_) => {
            let budget = with_data::budget(session.pilot.manifest.limits.budget, &request)?;
            Deadline::from(Instant::now(), budget)
        }
        None => deadline,
    };
    go_back(&release.id, finished, &request, session, deadline)
}

/// If the deployment before was cut off while the public was shut out, and nobody was let in since, its snapshot has the
/// data as the last release left it. One that is made now would have what a half-started release has made of the data.
fn take_over_snapshot(session: &Session, run: &Run, past: &mut Past) {
    let Ok(Some(folder)) = run::snapshot_before(&session.pilot.state, run) else { return };
    let limit = Deadline::after(session.pilot.manifest.limits.engine);
    let gate = session.running(limit).map(|view| view.observe(view.engine.as_ref(), limit).gate);
    if past.snapshot.is_none() && gate.is_ok_and(|gate| gate != Gate::Open) {
        (past.snapshot, past.changed) = (Some(folder), true);
    }
}

/// The error of a deployment that has changed nothing. What ran before is let in again, if it passes its checks; then
/// the exit code says that it serves. A rollback would do more: it would also take back the settings in the env file, and
/// then the next deployment would not be the one that was wanted.
fn left_as_it_was(error: &anyhow::Error, session: &Session, measured: &mut Measured) -> anyhow::Error {
    let next = next_of(error).cloned().unwrap_or_else(|| Next::xtask("up").so("once that is fixed"));
    let deadline = Deadline::after(session.pilot.manifest.limits.ready);
    let lift = Lift { holds: &[], by_hand: false };
    let opened = session.running(deadline).and_then(|view| {
        let gate = view.observe(view.engine.as_ref(), deadline).gate;
        reopen(session, &view, &gate, lift, "nothing was deployed, and what ran before is not well", deadline)
    });
    let serves = match opened {
        Ok(Opened::Open) => "serves again",
        Ok(Opened::Held(_)) => "would serve again, but for a hold",
        Err(also) => return fail(exit_of(error), format!("{error:#}; what ran before: {also:#}"), next),
    };
    measured.stance = Stance::LeftServed;
    fail(Exit::RolledBack, format!("{error:#}; what ran before {serves}"), next)
}

/// Records that a release failed. The error names the next command: a rollback, if that is possible.
fn failed(release: &Release, session: &Session, past: &Past, error: &anyhow::Error) -> anyhow::Error {
    if let Err(error) = session.store.mark_failed(&release.id, &format!("{error:#}")) {
        session.out.note(format!("release {} is not recorded as failed: {error:#}", release.id));
    }
    let good = session.store.known_good().ok().and_then(|good| good.into_iter().next());
    let next = match (with_data::after(past, session), good) {
        (Some(back), _) => Next::xtask(&back.words().join(" "))
            .so("the public never saw the new release, so its data is not needed"),
        (None, Some(_)) => Next::xtask("rollback"),
        (None, None) => next_of(error).cloned().unwrap_or_else(|| Next::xtask("up").so("once it is fixed")),
    };
    fail(exit_of(error), format!("release {} failed: {error:#}", release.id), next)
}

/// The release before it serves again, but the requested one does not run, so this is not a success.
fn go_back(
    new: &str,
    failed: Finished,
    request: &Request,
    session: &Session,
    deadline: Deadline,
) -> Result<Finished> {
    let why = failed.error.clone().unwrap_or_default();
    session.out.note(format!("{why}; rolling back"));
    let mut back = rollback::locked(request, session, deadline)?;
    if !back.exit.is_good() {
        back.error = Some(format!("{why}; and the rollback failed: {}", back.error.unwrap_or_default()));
        return Ok(back);
    }
    let serves = if back.held { "would serve again, but for a hold" } else { "serves again" };
    let old = back.release.clone().unwrap_or_default();
    back.outcome = Some(Outcome::RolledBack);
    back.exit = Exit::RolledBack;
    back.error = Some(format!("{why}; release {old} {serves}"));
    let next = Next::xtask(&format!("releases show {new}"));
    back.escalation = Some(escalation::of(back.exit, &session.pilot.manifest));
    Ok(back.then(Some(&next), session.out.context()))
}

/// Reports a port that another program uses before anything is built.
fn check_ports(pilot: &Pilot, session: &Session) -> Result<()> {
    let env = pilot.env()?;
    let deadline = Deadline::after(pilot.manifest.limits.engine);
    let services = session.engine.services(deadline)?;
    let ours: Vec<u16> = services.values().filter(|s| s.is_live()).filter_map(|s| s.port()).collect();
    for service in pilot.services() {
        let Some(port) = pilot.port(service, &env)? else { continue };
        if ours.contains(&port) {
            continue;
        }
        if let Some(owner) = session.engine.taken_by(port, deadline)? {
            let variable = pilot.port_variable(service).unwrap_or("the port");
            let what = format!("port {port} of {service} is taken by {owner}");
            let next = format!("end that process, or change {variable} in {}", pilot.env_path.display());
            return Err(fail(Exit::Host, what, next));
        }
    }
    Ok(())
}
