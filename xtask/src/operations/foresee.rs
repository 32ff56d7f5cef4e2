//! The goal of a rollback, and the plan that its first attempt would make. Changes nothing. Called by `rollback` and
//! `planned`.

use crate::base::deadline::Deadline;
use crate::deploy::converge::Preview;
use crate::deploy::difference::Scenario;
use crate::deploy::plan::{Data, Goal, Purpose};
use crate::deploy::run::Request;
use crate::deploy::session::Session;
use crate::operations::target::{self, Targets};
use crate::release::description::Release;
use anyhow::{Context, Result};

/// The goal of a request, with this release as its target.
pub fn goal<'a>(request: &'a Request, release: &'a Release, named: &'a [Scenario]) -> Goal<'a> {
    Goal { named, data: data(request), lift: &request.lift, ..Goal::plain(release, Purpose::Rollback) }
}

fn data(request: &Request) -> Data {
    match &request.backup {
        Some((dir, services)) => Data::From(dir.clone(), services.clone()),
        None if request.keep_data => Data::ThroughReset,
        None => Data::AsFound,
    }
}

/// What a request would lead to.
pub enum Foreseen {
    /// The plan of the first attempt, and its release.
    Plan(Box<(Preview, Release)>),
    /// The release is not built yet: of this commit.
    Commit(String),
}

/// Looks ahead; changes nothing.
pub fn foresee(request: &Request, session: &Session, deadline: Deadline) -> Result<Foreseen> {
    let releases = match target::admitted(target::targets(request, session)?, session)? {
        Targets::Releases(releases) => releases,
        Targets::Commit(rev) => return Ok(Foreseen::Commit(rev)),
    };
    let release = releases.into_iter().next().context("no release")?;
    let named = target::named(request, session)?;
    let preview = session.preview(&goal(request, &release, &named), deadline)?.in_time(deadline)?;
    Ok(Foreseen::Plan(Box::new((preview, release))))
}
