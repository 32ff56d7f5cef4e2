//! Reads the sections of a manifest. Each reads all its keys before it gives up, so that every mistake is noted. Called
//! by `Manifest::parse`.

use super::gate::{command, gate};
use super::outward;
use super::reading::{Need, Table, Value};
use super::requests::{Scope, names_fit, one_of, pointed, pointer};
use super::values::{
    Auth, Build, Contact, DataRule, DataRules, Document, Drill, Dump, EVIDENCE_FILES, EVIDENCE_OF_SERVICE,
    Flags, HealthRule, Host, Limits, LoadRule, Manifest, MemoryRule, Projects, Remote, Row, Seed, Service,
    SessionRule, WatchRule,
};
use crate::base::files;
use crate::base::secrets;
use crate::stack::check::{Check, Criterion};
use crate::stack::gate_rule::GateRule;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Variables that this program knows in a check.
const OF_CHECK: [&str; 2] = ["PROJECT", "SESSION"];

/// Least time between two looks of the watch.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// The whole manifest.
pub fn manifest(top: &Table<'_>) -> Option<Manifest> {
    let version = top.need("version", |value| match value.number(0..u64::MAX)? {
        version @ 1..=2 => Some(version),
        version => value.wrong(format!("its version is {version}, but this xtask only knows 1 and 2")),
    });
    let services = top.each("services", service);
    let names: Vec<String> = services.iter().map(|service| service.name.clone()).collect();
    let scope = Scope { services: &names, own: &["PROJECT"], env: true };
    let in_check = Scope { own: &OF_CHECK, ..scope };
    let checks = top.each("check", |value| in_check.check(value));
    let criteria = top.each("criteria", |value| criterion(value, scope));
    names_fit(top, &checks, &criteria);
    let gate = top.or("gate", GateRule::default(), |value| gate(value, &names));
    let evidence = top.each("evidence", |value| document(value, scope));
    evidence_fits(top, &evidence, &names);
    let rest = Manifest {
        extra_files: top.or("extra_files", Vec::new(), |value| value.list(&mut in_folder)),
        observability: top.each("observability", service),
        secrets: top.or("secrets", secrets::Rules::default(), secret),
        auth: top.or("auth", Auth::default(), auth),
        health: top.get("health", |value| health(value, scope)),
        memory: top.get("memory", |value| memory(value, scope)),
        sessions: top.get("sessions", |value| sessions(value, scope)),
        load: top.get("load", |value| load(value, scope)),
        flags: top.get("flags", |value| flags(value, scope)),
        limits: top.or("limits", Limits::default(), limits),
        watch: top.or("watch", WatchRule::default(), |value| watch(value, &checks)),
        data: top.or("data", DataRules::default(), |value| data(value, scope)),
        remote: top.get("remote", remote),
        host: top.or("host", Host::default(), host),
        escalation: top.each("escalation", contact),
        env_file: top.get("env_file", in_folder),
        env_example: top.get("env_example", in_folder),
        compose_file: top.get("compose_file", in_folder),
        seed_file: top.get("seed_file", in_folder),
        build: top.get("build", build),
        projects: top.or("projects", Projects::default(), projects),
        seed: top.get("seed", |value| seed(value, scope)),
        gate,
        services,
        checks,
        criteria,
        evidence,
        drill: top.or("drill", Drill::default(), drill),
        notify: top.get("notify", outward::notify),
        metrics: top.get("metrics", outward::metrics),
        registry: top.get("images", outward::images),
        folder: None,
        needs: Vec::new(),
        file: String::new(),
    };
    top.close();
    version.map(|_| rest)
}

/// The path of a file in the folder of the stack.
fn in_folder(value: &Value<'_>) -> Option<String> {
    let path = value.text()?;
    match files::stays_within(&path) {
        true => Some(path),
        false => value.wrong(format!("{path:?} is not a path in the folder of the stack")),
    }
}

/// The name of a file, without a folder: it is written beside others, and a manifest may come from another host.
fn plain_name(value: &Value<'_>) -> Option<String> {
    let name = value.text()?;
    match files::stays_within(&name) && !name.contains('/') {
        true => Some(name),
        false => value.wrong(format!("{name:?} is not the name of a file")),
    }
}

