//! The story of a rollback, from top to bottom: take the lock, choose the target release, bring the pilot to
//! it behind the closed gate; if that fails, try the next older known-good release while the budget lasts;
//! then report. An interrupted rollback is continued. Called by the commands `rollback`, `reset` and `backup
//! restore`, and by `up` if a deployment fails.

use crate::base::ask;
use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::next::{Context as Whose, Next};
use crate::deploy::difference::Scenario;
use crate::deploy::event::{Event, Finished, Outcome};
use crate::deploy::execution::Measured;
use crate::deploy::lockout;
use crate::deploy::plan::{Data, Goal, Purpose};
use crate::deploy::run::{self, Request, Run};
use crate::deploy::session::Session;
use crate::operations::candidate::{self, Source};
use crate::operations::ending::{self, Ended};
use crate::release::description::{ENV_FILE, Release, State};
use crate::release::source;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// The options of a rollback or reset on the command line, besides its request.
#[derive(Debug, Default)]
pub struct Options {
    /// The request.
    pub request: Request,
    /// The time limit; none means the budget in the manifest.
    pub budget: Option<Duration>,
    /// Also switch the user's checkout to the commit that was rolled back to.
    pub checkout: bool,
    /// Give up interrupted runs.
    pub abandon: bool,
}

/// The targets: releases, best first, or a commit that has no release yet.
enum Targets {
    Releases(Vec<Release>),
    Commit(String),
}

/// A rollback or a reset from the command line.
pub fn run(options: &Options, yes: bool, session: &Session) -> Result<Finished> {
    let Options { request, budget, checkout, abandon } = options;
    let budget = budget.unwrap_or(session.pilot.manifest.limits.budget);
    let deadline = Deadline::from(session.out.start(), budget);
    let checkout = match (&request.to, checkout) {
        (Some(rev), true) => Some(source::checkout_of(&session.pilot, rev)?),
        _ => None,
    };
    let waited = confirmed(request, yes, session, deadline)?;
    let deadline = Deadline::from(session.out.start(), budget + waited);
    let _lock = session.ledger().lock(request.command.as_str())?;
    if *abandon {
        for cut in run::all_cut_off(&session.pilot.state, None)? {
            run::give_up(&cut)?;
            session.out.note(format!("run {} is given up", cut.id));
            ending::tell_where_data_is(session, &cut);
        }
    }
    let finished = locked(request, session, deadline)?;
    if let Some(checkout) = checkout.filter(|_| finished.exit == Exit::Ok) {
        session.out.note(match checkout.switch(&session.pilot) {
            Ok(()) => format!("your checkout is at {}", checkout.rev),
            Err(error) => format!("your checkout was not switched: {error:#}"),
        });
    }
    Ok(finished)
}

/// A complete reset may delete good data, so the user is asked, with a list of what is deleted. Returns how
/// long the answer took: this time does not count against the budget.
fn confirmed(request: &Request, yes: bool, session: &Session, deadline: Deadline) -> Result<Duration> {
    if !request.scenarios.contains(&Scenario::Reset) || yes {
        return Ok(Duration::ZERO);
    }
    // Do not ask about a reset that is impossible: it ends without removing anything.
    if targets(request, session).is_err() {
        return Ok(Duration::ZERO);
    }
    let all = session.engine.resources(deadline.within(session.pilot.manifest.limits.engine))?;
    let list: Vec<String> = all.iter().map(|name| format!("  {name}")).collect();
    let back = if request.keep_data {
        "the data is brought back from it"
    } else {
        "afterwards the data exists only in that backup; --keep-data brings it back"
    };
    let what = format!(
        "a reset of {} deletes, after a verified backup ({back}):\n{}",
        session.pilot.project,
        if list.is_empty() { "  nothing; nothing is left to delete".into() } else { list.join("\n") }
    );
    let asked = Instant::now();
    ask::confirm(yes, &what)?;
    let waited = asked.elapsed();
    session.out.shift(-(waited.as_millis() as i64));
    Ok(waited)
}

