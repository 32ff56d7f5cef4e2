//! Parses what `docker compose config --format json` (Compose 2) and `docker-compose config` (Compose 1,
//! YAML) print. Pure: the caller runs Compose. Called only by `runtime`.
//!
//! Compose 2 writes everything in its long form, and real names. Compose 1 mixes short and long forms, leaves
//! default names and the default network out, and prints the services of every profile.

use crate::base::yaml;
use crate::stack::definition::{Definition, Environment, Mount, Port, Resolved, Resource, Service, Source};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use yaml_rust2::Yaml;

/// The format that a compose file names (`version: "3.8"`); none if it names none, or cannot be parsed.
pub fn format_of(compose_file: &str) -> Option<String> {
    let top = yaml::documents(compose_file).ok()?.into_iter().next()?;
    match &top["version"] {
        Yaml::String(format) | Yaml::Real(format) => Some(format.clone()),
        Yaml::Integer(format) => Some(format.to_string()),
        _ => None,
    }
}

/// Which stack the output is about.
pub struct Place<'a> {
    /// Its project.
    pub project: &'a str,
    /// Its folder, without links and `..`.
    pub dir: &'a Path,
    /// Is this path in the folder a file?
    pub is_file: &'a dyn Fn(&str) -> bool,
}

impl Place<'_> {
    /// Parses the output of Compose 2.
    pub fn compose_2(&self, json: &str) -> Result<Resolved> {
        let value = serde_json::from_str(&unescaped(json)).context("it is not JSON");
        value
            .and_then(|value| {
                Ok(Resolved { definition: self.definition(&value)?, environment: environment(&value) })
            })
            .context("cannot parse the output of docker compose config")
    }

    /// Parses the output of Compose 1.
    pub fn compose_1(&self, yaml: &str) -> Result<Resolved> {
        let parse = || -> Result<Resolved> {
            let mut documents = yaml::documents(&unescaped(yaml))?;
            let top = value(documents.pop().unwrap_or(Yaml::Null))?;
            let mut definition = self.definition(&top)?;
            let names_none =
                |service: &Value| service["networks"].is_null() && service["network_mode"].is_null();
            if map(&top["services"]).any(|(_, service)| names_none(service)) {
                let network = self.resource(DEFAULT, &top["networks"][DEFAULT]);
                definition.networks.insert(DEFAULT.to_owned(), network);
            }
            Ok(Resolved { definition, environment: environment(&top) })
        };
        parse().context("cannot parse the output of docker-compose config")
    }

    fn definition(&self, top: &Value) -> Result<Definition> {
        let mut services = BTreeMap::new();
        ensure!(top["services"].is_object(), "it has no services");
        for (name, value) in map(&top["services"]) {
            let service = self.service(top, value).with_context(|| format!("service {name}"))?;
            services.insert(name.clone(), service);
        }
        let resources = |kind: &str| {
            map(&top[kind]).map(|(key, value)| (key.clone(), self.resource(key, value))).collect()
        };
        let files = |kind: &str| {
            let all = map(&top[kind]).filter_map(|(key, value)| Some((key, text(&value["file"])?)));
            all.map(|(key, path)| (key.clone(), self.relative(path))).collect()
        };
        let mut definition = Definition::new(services, resources("volumes"), resources("networks"));
        (definition.configs, definition.secrets) = (files("configs"), files("secrets"));
        Ok(definition)
    }

    fn service(&self, top: &Value, service: &Value) -> Result<Service> {
        let mounts = list(&service["volumes"]).map(|value| self.mount(value));
        let mounts: Vec<Mount> = mounts.filter_map(Result::transpose).collect::<Result<_>>()?;
        let mut files: BTreeSet<String> = BTreeSet::new();
        for mount in &mounts {
            if let Source::Bind(path) = &mount.source
                && !path.starts_with('/')
                && (self.is_file)(path)
            {
                files.insert(path.clone());
            }
        }
        for kind in ["configs", "secrets"] {
            let used = list(&service[kind]).filter_map(|used| text(&used["source"]));
            let paths =
                used.filter_map(|name| text(&top[kind][name]["file"])).map(|path| self.relative(path));
            files.extend(paths.filter(|path| !path.starts_with('/')));
        }
        let check = &service["healthcheck"];
        let is_off =
            check["disable"] == true || list(&check["test"]).next().is_some_and(|word| word == "NONE");
        // Compose 2 prints a map, and Compose 1 may print a list.
        let depends_on = &service["depends_on"];
        let names = map(depends_on).map(|(name, _)| name.as_str());
        let names = names.chain(list(depends_on).filter_map(text)).map(str::to_owned);
        Ok(Service {
            image: text(&service["image"]).map(str::to_owned),
            has_build: !service["build"].is_null(),
            context: text(&service["build"]["context"])
                .or_else(|| text(&service["build"]))
                .map(|path| self.relative(path)),
            ports: list(&service["ports"]).map(port).collect::<Result<_>>()?,
            mounts,
            networks: self.networks(service),
            depends_on: names.collect(),
            restart: restart(service),
            has_health_check: !check.is_null() && !is_off,
            profiles: list(&service["profiles"]).filter_map(text).map(str::to_owned).collect(),
            containers: containers(service)?,
            files,
        })
    }

    /// The networks of a service. Compose 1 leaves out the default one, and may print a list.
    fn networks(&self, service: &Value) -> BTreeSet<String> {
        let networks = &service["networks"];
        if networks.is_null() && service["network_mode"].is_null() {
            return [DEFAULT.to_owned()].into();
        }
        map(networks)
            .map(|(key, _)| key.as_str())
            .chain(list(networks).filter_map(text))
            .map(str::to_owned)
            .collect()
    }

    /// A volume or a network. The name is left out where it is the default one.
    fn resource(&self, key: &str, value: &Value) -> Resource {
        let external = !matches!(value["external"], Value::Null | Value::Bool(false));
        let default = if external { key.to_owned() } else { format!("{}_{key}", self.project) };
        Resource { name: text(&value["name"]).map_or(default, str::to_owned), external }
    }

    /// `/target`, `source:target`, `source:target:options`, or the long form; none if it is only memory.
    fn mount(&self, value: &Value) -> Result<Option<Mount>> {
        let (source, target, read_only, selinux) = match text(value) {
            Some(short) => {
                let parts: Vec<&str> = short.split(':').collect();
                let (source, target, options) = match *parts {
                    [target] => (None, target, ""),
                    [source, target] => (Some(source), target, ""),
                    [source, target, options] => (Some(source), target, options),
                    _ => bail!("the volume {short:?} has too many parts"),
                };
                let mut options = options.split(',');
                let selinux = options.clone().find(|option| matches!(*option, "z" | "Z"));
                (source, target, options.any(|option| option == "ro"), selinux)
            }
            None if value["type"] == "volume" || value["type"] == "bind" => {
                let target =
                    text(&value["target"]).with_context(|| format!("the volume {value} has no target"))?;
                let selinux = text(&value["bind"]["selinux"]);
                (text(&value["source"]), target, value["read_only"] == true, selinux)
            }
            None => return Ok(None),
        };
        let source = match source {
            None => Source::Anonymous,
            Some(path) if path.starts_with('/') => Source::Bind(self.relative(path)),
            Some(key) => Source::Volume(key.to_owned()),
        };
        let selinux = selinux.map(str::to_owned);
        Ok(Some(Mount { source, target: target.to_owned(), read_only, selinux }))
    }

    /// A path as it is kept: relative if it is in the stack's folder.
    fn relative(&self, path: &str) -> String {
        match Path::new(path).strip_prefix(self.dir) {
            Ok(rest) if rest.as_os_str().is_empty() => ".".to_owned(),
            Ok(rest) => rest.display().to_string(),
            Err(_) => path.to_owned(),
        }
    }
}

