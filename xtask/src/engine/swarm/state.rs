//! What a Swarm reports of a stack, as the values of the whole tool: a task is an instance. Pure. Called by the other
//! files of `swarm`.

use crate::base::secrets;
use crate::engine::swarm::node::Node;
use crate::engine::swarm::spec;
use crate::stack::model::{Health, Instance, Service};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// The label of a service that is kept down: how many replicas it has otherwise. It is there until the service may start
/// again by itself.
pub const KEPT: &str = "rollback.invalid/replicas";

/// What is said of a task that has ended without the managers' having heard of it.
pub const UNHEARD: &str = "its container has ended, and the managers have not heard of it";

/// What was seen at one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `GET /services`, those of the stack.
    pub services: Vec<Value>,
    /// `GET /tasks`, those of the stack.
    pub tasks: Vec<Value>,
    /// The nodes.
    pub nodes: Vec<Node>,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The name that a service has in the stack's own files.
pub fn name_of<'a>(service: &'a Value, project: &str) -> Option<&'a str> {
    let label = service.pointer("/Spec/Labels")?.get(spec::SERVICE).and_then(Value::as_str);
    label.or_else(|| text(service, "/Spec/Name").strip_prefix(project)?.strip_prefix('_'))
}

/// How many replicas a spec has; none if it has one on each node.
pub fn replicas(spec: &Value) -> Option<u64> {
    spec.pointer("/Mode/Replicated")?;
    Some(spec.pointer("/Mode/Replicated/Replicas").and_then(Value::as_u64).unwrap_or(1))
}

/// A label of a service.
pub fn label<'a>(spec: &'a Value, name: &str) -> Option<&'a str> {
    spec.get("Labels")?.get(name)?.as_str()
}

/// The id of an object of the API.
pub fn id(object: &Value) -> &str {
    object["ID"].as_str().unwrap_or_default()
}

/// A service of this spec does not run, and remembers how many replicas it has.
pub fn keep_down(spec: &mut Value) {
    // One that has a task on each node is made one with replicas by `down` of its own: it has none to count.
    if let Some(wanted) = replicas(spec).filter(|wanted| *wanted > 0) {
        spec["Labels"][KEPT] = wanted.to_string().into();
        spec["Mode"]["Replicated"]["Replicas"] = 0.into();
    }
}

/// How many replicas a service has that is kept down; none if it is not.
pub fn kept_replicas(spec: &Value) -> Option<u64> {
    label(spec, KEPT).filter(|_| replicas(spec) == Some(0))?.parse().ok()
}

/// Is the container of a task there, so that it may answer?
pub fn has_begun(task: &Value) -> bool {
    let pid = task.pointer("/Status/ContainerStatus/PID").and_then(Value::as_i64);
    matches!(text(task, "/Status/State"), "starting" | "running") && pid.is_some_and(|pid| pid > 0)
}

/// Has a task ended, in whatever way?
pub fn has_ended(task: &Value) -> bool {
    matches!(
        text(task, "/Status/State"),
        "complete" | "shutdown" | "failed" | "rejected" | "remove" | "orphaned"
    )
}

impl Seen {
    /// Notes that these containers have ended, of which the managers may not have heard.
    pub fn note_ended(&mut self, ended: &BTreeSet<String>) {
        for task in &mut self.tasks {
            let has_ended = ended.contains(text(task, "/Status/ContainerStatus/ContainerID"));
            if has_ended && has_begun(task) {
                task["Status"]["State"] = "failed".into();
                task["Status"]["Message"] = UNHEARD.into();
            }
        }
    }

    /// The services of the stack, by name, with their tasks.
    pub fn services(&self, project: &str) -> BTreeMap<String, Service> {
        let one = |service: &Value| {
            let name = name_of(service, project)?.to_owned();
            Some((name, self.service(service)))
        };
        self.services.iter().filter_map(one).collect()
    }