/// A rollback for a caller that already holds the lock.
pub fn locked(request: &Request, session: &Session, deadline: Deadline) -> Result<Finished> {
    let found = targets(request, session).and_then(|targets| admitted(targets, session));
    let targets = match found {
        Ok(targets) => targets,
        // A mistyped name says nothing about the stack. But if there is no release at all, the stack must be
        // checked.
        Err(error) if exit_of(&error) == Exit::Usage && request.to.is_some() => return Err(error),
        Err(error) => return ending::nowhere_to_go(session, request, error),
    };
    let run = run::begin(&session.pilot.state, request)?;
    begin(&run, session);
    let targets = as_begun(targets, &run, session);
    if let Targets::Releases(releases) = &targets {
        let ids: Vec<String> = releases.iter().map(|release| release.id.clone()).collect();
        session.out.event(&Event::Targets { releases: &ids });
    }
    let mut measured = Measured { past: run.past.clone().unwrap_or_default(), ..Measured::default() };
    let ended = match &targets {
        Targets::Releases(releases) => try_releases(session, &run, releases, deadline, &mut measured),
        Targets::Commit(rev) => try_commit(session, &run, rev, deadline, &mut measured),
    };
    Ok(ending::conclude(session, &run, ended, &measured))
}

/// Says that the run begins or continues, and what other runs have left behind.
fn begin(run: &Run, session: &Session) {
    if run.elsewhere(&session.pilot.state) {
        session.out.note(format!(
            "no room in the state folder: the journal and the backup are in {}",
            run.dir.path().display()
        ));
    }
    if let Err(error) = session.out.open_journal(&run.dir.journal()) {
        session.out.note(format!(
            "cannot write the journal, so this run cannot be continued if it is interrupted: {error:#}"
        ));
    }
    if let Some(began) = run.past.as_ref().and_then(|past| past.began_ms) {
        let earlier = now_ms().saturating_sub(began).saturating_sub(session.out.elapsed_ms());
        session.out.shift(i64::try_from(earlier).unwrap_or(0));
    }
    session.out.event(&Event::Started {
        version: 1,
        command: run.request.command.as_str(),
        rollback: Some(&run.id),
        project: &session.pilot.project,
        engine: session.engine.kind().as_str(),
        at_ms: now_ms(),
        resumed: run.resumed(),
    });
    ending::tell_of_cut_off(session, run);
}

/// The targets of the run that is continued: `previous` may mean another release by now. If none of them is
/// whole any more, the targets that a new run would have.
fn as_begun(targets: Targets, run: &Run, session: &Session) -> Targets {
    let meant = run.past.as_ref().map(|past| past.targets.as_slice()).unwrap_or_default();
    let all = session.store.list().map(|(all, _)| all).unwrap_or_default();
    let releases: Vec<Release> =
        meant.iter().filter_map(|id| all.iter().find(|release| release.id == *id)).cloned().collect();
    if releases.is_empty() {
        return targets;
    }
    admitted(Targets::Releases(releases), session).unwrap_or(targets)
}

/// Skips releases that are not whole, up to the first one that is. Everything that can be refused is refused
/// here, before the first step.
fn admitted(targets: Targets, session: &Session) -> Result<Targets> {
    let Targets::Releases(releases) = targets else { return Ok(targets) };
    let mut first_error = None;
    for (n, release) in releases.iter().enumerate() {
        match session.admissible(release) {
            Ok(()) => return Ok(Targets::Releases(releases[n..].to_vec())),
            Err(error) => {
                session.out.note(format!("passing over release {}: {error:#}", release.id));
                first_error.get_or_insert(error);
            }
        }
    }
    Err(match first_error {
        Some(error) => fail(Exit::NoRelease, format!("{error:#}"), Next::xtask("up")),
        None => no_release(session),
    })
}

/// The target of a rollback without arguments: the first release that would not be skipped.
pub fn default_target(session: &Session) -> Result<Option<Release>> {
    let good = in_order(session.store.known_good()?, session.store.current()?.as_ref());
    Ok(good.into_iter().find(|release| session.admissible(release).is_ok()))
}

/// The running release first, then the others. Those that were verified later come first.
fn in_order(good: Vec<Release>, current: Option<&Release>) -> Vec<Release> {
    let (mut first, rest): (Vec<_>, Vec<_>) =
        good.into_iter().partition(|release| current.is_some_and(|current| current.id == release.id));
    first.extend(rest);
    first
}

/// Closes the gate before the build: a build takes a minute, and the pilot is broken meanwhile.
fn try_commit(session: &Session, run: &Run, rev: &str, deadline: Deadline, measured: &mut Measured) -> Ended {
    let release = match release_of(session, run, rev, deadline, measured) {
        Ok(release) => release,
        Err(error) => return Ended::failed(error),
    };
    session.out.note(format!("release {} ({}) was made from {rev}", release.id, release.label));
    let mut ended = try_releases(session, run, std::slice::from_ref(&release), deadline, measured);
    if let Err(error) = &ended.result
        && let Err(error) = session.store.mark_failed(&release.id, &format!("{error:#}"))
    {
        ended.result = Err(error);
    }
    ended
}