/// The environment of each service: a map, or a list of `NAME=value`. A name without a value would come from the shell.
fn environment(top: &Value) -> Option<Environment> {
    let plain = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let of = |service: &Value| {
        let all = &service["environment"];
        let listed = list(all).filter_map(text).filter_map(|line| line.split_once('='));
        let named = map(all).filter_map(|(name, value)| Some((name.clone(), plain(value)?)));
        named.chain(listed.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
    };
    Some(map(&top["services"]).map(|(name, service)| (name.clone(), of(service))).collect())
}

/// The network of services that name none.
const DEFAULT: &str = "default";

/// Compose writes a `$` as `$$`, so that its output is a compose file again.
pub fn unescaped(output: &str) -> String {
    output.replace("$$", "$")
}

/// The restart policy. `deploy.restart_policy` counts if there is no `restart`, as Compose 2 has it.
fn restart(service: &Value) -> Option<String> {
    // Compose 1 prints `restart: no` as a truth value.
    if let Some(policy) = text(&service["restart"]) {
        return Some(policy.to_owned()).filter(|policy| policy != NEVER);
    }
    let policy = service["deploy"]["restart_policy"].as_object()?;
    match policy.get("condition").and_then(Value::as_str).unwrap_or("any") {
        "none" | NEVER => None,
        "any" => Some("always".to_owned()),
        "on-failure" => Some(match policy.get("max_attempts").and_then(Value::as_u64) {
            Some(most) if most > 0 => format!("on-failure:{most}"),
            _ => "on-failure".to_owned(),
        }),
        other => Some(other.to_owned()),
    }
}

/// The policy of a service that is never started again.
const NEVER: &str = "no";

/// How many containers a service has.
fn containers(service: &Value) -> Result<u32> {
    let deploy = &service["deploy"];
    let replicas = Some(&deploy["replicas"]).filter(|_| deploy["mode"] != "global");
    let told = [Some(&service["scale"]), replicas].into_iter().flatten().find(|number| !number.is_null());
    let Some(number) = told else { return Ok(1) };
    let count = number.as_u64().and_then(|count| u32::try_from(count).ok());
    count.with_context(|| format!("{number} is not a number of containers"))
}

/// The short form `[host ip:][published]:target[/protocol]`, or the long form.
fn port(value: &Value) -> Result<Port> {
    let unclear = || format!("the port {value} is not understood");
    let number = |text: &str| text.parse().ok().filter(|port| *port != 0);
    let Some(short) = text(value) else {
        let word = |name: &str| value[name].as_str().map(str::to_owned);
        let of = |name: &str| value[name].as_u64().map(|n| n.to_string()).or_else(|| word(name));
        return Ok(Port {
            host_ip: word("host_ip"),
            published: of("published").as_deref().and_then(number),
            target: of("target").as_deref().and_then(number).with_context(unclear)?,
            protocol: word("protocol").unwrap_or_else(|| TCP.to_owned()),
        });
    };
    let (ports, protocol) = short.rsplit_once('/').unwrap_or((short, TCP));
    let (rest, target) = ports.rsplit_once(':').unwrap_or(("", ports));
    // An IPv6 address has colons of its own.
    let (host_ip, published) = rest.rsplit_once(':').unwrap_or(("", rest));
    Ok(Port {
        host_ip: Some(host_ip.to_owned()).filter(|ip| !ip.is_empty()),
        published: number(published),
        target: number(target).with_context(unclear)?,
        protocol: protocol.to_owned(),
    })
}

const TCP: &str = "tcp";

/// The same value as JSON.
fn value(yaml: Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::String(text) | Yaml::Real(text) => text.into(),
        Yaml::Integer(number) => number.into(),
        Yaml::Boolean(truth) => truth.into(),
        Yaml::Array(all) => all.into_iter().map(value).collect::<Result<Vec<_>>>()?.into(),
        Yaml::Hash(all) => {
            let pair = |(key, inner): (Yaml, Yaml)| {
                let key = key.into_string().context("a key is not a text")?;
                Ok((key, value(inner)?))
            };
            Value::Object(all.into_iter().map(pair).collect::<Result<Map<_, _>>>()?)
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => bail!("it has a value that is not understood"),
    })
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn map(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ONE: &str = include_str!("captured/compose_1.yml");
    const TWO: &str = include_str!("captured/compose_2.json");

    fn place<'a>(is_file: &'a dyn Fn(&str) -> bool) -> Place<'a> {
        Place { project: "shop", dir: Path::new("/shop"), is_file }
    }

    fn port(host_ip: Option<&str>, published: Option<u16>, target: u16, protocol: &str) -> Value {
        json!({ "host_ip": host_ip, "published": published, "target": target, "protocol": protocol })
    }

    fn mount(source: Value, target: &str, read_only: bool) -> Value {
        json!({ "source": source, "target": target, "read_only": read_only })
    }

    #[test]
    fn both_versions_of_compose_give_the_same_model() {
        let is_file = |path: &str| path == "conf/a.conf";
        let place = place(&is_file);
        let found = place.compose_2(TWO).unwrap();
        assert_eq!(place.compose_1(ONE).unwrap(), found);
        let Resolved { definition: found, environment } = found;
        let web = &environment.unwrap()["web"];
        let pairs = [("PORT", "8100"), ("SECRET", "hunter2")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(*web, pairs.into());
        let volume = |key: &str| json!({ "volume": key });
        let bind = |path: &str| json!({ "bind": path });
        let local = Some("127.0.0.1");
        let model = json!({
            "version": 2,
            "services": {
                "db": {
                    "image": "shop-db:1", "has_build": false, "ports": [], "depends_on": [], "profiles": [],
                    "networks": ["default"],
                    "mounts": [mount(volume("shared"), "/var/lib/db", false)],
                    "has_health_check": false, "containers": 3, "files": [],
                },
                "tool": {
                    "image": "shop-tool:1", "has_build": false, "ports": [], "depends_on": [], "networks": [],
                    "profiles": ["debug", "tools"], "mounts": [], "has_health_check": false, "containers": 1,
                    "files": [],
                },
                "web": {
                    "image": "shop:1", "has_build": false, "depends_on": ["db"], "profiles": [],
                    "networks": ["inner"],
                    "ports": [
                        port(None, Some(8080), 80, "tcp"),
                        port(local, Some(8100), 81, "tcp"),
                        port(None, Some(9000), 9000, "tcp"),
                        port(None, Some(9001), 9001, "tcp"),
                        port(None, None, 82, "tcp"),
                        port(None, Some(5353), 53, "udp"),
                        port(Some("::1"), Some(6001), 6001, "tcp"),
                        port(None, None, 70, "tcp"),
                        port(local, None, 72, "udp"),
                        port(local, None, 73, "tcp"),
                        port(None, Some(9090), 90, "tcp"),
                    ],
                    "mounts": [
                        mount(volume("shared"), "/data", false),
                        mount(volume("named"), "/named", true),
                        mount(volume("ext"), "/ext", false),
                        mount("anonymous".into(), "/anonymous", false),
                        mount(bind("conf/a.conf"), "/etc/a.conf", true),
                        mount(bind("conf"), "/etc/conf", false),
                        mount(bind("pa$y"), "/pay", false),
                        mount(bind("/var/run/docker.sock"), "/var/run/docker.sock", false),
                        mount(volume("shared"), "/again", true),
                    ],
                    "has_health_check": true, "containers": 2, "files": ["conf/a.conf", "conf/token"],
                },
                "worker": {
                    "image": "shop-base:1", "has_build": true, "context": ".", "ports": [], "depends_on": ["db", "web"],
                    "networks": ["default"],
                    "profiles": [], "mounts": [], "has_health_check": false, "containers": 1, "files": [],
                },
            },
            "volumes": {
                "ext": { "name": "ext", "external": true },
                "named": { "name": "own_name", "external": false },
                "shared": { "name": "shop_shared", "external": false },
            },
            "networks": {
                "default": { "name": "shop_default", "external": false },
                "inner": { "name": "shop_inner", "external": false },
            },
            "configs": { "app": "conf/a.conf" },
            "secrets": { "token": "conf/token" },
        });
        assert_eq!(serde_json::to_value(&found).unwrap(), model);
        // Of the two variables of the env file, one is a secret.
        assert!(TWO.contains("hunter2") && ONE.contains("hunter2") && !model.to_string().contains("hunter2"));
        assert_eq!(Definition::parse(model.to_string().as_bytes()).unwrap(), found);
    }

    #[test]
    fn the_format_and_the_labels_of_selinux_are_found() {
        let format = |text: &str| format_of(text);
        for (text, wanted) in [
            ("version: '3.8'\nservices: {}", Some("3.8")),
            ("version: 3.7\nx: &a {b: 1}\ny: {<<: *a}", Some("3.7")),
            ("version: 2", Some("2")),
            ("services: {}", None),
            ("[", None),
            ("", None),
        ] {
            assert_eq!(format(text).as_deref(), wanted, "{text}");
        }
        let place = place(&|_| false);
        let yaml = "services: {a: {volumes: ['/shop/b:/c:ro,Z', {type: bind, source: /b, target: /d, bind: {selinux: z}}]}}";
        let found = place.compose_1(yaml).unwrap();
        let labels: Vec<_> =
            found.definition.services["a"].mounts.iter().map(|mount| mount.selinux.as_deref()).collect();
        assert_eq!(labels, [Some("Z"), Some("z")]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        let place = place(&|_| false);
        for (yaml, word) in [
            ("services: {a: {ports: ['x:y']}}", "the port \"x:y\""),
            ("services: {a: {ports: [{published: 80}]}}", "service a"),
            ("services: {a: {volumes: ['a:b:c:d']}}", "too many parts"),
            ("services: {a: {scale: -1}}", "containers"),
            ("services: {1: {}}", "not a text"),
            ("services: [", "not YAML"),
        ] {
            let error = format!("{:#}", place.compose_1(yaml).unwrap_err());
            assert!(error.contains("docker-compose config") && error.contains(word), "{yaml}: {error}");
        }
        assert!(format!("{:#}", place.compose_2("services").unwrap_err()).contains("not JSON"));
        assert!(format!("{:#}", place.compose_2("{}").unwrap_err()).contains("no services"));
    }
}
