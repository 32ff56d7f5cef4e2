//! The story of a deployment: make a release from the source (or from existing images, or from a commit),
//! start it behind the closed gate, verify it, open, watch it, and promote it to known-good or mark it as failed and go
//! back. Called by the command `up`.

use crate::base::deadline::{Deadline, for_bytes, now};
use crate::base::failure::{Exit, exit_of, fail, next_of};
use crate::base::files;
use crate::base::machine;
use crate::base::next::Next;
use crate::base::screen;
use crate::deploy::backup;
use crate::deploy::converge::Preview;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::execution::{Measured, Stance, TurnedBad, Unrecorded};
use crate::deploy::gate::Gate;
use crate::deploy::lockout::{Lift, Opened};
use crate::deploy::past::Past;
use crate::deploy::paused::Longest;
use crate::deploy::plan::{Goal, Purpose};
use crate::deploy::run::{self, Command, Request, Run};
use crate::deploy::session::Session;
use crate::deploy::step::Step;
use crate::deploy::view::View;
use crate::engine::carry;
use crate::operations::beginning::started;
use crate::operations::candidate::Source;
use crate::operations::ending::Ended;
use crate::operations::reopen::reopen;
use crate::operations::{candidate, ending, init, notify, rollback, target, with_data};
use crate::release::description::{Image, Release};
use crate::stack::escalation;
use crate::stack::manifest::MANIFEST_FILE;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::sync::atomic::AtomicBool;

/// What the user asked for.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// What to make the release from.
    pub source: Source<'a>,
    /// Replace the env file with a new one; the old one is backed up.
    pub defaults: bool,
    /// Leave the stack as it is if this release fails, to look at it, behind the closed gate.
    pub stay: bool,
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
    let deadline = Deadline::from(now(), budget);
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
    let deadline = Deadline::from(now(), for_bytes(budget, 2 * bytes));
    deploy(goal, options.stay, &engine, session, deadline)
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

/// Where a deployment that did not end well has left the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// The new release serves, and nothing is wrong with it.
    Serving,
    /// Nothing was begun: what ran before runs, and nobody was shut out.
    Alone,
    /// What ran before is as it was, but shut out.
    ShutOut,
    /// What runs was changed.
    Changed,
    /// Another client has the lock by now, and works on the stack.
    Lost,
}

impl Left {
    fn by(error: &anyhow::Error, measured: &Measured) -> Self {
        match measured {
            _ if exit_of(error) == Exit::Locked => Self::Lost,
            _ if error.is::<Unrecorded>() => Self::Serving,
            // It may have been opened by a run before this one.
            Measured { past: Past { changed: true, .. }, .. } => Self::Changed,
            _ if error.is::<TurnedBad>() => Self::Changed,
            Measured { gate_closed_ms: Some(_), .. } => Self::ShutOut,
            _ => Self::Alone,
        }
    }
}

