//! Tests: each thing that is noted or refused, by itself, and all of it at once.

use super::{image, names, of, read, small, with};
use crate::engine::swarm::spec::{Source, plan};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Settings of a service that cannot be carried over, each with words of the one refusal.
fn refused() -> Vec<(&'static str, Value, &'static str)> {
    let bind = |path: &str| json!([{ "type": "bind", "source": path, "target": "/t", "read_only": true }]);
    vec![
        ("privileged", json!(true), "`privileged` cannot be given"),
        ("devices", json!(["/dev/kvm"]), "the machine that has the device"),
        ("pid", json!("host"), "its own processes only"),
        ("ipc", json!("host"), "`ipc` cannot"),
        ("cgroup_parent", json!("x"), "`cgroup_parent` cannot"),
        ("userns_mode", json!("host"), "`userns_mode` cannot"),
        ("runtime", json!("kata"), "default-runtime"),
        ("volumes_from", json!(["db"]), "name the volumes"),
        ("storage_opt", json!({ "size": "1G" }), "`storage_opt` cannot"),
        ("gpus", json!("all"), "has the GPU"),
        ("external_links", json!(["x"]), "a network that both stacks are in"),
        ("links", json!(["db:mysql"]), "give db the alias mysql"),
        ("security_opt", json!(["seccomp:unconfined"]), "seccomp:unconfined"),
        ("network_mode", json!("none"), "`network_mode: none`"),
        ("network_mode", json!("service:db"), "`network_mode: service:db`"),
        ("networks", json!({ "default": { "ipv4_address": "10.0.0.2" } }), "reach web by its name"),
        ("ports", json!([{ "target": 80, "protocol": "tcp" }]), "port 80 has no fixed number"),
        ("ports", json!([{ "target": 80, "published": "7000-7005" }]), "port 80 has no fixed number"),
        ("ports", json!([{ "target": 0, "published": "80" }]), "is not understood"),
        ("volumes", bind("/var/run/docker.sock"), "/var/run/docker.sock belongs to one machine"),
        ("volumes", bind("/shop/conf"), "./conf: it cannot be read as a file (conf is not a file)"),
        ("volumes", bind("/shop"), "it cannot be read as a file"),
        ("volumes", bind("/shop/empty"), "takes no empty config"),
        ("volumes", bind("/shop/large"), "it has 512000 bytes"),
        ("volumes", json!([{ "type": "npipe", "source": "x", "target": "/t" }]), "type \"npipe\""),
        (
            "volumes",
            json!([{ "type": "volume", "source": "v", "target": "/t", "volume": { "subpath": "x" } }]),
            "subpath",
        ),
        ("tmpfs", json!(["/t:size=1m,uid=5"]), "the option uid=5"),
        ("tmpfs", json!(["/t:size=much"]), "\"much\" is not understood"),
        ("deploy", json!({ "mode": "replicated-job" }), "replicated-job"),
        ("deploy", json!({ "unheard": 1 }), "`deploy.unheard`"),
        ("deploy", json!({ "resources": { "reservations": { "devices": [{}] } } }), "GPUs"),
        ("deploy", json!({ "resources": { "limits": { "memory": "much" } } }), "no number of bytes"),
        ("restart", json!("sometimes"), "`restart: sometimes`"),
        ("stop_grace_period", json!("soon"), "\"soon\" is not a time"),
        ("configs", json!([{ "source": "c", "mode": "999" }]), "the mode \"999\""),
        ("unheard", json!({ "of": 1 }), "`unheard` is not known"),
    ]
}

#[test]
fn each_thing_that_cannot_be_carried_over_is_refused_by_itself() {
    for (name, value, words) in refused() {
        let plan = with(name, value.clone());
        let [refusal] = &plan.refusals[..] else { panic!("{name} {value}: {:?}", plan.refusals) };
        assert!(refusal.starts_with("web: ") && refusal.contains(words), "{name} {value}: {refusal}");
    }
    // The neighbours of what is refused are not.
    let bind = json!([{ "type": "bind", "source": "/shop/fits", "target": "/t", "read_only": true }]);
    for (name, value) in [
        ("privileged", json!(false)),
        ("devices", json!([])),
        ("ipc", json!("private")),
        ("runtime", json!("runc")),
        ("security_opt", json!(["no-new-privileges:false"])),
        ("links", json!(["db"])),
        ("volumes", bind),
        ("x-unheard", json!(1)),
        ("tmpfs", json!("/t:rw,noexec,size=1m,mode=700")),
    ] {
        let plan = with(name, value.clone());
        assert_eq!((plan.refusals, plan.notes.len()), (vec![], 1), "{name} {value}");
    }
}

#[test]
fn parts_of_a_stack_that_cannot_be_carried_over_are_refused() {
    let secret = json!({ "restart": "always", "secrets": [{ "source": "s" }] });
    let volume =
        json!({ "restart": "always", "volumes": [{ "type": "volume", "source": "v", "target": "/t" }] });
    let plain = json!({ "restart": "always" });
    let device = json!({ "type": "none", "o": "bind,ro", "device": "/srv" });
    for (settings, beside, words) in [
        (&secret, json!({ "secrets": { "s": { "environment": "KEY" } } }), "but the variable KEY"),
        (&secret, json!({ "secrets": { "s": { "file": "/etc/shadow" } } }), "/etc/shadow is outside"),
        (&secret, json!({ "secrets": { "s": { "file": "/shop/none" } } }), "cannot read its file none"),
        (&secret, json!({ "secrets": { "s": { "file": "/shop/empty" } } }), "takes no empty secret"),
        (&secret, json!({ "secrets": { "s": { "driver": "vault" } } }), "`driver`"),
        (&volume, json!({ "volumes": { "v": { "driver_opts": device } } }), "the folder /srv of one machine"),
        (&plain, json!({ "networks": { "default": { "driver": "macvlan" } } }), "the driver macvlan"),
        (&plain, json!({ "models": { "x": {} } }), "the compose file: `models`"),
    ] {
        let plan = small(settings.clone(), beside.clone());
        let [refusal] = &plan.refusals[..] else { panic!("{beside}: {:?}", plan.refusals) };
        assert!(refusal.contains(words), "{beside}: {refusal}");
    }
}

