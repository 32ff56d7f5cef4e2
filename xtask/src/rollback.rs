//! The story of a rollback, top to bottom: take the lock, choose where to go back to, bring the pilot
//! there behind the closed gate, and if that fails try the next older known-good release while the
//! budget lasts; then report. A rollback that was cut off is taken up again.

use crate::backup::{self, Kept};
use crate::candidate::{self, Source};
use crate::deadline::Deadline;
use crate::deploy::{Goal, Session};
use crate::drift::{Difference, Scenario};
use crate::execute::Measured;
use crate::failure::{Exit, exit_of, fail, next_of};
use crate::fence::{self, Closed};
use crate::files::{self, Mode};
use crate::journal::{Event, Finished, Outcome};
use crate::plan::{Data, Intent, Purpose};
use crate::release::{ENV_FILE, Release, State, now_ms};
use crate::verify::{Target, verify};
use crate::{ask, escalation, lock, observe, report, tree};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `cargo xtask rollback`.
#[derive(clap::Args, Debug, Default)]
#[command(
    after_help = "Examples:\n  cargo xtask rollback\n  cargo xtask rollback --plan\n  cargo xtask rollback --to previous\n  cargo xtask rollback --to HEAD~1"
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
}

/// What was asked for, kept so that a rollback which was cut off can be taken up again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Of this format.
    pub version: u32,
    /// Release, commit or label.
    pub to: Option<String>,
    /// Scenarios that the user named.
    pub scenarios: Vec<Scenario>,
    /// A reset brings the data back that it backed up.
    #[serde(default)]
    pub keep_data: bool,
    /// Backup whose data comes back, and the services that it is brought back for.
    #[serde(default)]
    pub backup: Option<(PathBuf, Vec<String>)>,
}

/// Name and folder of one rollback.
struct Place {
    id: String,
    dir: PathBuf,
    resumed: bool,
}

/// Where it goes: releases, best first, or a commit of which none was made yet.
enum Targets {
    Releases(Vec<Release>),
    Commit(String),
}

/// A rollback from the command line.
pub fn run(args: &Args, yes: bool, session: &Session) -> Result<Finished> {
    let request =
        Request { version: 1, to: args.to.clone(), scenarios: args.scenario.clone(), ..Request::default() };
    let budget = args.budget.unwrap_or(session.pilot.manifest.limits.budget);
    let deadline = Deadline::from(session.out.start(), budget);
    if args.plan {
        return show_plan(&request, session, deadline);
    }
    let checkout = match (&args.to, args.checkout) {
        (Some(rev), true) => Some(tree::checkout_of(&session.pilot, rev)?),
        _ => None,
    };
    confirmed(&request, yes, session, deadline)?;
    let _lock = lock::take(&session.pilot.state, "rollback")?;
    let finished = locked(&request, session, deadline)?;
    if let Some(checkout) = checkout.filter(|_| finished.exit_code == 0) {
        checkout.switch(&session.pilot)?;
        session.out.note(format!("your checkout is at {}", checkout.rev));
    }
    Ok(finished)
}

/// A whole reset deletes what may be fine: it is asked for, with the names of what goes.
pub fn confirmed(request: &Request, yes: bool, session: &Session, deadline: Deadline) -> Result<()> {
    if !request.scenarios.contains(&Scenario::Reset) || yes {
        return Ok(());
    }
    // Nobody is asked for a reset that cannot be.
    targets(request, session)?;
    let all = session.engine.belongings(deadline.within(session.pilot.manifest.limits.engine))?;
    let list: Vec<String> = all.iter().map(|name| format!("  {name}")).collect();
    let back =
        if request.keep_data { "the data is brought back from it" } else { "the data stays in it alone" };
    let what = format!(
        "a reset of {} deletes, after a verified backup ({back}):\n{}",
        session.pilot.project,
        if list.is_empty() { "  nothing: there is nothing left".into() } else { list.join("\n") }
    );
    ask::confirm(yes, &what)
}

