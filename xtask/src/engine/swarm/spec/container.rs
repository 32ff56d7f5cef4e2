//! `ContainerSpec`: what runs in a task, and with which settings. Called by `service`.

use super::deploy::{filled, time};
use super::files;
use super::mounts::{literal, mounts};
use super::parts::{Draft, Kind};
use super::reading::{integer, is_empty, list, map, text, words};
use serde_json::{Map, Value, json};

/// The `ContainerSpec` of a service, but for its labels.
pub fn container(draft: &mut Draft<'_>, service: &str, image: &str, settings: &Value) -> Map<String, Value> {
    let own = mounts(draft, service, settings);
    let mut configs = files::used(draft, service, Kind::Config, settings);
    configs.extend(own.configs);
    let secrets = files::used(draft, service, Kind::Secret, settings);
    let health = health(draft, service, &settings["healthcheck"]);
    let grace = time(draft, service, &settings["stop_grace_period"]);
    let filled_text = |name: &str| text(&settings[name]).filter(|text| !text.is_empty()).map(Value::from);
    let is_set = |name: &str| (settings[name] == true).then_some(Value::Bool(true));
    let all = |all: Vec<Value>| Some(Value::from(all)).filter(|all| !is_empty(all));
    let texts = |all: Vec<String>| Some(Value::from(all)).filter(|all| !is_empty(all));
    let made = filled([
        ("Image", Some(image.into())),
        ("Command", entrypoint(&settings["entrypoint"])),
        ("Args", texts(words(&settings["command"]))),
        ("Hostname", text(&settings["hostname"]).map(|name| literal(name).into())),
        ("Env", texts(environment(&settings["environment"]))),
        ("Dir", filled_text("working_dir")),
        ("User", filled_text("user")),
        ("Groups", texts(words(&settings["group_add"]))),
        ("StopSignal", filled_text("stop_signal")),
        ("StopGracePeriod", grace),
        ("TTY", is_set("tty")),
        ("OpenStdin", is_set("stdin_open")),
        ("ReadOnly", is_set("read_only")),
        ("Init", Some(settings["init"].clone()).filter(Value::is_boolean)),
        ("CapabilityAdd", texts(capabilities(&settings["cap_add"]))),
        ("CapabilityDrop", texts(capabilities(&settings["cap_drop"]))),
        ("Sysctls", Some(sysctls(&settings["sysctls"])).filter(|all| !is_empty(all))),
        ("Hosts", texts(hosts(&settings["extra_hosts"]))),
        ("DNSConfig", Some(dns(settings)).filter(|all| !is_empty(all))),
        ("Ulimits", all(map(&settings["ulimits"]).map(|(name, limit)| ulimit(name, limit)).collect())),
        ("Healthcheck", health),
        ("Mounts", all(own.mounts)),
        ("Configs", all(configs)),
        ("Secrets", all(secrets)),
    ]);
    made.as_object().cloned().unwrap_or_default()
}

/// `entrypoint`. An empty one means that the one of the image is not used; the engine reads an empty list as none, but
/// not a list of one empty word.
fn entrypoint(value: &Value) -> Option<Value> {
    let all = words(value);
    let reset = value.is_array() && all.is_empty();
    if reset { Some(json!([""])) } else { Some(Value::from(all)).filter(|all| !is_empty(all)) }
}

/// `NAME=value`, in the order of the names. A name without a value comes from nowhere here.
fn environment(value: &Value) -> Vec<String> {
    let plain = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let named = map(value).filter_map(|(name, value)| Some(format!("{name}={}", literal(&plain(value)?))));
    let listed = list(value).filter_map(text).filter(|line| line.contains('=')).map(literal);
    let mut all: Vec<String> = named.chain(listed).collect();
    all.sort();
    all
}

/// The names that Linux has for them: `CAP_NET_ADMIN`, or `ALL`.
fn capabilities(value: &Value) -> Vec<String> {
    let full = |name: String| {
        let name = name.to_ascii_uppercase();
        if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    let mut all: Vec<String> = words(value).into_iter().map(full).collect();
    all.sort();
    all.dedup();
    all
}

fn sysctls(value: &Value) -> Value {
    let plain = |value: &Value| text(value).map_or_else(|| value.to_string(), str::to_owned);
    let named = map(value).map(|(name, value)| (name.clone(), plain(value).into()));
    let listed = list(value).filter_map(text).filter_map(|line| line.split_once('='));
    Value::Object(named.chain(listed.map(|(name, value)| (name.to_owned(), value.into()))).collect())
}

/// `ADDRESS name`, from `name=ADDRESS`, or `name:ADDRESS` as older versions of Compose print it.
fn hosts(value: &Value) -> Vec<String> {
    let listed = words(value).into_iter().filter_map(|line| {
        let (name, address) = line.split_once('=').or_else(|| line.split_once(':'))?;
        Some(format!("{address} {name}"))
    });
    let named = map(value).flat_map(|(name, addresses)| {
        let one = text(addresses).map(str::to_owned);
        one.into_iter().chain(words(addresses)).map(move |address| format!("{address} {name}"))
    });
    listed.chain(named).collect()
}

fn dns(settings: &Value) -> Value {
    let all = |name: &str| {
        let one = text(&settings[name]).map(str::to_owned);
        let all: Vec<String> = one.into_iter().chain(words(&settings[name])).collect();
        Some(Value::from(all)).filter(|all| !is_empty(all))
    };
    filled([("Nameservers", all("dns")), ("Search", all("dns_search")), ("Options", all("dns_opt"))])
}

/// One number for both limits, or two.
fn ulimit(name: &str, limit: &Value) -> Value {
    let both = integer(limit);
    let of = |word: &str| both.or_else(|| integer(&limit[word]));
    let (soft, hard) = (of("soft"), of("hard"));
    json!({ "Name": name, "Soft": soft.or(hard), "Hard": hard.or(soft) })
}

/// `Healthcheck`; none leaves it to the image. What is not said is left to the image too.
fn health(draft: &mut Draft<'_>, service: &str, check: &Value) -> Option<Value> {
    if is_empty(check) {
        return None;
    }
    if check["disable"] == true {
        return Some(json!({ "Test": ["NONE"] }));
    }
    if !is_empty(&check["start_interval"]) {
        draft.note(
            service,
            "`start_interval` of its health check is not used: Docker 20.10 has no such setting",
        );
    }
    let test = match &check["test"] {
        Value::String(command) => vec!["CMD-SHELL".to_owned(), command.clone()],
        other => words(other),
    };
    Some(filled([
        ("Test", Some(Value::from(test)).filter(|test| !is_empty(test))),
        ("Interval", time(draft, service, &check["interval"])),
        ("Timeout", time(draft, service, &check["timeout"])),
        ("StartPeriod", time(draft, service, &check["start_period"])),
        ("Retries", integer(&check["retries"]).map(Value::from)),
    ]))
}
