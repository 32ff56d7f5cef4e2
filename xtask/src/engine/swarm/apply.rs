//! Brings the services of a stack to a release: all at once, from the release's own specs. The old tasks are ended through
//! the engines of their nodes first: a Swarm waits two seconds before it stops a task that is in a network, and then for
//! the grace of that task. Called by `runtime`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::threads::{joined, side_by_side};
use crate::engine::compose::api::Api;
use crate::engine::compose::line::{Line, listed, status_of};
use crate::engine::swarm::change::{forced, remove, update};
use crate::engine::swarm::cluster::{AT_A_TIME, SAYS, Swarm};
use crate::engine::swarm::node::Node;
use crate::engine::swarm::placement::{constrain, pin};
use crate::engine::swarm::spec::{self, File, Plan, Source};
use crate::engine::swarm::state::{Seen, has_begun, id, keep_down, label, name_of};
use crate::engine::swarm::waiting::Past;
use crate::release::description::Image;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// A service is updated when the first of its old tasks has ended, and no later than this after they were killed. If the
/// managers hear of the end of one first, which takes 100 ms, they have it started anew, as it was, and wait two seconds for
/// the end of that. If a node hears of the update before the end of a task, which is 100 ms after the update or more
/// (swarmkit, `batchingWaitTime`), it waits two seconds before it takes the task for stopped.
const FIRST_ENDS: Duration = Duration::from_secs(1);

/// How long the engine of a node may take to end tasks. Those of a node that hangs are ended by the Swarm, if at all.
const ENDS: Duration = Duration::from_secs(10);

/// How a service has to change.
struct Change {
    /// Its spec by the release.
    spec: Value,
    /// As it was; none is a new one.
    now: Option<Value>,
    /// Are its tasks replaced in any case?
    is_forced: bool,
    /// Is it removed and made anew? An update waits up to a minute for the end of a task that is on a lost node (swarmkit,
    /// `defaultOldTaskTimeout`).
    is_anew: bool,
}

impl Swarm {
    /// What the files in `dir` are on a Swarm. `read` gives out a file of the stack.
    pub fn specs(
        &self,
        images: &BTreeMap<String, Image>,
        dir: &Path,
        services: &BTreeSet<String>,
        read: &dyn Fn(&str) -> Result<Vec<u8>>,
        deadline: Deadline,
    ) -> Result<Plan> {
        let dir = files::real_path(dir);
        let config = self.config_of(&dir, deadline)?;
        let ids = images.iter().map(|(service, image)| (service.clone(), image.id.clone())).collect();
        spec::plan(&Source {
            project: &self.pilot.project,
            config: &config,
            images: &ids,
            dir: &dir,
            read,
            services,
        })
    }

