//! Tests: the pilot and a stack with a bit of everything, as Compose printed them; what an engine (Docker 20.10.24)
//! reported after it was sent the plans of both. What is noted or refused is in `refusals`.

mod refusals;

use super::digest::plain;
use super::parts::{Network, Volume};
use super::*;
use anyhow::bail;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const PILOT: &str = include_str!("../../captured/pilot.json");
const SHOP: &str = include_str!("../../captured/shop.json");

/// By the name of the service in the engine.
fn reported() -> BTreeMap<String, Value> {
    serde_json::from_str(include_str!("../../captured/reported.json")).unwrap()
}

fn image() -> String {
    format!("sha256:{}", "a2".repeat(32))
}

/// The files of `shop`.
fn read(name: &str) -> Result<Vec<u8>> {
    Ok(match name {
        "conf/web.conf" => b"ServerName shop\n".to_vec(),
        "conf/my.cnf" => b"[mysqld]\n".to_vec(),
        "conf/token" => b"hunter2\n".to_vec(),
        "conf/tls.key" => b"x\n".to_vec(),
        "empty" => Vec::new(),
        "large" => vec![b'x'; 500 * 1024],
        "fits" => vec![b'x'; 500 * 1024 - 1],
        other => bail!("{other} is not a file"),
    })
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(&text.replace("$$", "$")).unwrap()
}

fn names(config: &Value) -> BTreeSet<String> {
    config["services"].as_object().unwrap().keys().cloned().collect()
}

/// The plan of a stack in the folder /shop, with these services.
fn of(project: &str, config: &Value, services: &BTreeSet<String>) -> Result<Plan> {
    let images = services.iter().map(|name| (name.clone(), image())).collect();
    plan(&Source { project, config, images: &images, dir: Path::new("/shop"), read: &read, services })
}

fn shop() -> Plan {
    let config = parsed(SHOP);
    of("shop", &config, &names(&config)).unwrap()
}

/// A stack of one service with these settings, and this beside `services`.
fn small(settings: Value, beside: Value) -> Plan {
    let mut config = json!({ "services": { "web": settings, "db": {} } });
    let beside = beside.as_object().cloned().unwrap_or_default();
    config.as_object_mut().unwrap().extend(beside);
    of("shop", &config, &["web", "db"].map(str::to_owned).into()).unwrap()
}

/// The same, with one of the settings.
fn with(name: &str, value: Value) -> Plan {
    small(json!({ "restart": "always", name: value }), json!({}))
}

fn of_web(plan: &Plan) -> &Value {
    &plan.services["web"]["TaskTemplate"]
}

#[test]
fn the_engine_reports_what_it_was_sent() {
    let pilot = parsed(PILOT);
    let pilot = of("pilot-deploy", &pilot, &names(&pilot)).unwrap();
    let reported = reported();
    let mut seen = 0;
    for plan in [pilot, shop()] {
        assert_eq!(plan.refusals, [""; 0]);
        for sent in plan.services.values() {
            let mut found = reported[sent["Name"].as_str().unwrap()].clone();
            found["TaskTemplate"]["ContainerSpec"]["Image"] = image().into();
            assert_eq!(plain(&found), plain(sent));
            assert_eq!(digest(&found), digest(sent));
            // The label is of the spec without it.
            let labels = &sent["TaskTemplate"]["ContainerSpec"]["Labels"];
            assert_eq!(labels[SETTINGS], digest(sent));
            let name = format!("{}_{}", labels[STACK].as_str().unwrap(), labels[SERVICE].as_str().unwrap());
            assert_eq!(sent["Name"], name);
            seen += 1;
        }
    }
    assert_eq!(seen, reported.len());
}

/// Every value of a spec, by its JSON pointer, those inside of others too.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(list) => list.iter().enumerate().map(|(n, value)| (n.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in inner {
        let at = format!("{at}/{key}");
        pointers(value, &at, all);
        all.push(at);
    }
}

