//! `up`: has a release made of the tree (or of existing images, or of another commit), starts it behind
//! the closed gate, verifies it, and promotes it to known-good or reports it failed.

use crate::backup;
use crate::candidate::Source;
use crate::deadline::Deadline;
use crate::deploy::{Goal, Session};
use crate::execute::Measured;
use crate::failure::{Exit, exit_of, fail, next_of};
use crate::files;
use crate::journal::{Event, Finished, Outcome};
use crate::plan::Purpose;
use crate::release::{Release, now_ms};
use crate::{candidate, engine, escalation, lock, rollback};
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
    let _lock = lock::take(&session.pilot.state, "up")?;
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
    session.out.event(&Event::Started {
        version: 1,
        command: "up",
        rollback: None,
        project: &pilot.project,
        engine: &session.engine.describe(Deadline::after(pilot.manifest.limits.engine)),
        at_ms: now_ms(),
        resumed: false,
    });
    let source = match (&args.tag, &args.from) {
        (Some(tag), _) => Source::Tag(tag),
        (None, Some(rev)) => Source::Commit(rev),
        (None, None) => Source::Tree,
    };
    let release = candidate::make(source, &pilot.env_path, session)?;
    session.out.say(format!("  release {} ({})", release.id, release.label));
    deploy(&release, args, session)
}

/// Starts a release and judges it.
fn deploy(release: &Release, args: &Args, session: &Session) -> Result<Finished> {
    let deadline = Deadline::from(Instant::now(), session.pilot.manifest.limits.budget);
    let mut measured = Measured::default();
    let mut goal = Goal::plain(release, Purpose::Deploy);
    let mut finished = Finished { release: Some(release.id.clone()), ..Finished::plain(Exit::Ok) };
    let mut outcome = session.bring_to(&goal, deadline, &mut measured);
    if outcome.as_ref().is_ok_and(|plan| plan.steps.is_empty()) {
        goal.known = session.look_closer(release, deadline, &mut measured)?;
        if goal.known.is_empty() {
            finished.outcome = Some(Outcome::NothingToDo);
        } else {
            outcome = session.bring_to(&goal, deadline, &mut measured);
        }
    }
    let Err(error) = outcome else {
        finished.restored_ms = measured.restored_ms;
        finished.smoke = measured.smoke.as_ref().map(serde_json::to_value).transpose()?;
        return Ok(finished);
    };
    session.store.mark_failed(&release.id, &format!("{error:#}"))?;
    if args.rollback_on_failure {
        session.out.note(format!("release {} failed; rolling back: {error:#}", release.id));
        let mut back = rollback::locked(&rollback::Request::default(), session, deadline)?;
        if back.exit_code == 0 {
            // Service is back, and still the release that was asked for does not run.
            back.exit_code = Exit::NotRestored as u8;
            back.error = Some(format!("release {} failed and was rolled back: {error:#}", release.id));
            back.next = Some(format!("cargo xtask releases show {}", release.id));
            back.escalation = Some(escalation::of(back.exit_code, &session.pilot.manifest));
        }
        return Ok(back);
    }
    finished.outcome = Some(Outcome::NotRestored);
    finished.exit_code = exit_of(&error) as u8;
    finished.error = Some(format!("release {} failed: {error:#}", release.id));
    finished.next = Some(match session.store.known_good()?.first() {
        Some(_) => "cargo xtask rollback".to_owned(),
        None => next_of(&error).unwrap_or("mend it and run cargo xtask up again").to_owned(),
    });
    Ok(finished)
}

/// A port that somebody else has is told before anything is built.
fn check_ports(session: &Session) -> Result<()> {
    let pilot = &session.pilot;
    let env = pilot.env()?;
    let stack = session.engine.observe(Deadline::after(pilot.manifest.limits.engine))?;
    let ours: Vec<u16> = stack.services.values().filter(|s| s.is_live()).filter_map(|s| s.port).collect();
    for service in pilot.services() {
        let port = pilot.port(service, &env)?;
        if ours.contains(&port) {
            continue;
        }
        if let Some(owner) = engine::owner_of(port) {
            let variable = pilot.manifest.services.iter().find(|s| s.name == service).map(|s| &s.port);
            let what = format!("port {port} of {service} is taken by {owner}");
            let variable = variable.map(String::as_str).unwrap_or_default();
            let next = format!("end that process, or change {variable} in {}", pilot.env_path.display());
            return Err(fail(Exit::Host, what, next));
        }
    }
    Ok(())
}
