//! Do the nodes of a Swarm know the same tasks? A service is found by its name, and each node learns from the others which
//! tasks that name stands for. For a moment after a change it may stand for one that has ended, where a request hangs, or
//! lack one that runs. Called by `runtime`.

use crate::base::deadline::Deadline;
use crate::base::threads::side_by_side;
use crate::engine::compose::line::status_of;
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm};
use crate::engine::swarm::state::{Seen, has_begun, id, is_wanted, name_of};
use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::ControlFlow::{Break, Continue};
use std::time::{Duration, Instant};

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// How long it may take. Now and then a node misses what another one tells it; every 30 seconds they tell each other
/// everything (libnetwork, `bulkSync`).
const AGREED: Duration = Duration::from_secs(75);

/// How long a node may take to hear of a task if it knows another one of the same service: requests go to that one.
const HEARD: Duration = Duration::from_secs(3);

/// What is not agreed on yet.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    why: String,
    /// Requests are answered all the same.
    is_harmless: bool,
}

impl Swarm {
    /// Waits until every task that is wanted has begun and is let in by the Swarm, and every node with tasks of the stack
    /// knows by name those that run, and no other. Returns what is missing and does no harm.
    pub fn wait_until_agreed(&self, deadline: Deadline) -> Result<Option<String>> {
        let begun = Instant::now();
        let agreed = deadline.within(AGREED).poll(PAUSE, || {
            match self.see(deadline).and_then(|seen| self.difference(&seen, deadline)) {
                Ok(None) => Break(Ok(None)),
                Ok(Some(found)) if found.is_harmless && begun.elapsed() > HEARD => Break(Ok(Some(found.why))),
                Ok(Some(found)) => Continue(anyhow!(found.why)),
                Err(error) => Break(Err(error)),
            }
        });
        agreed.flatten()
    }

    fn difference(&self, seen: &Seen, deadline: Deadline) -> Result<Option<Difference>> {
        if let Some(task) =
            seen.tasks.iter().find(|task| is_wanted(task) && !(has_begun(task) && is_let_in(task)))
        {
            let service = seen.services.iter().find(|one| id(one) == task["ServiceID"]);
            let name = service.and_then(|one| name_of(one, &self.pilot.project)).unwrap_or("a service");
            let state = task["Status"]["State"].as_str().unwrap_or("not known");
            let why = format!("the Swarm has not let in a task of {name} yet, which is {state}");
            return Ok(Some(Difference { why, is_harmless: false }));
        }
        let ways = self.ways(&seen.nodes, deadline);
        let views = places(seen).into_iter().filter_map(|(node, network)| {
            let way = ways.get(node)?.as_ref().ok()?;
            Some((node, network, way))
        });
        let told = side_by_side(AT_A_TIME, views.collect(), |(node, network, way)| {
            let name = seen.nodes.iter().find(|one| one.id == node).map_or("?", |one| &one.name);
            let view = match self.api(way).get(&format!("/networks/{network}?verbose=true"), deadline) {
                // A node leaves a network with its last task there.
                Err(error) if status_of(&error) == Some(404) => Ok(Value::Null),
                other => other,
            };
            Ok(differs(seen, network, &view.with_context(|| format!("on {name}"))?, name))
        });
        Ok(worst(told.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten()))
    }
}

/// What does harm comes first.
fn worst(all: impl Iterator<Item = Difference>) -> Option<Difference> {
    all.min_by_key(|one| one.is_harmless)
}

/// Does the Swarm let requests in to a task? It does when its health check has passed.
fn is_let_in(task: &Value) -> bool {
    task["Status"]["State"] == "running"
}

/// The networks that a task has over several nodes.
fn networks(task: &Value) -> impl Iterator<Item = &str> {
    let all = task["NetworksAttachments"].as_array().into_iter().flatten().map(|one| &one["Network"]);
    all.filter(|network| network["DriverState"]["Name"] == "overlay" && network["Spec"]["Ingress"] != true)
        .map(id)
}

/// The nodes with tasks that run, each with the networks of these.
fn places(seen: &Seen) -> BTreeSet<(&str, &str)> {
    let live = seen.tasks.iter().filter(|task| has_begun(task) && seen.is_on_ready_node(task));
    let of =
        |task| networks(task).filter_map(move |network| Some((Value::as_str(&task["NodeID"])?, network)));
    live.flat_map(of).collect()
}

