//! In which groups the services of a stack are replaced. Each node keeps a task of the stack all the time: without one it
//! leaves the network of the stack, and to join that again takes seconds. A task that is only assigned to a node counts
//! (swarmkit, `manager/allocator`). Called by `apply`.

use crate::base::deadline::Deadline;
use crate::engine::swarm::cluster::Swarm;
use crate::engine::swarm::state::{Seen, has_begun, has_ended, id, is_wanted};
use anyhow::{Result, anyhow};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{Break, Continue};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a Swarm may take to make the new tasks of one group, and to assign them. After that the next one is replaced all
/// the same.
const MADE: Duration = Duration::from_millis(250);
const ASSIGNED: Duration = Duration::from_millis(700);

/// The pause between two looks at the tasks that it assigns.
const PAUSE: Duration = Duration::from_millis(30);

/// The services that are still to be replaced, by name: as they were; none is a new one.
type Left = BTreeMap<String, Option<Value>>;

impl Swarm {
    /// Replaces services, one group after another. `may` says whether one may be replaced yet. `replace` gets what was seen
    /// last, and the names of a group: it ends the tasks of these services and updates them.
    pub fn in_groups(
        &self,
        before: Arc<Seen>,
        mut left: Left,
        mut may: impl FnMut(&str) -> Result<bool>,
        mut replace: impl FnMut(&Seen, &[String]) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()> {
        let mut before = Some(before);
        let mut last: Option<Instant> = None;
        let mut turn = |left: &mut Left| -> Result<()> {
            let seen = before.take().map_or_else(|| self.see(deadline), Ok)?;
            let mut ready = BTreeSet::new();
            for name in left.keys() {
                if may(name)? {
                    ready.insert(name.as_str());
                }
            }
            let is_open = |task: &Value| is_wanted(task) && !has_ended(task) && node_of(task).is_empty();
            let time = if seen.tasks.iter().any(is_open) { ASSIGNED } else { MADE };
            let is_late = last.is_none_or(|last| last.elapsed() > time);
            let group = group(&nodes_of(&seen, left), &held(&seen, left), &ready, is_late);
            if group.is_empty() {
                return Ok(());
            }
            replace(&seen, &group)?;
            left.retain(|name, _| !group.contains(name));
            last = Some(Instant::now());
            Ok(())
        };
        let replaced = deadline.poll(PAUSE, || match turn(&mut left) {
            Err(error) => Break(Err(error)),
            Ok(()) if left.is_empty() => Break(Ok(())),
            Ok(()) => {
                let names = left.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                Continue(anyhow!("{names} was not replaced"))
            }
        });
        replaced.flatten()
    }
}

/// The next services to replace, of those that are `ready`: as many as leave no node without a task. `nodes` are those of
/// the tasks of each service that is left, `held` those with tasks that stay. If there is none, and it is late, the service
/// that leaves the fewest nodes without one. Pure.
fn group(
    nodes: &BTreeMap<&str, BTreeSet<&str>>,
    held: &BTreeSet<&str>,
    ready: &BTreeSet<&str>,
    is_late: bool,
) -> Vec<String> {
    let mut group: Vec<&str> = Vec::new();
    for name in ready {
        let others = nodes.iter().filter(|(other, _)| *other != name && !group.contains(*other));
        let bare =
            |node: &&&str| !held.contains(**node) && !others.clone().any(|(_, on)| on.contains(**node));
        if nodes[name].iter().filter(bare).count() == 0 {
            group.push(name);
        }
    }
    if group.is_empty() && is_late {
        let bare = |name: &&&str| nodes[**name].difference(held).count();
        group.extend(ready.iter().min_by_key(bare));
    }
    group.into_iter().map(str::to_owned).collect()
}

/// The tasks of a service that run.
fn running<'a>(seen: &'a Seen, service: Option<&Value>) -> impl Iterator<Item = &'a Value> {
    service.into_iter().flat_map(|service| seen.tasks_of(service)).filter(|task| has_begun(task))
}

fn node_of(task: &Value) -> &str {
    task["NodeID"].as_str().unwrap_or_default()
}

/// The nodes on which the services have tasks that run.
fn nodes_of<'a>(seen: &'a Seen, left: &'a Left) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let nodes = |service: &Option<Value>| running(seen, service.as_ref()).map(node_of).collect();
    left.iter().map(|(name, service)| (name.as_str(), nodes(service))).collect()
}