fn release_of(
    session: &Session,
    run: &Run,
    rev: &str,
    deadline: Deadline,
    measured: &mut Measured,
) -> Result<Release> {
    let good = session.store.known_good()?;
    let env = match good.first() {
        Some(release) => session.store.file(&release.id, ENV_FILE),
        None => {
            candidate::ensure_env(&session.pilot)?;
            session.pilot.env_path.clone()
        }
    };
    let view = session.running(deadline)?;
    let mut now = view.observe(view.engine.as_ref(), deadline);
    session.takes_over_a_hold(&mut now, run);
    // If a person closed the gate, that person's reason stays.
    let closed = lockout::shut(&view, &now, &run.reason_under(&now.holds), deadline)?;
    session.out.note(format!("while the commit is built: {closed}"));
    measured.gate_closed_ms = Some(session.out.elapsed_ms());
    candidate::make(Source::Commit(rev), &env, session).map_err(|error| {
        let what = format!("no release could be made from {rev}: {error:#}");
        fail(Exit::NotRestored, what, Next::xtask("rollback"))
    })
}

/// Tries the releases one after another.
fn try_releases(
    session: &Session,
    run: &Run,
    releases: &[Release],
    deadline: Deadline,
    measured: &mut Measured,
) -> Ended {
    let named = match named(&run.request, session) {
        Ok(named) => named,
        Err(error) => return Ended::failed(error),
    };
    let mut first_error = None;
    let mut last = None;
    for release in releases {
        last = Some(release.id.clone());
        if let Err(error) = session.admissible(release) {
            session.out.note(format!("passing over release {}: {error:#}", release.id));
            first_error.get_or_insert(error);
            continue;
        }
        match try_release(session, run, release, &named, deadline, measured) {
            Ok((outcome, scenarios)) => return Ended { release: last, scenarios, result: Ok(outcome) },
            // Another release does not fix the host, and after the budget there is no time for one.
            Err(error) if matches!(exit_of(&error), Exit::Host | Exit::OverBudget) => {
                return Ended { release: last, ..Ended::failed(error) };
            }
            Err(error) => {
                session.out.note(format!("release {}: {error:#}", release.id));
                first_error.get_or_insert(error);
            }
        }
    }
    Ended { release: last, ..Ended::failed(first_error.unwrap_or_else(|| no_release(session))) }
}

/// How it ended, and the reason for the rollback.
fn try_release(
    session: &Session,
    run: &Run,
    release: &Release,
    named: &[Scenario],
    deadline: Deadline,
    measured: &mut Measured,
) -> Result<(Outcome, Vec<Scenario>)> {
    let request = &run.request;
    let plan = session.converge(&mut goal(request, release, named), run, deadline, measured)?;
    if plan.steps.is_empty() {
        return Ok((Outcome::NothingToDo, Vec::new()));
    }
    if plan.scenarios.contains(&Scenario::Reset) && !request.keep_data && request.backup.is_none() {
        let whole = request.scenarios.contains(&Scenario::Reset);
        ending::tell_of_old_data(session, run, &measured.past, whole);
    }
    Ok((Outcome::Restored, plan.scenarios))
}

fn goal<'a>(request: &'a Request, release: &'a Release, named: &'a [Scenario]) -> Goal<'a> {
    Goal { named, data: data(request), lift: &request.lift, ..Goal::plain(release, Purpose::Rollback) }
}

/// The scenarios that the user named, and `commit` if the target is one.
fn named(request: &Request, session: &Session) -> Result<Vec<Scenario>> {
    let mut named = request.scenarios.clone();
    if let Some(to) = &request.to
        && to != "previous"
        && session.store.list()?.0.iter().all(|release| release.id != *to)
    {
        named.push(Scenario::Commit);
    }
    Ok(named)
}

fn data(request: &Request) -> Data {
    match &request.backup {
        Some((dir, services)) => Data::From(dir.clone(), services.clone()),
        None if request.keep_data => Data::ThroughReset,
        None => Data::AsFound,
    }
}