/// Does a node know the tasks of the stack in a network? `view` is its `GET /networks/ID?verbose=true`: for each service
/// the tasks, called `SERVICE.SLOT.ID`.
fn differs(seen: &Seen, network: &str, view: &Value, node: &str) -> Option<Difference> {
    let of_service = |service: &Value| {
        let name = service.pointer("/Spec/Name").and_then(Value::as_str).unwrap_or_default();
        let known = view["Services"][name]["Tasks"].as_array().into_iter().flatten();
        let known: BTreeSet<&str> =
            known.filter_map(|task| task["Name"].as_str()?.rsplit('.').next()).collect();
        // What is on a lost node does not answer, whatever the managers say of it.
        let runs = |task: &&Value| has_begun(task) && seen.is_on_ready_node(task);
        let live: Vec<&Value> = seen.tasks_of(service).filter(runs).collect();
        let named = live.iter().filter(|task| is_let_in(task) && networks(task).any(|own| own == network));
        let named: Vec<&str> = named.map(|task| id(task)).collect();
        // A name that stands for a task that has ended makes requests hang.
        if known.iter().any(|task| !live.iter().any(|one| id(one) == *task)) {
            let why = format!("{node} still knows a task of {name} that has ended");
            return Some(Difference { why, is_harmless: false });
        }
        let has_all = named.iter().all(|task| known.contains(task));
        let why = format!("{node} does not know all tasks of {name} by name yet");
        (!has_all).then_some(Difference { why, is_harmless: !known.is_empty() })
    };
    worst(seen.services.iter().filter_map(of_service))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::swarm::node::Node;
    use crate::engine::swarm::node::tests::node;
    use serde_json::json;

    fn task(name: &str, state: &str) -> Value {
        json!({"ID": name, "ServiceID": "s", "NodeID": "n1", "DesiredState": "running",
               "Status": {"State": state, "ContainerStatus": {"PID": 7}},
               "NetworksAttachments": [{"Network": {"ID": "net", "DriverState": {"Name": "overlay"}, "Spec": {}}}]})
    }

    fn told(tasks: &[Value], known: &[&str]) -> Option<(String, bool)> {
        let seen = Seen {
            services: vec![json!({"ID": "s", "Spec": {"Name": "shop_web"}})],
            tasks: tasks.to_vec(),
            nodes: vec![node("n1"), Node { is_ready: false, ..node("lost") }],
        };
        let known: Vec<Value> = known.iter().map(|id| json!({"Name": format!("shop_web.1.{id}")})).collect();
        // Another stack may be in the same network.
        let view =
            json!({"Services": {"shop_web": {"Tasks": known}, "other": {"Tasks": [{"Name": "other.1.x"}]}}});
        differs(&seen, "net", &view, "node1").map(|found| (found.why, found.is_harmless))
    }

    #[test]
    fn a_name_stands_for_the_tasks_that_run_and_for_no_other() {
        let tasks = [task("a", "running"), task("b", "running"), task("c", "failed")];
        assert_eq!(told(&tasks, &["a", "b"]), None);
        let unheard = || "node1 does not know all tasks of shop_web by name yet".to_owned();
        let ended = || "node1 still knows a task of shop_web that has ended".to_owned();
        // Requests go to the other one.
        assert_eq!(told(&tasks, &["a"]), Some((unheard(), true)));
        assert_eq!(told(&tasks, &[]), Some((unheard(), false)));
        for known in [["a", "b", "c"].as_slice(), &["a", "b", "gone"], &["a", "gone"]] {
            assert_eq!(told(&tasks, known), Some((ended(), false)));
        }
        assert_eq!(told(&[], &["gone"]), Some((ended(), false)));
        // One that is not let in yet has no name.
        assert_eq!(told(&[task("a", "starting")], &[]), None);
        // Nor need one on a lost node have one.
        let mut lost = task("l", "running");
        lost["NodeID"] = "lost".into();
        assert_eq!(told(&[task("a", "running"), lost.clone()], &["a"]), None);
        assert_eq!(told(&[task("a", "running"), lost], &["a", "l"]), Some((ended(), false)));
        let seen = |is_ready| Seen {
            tasks: tasks.to_vec(),
            nodes: vec![Node { is_ready, ..node("n1") }],
            ..Seen::default()
        };
        assert_eq!(places(&seen(true)), [("n1", "net")].into());
        assert_eq!(places(&seen(false)), [].into());
    }
}