/// The nodes with tasks that stay: of services that are not to be replaced, or that were.
fn held<'a>(seen: &'a Seen, left: &Left) -> BTreeSet<&'a str> {
    let ends: BTreeSet<&str> =
        left.values().flat_map(|service| running(seen, service.as_ref())).map(id).collect();
    let stays = |task: &&Value| is_wanted(task) && !has_ended(task) && !ends.contains(id(task));
    seen.tasks.iter().filter(stays).map(node_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::swarm::spec;
    use crate::engine::swarm::state::name_of;
    use serde_json::json;

    /// The next group. `nodes` are `name: node node`.
    fn next(nodes: &[&'static str], held: &[&str], ready: &[&str], is_late: bool) -> String {
        let read = |line: &&'static str| {
            let (name, nodes) = line.split_once(':').unwrap();
            (name, nodes.split_whitespace().collect())
        };
        let (held, ready) = (held.iter().copied().collect(), ready.iter().copied().collect());
        group(&nodes.iter().map(read).collect(), &held, &ready, is_late).join(" ")
    }

    #[test]
    fn as_many_services_as_leave_no_node_without_a_task_are_replaced_at_once() {
        let all = ["a", "b", "c"];
        // Everything has something else beside it, on one node too.
        assert_eq!(next(&["a: 1 2", "b: 1 2", "c: 1 2"], &[], &all, false), "a b");
        assert_eq!(next(&["a: 1", "b: 1", "c: 1"], &[], &all, false), "a b");
        assert_eq!(next(&["a: 1 2", "b: 2 3", "c: 1 3"], &[], &all, false), "a");
        assert_eq!(next(&["b: 2 3", "c: 1 3"], &["1", "2"], &all[1..], false), "b");
        assert_eq!(next(&["b: 2 3", "c: 1 3"], &["1", "2", "3"], &all[1..], false), "b c");
        // A service without tasks takes none away.
        assert_eq!(next(&["a:", "b: 1"], &[], &all[..2], false), "a");
        // One that has to wait keeps its node, and is not replaced.
        assert_eq!(next(&["a: 1 2", "b: 1 2", "c: 1 2"], &[], &all[1..], false), "b c");
        assert_eq!(next(&["a: 1"], &["1"], &[], true), "");
    }

    #[test]
    fn what_leaves_a_node_without_a_task_is_replaced_when_nothing_else_helps() {
        assert_eq!(next(&["a: 1", "b: 2 3"], &[], &["a", "b"], false), "");
        assert_eq!(next(&["a: 1", "b: 2 3"], &[], &["a", "b"], true), "a");
        assert_eq!(next(&["a: 1", "b: 2 3"], &["2", "3"], &["a"], true), "a");
    }

    #[test]
    fn a_node_is_held_by_a_task_that_is_assigned_to_it_and_stays() {
        let service = |name: &str| json!({"ID": name, "Spec": {"Labels": {spec::SERVICE: name}}});
        let task = |name: &str, service: &str, node: &str, desired: &str, state: &str| {
            json!({"ID": name, "ServiceID": service, "NodeID": node, "DesiredState": desired,
                   "Status": {"State": state, "ContainerStatus": {"PID": i64::from(state == "running")}}})
        };
        let seen = Seen {
            services: vec![service("a"), service("b")],
            tasks: vec![
                task("1", "a", "n1", "running", "running"),
                task("2", "b", "n2", "ready", "assigned"),
                task("3", "b", "n3", "shutdown", "running"),
                task("4", "b", "n4", "running", "failed"),
                task("5", "b", "", "running", "pending"),
            ],
            nodes: Vec::new(),
        };
        let left = |name: &str| -> Left {
            let found = seen.services.iter().find(|one| name_of(one, "shop") == Some(name));
            [(name.to_owned(), found.cloned())].into()
        };
        assert_eq!(held(&seen, &left("a")), ["", "n2"].into());
        assert_eq!(nodes_of(&seen, &left("a")), [("a", ["n1"].into())].into());
        assert_eq!(held(&seen, &left("b")), ["", "n1", "n2"].into());
        assert_eq!(held(&seen, &[("new".to_owned(), None)].into()), ["", "n1", "n2"].into());
    }
}
