//! A node of a Swarm, as its managers see it. Values only. Called by the other files of `swarm`.

use serde_json::Value;
use std::net::IpAddr;

/// A node, as the managers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The id that the Swarm gave it.
    pub id: String,
    /// Its host name.
    pub name: String,
    /// Where the ports of its tasks are.
    pub ip: Option<IpAddr>,
    /// Do the managers hear of it, or have they not yet had the time to?
    pub is_ready: bool,
    /// `active`, `pause` or `drain`.
    pub availability: String,
    /// `leader`, `reachable` or `unreachable`; none if it is no manager.
    pub manager: Option<String>,
}

impl Node {
    /// May a task be put there?
    pub fn takes_tasks(&self) -> bool {
        self.is_ready && self.availability == "active"
    }
}

/// What `GET /nodes` says. Pure.
pub fn nodes(list: &Value) -> Vec<Node> {
    let one = |node: &Value| {
        let text = |pointer: &str| node.pointer(pointer).and_then(Value::as_str);
        let ip = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified());
        let of_manager = || text("/ManagerStatus/Addr")?.rsplit_once(':').and_then(|(host, _)| ip(host));
        let leads = node.pointer("/ManagerStatus/Leader") == Some(&Value::Bool(true));
        let reach = text("/ManagerStatus/Reachability");
        Some(Node {
            id: text("/ID")?.to_owned(),
            name: text("/Description/Hostname").unwrap_or("?").to_owned(),
            ip: text("/Status/Addr").and_then(ip).or_else(of_manager),
            // A new leader has not heard of every node yet.
            is_ready: matches!(text("/Status/State"), Some("ready" | "unknown")),
            availability: text("/Spec/Availability").unwrap_or("active").to_owned(),
            manager: if leads { Some("leader".into()) } else { reach.map(str::to_owned) },
        })
    };
    let mut all: Vec<Node> = list.as_array().into_iter().flatten().filter_map(one).collect();
    all.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    all
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// A node that is ready.
    pub fn node(id: &str) -> Node {
        Node {
            id: id.into(),
            name: format!("host-{id}"),
            ip: None,
            is_ready: true,
            availability: "active".into(),
            manager: None,
        }
    }

    #[test]
    fn nodes_are_as_the_managers_see_them() {
        let node = |id: &str, state: &str, availability: &str, manager: Value| {
            json!({"ID": id, "Description": {"Hostname": format!("host-{id}")},
                   "Status": {"State": state, "Addr": "10.0.0.7"}, "Spec": {"Availability": availability},
                   "ManagerStatus": manager})
        };
        let lead = json!({"Leader": true, "Reachability": "reachable", "Addr": "10.0.0.7:2377"});
        let list = json!([
            node("c", "down", "active", Value::Null),
            node("a", "ready", "active", lead),
            node("b", "ready", "drain", json!({"Reachability": "unreachable", "Addr": "10.0.0.8:2377"})),
        ]);
        let found = nodes(&list);
        let told = |node: &Node| (node.name.clone(), node.takes_tasks(), node.manager.clone());
        assert_eq!(
            found.iter().map(told).collect::<Vec<_>>(),
            [
                ("host-a".into(), true, Some("leader".into())),
                ("host-b".into(), false, Some("unreachable".into())),
                ("host-c".into(), false, None),
            ]
        );
        // The leader of old engines says 0.0.0.0 of itself.
        let own =
            json!([{"ID": "a", "Status": {"Addr": "0.0.0.0"}, "ManagerStatus": {"Addr": "10.0.0.9:2377"}}]);
        assert_eq!(nodes(&own)[0].ip, Some("10.0.0.9".parse().unwrap()));
    }
}