#[test]
fn every_change_of_a_service_changes_its_digest_but_those_of_a_moment() {
    let plan = shop();
    let ignored = |at: &str| {
        let starts = ["/UpdateConfig", "/RollbackConfig"].iter().any(|start| at.starts_with(start));
        let ends = ["ID", "/Target", "~1settings", "~1service"].iter().any(|end| at.ends_with(end));
        starts || ends && !at.contains("/Mounts/") && !at.ends_with("UID") && !at.ends_with("GID")
    };
    let (mut changed, mut kept) = (0, 0);
    for spec in plan.services.values() {
        let mut all = Vec::new();
        pointers(spec, "", &mut all);
        for at in all {
            let mut other = spec.clone();
            let value = other.pointer_mut(&at).unwrap();
            *value = match value.take() {
                Value::String(text) => (text + "x").into(),
                Value::Number(number) => match number.as_i64() {
                    Some(whole) => (whole + 1).into(),
                    None => (number.as_f64().unwrap() + 1.0).into(),
                },
                Value::Bool(truth) => (!truth).into(),
                Value::Array(mut list) => {
                    list.push("x".into());
                    list.into()
                }
                Value::Object(mut map) => {
                    map.insert("X".into(), "x".into());
                    map.into()
                }
                Value::Null => panic!("{at} is null"),
            };
            assert_eq!(digest(&other) == digest(spec), ignored(&at), "{at}");
            if ignored(&at) { kept += 1 } else { changed += 1 }
        }
    }
    assert!(changed > 200 && kept > 20, "{changed} {kept}");
}

#[test]
fn the_pilot_needs_nothing_more_than_its_ports_are_open() {
    let config = parsed(PILOT);
    let plan = of("pilot-deploy", &config, &names(&config)).unwrap();
    let wanted: Vec<String> = [("engine", 3002), ("gateway", 3001), ("jobs", 3003)]
        .iter()
        .flat_map(|(service, port)| {
            [
                format!("{service}: `no-new-privileges` is not carried over: Docker 20.10 has no such setting for services"),
                format!("{service}: port {port} is published on every address of its nodes, not on 127.0.0.1 alone"),
            ]
        })
        .collect();
    assert_eq!(plan.notes, wanted);
    let network = json!({
        "Name": "pilot-network", "Driver": "overlay", "CheckDuplicate": true, "Attachable": true, "Internal": false,
        "EnableIPv6": false, "Labels": { "com.docker.stack.namespace": "pilot-deploy" },
    });
    assert_eq!(plan.networks, [Network { name: "pilot-network".into(), external: false, spec: network }]);
    let volumes = ["engine", "gateway", "jobs"].map(|name| format!("pilot-deploy_{name}_data"));
    assert_eq!(plan.volumes, volumes.map(|name| (name, Volume { external: false })).into());
    assert!(plan.configs.is_empty() && plan.secrets.is_empty());
}

#[test]
fn a_file_is_named_by_its_content_and_a_secret_is_nowhere_else() {
    let plan = shop();
    let of = |files: &[File]| -> BTreeMap<String, String> {
        files.iter().map(|f| (f.name.clone(), String::from_utf8(f.data.clone()).unwrap())).collect()
    };
    let configs = [
        ("shop_app-4eb83554e803", "ServerName shop\n"),
        ("shop_conf-my-cnf-ae926cd4574b", "[mysqld]\n"),
        ("shop_conf-web-conf-4eb83554e803", "ServerName shop\n"),
        ("shop_inline-6cb9719ab3ec", "port = 8080\ncost = 5$\n"),
    ];
    let owned = |(name, data): (&str, &str)| (name.to_owned(), data.to_owned());
    assert_eq!(of(&plan.configs), configs.map(owned).into());
    let secrets = [
        ("shop_db_password-46a9d5bde718", "hunter2\n"),
        ("shop_tls-73cb3858a687", "x\n"),
        ("shop_token-46a9d5bde718", "hunter2\n"),
    ];
    assert_eq!(of(&plan.secrets), secrets.map(owned).into());
    let said = [plan.notes.join(" "), json!(plan.services).to_string()].concat();
    assert!(!said.contains("hunter2"));
    for file in plan.configs.iter().chain(&plan.secrets) {
        assert_eq!(file.labels, [("com.docker.stack.namespace".into(), "shop".into())].into());
    }
    // A value of the environment, which can be one, is in no label.
    let plan = with("environment", json!({ "PASSWORD": "hunter3" }));
    let labels = |spec: &Value| {
        [spec["Labels"].to_string(), of_web(&plan)["ContainerSpec"]["Labels"].to_string()].concat()
    };
    assert!(json!(plan.services).to_string().contains("PASSWORD=hunter3"));
    assert!(!labels(&plan.services["web"]).contains("hunter3"));
}

