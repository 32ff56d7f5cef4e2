//! What the gate of a stack covers, and what stays published while it is closed: from the rule of the manifest and
//! the definition of the stack. Pure. Called by `deploy`.

use crate::stack::definition::{Definition, Port, Service};
use crate::stack::gate_rule::{GateRule, Kind};
use crate::stack::manifest::{DataRule, DataRules};
use crate::stack::model;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What a gate covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// The kind of the gate.
    pub kind: Kind,
    /// The services that let the public in.
    pub services: BTreeSet<String>,
    /// Can the gate be closed while its service does not run?
    pub has_offline: bool,
    /// The addresses that must refuse a connection while the services are stopped.
    pub ports: BTreeSet<SocketAddr>,
    /// Published services that are not stopped.
    pub beside: Vec<Beside>,
}

/// A published service that the gate does not cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The service.
    pub service: String,
    /// Its addresses, in words.
    pub at: Vec<String>,
    /// Does it start with the stack?
    pub always: bool,
}

impl Cover {
    /// What the gate covers. An error if the rule names a service that the stack does not have, or if it is
    /// not known what the stack is.
    pub fn of(rule: &GateRule, definition: Option<&Definition>) -> Result<Self> {
        let GateRule::Stop(stop) = rule else {
            let services = rule.service().map(str::to_owned).into_iter().collect();
            let has_offline = rule.offline().is_some();
            return Ok(Self { kind: rule.kind(), services, has_offline, ..Self::stop() });
        };
        let definition = definition.context("it is not known which services this stack publishes")?;
        if let Some(name) =
            stop.services.iter().flatten().find(|name| !definition.services.contains_key(*name))
        {
            bail!("[gate] services names {name}, which is not a service of the stack");
        }
        let needed: BTreeSet<&String> = definition
            .services
            .iter()
            .flat_map(|(name, s)| s.depends_on.iter().filter(move |d| *d != name))
            .collect();
        let published = |service: &Service| !service.ports.is_empty();
        let covered = |(name, service): &(&String, &Service)| match &stop.services {
            Some(named) => named.contains(*name),
            None => published(service) && service.profiles.is_empty() && !needed.contains(*name),
        };
        let mut cover = Self::stop();
        for (name, service) in &definition.services {
            if covered(&(name, service)) {
                cover.services.insert(name.clone());
                cover.ports.extend(service.ports.iter().filter_map(published_at));
            } else if published(service) {
                let at = service.ports.iter().map(shown).collect();
                let always = service.profiles.is_empty();
                cover.beside.push(Beside { service: name.clone(), at, always });
            }
        }
        Ok(cover)
    }

    /// A gate that stops services, but none yet.
    pub fn stop() -> Self {
        let (services, ports) = (BTreeSet::new(), BTreeSet::new());
        Self { kind: Kind::Stop, services, has_offline: false, ports, beside: Vec::new() }
    }

    /// Does the gate stop its services?
    pub fn stops(&self) -> bool {
        self.kind == Kind::Stop
    }

    /// The services that are down while the gate is closed.
    pub fn stopped(&self) -> Vec<String> {
        self.services.iter().filter(|_| self.stops()).cloned().collect()
    }

    /// The data whose database is down while the gate is closed. A database reads a dump while it runs, so a dump of it
    /// could be restored only while the public is let in.
    pub fn not_restorable<'a>(&self, rules: &'a DataRules) -> Vec<&'a str> {
        let down = |rule: &DataRule| {
            rule.dump.as_ref().is_some_and(|dump| self.stops() && self.services.contains(&dump.service))
        };
        rules.each.iter().filter(|(_, rule)| down(rule)).map(|(name, _)| name.as_str()).collect()
    }

    /// What stays published while the gate is closed, as `db 0.0.0.0:5432`. A service of a profile counts
    /// only if it runs.
    pub fn not_closed(&self, services: Option<&BTreeMap<String, model::Service>>) -> Vec<String> {
        let runs = |name: &str| services.and_then(|all| all.get(name)).is_some_and(model::Service::is_live);
        let open = self.beside.iter().filter(|beside| beside.always || runs(&beside.service));
        open.flat_map(|beside| beside.at.iter().map(|at| format!("{} {at}", beside.service))).collect()
    }
}

