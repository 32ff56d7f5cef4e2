//! What a stack asks for that cannot work, all of it at once. Pure: `needs` says what must be there already, the
//! engine says what of it is missing, and `problems` judges. Called by an engine (`Inspect::refusals`), for `up`
//! and for the target of a rollback, before anything is changed.

use crate::stack::check::Kind;
use crate::stack::definition::{Definition, Port, Service, Source};
use crate::stack::manifest::Manifest;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Something that a stack needs and does not make.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// An external volume, by its name in the engine.
    Volume(String),
    /// An external network, by its name in the engine.
    Network(String),
    /// A file or folder outside the stack's folder, mounted by a service.
    Path(String),
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "the external volume {name}"),
            Self::Network(name) => write!(f, "the external network {name}"),
            Self::Path(path) => write!(f, "{path}, which is outside the stack's folder"),
        }
    }
}

impl Need {
    /// What to do if it is missing.
    fn fix(&self) -> String {
        match self {
            Self::Volume(name) => format!("docker volume create {name}"),
            Self::Network(name) => format!("docker network create {name}"),
            Self::Path(_) => {
                "make it on the machine of the engine, because Docker would mount an empty folder in its place; a path with `..` \
                              must be written as an absolute one, because a release has a folder of its own"
                    .to_owned()
            }
        }
    }
}

/// What the services that always start need and somebody else makes. What only a profile needs is not asked for.
pub fn needs(definition: &Definition) -> BTreeSet<Need> {
    let mut all = BTreeSet::new();
    for (_, service) in always(definition) {
        for mount in &service.mounts {
            match &mount.source {
                Source::Volume(key) => {
                    let external = definition.volumes.get(key).filter(|volume| volume.external);
                    all.extend(external.map(|volume| Need::Volume(volume.name.clone())));
                }
                Source::Bind(path) if path.starts_with('/') => {
                    all.insert(Need::Path(path.clone()));
                }
                Source::Bind(_) | Source::Anonymous => {}
            }
        }
        let networks = service.networks.iter().filter_map(|key| definition.networks.get(key));
        all.extend(networks.filter(|n| n.external).map(|n| Need::Network(n.name.clone())));
    }
    all
}

/// Everything that is wrong. `files` are those of the release. `missing` is what the engine does not have of `needs`. None: the stack can be deployed
/// and rolled back.
pub fn problems(
    definition: &Definition,
    manifest: &Manifest,
    files: &BTreeSet<String>,
    missing: &BTreeSet<Need>,
) -> Vec<String> {
    let mut all = Vec::new();
    let known: Vec<&str> = definition.services.keys().map(String::as_str).collect();
    let by_service = |all: Vec<(String, &'_ str)>| {
        let mut each: BTreeMap<String, Vec<String>> = BTreeMap::new();
        all.into_iter().for_each(|(place, name)| each.entry(name.to_owned()).or_default().push(place));
        each
    };
    let (asked, entered) = (named(manifest), entered(manifest).collect::<Vec<_>>());
    for (name, places) in by_service([asked.clone(), entered].concat()) {
        if !definition.services.contains_key(&name) {
            let (at, has) = (shown(&places), known.join(", "));
            all.push(format!(
                "pilot.toml names the service {name} ({at}), which the compose file does not have; it has {has}"
            ));
        }
    }
    for (name, places) in by_service(asked) {
        if definition.services.get(&name).is_some_and(|service| !is_published(service)) {
            all.push(format!(
                "pilot.toml sends requests to {name} ({}), which publishes no fixed TCP port, so nobody can reach it; \
                 give it one under `ports:`",
                shown(&places)
            ));
        }
    }
    for (name, service) in always(definition) {
        let binds = service.mounts.iter().filter_map(|mount| match &mount.source {
            Source::Bind(path) if !path.starts_with('/') && !is_kept(files, path) => Some(path),
            _ => None,
        });
        all.extend(binds.map(|path| {
            format!(
                "{name} mounts ./{path}, which is not a file of the release, so each release would begin with an \
                 empty folder; use a volume, or an absolute path, which is the same for all releases"
            )
        }));
    }
    let needed = needs(definition);
    all.extend(needed.intersection(missing).map(|need| format!("{need}, is missing: {}", need.fix())));
    all.sort();
    all.dedup();
    all
}

