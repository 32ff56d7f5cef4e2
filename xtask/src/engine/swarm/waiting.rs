//! Waits until a Swarm has done what it was told to: each service has its tasks, all of the new spec, and nothing of the old
//! one runs. Called by `apply` and `runtime`.

use crate::base::deadline::Deadline;
use crate::engine::swarm::change::{forced, update};
use crate::engine::swarm::cluster::{Swarm, unreached};
use crate::engine::swarm::spec::{self, Plan};
use crate::engine::swarm::state::{
    Seen, UNHEARD, has_begun, has_ended, id, is_wanted, name_of, replicas, settings_of,
};
use anyhow::{Result, anyhow, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{Break, Continue};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// The pause between two looks at tasks that begin.
const PAUSE: Duration = Duration::from_millis(50);

/// How often the task of a slot may be rejected before that is an error: a Swarm tries for ever.
const REJECTED: usize = 3;

/// How often a Swarm is urged, and the engines of its nodes are looked for: one that is gone at two looks counts as lost.
/// Managers that elect another leader meanwhile may have started tasks from before anew, and they hold the ports that the new
/// ones need.
const URGED: Duration = Duration::from_secs(1);

/// The tasks that there were before a change, by their ids.
pub struct Past {
    /// Those of services that are changed.
    pub replaced: BTreeSet<String>,
    /// Those of all services.
    pub all: BTreeSet<String>,
}

impl Swarm {
    /// Waits until each service has its tasks, all of the new spec, and nothing of the old one runs. If a node is lost
    /// meanwhile, it ends with the services that have tasks there: the managers would notice after 15 seconds or more.
    pub fn wait(&self, plan: &Plan, past: &Past, deadline: Deadline) -> Result<Vec<String>> {
        let settings: BTreeMap<&String, &str> = plan
            .services
            .iter()
            .filter_map(|(name, spec)| {
                let label =
                    spec.pointer("/TaskTemplate/ContainerSpec/Labels")?.get(spec::SETTINGS)?.as_str()?;
                Some((name, label))
            })
            .collect();
        let open = |seen: &Seen| {
            let of = |(name, settings): (&&String, &&str)| match self.named(seen, name) {
                Some(service) => pending(seen, service, name, settings, past).transpose(),
                None => Some(Ok(format!("{name} is not there"))),
            };
            settings.iter().find_map(of).transpose()
        };
        let (mut urged, mut waiting, mut gone) = (Instant::now(), BTreeSet::new(), BTreeSet::new());
        // One question after another, so that it goes on at another manager when one is lost.
        let waited = deadline.poll(PAUSE, || {
            let seen = match self.see(deadline) {
                Ok(seen) => seen,
                Err(error) => return Break(Err(error)),
            };
            if urged.elapsed() > URGED {
                let before = std::mem::replace(&mut gone, self.gone(&seen));
                let lost = self.lose(&seen, &before.intersection(&gone).collect());
                if !lost.is_empty() {
                    return Break(Ok(lost));
                }
                if let Err(error) = self.urge(&seen, &settings, past, &mut waiting, deadline) {
                    return Break(Err(error));
                }
                urged = Instant::now();
            }
            // A node that was just lost is in the lists until the managers notice.
            match open(&seen)
                .map(|why| why.or_else(|| unreached(&seen).map(|node| format!("{node} is not reached"))))
            {
                Ok(None) => Break(Ok(Vec::new())),
                Ok(Some(why)) => Continue(anyhow!("the Swarm has not started what it was told to: {why}")),
                Err(error) => Break(Err(error)),
            }
        });
        waited.flatten()
    }

    /// Waits until the Swarm has made tasks of services that had none. Its managers do that after they have answered; until
    /// then a service that was just started looks like one that has ended.
    pub fn wait_for_tasks(&self, services: &[Value], before: &Seen, deadline: Deadline) -> Result<()> {
        let made = deadline.poll(PAUSE, || match self.see(deadline) {
            Ok(seen) => match services.iter().find(|service| !has_new_task(service, &seen, before)) {
                Some(service) => Continue(anyhow!(
                    "the Swarm has made no task of {}",
                    name_of(service, &self.pilot.project).unwrap_or("a service")
                )),
                None => Break(Ok(())),
            },
            Err(error) => Break(Err(error)),
        });
        made.flatten()
    }

    /// Ends what runs from before once more, and replaces new tasks that a Swarm with a lost node does not start.
    /// `waiting` are those that were not started the last time.
    fn urge(
        &self,
        seen: &Seen,
        settings: &BTreeMap<&String, &str>,
        past: &Past,
        waiting: &mut BTreeSet<String>,
        deadline: Deadline,
    ) -> Result<()> {
        let before = std::mem::take(waiting);
        for (name, settings) in settings {
            let Some(service) = self.named(seen, name) else { continue };
            self.kill(seen, old(seen, service, settings, past), deadline);
            let held = held(seen, service, settings, past);
            if !held.is_disjoint(&before) {
                self.ask(deadline, |line| update(line, service, &forced(service["Spec"].clone(), service)))?;
            }
            waiting.extend(held);
        }
        Ok(())
    }

    /// Notes that these nodes are lost. Returns the services that are to have tasks there.
    fn lose(&self, seen: &Seen, nodes: &BTreeSet<&String>) -> Vec<String> {
        let mut seen = seen.clone();
        let mut lost = self.found.lost.lock().unwrap_or_else(PoisonError::into_inner);
        for node in seen.nodes.iter_mut().filter(|node| nodes.contains(&node.id)) {
            node.is_ready = false;
            lost.insert(node.id.clone(), (node.name.clone(), Instant::now()));
        }
        drop(lost);
        let behind = seen.beyond_reach(&self.pilot.project);
        self.found.behind.lock().unwrap_or_else(PoisonError::into_inner).extend(behind);
        services_on(&seen, nodes, &self.pilot.project)
    }

    fn named<'a>(&self, seen: &'a Seen, name: &str) -> Option<&'a Value> {
        seen.services.iter().find(|one| name_of(one, &self.pilot.project) == Some(name))
    }
}

