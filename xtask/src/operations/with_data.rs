//! `rollback --with-data`: which snapshot fits a release, and when the tool says that one is needed. A snapshot is a
//! backup that `up` has made before it changed anything (`before_deploy`); it belongs to the release that was left.
//! Called by `rollback` and `up`.

use crate::base::ask;
use crate::base::deadline::for_bytes;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::next::Next;
use crate::deploy::backup::{self, Backup, Kept};
use crate::deploy::difference::Scenario;
use crate::deploy::past::Past;
use crate::deploy::run::{Command, Request};
use crate::deploy::session::Session;
use crate::operations::target::{self, Targets};
use crate::release::description::Release;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Error, Result};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// The newest snapshot that belongs to a release.
pub fn of_release(state: &StateDir, release: &str) -> Result<Option<Kept>> {
    let (all, _) = backup::list(state)?;
    let belongs = |kept: &Kept| kept.backup.snapshot && kept.backup.release.as_deref() == Some(release);
    Ok(all.into_iter().rev().find(belongs))
}

/// The command that goes to a release with its data.
fn command(release: &str) -> Next {
    Next::xtask(&format!("rollback --to {release} --with-data"))
}

/// The same request for one release and its snapshot, whose files are checked. Errors (exit 2): no snapshot fits.
pub fn chosen(request: Request, session: &Session) -> Result<Request> {
    let release = target_of(&request, session)?;
    let Some(kept) = of_release(&session.pilot.state, &release.id)? else {
        let what = format!(
            "release {} has no snapshot of its data: none was taken when it was left (`before_deploy` in pilot.toml)",
            release.id
        );
        let good = session.store.known_good()?;
        let other =
            good.iter().find(|r| of_release(&session.pilot.state, &r.id).is_ok_and(|found| found.is_some()));
        let next = other.map_or_else(|| Next::xtask("backup list"), |other| command(&other.id));
        return Err(fail(Exit::Usage, what, next));
    };
    kept.backup.check(&kept.dir).map_err(|error| {
        let what = format!("the snapshot of release {} cannot be restored: {error:#}", release.id);
        fail(Exit::Usage, what, Next::xtask("backup list").so("`backup restore` restores another one"))
    })?;
    Ok(Request { to: Some(release.id), ..with(request, session, &kept.dir, &kept.backup) })
}

fn target_of(request: &Request, session: &Session) -> Result<Release> {
    let found = match &request.to {
        None => target::default_target(session)?,
        Some(rev) => match target::targets(request, session)? {
            Targets::Releases(releases) => releases.into_iter().next(),
            Targets::Commit(_) => {
                let what = format!("no release was made from {rev}, so no snapshot of data belongs to it");
                return Err(fail(Exit::Usage, what, Next::xtask("releases list")));
            }
        },
    };
    found.ok_or_else(|| target::no_release(session))
}

/// External data is never removed, so it cannot be restored either.
fn with(request: Request, session: &Session, dir: &Path, backup: &Backup) -> Request {
    let (own, external): (Vec<String>, Vec<String>) =
        backup.data().into_iter().partition(|data| session.engine.external(data).is_none());
    if !external.is_empty() {
        session.out.note(format!("external data stays as it is: {}", external.join(", ")));
    }
    Request { backup: Some((dir.to_owned(), own)), with_data: true, ..request }
}

/// How long a run may take: what is there is copied, read back, and then replaced, and archives are smaller than what is
/// in them. So the limit grows with four times their size.
pub fn budget(limit: Duration, request: &Request) -> Result<Duration> {
    let Some((dir, data)) = &request.backup else { return Ok(limit) };
    let backup = Backup::read(dir)?.with_context(|| format!("{} has no backup", dir.display()))?;
    let sizes: Result<Vec<Option<u64>>> = data.iter().map(|name| backup.bytes(dir, name)).collect();
    Ok(for_bytes(limit, 4 * sizes?.into_iter().flatten().sum::<u64>()))
}

/// Which data is replaced, by what; none if the code alone goes back.
pub fn told(request: &Request) -> Result<Option<String>> {
    let Some((dir, data)) = request.backup.as_ref().filter(|_| request.with_data) else { return Ok(None) };
    let backup = Backup::read(dir)?.with_context(|| format!("{} has no backup", dir.display()))?;
    let made = UNIX_EPOCH + Duration::from_millis(backup.made_ms);
    Ok(Some(format!(
        "this replaces {} with what was there at {} ({}); what is there now is backed up first",
        data.join(", "),
        humantime::format_rfc3339_seconds(made),
        dir.display()
    )))
}

/// Asks whether the live data may be replaced. What is there is backed up first.
pub fn confirm(request: &Request, yes: bool) -> Result<()> {
    told(request)?.map_or(Ok(()), |what| ask::confirm(yes, &what))
}

/// The way back of a deployment that failed before its gate was ever open: to the release that it left, with the data
/// as that release left it. None if there is no snapshot, or if nothing was started.
pub fn after(past: &Past, session: &Session) -> Option<Request> {
    let dir = past.snapshot.as_ref().filter(|_| past.changed && !past.opening)?;
    let backup = Backup::read(dir).ok().flatten()?;
    let left = session.store.named(backup.release.as_deref()?).ok().filter(Release::is_known_good)?;
    let request = Request { to: Some(left.id), ..Request::by(Command::Rollback) };
    Some(with(request, session, dir, &backup))
}

/// The advice after a release that the public had seen went back to this one: its code alone, so what was written since
/// stays. None if no snapshot was taken when that one was left.
pub fn left_behind(past: &Past, release: &str, session: &Session) -> Option<String> {
    past.snapshot.as_ref().filter(|_| past.opening)?;
    let kept = of_release(&session.pilot.state, release).ok().flatten()?;
    Some(format!(
        "the data stays as the newer release left it; backup {} has it as {release} left it: {}",
        kept.id,
        session.out.xtask(&format!("rollback --to {release} --with-data"))
    ))
}

/// The error of a rollback of the code alone, with advice if one of the releases that were tried has a snapshot: it may
/// not be able to live with the newer data.
pub fn advised(error: Error, request: &Request, tried: &[Release], session: &Session) -> Error {
    // After a reset, no data is newer.
    let is_reset = request.scenarios.contains(&Scenario::Reset);
    if request.backup.is_some() || is_reset || exit_of(&error) != Exit::NotRestored {
        return error;
    }
    let snapshot = |release: &Release| of_release(&session.pilot.state, &release.id).ok().flatten();
    let Some((release, kept)) = tried.iter().find_map(|r| Some((r, snapshot(r)?))) else { return error };
    let what = format!(
        "{error:#}; release {} may not be able to live with data that is newer than it; backup {} has the data as it \
         left it",
        release.id, kept.id
    );
    fail(Exit::NotRestored, what, command(&release.id).so("what was written since is backed up first"))
}
