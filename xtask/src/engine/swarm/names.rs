//! Do the nodes of a Swarm know the same tasks? A service is found by its name, and each node learns from the others which
//! tasks that name stands for. For a moment after a change it may stand for one that has ended, where a request hangs, or
//! lack one that runs. Called by `runtime`.

use crate::base::deadline::Deadline;
use crate::base::threads::side_by_side;
use crate::engine::swarm::api::status_of;
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm};
use crate::engine::swarm::runtime::id;
use crate::engine::swarm::state::{Seen, has_begun, is_wanted, name_of};
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

/// After how long tasks that a node has not heard of are started anew, once: of a new task it hears anew.
const ANEW: Duration = Duration::from_secs(20);

/// What is not agreed on yet.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    why: String,
    /// The tasks that a node has not heard of.
    missing: BTreeSet<String>,
}

impl Swarm {
    /// Waits until every task that is wanted has begun and is let in by the Swarm, and every node with tasks of the stack
    /// knows by name those that run, and no other.
    pub fn wait_until_agreed(&self, deadline: Deadline) -> Result<()> {
        let (begun, mut again) = (Instant::now(), false);
        let agreed = deadline.within(AGREED).poll(PAUSE, || {
            let (seen, found) = match self.see(deadline).and_then(|seen| {
                let found = self.difference(&seen, deadline)?;
                Ok((seen, found))
            }) {
                Ok((_, None)) => return Break(Ok(())),
                Ok((seen, Some(found))) => (seen, found),
                Err(error) => return Break(Err(error)),
            };
            if begun.elapsed() > ANEW && !found.missing.is_empty() && !again {
                again = true;
                let missing = seen.tasks.iter().filter(|task| found.missing.contains(id(task)));
                self.kill(&seen, missing, deadline);
            }
            Continue(anyhow!(found.why))
        });
        agreed.flatten()
    }

    fn difference(&self, seen: &Seen, deadline: Deadline) -> Result<Option<Difference>> {
        if let Some(task) =
            seen.tasks.iter().find(|task| is_wanted(task) && !(has_begun(task) && is_let_in(task)))
        {
            let service = seen.services.iter().find(|one| id(one) == task["ServiceID"]);
            let name = service.and_then(|one| name_of(one, &self.pilot.project)).unwrap_or("a service");
            let why =
                format!("the Swarm has not let in a task of {name} yet: its health check has not passed");
            return Ok(Some(Difference { why, missing: BTreeSet::new() }));
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
        Ok(told.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().next())
    }
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
    let is_ready = |id: &Value| seen.nodes.iter().any(|node| node.is_ready && *id == node.id.as_str());
    let live = seen.tasks.iter().filter(|task| has_begun(task) && is_ready(&task["NodeID"]));
    let of =
        |task| networks(task).filter_map(move |network| Some((Value::as_str(&task["NodeID"])?, network)));
    live.flat_map(of).collect()
}

/// Does a node know the tasks of the stack in a network? `view` is its `GET /networks/ID?verbose=true`: for each service
/// the tasks, called `SERVICE.SLOT.ID`.
fn differs(seen: &Seen, network: &str, view: &Value, node: &str) -> Option<Difference> {
    seen.services.iter().find_map(|service| {
        let name = service.pointer("/Spec/Name").and_then(Value::as_str).unwrap_or_default();
        let known = view["Services"][name]["Tasks"].as_array().into_iter().flatten();
        let known: BTreeSet<&str> =
            known.filter_map(|task| task["Name"].as_str()?.rsplit('.').next()).collect();
        let live: Vec<&Value> = seen.tasks_of(service).filter(|task| has_begun(task)).collect();
        let named = live.iter().filter(|task| is_let_in(task) && networks(task).any(|own| own == network));
        let missing: BTreeSet<String> =
            named.map(|task| id(task)).filter(|task| !known.contains(task)).map(str::to_owned).collect();
        let why = if !missing.is_empty() {
            format!("{node} does not know all tasks of {name} by name yet")
        } else if known.iter().any(|task| !live.iter().any(|one| id(one) == *task)) {
            format!("{node} still knows a task of {name} that has ended")
        } else {
            return None;
        };
        Some(Difference { why, missing })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::swarm::node::Node;
    use serde_json::json;

    fn task(name: &str, state: &str) -> Value {
        json!({"ID": name, "ServiceID": "s", "NodeID": "n1", "DesiredState": "running",
               "Status": {"State": state, "ContainerStatus": {"PID": 7}},
               "NetworksAttachments": [{"Network": {"ID": "net", "DriverState": {"Name": "overlay"}, "Spec": {}}}]})
    }

    fn told(tasks: &[Value], known: &[&str]) -> Option<String> {
        let seen = Seen {
            services: vec![json!({"ID": "s", "Spec": {"Name": "shop_web"}})],
            tasks: tasks.to_vec(),
            nodes: Vec::new(),
        };
        let known: Vec<Value> = known.iter().map(|id| json!({"Name": format!("shop_web.1.{id}")})).collect();
        // Another stack may be in the same network.
        let view =
            json!({"Services": {"shop_web": {"Tasks": known}, "other": {"Tasks": [{"Name": "other.1.x"}]}}});
        differs(&seen, "net", &view, "node1").map(|found| found.why)
    }

    #[test]
    fn a_name_stands_for_the_tasks_that_run_and_for_no_other() {
        let tasks = [task("a", "running"), task("b", "running"), task("c", "failed")];
        assert_eq!(told(&tasks, &["a", "b"]), None);
        assert!(told(&tasks, &["a"]).unwrap().contains("does not know all"));
        assert!(told(&tasks, &["a", "b", "c"]).unwrap().contains("that has ended"));
        assert!(told(&tasks, &["a", "b", "gone"]).unwrap().contains("that has ended"));
        assert!(told(&[], &["gone"]).unwrap().contains("that has ended"));
        // One that is not let in yet has no name.
        assert_eq!(told(&[task("a", "starting")], &[]), None);
        let node = |is_ready| Node {
            id: "n1".into(),
            name: "host".into(),
            ip: None,
            is_ready,
            availability: "active".into(),
            manager: None,
        };
        let seen = |is_ready| Seen { tasks: tasks.to_vec(), nodes: vec![node(is_ready)], ..Seen::default() };
        assert_eq!(places(&seen(true)), [("n1", "net")].into());
        assert_eq!(places(&seen(false)), [].into());
    }
}
