//! The whole `ServiceSpec` of one service. Called by `plan`.

use super::container::container;
use super::deploy;
use super::digest::{NETWORKS, digest};
use super::networks::{joined, ports};
use super::parts::Draft;
use super::reading::{is_empty, text};
use super::unsupported;
use serde_json::{Value, json};

/// The label with the name of the service in the compose file.
pub const SERVICE: &str = "rollback.invalid/service";

/// The label of a container with the digest of the spec that its task was made from.
pub const SETTINGS: &str = "rollback.invalid/settings";

/// The longest name that the engine takes for a service.
const LONGEST_NAME: usize = 63;

/// The `ServiceSpec` of a service. What it uses is added to the plan, and what cannot be carried over is refused there.
pub fn service(draft: &mut Draft<'_>, service: &str, settings: &Value) -> Value {
    let name = format!("{}_{service}", draft.source.project);
    check_name(draft, service, &name);
    let image = draft.source.images.get(service).cloned().unwrap_or_default();
    if image.is_empty() {
        draft.refuse(service, "there is no image of it; build it, or pull it, before the stack is deployed");
    }
    unsupported::check(draft, service, settings);
    let given = &settings["deploy"];
    deploy::check(draft, service, given);
    let joined = joined(draft, service, settings);
    let ports = ports(draft, service, settings, joined.is_host);
    let mut container = container(draft, service, &image, settings);
    let networks: Vec<&str> = joined.networks.iter().filter_map(|one| text(&one["Target"])).collect();
    let mut labels = draft.labels(&settings["labels"]);
    labels.insert(NETWORKS.to_owned(), networks.join(",").into());
    labels.insert(SERVICE.to_owned(), service.into());
    container.insert("Labels".to_owned(), labels.into());
    let mut own_labels = draft.labels(&given["labels"]);
    own_labels.insert(SERVICE.to_owned(), service.into());
    let mut spec = json!({
        "Name": name,
        "Labels": own_labels,
        "TaskTemplate": {
            "ContainerSpec": container,
            "RestartPolicy": deploy::restart_policy(draft, service, settings),
            "Networks": joined.networks,
        },
        "Mode": deploy::mode(draft, service, settings),
        "EndpointSpec": {
            "Mode": text(&given["endpoint_mode"]).filter(|mode| !mode.is_empty()).unwrap_or("dnsrr"),
            "Ports": ports,
        },
    });
    let log = &settings["logging"];
    let log = json!({
        "Name": text(&log["driver"]).unwrap_or_default(),
        "Options": if log["options"].is_null() { json!({}) } else { log["options"].clone() },
    });
    let parts = [
        ("Resources", deploy::resources(draft, service, settings)),
        ("Placement", deploy::placement(draft, service, settings)),
        ("LogDriver", if is_empty(&settings["logging"]) { Value::Null } else { log }),
    ];
    for (name, part) in parts.into_iter().filter(|(_, part)| !part.is_null()) {
        spec["TaskTemplate"][name] = part;
    }
    for (name, section) in [("UpdateConfig", "update_config"), ("RollbackConfig", "rollback_config")] {
        let change = deploy::change(draft, service, settings, section);
        if !change.is_null() {
            spec[name] = change;
        }
    }
    let settings = digest(&spec);
    spec["TaskTemplate"]["ContainerSpec"]["Labels"][SETTINGS] = settings.into();
    spec
}

/// Refuses a name that the engine would refuse.
fn check_name(draft: &mut Draft<'_>, service: &str, name: &str) {
    if name.len() > LONGEST_NAME {
        draft.refuse(
            service,
            format!("a Swarm takes names of {LONGEST_NAME} characters, and {name} is longer; shorten it"),
        );
    }
    let fits = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if !fits {
        draft.refuse(
            service,
            format!("a Swarm takes names of letters, digits, - and _, and {name} is none; rename it"),
        );
    }
}
