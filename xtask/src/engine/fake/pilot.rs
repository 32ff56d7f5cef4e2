//! Tests: what the services of the fake world answer. Only the part of the contract that the checks and the
//! gate use.

use crate::base::http::{Reply, Request, Wire};
use crate::engine::fake::world::{CORRUPT, Defect, Things, World};
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{Cursor, Read};
use ureq::http::{HeaderMap, HeaderName, HeaderValue};

/// A client for one service.
pub struct Answers {
    /// The world that it is in.
    pub world: World,
    /// Its port.
    pub port: u16,
    /// The service.
    pub project: String,
}

/// What a request asks for.
struct Asked<'a> {
    service: String,
    method: &'a str,
    route: &'a str,
    query: &'a str,
    is_public: bool,
    after: Option<String>,
    body: Value,
}

impl Asked<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Wire for Answers {
    fn base(&self) -> &str {
        "memory:"
    }

    fn send(&self, request: &Request<'_>) -> Result<Reply> {
        let mut things = self.world.act("request")?;
        let found = things.services.iter().find(|(_, started)| started.port == self.port && started.runs);
        let Some(service) = found.map(|(name, _)| name.clone()) else { bail!("connection refused") };
        ensure!(!things.paused.contains(&service), "no answer in time");
        let header = |name: &str| request.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
        let (route, query) = request.path.split_once('?').unwrap_or((request.path, ""));
        let asked = Asked {
            service,
            method: request.method,
            route,
            query,
            is_public: header("authorization").is_none(),
            after: header("last-event-id"),
            body: request
                .body
                .as_deref()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default(),
        };
        let reply = self.answer(&asked, &mut things)?;
        things.over()?;
        Ok(reply)
    }
}

impl Answers {
    fn answer(&self, asked: &Asked<'_>, things: &mut Things) -> Result<Reply> {
        let closed = things.gate.is_some();
        let defect = things.defect(&asked.service);
        let admin = asked.route.starts_with("/admin/") || matches!(asked.route, "/healthz" | "/metrics");
        if !admin && asked.is_public && closed && defect != Some(Defect::LyingGate) {
            let busy = json!({"error": "disabled"});
            return Ok(with(json(503, &busy), &[("retry-after", "5")]));
        }
        let fails = match defect {
            Some(Defect::Errors) => true,
            Some(Defect::FailsWhenOpen) => asked.is_public && !closed,
            Some(Defect::LyingGate | Defect::Unhealthy) | None => false,
        };
        if !admin && fails {
            return Ok(json(500, &json!({"error": "broken"})));
        }
        Ok(match (asked.method, asked.route) {
            ("GET", "/healthz") => self.healthz(asked, things),
            ("GET", "/stream") => self.stream(asked),
            ("GET", "/jobs/stream") => text(200, "event: job-completed\ndata: {}\n\n".into()),
            ("GET" | "HEAD", "/report") => json(200, &report()),
            ("POST", "/cancel") => {
                let id = asked.body["sessionId"].as_str().unwrap_or_default().to_owned();
                match things.cancelled.insert(id) {
                    true => json(202, &json!({"status": "cancelling"})),
                    false => json(409, &json!({"status": "already_cancelled"})),
                }
            }
            ("POST", "/admin/kill-switch") => {
                let reason = asked.body["reason"].as_str().unwrap_or_default().to_owned();
                things.set_gate((asked.body["enabled"] == true).then_some(reason));
                json(200, &json!({}))
            }
            ("GET", "/admin/config") => {
                let env = things.services.get(&asked.service).map(|started| &started.env);
                let flags = env.into_iter().flatten();
                let flag = |value: &str| value.parse::<bool>().map_or(Value::Null, Value::Bool);
                let mut values: serde_json::Map<String, Value> =
                    flags.map(|(name, value)| (name.clone(), flag(value))).collect();
                values.insert("ADMIN_AUTH".into(), Value::Bool(true));
                json(200, &json!({"values": values}))
            }
            ("POST", "/admin/seed") | ("GET", "/admin/sessions" | "/admin/metrics" | "/metrics") => {
                json(200, &json!({"active": 0}))
            }
            (method, route) => json(404, &json!({"error": format!("no {method} {route}")})),
        })
    }