fn build(value: &Value<'_>) -> Option<Build> {
    let table = value.table()?;
    // Older manifests name a Dockerfile, which is no longer used.
    table.has("dockerfile");
    let package = table.need("package", Value::text);
    table.close();
    Some(Build { package: package? })
}

fn projects(value: &Value<'_>) -> Option<Projects> {
    let table = value.table()?;
    let variables = table.or("variables", BTreeMap::new(), |value| value.map(|_, value| value.text()));
    let refused = table.or("refused", Vec::new(), Value::texts);
    table.close();
    Some(Projects { variables, refused })
}

fn service(value: &Value<'_>) -> Option<Service> {
    let table = value.table()?;
    let all =
        (table.need("name", Value::text), table.need("port", Value::text), table.need("volume", Value::text));
    table.close();
    Some(Service { name: all.0?, port: all.1?, volume: all.2? })
}

fn seed(value: &Value<'_>, scope: Scope<'_>) -> Option<Seed> {
    let table = value.table()?;
    let request = table.need("request", |value| {
        let line = scope.line(value)?;
        match line.method.as_str() {
            "POST" => Some(line),
            other => {
                value.wrong(format!("it is a {other}; it must be a POST, because the seed file is its body"))
            }
        }
    });
    table.close();
    Some(Seed { request: request? })
}

fn document(value: &Value<'_>, scope: Scope<'_>) -> Option<Document> {
    let table = value.table()?;
    let request = table.need("request", |value| scope.get(value));
    let file = table.need("file", plain_name);
    let named = table.get("service", |value| {
        let name = value.text()?;
        scope.service(value, &name);
        Some(name)
    });
    table.close();
    let request = request?;
    if named.is_some() && request.service.is_some() {
        table.wrong("it names the service twice; leave out `service`");
    }
    let service = named.or_else(|| request.service.clone());
    Some(Document { request, file: file?, service })
}

/// No two files of the evidence have one name, also where a file system knows no capital letters.
fn evidence_fits(top: &Table<'_>, evidence: &[Document], services: &[String]) {
    let mut taken: BTreeSet<String> = EVIDENCE_FILES.map(str::to_lowercase).into();
    for ending in EVIDENCE_OF_SERVICE {
        taken.extend(services.iter().map(|service| format!("{service}.{ending}").to_lowercase()));
        taken.insert(format!("*.{ending}"));
    }
    for document in evidence {
        let names: Vec<String> = match &document.service {
            Some(_) => vec![document.file.clone()],
            None => {
                let each = services.iter().map(|service| format!("{service}.{}", document.file));
                each.chain([format!("*.{}", document.file)]).collect()
            }
        };
        if names.iter().filter(|name| !taken.insert(name.to_lowercase())).count() > 0 {
            top.wrong_in(
                "evidence",
                &document.file,
                "another file of the evidence has this name; choose another",
            );
        }
    }
}

fn secret(value: &Value<'_>) -> Option<secrets::Rules> {
    let table = value.table()?;
    let variables = table.or("variables", Vec::new(), Value::texts);
    let public = table.or("public", Vec::new(), Value::texts);
    table.close();
    if let Some(both) = variables.iter().find(|name| public.contains(name)) {
        table.wrong(format!("{both} is in `variables` and in `public`; keep one of them"));
    }
    Some(secrets::Rules { variables, public })
}

/// The name of a header.
fn header(value: &Value<'_>) -> Option<String> {
    let name = value.text()?.to_lowercase();
    match name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
        true => Some(name),
        false => value.wrong(format!("{name:?} is not the name of a header")),
    }
}

fn auth(value: &Value<'_>) -> Option<Auth> {
    let table = value.table()?;
    let read = Auth {
        token: table.get("token", Value::text),
        header: table.get("header", header),
        project: table.get("project", header),
    };
    table.close();
    if read.header.is_some() && read.token.is_none() {
        table.wrong("`header` carries the token: name its variable with `token`");
    }
    Some(read)
}