/// A rollback by whoever holds the lock already.
pub fn locked(request: &Request, session: &Session, deadline: Deadline) -> Result<Finished> {
    let targets = targets(request, session)?;
    let place = place(session, request)?;
    session.out.open_journal(&place.dir.join("journal.jsonl"))?;
    let engine = session.engine.kind().word();
    session.out.event(&Event::Started {
        version: 1,
        command: "rollback",
        rollback: Some(&place.id),
        project: &session.pilot.project,
        engine,
        at_ms: now_ms(),
        resumed: place.resumed,
    });
    let finished = Finished { rollback: Some(place.id.clone()), ..Finished::plain(Exit::Ok) };
    let mut attempt =
        Attempt { request, session, place: &place, deadline, measured: Measured::default(), finished };
    let ended = match &targets {
        Targets::Releases(releases) => attempt.try_releases(releases),
        Targets::Commit(rev) => attempt.try_commit(rev),
    };
    let Attempt { measured, mut finished, .. } = attempt;
    finished.gate_closed_ms = measured.gate_closed_ms;
    finished.restored_ms = measured.restored_ms;
    finished.downtime_ms = measured.restored_ms.zip(measured.gate_closed_ms).map(|(end, start)| end - start);
    finished.smoke = measured.smoke.as_ref().map(serde_json::to_value).transpose()?;
    let evidence = place.dir.join("evidence");
    finished.evidence = evidence.exists().then(|| evidence.display().to_string());
    if let Err(error) = &ended {
        finished.outcome = Some(Outcome::NotRestored);
        finished.exit_code = exit_of(error) as u8;
        finished.error = Some(format!("{error:#}"));
        finished.next = Some(next_of(error).unwrap_or("cargo xtask diagnose").to_owned());
    }
    finished.escalation = Some(escalation::of(finished.exit_code, &session.pilot.manifest));
    finished.report = Some(place.dir.join("report.html").display().to_string());
    finished = finished.masked();
    // `main` tells it to the user when all else is done; the journal has it now.
    session.out.record(&Event::Finished(&finished));
    let written = files::write_json(&place.dir.join("report.json"), &finished, Mode::Plain)
        .and_then(|()| report::write(&place.dir, &finished));
    // What was done stands, whether or not it can be written down.
    if let Err(error) = written {
        session.out.note(format!("no report: {error:#}"));
        finished.report = None;
    }
    Ok(finished)
}

/// What the attempts of one rollback share.
struct Attempt<'a> {
    request: &'a Request,
    session: &'a Session,
    place: &'a Place,
    deadline: Deadline,
    measured: Measured,
    finished: Finished,
}

