//! The story of a rollback, top to bottom: take the lock, choose where to go back to, bring the pilot
//! there behind the closed gate, and if that fails try the next older known-good release while the
//! budget lasts; then report. A rollback that was cut off is taken up again.

use crate::base::ask;
use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::next::{Context as Whose, Next};
use crate::deploy::converge::Goal;
use crate::deploy::drift::Scenario;
use crate::deploy::event::{Event, Finished, Outcome};
use crate::deploy::execution::Measured;
use crate::deploy::lockout;
use crate::deploy::plan::{Data, Intent, Purpose};
use crate::deploy::run;
use crate::deploy::run::{Command, Request, Run};
use crate::deploy::session::Session;
use crate::operations::candidate;
use crate::operations::candidate::Source;
use crate::operations::ending;
use crate::release::description::{ENV_FILE, Release, State};
use crate::release::source;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// `cargo xtask rollback`.
#[derive(clap::Args, Debug, Default)]
#[command(
    after_help = "Examples:\n  cargo xtask rollback\n  cargo xtask rollback --plan\n  cargo xtask rollback --to previous\n  cargo xtask rollback --to HEAD~1\n  cargo xtask rollback --open"
)]
pub struct Args {
    /// Release to go back to: r3 or `previous`; or a commit, or a label of known-good.toml, which is built
    /// when no release was made from it [default: the last known-good]
    #[arg(long, value_name = "RELEASE|REV")]
    pub to: Option<String>,
    /// Why, when you know better than the drift; can be given more than once
    #[arg(long, value_enum)]
    pub scenario: Vec<Scenario>,
    /// Show what would be done and touch nothing
    #[arg(long)]
    pub plan: bool,
    /// Time it may take [default: the budget in pilot.toml]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub budget: Option<Duration>,
    /// Also switch your checkout to that commit; refused over uncommitted work
    #[arg(long, requires = "to")]
    pub checkout: bool,
    /// Open the gate at the end, whoever holds it closed; lifts the holds that stand now
    #[arg(long)]
    pub open: bool,
    /// Give up runs that were cut off, and begin anew; their backups stay
    #[arg(long)]
    pub abandon: bool,
}

/// Where it goes: releases, best first, or a commit of which none was made yet.
enum Targets {
    Releases(Vec<Release>),
    Commit(String),
}

/// A rollback from the command line.
pub fn run(args: &Args, yes: bool, session: &Session) -> Result<Finished> {
    let mut request =
        Request { to: args.to.clone(), scenarios: args.scenario.clone(), ..Request::by(Command::Rollback) };
    if args.open {
        request.lift_standing(&session.ledger())?;
    }
    let budget = args.budget.unwrap_or(session.pilot.manifest.limits.budget);
    let deadline = Deadline::from(session.out.start(), budget);
    if args.plan {
        return show_plan(&request, session, deadline);
    }
    let checkout = match (&args.to, args.checkout) {
        (Some(rev), true) => Some(source::checkout_of(&session.pilot, rev)?),
        _ => None,
    };
    let waited = confirmed(&request, yes, session, deadline)?;
    let deadline = Deadline::from(session.out.start(), budget + waited);
    let _lock = session.ledger().lock("rollback")?;
    if args.abandon {
        for cut in run::all_cut_off(&session.pilot.state, None)? {
            run::give_up(&cut)?;
            session.out.note(format!("run {} is given up", cut.id));
            ending::tell_where_data_is(session, &cut);
        }
    }
    let finished = locked(&request, session, deadline)?;
    if let Some(checkout) = checkout.filter(|_| finished.exit_code == 0) {
        session.out.note(match checkout.switch(&session.pilot) {
            Ok(()) => format!("your checkout is at {}", checkout.rev),
            Err(error) => format!("your checkout was not switched: {error:#}"),
        });
    }
    Ok(finished)
}

/// A whole reset deletes what may be fine: it is asked for, with the names of what goes. Gives the time that
/// the answer took, which is not the run's.
pub fn confirmed(request: &Request, yes: bool, session: &Session, deadline: Deadline) -> Result<Duration> {
    if !request.scenarios.contains(&Scenario::Reset) || yes {
        return Ok(Duration::ZERO);
    }
    // Nobody is asked for a reset that cannot be: it ends without removing anything.
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
        if list.is_empty() { "  nothing: there is nothing left".into() } else { list.join("\n") }
    );
    let asked = Instant::now();
    ask::confirm(yes, &what)?;
    let waited = asked.elapsed();
    session.out.shift(-(waited.as_millis() as i64));
    Ok(waited)
}