    /// What Compose makes of the files in `dir`. Those of a release do not change, so it is asked once; the folder of a user
    /// may change at any moment.
    fn config_of(&self, dir: &Path, deadline: Deadline) -> Result<Arc<Value>> {
        let known = || self.found.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let layout = &self.pilot.layout;
        if let Some((_, _, config)) = known().iter().find(|(at, by, _)| at == dir && by == layout) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.compose.config_of(dir, deadline)?);
        if dir.starts_with(files::real_path(&self.pilot.state.releases())) {
            known().push((dir.to_owned(), layout.clone(), Arc::clone(&config)));
        }
        Ok(config)
    }

    /// The same. It is an error (exit 2) if they cannot be carried over.
    pub fn plan(
        &self,
        images: &BTreeMap<String, Image>,
        dir: &Path,
        services: &BTreeSet<String>,
        deadline: Deadline,
    ) -> Result<Plan> {
        let read = |path: &str| Ok(std::fs::read(dir.join(path))?);
        let plan = self.specs(images, dir, services, &read, deadline)?;
        if plan.refusals.is_empty() {
            return Ok(plan);
        }
        let what = format!("this stack cannot run on a Swarm:\n  {}", plan.refusals.join("\n  "));
        Err(fail(Exit::Usage, what, "change these places; nothing was begun"))
    }

    /// Creates and updates services, and waits until the tasks of the new ones have begun. Those in `held_back` are made
    /// and not started. What was put on a node that is lost meanwhile is replaced once more, on the others.
    pub fn bring_to(
        &self,
        plan: &Plan,
        force: &[String],
        held_back: &[String],
        deadline: Deadline,
    ) -> Result<()> {
        let mut on_lost = self.bring_once(plan, force, &[], held_back, deadline)?;
        while !on_lost.is_empty() {
            on_lost = self.bring_once(plan, &[], &on_lost, held_back, deadline)?;
        }
        Ok(())
    }

    /// The same, until a node is lost. Returns the services that have tasks there. Those in `anew` are removed and made
    /// anew.
    fn bring_once(
        &self,
        plan: &Plan,
        force: &[String],
        anew: &[String],
        held_back: &[String],
        deadline: Deadline,
    ) -> Result<Vec<String>> {
        let before = self.see(deadline)?;
        let pins = self.pins_of(plan, &before, deadline)?;
        let ways = self.ways(&before.nodes, deadline);
        let lacking = self.lacking();
        // A node whose engine is not reached has neither the images nor a gate that was closed there.
        let is_barred = |node: &&Node| {
            let is_reached = matches!(ways.get(&node.id), Some(Ok(_))) && !self.is_lost(&node.id);
            !is_reached || lacking.contains_key(&node.id)
        };
        let barred: Vec<&Node> = before.nodes.iter().filter(is_barred).collect();
        let there = self.ask(deadline, |line| self.place(line, plan))?;
        let mut changes = BTreeMap::new();
        for (name, spec) in &plan.services {
            let mut spec = spec.clone();
            fill_in(&mut spec, &there);
            constrain(&mut spec, pins.get(name), &barred);
            if held_back.contains(name) {
                keep_down(&mut spec);
            }
            let now = before.services.iter().find(|one| name_of(one, &self.pilot.project) == Some(name));
            let (is_forced, is_anew) = (force.contains(name), anew.contains(name));
            if is_forced || is_anew || now.is_none_or(|now| differs(&spec, now)) {
                changes.insert(name.clone(), Change { spec, now: now.cloned(), is_forced, is_anew });
            }
        }
        let mut past = Past {
            replaced: BTreeSet::new(),
            all: before.tasks.iter().map(|task| id(task).to_owned()).collect(),
        };
        let gateway = self.pilot.gateway();
        let is_closed = changes.contains_key(gateway) && !held_back.iter().any(|held| held == gateway);
        let left = changes.iter().map(|(name, change)| (name.clone(), change.now.clone())).collect();
        std::thread::scope(|scope| {
            // A node where no task of the gateway ran may get one now. The other services need not wait for that.
            let mut closing = is_closed.then(|| scope.spawn(|| self.close_elsewhere(plan, deadline)));
            let may = |name: &str| {
                if name != gateway {
                    return Ok(true);
                }
                closing.take_if(|closing| closing.is_finished()).map_or(Ok(()), joined)?;
                Ok(closing.is_none())
            };
            let replace = |seen: &Seen, group: &[String]| {
                let group: Vec<(&String, &Change)> =
                    changes.iter().filter(|(name, _)| group.contains(name)).collect();
                // What a task of before shows says nothing of the release, also if it had the same settings.
                let services = group.iter().filter_map(|(_, change)| change.now.as_ref());
                let tasks: Vec<&Value> = services.flat_map(|now| seen.tasks_of(now)).collect();
                past.replaced.extend(tasks.iter().map(|task| id(task).to_owned()));
                self.replace(group, self.targets(seen, tasks.into_iter(), deadline), deadline)
            };
            self.in_groups(before, left, may, replace, deadline)
        })?;
        self.wait(plan, &past, deadline)
    }

    /// Ends the tasks of a group of services, and updates these.
    fn replace(
        &self,
        group: Vec<(&String, &Change)>,
        targets: Vec<(Api, Vec<&str>)>,
        deadline: Deadline,
    ) -> Result<()> {
        let (tell, ended) = channel();
        std::thread::scope(|scope| {
            let killing = scope.spawn(move || {
                self.end(targets, || tell.send(()).unwrap_or_default(), deadline);
                Ok(())
            });
            // It has ended, or there is none, or it takes long.
            ended.recv_timeout(FIRST_ENDS).ok();
            let put = side_by_side(AT_A_TIME, group, |(name, change)| self.put(name, change, deadline));
            joined(killing).and(put.into_iter().collect())
        })
    }

    /// Creates or updates a service.
    fn put(&self, name: &str, change: &Change, deadline: Deadline) -> Result<()> {
        let Change { spec, now, is_forced, is_anew } = change;
        if let Some(now) = now.as_ref().filter(|_| *is_anew) {
            self.ask(deadline, |line| remove(line, now))
                .with_context(|| format!("cannot make {name} anew"))?;
        }
        let put = self.ask(deadline, |line| match now.as_ref().filter(|_| !is_anew) {
            // Made by this command, if the answer of a manager that was lost is missing.
            None => match line.post("/services/create", spec) {
                Err(error) if status_of(&error) == Some(409) => Ok(()),
                made => made.map(drop),
            },
            Some(now) if *is_forced => update(line, now, &quick(forced(spec.clone(), now))),
            Some(now) => update(line, now, &quick(spec.clone())),
        });
        put.with_context(|| format!("cannot bring {name} to the release"))
    }

    /// Makes the networks, configs and secrets of a stack that are not there. Returns the ids by name.
    fn place(&self, line: &mut Line<'_>, plan: &Plan) -> Result<BTreeMap<String, String>> {
        let all = line.get("/networks")?;
        let named = |name: &str| all.as_array().into_iter().flatten().find(|one| one["Name"] == name);
        for network in &plan.networks {
            match named(&network.name) {
                None if network.external => {
                    let what = format!("the external network {} is not there", network.name);
                    let next =
                        format!("docker network create --driver overlay --attachable {}", network.name);
                    return Err(fail(Exit::Usage, what, Next::shell(next)));
                }
                None => drop(line.post("/networks/create", &network.spec)?),
                Some(there) => ensure!(
                    there["Scope"] == "swarm",
                    "the network {} is there, and is of one node alone; it needs another name",
                    network.name
                ),
            }
        }
        let mut ids = BTreeMap::new();
        for (kind, files) in [("configs", &plan.configs), ("secrets", &plan.secrets)] {
            let there = line.get(&format!("/{kind}"))?;
            for one in there.as_array().into_iter().flatten() {
                let name = one.pointer("/Spec/Name").and_then(Value::as_str).unwrap_or_default();
                ids.insert(format!("{kind}/{name}"), id(one).to_owned());
            }
            for File { name, labels, data } in files {
                let key = format!("{kind}/{name}");
                if let Entry::Vacant(entry) = ids.entry(key) {
                    let made = json!({ "Name": name, "Labels": labels, "Data": STANDARD.encode(data) });
                    entry.insert(id(&line.post(&format!("/{kind}/create"), &made)?).to_owned());
                }
            }
        }
        Ok(ids)
    }

    /// Ends tasks at once, through the engines of their nodes. One that cannot be reached is ended by the Swarm, which takes
    /// longer.
    pub fn kill<'a>(&self, seen: &Seen, tasks: impl Iterator<Item = &'a Value>, deadline: Deadline) {
        self.end(self.targets(seen, tasks, deadline), || (), deadline);
    }

    /// The containers of tasks, by the engines of their nodes. Each is connected, so that all can be ended at the same time.
    fn targets<'a>(
        &self,
        seen: &Seen,
        tasks: impl Iterator<Item = &'a Value>,
        deadline: Deadline,
    ) -> Vec<(Api, Vec<&'a str>)> {
        let mut by_node: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for task in tasks.filter(|task| has_begun(task)) {
            let container = task.pointer("/Status/ContainerStatus/ContainerID").and_then(Value::as_str);
            if let (Some(node), Some(container)) = (task["NodeID"].as_str(), container) {
                by_node.entry(node).or_default().push(container);
            }
        }
        let ways = self.ways(&seen.nodes, deadline);
        let all = by_node.into_iter().filter_map(|(node, containers)| {
            let ready = seen.nodes.iter().any(|one| one.id == node && one.is_ready);
            Some((self.api(ways.get(node).filter(|_| ready)?.as_ref().ok()?), containers))
        });
        let connect =
            |(api, containers): (Api, _)| api.ping(deadline.within(SAYS)).map(|()| (api, containers));
        side_by_side(AT_A_TIME, all.collect(), connect).into_iter().flatten().collect()
    }

    /// Ends containers, and notes those that have ended. `tell` is called for each.
    fn end(&self, targets: Vec<(Api, Vec<&str>)>, tell: impl Fn() + Sync, deadline: Deadline) {
        let deadline = deadline.within(ENDS);
        let killed = side_by_side(AT_A_TIME, targets, |(api, containers)| {
            // Docker answers when it has ended. One that ended before is an error for it.
            side_by_side(AT_A_TIME, containers.clone(), |container| {
                let ended = api.talk(deadline, |line| line.order(&format!("/containers/{container}/kill")));
                tell();
                ended
            });
            let live = api.get("/containers/json", deadline)?;
            let live = listed(&live)?;
            let is_live = |container: &str| live.iter().any(|one| one["Id"] == container);
            Ok(containers.into_iter().filter(|container| !is_live(container)).collect::<Vec<_>>())
        });
        let killed = killed.into_iter().flatten().flatten().map(str::to_owned);
        self.found.ended.lock().unwrap_or_else(PoisonError::into_inner).extend(killed);
    }
}

