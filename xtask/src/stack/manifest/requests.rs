//! Reads the requests and checks of a manifest, and notes what makes no sense. Called by `sections`.

use super::reading::{Need, Table, Value};
use crate::stack::call::{Call, Line, names};
use crate::stack::check::{
    Cancel, Check, Criterion, DEADLINE, Exchange, FLAGS, HEALTHY, Kind, Metric, limit,
};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};

/// What the requests of a section may refer to.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// The services of the stack; empty if only Compose knows them.
    pub services: &'a [String],
    /// Variables that this program knows here.
    pub own: &'a [&'static str],
    /// May variables of the env file be used?
    pub env: bool,
}

impl Scope<'_> {
    /// The variables in a text, each checked.
    pub fn variables(&self, value: &Value<'_>, text: &str) {
        match names(text) {
            Err(error) => value.note(format!("{error:#}; write ${{NAME}}")),
            Ok(names) => {
                for name in names.into_iter().filter(|name| !self.own.contains(name)) {
                    if self.env {
                        value.needs(Need::Variable(name.to_owned()));
                    } else {
                        let known: Vec<String> = self.own.iter().map(|name| format!("${{{name}}}")).collect();
                        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                        value.note(format!("${{{name}}} is not known here; known are: {known}"));
                    }
                }
            }
        }
    }

    fn variables_in(&self, value: &Value<'_>, json: &Json) {
        match json {
            Json::String(text) => self.variables(value, text),
            Json::Array(all) => all.iter().for_each(|one| self.variables_in(value, one)),
            Json::Object(all) => all.values().for_each(|one| self.variables_in(value, one)),
            _ => {}
        }
    }

    /// Is it a service of the stack? If only Compose knows them, this is asked later.
    pub fn service(&self, value: &Value<'_>, name: &str) {
        if self.services.is_empty() {
            value.needs(Need::Service(name.to_owned()));
        } else if self.services.iter().all(|known| known != name) {
            value.note(format!("there is no service {name}; there are: {}", self.services.join(", ")));
        }
    }

    /// A request line.
    pub fn line(&self, value: &Value<'_>) -> Option<Line> {
        let text = value.text()?;
        let line = match Line::parse(&text) {
            Ok(line) => line,
            Err(error) => return value.wrong(format!("{error:#}")),
        };
        line.service.iter().for_each(|service| self.service(value, service));
        self.variables(value, &line.path);
        Some(line)
    }

    /// A request that only looks.
    pub fn get(&self, value: &Value<'_>) -> Option<Line> {
        let line = self.line(value)?;
        if line.method != "GET" {
            return value.wrong(format!("it is a {}; it must be a GET, because it only looks", line.method));
        }
        Some(line)
    }

    /// A whole call, in a table of its own.
    pub fn call(&self, value: &Value<'_>) -> Option<Call> {
        let table = value.table()?;
        let request = table.need("request", |value| self.line(value));
        let call = self.expected(&table, request);
        table.close();
        call
    }

    /// What the answer must be. The keys are beside those of the request.
    fn expected(&self, table: &Table<'_>, request: Option<Line>) -> Option<Call> {
        let body = table.get("json", Value::json);
        if let (Some(json), Some(value)) = (&body, table.value("json")) {
            self.variables_in(&value, json);
        }
        let old = table.get("event", Value::text);
        if old.is_some() && table.has("sse") {
            table.wrong("`event` is the older word for `sse`; keep one of them");
        }
        let call = Call {
            json: body,
            public: table.or("public", false, Value::flag),
            status: table.or("status", 200, |value| value.number(100..600)) as u16,
            headers: table.or("headers", BTreeMap::new(), headers),
            pointer: table.or("pointer", BTreeMap::new(), |value| value.map(pointed)),
            has: table.or("has", Vec::new(), |value| value.list(&mut pointer)),
            sse: table.get("sse", Value::text).or(old),
            ends_with: table.get("ends_with", Value::text),
            request: request?,
        };
        makes_sense(table, &call);
        Some(call)
    }

    /// One `[[check]]`.
    pub fn check(&self, value: &Value<'_>) -> Option<Check> {
        let table = value.table()?;
        let name = table.need("name", Value::text);
        let kind = self.kind(&table);
        let is_script = matches!(kind, Some(Kind::Script(_)));
        let check = Check {
            within: table.get("within", |value| self.within(value)),
            times: table.or("times", 1, |value| value.number(1..101)) as usize,
            tries: table.or("tries", 1, |value| value.number(1..101)) as usize,
            deadline: table.or("deadline", DEADLINE, Value::duration),
            snapshot_only: table.or("snapshot_only", false, Value::flag),
            metric: table.get("metric", metric),
            kind: kind?,
            name: name?,
        };
        table.close();
        if [HEALTHY, FLAGS].contains(&check.name.as_str()) {
            table.wrong(format!(
                "{:?} is the name of a check that is always made; choose another",
                check.name
            ));
        }
        if is_script && check.times > 1 {
            table.wrong("`times` is for requests; a program can measure by itself");
        }
        Some(check)
    }

    /// A limit, which may have variables.
    fn within(&self, value: &Value<'_>) -> Option<String> {
        let text = value.text()?;
        self.variables(value, &text);
        match names(&text) {
            Ok(names) if names.is_empty() => match limit(&text) {
                Ok(_) => Some(text),
                Err(error) => value.wrong(format!("{error:#}; right would be \"500ms\" or \"${{NAME}}ms\"")),
            },
            _ => Some(text),
        }
    }

    fn kind(&self, table: &Table<'_>) -> Option<Kind> {
        const KINDS: [&str; 5] = ["request", "tcp", "exec", "script", "healthy"];
        let given: Vec<&str> = KINDS.into_iter().filter(|kind| table.has(kind)).collect();
        let [kind] = given.as_slice() else {
            let given = if given.is_empty() { "none".to_owned() } else { given.join(" and ") };
            table.wrong(format!("a check has exactly one of {}; it has {given}", KINDS.join(", ")));
            // So that these keys are not called unknown too.
            self.exchange(table, None);
            table.has("service");
            return None;
        };
        let service = table.get("service", Value::text);
        if let (Some(service), Some(value)) = (&service, table.value("service")) {
            self.service(&value, service);
            if *kind != "exec" {
                value.note("it goes with `exec`; elsewhere write it into the request: \"GET service/path\"");
            }
        }
        match *kind {
            "request" => self.exchange(table, table.get("request", |value| self.line(value))),
            "tcp" => table.get("tcp", |value| {
                let text = value.text()?;
                let split =
                    text.rsplit_once(':').and_then(|(service, port)| Some((service, port.parse().ok()?)));
                let Some((service, port)) = split.filter(|(service, port)| !service.is_empty() && *port > 0)
                else {
                    return value
                        .wrong(format!("{text:?}: write it as \"service:port\", with the container's port"));
                };
                self.service(value, service);
                Some(Kind::Tcp { service: service.to_owned(), port })
            }),
            "exec" => {
                let command = table.get("exec", |value| self.command(value));
                if service.is_none() {
                    table.wrong("`service` is missing: in whose container does the command run?");
                }
                Some(Kind::Exec { service: service?, command: command? })
            }
            "script" => table.get("script", |value| {
                let path = value.text()?;
                match crate::base::files::stays_within(&path) {
                    true => Some(Kind::Script(path)),
                    false => value.wrong(format!("{path:?} is not a path in the folder of the stack")),
                }
            }),
            _ => table.get("healthy", |value| {
                let service = value.text()?;
                self.service(value, &service);
                Some(Kind::Healthy { service })
            }),
        }
    }

    /// A command: a list of words, or a text that is split at white space.
    pub fn command(&self, value: &Value<'_>) -> Option<Vec<String>> {
        let words: Vec<String> = match value.is_list() {
            true => value.texts()?,
            false => value.text()?.split_whitespace().map(str::to_owned).collect(),
        };
        words.iter().for_each(|word| self.variables(value, word));
        if words.is_empty() { value.wrong("it is empty; it must be a command") } else { Some(words) }
    }

    fn exchange(&self, table: &Table<'_>, request: Option<Line>) -> Option<Kind> {
        let call = self.expected(table, request);
        let same_twice = table.or("same_twice", false, Value::flag);
        let resume_after = table.get("resume_after", Value::text);
        let events = table.get("events", Value::texts);
        let cancel = table.get("cancel", |value| self.cancel(value));
        let then = table.each("then", |value| self.call(value));
        let call = call?;
        let kinds = [same_twice, resume_after.is_some(), cancel.is_some()];
        if kinds.iter().filter(|kind| **kind).count() > 1 {
            table.wrong("`same_twice`, `resume_after` and `cancel` are three checks; write one for each");
        }
        if resume_after.is_some() && call.ends_with.is_none() {
            table.wrong("`resume_after` needs `ends_with`: the last event of the stream");
        }
        if cancel.is_some() && call.sse.is_none() {
            table.wrong("`cancel` needs `sse`: the event after which the stream is cancelled");
        }
        if same_twice && call.sse.is_some() {
            table.wrong("`same_twice` compares whole answers; write `ends_with` instead of `sse`");
        }
        if events.is_some() && !(call.is_stream() && (same_twice || resume_after.is_some())) {
            table.wrong("`events` goes with `same_twice` or `resume_after` of a stream");
        }
        if cancel.is_some() && !then.is_empty() {
            table.wrong("`then` does not go with `cancel`");
        }
        let events = events.unwrap_or_default();
        Some(Kind::Http(Box::new(Exchange { call, same_twice, resume_after, events, cancel, then })))
    }

    fn cancel(&self, value: &Value<'_>) -> Option<Cancel> {
        let table = value.table()?;
        let request = table.need("request", |value| self.line(value));
        let ends_with = table.need("ends_with", Value::text);
        let call = self.expected(&table, request);
        let again = table.get("again", |value| {
            let table = value.table()?;
            let mut again = call.clone()?;
            again.status = table.or("status", 200, |value| value.number(100..600)) as u16;
            again.pointer = table.or("pointer", BTreeMap::new(), |value| value.map(pointed));
            table.close();
            Some(again)
        });
        table.close();
        Some(Cancel {
            call: Call { ends_with: None, ..call? },
            ends_with: ends_with?,
            again: again.map(no_stream),
        })
    }
}