#[test]
fn only_what_the_asked_services_use_is_made() {
    let config = parsed(SHOP);
    let plan = of("shop", &config, &["db".to_owned()].into()).unwrap();
    assert_eq!(plan.services.keys().collect::<Vec<_>>(), ["db"]);
    assert_eq!(plan.networks.iter().map(|network| &network.name).collect::<Vec<_>>(), ["backbone"]);
    assert_eq!(
        plan.configs.iter().map(|file| &file.name).collect::<Vec<_>>(),
        ["shop_conf-my-cnf-ae926cd4574b"]
    );
    assert_eq!(
        plan.secrets.iter().map(|file| &file.name).collect::<Vec<_>>(),
        ["shop_db_password-46a9d5bde718"]
    );
    assert_eq!(plan.volumes.keys().collect::<Vec<_>>(), ["shop_database"]);
}

#[test]
fn what_is_external_is_named_and_not_made() {
    let beside = json!({
        "networks": { "out": { "name": "company", "external": true } },
        "volumes": { "old": { "external": true } },
        "secrets": { "key": { "name": "company_key", "external": true } },
        "configs": { "hosts": { "external": true } },
    });
    let settings = json!({
        "restart": "always", "networks": { "out": null }, "secrets": [{ "source": "key" }], "configs": ["hosts"],
        "volumes": [{ "type": "volume", "source": "old", "target": "/old" }],
    });
    let plan = small(settings, beside);
    assert_eq!(plan.refusals, [""; 0]);
    let network = Network { name: "company".into(), external: true, spec: Value::Null };
    assert!(plan.networks.contains(&network));
    assert_eq!(plan.volumes, [("old".into(), Volume { external: true })].into());
    assert!(plan.configs.is_empty() && plan.secrets.is_empty());
    let container = &of_web(&plan)["ContainerSpec"];
    assert_eq!(container["Mounts"], json!([{ "Type": "volume", "Source": "old", "Target": "/old" }]));
    assert_eq!(container["Secrets"][0]["SecretName"], "company_key");
    let target = json!({ "Name": "/hosts", "UID": "0", "GID": "0", "Mode": 0o444 });
    assert_eq!(container["Configs"], json!([{ "ConfigID": "", "ConfigName": "hosts", "File": target }]));
}

#[test]
fn restart_is_what_the_stack_says_and_without_a_word_never() {
    let policy = |settings: Value| of_web(&small(settings, json!({})))["RestartPolicy"].clone();
    let second = 1_000_000_000_u64;
    for (settings, wanted) in [
        (json!({}), json!({ "Condition": "none" })),
        (json!({ "restart": "no" }), json!({ "Condition": "none" })),
        (json!({ "restart": "always" }), json!({ "Condition": "any", "Delay": second })),
        (json!({ "restart": "unless-stopped" }), json!({ "Condition": "any", "Delay": second })),
        (json!({ "restart": "on-failure" }), json!({ "Condition": "on-failure", "Delay": second })),
        (
            json!({ "restart": "on-failure:3" }),
            json!({ "Condition": "on-failure", "Delay": second, "MaxAttempts": 3 }),
        ),
        (
            json!({ "restart": "no", "deploy": { "restart_policy": { "delay": "3s" } } }),
            json!({ "Condition": "any", "Delay": 3 * second }),
        ),
        (
            json!({ "restart": "always", "deploy": { "restart_policy": { "condition": "none" } } }),
            json!({ "Condition": "none" }),
        ),
    ] {
        assert_eq!(policy(settings.clone()), wanted, "{settings}");
        let noted = small(settings, json!({}))
            .notes
            .iter()
            .any(|note| note.starts_with("web: it is never started again"));
        assert_eq!(noted, wanted["Condition"] == "none");
    }
}

