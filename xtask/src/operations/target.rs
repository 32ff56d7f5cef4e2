//! The target releases of a rollback: what `--to` means, in which order releases are tried, and which are
//! skipped. Everything that can be refused is refused here, before the first step; nothing is changed. Called
//! by `rollback` and `look`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::{Context as Whose, Next};
use crate::deploy::difference::Scenario;
use crate::deploy::run::{Command, Request, Run};
use crate::deploy::session::Session;
use crate::release::description::{Release, State};
use crate::release::source;
use anyhow::Result;
use std::path::Path;

/// The targets of a run.
pub enum Targets {
    /// Releases, best first.
    Releases(Vec<Release>),
    /// A commit that has no release yet, as the user wrote it.
    Commit(String),
}

/// The possible targets. Only known-good releases, never a failed one. Exceptions: a commit may have no
/// release yet, and the release of a backup was just made.
pub fn targets(request: &Request, session: &Session) -> Result<Targets> {
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
            (Err(unknown), commit) => {
                let of_commit = |r: &&Release| matches!(&commit, Ok(Some(commit)) if r.is_of(commit));
                // A version, such as v1.0.0: of several releases, the one that was verified last.
                let found = good.iter().find(of_commit).or_else(|| good.iter().find(|r| r.label == *to));
                match (found, commit) {
                    (Some(release), _) => release.clone(),
                    (None, Ok(Some(_))) => return Ok(Targets::Commit(to.clone())),
                    (None, Ok(None)) => return Err(unknown),
                    (None, Err(error)) => return Err(error),
                }
            }
        }
    };
    if release.state != State::KnownGood && request.command != Command::Restore {
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

/// The error of a stack that has no release to go to. It says where there may be one.
pub fn no_release(session: &Session) -> anyhow::Error {
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

/// The targets of the run that is continued: `previous` may mean another release by now. If none of them is
/// whole any more, the targets that a new run would have. If the user named none, these follow: another client may have
/// deployed since, and the images of the older ones may be only with that client.
pub fn as_begun(targets: Targets, run: &Run, session: &Session) -> Targets {
    let meant = run.past.as_ref().map(|past| past.targets.as_slice()).unwrap_or_default();
    let all = session.store.list().map(|(all, _)| all).unwrap_or_default();
    let mut releases: Vec<Release> =
        meant.iter().filter_map(|id| all.iter().find(|release| release.id == *id)).cloned().collect();
    if releases.is_empty() {
        return targets;
    }
    if let (Targets::Releases(newer), None) = (&targets, &run.request.to) {
        releases.extend(newer.iter().filter(|release| !meant.contains(&release.id)).cloned());
    }
    admitted(Targets::Releases(releases), session).unwrap_or(targets)
}

/// Skips releases that are not whole, up to the first one that is.
pub fn admitted(targets: Targets, session: &Session) -> Result<Targets> {
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

/// The scenarios that the user named, and `commit` if the target is one.
pub fn named(request: &Request, session: &Session) -> Result<Vec<Scenario>> {
    let mut named = request.scenarios.clone();
    if let Some(to) = &request.to
        && to != "previous"
        && session.store.list()?.0.iter().all(|release| release.id != *to && release.label != *to)
    {
        named.push(Scenario::Commit);
    }
    Ok(named)
}