/// Everything that cannot work with an engine on another machine, `host`: that has no file of this one, and what it
/// publishes for itself alone is reached only where `reaches_loopback` says so.
pub fn not_elsewhere(definition: &Definition, host: &str, reaches_loopback: bool) -> Vec<String> {
    let mut all = Vec::new();
    for (name, service) in always(definition) {
        let files = files_of(service);
        if !files.is_empty() {
            all.push(format!(
                "{name} mounts {}, and the engine is on {host}, which does not have the files of this machine; put \
                 them into the image, or run the command on {host}",
                files.join(", ")
            ));
        }
        let local = |port: &&Port| {
            let ip = port.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
            port.protocol == "tcp" && ip.is_some_and(|ip| ip.is_loopback())
        };
        if let Some(port) = service.ports.iter().find(local).filter(|_| !reaches_loopback) {
            let at = port.published.map_or_else(|| "a port".to_owned(), |published| published.to_string());
            all.push(format!(
                "{name} publishes {at} for {host} alone (127.0.0.1), so it is not reached from here; use an engine \
                 address like ssh://USER@{host}, or publish it at an address of {host} under `ports:`"
            ));
        }
    }
    all
}

/// What a service needs of the files of the stack, while it runs: its mounts, and its configs and secrets.
pub fn files_of(service: &Service) -> Vec<String> {
    let bound = service.mounts.iter().filter_map(|mount| match &mount.source {
        Source::Bind(path) if !path.starts_with('/') => Some(format!("./{path}")),
        _ => None,
    });
    bound.chain(service.files.iter().map(|file| format!("./{file}"))).collect()
}

