//! Reads the `[gate]` part of a manifest: which keys it has depends on its kind. Called by `sections`.

use super::reading::{Table, Value};
use super::requests::{Scope, pointed, pointer};
use crate::stack::call::Call;
use crate::stack::gate_rule::{Command, ExecGate, GateRule, HttpGate, Kind, Offline, Position, StopGate};
use std::collections::BTreeSet;

/// Variables that this program knows where the gate is closed or opened. The env file may be lost then.
const OF_GATE: [&str; 2] = ["REASON", "PROJECT"];

/// The kinds, by their words.
const KINDS: [(&str, Kind); 3] = [("http", Kind::Http), ("exec", Kind::Exec), ("stop", Kind::Stop)];

/// The gate. Manifests of older versions name no kind; theirs are requests.
pub fn gate(value: &Value<'_>, services: &[String]) -> Option<GateRule> {
    let table = value.table()?;
    let scope = Scope { services, own: &OF_GATE, env: false };
    let kind = match table.get("kind", kind) {
        Some(kind) => kind,
        None if table.value("close").is_some_and(|close| close.is_table()) => Kind::Http,
        None => {
            table.wrong("`kind` is missing; write \"http\", \"exec\" or \"stop\"");
            return None;
        }
    };
    let rule = match kind {
        Kind::Http => http(&table, scope),
        Kind::Exec => exec(&table, scope),
        Kind::Stop => stop(&table, scope),
    };
    table.close();
    rule
}

fn kind(value: &Value<'_>) -> Option<Kind> {
    let word = value.text()?;
    match KINDS.iter().find(|(known, _)| *known == word) {
        Some((_, kind)) => Some(*kind),
        None => value.wrong(format!("{word:?} is no kind of gate; write \"http\", \"exec\" or \"stop\"")),
    }
}

/// The service is named once: by its key, or in the requests.
fn service<'a>(
    table: &Table<'_>,
    named: Option<&'a String>,
    calls: &[&'a Call],
    more: Option<&'a String>,
) -> Option<String> {
    let lines = calls.iter().filter_map(|call| call.request.service.as_ref());
    let mut said: BTreeSet<&String> = lines.chain(named).chain(more).collect();
    let Some(service) = said.pop_first().cloned() else {
        table.wrong("it names no service; write \"POST service/path\" in its requests, or `service`");
        return None;
    };
    if !said.is_empty() {
        let others: Vec<&str> = said.iter().map(|name| name.as_str()).collect();
        table.wrong(format!(
            "it has several services: {service}, {}; a gate is one service",
            others.join(", ")
        ));
    }
    Some(service)
}

fn named(table: &Table<'_>, scope: Scope<'_>) -> Option<String> {
    table.get("service", |value| {
        let name = value.text()?;
        scope.service(value, &name);
        Some(name)
    })
}

fn http(table: &Table<'_>, scope: Scope<'_>) -> Option<GateRule> {
    let named = named(table, scope);
    let call = |key| table.need(key, |value| scope.call(value));
    let (close, open, refused, served) = (call("close"), call("open"), call("refused"), call("served"));
    let position = table.need("position", |value| position(value, scope));
    let offline = table.need("offline", |value| offline(value, scope));
    let own_reasons = table.or("own_reasons", Vec::new(), Value::texts);
    let calls: Vec<&Call> = [&close, &open, &refused, &served].into_iter().flatten().collect();
    let asked = position.as_ref().and_then(|position| position.request.service.as_ref());
    let service = service(table, named.as_ref(), &calls, asked);
    Some(GateRule::Http(Box::new(HttpGate {
        service: service?,
        close: close?,
        open: open?,
        refused: refused?,
        served: served?,
        position: position?,
        offline: offline?,
        own_reasons,
    })))
}

fn exec(table: &Table<'_>, scope: Scope<'_>) -> Option<GateRule> {
    let named = named(table, scope);
    let run = |key| table.need(key, command);
    let (close, open, closed) = (run("close"), run("open"), run("closed"));
    let call = |key| table.get(key, |value| scope.call(value));
    let (refused, served) = (call("refused"), call("served"));
    let offline = table.get("offline", |value| offline(value, scope));
    let calls: Vec<&Call> = [&refused, &served].into_iter().flatten().collect();
    let service = service(table, named.as_ref(), &calls, None);
    let (service, close, open, closed) = (service?, close?, open?, closed?);
    Some(GateRule::Exec(Box::new(ExecGate { service, close, open, closed, refused, served, offline })))
}

fn stop(table: &Table<'_>, scope: Scope<'_>) -> Option<GateRule> {
    let services = table.get("services", |value| {
        value.list(&mut |value: &Value<'_>| {
            let name = value.text()?;
            scope.service(value, &name);
            Some(name)
        })
    });
    Some(GateRule::Stop(StopGate { services: services.map(BTreeSet::from_iter) }))
}

/// A text of words, or a list of them.
pub fn command(value: &Value<'_>) -> Option<Command> {
    let read = if value.is_list() {
        Command::try_from(value.texts()?)
    } else {
        Command::try_from(value.text()?.as_str())
    };
    match read {
        Ok(command) => Some(command),
        Err(why) => value.wrong(why),
    }
}

fn position(value: &Value<'_>, scope: Scope<'_>) -> Option<Position> {
    let table = value.table()?;
    let request = table.need("request", |value| scope.get(value));
    let closed = table.need("closed", |value| value.map(pointed));
    let open = table.need("open", |value| value.map(pointed));
    let reason = table.need("reason", pointer);
    table.close();
    Some(Position { request: request?, closed: closed?, open: open?, reason: reason? })
}

fn offline(value: &Value<'_>, scope: Scope<'_>) -> Option<Offline> {
    let table = value.table()?;
    let run = table.need("run", |value| scope.command(value));
    let prints = table.need("prints", Value::text);
    let open = table.get("open", |value| scope.command(value));
    table.close();
    Some(Offline { run: run?, prints: prints?, open })
}