/// The services that are to have tasks on one of these nodes.
fn services_on(seen: &Seen, nodes: &BTreeSet<&String>, project: &str) -> Vec<String> {
    let is_there = |task: &Value| is_wanted(task) && nodes.iter().any(|id| task["NodeID"] == id.as_str());
    let on = seen.services.iter().filter(|service| seen.tasks_of(service).any(is_there));
    on.filter_map(|service| name_of(service, project)).map(str::to_owned).collect()
}

/// Has a service a task that was not there before, in whatever state?
fn has_new_task(service: &Value, seen: &Seen, before: &Seen) -> bool {
    let was_there = |task: &Value| before.tasks_of(service).any(|other| id(other) == id(task));
    seen.tasks_of(service).any(|task| !was_there(task))
}

/// The new tasks that are not started yet, if a node is lost. A Swarm waits up to a minute for the end of the task before
/// (swarmkit, `defaultOldTaskTimeout`), also for one on a node that it knows to be lost.
fn held(seen: &Seen, service: &Value, settings: &str, past: &Past) -> BTreeSet<String> {
    if seen.nodes.iter().all(|node| node.is_ready) {
        return BTreeSet::new();
    }
    let new = seen.tasks_of(service).filter(|task| is_new(task, settings, past));
    new.filter(|task| task["DesiredState"] == "ready").map(|task| id(task).to_owned()).collect()
}

/// Is a task of the release, and made by this change?
fn is_new(task: &Value, settings: &str, past: &Past) -> bool {
    settings_of(task) == Some(settings) && !past.replaced.contains(id(task))
}

/// The tasks from before that still run.
fn old<'a>(
    seen: &'a Seen,
    service: &Value,
    settings: &'a str,
    past: &'a Past,
) -> impl Iterator<Item = &'a Value> {
    seen.tasks_of(service)
        .filter(move |task| !is_new(task, settings, past) && has_begun(task))
        .filter(|task| seen.is_on_ready_node(task))
}

