//! Stored data on the nodes of a Swarm. A volume is on one node, and a task that is put elsewhere would begin with an empty
//! one; so a service with one replica is kept on the node that has its data. A service with several has a volume on each
//! node: `NAME@NODE` is the copy of one of them.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::engine::compose::api::Way;
use crate::engine::compose::client::Compose;
use crate::engine::compose::data::unpause_at;
use crate::engine::roles::{Data, Runtime, User};
use crate::engine::swarm::cluster::Swarm;
use crate::engine::swarm::failure::classify;
use crate::engine::swarm::node::Node;
use crate::engine::swarm::placement::pin;
use crate::engine::swarm::spec::{Plan, SERVICE, STACK};
use crate::engine::swarm::state::{Seen, has_begun, name_of, replicas};
use crate::release::description::Release;
use crate::stack::model::Instance;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::Path;

/// Splits `NAME@NODE`.
fn parts(data: &str) -> (&str, Option<&str>) {
    match data.rsplit_once('@') {
        Some((name, node)) => (name, Some(node)),
        None => (data, None),
    }
}

/// A handle: the way to the node, and the id of the container there.
fn handle(engine: &Compose, container: &str) -> String {
    engine.way.options.iter().map(String::as_str).chain([container]).collect::<Vec<_>>().join(" ")
}

/// Containers by the options of docker that lead to their node.
fn by_way(handles: &[String]) -> BTreeMap<Vec<String>, Vec<String>> {
    let mut all: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
    for handle in handles {
        let mut words: Vec<String> = handle.split(' ').map(str::to_owned).collect();
        let Some(id) = words.pop() else { continue };
        all.entry(words).or_default().push(id);
    }
    all
}

/// Undoes a pause by its handles alone.
pub fn unpause(docker: &Path, handles: &[String], deadline: Deadline) -> Result<()> {
    let each = by_way(handles).into_iter().map(|(way, ids)| unpause_at(docker, &way, &ids, deadline));
    // Each node, also where another one does not answer.
    each.collect::<Vec<_>>().into_iter().collect()
}

impl Data for Swarm {
    fn stored(&self, deadline: Deadline) -> Result<BTreeSet<String>> {
        let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (node, volumes) in self.volumes(deadline)? {
            for volume in volumes {
                nodes.entry(volume).or_default().push(node.name.clone());
            }
        }
        let names: BTreeMap<String, String> =
            self.compose.data_volumes().into_iter().map(|(data, volume)| (volume, data)).collect();
        // What is on a node that is lost is not gone.
        let mut all: BTreeSet<String> = self.out_of_sight(&nodes)?;
        for (volume, nodes) in nodes {
            let name = names.get(&volume).unwrap_or(&volume);
            if nodes.len() > 1 {
                all.extend(nodes.iter().map(|node| format!("{name}@{node}")));
            }
            all.insert(name.clone());
        }
        Ok(all)
    }

    fn bytes(&self, data: &str, deadline: Deadline) -> Result<Option<u64>> {
        match self.place_of(data, deadline)? {
            Some((_, engine, _)) => engine.bytes(parts(data).0, deadline),
            None => Ok(None),
        }
    }

    fn users(&self, data: &str, deadline: Deadline) -> Result<Vec<User>> {
        let (name, only) = parts(data);
        let volume = self.compose.volume(name);
        let project = &self.pilot.project;
        let all = self.each(deadline, |node, engine| {
            if only.is_some_and(|only| only != node.name) {
                return Ok(Vec::new());
            }
            let users = engine.users_of(&volume, deadline, &|labels| {
                let text = |name: &str| labels.get(name)?.as_str().map(str::to_owned);
                let own = text(STACK)? == *project;
                own.then(|| text(SERVICE).unwrap_or_default())
            })?;
            let here = |user: User| User {
                handle: handle(engine, &user.handle),
                name: format!("{} on {}", user.name, node.name),
                ..user
            };
            Ok(users.into_iter().map(here).collect())
        })?;
        Ok(all.into_iter().flat_map(|(_, users)| users).collect())
    }

