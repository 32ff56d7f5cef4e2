//! The story of a rollback, top to bottom: take the lock, choose where to go back to, bring the pilot
//! there behind the closed gate, and if that fails try the next older known-good release while the
//! budget lasts; then report. A rollback that was cut off is taken up again.

use crate::deadline::Deadline;
use crate::deploy::{Goal, Session};
use crate::drift::{Difference, Scenario};
use crate::execute::Measured;
use crate::failure::{Exit, exit_of, fail, next_of};
use crate::files::{self, Mode};
use crate::journal::{Event, Finished, Outcome};
use crate::plan::Purpose;
use crate::release::{Release, State, now_ms};
use crate::verify::{Target, verify};
use crate::{lock, observe, report, tree};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `cargo xtask rollback`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask rollback\n  cargo xtask rollback --plan\n  cargo xtask rollback --to previous"
)]
pub struct Args {
    /// Release to go back to: r3, a commit it was made from, or `previous` [default: the last known-good]
    #[arg(long, value_name = "RELEASE|REV")]
    to: Option<String>,
    /// Why, when you know better than the drift; can be given more than once
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// Show what would be done and touch nothing
    #[arg(long)]
    plan: bool,
    /// Time it may take [default: the budget in pilot.toml]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
}

/// What was asked for, kept so that a rollback which was cut off can be taken up again.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Request {
    version: u32,
    to: Option<String>,
    scenarios: Vec<Scenario>,
}

/// Name and folder of one rollback.
struct Place {
    id: String,
    dir: PathBuf,
    resumed: bool,
}

/// A rollback from the command line.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let budget = args.budget.unwrap_or(session.pilot.manifest.limits.budget);
    let deadline = Deadline::from(session.out.start(), budget);
    if args.plan {
        return show_plan(args, session, deadline);
    }
    let _lock = lock::take(&session.pilot.state, "rollback")?;
    locked(args.to.clone(), args.scenario.clone(), session, deadline)
}

/// A rollback by whoever holds the lock already.
pub fn locked(
    to: Option<String>,
    scenarios: Vec<Scenario>,
    session: &Session,
    deadline: Deadline,
) -> Result<Finished> {
    let request = Request { version: 1, to, scenarios };
    let targets = targets(request.to.as_deref(), session)?;
    let place = place(session, &request)?;
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
    let mut measured = Measured::default();
    let mut finished = Finished { rollback: Some(place.id.clone()), ..Finished::plain(Exit::Ok) };
    let ended = try_targets(&targets, &request, session, &place, deadline, &mut measured, &mut finished);
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
        finished.next = Some(next_of(error).unwrap_or("cargo xtask status").to_owned());
    }
    finished.report = Some(place.dir.join("report.html").display().to_string());
    // `main` tells it to the user when all else is done; the journal has it now.
    session.out.record(&Event::Finished(finished.clone()));
    files::write_json(&place.dir.join("report.json"), &finished, Mode::Plain)?;
    report::write(&place.dir, &finished)?;
    Ok(finished)
}