/// Why a service is not there yet; nothing if it is. It is an error if the Swarm cannot start it.
fn pending(seen: &Seen, service: &Value, name: &str, settings: &str, past: &Past) -> Result<Option<String>> {
    let is_new = |task: &&Value| is_new(task, settings, past);
    let of_node = |task: &Value| {
        let node = seen.nodes.iter().find(|node| task["NodeID"] == node.id.as_str());
        node.map_or_else(String::new, |node| format!(" on {}", node.name))
    };
    let said = |task: &Value| {
        let words = [&task["Status"]["Err"], &task["Status"]["Message"]];
        words
            .into_iter()
            .filter_map(Value::as_str)
            .find(|text| !text.is_empty())
            .unwrap_or("no reason given")
            .to_owned()
    };
    let rejected: Vec<&Value> = seen
        .tasks_of(service)
        .filter(is_new)
        .filter(|task| task["Status"]["State"] == "rejected" && !past.all.contains(id(task)))
        .collect();
    if let Some(last) = rejected.last().filter(|_| rejected.len() >= REJECTED) {
        bail!("{name} cannot start{}: {}", of_node(last), said(last));
    }
    if let Some(task) = old(seen, service, settings, past).next() {
        return Ok(Some(format!("a task of {name} from before still runs{}", of_node(task))));
    }
    // One that began and ended is there too: whether it is healthy is another question.
    let begun = seen.tasks_of(service).filter(is_new).filter(|task| {
        let container = task.pointer("/Status/ContainerStatus/ContainerID").and_then(Value::as_str);
        (has_begun(task) && seen.is_on_ready_node(task))
            || (has_ended(task) && container.is_some_and(|id| !id.is_empty()))
    });
    let slots: BTreeSet<String> = begun.map(|task| format!("{}{}", task["Slot"], task["NodeID"])).collect();
    let all: BTreeSet<u64> =
        seen.tasks_of(service).filter(is_new).filter_map(|task| task["Slot"].as_u64()).collect();
    let wanted = replicas(&service["Spec"]).unwrap_or(1);
    if (slots.len() as u64) < wanted {
        let waits = seen.tasks_of(service).filter(is_new).find(|task| !has_begun(task) && !has_ended(task));
        let why = waits.map_or_else(
            || "it has no task".to_owned(),
            |task| {
                format!(
                    "{}: {}{}",
                    task["Status"]["State"].as_str().unwrap_or("?"),
                    said(task),
                    of_node(task)
                )
            },
        );
        // After the loss of their leader, managers may count such a task for as long as its node does not report anew; nothing
        // gets its port meanwhile.
        let unheard = seen.tasks_of(service).find(|task| task["Status"]["Message"] == UNHEARD);
        let unheard = unheard
            .map_or_else(String::new, |task| format!("; of a task from before{}, {UNHEARD}", of_node(task)));
        return Ok(Some(format!(
            "{} of {wanted} tasks of {name} have begun ({} made); {why}{unheard}",
            slots.len(),
            all.len()
        )));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::swarm::node::Node;
    use crate::engine::swarm::node::tests::node;
    use serde_json::json;

    const SLOTS: u64 = 2;

    fn task(name: &str, settings: &str, node: &str, state: &str) -> Value {
        json!({"ID": name, "ServiceID": "s", "NodeID": node, "Slot": 1,
               "Spec": {"ContainerSpec": {"Labels": {spec::SETTINGS: settings}}},
               "Status": {"State": state, "ContainerStatus": {"ContainerID": format!("c-{name}"), "PID": 7}}})
    }

    /// `before` had the same settings, and is replaced.
    fn past() -> Past {
        Past { replaced: ["before".to_owned()].into(), all: BTreeSet::new() }
    }

    fn told(tasks: Vec<Value>, ended: &[&str]) -> Result<Option<String>> {
        let service = json!({"ID": "s", "Spec": {"Mode": {"Replicated": {"Replicas": SLOTS}}}});
        let nodes = vec![node("n1"), node("n2"), Node { is_ready: false, ..node("lost") }];
        let mut seen = Seen { services: vec![service.clone()], tasks, nodes };
        seen.note_ended(&ended.iter().map(|id| (*id).to_owned()).collect());
        pending(&seen, &service, "web", "new", &past())
    }

    #[test]
    fn a_new_task_that_waits_is_replaced_if_a_node_is_lost() {
        let node = |id: &str, is_ready| Node { is_ready, ..node(id) };
        let task = |name: &str, settings: &str, desired: &str| {
            let mut task = task(name, settings, "n1", "ready");
            task["DesiredState"] = desired.into();
            task
        };
        let tasks = vec![
            task("a", "new", "ready"),
            task("b", "new", "running"),
            task("c", "old", "ready"),
            task("before", "new", "ready"),
        ];
        let of = |is_ready| {
            let seen = Seen {
                tasks: tasks.clone(),
                nodes: vec![node("n1", true), node("n2", is_ready)],
                ..Seen::default()
            };
            held(&seen, &json!({"ID": "s"}), "new", &past())
        };
        assert_eq!(of(false), ["a".to_owned()].into());
        assert_eq!(of(true), BTreeSet::new());
    }

    #[test]
    fn what_is_to_run_on_a_lost_node_is_made_anew() {
        let service = |name: &str| json!({"ID": name, "Spec": {"Labels": {spec::SERVICE: name}}});
        let task = |service: &str, node: &str, desired: &str| {
            let mut task = task(service, "new", node, "starting");
            (task["ServiceID"], task["DesiredState"]) = (service.into(), desired.into());
            task
        };
        let seen = Seen {
            services: ["web", "jobs", "db"].map(service).into(),
            tasks: vec![
                task("web", "n1", "running"),
                task("web", "n2", "running"),
                task("jobs", "n2", "shutdown"),
                task("jobs", "n1", "running"),
                task("db", "n2", "ready"),
            ],
            nodes: vec![node("n1"), node("n2")],
        };
        let on = |id: &str| services_on(&seen, &[&id.to_owned()].into(), "shop");
        assert_eq!((on("n2"), on("n3")), (vec!["web".to_owned(), "db".to_owned()], Vec::new()));
    }

    #[test]
    fn what_ended_before_a_start_is_not_what_was_started() {
        let service = json!({"ID": "s"});
        let with = |tasks: Vec<Value>| Seen { tasks, ..Seen::default() };
        let ended = || task("old", "new", "n1", "failed");
        let before = with(vec![ended()]);
        assert!(!has_new_task(&service, &with(vec![ended()]), &before));
        assert!(!has_new_task(&service, &with(Vec::new()), &before));
        for state in ["new", "failed"] {
            assert!(has_new_task(&service, &with(vec![ended(), task("a", "new", "n1", state)]), &before));
        }
    }

    #[test]
    fn a_service_is_there_when_its_new_tasks_run_and_no_other_does() {
        let first = || task("a", "new", "n1", "running");
        let second = |node, state| task("b", "new", node, state);
        assert_eq!(told(vec![first(), second("n2", "starting")], &[]).unwrap(), None);
        for old in [task("c", "old", "n2", "running"), task("before", "new", "n2", "running")] {
            let why = told(vec![first(), second("n2", "running"), old], &[]).unwrap().unwrap();
            assert!(why.contains("from before still runs on host-n2"), "{why}");
        }
        // Of what is on a lost node nobody hears when it has ended, and it does not count.
        let lost = || task("c", "old", "lost", "running");
        assert_eq!(told(vec![first(), second("n2", "running"), lost()], &[]).unwrap(), None);
        let why = told(vec![first(), second("lost", "running")], &[]).unwrap().unwrap();
        assert!(why.contains("1 of 2 tasks of web have begun"), "{why}");
        // The managers count a task that was seen to end.
        let why = told(vec![first(), task("c", "old", "n2", "running")], &["c-c"]).unwrap().unwrap();
        assert!(why.ends_with(&format!("from before on host-n2, {UNHEARD}")), "{why}");
        let rejected = |name: &str| task(name, "new", "n2", "rejected");
        let error = told(vec![first(), rejected("d"), rejected("e"), rejected("f")], &[]).unwrap_err();
        assert!(error.to_string().contains("web cannot start on host-n2"), "{error}");
    }
}