    fn pause(&self, handles: &[String], deadline: Deadline) -> Result<()> {
        by_way(handles)
            .into_iter()
            .try_for_each(|(way, ids)| self.compose.through(&Way::with(&way)).pause(&ids, deadline))
    }

    fn unpause(&self, handles: &[String], deadline: Deadline) -> Result<()> {
        unpause(&self.compose.docker, handles, deadline).map_err(classify)
    }

    fn snapshot(&self, data: &str, into: &mut dyn Write, deadline: Deadline) -> Result<()> {
        let found = self.place_of(data, deadline)?;
        let (node, engine, volume) =
            found.with_context(|| format!("no node that is reached has the data {data}"))?;
        engine.copy_out(&volume, into, deadline).with_context(|| format!("on {}", node.name))
    }

    fn restore(
        &self,
        _: &Release,
        _: &Path,
        data: &str,
        from: &mut dyn Read,
        deadline: Deadline,
    ) -> Result<()> {
        let (name, only) = parts(data);
        let volume = self.compose.volume(name);
        let nodes = self.reached(deadline)?;
        let fits = |(node, _): &&(Node, Compose)| match only {
            Some(only) => node.name == only,
            None => node.takes_tasks(),
        };
        let (node, engine) = nodes.iter().find(fits).with_context(|| match only {
            Some(only) => format!("{only}, which has the data {name}, is not reached"),
            None => "no node that takes tasks is reached".to_owned(),
        })?;
        let label = self.label();
        engine.docker(&["volume", "create", "--label", &label, &volume], deadline)?;
        self.forget_printed();
        engine.fill(&volume, from, deadline).with_context(|| format!("on {}", node.name))
    }

    fn dump(
        &self,
        instance: &Instance,
        words: &[String],
        into: &mut dyn Write,
        deadline: Deadline,
    ) -> Result<()> {
        let (engine, handle) = self.container(&instance.handle, deadline)?;
        engine.dump(&Instance { handle, ..instance.clone() }, words, into, deadline)
    }

    fn feed(
        &self,
        instance: &Instance,
        words: &[String],
        from: &mut dyn Read,
        deadline: Deadline,
    ) -> Result<()> {
        let (engine, handle) = self.container(&instance.handle, deadline)?;
        engine.feed(&Instance { handle, ..instance.clone() }, words, from, deadline)
    }

    fn external(&self, data: &str) -> Option<String> {
        self.compose.external(parts(data).0)
    }

    fn remove_data(&self, data: &str, deadline: Deadline) -> Result<()> {
        if let Some(volume) = self.external(data) {
            bail!("volume {volume} of {data} is external, so it is not removed");
        }
        let (name, only) = parts(data);
        let volume = self.compose.volume(name);
        self.remove(&self.compose.user_services(name), deadline)?;
        self.each(deadline, |node, engine| {
            if only.is_some_and(|only| only != node.name)
                || !engine.own_volumes(STACK, deadline)?.contains(&volume)
            {
                return Ok(());
            }
            self.remove_volume(engine, &volume, deadline)
        })?;
        Ok(())
    }
}

impl Swarm {
    /// Data of services that are kept on a node which has no volume that is seen.
    fn out_of_sight(&self, seen: &BTreeMap<String, Vec<String>>) -> Result<BTreeSet<String>> {
        let state = self.lately()?;
        let is_lost = |data: &&String, volume: &String| {
            let users = self.compose.user_services(data);
            !seen.contains_key(volume)
                && users
                    .iter()
                    .filter_map(|user| self.pinned_to(&state, user))
                    .any(|id| !state.nodes.iter().any(|node| node.id == id && node.is_ready))
        };
        let all = self.compose.data_volumes();
        Ok(all.iter().filter(|(data, volume)| is_lost(data, volume)).map(|(data, _)| data.clone()).collect())
    }

    /// The volumes of the stack on each node that is reached.
    pub fn volumes(&self, deadline: Deadline) -> Result<Vec<(Node, BTreeSet<String>)>> {
        self.each(deadline, |_, engine| engine.own_volumes(STACK, deadline))
    }

