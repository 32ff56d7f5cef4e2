//! How many tasks a service has, where, with what limits, and what happens when one ends: `deploy` of a service, and what
//! says the same beside it. Called by `service`.

use super::parts::Draft;
use super::reading::{bytes, integer, is_empty, list, map, nano_cpus, nanoseconds, text, words};
use serde_json::{Map, Value, json};

/// How long the engine waits before it starts a task again, where the stack says only `restart`. Compose begins with 0.1 s
/// and doubles it; 5 s, which a Swarm waits otherwise, would count in each rollback.
const RESTART_DELAY_NS: i64 = 1_000_000_000;

/// The settings of `deploy` that are understood.
const KNOWN: [&str; 9] = [
    "mode",
    "replicas",
    "endpoint_mode",
    "labels",
    "placement",
    "resources",
    "restart_policy",
    "update_config",
    "rollback_config",
];

/// Refuses the settings of `deploy` that are not understood.
pub fn check(draft: &mut Draft<'_>, service: &str, deploy: &Value) {
    for (key, value) in map(deploy) {
        if !KNOWN.contains(&key.as_str()) && !is_empty(value) && !key.starts_with("x-") {
            draft.refuse(service, format!("`deploy.{key}` is not supported; remove it"));
        }
    }
}

/// `Mode`.
pub fn mode(draft: &mut Draft<'_>, service: &str, settings: &Value) -> Value {
    let deploy = &settings["deploy"];
    match text(&deploy["mode"]) {
        None | Some("" | "replicated") => {}
        Some("global") => return json!({ "Global": {} }),
        Some(other) => {
            draft.refuse(
                service,
                format!("`deploy.mode: {other}` is not supported; use replicated or global"),
            );
        }
    }
    let copies = integer(&deploy["replicas"]).or_else(|| integer(&settings["scale"])).unwrap_or(1);
    if copies > 1 && !is_empty(&settings["ports"]) {
        draft.note(
            service,
            format!("it publishes ports, so each of its {copies} tasks needs a node of its own"),
        );
    }
    json!({ "Replicated": { "Replicas": copies } })
}

/// `TaskTemplate.Resources`; null if there are none.
pub fn resources(draft: &mut Draft<'_>, service: &str, settings: &Value) -> Value {
    let of = |kind: &str, inner: &str| settings["deploy"]["resources"][kind][inner].clone();
    let or = |told: Value, beside: &str| if is_empty(&told) { settings[beside].clone() } else { told };
    let reservations = &settings["deploy"]["resources"]["reservations"];
    let reserved = or(of("reservations", "memory"), "mem_reservation");
    if is_empty(&of("reservations", "memory")) && !is_empty(&reserved) {
        draft.note(service, "`mem_reservation` must be free on a node before its task is started there");
    }
    if !is_empty(&reservations["devices"]) {
        draft.refuse(service, "devices (GPUs) cannot be reserved on a Swarm in this way; remove `devices`");
    }
    let mut read = |what: &str, told: Value, value: Option<i64>| match value {
        None if !is_empty(&told) => {
            draft.refuse(
                service,
                format!("{told} is no number of {what}; write 512M for bytes, 0.5 for CPUs"),
            );
            None
        }
        value => value.filter(|value| *value != 0),
    };
    let (cpus, memory) = (or(of("limits", "cpus"), "cpus"), or(of("limits", "memory"), "mem_limit"));
    let pids = or(of("limits", "pids"), "pids_limit");
    let own_cpus = of("reservations", "cpus");
    let limits = filled([
        ("NanoCPUs", read("CPUs", cpus.clone(), nano_cpus(&cpus)).map(Value::from)),
        ("MemoryBytes", read("bytes", memory.clone(), bytes(&memory)).map(Value::from)),
        // -1 means no limit.
        ("Pids", read("processes", pids.clone(), integer(&pids)).filter(|most| *most > 0).map(Value::from)),
    ]);
    let generic: Vec<Value> = list(&reservations["generic_resources"]).map(generic).collect();
    let reservations = filled([
        ("NanoCPUs", read("CPUs", own_cpus.clone(), nano_cpus(&own_cpus)).map(Value::from)),
        ("MemoryBytes", read("bytes", reserved.clone(), bytes(&reserved)).map(Value::from)),
        ("GenericResources", Some(generic).filter(|all| !all.is_empty()).map(Value::from)),
    ]);
    let some = |value: Value| Some(value).filter(|value| !is_empty(value));
    let all = filled([("Limits", some(limits)), ("Reservations", some(reservations))]);
    some(all).unwrap_or_default()
}

/// A resource that only the administrator of the nodes knows.
fn generic(value: &Value) -> Value {
    let one = &value["discrete_resource_spec"];
    json!({ "DiscreteResourceSpec": { "Kind": one["kind"], "Value": integer(&one["value"]) } })
}