/// Starts a release, and decides whether it is good. If it is not, the release before is brought back; with `stay`, what
/// there is stays as it is, behind the closed gate.
pub fn deploy(
    mut goal: Goal<'_>,
    stay: bool,
    engine: &str,
    session: &Session,
    deadline: Deadline,
) -> Result<Finished> {
    let release = goal.release;
    let before = session.store.current().ok().flatten();
    let request = Request::to_deploy(&release.id);
    let run = run::begin(&session.pilot.state, &request)?;
    if let Err(error) = session.out.open_journal(&run.dir.journal()) {
        session.out.note(format!("no journal: {error:#}"));
    }
    session.out.record(&started(session, Command::Up, engine, Some(&run)));
    notify::begins(session, &run);
    let mut measured = Measured { past: run.past.clone().unwrap_or_default(), ..Measured::default() };
    take_over_snapshot(session, &run, &mut measured.past);
    ending::tell_of_cut_off(session, &run);
    // As building, this takes nothing from the time of the deployment: the public is served.
    let left = deadline.left();
    if let Err(error) = bring_images(release, session) {
        session.out.note(format!("not every machine has the images yet: {error:#}"));
    }
    let deadline = Deadline::from(now(), left);
    let converged = session.converge(&mut goal, &run, deadline, &mut measured);
    let left = converged.as_ref().err().map(|error| Left::by(error, &measured));
    let result = match (converged, left) {
        (Ok(plan), _) if plan.steps.is_empty() => Ok(Outcome::NothingToDo),
        (Ok(_), _) => Ok(Outcome::Deployed),
        (Err(error), Some(Left::Serving)) => {
            let next = Next::xtask("host").so("and when that is fixed, `up` again");
            Err(fail(exit_of(&error), format!("{error:#}"), next))
        }
        (Err(error), Some(Left::Lost)) => Err(error),
        (Err(error), Some(Left::ShutOut)) => Err(left_as_it_was(&error, session, &mut measured)),
        (Err(error), _) => Err(failed(release, session, &measured.past, &error)),
    };
    let serves_again = result.as_ref().is_err_and(|error| exit_of(error) == Exit::RolledBack);
    let runs = || session.store.current().ok().flatten().map(|release| release.id);
    let at = if serves_again { runs() } else { Some(release.id.clone()) };
    let ended = Ended { release: at, scenarios: Vec::new(), result };
    let finished = ending::conclude(session, &run, ended, &measured);
    if stay || serves_again || !matches!(left, Some(Left::ShutOut | Left::Changed)) {
        return Ok(finished);
    }
    match way_back(before, release, &measured.past, session) {
        Some(request) => go_back(&release.id, finished, &request, &measured.past, session),
        None => Ok(finished),
    }
}

/// Where there are several machines, and only one has the images, each of the others gets what it lacks while the public is
/// still served.
fn bring_images(release: &Release, session: &Session) -> Result<()> {
    let engine = session.engine.as_ref();
    let limit = session.pilot.manifest.limits.deploy;
    let images = |release: Release| -> Vec<Image> { release.images.into_values().collect() };
    let is_spread = engine.can_lose_one(&images(release.clone()), Deadline::after(limit)).is_ok();
    if is_spread && session.pilot.manifest.registry.is_none() {
        return Ok(());
    }
    session.store.ledger().keep(limit)?;
    let _shown = screen::doing(format!("bring the images of release {} to every machine", release.id));
    carry::save(&release.id, engine, &session.store, limit, &AtomicBool::new(false))?;
    let remark = engine.bring(&images(session.store.named(&release.id)?), Deadline::after(limit))?;
    remark.into_iter().for_each(|remark| session.out.note(remark));
    Ok(())
}

/// The rollback that follows a deployment that failed: to the release that served before, as it left its data if the new
/// one was never let in. None if there is no such release; a known-good one that fails again is not its own way back.
fn way_back(before: Option<Release>, failed: &Release, past: &Past, session: &Session) -> Option<Request> {
    if let Some(request) = with_data::after(past, session) {
        return Some(request);
    }
    let request = Request::by(Command::Rollback);
    if failed.is_known_good() {
        let before = before.filter(|before| before.is_known_good() && before.id != failed.id)?;
        return Some(Request { to: Some(before.id), ..request });
    }
    target::default_target(session).ok().flatten().map(|_| request)
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

/// The release before it serves again, but the requested one does not run, so this is not a success. The public is out
/// meanwhile, so the way back has a budget of its own, also after a failure of the host: it may concern the new release
/// alone, such as a port of it.
fn go_back(
    new: &str,
    failed: Finished,
    request: &Request,
    past: &Past,
    session: &Session,
) -> Result<Finished> {
    let budget = with_data::budget(session.pilot.manifest.limits.budget, request)?;
    let deadline = Deadline::from(now(), budget);
    let why = failed.error.clone().unwrap_or_default();
    session.out.note(format!("{why}; rolling back"));
    let mut back = rollback::locked(request, session, deadline)?;
    if !back.exit.is_good() {
        back.error = Some(format!("{why}; and the rollback failed: {}", back.error.unwrap_or_default()));
        return Ok(back);
    }
    let serves = if back.held { "would serve again, but for a hold" } else { "serves again" };
    let old = back.release.clone().unwrap_or_default();
    if let Some(advice) = with_data::left_behind(past, &old, session) {
        session.out.note(advice);
    }
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