    /// Removes a volume and the containers of ended tasks that hold it.
    fn remove_volume(&self, engine: &Compose, volume: &str, deadline: Deadline) -> Result<()> {
        engine.remove_helpers(deadline)?;
        self.forget_printed();
        let (own, by) = (format!("label={}", self.label()), format!("volume={volume}"));
        let list = ["ps", "--all", "--quiet", "--filter", &own, "--filter", &by];
        let ended: Vec<String> = engine.docker(&list, deadline)?.lines().map(str::to_owned).collect();
        engine.each(&["rm", "--force"], &ended, deadline)?;
        engine.docker(&["volume", "rm", "--force", volume], deadline).map(drop)
    }

    /// Removes every volume that has the label of the stack.
    pub fn remove_volumes(&self, deadline: Deadline) -> Result<()> {
        self.each(deadline, |_, engine| {
            let own = format!("label={}", self.label());
            let found = engine.docker(&["volume", "ls", "--quiet", "--filter", &own], deadline)?;
            found.lines().try_for_each(|volume| self.remove_volume(engine, volume, deadline))
        })?;
        Ok(())
    }

    /// The node that has this data, its engine and the volume. Of several, the one where a task of the service runs.
    fn place_of(&self, data: &str, deadline: Deadline) -> Result<Option<(Node, Compose, String)>> {
        let (name, only) = parts(data);
        let volume = self.compose.volume(name);
        let mut with = self.volumes(deadline)?;
        with.retain(|(node, volumes)| volumes.contains(&volume) && only.is_none_or(|only| only == node.name));
        let seen = self.see(deadline)?;
        let services = self.own(&seen, &self.compose.user_services(name));
        let runs = |node: &Node| {
            let mut tasks = services.iter().flat_map(|service| seen.tasks_of(service));
            tasks.any(|task| has_begun(task) && task["NodeID"] == node.id.as_str())
        };
        with.sort_by_key(|(node, _)| !runs(node));
        let Some((node, _)) = with.into_iter().next() else { return Ok(None) };
        let engine = self.engine_of(&node, deadline)?;
        Ok(Some((node, engine, volume)))
    }

    /// The node that services with data are kept on, by its id: one with one replica, and several that share a volume. It
    /// is an error (exit 4) if that node is lost: the service would begin elsewhere with nothing.
    pub fn pins_of(&self, plan: &Plan, seen: &Seen, deadline: Deadline) -> Result<BTreeMap<String, String>> {
        let mut pins = BTreeMap::new();
        let groups = together(plan);
        if groups.is_empty() {
            return Ok(pins);
        }
        let there = self.volumes(deadline)?;
        let takes: Vec<&Node> =
            there.iter().map(|(node, _)| node).filter(|node| node.takes_tasks()).collect();
        ensure!(!takes.is_empty(), "no node that takes tasks is reached");
        for (services, volumes) in groups {
            let has =
                |(_, own): &&(Node, BTreeSet<String>)| volumes.iter().any(|volume| own.contains(*volume));
            let pinned = services.iter().find_map(|name| Some((name, self.pinned_to(seen, name)?)));
            if let Some((name, id)) = &pinned
                && !there.iter().any(|(node, _)| node.id == *id)
            {
                return Err(lost(seen, name, id, &volumes));
            }
            let by_data = there.iter().find(has).map(|(node, _)| node.id.clone());
            let first = || services.iter().next().map(|name| first_place(name, &takes));
            let node = pinned.map(|(_, id)| id).or(by_data).or_else(first);
            pins.extend(services.iter().filter_map(|name| Some(((*name).to_owned(), node.clone()?))));
        }
        Ok(pins)
    }

    /// The node that a service is kept on now.
    fn pinned_to(&self, seen: &Seen, name: &str) -> Option<String> {
        let service = seen.services.iter().find(|one| name_of(one, &self.pilot.project) == Some(name))?;
        pin(&service["Spec"]).map(str::to_owned)
    }
}