/// `TaskTemplate.RestartPolicy`: that of `deploy`, else what `restart` says.
pub fn restart_policy(draft: &mut Draft<'_>, service: &str, settings: &Value) -> Value {
    let policy = &settings["deploy"]["restart_policy"];
    let mut made = if policy.is_null() {
        let restart = text(&settings["restart"]).unwrap_or("no");
        let (word, most) = restart.split_once(':').unwrap_or((restart, ""));
        let most = most.parse::<u64>().ok().map(Value::from);
        let condition = match word {
            "no" | "" => "none",
            "on-failure" => "on-failure",
            "always" | "unless-stopped" => "any",
            other => {
                draft.refuse(service, format!("`restart: {other}` is not known; write unless-stopped"));
                "none"
            }
        };
        let delay = (condition != "none").then(|| RESTART_DELAY_NS.into());
        filled([("Condition", Some(condition.into())), ("MaxAttempts", most), ("Delay", delay)])
    } else {
        filled([
            ("Condition", Some(text(&policy["condition"]).unwrap_or("any").into())),
            ("Delay", time(draft, service, &policy["delay"])),
            ("MaxAttempts", integer(&policy["max_attempts"]).map(Value::from)),
            ("Window", time(draft, service, &policy["window"])),
        ])
    };
    // Other words that Compose takes.
    if made["Condition"] == "no" {
        made["Condition"] = "none".into();
    }
    if made["Condition"] == "none" {
        draft.note(
            service,
            "it is never started again, also not on another node when its node is lost, unless `restart` says so",
        );
    }
    made
}

/// `TaskTemplate.Placement`; null if a task may be anywhere.
pub fn placement(draft: &mut Draft<'_>, service: &str, settings: &Value) -> Value {
    let given = &settings["deploy"]["placement"];
    let constraints = words(&given["constraints"]);
    let spread = list(&given["preferences"]).filter_map(|one| text(&one["spread"]));
    let spread: Vec<Value> = spread.map(|by| json!({ "Spread": { "SpreadDescriptor": by } })).collect();
    let platforms = text(&settings["platform"]).and_then(|platform| {
        let mut parts = platform.split('/');
        match (parts.next()?, parts.next()?) {
            (os, architecture @ ("amd64" | "arm64")) => {
                Some(json!({ "OS": os, "Architecture": architecture }))
            }
            // Nodes have other names for the other ones.
            _ => None,
        }
    });
    if platforms.is_none() && !is_empty(&settings["platform"]) {
        let what =
            format!("a node is not chosen by the platform {}; use `deploy.placement`", settings["platform"]);
        draft.note(service, what);
    }
    let made = filled([
        ("Constraints", Some(json!(constraints)).filter(|all| !is_empty(all))),
        ("Preferences", Some(json!(spread)).filter(|all| !is_empty(all))),
        ("MaxReplicas", integer(&given["max_replicas_per_node"]).filter(|most| *most > 0).map(Value::from)),
        ("Platforms", platforms.map(|one| json!([one]))),
    ]);
    Some(made).filter(|made| !is_empty(made)).unwrap_or_default()
}

/// `UpdateConfig` or `RollbackConfig`; null if there is none.
pub fn change(draft: &mut Draft<'_>, service: &str, settings: &Value, section: &str) -> Value {
    let given = &settings["deploy"][section];
    if is_empty(given) {
        return Value::Null;
    }
    if given["failure_action"] == "rollback" {
        let what = "with `failure_action: rollback`, the Swarm goes back with this service alone, and the stack then has \
                    parts of two releases";
        draft.note(service, what);
    }
    let copied = |name: &str| Some(given[name].clone()).filter(|value| !value.is_null());
    filled([
        ("Parallelism", Some(integer(&given["parallelism"]).unwrap_or(1).into())),
        ("Delay", time(draft, service, &given["delay"])),
        ("FailureAction", copied("failure_action")),
        ("Monitor", time(draft, service, &given["monitor"])),
        ("MaxFailureRatio", given["max_failure_ratio"].as_f64().map(Value::from)),
        ("Order", copied("order")),
    ])
}

/// A time in nanoseconds; none if there is none.
pub fn time(draft: &mut Draft<'_>, service: &str, value: &Value) -> Option<Value> {
    let read = nanoseconds(value);
    if read.is_none() && !is_empty(value) {
        draft.refuse(service, format!("{value} is not a time; write it as 1m30s"));
    }
    read.map(Value::from)
}

/// A map of what there is.
pub fn filled<const N: usize>(all: [(&str, Option<Value>); N]) -> Value {
    let there = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect::<Map<_, _>>())
}
