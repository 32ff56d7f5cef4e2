//! Looks at what runs, once: the health of every service and how often it was restarted, and the checks that the manifest
//! wants to be watched. Only reads, but for what a check sends. Called by `keep` and by `guard`.

use crate::base::deadline::Deadline;
use crate::base::observed::Observed;
use crate::checks::health::is_well;
use crate::checks::smoke;
use crate::deploy::observe::ask_health;
use crate::deploy::view::View;
use crate::deploy::watch::{Ill, Look, Seen};
use crate::stack::hold;
use crate::stack::manifest::WatchRule;
use crate::stack::model::{Instance, Service};
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Duration;

/// Does a person hold the gate closed? What cannot be read counts as a hold.
pub fn is_held(view: &View) -> bool {
    hold::standing(view.ledger()).map_or(true, |holds| !holds.is_empty())
}

/// What there is to see at this moment. Under a hold only health is watched, behind the gate.
pub fn look(view: &View, rule: &WatchRule, at: Duration) -> Look {
    let held = is_held(view);
    let services = Observed::from(services(view, held));
    let well = |services: &BTreeMap<String, Seen>| services.values().all(|seen| seen.ill.is_none());
    let checks = match &services {
        Observed::Known(seen) if well(seen) && !held => checks(view, rule),
        _ => BTreeMap::new(),
    };
    Look { at, services, checks }
}

fn services(view: &View, held: bool) -> Result<BTreeMap<String, Seen>> {
    let mut found = view.engine.services(Deadline::after(view.pilot.manifest.limits.engine))?;
    ask_health(&view.pilot, view.engine.as_ref(), &mut found);
    let stopped = if held { view.cover()?.stopped() } else { Vec::new() };
    let watched = view.pilot.services().filter(|name| stopped.iter().all(|down| down != name));
    Ok(watched.map(|name| (name.to_owned(), seen(name, found.get(name)))).collect())
}

fn seen(name: &str, service: Option<&Service>) -> Seen {
    let Some(service) = service.filter(|service| !service.0.is_empty()) else {
        let why = format!("{name} is not there any more");
        return Seen { ill: Some(Ill { why, is_gone: true }), ..Seen::default() };
    };
    let is_gone = !service.0.iter().all(Instance::is_live);
    let ill = is_well(name, service).err().map(|error| Ill { why: format!("{error:#}"), is_gone });
    let handles = service.0.iter().map(|instance| instance.handle.clone()).collect();
    Seen { handles, restarts: service.restarts(), ill }
}

/// A check that cannot be made has failed.
fn checks(view: &View, rule: &WatchRule) -> BTreeMap<String, Option<String>> {
    if rule.checks.is_empty() {
        return BTreeMap::new();
    }
    match view.target() {
        Ok(target) => {
            let made = smoke::named(&target, &rule.checks).into_iter();
            made.map(|check| (check.name, (!check.ok).then_some(check.detail))).collect()
        }
        Err(error) => rule.checks.iter().map(|name| (name.clone(), Some(format!("{error:#}")))).collect(),
    }
}