    /// The tasks of a service.
    pub fn tasks_of<'a>(&'a self, service: &Value) -> impl Iterator<Item = &'a Value> {
        let id = text(service, "/ID").to_owned();
        self.tasks.iter().filter(move |task| text(task, "/ServiceID") == id)
    }

    fn service(&self, service: &Value) -> Service {
        let spec = &service["Spec"];
        // One that is being stopped is there until it has ended; of those on a lost node nobody hears that.
        let is_there = |task: &&Value| is_wanted(task) || (has_begun(task) && self.is_on_ready_node(task));
        let wanted: Vec<&Value> = self.tasks_of(service).filter(is_there).collect();
        let restarts = |task: &Value| {
            let same = |other: &&Value| {
                other["Slot"] == task["Slot"]
                    && other["NodeID"] == task["NodeID"]
                    && settings_of(other) == settings_of(task)
                    && text(other, "/Status/State") == "failed"
            };
            self.tasks_of(service).filter(same).count() as u64
        };
        let mut all: Vec<Instance> =
            wanted.into_iter().map(|task| self.instance(service, Some(task), restarts(task))).collect();
        if all.is_empty() && replicas(spec) != Some(0) {
            let newest = self.tasks_of(service).max_by_key(|task| text(task, "/CreatedAt"));
            all.push(self.instance(service, newest, 0));
        } else if all.is_empty() && label(spec, KEPT).is_some() {
            all.push(self.instance(service, None, 0));
        }
        Service(all)
    }

    /// Is the node of a task there, as the managers see it?
    pub fn is_on_ready_node(&self, task: &Value) -> bool {
        self.nodes.iter().any(|node| node.id == text(task, "/NodeID") && node.is_ready)
    }

    /// One task; or, without one, the service as it would run.
    fn instance(&self, service: &Value, task: Option<&Value>, restarts: u64) -> Instance {
        let spec = &service["Spec"];
        let template = task.map_or(&spec["TaskTemplate"], |task| &task["Spec"]);
        let container = &template["ContainerSpec"];
        let image = text(container, "/Image").to_owned();
        let env = container["Env"].as_array().into_iter().flatten();
        let env: BTreeMap<String, String> = env
            .filter_map(|one| one.as_str()?.split_once('='))
            // A Swarm expands templates in values, so `spec` writes what begins one as a template.
            .map(|(name, value)| (name.to_owned(), value.replace(r#"{{"{{"}}"#, "{{")))
            .collect();
        secrets::learn(&env);
        let node = task.and_then(|task| self.nodes.iter().find(|node| node.id == text(task, "/NodeID")));
        let state = task.map_or("exited", state_of);
        let container_id =
            task.map(|task| text(task, "/Status/ContainerStatus/ContainerID")).unwrap_or_default();
        Instance {
            state: state.to_owned(),
            health: task.and_then(|task| health(task, &image)),
            image,
            env,
            address: self.address(service, node),
            node: node.map(|node| node.name.clone()),
            settings: spec::digest(spec),
            state_dir: None,
            restarts,
            restart: Some(if label(spec, KEPT).is_some() { "no".into() } else { condition(spec) }),
            handle: match node {
                Some(node) if !container_id.is_empty() => format!("{}/{container_id}", node.id),
                _ => String::new(),
            },
            inspect: serde_json::to_string_pretty(task.unwrap_or(service)).unwrap_or_default(),
        }
    }

    /// Where a service is published, on this node.
    fn address(&self, service: &Value, node: Option<&Node>) -> Option<SocketAddr> {
        let ports = service.pointer("/Spec/EndpointSpec/Ports").and_then(Value::as_array)?;
        let port = ports.iter().find_map(|port| port["PublishedPort"].as_u64())?;
        let any = || self.nodes.iter().find(|node| node.is_ready);
        let ip = node.or_else(any)?.ip?;
        Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
    }

    /// The ports that the services of the stack publish.
    pub fn ports(&self) -> Vec<u16> {
        let of =
            |service: &Value| service.pointer("/Spec/EndpointSpec/Ports").and_then(Value::as_array).cloned();
        let all = self.services.iter().filter_map(of).flatten();
        all.filter_map(|port| u16::try_from(port["PublishedPort"].as_u64()?).ok()).collect()
    }

    /// The tasks on nodes that are not reached which publish something, as `gateway on node1`: nobody can ask whether they
    /// still run there.
    pub fn beyond_reach(&self, project: &str) -> Vec<String> {
        let published =
            self.services.iter().filter(|service| service.pointer("/Spec/EndpointSpec/Ports/0").is_some());
        let lost = |task: &&Value| has_begun(task) && !self.is_on_ready_node(task);
        let told = |service: &Value, task: &Value| {
            let node = self.nodes.iter().find(|node| node.id == text(task, "/NodeID"));
            let node = node.map_or("a node that is gone", |node| &node.name);
            format!("{} on {node}, which is not reached", name_of(service, project).unwrap_or("a service"))
        };
        let all = published
            .flat_map(|service| self.tasks_of(service).filter(lost).map(move |task| told(service, task)));
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Where something is published at this port: at the node of each task that may answer.
    pub fn published(&self, port: u16) -> Vec<SocketAddr> {
        let publishes = |service: &&Value| {
            let ports = service.pointer("/Spec/EndpointSpec/Ports").and_then(Value::as_array);
            ports.into_iter().flatten().any(|one| one["PublishedPort"].as_u64() == Some(port.into()))
        };
        let tasks = self.services.iter().filter(publishes).flat_map(|service| self.tasks_of(service));
        // One that is being stopped answers until it has ended; one on a lost node does not.
        let live = tasks.filter(|task| has_begun(task) && self.is_on_ready_node(task));
        let node = |task: &Value| self.nodes.iter().find(|node| node.id == text(task, "/NodeID"))?.ip;
        let mut all: Vec<SocketAddr> = live.filter_map(node).map(|ip| SocketAddr::new(ip, port)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Does the Swarm want this task to run?
pub fn is_wanted(task: &Value) -> bool {
    matches!(text(task, "/DesiredState"), "running" | "ready" | "accepted")
}

/// The digest of the settings that a task was made with.
pub fn settings_of(task: &Value) -> Option<&str> {
    task.pointer("/Spec/ContainerSpec/Labels")?.get(spec::SETTINGS)?.as_str()
}

/// The state of a task in the words that every engine has. The Swarm says `running` only when the health check has passed.
fn state_of(task: &Value) -> &str {
    match text(task, "/Status/State") {
        _ if has_begun(task) => "running",
        // The container has ended, and nobody has said so yet.
        "running" | "starting" => "starting",
        // One that is wanted is made anew in a moment.
        _ if has_ended(task) && is_wanted(task) => "restarting",
        _ if has_ended(task) => "exited",
        other => other,
    }
}

/// What the Swarm says of the health of a task.
fn health(task: &Value, image: &str) -> Option<Health> {
    let said = text(task, "/Status/Err");
    match text(task, "/Status/State") {
        "running" => Some(Health::Healthy { version: image.to_owned() }),
        "starting" => Some(Health::Silent("its health check has not passed yet".to_owned())),
        _ if !said.is_empty() => Some(Health::Unhealthy(secrets::mask(said))),
        _ => None,
    }
}

/// When the Swarm starts a task again, in the words of a compose file.
fn condition(spec: &Value) -> String {
    match text(spec, "/TaskTemplate/RestartPolicy/Condition") {
        "none" => "no".to_owned(),
        "on-failure" => "on-failure".to_owned(),
        _ => "always".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::swarm::node::tests::node;
    use serde_json::json;

    fn task(id: &str, node: &str, desired: &str, state: &str, pid: i64) -> Value {
        json!({"ID": id, "ServiceID": "s", "NodeID": node, "Slot": 1, "DesiredState": desired, "CreatedAt": id,
               "Spec": {"ContainerSpec": {"Image": "sha256:1", "Env": ["A=1"], "Labels": {}}},
               "Status": {"State": state, "ContainerStatus": {"ContainerID": format!("c{id}"), "PID": pid}}})
    }

    fn seen(replicas: u64, kept: bool, tasks: Vec<Value>) -> Seen {
        let mut labels = json!({ spec::SERVICE: "web" });
        if kept {
            labels[KEPT] = "2".into();
        }
        let service = json!({"ID": "s", "Spec": {"Name": "shop_web", "Labels": labels,
            "Mode": {"Replicated": {"Replicas": replicas}},
            "TaskTemplate": {"ContainerSpec": {"Image": "sha256:2"}, "RestartPolicy": {"Condition": "any"}},
            "EndpointSpec": {"Ports": [{"PublishedPort": 80, "TargetPort": 8080}]}}});
        let node = |id: &str, ip: &str| Node { ip: ip.parse().ok(), ..node(id) };
        Seen { services: vec![service], tasks, nodes: vec![node("n1", "10.0.0.1"), node("n2", "10.0.0.2")] }
    }

    fn told(seen: &Seen) -> Vec<(String, Option<String>, String)> {
        let service = &seen.services("shop")["web"];
        service
            .0
            .iter()
            .map(|one| (one.state.clone(), one.node.clone(), one.restart.clone().unwrap()))
            .collect()
    }

    #[test]
    fn each_task_that_is_wanted_is_an_instance_with_its_node() {
        let tasks = vec![
            task("1", "n1", "shutdown", "failed", 0),
            task("2", "n1", "running", "running", 7),
            task("3", "n2", "running", "starting", 8),
        ];
        let seen = seen(2, false, tasks);
        let service = &seen.services("shop")["web"];
        assert_eq!(service.0[0].handle, "n1/c2");
        assert_eq!((service.0[0].restarts, service.0[1].restarts), (1, 0));
        assert_eq!(service.0[1].address, Some("10.0.0.2:80".parse().unwrap()));
        assert!(matches!(service.0[1].health, Some(Health::Silent(_))));
        assert_eq!(
            told(&seen),
            [
                ("running".to_owned(), Some("host-n1".to_owned()), "always".to_owned()),
                ("running".to_owned(), Some("host-n2".to_owned()), "always".to_owned()),
            ]
        );
        assert_eq!(seen.published(80).len(), 2);
        assert_eq!(seen.published(81), []);
    }

    #[test]
    fn what_does_not_run_is_told_from_what_is_kept_down_and_from_what_starts() {
        let ended = || task("1", "n1", "shutdown", "complete", 0);
        assert_eq!(told(&seen(0, true, vec![ended()])), [("exited".to_owned(), None, "no".to_owned())]);
        assert_eq!(seen(0, false, vec![ended()]).services("shop")["web"].0, []);
        assert_eq!(told(&seen(1, false, vec![ended()]))[0].0, "exited");
        assert_eq!(told(&seen(1, false, vec![task("1", "n1", "running", "failed", 0)]))[0].0, "restarting");
        assert_eq!(told(&seen(1, false, vec![task("1", "", "running", "pending", 0)]))[0].0, "pending");
        // A task that is being stopped may still answer.
        let stopping = seen(0, true, vec![task("1", "n1", "shutdown", "running", 7)]);
        assert_eq!((stopping.published(80).len(), told(&stopping)[0].0.clone()), (1, "running".to_owned()));
        let mut known = stopping.clone();
        known.note_ended(&["c1".to_owned()].into());
        assert_eq!((known.published(80).len(), told(&known)[0].0.as_str()), (0, "exited"));
        let mut lost = stopping;
        assert_eq!(lost.beyond_reach("shop"), Vec::<String>::new());
        lost.nodes[0].is_ready = false;
        assert_eq!((told(&lost)[0].0.as_str(), lost.published(80).len()), ("exited", 0));
        // It may serve those who reach its node all the same.
        assert_eq!(lost.beyond_reach("shop"), ["web on host-n1, which is not reached"]);
    }
}