/// Puts the ids of configs and secrets where a spec names them.
fn fill_in(spec: &mut Value, ids: &BTreeMap<String, String>) {
    for (kind, list, name, key) in
        [("configs", "Configs", "ConfigName", "ConfigID"), ("secrets", "Secrets", "SecretName", "SecretID")]
    {
        let all = spec["TaskTemplate"]["ContainerSpec"].get_mut(list).and_then(Value::as_array_mut);
        for one in all.into_iter().flatten() {
            let named = one[name].as_str().unwrap_or_default();
            if let Some(id) = ids.get(&format!("{kind}/{named}")) {
                one[key] = id.as_str().into();
            }
        }
    }
}

/// Does a service that is there have to be changed?
fn differs(spec: &Value, now: &Value) -> bool {
    let kept = |spec: &Value| label(spec, super::state::KEPT).map(str::to_owned);
    let now = &now["Spec"];
    spec::digest(spec) != spec::digest(now)
        || pin(spec).is_some() != pin(now).is_some()
        || kept(spec) != kept(now)
}

/// The settings of an update that is quick: all tasks at once, watched by this tool and not by the Swarm. What the stack
/// itself says comes back when it is served again (`Images::retag`).
fn quick(mut spec: Value) -> Value {
    spec["UpdateConfig"] =
        json!({ "Parallelism": 0, "FailureAction": "continue", "Monitor": 1, "Order": "stop-first" });
    spec
}