/// Tries one release after the other.
fn try_targets(
    targets: &[Release],
    request: &Request,
    session: &Session,
    place: &Place,
    deadline: Deadline,
    measured: &mut Measured,
    finished: &mut Finished,
) -> Result<()> {
    let mut first_error = None;
    for release in targets {
        if let Err(error) = session.store.check_files(release) {
            session.out.note(format!("passing over release {}: {error:#}", release.id));
            first_error.get_or_insert(error);
            continue;
        }
        let mut goal = Goal {
            release,
            purpose: Purpose::Rollback,
            named: &request.scenarios,
            known: Vec::new(),
            place: Some(&place.dir),
        };
        let mut outcome = session.bring_to(&goal, deadline, measured);
        if outcome.as_ref().is_ok_and(|plan| plan.steps.is_empty()) {
            // Nothing differs, and yet somebody called for a rollback: look closer.
            let env = observe::release_env(&session.store, release)?;
            let ready = deadline.within(session.pilot.manifest.limits.ready);
            let smoke = verify(&Target::new(&session.pilot, &env)?, ready);
            session.out.event(&Event::Smoke { smoke: &smoke });
            let (passed, summary) = (smoke.passed, smoke.summary());
            measured.smoke = Some(smoke);
            if passed {
                finished.outcome = Some(Outcome::NothingToDo);
                finished.release = Some(release.id.clone());
                return Ok(());
            }
            let sick =
                |service: &str| Difference::Sick { service: service.to_owned(), reason: summary.clone() };
            goal.known = session.pilot.services().map(sick).collect();
            outcome = session.bring_to(&goal, deadline, measured);
        }
        match outcome {
            Ok(plan) => {
                finished.outcome = Some(Outcome::Restored);
                finished.release = Some(release.id.clone());
                finished.scenarios = plan.scenarios;
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

/// Where a rollback may go, best first. Only known-good releases; never a failed one.
fn targets(to: Option<&str>, session: &Session) -> Result<Vec<Release>> {
    let good = session.store.known_good()?;
    let current = session.store.current().unwrap_or_else(|error| {
        session.out.note(format!("cannot tell the running release: {error:#}"));
        None
    });
    let is_current = |r: &Release| current.as_ref().is_some_and(|c| c.id == r.id);
    let Some(to) = to else {
        let (mut first, rest): (Vec<_>, Vec<_>) = good.into_iter().partition(is_current);
        first.extend(rest);
        return if first.is_empty() { Err(no_release(session)) } else { Ok(first) };
    };
    let release = if to == "previous" {
        let previous = good.into_iter().find(|r| !is_current(r));
        previous.ok_or_else(|| {
            fail(Exit::NoRelease, "there is no other known-good release", "cargo xtask releases list")
        })?
    } else {
        match session.store.named(to) {
            Ok(release) => release,
            Err(unknown) => of_commit(to, session)?.ok_or(unknown)?,
        }
    };
    if release.state != State::KnownGood {
        let reason = release.reason.as_deref().unwrap_or("it was never verified");
        let what = format!("release {} is {}: {reason}", release.id, release.state.word());
        return Err(fail(Exit::Usage, what, "cargo xtask releases list"));
    }
    if let Err(error) = session.store.check_files(&release) {
        let other = session.store.known_good()?.into_iter().find(|r| r.id != release.id);
        let next = other.map(|r| format!("cargo xtask rollback --to {}", r.id));
        return Err(fail(Exit::NoRelease, format!("{error:#}"), next.unwrap_or("cargo xtask up".into())));
    }
    Ok(vec![release])
}

/// The newest known-good release that was made from this commit; an error when git does not know it.
fn of_commit(rev: &str, session: &Session) -> Result<Option<Release>> {
    let Some(commit) = tree::commit_of(&session.pilot, rev)? else { return Ok(None) };
    let good = session.store.known_good()?;
    match good.into_iter().find(|r| r.commit.as_deref() == Some(&commit)) {
        Some(release) => Ok(Some(release)),
        None => {
            let what = format!("no known-good release was made from commit {}", &commit[..12]);
            Err(fail(
                Exit::NoRelease,
                what,
                format!("cargo xtask up --from {rev}, which builds and verifies it"),
            ))
        }
    }
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

/// The newest rollback if it was cut off and asked for the same, else a new one.
fn place(session: &Session, request: &Request) -> Result<Place> {
    let folder = session.pilot.state.join("rollbacks");
    files::make_folder(&folder)?;
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut ids: Vec<String> =
        entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect();
    ids.sort_unstable();
    if let Some(id) = ids.pop() {
        let dir = folder.join(&id);
        let same = files::read_json::<Request>(&dir.join("request.json")).is_ok_and(|r| r == *request);
        if same && !dir.join("report.json").exists() {
            return Ok(Place { id, dir, resumed: true });
        }
    }
    let stamp = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    let id: String = stamp.chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect();
    let dir = folder.join(&id);
    files::write_json(&dir.join("request.json"), request, Mode::Plain)?;
    Ok(Place { id, dir, resumed: false })
}

fn show_plan(args: &Args, session: &Session, deadline: Deadline) -> Result<Finished> {
    let targets = targets(args.to.as_deref(), session)?;
    let release = targets.first().context("no release")?;
    let goal =
        Goal { release, purpose: Purpose::Rollback, named: &args.scenario, known: Vec::new(), place: None };
    let outlook = session.outlook(&goal, deadline)?;
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
