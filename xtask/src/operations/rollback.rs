//! The story of a rollback, from top to bottom: take the lock, choose the target release, bring the pilot to
//! it behind the closed gate; if that fails, try the next older known-good release while the budget lasts;
//! open, watch, and report. An interrupted rollback is continued. Called by the commands `rollback`, `reset` and `backup
//! restore`, and by `up` if a deployment fails.

use crate::base::ask;
use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::next::Next;
use crate::deploy::difference::Scenario;
use crate::deploy::event::{Event, Finished, Outcome};
use crate::deploy::execution::{Measured, TurnedBad};
use crate::deploy::lockout;
use crate::deploy::run::{self, Request, Run};
use crate::deploy::session::Session;
use crate::operations::beginning::started;
use crate::operations::candidate::{self, Source};
use crate::operations::ending::{self, Ended};
use crate::operations::foresee::goal;
use crate::operations::notify;
use crate::operations::planned::SavedPlan;
use crate::operations::target::{self, Targets};
use crate::operations::with_data;
use crate::release::description::Release;
use crate::release::source;
use crate::stack::layout::Layout;
use anyhow::Result;
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
    /// The plan that was approved, if it was saved.
    pub plan: Option<SavedPlan>,
}

/// A rollback or a reset from the command line.
pub fn run(options: &Options, yes: bool, session: &Session) -> Result<Finished> {
    let Options { request, budget, checkout, abandon, plan } = options;
    let budget = match budget {
        Some(budget) => *budget,
        None => with_data::budget(session.pilot.manifest.limits.budget, request)?,
    };
    let deadline = Deadline::from(session.out.start(), budget);
    let checkout = match (&request.to, checkout) {
        (Some(rev), true) => Some(source::checkout_of(&session.pilot, rev)?),
        _ => None,
    };
    with_data::confirm(request, yes)?;
    let waited = confirmed(request, yes, session, deadline)?;
    let deadline = Deadline::from(session.out.start(), budget + waited);
    let _lock = session.lock_for(request.command.as_str(), deadline.left())?;
    if let Some(plan) = plan {
        plan.check(session, deadline)?;
    }
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
    if target::targets(request, session).is_err() {
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
    let found = target::targets(request, session).and_then(|targets| target::admitted(targets, session));
    let targets = match found {
        Ok(targets) => targets,
        // A mistyped name says nothing about the stack. But if there is no release at all, the stack must be
        // checked.
        Err(error) if exit_of(&error) == Exit::Usage && request.to.is_some() => return Err(error),
        Err(error) => return ending::nowhere_to_go(session, request, error),
    };
    let run = run::begin(&session.pilot.state, request)?;
    begin(&run, session);
    notify::begins(session, &run);
    let targets = target::as_begun(targets, &run, session);
    if let Targets::Releases(releases) = &targets {
        let ids: Vec<String> = releases.iter().map(|release| release.id.clone()).collect();
        session.out.event(&Event::Targets { releases: &ids });
    }
    let mut measured = Measured { past: run.past.clone().unwrap_or_default(), ..Measured::default() };
    let ended = match &targets {
        Targets::Releases(releases) => {
            let mut ended = try_releases(session, &run, releases, deadline, &mut measured);
            ended.result =
                ended.result.map_err(|error| with_data::advised(error, &run.request, releases, session));
            ended
        }
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
    let engine = session.engine.kind().as_str();
    session.out.event(&started(session, run.request.command, engine, Some(run)));
    ending::tell_of_cut_off(session, run);
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
        Some(Release { layout: Layout { env: Some(name), .. }, id, .. }) => session.store.file(id, name),
        _ => {
            candidate::ensure_env(session)?;
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
    candidate::stack(Source::Commit(rev), &env, session).and_then(candidate::Candidate::release).map_err(
        |error| {
            let what = format!("no release could be made from {rev}: {error:#}");
            fail(Exit::NotRestored, what, Next::xtask("rollback"))
        },
    )
}

/// Tries the releases one after another. The first one was admitted just now.
fn try_releases(
    session: &Session,
    run: &Run,
    releases: &[Release],
    deadline: Deadline,
    measured: &mut Measured,
) -> Ended {
    let named = match target::named(&run.request, session) {
        Ok(named) => named,
        Err(error) => return Ended::failed(error),
    };
    let mut first_error = None;
    let mut last = None;
    for (n, release) in releases.iter().enumerate() {
        last = Some(release.id.clone());
        if n > 0
            && let Err(error) = session.admissible(release)
        {
            session.out.note(format!("passing over release {}: {error:#}", release.id));
            first_error.get_or_insert(error);
            continue;
        }
        match try_release(session, run, release, &named, deadline, measured) {
            Ok((outcome, scenarios)) => return Ended { release: last, scenarios, result: Ok(outcome) },
            // It was let in, and is shut out again. A rollback is never rolled back by itself.
            Err(error) if error.is::<TurnedBad>() => return Ended { release: last, ..Ended::failed(error) },
            // Another release does not fix the host, and after the budget there is no time for one.
            Err(error) if matches!(exit_of(&error), Exit::Host | Exit::OverBudget | Exit::Locked) => {
                return Ended { release: last, ..Ended::failed(error) };
            }
            Err(error) => {
                session.out.note(format!("release {}: {error:#}", release.id));
                first_error.get_or_insert(error);
            }
        }
    }
    Ended { release: last, ..Ended::failed(first_error.unwrap_or_else(|| target::no_release(session))) }
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
    let reset = plan.scenarios.contains(&Scenario::Reset) && !request.keep_data;
    if reset || request.backup.is_some() {
        let whole = request.scenarios.contains(&Scenario::Reset) || request.backup.is_some();
        ending::tell_of_old_data(session, run, &measured.past, whole);
    }
    Ok((Outcome::Restored, plan.scenarios))
}