/// A rollback by whoever holds the lock already.
pub fn locked(request: &Request, session: &Session, deadline: Deadline) -> Result<Finished> {
    let found = targets(request, session).and_then(|targets| admitted(targets, session));
    let targets = match found {
        Ok(targets) => targets,
        // A name that was mistyped says nothing of the stack; with no release to go to it must be looked at.
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
    let measured = Measured { past: run.past.clone().unwrap_or_default(), ..Measured::default() };
    let finished = Finished::plain(Exit::Ok);
    let mut attempt = Attempt { session, run: &run, deadline, measured, finished };
    let ended = match &targets {
        Targets::Releases(releases) => attempt.try_releases(releases),
        Targets::Commit(rev) => attempt.try_commit(rev),
    };
    let Attempt { measured, finished, .. } = attempt;
    Ok(ending::conclude(session, &run, &ended, &measured, finished))
}

/// Says that the run begins, or that it is taken up, and what others have left behind.
fn begin(run: &Run, session: &Session) {
    if run.elsewhere(&session.pilot.state) {
        session.out.note(format!(
            "no room in the state folder: journal and backup go to {}",
            run.dir.path().display()
        ));
    }
    if let Err(error) = session.out.open_journal(&run.dir.journal()) {
        session.out.note(format!("no journal, so this run cannot be taken up: {error:#}"));
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

/// Where a run that is taken up meant to go: `previous` is another one by now. Where none of those is whole any
/// more, where it would go today.
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

/// Passes over releases that are not whole, up to the first that is. Everything that can be refused is
/// refused here, before the first step.
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

/// Where a rollback without arguments would go: the first release that it would not pass over.
pub fn default_target(session: &Session) -> Result<Option<Release>> {
    let good = in_order(session.store.known_good()?, session.store.current()?.as_ref());
    Ok(good.into_iter().find(|release| session.admissible(release).is_ok()))
}

/// The running release first, then the others, the one verified last before those.
fn in_order(good: Vec<Release>, current: Option<&Release>) -> Vec<Release> {
    let (mut first, rest): (Vec<_>, Vec<_>) =
        good.into_iter().partition(|release| current.is_some_and(|current| current.id == release.id));
    first.extend(rest);
    first
}

/// What the attempts of one rollback share.
struct Attempt<'a> {
    session: &'a Session,
    run: &'a Run,
    deadline: Deadline,
    measured: Measured,
    finished: Finished,
}

impl Attempt<'_> {
    /// The gate is closed before anything is built: that takes a minute, and the pilot is broken.
    fn try_commit(&mut self, rev: &str) -> Result<()> {
        let session = self.session;
        let good = session.store.known_good()?;
        let env = match good.first() {
            Some(release) => session.store.file(&release.id, ENV_FILE),
            None => {
                candidate::ensure_env(&session.pilot)?;
                session.pilot.env_path.clone()
            }
        };
        let view = session.running(self.deadline)?;
        let mut now = view.observe(view.engine.as_ref(), self.deadline);
        session.takes_over_a_hold(&mut now, self.run);
        // What a person gave as the reason stays.
        let closed = lockout::shut(&view, &now, &self.run.reason_under(&now.holds), self.deadline)?;
        session.out.note(format!("while the commit is built: {closed}"));
        self.measured.gate_closed_ms = Some(session.out.elapsed_ms());
        let release = candidate::make(Source::Commit(rev), &env, session).map_err(|error| {
            let what = format!("no release could be made of {rev}: {error:#}");
            fail(Exit::NotRestored, what, Next::xtask("rollback"))
        })?;
        session.out.note(format!("release {} ({}) is made of {rev}", release.id, release.label));
        let tried = self.try_releases(std::slice::from_ref(&release));
        if let Err(error) = &tried {
            session.store.mark_failed(&release.id, &format!("{error:#}"))?;
        }
        tried
    }

    /// Tries one release after the other.
    fn try_releases(&mut self, releases: &[Release]) -> Result<()> {
        let session = self.session;
        let request = &self.run.request;
        let mut first_error = None;
        let named = named(request, session)?;
        for release in releases {
            self.finished.release = Some(release.id.clone());
            if let Err(error) = session.admissible(release) {
                session.out.note(format!("passing over release {}: {error:#}", release.id));
                first_error.get_or_insert(error);
                continue;
            }
            let intent = Intent {
                purpose: Purpose::Rollback,
                named: &named,
                data: data(request),
                lift: &request.lift,
            };
            match self.try_release(Goal { release, intent, known: Vec::new() }) {
                Ok(()) => return Ok(()),
                // Another release does not fix a host, and there is no time for one past the budget.
                Err(error) if matches!(exit_of(&error), Exit::Host | Exit::OverBudget) => return Err(error),
                Err(error) => {
                    session.out.note(format!("release {}: {error:#}", release.id));
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| no_release(session)))
    }

    fn try_release(&mut self, mut goal: Goal<'_>) -> Result<()> {
        let session = self.session;
        let plan = session.converge(&mut goal, self.run, self.deadline, &mut self.measured)?;
        if plan.steps.is_empty() {
            self.finished.outcome = Some(Outcome::NothingToDo);
            return Ok(());
        }
        self.finished.outcome = Some(Outcome::Restored);
        self.finished.scenarios = plan.scenarios;
        let request = &self.run.request;
        if self.finished.scenarios.contains(&Scenario::Reset)
            && !request.keep_data
            && request.backup.is_none()
        {
            let whole = request.scenarios.contains(&Scenario::Reset);
            ending::tell_of_old_data(session, self.run, &self.measured.past, whole);
        }
        Ok(())
    }
}

/// What the user named, and `commit` where it was one.
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

/// Where a rollback may go. Only known-good releases, never a failed one; a commit may have none yet, and
/// what a backup is brought back on was just made.
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
    let mut next = Next::xtask("up").so("makes one from the tree");
    // The pilot may have been started from another clone, whose state has the releases.
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

fn show_plan(request: &Request, session: &Session, deadline: Deadline) -> Result<Finished> {
    let releases = match admitted(targets(request, session)?, session)? {
        Targets::Releases(releases) => releases,
        Targets::Commit(rev) => {
            session
                .out
                .say(format!("close the gate, build {rev} in a worktree of its own, then as with a release"));
            return Ok(Finished { scenarios: vec![Scenario::Commit], ..Finished::plain(Exit::Ok) });
        }
    };
    let release = releases.first().context("no release")?;
    let named = named(request, session)?;
    let intent =
        Intent { purpose: Purpose::Rollback, named: &named, data: data(request), lift: &request.lift };
    let preview = session.preview(&Goal { release, intent, known: Vec::new() }, deadline)?;
    let preview = preview.in_time(deadline)?;
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
