//! Requests to the pilot on 127.0.0.1, each with a deadline for the whole of it; event streams read
//! event by event. No proxy, no TLS, no redirects: loopback alone. Knows no routes.

use crate::secrets;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};
use ureq::http::HeaderMap;

/// Characters of an answer that an error repeats.
const SHOWN: usize = 300;

/// A service on 127.0.0.1, and what lets us in.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    project: String,
    token: Option<String>,
    agent: ureq::Agent,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Names are lowercase.
    pub headers: HeaderMap,
    /// As text.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// For messages: status and the start of the body, masked before it is cut.
    pub fn brief(&self) -> String {
        let start: String = secrets::mask(&self.body).chars().take(SHOWN).collect();
        format!("{} {}", self.status, start.trim())
    }
}

impl Client {
    /// Every request takes `limit` at most, its body included.
    pub fn new(port: u16, project: &str, token: Option<&str>, limit: Duration) -> Self {
        let agent = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(limit))
            .build()
            .new_agent();
        Self {
            base: format!("http://127.0.0.1:{port}"),
            project: project.to_owned(),
            token: token.filter(|t| !t.is_empty()).map(str::to_owned),
            agent,
        }
    }

    /// Deployment that is asked.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The same without the token: what the public sees.
    pub fn public(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send(path, self.open("GET", path, &[], None))
    }

    /// HEAD.
    pub fn head(&self, path: &str) -> Result<Answer> {
        self.send(path, self.open("HEAD", path, &[], None))
    }

    /// POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(path, self.open("POST", path, &[], Some(body.to_string())))
    }

    /// GET of an event stream; an answer other than 200 is an error that repeats it.
    pub fn stream(&self, path: &str, last_event: Option<&str>) -> Result<Events> {
        let started = Instant::now();
        let headers: Vec<(&str, &str)> = last_event.map(|id| ("last-event-id", id)).into_iter().collect();
        let response = self.open("GET", path, &headers, None).with_context(|| self.tried(path))?;
        if response.status() != 200 {
            let answer = self.send(path, Ok(response))?;
            bail!("{}: {}", self.tried(path), answer.brief());
        }
        let reader = BufReader::new(response.into_body().into_reader());
        Ok(Events { reader: Box::new(reader), started, what: self.tried(path) })
    }

    fn tried(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Result<ureq::http::Response<ureq::Body>> {
        let mut request = ureq::http::Request::builder().method(method).uri(self.tried(path));
        request = request.header("x-pilot-project", &self.project);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(match body {
            Some(text) => self.agent.run(request.header("content-type", "application/json").body(text)?)?,
            None => self.agent.run(request.body(())?)?,
        })
    }

    fn send(&self, path: &str, response: Result<ureq::http::Response<ureq::Body>>) -> Result<Answer> {
        let mut response = response.with_context(|| self.tried(path))?;
        let body = response.body_mut().read_to_string().with_context(|| self.tried(path))?;
        Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body })
    }
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `msg_001`.
    pub id: String,
    /// `token`, `done`, …
    pub name: String,
    /// JSON text, byte for byte.
    pub data: String,
    /// Since the request was sent.
    pub after: Duration,
}

/// An event stream that is being read.
pub struct Events {
    reader: Box<dyn BufRead>,
    started: Instant,
    what: String,
}

impl Events {
    /// Reads to the end of the stream.
    pub fn rest(self) -> Result<Vec<Event>> {
        self.collect()
    }

    /// Reads up to and including the next event of this name.
    pub fn until(&mut self, name: &str) -> Result<Event> {
        for event in self.by_ref() {
            let event = event?;
            if event.name == name {
                return Ok(event);
            }
            if matches!(event.name.as_str(), "error" | "cancelled" | "done") {
                bail!("{}: expected {name}, the stream ended with {}: {}", self.what, event.name, event.data);
            }
        }
        bail!("{}: the stream ended without {name}", self.what)
    }
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut id, mut name, mut data) = (String::new(), String::new(), String::new());
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => return Some(Err(e).with_context(|| self.what.clone())),
            }
            match line.trim_end_matches(['\r', '\n']).split_once(':') {
                Some(("id", value)) => id = value.trim_start().to_owned(),
                Some(("event", value)) => name = value.trim_start().to_owned(),
                Some(("data", value)) => data = value.trim_start().to_owned(),
                None if !name.is_empty() => {
                    return Some(Ok(Event { id, name, data, after: self.started.elapsed() }));
                }
                _ => {}
            }
        }
    }
}
