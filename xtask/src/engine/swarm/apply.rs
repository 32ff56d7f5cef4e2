//! Brings the services of a stack to a release: all at once, from the release's own specs. The old tasks are ended through
//! the engines of their nodes first: a Swarm waits two seconds before it stops a task that is in a network, and then for
//! the grace of that task. Called by `runtime`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::threads::{joined, side_by_side};
use crate::engine::compose::api::{Line, listed, status_of};
use crate::engine::swarm::change::{forced, update};
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm};
use crate::engine::swarm::node::Node;
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
use std::sync::{Arc, PoisonError};

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
    /// and not started.
    pub fn bring_to(
        &self,
        plan: &Plan,
        force: &[String],
        held_back: &[String],
        deadline: Deadline,
    ) -> Result<()> {
        let before = self.see(deadline)?;
        let pins = self.pins_of(plan, &before, deadline)?;
        let ways = self.ways(&before.nodes, deadline);
        let lacking = self.lacking();
        // A node whose engine is not reached has neither the images nor a gate that was closed there.
        let is_barred =
            |node: &&Node| !matches!(ways.get(&node.id), Some(Ok(_))) || lacking.contains_key(&node.id);
        let barred: Vec<&Node> = before.nodes.iter().filter(is_barred).collect();
        let there = self.ask(deadline, |line| self.place(line, plan))?;
        let mut specs = BTreeMap::new();
        for (name, spec) in &plan.services {
            let mut spec = spec.clone();
            fill_in(&mut spec, &there);
            constrain(&mut spec, pins.get(name), &barred);
            let now = before.services.iter().find(|one| name_of(one, &self.pilot.project) == Some(name));
            if held_back.contains(name) {
                keep_down(&mut spec);
            }
            specs.insert(name.clone(), (spec, now.cloned()));
        }
        specs.retain(|name, (spec, now)| match now {
            Some(now) if !force.contains(name) => differs(spec, now),
            _ => true,
        });
        // What a task of before shows says nothing of the release, also if it had the same settings.
        let replaced: Vec<&Value> =
            specs.values().filter_map(|(_, now)| now.as_ref()).flat_map(|now| before.tasks_of(now)).collect();
        let past = Past {
            replaced: replaced.iter().map(|task| id(task).to_owned()).collect(),
            all: before.tasks.iter().map(|task| id(task).to_owned()).collect(),
        };
        let ended = but_one_of_each_node(replaced.into_iter().filter(|task| has_begun(task)).collect());
        let put = |name: &String, spec: &Value, now: Option<&Value>| {
            let put = self.ask(deadline, |line| match now {
                // Made by this command, if the answer of a manager that was lost is missing.
                None => match line.post("/services/create", spec) {
                    Err(error) if status_of(&error) == Some(409) => Ok(()),
                    made => made.map(drop),
                },
                Some(now) if force.contains(name) => update(line, now, &quick(forced(spec.clone(), now))),
                Some(now) => update(line, now, &quick(spec.clone())),
            });
            put.with_context(|| format!("cannot bring {name} to the release"))
        };
        // The Swarm starts what is killed anew, as it was, until it is told otherwise.
        let bring = |group: Vec<(&String, &(Value, Option<Value>))>| -> Result<()> {
            let is_of = |task: &&&Value| {
                group
                    .iter()
                    .any(|(_, (_, now))| now.as_ref().is_some_and(|now| task["ServiceID"] == now["ID"]))
            };
            self.kill(&before, ended.iter().filter(is_of).copied(), deadline);
            let all = side_by_side(AT_A_TIME, group, |(name, (spec, now))| put(name, spec, now.as_ref()));
            all.into_iter().collect()
        };
        let gateway = self.pilot.gateway();
        let (gate, others) = specs.iter().partition::<Vec<_>, _>(|(name, _)| *name == gateway);
        // A node where no task of the gateway ran may get one now. The others need not wait for that.
        let last = || {
            if !gate.is_empty() && !held_back.iter().any(|held| held == gateway) {
                self.close_elsewhere(plan, deadline)?;
            }
            bring(gate)
        };
        std::thread::scope(|scope| {
            let last = scope.spawn(last);
            bring(others).and(joined(last))
        })?;
        self.wait(plan, &past, deadline)
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
            Some((ways.get(node).filter(|_| ready)?.as_ref().ok()?, containers))
        });
        let killed = side_by_side(AT_A_TIME, all.collect(), |(way, containers)| {
            let api = self.api(way);
            // Docker answers when it has ended. One that ended before is an error for it.
            side_by_side(AT_A_TIME, containers.clone(), |container| {
                api.talk(deadline, |line| line.order(&format!("/containers/{container}/kill")))
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

/// These tasks, but for the last one of each node that has several; it is ended when others have begun. With its last task a
/// node leaves the network of the stack, which takes seconds, and a task that joins it meanwhile is rejected.
fn but_one_of_each_node(tasks: Vec<&Value>) -> Vec<&Value> {
    let is_kept = |task: &Value| {
        let own: Vec<&&Value> = tasks.iter().filter(|one| one["NodeID"] == task["NodeID"]).collect();
        own.len() > 1 && own.last().is_some_and(|last| id(last) == id(task))
    };
    tasks.iter().copied().filter(|task| !is_kept(task)).collect()
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

/// Keeps the tasks of a service on the node that has its data, and off nodes that nothing is known of.
fn constrain(spec: &mut Value, pin: Option<&String>, barred: &[&Node]) {
    let own = match pin {
        Some(node) => vec![format!("node.id=={node}")],
        None => barred.iter().map(|node| format!("node.id!={}", node.id)).collect(),
    };
    if own.is_empty() {
        return;
    }
    let placement = &mut spec["TaskTemplate"]["Placement"];
    if placement.is_null() {
        *placement = json!({});
    }
    let mut all: Vec<Value> = placement["Constraints"].as_array().cloned().unwrap_or_default();
    all.extend(own.into_iter().map(Value::String));
    placement["Constraints"] = all.into();
}

/// Does a service that is there have to be changed?
fn differs(spec: &Value, now: &Value) -> bool {
    let pinned = |spec: &Value| {
        let all = spec.pointer("/TaskTemplate/Placement/Constraints").and_then(Value::as_array);
        all.into_iter().flatten().any(|one| one.as_str().is_some_and(|text| text.starts_with("node.id==")))
    };
    let kept = |spec: &Value| label(spec, super::state::KEPT).map(str::to_owned);
    let now = &now["Spec"];
    spec::digest(spec) != spec::digest(now) || pinned(spec) != pinned(now) || kept(spec) != kept(now)
}

/// The settings of an update that is quick: all tasks at once, watched by this tool and not by the Swarm. What the stack
/// itself says comes back when it is served again (`Images::retag`).
fn quick(mut spec: Value) -> Value {
    spec["UpdateConfig"] =
        json!({ "Parallelism": 0, "FailureAction": "continue", "Monitor": 1, "Order": "stop-first" });
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_one_of_several_tasks_for_a_moment() {
        let task = |id: &str, node: &str| json!({"ID": id, "NodeID": node});
        let all = [task("a", "n1"), task("b", "n2"), task("c", "n1"), task("d", "n1")];
        let ended = but_one_of_each_node(all.iter().collect());
        assert_eq!(ended.into_iter().map(id).collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
