//! Changes a compose file so that a rehearsal of its stack shares nothing with the real one: other ports, images,
//! containers, volumes and networks. Variables stay variables, so a drill can change a setting. Values only. Called by
//! `rehearsal`.

use crate::base::yaml;
use crate::stack::definition::Port;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use yaml_rust2::Yaml;

/// What the services of a rehearsal have instead, by their names.
#[derive(Debug, Default)]
pub struct Own {
    /// The ports that they publish.
    pub ports: BTreeMap<String, Vec<Port>>,
    /// The references of their images.
    pub images: BTreeMap<String, String>,
}

/// The text of a compose file for a rehearsal, as JSON, which every Compose reads as YAML. Compose adds up the ports of
/// several files, so they are taken out of `own` by the first file that has the service. Errors: it is not understood, or
/// a service uses the network of the host.
pub fn apart(text: &str, own: &mut Own) -> Result<String> {
    let mut documents = yaml::documents(text)?;
    let mut top = value(documents.pop().unwrap_or(Yaml::Null))?;
    for (name, service) in inner(&mut top, "services") {
        ensure!(
            service.get("network_mode").is_none_or(|mode| mode != "host"),
            "{name} uses the network of the host (network_mode: host), so it cannot run twice"
        );
        service.remove("container_name");
        service.remove("build");
        service.remove("ports");
        if let Some(image) = own.images.get(name) {
            service.insert("image".to_owned(), image.as_str().into());
        }
        if let Some(ports) = own.ports.remove(name) {
            service.insert("ports".to_owned(), ports.iter().map(port).collect());
        }
    }
    for kind in ["volumes", "networks"] {
        for (_, resource) in inner(&mut top, kind) {
            resource.remove("name");
            resource.remove("external");
        }
    }
    if let Some(top) = top.as_object_mut() {
        top.remove("name");
    }
    serde_json::to_string_pretty(&top).context("cannot write it")
}

/// The members of this section that are maps.
fn inner<'a>(
    top: &'a mut Value,
    section: &str,
) -> impl Iterator<Item = (&'a String, &'a mut Map<String, Value>)> {
    let members = top.get_mut(section).and_then(Value::as_object_mut).into_iter().flatten();
    members.filter_map(|(name, member)| Some((name, member.as_object_mut()?)))
}

/// The short form, because the long form of Compose 1 has no address.
fn port(port: &Port) -> Value {
    let Port { host_ip, published, target, protocol } = port;
    let published = published.map(|number| number.to_string()).unwrap_or_default();
    let host = match host_ip {
        Some(address) if address.contains(':') => format!("[{address}]:{published}:"),
        Some(address) => format!("{address}:{published}:"),
        None if published.is_empty() => published,
        None => format!("{published}:"),
    };
    format!("{host}{target}/{protocol}").into()
}

/// The same value as JSON; what `<<` merges into a map stands in it.
fn value(yaml: Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::String(text) => text.into(),
        Yaml::Real(text) => text.parse::<f64>().map_or(Value::String(text), Value::from),
        Yaml::Integer(number) => number.into(),
        Yaml::Boolean(truth) => truth.into(),
        Yaml::Array(all) => all.into_iter().map(value).collect::<Result<Vec<_>>>()?.into(),
        Yaml::Hash(all) => {
            let (mut own, mut merged) = (Map::new(), Map::new());
            for (key, member) in all {
                let key = match key {
                    Yaml::String(text) => text,
                    Yaml::Integer(number) => number.to_string(),
                    other => bail!("the key {other:?} is not a text"),
                };
                match (key.as_str(), value(member)?) {
                    ("<<", Value::Object(map)) => merged.extend(map),
                    // The first of several has the last word.
                    ("<<", Value::Array(maps)) => {
                        let maps = maps.into_iter().rev();
                        maps.for_each(|map| merged.extend(map.as_object().cloned().into_iter().flatten()));
                    }
                    (_, member) => drop(own.insert(key, member)),
                }
            }
            merged.extend(own);
            merged.into()
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => bail!("it has a value that is not understood"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const STACK: &str = "
name: shop
x-health: &health { interval: 1s, retries: 3 }
services:
  web:
    container_name: web
    build: .
    image: shop:${TAG}
    ports: ['${PORT}:80', '53:53/udp']
    environment: { PASSWORD: '${PASSWORD:?}', ON: true, RATIO: 0.5 }
    healthcheck: { <<: *health, retries: 5 }
  db: { image: db, volumes: ['data:/data', 'old:/old'] }
volumes:
  data:
  old: { name: shop-old, driver: local }
  theirs: { external: true }
networks: { default: { name: office, external: true } }
";

    fn own() -> Own {
        let port = Port {
            host_ip: Some("127.0.0.1".into()),
            published: Some(20001),
            target: 80,
            protocol: "tcp".into(),
        };
        Own {
            ports: [("web".to_owned(), vec![port])].into(),
            images: [("web".to_owned(), "d-web:drill".to_owned())].into(),
        }
    }

    #[test]
    fn ports_images_names_and_what_is_external_are_the_rehearsals_own_and_the_rest_stays() {
        let changed: Value = serde_json::from_str(&apart(STACK, &mut own()).unwrap()).unwrap();
        let web = json!({
            "image": "d-web:drill",
            "ports": ["127.0.0.1:20001:80/tcp"],
            "environment": { "PASSWORD": "${PASSWORD:?}", "ON": true, "RATIO": 0.5 },
            "healthcheck": { "interval": "1s", "retries": 5 },
        });
        assert_eq!(changed["services"]["web"], web);
        let db = json!({ "image": "db", "volumes": ["data:/data", "old:/old"] });
        assert_eq!(changed["services"]["db"], db);
        assert_eq!(changed["volumes"], json!({ "data": null, "old": { "driver": "local" }, "theirs": {} }));
        assert_eq!((&changed["networks"], &changed["name"]), (&json!({ "default": {} }), &Value::Null));
    }

    #[test]
    fn ports_stand_in_the_first_file_alone_because_compose_adds_them_up() {
        let mut own = own();
        apart(STACK, &mut own).unwrap();
        let second: Value = serde_json::from_str(&apart(STACK, &mut own).unwrap()).unwrap();
        assert_eq!(second["services"]["web"]["ports"], Value::Null);
    }

    #[test]
    fn ports_have_the_form_that_every_compose_reads() {
        let short = |host_ip: Option<&str>, published, protocol: &str| {
            let host_ip = host_ip.map(str::to_owned);
            port(&Port { host_ip, published, target: 80, protocol: protocol.into() })
        };
        assert_eq!(short(None, Some(1), "udp"), "1:80/udp");
        assert_eq!(short(None, None, "tcp"), "80/tcp");
        assert_eq!(short(Some("127.0.0.1"), None, "tcp"), "127.0.0.1::80/tcp");
        assert_eq!(short(Some("::1"), Some(2), "tcp"), "[::1]:2:80/tcp");
    }

    #[test]
    fn a_service_on_the_network_of_the_host_is_refused() {
        let text = "services: { web: { image: web, network_mode: host } }";
        let error = apart(text, &mut Own::default()).unwrap_err().to_string();
        assert!(error.starts_with("web uses the network of the host"), "{error}");
    }

    #[test]
    fn several_merges_go_from_the_first_to_the_last() {
        let text = "a: &a { x: 1 }\nb: &b { x: 2, y: 2 }\nc: { <<: [*a, *b], z: 3 }";
        let changed: Value = serde_json::from_str(&apart(text, &mut Own::default()).unwrap()).unwrap();
        assert_eq!(changed["c"], json!({ "x": 1, "y": 2, "z": 3 }));
    }
}