fn no_stream(call: Call) -> Call {
    Call { ends_with: None, ..call }
}

/// A JSON pointer (RFC 6901).
pub fn pointer(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    match text.starts_with('/') {
        true => Some(text),
        false => value.wrong(format!("{text:?} is no JSON pointer; right would be \"/{text}\"")),
    }
}

/// A value that is expected at a JSON pointer, the key.
pub fn pointed(key: &str, value: &Value<'_>) -> Option<Json> {
    if !key.starts_with('/') {
        return value.wrong(format!("{key:?} is no JSON pointer; right would be \"/{key}\""));
    }
    value.json()
}

/// Names of headers, or a table of their values.
fn headers(value: &Value<'_>) -> Option<BTreeMap<String, Option<String>>> {
    if value.is_list() {
        return Some(value.texts()?.into_iter().map(|name| (name.to_lowercase(), None)).collect());
    }
    let all = value.map(|_, value| Some(Some(value.text()?)))?;
    Some(all.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect())
}

fn metric(value: &Value<'_>) -> Option<Metric> {
    let table = value.table()?;
    let all = [
        table.get("latency", Value::text).map(Metric::Latency),
        table.get("seconds", Value::text).map(Metric::Seconds),
        table.get("passed", Value::text).map(Metric::Passed),
    ];
    table.close();
    let mut all = all.into_iter().flatten();
    match (all.next(), all.next()) {
        (Some(one), None) => Some(one),
        _ => value.wrong("it must have one of latency, seconds, passed, such as { latency = \"name\" }"),
    }
}