/// The address of the engine's machine at which a port is published; none if the engine chooses the port, or for UDP,
/// which has no connections.
fn published_at(port: &Port) -> Option<SocketAddr> {
    let ip = port.host_ip.as_deref().map_or(Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), str::parse).ok()?;
    (port.protocol == "tcp").then_some(())?;
    Some(SocketAddr::new(ip, port.published?))
}

fn shown(port: &Port) -> String {
    let ip = port.host_ip.as_deref().unwrap_or("0.0.0.0");
    let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let protocol = if port.protocol == "tcp" { "" } else { "/udp" };
    match port.published {
        Some(published) => format!("{ip}:{published}{protocol}"),
        None => format!("{ip}, a port that the engine chooses for {}{protocol}", port.target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::gate_rule::Command;
    use crate::stack::gate_rule::StopGate;
    use crate::stack::manifest::Dump;

    fn service(ports: &[(Option<&str>, u16)], depends_on: &[&str]) -> Service {
        let port = |(ip, published): &(Option<&str>, u16)| Port {
            host_ip: ip.map(str::to_owned),
            published: Some(*published),
            target: 1,
            protocol: "tcp".into(),
        };
        Service {
            ports: ports.iter().map(port).collect(),
            depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
            ..Service::default()
        }
    }

    fn definition() -> Definition {
        let services = [
            ("proxy", service(&[(None, 80), (Some("::"), 443)], &["api"])),
            ("api", service(&[(Some("127.0.0.1"), 8080)], &["db"])),
            ("db", service(&[(None, 5432)], &[])),
            ("worker", service(&[], &["db"])),
            ("grafana", Service { profiles: ["more".into()].into(), ..service(&[(None, 3000)], &[]) }),
        ];
        let services = services.map(|(name, service)| (name.to_owned(), service));
        Definition::new(services.into(), BTreeMap::new(), BTreeMap::new())
    }

    #[test]
    fn every_published_service_is_covered_but_one_that_others_depend_on_is_named() {
        let cover = Cover::of(&GateRule::default(), Some(&definition())).unwrap();
        assert_eq!(cover.stopped(), ["proxy"]);
        let ports: Vec<String> = cover.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["0.0.0.0:80", "[::]:443"]);
        assert_eq!(cover.not_closed(None), ["api 127.0.0.1:8080", "db 0.0.0.0:5432"]);
    }

    #[test]
    fn a_dump_of_a_database_that_is_down_while_the_gate_is_closed_cannot_be_restored() {
        let program = || Command(vec!["true".into()]);
        let of = |service: &str| {
            let dump = Dump { service: service.into(), backup: program(), restore: program() };
            (format!("{service}_data"), DataRule { dump: Some(dump), before_deploy: false })
        };
        let rules = DataRules { each: [of("db"), of("proxy")].into(), ..DataRules::default() };
        let cover = Cover::of(&GateRule::default(), Some(&definition())).unwrap();
        assert_eq!(cover.not_restorable(&rules), ["proxy_data"]);
        assert!(Cover { kind: Kind::Http, ..cover }.not_restorable(&rules).is_empty());
    }

    #[test]
    fn those_that_are_named_are_covered_and_no_others() {
        let named = |names: &[&str]| {
            let services = names.iter().map(|name| (*name).to_owned()).collect();
            GateRule::Stop(StopGate { services: Some(services) })
        };
        let cover = Cover::of(&named(&["proxy", "api"]), Some(&definition())).unwrap();
        assert_eq!(cover.stopped(), ["api", "proxy"]);
        assert_eq!(cover.not_closed(None), ["db 0.0.0.0:5432"]);
        let error = Cover::of(&named(&["door"]), Some(&definition())).unwrap_err().to_string();
        assert!(error.contains("door"), "{error}");
        assert!(Cover::of(&named(&["proxy"]), None).is_err());
    }
}
