//! `up`: has a release made of the tree (or of existing images, or of another commit), starts it behind
//! the closed gate, verifies it, and promotes it to known-good or reports it failed.

use crate::base::deadline::Deadline;
use crate::base::deadline::now_ms;
use crate::base::failure::{Exit, exit_of, fail, next_of};
use crate::base::files;
use crate::base::next::Next;
use crate::deploy::backup;
use crate::deploy::converge::Goal;
use crate::deploy::converge::Preview;
use crate::deploy::event::{Event, Finished, Outcome};
use crate::deploy::execution::Measured;
use crate::deploy::plan::Purpose;
use crate::deploy::run;
use crate::deploy::run::{Command, Request, Run};
use crate::deploy::session::Session;
use crate::operations::candidate::Source;
use crate::operations::{candidate, ending, rollback};
use crate::release::description::Release;
use crate::stack::escalation;
use crate::stack::ports;
use anyhow::Result;
use std::time::Instant;

/// `cargo xtask up`.
#[derive(clap::Args, Debug, Default)]
#[command(
    after_help = "Examples:\n  cargo xtask up\n  cargo xtask up --tag v1.1.0\n  cargo xtask up --from main~1 --rollback-on-failure"
)]
pub struct Args {
    /// Use existing images with this tag instead of building the tree
    #[arg(long, conflicts_with = "from")]
    pub tag: Option<String>,
    /// Build this commit (or label of known-good.toml) in a worktree of its own
    #[arg(long, value_name = "REV")]
    pub from: Option<String>,
    /// Make the env file anew from .env.poc.example; the old one is backed up
    #[arg(long)]
    pub defaults: bool,
    /// Go back to the last known-good release when this one fails its checks
    #[arg(long)]
    pub rollback_on_failure: bool,
}

/// From the command line.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let _lock = session.ledger().lock("up")?;
    let pilot = &session.pilot;
    if args.defaults && pilot.env_path.exists() {
        let what = backup::Contents { release: None, data: &[], logs: false };
        let limit = Deadline::after(pilot.manifest.limits.deploy);
        let kept = backup::keep(pilot, session.engine.as_ref(), what, limit)?;
        session.out.note(format!("the env file is made anew; what was there is in backup {}", kept.id));
        files::remove(&pilot.env_path)?;
    }
    candidate::ensure_env(pilot)?;
    check_ports(session)?;
    let engine = session.engine.describe(Deadline::after(pilot.manifest.limits.engine));
    session.out.event(&started(session, &engine, None));
    let source = match (&args.tag, &args.from) {
        (Some(tag), _) => Source::Tag(tag),
        (None, Some(rev)) => Source::Commit(rev),
        (None, None) => Source::Tree,
    };
    let release = candidate::make(source, &pilot.env_path, session)?;
    session.out.say(format!("  release {} ({})", release.id, release.label));
    session.admissible(&release).map_err(|error| {
        let what = format!("release {} cannot be deployed: {error:#}", release.id);
        fail(Exit::Usage, what, format!("fix {}; nothing was begun", pilot.env_path.display()))
    })?;
    let deadline = Deadline::from(Instant::now(), pilot.manifest.limits.budget);
    let mut goal = Goal::plain(&release, Purpose::Deploy);
    let preview = session.preview(&goal, deadline)?.in_time(deadline)?;
    if preview.plan.steps.is_empty() {
        // The release that was made is the one that runs: it is looked at, and left alone where it is well.
        let mut measured = Measured::default();
        goal.known = session.look_closer(&release, deadline, &mut measured)?;
        if goal.known.is_empty() {
            return nothing_changed(&release, &preview, &measured);
        }
    }
    deploy(goal, args, &engine, session, deadline)
}

fn started<'a>(session: &'a Session, engine: &'a str, run: Option<&'a Run>) -> Event<'a> {
    Event::Started {
        version: 1,
        command: Command::Up.as_str(),
        rollback: run.map(|run| run.id.as_str()),
        project: &session.pilot.project,
        engine,
        at_ms: now_ms(),
        resumed: run.is_some_and(Run::resumed),
    }
}