impl Attempt<'_> {
    /// The gate is closed before anything is built: that takes a minute, and the pilot is broken.
    fn try_commit(&mut self, rev: &str) -> Result<()> {
        let session = self.session;
        let pilot = &session.pilot;
        let good = session.store.known_good()?;
        let env = match good.first() {
            Some(release) => session.store.file(&release.id, ENV_FILE),
            None => {
                candidate::ensure_env(pilot)?;
                pilot.env_path.clone()
            }
        };
        let known = good.first().and_then(|release| observe::release_env(&session.store, release).ok());
        let now = observe::observe(pilot, session.engine.as_ref(), known.as_ref(), self.deadline);
        match fence::close(session, &now, "rollback: building the commit to go back to", self.deadline)? {
            Closed::Proved => session.out.note("the gate is closed while the commit is built"),
            Closed::Fenced(how) => session.out.note(how),
        }
        self.measured.gate_closed_ms = Some(session.out.elapsed_ms());
        let release = candidate::make(Source::Commit(rev), &env, session).map_err(|error| {
            let what = format!("no release could be made of {rev}: {error:#}");
            fail(exit_of(&error), what, "cargo xtask rollback, to the last known-good release")
        })?;
        session.out.note(format!("release {} ({}) is made of {rev}", release.id, release.label));
        let tried = self.try_releases(std::slice::from_ref(&release));
        if let Err(error) = &tried {
            session.store.mark_failed(&release.id, &format!("{error:#}"))?;
        }
        tried
    }

    /// Data went, or was gone: where a copy of it is. That of a store which was found corrupt is none.
    fn tell_of_backup(&self) {
        let reset = self.finished.scenarios.contains(&Scenario::Reset);
        if !reset || self.request.keep_data || self.request.backup.is_some() {
            return;
        }
        let asked = self.request.scenarios.contains(&Scenario::Reset);
        let all = backup::list(&self.session.pilot.state).map(|(all, _)| all).unwrap_or_default();
        let fits = |kept: &&Kept| !kept.backup.data().is_empty() && (asked || kept.id != self.place.id);
        if let Some(kept) = all.iter().rev().find(fits) {
            let id = &kept.id;
            self.session.out.note(format!(
                "data from before is in backup {id}: cargo xtask backup restore {id} --only data --yes"
            ));
        }
    }

    /// Tries one release after the other.
    fn try_releases(&mut self, releases: &[Release]) -> Result<()> {
        let session = self.session;
        let mut first_error = None;
        let named = named(self.request, session)?;
        for release in releases {
            if let Err(error) = session.store.check_files(release) {
                session.out.note(format!("passing over release {}: {error:#}", release.id));
                first_error.get_or_insert(error);
                continue;
            }
            let intent = Intent { purpose: Purpose::Rollback, named: &named, data: data(self.request) };
            let mut goal = Goal { release, intent, known: Vec::new(), place: Some(&self.place.dir) };
            let mut outcome = session.bring_to(&goal, self.deadline, &mut self.measured);
            if outcome.as_ref().is_ok_and(|plan| plan.steps.is_empty()) {
                // Nothing differs, and yet somebody called for a rollback: look closer.
                let env = observe::release_env(&session.store, release)?;
                let ready = self.deadline.within(session.pilot.manifest.limits.ready);
                let smoke = verify(&Target::new(&session.pilot, &env)?, ready);
                session.out.event(&Event::Smoke { smoke: &smoke });
                let (passed, summary) = (smoke.passed, smoke.summary());
                self.measured.smoke = Some(smoke);
                if passed {
                    self.finished.outcome = Some(Outcome::NothingToDo);
                    self.finished.release = Some(release.id.clone());
                    return Ok(());
                }
                let sick =
                    |service: &str| Difference::Sick { service: service.to_owned(), reason: summary.clone() };
                goal.known = session.pilot.services().map(sick).collect();
                outcome = session.bring_to(&goal, self.deadline, &mut self.measured);
            }
            match outcome {
                Ok(plan) => {
                    self.finished.outcome = Some(Outcome::Restored);
                    self.finished.release = Some(release.id.clone());
                    self.finished.scenarios = plan.scenarios;
                    self.tell_of_backup();
                    return Ok(());
                }
                // Another release does not mend a host, and there is no time for one past the budget.
                Err(error) if matches!(exit_of(&error), Exit::Host | Exit::OverBudget) => return Err(error),
                Err(error) => {
                    session.out.note(format!("release {}: {error:#}", release.id));
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| no_release(session)))
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
        let (mut first, rest): (Vec<_>, Vec<_>) = good.into_iter().partition(is_current);
        first.extend(rest);
        return if first.is_empty() { Err(no_release(session)) } else { Ok(Targets::Releases(first)) };
    };
    let release = if to == "previous" {
        let previous = good.into_iter().find(|r| !is_current(r));
        previous.ok_or_else(|| {
            fail(Exit::NoRelease, "there is no other known-good release", "cargo xtask releases list")
        })?
    } else {
        match (session.store.named(to), tree::commit_of(&session.pilot, to)) {
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
        let what = format!("release {} is {}: {reason}", release.id, release.state.word());
        return Err(fail(Exit::Usage, what, "cargo xtask releases list"));
    }
    if let Err(error) = session.store.check_files(&release) {
        let other = session.store.known_good()?.into_iter().find(|r| r.id != release.id);
        let next = other.map(|r| format!("cargo xtask rollback --to {}", r.id));
        return Err(fail(Exit::NoRelease, format!("{error:#}"), next.unwrap_or("cargo xtask up".into())));
    }
    Ok(Targets::Releases(vec![release]))
}

fn no_release(session: &Session) -> anyhow::Error {
    let mut what = format!("there is no known-good release in {}", session.pilot.state.display());
    let mut next = "cargo xtask up, which makes one from the tree".to_owned();
    // The pilot may have been started from another clone, whose state has the releases.
    if let Ok(stack) = session.engine.observe(Deadline::after(session.pilot.manifest.limits.engine))
        && let Some(state) = stack.services.values().find_map(|s| s.state_dir.as_ref())
        && Path::new(state) != session.pilot.state
    {
        what = format!("{what}; the running pilot was deployed from {state}");
        next = format!("PILOT_STATE_DIR={state} cargo xtask rollback");
    }
    fail(Exit::NoRelease, what, next)
}

/// The newest rollback if it was cut off and asked for the same, else a new one. Where the state folder
/// cannot be written (its disk is full) the system's temporary folder takes the journal, the evidence and
/// the backup: nothing is overwritten without one.
fn place(session: &Session, request: &Request) -> Result<Place> {
    let folder = session.pilot.state.join("rollbacks");
    if let Some(id) = files::names(&folder)?.pop() {
        let dir = folder.join(&id);
        let same = files::read_json::<Request>(&dir.join("request.json")).is_ok_and(|r| r == *request);
        if same && !dir.join("report.json").exists() {
            return Ok(Place { id, dir, resumed: true });
        }
    }
    let id = files::stamp();
    let begin = |dir: PathBuf| {
        files::make_private_folder(&dir)?;
        files::write_json(&dir.join("request.json"), request, Mode::Plain)?;
        Ok::<_, anyhow::Error>(dir)
    };
    let dir = begin(folder.join(&id)).or_else(|error| {
        files::remove(&folder.join(&id)).ok();
        let elsewhere = std::env::temp_dir().join(format!("{}-rollbacks", session.pilot.project)).join(&id);
        ensure!(!elsewhere.exists(), "{} is there already: {error:#}", elsewhere.display());
        session.out.note(format!("journal and backup go to {}: {error:#}", elsewhere.display()));
        begin(elsewhere)
    })?;
    Ok(Place { id, dir, resumed: false })
}

fn show_plan(request: &Request, session: &Session, deadline: Deadline) -> Result<Finished> {
    let releases = match targets(request, session)? {
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
    let intent = Intent { purpose: Purpose::Rollback, named: &named, data: data(request) };
    let outlook = session.outlook(&Goal { release, intent, known: Vec::new(), place: None }, deadline)?;
    session.out.event(&Event::Drift { release: &release.id, differences: &outlook.drift });
    session.out.event(&Event::Planned { plan: &outlook.plan });
    for (n, step) in outlook.plan.steps.iter().enumerate() {
        session.out.say(format!("  {}. {step}", n + 1));
    }
    if outlook.plan.steps.is_empty() {
        session.out.say("  nothing to do");
    }
    Ok(Finished {
        release: Some(release.id.clone()),
        scenarios: outlook.plan.scenarios,
        ..Finished::plain(Exit::Ok)
    })
}
