//! The checks of a stack whose manifest has none. Pure. Called by `target`.

use crate::stack::check::{Check, Kind};
use crate::stack::definition::Definition;

/// The checks of a stack whose manifest has none: the engine's health of each service that always starts, and a
/// connection to each of its published TCP ports. A UDP port gives no answer that could be checked.
pub fn default_checks(stack: &Definition) -> Vec<Check> {
    let starts =
        stack.services.iter().filter(|(_, service)| service.profiles.is_empty() && service.containers > 0);
    let mut all = Vec::new();
    for (name, service) in starts {
        all.push(Check::new(format!("{name} is up"), Kind::Healthy { service: name.clone() }));
        let mut ports: Vec<u16> =
            service.ports.iter().filter(|port| port.protocol == "tcp").map(|port| port.target).collect();
        ports.sort_unstable();
        ports.dedup();
        all.extend(ports.into_iter().map(|port| {
            Check::new(
                format!("{name} accepts connections on {port}"),
                Kind::Tcp { service: name.clone(), port },
            )
        }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::check::DEADLINE;
    use crate::stack::definition::{Port, Service};
    use std::collections::BTreeMap;

    #[test]
    fn a_stack_without_checks_has_those_of_its_services_and_ports() {
        let port = |target, protocol: &str| Port {
            host_ip: None,
            published: None,
            target,
            protocol: protocol.into(),
        };
        let one = || Service { containers: 1, ..Service::default() };
        let services = BTreeMap::from([
            (
                "proxy".to_owned(),
                Service {
                    ports: vec![port(443, "tcp"), port(80, "tcp"), port(80, "tcp"), port(53, "udp")],
                    ..one()
                },
            ),
            ("worker".to_owned(), one()),
            ("tools".to_owned(), Service { profiles: ["debug".to_owned()].into(), ..one() }),
            ("off".to_owned(), Service { containers: 0, ..one() }),
        ]);
        let all = default_checks(&Definition::new(services, BTreeMap::new(), BTreeMap::new()));
        let told: Vec<(&str, &Kind)> = all.iter().map(|check| (check.name.as_str(), &check.kind)).collect();
        let up = |service: &str| Kind::Healthy { service: service.into() };
        let tcp = |port| Kind::Tcp { service: "proxy".into(), port };
        assert_eq!(
            told,
            [
                ("proxy is up", &up("proxy")),
                ("proxy accepts connections on 80", &tcp(80)),
                ("proxy accepts connections on 443", &tcp(443)),
                ("worker is up", &up("worker")),
            ]
        );
        assert!(all.iter().all(|check| check.deadline == DEADLINE));
    }
}