/// Notes what no server could answer, or what would not be looked at.
fn makes_sense(table: &Table<'_>, call: &Call) {
    let method = call.request.method.as_str();
    match (method, &call.json) {
        ("POST", None) => table.wrong("a POST must have a body: add `json`, such as json = {}"),
        ("GET" | "HEAD", Some(_)) => {
            table.wrong(format!("a {method} has no body: remove `json`, or write POST"))
        }
        _ => {}
    }
    let looks_at_body = !call.pointer.is_empty() || !call.has.is_empty();
    if method == "HEAD" && (looks_at_body || call.is_stream()) {
        table.wrong("the answer to HEAD has no body: only `status` and `headers` can be expected");
    }
    if !call.is_stream() {
        return;
    }
    if call.sse.is_some() && call.ends_with.is_some() {
        table.wrong("`sse` reads up to an event, `ends_with` to the end: keep one of them");
    }
    let cancels = table.has("again");
    if !cancels && (looks_at_body || !call.headers.is_empty() || call.status != 200 || method != "GET") {
        let others = "`json`, `status`, `headers`, `pointer` and `has`";
        table.wrong(format!("an expected event does not go with {others}: write a check of its own"));
    }
}

/// Notes names that are there twice, or not at all.
pub fn names_fit(top: &Table<'_>, checks: &[Check], criteria: &[Criterion]) {
    let mut seen = BTreeSet::from([HEALTHY, FLAGS]);
    let mut metrics = BTreeSet::new();
    for check in checks {
        if !seen.insert(&check.name) && ![HEALTHY, FLAGS].contains(&check.name.as_str()) {
            top.wrong_in("check", &check.name, "two checks have this name; choose another for one of them");
        }
        let metric = check.metric.as_ref().map(Metric::name);
        if metric.is_some_and(|metric| !metrics.insert(metric)) {
            top.wrong_in("check", &check.name, "another check has a metric of this name");
        }
    }
    for name in criteria.iter().flat_map(|criterion| &criterion.checks) {
        if !seen.contains(name.as_str()) {
            top.wrong_in("criteria", name, "there is no check of this name");
        }
    }
}

/// What the tool expects of an answer that has these values.
pub fn one_of(value: &Value<'_>) -> Option<Vec<Json>> {
    Some(match value.json()? {
        Json::Array(all) if all.is_empty() => {
            return value.wrong("it is empty; it must be a value or several");
        }
        Json::Array(all) => all,
        one => vec![json!(one)],
    })
}
