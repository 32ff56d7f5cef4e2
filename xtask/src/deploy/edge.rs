//! Which checks run, and when, where the gate stops the services that let the public in: behind the closed gate,
//! what can be checked without them; right after their start, everything. With another kind of gate, everything
//! is checked behind it. Called by `steps`, `converge`, `operations` and `kill-switch off`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::output::Output;
use crate::checks::ask::send;
use crate::checks::health::wait_healthy;
use crate::checks::smoke::{self, Smoke};
use crate::deploy::event::Event;
use crate::deploy::view::View;
use crate::release::store::Store;
use crate::stack::pilot::Pilot;
use anyhow::{Result, ensure};

/// Runs the checks of a stack. If its gate is closed and stops services, those behind it.
pub fn verify(view: &View, closed: bool, ready: Deadline) -> Result<Smoke> {
    let (target, cover) = (view.target()?, view.cover()?);
    Ok(if closed && cover.stops() {
        smoke::verify_behind(&target, &cover.services, ready)
    } else {
        smoke::verify(&target, ready)
    })
}

/// Loads the demo scenario of a release, if the stack has one. This changes nothing unless the store is new.
pub fn seed(view: &View, store: &Store, release: &str) -> Result<()> {
    let Pilot { manifest, layout, .. } = &view.pilot;
    let Some((rule, file)) = manifest.seed.as_ref().zip(layout.seed.as_ref()) else { return Ok(()) };
    let seed = files::read_json(&store.file(release, file))?;
    let request = &rule.request;
    // Each instance has data of its own.
    for client in view.each_of(request.service.as_deref(), manifest.limits.ready)? {
        let answer = send(&client, request, Some(&seed))?;
        ensure!(answer.status == 200, "{request} answered {}", answer.brief());
    }
    Ok(())
}

/// Checks everything after the gate has started its services. The error says what failed.
pub fn check_started(view: &View, store: &Store, out: &Output, deadline: Deadline) -> Result<Smoke> {
    let ready = deadline.within(view.pilot.manifest.limits.ready);
    let target = view.target()?;
    wait_healthy(&target, ready)?;
    if let Some(release) = &view.release {
        seed(view, store, &release.id)?;
    }
    let smoke = smoke::verify(&target, ready);
    out.event(&Event::Smoke { smoke: &smoke });
    if !smoke.passed {
        let what = format!("after the start, a check failed: {}", smoke.summary());
        return Err(fail(Exit::NotRestored, what, Next::xtask("status")));
    }
    Ok(smoke)
}