/// The first of several places.
fn shown(places: &[String]) -> String {
    let more = places.len().saturating_sub(SHOWN);
    let first = places.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// How many places of a manifest are named in one message.
const SHOWN: usize = 4;

/// What the stack mounts from outside its folder. It is no part of a release: a rollback does not bring it back.
pub fn not_in_a_release(definition: &Definition) -> Vec<String> {
    let paths = needs(definition).into_iter().filter_map(|need| match need {
        Need::Path(path) => Some(path),
        Need::Volume(_) | Need::Network(_) => None,
    });
    paths.collect()
}

/// Every service that a manifest sends requests to, with the part that does.
fn named(manifest: &Manifest) -> Vec<(String, &str)> {
    let services = manifest.services.iter().map(|service| ("[[services]]".to_owned(), service.name.as_str()));
    let more = manifest.observability.iter();
    let more = more.map(|service| ("[[observability]]".to_owned(), service.name.as_str()));
    let gate = manifest.gate.named().into_iter().map(|service| ("[gate]".to_owned(), service));
    let evidence = manifest.evidence.iter();
    let evidence = evidence.filter_map(|document| {
        Some((format!("[[evidence]] {:?}", document.file), document.service.as_deref()?))
    });
    let checks = manifest.checks.iter().filter_map(|check| {
        let service = match &check.kind {
            Kind::Http(exchange) => exchange.call.request.service.as_deref()?,
            Kind::Tcp { service, .. } => service,
            Kind::Exec { .. } | Kind::Script(_) | Kind::Healthy { .. } => return None,
        };
        Some((format!("[[check]] {:?}", check.name), service))
    });
    services.chain(more).chain(gate).chain(evidence).chain(checks).collect()
}

/// Every service whose container a manifest wants to look into, with the part that does.
fn entered(manifest: &Manifest) -> impl Iterator<Item = (String, &str)> {
    manifest.checks.iter().filter_map(|check| match &check.kind {
        Kind::Exec { service, .. } | Kind::Healthy { service } => {
            Some((format!("[[check]] {:?}", check.name), service.as_str()))
        }
        Kind::Http(_) | Kind::Tcp { .. } | Kind::Script(_) => None,
    })
}

/// The services that start without a profile.
fn always(definition: &Definition) -> impl Iterator<Item = (&String, &Service)> {
    definition.services.iter().filter(|(_, service)| service.profiles.is_empty())
}

fn is_published(service: &Service) -> bool {
    service.ports.iter().any(|Port { published, protocol, .. }| published.is_some() && protocol == "tcp")
}

/// Is this path, or something in it, a file of the release?
fn is_kept(files: &BTreeSet<String>, path: &str) -> bool {
    files.iter().any(|file| {
        file == path || path == "." || file.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::definition::{Mount, Resource};

    fn port(published: Option<u16>, protocol: &str) -> Port {
        Port { host_ip: None, published, target: 80, protocol: protocol.to_owned() }
    }

    fn mount(source: Source) -> Mount {
        Mount { source, target: "/there".into(), read_only: false, selinux: None }
    }

    /// The pilot's services, as its manifest wants them.
    fn stack() -> (Definition, Manifest) {
        let manifest = Manifest::built_in().unwrap();
        let names = manifest.services.iter().chain(&manifest.observability);
        let services = names.map(|service| {
            let ports = vec![port(Some(8080), "tcp")];
            (service.name.clone(), Service { ports, containers: 1, ..Service::default() })
        });
        let outer = |name: &str| Resource { name: name.to_owned(), external: true };
        let own = |name: &str| Resource { name: name.to_owned(), external: false };
        let volumes = [("own".to_owned(), own("p_own")), ("theirs".to_owned(), outer("x-volume"))];
        let networks = [("default".to_owned(), own("p_default")), ("edge".to_owned(), outer("x-network"))];
        (Definition::new(services.collect(), BTreeMap::from(volumes), BTreeMap::from(networks)), manifest)
    }

    fn service<'a>(definition: &'a mut Definition, name: &str) -> &'a mut Service {
        definition.services.get_mut(name).unwrap()
    }

    #[test]
    fn a_stack_that_is_right_has_no_problems() {
        let (mut definition, manifest) = stack();
        let jobs = service(&mut definition, "jobs");
        jobs.mounts = vec![
            mount(Source::Volume("own".into())),
            mount(Source::Volume("theirs".into())),
            mount(Source::Bind("conf/a.conf".into())),
            mount(Source::Bind("conf".into())),
            mount(Source::Bind("/etc/localtime".into())),
            mount(Source::Anonymous),
        ];
        jobs.networks = ["default".to_owned(), "edge".to_owned()].into();
        assert_eq!(
            problems(&definition, &manifest, &["conf/a.conf".to_owned()].into(), &BTreeSet::new()),
            [""; 0]
        );
        let needed = needs(&definition);
        let all = [
            Need::Volume("x-volume".into()),
            Need::Network("x-network".into()),
            Need::Path("/etc/localtime".into()),
        ];
        assert_eq!(needed, all.into());
        assert_eq!(not_in_a_release(&definition), ["/etc/localtime"]);
        // A profile that nobody starts needs nothing.
        service(&mut definition, "jobs").profiles = ["tools".to_owned()].into();
        assert_eq!(needs(&definition), BTreeSet::new());
    }

    #[test]
    fn files_of_this_machine_and_ports_of_that_alone_do_not_work_elsewhere() {
        let (mut definition, _) = stack();
        assert_eq!(not_elsewhere(&definition, "staging", false), [""; 0]);
        let gateway = service(&mut definition, "gateway");
        gateway.mounts = vec![mount(Source::Bind("nginx.conf".into())), mount(Source::Volume("own".into()))];
        gateway.files = ["secrets/key".to_owned()].into();
        let engine = service(&mut definition, "engine");
        engine.ports = vec![Port { host_ip: Some("127.0.0.1".into()), ..port(Some(3002), "tcp") }];
        let found = not_elsewhere(&definition, "staging", false);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(
            found[1].contains("gateway mounts ./nginx.conf, ./secrets/key") && found[1].contains("staging")
        );
        assert!(found[0].contains("engine publishes 3002") && found[0].contains("ssh://USER@staging"));
        // Through ssh it is reached.
        assert_eq!(not_elsewhere(&definition, "staging", true).len(), 1);
        // What only a profile starts is not asked for.
        service(&mut definition, "gateway").profiles = ["tools".to_owned()].into();
        assert_eq!(not_elsewhere(&definition, "staging", true), [""; 0]);
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let (mut definition, manifest) = stack();
        definition.services.remove("grafana");
        let gateway = service(&mut definition, "gateway");
        gateway.ports = vec![port(Some(53), "udp"), port(None, "tcp")];
        let engine = service(&mut definition, "engine");
        engine.mounts = vec![mount(Source::Bind("data".into())), mount(Source::Bind("/srv/x".into()))];
        engine.mounts.push(mount(Source::Volume("theirs".into())));
        engine.networks = ["edge".to_owned()].into();
        let missing = needs(&definition);
        let found = problems(&definition, &manifest, &BTreeSet::new(), &missing);
        for words in [
            &["[[observability]]", "grafana", "does not have; it has engine, gateway, jobs, prometheus"][..],
            &["[[services]]", "gateway", "no fixed TCP port"],
            &["[gate]", "gateway", "no fixed TCP port"],
            &["[[evidence]]", "\"metrics.json\"", "gateway"],
            &["engine mounts ./data", "use a volume"],
            &["/srv/x", "is missing", "make it"],
            &["x-volume", "is missing: docker volume create x-volume"],
            &["x-network", "is missing: docker network create x-network"],
        ] {
            let told = found.iter().any(|problem| words.iter().all(|word| problem.contains(word)));
            assert!(told, "{words:?} is not in {found:#?}");
        }
        assert_eq!(found.len(), 6, "{found:#?}");
    }
}