#[test]
fn all_refusals_are_told_at_once() {
    let mut settings = json!({ "restart": "always" });
    let mut wanted = 0;
    for (name, value, _) in refused() {
        // Compose lets nobody have both.
        if settings[name].is_null() && name != "networks" {
            settings[name] = value;
            wanted += 1;
        }
    }
    assert!(wanted > 15);
    let mut config = json!({ "services": { "web": settings, "a.b": {}, "c-": {}, "d": {} } });
    config["services"]["l".repeat(60)] = json!({});
    let services = names(&config);
    let images = services.iter().filter(|name| *name != "d").map(|name| (name.clone(), image())).collect();
    let source = Source {
        project: "shop",
        config: &config,
        images: &images,
        dir: Path::new("/shop"),
        read: &read,
        services: &services,
    };
    let refusals = plan(&source).unwrap().refusals;
    assert_eq!(
        refusals.iter().filter(|refusal| refusal.starts_with("web: ")).count(),
        wanted,
        "{refusals:#?}"
    );
    let others: Vec<&String> = refusals.iter().filter(|refusal| !refusal.starts_with("web: ")).collect();
    let words = [
        "a.b: a Swarm takes names of letters",
        "c-: a Swarm takes names of letters",
        "d: there is no image",
        "and shop_lll",
    ];
    assert_eq!(others.len(), words.len(), "{others:#?}");
    for word in words {
        assert!(others.iter().any(|refusal| refusal.contains(word)), "{word}: {others:#?}");
    }
}

#[test]
fn what_is_only_different_is_noted() {
    let bind = json!([{ "type": "bind", "source": "/shop/conf/my.cnf", "target": "/t" }]);
    let check = json!({ "test": ["CMD", "true"], "start_interval": "1s" });
    for (name, value, words) in [
        ("container_name", json!("site"), "reach it by that name"),
        ("security_opt", json!(["no-new-privileges:true"]), "`no-new-privileges` is not carried over"),
        ("cpuset", json!("0"), "`cpuset` is not carried over"),
        ("memswap_limit", json!("1g"), "`memswap_limit` is not carried over"),
        ("depends_on", json!({ "db": { "condition": "service_healthy" } }), "until db is healthy"),
        (
            "depends_on",
            json!({ "db": { "condition": "service_completed_successfully" } }),
            "until db has done its work",
        ),
        (
            "ports",
            json!([{ "target": 80, "published": "80", "host_ip": "192.0.2.1" }]),
            "not on 192.0.2.1 alone",
        ),
        ("volumes", json!([{ "type": "volume", "target": "/t" }]), "begins with an empty one"),
        ("volumes", bind, "./conf/my.cnf is a config"),
        ("healthcheck", check, "`start_interval`"),
        ("platform", json!("linux/arm/v7"), "by the platform"),
        ("mem_reservation", json!("1024"), "must be free on a node"),
        (
            "deploy",
            json!({ "update_config": { "failure_action": "rollback" } }),
            "goes back with this service alone",
        ),
    ] {
        let plan = with(name, value.clone());
        assert_eq!(plan.refusals, [""; 0], "{name} {value}");
        let own: Vec<&String> = plan.notes.iter().filter(|note| note.starts_with("web: ")).collect();
        let [note] = &own[..] else { panic!("{name} {value}: {own:?}") };
        assert!(note.contains(words), "{name} {value}: {note}");
    }
    // Of a service that is not made, nothing is said.
    assert_eq!(with("depends_on", json!({ "other": { "condition": "service_healthy" } })).notes.len(), 1);
    let host = small(
        json!({ "restart": "always", "network_mode": "host", "ports": [{ "target": 80, "published": "80" }] }),
        json!({}),
    );
    assert!(
        host.notes
            .contains(&"web: port 80 is not published, because it is one of the node already".to_owned())
    );
    assert_eq!(host.services["web"]["EndpointSpec"]["Ports"], json!([]));
    let options =
        json!({ "networks": { "default": { "driver_opts": { "com.docker.network.bridge.name": "br" } } } });
    let plan = small(json!({ "restart": "always" }), options);
    let option = "the network default: the option com.docker.network.bridge.name";
    assert!(plan.notes.iter().any(|note| note.starts_with(option)), "{:?}", plan.notes);
    assert_eq!(plan.networks[0].spec["Options"], Value::Null);
}

#[test]
fn what_compose_did_not_print_is_an_error() {
    let asked: BTreeSet<String> = ["web".to_owned()].into();
    let error = |config: Value, services: &BTreeSet<String>| {
        format!("{:#}", of("shop", &config, services).err().unwrap())
    };
    assert!(error(json!({}), &asked).contains("has no services"));
    assert!(error(json!({ "services": {} }), &asked).contains("no service web"));
    assert!(error(json!({ "services": { "web": {} } }), &BTreeSet::new()).contains("no service to start"));
}
