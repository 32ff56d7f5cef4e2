//! A digest of a service: the same for the spec that was sent to the engine and for the one that it reports. Pure.
//! Called by `spec` for a label, and by whoever compares what runs with a release.

use super::parts::OWN;
use crate::base::files;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The label with the names of the networks. The engine reports only their ids, and a network that is made again gets
/// another id.
pub const NETWORKS: &str = "rollback.invalid/networks";

/// Maps whose names are not of the engine, so that an empty value counts in them.
const FREE: [&str; 6] = ["Labels", "Options", "DriverOpts", "Sysctls", "Replicated", "Global"];

/// Where zero or false is not the same as nothing said.
const MEANT: [&str; 5] = ["Replicas", "StopGracePeriod", "Delay", "Init", "Mode"];

/// What does not count, wherever it stands: how a change is made, and ids that follow from names.
const LEFT_OUT: [&str; 6] =
    ["UpdateConfig", "RollbackConfig", "ForceUpdate", "Runtime", "ConfigID", "SecretID"];

/// A digest (64 hexadecimal digits) of what makes a service what it is: of a `ServiceSpec` as it is made here, or as the
/// engine reports it. It leaves out how a change is made (`UpdateConfig`, `RollbackConfig`, `ForceUpdate`), what the
/// engine fills in, ids, constraints that begin with `node.id`, and our own labels but that of the networks. The number
/// of copies counts.
pub fn digest(spec: &Value) -> String {
    files::sha256_bytes(plain(spec).to_string().as_bytes())
}

/// What the digest is made of.
pub fn plain(spec: &Value) -> Value {
    let mut plain = object(spec);
    // Without a mode there is one copy, as the engine then reports it.
    let mode = &spec["Mode"];
    let others = ["Global", "ReplicatedJob", "GlobalJob"];
    if others.iter().all(|kind| mode[kind].is_null()) && mode["Replicated"]["Replicas"].is_null() {
        plain.insert("Mode".to_owned(), json!({ "Replicated": { "Replicas": 1 } }));
    }
    Value::Object(plain)
}

/// A map without what does not count, in the order of the names.
fn object(value: &Value) -> Map<String, Value> {
    let all: BTreeMap<&String, &Value> = value.as_object().into_iter().flatten().collect();
    let kept = all.into_iter().filter(|(key, _)| !LEFT_OUT.contains(&key.as_str()));
    kept.filter_map(|(key, value)| Some((key.clone(), kept_of(key, value)?))).collect()
}

/// What counts of a value; none if nothing does.
fn kept_of(key: &str, value: &Value) -> Option<Value> {
    match (key, value) {
        (_, Value::Object(all)) if FREE.contains(&key) => {
            let own = |name: &str| key == "Labels" && name.starts_with(OWN) && name != NETWORKS;
            let all: BTreeMap<_, _> = all.iter().filter(|(name, _)| !own(name)).collect();
            let all: Map<String, Value> = all.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            Some(Value::Object(all)).filter(|all| key == "Global" || *all != json!({}))
        }
        (_, Value::Object(_)) => Some(Value::Object(object(value))).filter(|all| *all != json!({})),
        ("Networks", Value::Array(all)) => {
            // The engine puts the id in the place of the name.
            let without = |one: &Value| {
                let mut one = object(one);
                one.remove("Target");
                Value::Object(one)
            };
            filled(all.iter().map(without).collect())
        }
        ("Constraints", Value::Array(all)) => {
            let of_node = |one: &Value| one.as_str().is_some_and(|text| text.starts_with("node.id"));
            filled(all.iter().filter(|one| !of_node(one)).cloned().collect())
        }
        (_, Value::Array(all)) => {
            let inner = |one: &Value| if one.is_object() { Value::Object(object(one)) } else { one.clone() };
            filled(all.iter().map(inner).collect())
        }
        // What the engine writes where nothing was said.
        ("Isolation", Value::String(text)) if text == "default" => None,
        ("Condition", Value::String(text)) if text == "any" => None,
        (_, Value::Null) => None,
        (_, Value::String(text)) if text.is_empty() => None,
        (_, Value::Bool(false)) if !MEANT.contains(&key) => None,
        (_, Value::Number(number)) if number.as_f64() == Some(0.0) && !MEANT.contains(&key) => None,
        (_, other) => Some(other.clone()),
    }
}

fn filled(all: Vec<Value>) -> Option<Value> {
    Some(Value::Array(all)).filter(|all| *all != json!([]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_fills_in_is_not_in_the_digest_and_what_means_something_is() {
        let base = json!({ "Name": "a", "TaskTemplate": { "ContainerSpec": { "Image": "i" } } });
        let changed = |at: &str, value: Value| {
            let mut spec = base.clone();
            let mut part = &mut spec;
            for key in at.split('/') {
                part = &mut part[key];
            }
            *part = value;
            digest(&spec) != digest(&base)
        };
        for (at, value) in [
            ("Mode/Replicated/Replicas", json!(1)),
            ("Mode/Replicated", json!({})),
            ("TaskTemplate/ForceUpdate", json!(3)),
            ("TaskTemplate/Runtime", json!("container")),
            ("TaskTemplate/ContainerSpec/Isolation", json!("default")),
            ("TaskTemplate/ContainerSpec/Labels", json!({})),
            ("TaskTemplate/ContainerSpec/Labels", json!({ "rollback.invalid/release": "r7" })),
            ("TaskTemplate/ContainerSpec/Healthcheck", json!({ "Interval": 0, "Retries": 0 })),
            ("TaskTemplate/RestartPolicy", json!({ "Condition": "any", "MaxAttempts": 0 })),
            ("TaskTemplate/Placement/Constraints", json!(["node.id == x", "node.id==y"])),
            ("TaskTemplate/Placement", json!({ "MaxReplicas": 0 })),
            ("TaskTemplate/Networks", json!([])),
            ("EndpointSpec/Ports", json!([])),
            ("UpdateConfig", json!({ "Parallelism": 0 })),
        ] {
            assert!(!changed(at, value.clone()), "{at} {value}");
        }
        for (at, value) in [
            ("Mode/Replicated/Replicas", json!(0)),
            ("Mode/Replicated/Replicas", json!(2)),
            ("Mode/Global", json!({})),
            ("TaskTemplate/ContainerSpec/StopGracePeriod", json!(0)),
            ("TaskTemplate/ContainerSpec/Init", json!(false)),
            ("TaskTemplate/ContainerSpec/Args", json!([""])),
            ("TaskTemplate/ContainerSpec/Labels", json!({ "empty": "" })),
            ("TaskTemplate/ContainerSpec/Labels", json!({ "rollback.invalid/networks": "n" })),
            ("TaskTemplate/RestartPolicy/Delay", json!(0)),
            ("TaskTemplate/Placement/Constraints", json!(["node.hostname == x"])),
            ("TaskTemplate/Networks", json!([{ "Target": "n" }])),
            ("TaskTemplate/LogDriver/Options", json!({ "tag": "" })),
        ] {
            assert!(changed(at, value.clone()), "{at} {value}");
        }
        let constraints =
            |all: Value| digest(&json!({ "TaskTemplate": { "Placement": { "Constraints": all } } }));
        assert_eq!(constraints(json!(["node.id==a", "b==c"])), constraints(json!(["b==c"])));
    }
}