fn nothing_changed(release: &Release, preview: &Preview, measured: &Measured) -> Result<Finished> {
    let hold = preview.now.holds.held(&[]);
    let exit = if hold.is_some() { Exit::Held } else { Exit::Ok };
    Ok(Finished {
        outcome: Some(Outcome::NothingToDo),
        release: Some(release.id.clone()),
        smoke: measured.smoke.as_ref().map(serde_json::to_value).transpose()?,
        held: hold.is_some(),
        hold,
        ..Finished::plain(exit)
    })
}

/// Starts a release and judges it.
fn deploy(
    mut goal: Goal<'_>,
    args: &Args,
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
    session.out.record(&started(session, engine, Some(&run)));
    ending::tell_of_cut_off(session, &run);
    let mut measured = Measured { past: run.past.clone().unwrap_or_default(), ..Measured::default() };
    let ended = session.converge(&mut goal, &run, deadline, &mut measured);
    let nothing = ended.as_ref().is_ok_and(|plan| plan.steps.is_empty());
    let ended = ended.map(drop);
    let finished = Finished {
        outcome: Some(if nothing { Outcome::NothingToDo } else { Outcome::Deployed }),
        release: Some(release.id.clone()),
        ..Finished::plain(Exit::Ok)
    };
    let Err(error) = &ended else {
        return Ok(ending::conclude(session, &run, &ended, &measured, finished));
    };
    if let Err(error) = session.store.mark_failed(&release.id, &format!("{error:#}")) {
        session.out.note(format!("release {} is not recorded as failed: {error:#}", release.id));
    }
    let next = match session.store.known_good().ok().and_then(|good| good.into_iter().next()) {
        Some(_) => Next::xtask("rollback"),
        None => next_of(error).cloned().unwrap_or_else(|| Next::xtask("up").so("once it is fixed")),
    };
    let what = format!("release {} failed: {error:#}", release.id);
    let ended = Err(fail(exit_of(error), what, next));
    let failed = ending::conclude(session, &run, &ended, &measured, finished);
    if args.rollback_on_failure { go_back(failed, session, deadline) } else { Ok(failed) }
}

/// The release that served before serves again, and still the one that was asked for does not run.
fn go_back(failed: Finished, session: &Session, deadline: Deadline) -> Result<Finished> {
    let why = failed.error.clone().unwrap_or_default();
    session.out.note(format!("{why}; going back"));
    let mut back = rollback::locked(&Request::by(Command::Rollback), session, deadline)?;
    if !matches!(back.exit_code, 0 | 9) {
        back.error = Some(format!("{why}; and going back failed: {}", back.error.unwrap_or_default()));
        return Ok(back);
    }
    let serves = if back.held { "would serve again, but for a hold" } else { "serves again" };
    let (new, old) = (failed.release.unwrap_or_default(), back.release.clone().unwrap_or_default());
    back.outcome = Some(Outcome::RolledBack);
    back.exit_code = Exit::RolledBack as u8;
    back.error = Some(format!("{why}; release {old} {serves}"));
    let next = Next::xtask(&format!("releases show {new}"));
    back.escalation = Some(escalation::of(back.exit_code, &session.pilot.manifest));
    Ok(back.then(Some(&next), session.out.context()))
}

/// A port that somebody else has is told before anything is built.
fn check_ports(session: &Session) -> Result<()> {
    let pilot = &session.pilot;
    let env = pilot.env()?;
    let services = session.engine.services(Deadline::after(pilot.manifest.limits.engine))?;
    let ours: Vec<u16> = services.values().filter(|s| s.is_live()).filter_map(|s| s.port()).collect();
    for service in pilot.services() {
        let port = pilot.port(service, &env)?;
        if ours.contains(&port) {
            continue;
        }
        if let Some(owner) = ports::owner_of(port) {
            let variable = pilot.manifest.services.iter().find(|s| s.name == service).map(|s| &s.port);
            let what = format!("port {port} of {service} is taken by {owner}");
            let variable = variable.map(String::as_str).unwrap_or_default();
            let next = format!("end that process, or change {variable} in {}", pilot.env_path.display());
            return Err(fail(Exit::Host, what, next));
        }
    }
    Ok(())
}
