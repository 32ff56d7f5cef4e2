//! Tests: what the API of a manager says, which may be anything, and any stack that is to be carried over. Called by
//! `engine/hostile`.

use crate::engine::compose::line::Line;
use crate::engine::swarm::node::nodes;
use crate::engine::swarm::spec::{Plan, Source, digest, plan};
use crate::engine::swarm::state::{Seen, has_begun};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// An answer is read whole or is an error: wherever the connection breaks, it is never another one.
pub fn answers(bytes: &[u8]) {
    let read = |mut from: &[u8]| Line::new(&mut Vec::new(), &mut from, "").get("/any");
    let Ok(whole) = read(bytes) else { return };
    for part in 1..8 {
        if let Ok(cut) = read(&bytes[..bytes.len() * part / 8]) {
            assert_eq!(cut, whole, "an answer that was cut off is another one");
        }
    }
}

/// What a Swarm reports of services, tasks and nodes.
pub fn reported(value: &Value) {
    let list = |name: &str| value[name].as_array().cloned().unwrap_or_default();
    let (services, tasks) = (list("services"), list("tasks"));
    let mut seen = Seen { services, tasks, nodes: nodes(&value["nodes"]) };
    let found = seen.services("shop");
    assert!(found.len() <= seen.services.len());
    assert!(
        found.values().map(|service| service.0.len()).sum::<usize>()
            <= seen.tasks.len() * found.len() + found.len()
    );
    let ports = seen.ports();
    let known = |seen: &Seen, port: u16| {
        let at = seen.published(port);
        at.iter().all(|at| {
            at.port() == port && seen.nodes.iter().any(|node| node.is_ready && node.ip == Some(at.ip()))
        })
    };
    assert!(ports.iter().all(|port| known(&seen, *port)), "something is published where there is no node");
    let id = |task: &Value| {
        task.pointer("/Status/ContainerStatus/ContainerID").and_then(Value::as_str).map(str::to_owned)
    };
    let all: BTreeSet<String> = seen.tasks.iter().map(|task| id(task).unwrap_or_default()).collect();
    seen.note_ended(&all);
    assert!(!seen.tasks.iter().any(has_begun), "what has ended runs");
    assert!(ports.iter().all(|port| seen.published(*port).is_empty()), "what has ended is published");
    seen.services("shop");
}

/// What a stack is on a Swarm, whatever Compose says that it is.
pub fn planned(config: &Value) {
    let Some(all) = config["services"].as_object() else { return };
    let services: BTreeSet<String> = all.keys().cloned().collect();
    let image = format!("sha256:{}", "a2".repeat(32));
    let images: BTreeMap<String, String> =
        services.iter().map(|name| (name.clone(), image.clone())).collect();
    let read = |path: &str| -> Result<Vec<u8>> {
        anyhow::ensure!(path.len().is_multiple_of(2), "{path} is no file");
        Ok(path.as_bytes().to_vec())
    };
    let source = Source {
        project: "shop",
        config,
        images: &images,
        dir: Path::new("/shop"),
        read: &read,
        services: &services,
    };
    let (Ok(one), Ok(other)) = (plan(&source), plan(&source)) else { return };
    let told = |plan: &Plan| (plan.services.clone(), plan.notes.clone(), plan.refusals.clone());
    assert_eq!(told(&one), told(&other), "the same stack is another one the next time");
    assert!(one.services.keys().eq(&services), "it has other services");
    for (name, spec) in &one.services {
        assert_eq!(spec["Name"], format!("shop_{name}"));
        assert_eq!(digest(spec), digest(&spec.clone()));
    }
}