fn health(value: &Value<'_>, scope: Scope<'_>) -> Option<HealthRule> {
    let table = value.table()?;
    let request = table.need("request", |value| scope.get(value));
    let healthy = table.need("healthy", |value| {
        value.map(|key, value| {
            pointed(key, value)?;
            one_of(value)
        })
    });
    let version = table.get("version", pointer);
    let same_version = table.or("same_version", false, Value::flag);
    let (project, reason) = (table.get("project", pointer), table.get("reason", pointer));
    let corrupt = table.get("corrupt", Value::text);
    table.close();
    if same_version && version.is_none() {
        table.wrong("`same_version` needs `version`: where the version is");
    }
    if corrupt.is_some() && reason.is_none() {
        table.wrong("`corrupt` is how the reason begins: name its place with `reason`");
    }
    let (request, healthy) = (request?, healthy?);
    Some(HealthRule { request, healthy, version, same_version, project, reason, corrupt })
}

fn memory(value: &Value<'_>, scope: Scope<'_>) -> Option<MemoryRule> {
    let table = value.table()?;
    let (request, metric) =
        (table.need("request", |value| scope.get(value)), table.need("metric", Value::text));
    table.close();
    Some(MemoryRule { request: request?, metric: metric? })
}

fn sessions(value: &Value<'_>, scope: Scope<'_>) -> Option<SessionRule> {
    let table = value.table()?;
    let (request, active) = (table.need("request", |value| scope.get(value)), table.need("active", pointer));
    table.close();
    Some(SessionRule { request: request?, active: active? })
}

fn load(value: &Value<'_>, scope: Scope<'_>) -> Option<LoadRule> {
    let table = value.table()?;
    let scope = Scope { own: &["N"], env: false, ..scope };
    let request = table.need("request", |value| scope.get(value));
    let (begins, ends) = (table.need("begins", Value::text), table.need("ends", Value::text));
    table.close();
    Some(LoadRule { request: request?, begins: begins?, ends: ends? })
}

fn flags(value: &Value<'_>, scope: Scope<'_>) -> Option<Flags> {
    let table = value.table()?;
    let request = table.need("request", |value| scope.get(value));
    let values = table.need("values", pointer);
    let off = table.or("off", Vec::new(), Value::texts);
    let on = table.or("on", Vec::new(), Value::texts);
    let more = table.each("more", |value| {
        let table = value.table()?;
        let (name, pointer) = (table.need("name", Value::text), table.need("pointer", pointer));
        let (is, absent) = (table.need("is", Value::text), table.get("absent", Value::text));
        table.close();
        Some(Row { name: name?, pointer: pointer?, is: is?, absent })
    });
    table.close();
    if let Some(both) = off.iter().find(|name| on.contains(name)) {
        table.wrong(format!("{both} is in `off` and in `on`; keep one of them"));
    }
    Some(Flags { request: request?, values: values?, off, on, more })
}

fn limits(value: &Value<'_>) -> Option<Limits> {
    let table = value.table()?;
    let other = Limits::default();
    let time = |key, other| table.or(key, other, Value::duration);
    let kept = |key, other| table.or(key, other as u64, |value| value.number(0..10_000)) as usize;
    let read = Limits {
        budget: time("budget", other.budget),
        probe: time("probe", other.probe),
        ready: time("ready", other.ready),
        engine: time("engine", other.engine),
        deploy: time("deploy", other.deploy),
        evidence: time("evidence", other.evidence),
        keep_releases: kept("keep_releases", other.keep_releases),
        keep_backups: kept("keep_backups", other.keep_backups),
        keep_runs: kept("keep_runs", other.keep_runs),
    };
    table.close();
    Some(read)
}

/// `own` are the checks of the manifest.
fn watch(value: &Value<'_>, own: &[Check]) -> Option<WatchRule> {
    let table = value.table()?;
    let other = WatchRule::default();
    let name = |value: &Value<'_>| {
        let name = value.text()?;
        match own.iter().any(|check| check.name == name) {
            true => Some(name),
            false => value.wrong(format!("there is no check {name:?}; it must be the name of a [[check]]")),
        }
    };
    let every = |value: &Value<'_>| match value.duration()? {
        every if every < LEAST_PAUSE => value.wrong("it is too often; right would be \"1s\""),
        every => Some(every),
    };
    let read = WatchRule {
        time: table.or("for", other.time, Value::duration),
        every: table.or("every", other.every, every),
        checks: table.or("checks", other.checks, |value| value.list(&mut { name })),
        restarts: table.or("restarts", other.restarts, |value| value.number(0..1000)),
        failures: table.or("failures", other.failures as u64, |value| value.number(1..101)) as usize,
    };
    table.close();
    Some(read)
}