#[test]
fn limits_are_those_of_deploy_or_those_beside_it() {
    let resources = |settings: Value| of_web(&small(settings, json!({})))["Resources"].clone();
    let beside = json!({ "mem_limit": "1g", "cpus": "0.25", "pids_limit": -1, "mem_reservation": 1024 });
    let wanted = json!({
        "Limits": { "MemoryBytes": 1 << 30, "NanoCPUs": 250_000_000 }, "Reservations": { "MemoryBytes": 1024 },
    });
    assert_eq!(resources(beside.clone()), wanted);
    let mut both = beside;
    both["deploy"] = json!({ "resources": { "limits": { "memory": "2048", "pids": 5 } } });
    let wanted = json!({
        "Limits": { "MemoryBytes": 2048, "NanoCPUs": 250_000_000, "Pids": 5 }, "Reservations": { "MemoryBytes": 1024 },
    });
    assert_eq!(resources(both), wanted);
    assert_eq!(resources(json!({})), Value::Null);
    let generic = json!([{ "discrete_resource_spec": { "kind": "gpu", "value": 2 } }]);
    let generic = json!({ "deploy": { "resources": { "reservations": { "generic_resources": generic } } } });
    let wanted = json!([{ "DiscreteResourceSpec": { "Kind": "gpu", "Value": 2 } }]);
    assert_eq!(resources(generic)["Reservations"]["GenericResources"], wanted);
}

#[test]
fn copies_are_counted_where_compose_counts_them() {
    let mode = |settings: Value| small(settings, json!({})).services["web"]["Mode"].clone();
    let copies = |n: u32| json!({ "Replicated": { "Replicas": n } });
    assert_eq!(mode(json!({})), copies(1));
    assert_eq!(mode(json!({ "scale": 3 })), copies(3));
    assert_eq!(mode(json!({ "scale": 0 })), copies(0));
    assert_eq!(mode(json!({ "deploy": { "replicas": 0 } })), copies(0));
    assert_eq!(mode(json!({ "deploy": { "mode": "global", "replicas": 2 } })), json!({ "Global": {} }));
}

#[test]
fn a_value_stays_what_it_is_where_the_engine_would_read_a_template_and_an_empty_entrypoint_too() {
    let container = |name: &str, value: Value| of_web(&with(name, value))["ContainerSpec"].clone();
    let environment = json!({ "A": "{{.Node.ID}}", "B": null, "C": true, "D": 5 });
    let wanted = json!(["A={{\"{{\"}}.Node.ID}}", "C=true", "D=5"]);
    assert_eq!(container("environment", environment)["Env"], wanted);
    assert_eq!(container("environment", json!(["B=1", "C", "A=2"]))["Env"], json!(["A=2", "B=1"]));
    assert_eq!(container("hostname", json!("{{x}}"))["Hostname"], "{{\"{{\"}}x}}");
    assert_eq!(container("entrypoint", json!([]))["Command"], json!([""]));
    assert_eq!(container("entrypoint", Value::Null)["Command"], Value::Null);
    // As older versions of Compose print it.
    assert_eq!(
        container("extra_hosts", json!(["a:192.0.2.1", "b=::1"]))["Hosts"],
        json!(["192.0.2.1 a", "::1 b"])
    );
}
