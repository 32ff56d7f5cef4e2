//! Is a service healthy? It is asked as the manifest says; without `[health]` the engine is. Called by `smoke`, `run`
//! and `deploy/observe`.

use crate::base::deadline::Deadline;
use crate::base::http::Client;
use crate::base::screen;
use crate::base::threads::joined;
use crate::checks::ask::send;
use crate::checks::target::{REQUEST, Target};
use crate::stack::call::{Line, filled_path};
use crate::stack::manifest::HealthRule;
use crate::stack::model::{Health, Instance, Service};
use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// How long to wait before a service is asked again, and before the engine is.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_OF_ENGINE: Duration = Duration::from_millis(200);

/// A service cannot use its stored data. Neither waiting nor another version fixes this.
#[derive(Debug)]
pub struct StoreCorrupt {
    /// Which service.
    pub service: String,
    /// Why, as it says.
    pub reason: String,
}

impl fmt::Display for StoreCorrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for StoreCorrupt {}

/// Asks a service for its health once. Whole values are compared, because `unhealthy` contains `healthy`.
pub fn health(client: &Client, rule: &HealthRule) -> Health {
    let path = filled_path(&rule.request.path, &[("PROJECT", client.project())]);
    let asked = path.and_then(|path| send(client, &Line { path, ..rule.request.clone() }, None));
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => return Health::Silent(format!("{error:#}")),
    };
    let body = answer.json();
    let text = |pointer: &Option<String>| body.pointer(pointer.as_deref()?).and_then(Value::as_str);
    if let Some(other) = text(&rule.project).filter(|project| *project != client.project()) {
        return Health::Silent(format!("project {other} answers there"));
    }
    let is = |(pointer, wanted): (&String, &Vec<Value>)| {
        body.pointer(pointer).is_some_and(|found| wanted.contains(found))
    };
    if answer.status == 200 && rule.healthy.iter().all(is) {
        return Health::Healthy { version: text(&rule.version).unwrap_or("?").to_owned() };
    }
    match text(&rule.reason) {
        Some(reason) if rule.corrupt.as_ref().is_some_and(|corrupt| reason.starts_with(corrupt)) => {
            Health::StoreCorrupt(reason.to_owned())
        }
        Some(reason) => Health::Unhealthy(reason.to_owned()),
        None => Health::Unhealthy(format!("{}: {}", rule.request, answer.brief())),
    }
}

/// Waits until every service is healthy, and checks that all have one version, where the manifest wants that. The error
/// says which one is not healthy, and why.
pub fn wait_healthy(target: &Target<'_>, ready: Deadline) -> Result<String> {
    // Nothing is well that is not known.
    ensure!(target.pilot.services().next().is_some(), "it is not known which services the stack has");
    wait_behind(target, &BTreeSet::new(), ready)
}

/// The same for all services but those that the gate has stopped.
pub fn wait_behind(target: &Target<'_>, stopped: &BTreeSet<String>, ready: Deadline) -> Result<String> {
    let Some(rule) = &target.pilot.manifest.health else { return wait_for_engine(target, stopped, ready) };
    let waits: Vec<Result<Vec<String>>> = std::thread::scope(|scope| {
        let own = target.reachable(None).filter(|name| !stopped.contains(*name));
        let jobs: Vec<_> = own.map(|name| scope.spawn(move || wait_for(name, target, rule, ready))).collect();
        jobs.into_iter().map(joined).collect()
    });
    // What waiting does not fix comes before what may only be late.
    let is_corrupt = |wait: &Result<_>| wait.as_ref().is_err_and(is_store_corrupt);
    let (corrupt, others): (Vec<_>, Vec<_>) = waits.into_iter().partition(is_corrupt);
    let versions = corrupt.into_iter().chain(others).collect::<Result<Vec<_>>>()?;
    let (services, mut versions) = (versions.len(), versions.concat());
    let said = match versions.len() {
        all if all == services => format!("{services} services"),
        all => format!("{all} instances of {services} services"),
    };
    versions.sort();
    versions.dedup();
    if !rule.same_version || services == 0 {
        return Ok(said);
    }
    ensure!(versions.len() <= 1, "the services have different versions: {}", versions.join(", "));
    Ok(format!("{said}, version {}", versions.first().context("no service was asked")?))
}

/// Waits until each instance of a service is healthy that runs. Returns their versions.
fn wait_for(name: &str, target: &Target<'_>, rule: &HealthRule, ready: Deadline) -> Result<Vec<String>> {
    let well = |client: &Client| match health(client, rule) {
        Health::Healthy { version } => Ok(version),
        Health::StoreCorrupt(reason) => Err(StoreCorrupt { service: name.to_owned(), reason }.into()),
        Health::Unhealthy(reason) | Health::Silent(reason) => Err(anyhow!(reason)),
    };
    let healthy = ready.poll(PAUSE, || match target.each(name, REQUEST, well) {
        Ok(versions) => Break(Ok(versions)),
        // Waiting does not fix a corrupt store.
        Err(error) if is_store_corrupt(&error) => Break(Err(error)),
        Err(error) => {
            screen::detail(format!("waits for {error:#}"));
            Continue(error)
        }
    });
    healthy.flatten()
}

fn is_store_corrupt(error: &Error) -> bool {
    error.is::<StoreCorrupt>()
}

fn wait_for_engine(target: &Target<'_>, stopped: &BTreeSet<String>, ready: Deadline) -> Result<String> {
    let own: Vec<&str> = target.pilot.services().filter(|name| !stopped.contains(*name)).collect();
    wait_for_its_word(target, &own, PAUSE_OF_ENGINE, ready)?;
    Ok(format!("{} services run, by the engine's word", own.len()))
}

/// Waits until these services are healthy by the engine's word. The error is what it said last.
pub fn wait_for_its_word(target: &Target<'_>, own: &[&str], pause: Duration, ready: Deadline) -> Result<()> {
    let mut last = Ok(());
    let well = ready.poll(pause, || match engine_says(target, own, ready) {
        Ok(()) => Break(()),
        Err(error) => {
            screen::detail(format!("waits: {error:#}"));
            // A question that the end of the wait cut short is no sign of an engine that does not answer.
            if last.is_ok() || !ready.passed() {
                last = Err(error);
            }
            Continue(())
        }
    });
    well.or(last)
}

/// Are these services healthy by the engine's word? One without a health check must run. The engine is asked once, because
/// that costs more than anything else of the wait.
fn engine_says(target: &Target<'_>, own: &[&str], deadline: Deadline) -> Result<()> {
    let limit = deadline.within(target.pilot.manifest.limits.engine);
    let services = target.runtime.services(limit)?;
    own.iter().try_for_each(|name| {
        let seen = services.get(*name).filter(|seen| !seen.0.is_empty());
        is_well(name, seen.with_context(|| format!("{name} has no container"))?)
    })
}

/// Does a service run, and is it healthy as far as its instances were asked? The error says why not.
pub fn is_well(name: &str, seen: &Service) -> Result<()> {
    ensure!(seen.is_running(), "{name} is {}", seen.state());
    let bad = |instance: &Instance| match &instance.health {
        Some(Health::Unhealthy(why) | Health::Silent(why) | Health::StoreCorrupt(why)) => Some(why.clone()),
        Some(Health::Healthy { .. }) | None => None,
    };
    match seen.0.iter().find_map(bad) {
        Some(why) => bail!("{name}: {why}"),
        None => Ok(()),
    }
}