/// The possible targets. Only known-good releases, never a failed one. Exceptions: a commit may have no
/// release yet, and the release of a backup was just made.
fn targets(request: &Request, session: &Session) -> Result<Targets> {
    let good = session.store.known_good()?;
    let current = session.store.current().unwrap_or_else(|error| {
        session.out.note(format!("cannot tell the running release: {error:#}"));
        None
    });
    let is_current = |r: &Release| current.as_ref().is_some_and(|c| c.id == r.id);
    let Some(to) = &request.to else {
        let good = in_order(good, current.as_ref());
        return if good.is_empty() { Err(no_release(session)) } else { Ok(Targets::Releases(good)) };
    };
    let release = if to == "previous" {
        let previous = good.into_iter().find(|r| !is_current(r));
        previous.ok_or_else(|| {
            fail(Exit::NoRelease, "there is no other known-good release", Next::xtask("releases list"))
        })?
    } else {
        match (session.store.named(to), source::commit_of(&session.pilot, to)) {
            (Ok(release), _) => release,
            (Err(_), Ok(Some(commit))) => match good.into_iter().find(|r| r.is_of(&commit)) {
                Some(release) => release,
                None => return Ok(Targets::Commit(to.clone())),
            },
            (Err(unknown), Ok(None)) => return Err(unknown),
            (Err(_), Err(error)) => return Err(error),
        }
    };
    if release.state != State::KnownGood && request.backup.is_none() {
        let reason = release.reason.as_deref().unwrap_or("it was never verified");
        let what = format!("release {} is {}: {reason}", release.id, release.state.as_str());
        return Err(fail(Exit::Usage, what, Next::xtask("releases list")));
    }
    if let Err(error) = session.store.check_files(&release) {
        let other = session.store.known_good()?.into_iter().find(|r| r.id != release.id);
        let next = other.map(|r| Next::xtask(&format!("rollback --to {}", r.id)));
        return Err(fail(Exit::NoRelease, format!("{error:#}"), next.unwrap_or_else(|| Next::xtask("up"))));
    }
    Ok(Targets::Releases(vec![release]))
}

fn no_release(session: &Session) -> anyhow::Error {
    let mut what = format!("there is no known-good release in {}", session.pilot.state.path().display());
    let mut next = Next::xtask("up").so("makes one from your source");
    // Another clone may have started the pilot, and then the releases are in its state folder.
    if let Ok(services) = session.engine.services(Deadline::after(session.pilot.manifest.limits.engine))
        && let Some(state) =
            services.values().flat_map(|service| &service.0).find_map(|s| s.state_dir.as_ref())
        && Path::new(state) != session.pilot.state.path()
    {
        what = format!("{what}; the running pilot was deployed from {state}");
        let project = &session.pilot.project;
        let engine = session.engine.kind().as_str();
        let whose = Whose::new(Some(project), Some(Path::new(state)), Some(engine));
        next = Next::shell(whose.xtask("rollback"));
    }
    fail(Exit::NoRelease, what, next)
}

/// Shows what would be done, and changes nothing.
pub fn show_plan(request: &Request, session: &Session, deadline: Deadline) -> Result<Finished> {
    let releases = match admitted(targets(request, session)?, session)? {
        Targets::Releases(releases) => releases,
        Targets::Commit(rev) => {
            session.out.say(format!(
                "close the gate, build {rev} in a separate worktree, then continue as with a release"
            ));
            return Ok(Finished { scenarios: vec![Scenario::Commit], ..Finished::plain(Exit::Ok) });
        }
    };
    let release = releases.first().context("no release")?;
    let named = named(request, session)?;
    let preview = session.preview(&goal(request, release, &named), deadline)?.in_time(deadline)?;
    session.out.event(&Event::Drift { release: &release.id, differences: &preview.drift });
    session.out.event(&Event::Planned { plan: &preview.plan });
    for (n, step) in preview.plan.steps.iter().enumerate() {
        session.out.say(format!("  {}. {step}", n + 1));
    }
    if preview.plan.steps.is_empty() {
        session.out.say("  nothing to do");
    }
    let hold = preview.now.holds.held(&[]);
    if let Some(hold) = &hold {
        session.out.say(format!("  the gate is {hold}"));
    }
    Ok(Finished {
        release: Some(release.id.clone()),
        scenarios: preview.plan.scenarios,
        held: hold.is_some(),
        hold,
        ..Finished::plain(Exit::Ok)
    })
}
