//! Networks and published ports of a service. Called by `service`.

use super::parts::{Draft, Network};
use super::reading::{integer, is_empty, list, map, text, words};
use serde_json::{Map, Value, json};

/// The network of services that name none.
const DEFAULT: &str = "default";

/// The network of the machine itself; the engine has one of this name.
const HOST: &str = "host";

/// Options of networks that are only on one machine.
const OF_BRIDGES: &str = "com.docker.network.bridge.";

/// The networks of a service.
pub struct Joined {
    /// For `TaskTemplate.Networks`: by real name, in the order of the names.
    pub networks: Vec<Value>,
    /// Does it use the network of the machine?
    pub is_host: bool,
}

/// The networks that a service joins. They are added to the plan.
pub fn joined(draft: &mut Draft<'_>, service: &str, settings: &Value) -> Joined {
    let none = Joined { networks: Vec::new(), is_host: false };
    match text(&settings["network_mode"]) {
        None | Some("") => {}
        Some(HOST) => return Joined { networks: vec![json!({ "Target": HOST })], is_host: true },
        Some(other) => {
            let what = format!(
                "`network_mode: {other}` has no counterpart on a Swarm; use `networks`, and reach other services by their \
                 names"
            );
            draft.refuse(service, what);
            return none;
        }
    }
    let default = json!({ DEFAULT: null });
    let networks = if is_empty(&settings["networks"]) { &default } else { &settings["networks"] };
    let mut all: Vec<(String, Value)> = Vec::new();
    for (key, own) in map(networks) {
        for word in ["ipv4_address", "ipv6_address", "link_local_ips", "mac_address"] {
            if !is_empty(&own[word]) {
                let what = format!(
                    "`{word}` cannot be chosen on a Swarm; remove it, and reach {service} by its name"
                );
                draft.refuse(service, what);
            }
        }
        let mut aliases = words(&own["aliases"]);
        aliases.push(service.to_owned());
        // Compose makes the name of the container a name in the network.
        aliases.extend(text(&settings["container_name"]).map(str::to_owned));
        aliases.sort();
        aliases.dedup();
        let name = of_stack(draft, key);
        let mut made = json!({ "Target": name, "Aliases": aliases });
        if !is_empty(&own["driver_opts"]) {
            made["DriverOpts"] = own["driver_opts"].clone();
        }
        all.push((name, made));
    }
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    Joined { networks: all.into_iter().map(|(_, made)| made).collect(), is_host: false }
}

/// The real name of a network, which is added to the plan.
fn of_stack(draft: &mut Draft<'_>, key: &str) -> String {
    let value = &draft.source.config["networks"][key];
    let external = !is_empty(&value["external"]);
    let default = if external { key.to_owned() } else { format!("{}_{key}", draft.source.project) };
    let name = text(&value["name"]).map_or(default, str::to_owned);
    if draft.plan.networks.iter().any(|network| network.name == name) {
        return name;
    }
    let spec = if external { Value::Null } else { overlay(draft, key, &name, value) };
    draft.plan.networks.push(Network { name: name.clone(), external, spec });
    name
}

/// The body of `POST /networks/create`.
fn overlay(draft: &mut Draft<'_>, key: &str, name: &str, value: &Value) -> Value {
    let subject = format!("the network {key}");
    if let Some(driver) =
        text(&value["driver"]).filter(|driver| !matches!(*driver, "" | "bridge" | "overlay"))
    {
        draft.refuse(&subject, format!("the driver {driver} does not join nodes; leave `driver` out"));
    }
    let mut options = Map::new();
    for (option, setting) in map(&value["driver_opts"]) {
        if option.starts_with(OF_BRIDGES) {
            draft.note(
                &subject,
                format!("the option {option} is not used, because it is of a single machine"),
            );
        } else {
            options.insert(option.clone(), setting.clone());
        }
    }
    let mut spec = json!({
        "Name": name,
        "Driver": "overlay",
        "CheckDuplicate": true,
        "Attachable": true,
        "Internal": value["internal"] == true,
        "EnableIPv6": value["enable_ipv6"] == true,
        "Labels": draft.labels(&value["labels"]),
    });
    if !options.is_empty() {
        spec["Options"] = options.into();
    }
    let ipam = &value["ipam"];
    let pools: Vec<Value> = list(&ipam["config"]).map(pool).collect();
    if !pools.is_empty() {
        let driver = text(&ipam["driver"]).filter(|driver| !driver.is_empty()).unwrap_or(DEFAULT);
        spec["IPAM"] = json!({ "Driver": driver, "Config": pools });
        if !is_empty(&ipam["options"]) {
            spec["IPAM"]["Options"] = ipam["options"].clone();
        }
    }
    spec
}

/// A range of addresses.
fn pool(value: &Value) -> Value {
    let names = [
        ("subnet", "Subnet"),
        ("ip_range", "IPRange"),
        ("gateway", "Gateway"),
        ("aux_addresses", "AuxiliaryAddresses"),
    ];
    let given = names.into_iter().filter(|(ours, _)| !is_empty(&value[*ours]));
    Value::Object(given.map(|(ours, theirs)| (theirs.to_owned(), value[ours].clone())).collect())
}

/// The ports that a service publishes, for `EndpointSpec.Ports`. Each is published on the node of its task, so that each
/// task can be asked by itself: what Compose prints does not tell whether the mode was chosen.
pub fn ports(draft: &mut Draft<'_>, service: &str, settings: &Value, is_host: bool) -> Vec<Value> {
    let mut all = Vec::new();
    for port in list(&settings["ports"]) {
        let number = |name: &str| integer(&port[name]).filter(|port| (1..=65_535).contains(port));
        let protocol = text(&port["protocol"]).filter(|word| !word.is_empty()).unwrap_or("tcp");
        let Some(target) = number("target") else {
            draft.refuse(service, format!("the port {port} is not understood; write it as 8080:80"));
            continue;
        };
        if is_host {
            draft.note(
                service,
                format!("port {target} is not published, because it is one of the node already"),
            );
            continue;
        }
        let Some(published) = number("published") else {
            let what = format!(
                "port {target} has no fixed number outside, so nobody knows where to ask; write it as {target}:{target}"
            );
            draft.refuse(service, what);
            continue;
        };
        let address = text(&port["host_ip"]).filter(|ip| !matches!(*ip, "" | "0.0.0.0" | "::"));
        if let Some(address) = address {
            let what = format!(
                "port {published} is published on every address of its nodes, not on {address} alone"
            );
            draft.note(service, what);
        }
        let made = json!({
            "Protocol": protocol, "TargetPort": target, "PublishedPort": published, "PublishMode": "host",
        });
        // One on several addresses is the same port here.
        if !all.contains(&made) {
            all.push(made);
        }
    }
    all
}