    fn healthz(&self, asked: &Asked<'_>, things: &mut Things) -> Reply {
        let corrupt = things.volumes.get(&asked.service).is_some_and(|data| data == CORRUPT);
        let is_ill =
            things.defect(&asked.service) == Some(Defect::Unhealthy) || things.is_starting(&asked.service);
        let gate = things.gate.as_ref().filter(|_| asked.service == "gateway");
        let body = match gate {
            _ if is_ill && !corrupt => {
                json!({"status": "unhealthy", "reason": "out of sorts", "project": self.project})
            }
            _ if corrupt => {
                json!({"status": "unhealthy", "reason": "store corrupt: noise", "project": self.project})
            }
            Some(reason) => {
                json!({"status": "disabled", "detail": reason, "version": things.version(&asked.service), "project": self.project})
            }
            None => {
                json!({"status": "healthy", "version": things.version(&asked.service), "project": self.project})
            }
        };
        let headers = [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ];
        with(json(if corrupt || is_ill { 503 } else { 200 }, &body), &headers)
    }

    /// Sends tokens, then the end: `done`, or `cancelled` if the stream is too long to finish.
    fn stream(&self, asked: &Asked<'_>) -> Reply {
        let budget: usize = asked.parameter("budget").and_then(|n| n.parse().ok()).unwrap_or(8);
        let seed = asked.parameter("seed").unwrap_or_default();
        let all = (1..=budget.min(8))
            .map(|n| (format!("msg_{n:03}"), format!("event: token\ndata: {{\"text\":\"{seed}-{n}\"}}\n\n")));
        let left = all.filter(|(id, _)| asked.after.as_ref().is_none_or(|after| id > after));
        let tokens: String = left.map(|(id, event)| format!("id: {id}\n{event}")).collect();
        let session = asked.parameter("sessionId").unwrap_or_default().to_owned();
        let end = if budget <= 8 {
            Ending::Known(Cursor::new(b"id: msg_999\nevent: done\ndata: {}\n\n".to_vec()))
        } else {
            Ending::Asked(self.world.clone(), session)
        };
        let reply = Reply {
            status: 200,
            headers: HeaderMap::new(),
            body: Box::new(Cursor::new(tokens.into_bytes()).chain(end)),
        };
        with(reply, &[("cache-control", "no-store, no-cache, must-revalidate")])
    }
}

/// How a stream ends: known when it begins, or decided when it comes to its end.
enum Ending {
    Known(Cursor<Vec<u8>>),
    Asked(World, String),
}

impl Read for Ending {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if let Self::Asked(world, session) = self {
            let cancelled = world.things().cancelled.contains(session);
            let name = if cancelled { "cancelled" } else { "done" };
            *self =
                Self::Known(Cursor::new(format!("id: msg_999\nevent: {name}\ndata: {{}}\n\n").into_bytes()));
        }
        match self {
            Self::Known(text) => text.read(into),
            Self::Asked(..) => Ok(0),
        }
    }
}

fn report() -> Value {
    json!({
        "decision": {"title": "t", "options": [{"score": 1}, {"score": 2}]},
        "recommendation": {"primary": "a"},
        "analysis": {"confidence": 1},
        "meta": {"seed": 1},
    })
}

fn json(status: u16, body: &Value) -> Reply {
    text(status, body.to_string())
}

fn text(status: u16, body: String) -> Reply {
    Reply { status, headers: HeaderMap::new(), body: Box::new(Cursor::new(body.into_bytes())) }
}

fn with(mut reply: Reply, headers: &[(&'static str, &'static str)]) -> Reply {
    for (name, value) in headers {
        reply.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    reply
}