fn data(value: &Value<'_>, scope: Scope<'_>) -> Option<DataRules> {
    let mut read = DataRules::default();
    let each = value.map(|name, value| match name {
        "pause_max" => {
            read.pause_max = value.duration()?;
            None
        }
        name => {
            value.needs(Need::Data(name.to_owned()));
            data_rule(value, scope)
        }
    });
    Some(DataRules { each: each?, ..read })
}

fn data_rule(value: &Value<'_>, scope: Scope<'_>) -> Option<DataRule> {
    let table = value.table()?;
    let service = table.get("service", |value| {
        let name = value.text()?;
        scope.service(value, &name);
        Some(name)
    });
    let (backup, restore) = (table.get("backup", command), table.get("restore", command));
    let before_deploy = table.or("before_deploy", false, Value::flag);
    table.close();
    let dump = match (service, backup, restore) {
        (Some(service), Some(backup), Some(restore)) => Some(Dump { service, backup, restore }),
        (None, None, None) => None,
        _ => {
            table.wrong(
                "`service`, `backup` and `restore` go together: where both commands run, and what they are",
            );
            None
        }
    };
    Some(DataRule { dump, before_deploy })
}

fn remote(value: &Value<'_>) -> Option<Remote> {
    let table = value.table()?;
    let repository = table.need("repository", |value| {
        let text = value.text()?;
        let login = text.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@'));
        let local = text.strip_prefix("local:").unwrap_or(&text);
        match login {
            // A manifest is kept in releases and in the evidence.
            Some((login, _)) if login.contains(':') => value.wrong(
                "it has a password in it; restic takes it from its environment (RESTIC_REST_PASSWORD, …)",
            ),
            _ if !local.contains(':') && !local.starts_with('/') => value.wrong(format!(
                "{text:?} is no repository; right would be \"/path\" or \"sftp:user@host:/path\""
            )),
            _ => Some(text),
        }
    });
    let password_file = table.need("password_file", Value::text);
    let keep = table.or("keep", 30, |value| value.number(1..10_000)) as usize;
    let check = table.or("check", "5%".to_owned(), |value| {
        let text = value.text()?;
        let percent: Option<f64> = text.strip_suffix('%').and_then(|number| number.parse().ok());
        match percent.is_some_and(|percent| percent > 0.0 && percent <= 100.0) {
            true => Some(text),
            false => value.wrong(format!("{text:?} is no part of a whole; right would be \"5%\"")),
        }
    });
    table.close();
    Some(Remote { repository: repository?, password_file: password_file?, keep, check })
}

fn host(value: &Value<'_>) -> Option<Host> {
    let table = value.table()?;
    let other = Host::default();
    let number = |key, other| table.or(key, other, |value| value.number(0..u64::MAX));
    let read = Host {
        disk_free_mib: number("disk_free_mib", other.disk_free_mib),
        inodes_free: number("inodes_free", other.inodes_free),
        memory_free_mib: number("memory_free_mib", other.memory_free_mib),
        clock_skew: table.or("clock_skew", other.clock_skew, Value::duration),
    };
    table.close();
    Some(read)
}

fn drill(value: &Value<'_>) -> Option<Drill> {
    let table = value.table()?;
    let settings = table.or("settings", BTreeMap::new(), |value| value.map(|_, value| value.text()));
    table.close();
    Some(Drill { settings })
}

fn contact(value: &Value<'_>) -> Option<Contact> {
    let table = value.table()?;
    let level = table.need("level", |value| value.number(1..4));
    let (name, contact) = (table.need("name", Value::text), table.need("contact", Value::text));
    table.close();
    Some(Contact { level: level? as u8, name: name?, contact: contact? })
}

fn criterion(value: &Value<'_>, scope: Scope<'_>) -> Option<Criterion> {
    let table = value.table()?;
    let text = table.need("text", |value| {
        let text = value.text()?;
        scope.variables(value, &text);
        Some(text)
    });
    let checks = table.or("checks", Vec::new(), Value::texts);
    table.close();
    Some(Criterion { text: text?, checks })
}