/// Services that must be on one node, with their volumes: a volume is on one node alone. A service with several replicas
/// that shares its volume with no other has one on each node instead.
fn together(plan: &Plan) -> Vec<(BTreeSet<&str>, BTreeSet<&str>)> {
    let mut groups: Vec<(BTreeSet<&str>, BTreeSet<&str>)> = Vec::new();
    for (name, spec) in &plan.services {
        let mut own: (BTreeSet<&str>, BTreeSet<&str>) = ([name.as_str()].into(), volumes_of(spec).collect());
        let (joined, apart): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|(_, volumes)| !volumes.is_disjoint(&own.1));
        for (services, volumes) in joined {
            own.0.extend(services);
            own.1.extend(volumes);
        }
        groups = apart;
        groups.push(own);
    }
    let alone = |service: &str| plan.services.get(service).is_some_and(|spec| replicas(spec) == Some(1));
    groups.retain(|(services, volumes)| {
        !volumes.is_empty() && (services.len() > 1 || services.iter().all(|service| alone(service)))
    });
    groups
}

/// Where a service with data begins: always the same node, and not the same one for all services.
fn first_place(service: &str, nodes: &[&Node]) -> String {
    let sum: usize = service.bytes().map(usize::from).sum();
    nodes[sum % nodes.len()].id.clone()
}

/// The named volumes that a spec mounts.
fn volumes_of(spec: &serde_json::Value) -> impl Iterator<Item = &str> {
    let mounts = spec.pointer("/TaskTemplate/ContainerSpec/Mounts").and_then(serde_json::Value::as_array);
    let volumes = mounts.into_iter().flatten().filter(|mount| mount["Type"] == "volume");
    volumes.filter_map(|mount| mount["Source"].as_str()).filter(|name| !name.is_empty())
}

fn lost(seen: &Seen, service: &str, id: &str, volumes: &BTreeSet<&str>) -> anyhow::Error {
    let node = seen.nodes.iter().find(|node| node.id == *id).map_or(id, |node| &node.name);
    let what = format!(
        "the data of {service} (volume {}) is on {node}, which is lost or not reached; elsewhere {service} would begin \
         with nothing",
        volumes.iter().copied().collect::<Vec<_>>().join(", ")
    );
    let next = Next::xtask("backup list").so(format!("to restore a backup elsewhere, or bring {node} back"));
    fail(Exit::Host, what, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn services_that_share_a_volume_or_have_one_replica_are_kept_on_a_node() {
        let spec = |replicas: u64, volumes: &[&str]| {
            let mounts: Vec<Value> = volumes
                .iter()
                .map(|name| json!({ "Type": "volume", "Source": name, "Target": "/x" }))
                .collect();
            json!({ "Mode": { "Replicated": { "Replicas": replicas } },
                    "TaskTemplate": { "ContainerSpec": { "Mounts": mounts } } })
        };
        let services = [
            ("api", spec(1, &["exports"])),
            ("cache", spec(2, &["warm"])),
            ("db", spec(1, &["rows"])),
            ("mail", spec(1, &[])),
            ("worker", spec(2, &["exports", "jobs"])),
            ("zip", spec(2, &["jobs"])),
        ];
        let services = services.map(|(name, spec)| (name.to_owned(), spec)).into();
        let plan = Plan { services, ..Plan::default() };
        let found: Vec<String> = together(&plan)
            .into_iter()
            .map(|(names, _)| names.into_iter().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(found, ["db", "api worker zip"]);
    }

    #[test]
    fn a_handle_has_the_way_to_its_node() {
        let handles = ["--context node1 a", "--context node1 b", "c"].map(str::to_owned);
        let found = by_way(&handles);
        assert_eq!(found[&Vec::<String>::new()], ["c"]);
        assert_eq!(found[&vec!["--context".to_owned(), "node1".to_owned()]], ["a", "b"]);
        assert_eq!((parts("db@node1"), parts("db")), (("db", Some("node1")), ("db", None)));
    }
}
