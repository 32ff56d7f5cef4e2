//! Requests to the services of the pilot, and reading of event streams. They go to 127.0.0.1, or to the address that the
//! engine gives for its machine, and nowhere else. Each request has a deadline for the whole of it, and limits on the
//! size of the answer. No proxy, no TLS, no redirects. Nothing here knows routes.

use crate::base::secrets;
use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::HeaderMap;
use ureq::{AsSendBody, Body};

/// Characters of an answer that an error message shows.
const SHOWN: usize = 300;

/// Largest head of an answer, in bytes.
const HEAD: usize = 64 << 10;

/// What is read and written at once, in bytes. Those of ureq take longer to fill with zeros than a small request.
const BUFFER: usize = 16 << 10;

/// Largest body of an answer, and largest stream, in bytes.
const BODY: u64 = 4 << 20;

/// Longest line of a stream, in bytes.
const LINE: u64 = 64 << 10;

/// The name of an event that has none.
const UNNAMED: &str = "message";

/// Largest number of events in a stream.
const EVENTS: usize = 10_000;

/// What is asked of a service.
#[derive(Debug)]
pub struct Request<'a> {
    /// `GET`, `HEAD` or `POST`.
    pub method: &'a str,
    /// With its query.
    pub path: &'a str,
    /// Names are lowercase.
    pub headers: Vec<(&'a str, String)>,
    /// JSON.
    pub body: Option<String>,
    /// How long it may take, if that is less than the limit of the wire.
    pub limit: Option<Duration>,
}

/// What comes back; the body is still to be read.
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Names are lowercase.
    pub headers: HeaderMap,
    /// Read within bounds by the client.
    pub body: Box<dyn Read>,
}

/// How a request reaches a service. There is one for HTTP, and the tests have one that leads to a fake pilot.
pub trait Wire: Send + Sync {
    /// Where it leads, for messages.
    fn base(&self) -> &str;

    /// The same for other programs.
    fn url(&self) -> Result<String> {
        Ok(self.base().to_owned())
    }

    /// Sends it. The answer, its body included, comes within the limit of the wire or is an error.
    fn send(&self, request: &Request<'_>) -> Result<Reply>;
}

/// Finds the address of a service.
type Finds = dyn Fn() -> Result<SocketAddr> + Send + Sync;

/// HTTP.
struct Http {
    base: String,
    at: Box<Finds>,
    agent: ureq::Agent,
    limit: Duration,
}

impl Wire for Http {
    fn base(&self) -> &str {
        &self.base
    }

    fn url(&self) -> Result<String> {
        Ok(format!("http://{}", (self.at)()?))
    }

    fn send(&self, request: &Request<'_>) -> Result<Reply> {
        let uri = format!("{}{}", self.url()?, request.path);
        let mut http = ureq::http::Request::builder().method(request.method).uri(uri);
        for (name, value) in &request.headers {
            http = http.header(*name, value);
        }
        let limit = self.limit.min(request.limit.unwrap_or(self.limit));
        let response = match &request.body {
            Some(text) => {
                self.run(http.header("content-type", "application/json").body(text.clone())?, limit)?
            }
            None => self.run(http.body(())?, limit)?,
        };
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = Box::new(response.into_body().into_with_config().limit(BODY).reader());
        Ok(Reply { status, headers, body })
    }
}

impl Http {
    fn run<B: AsSendBody>(
        &self,
        request: ureq::http::Request<B>,
        limit: Duration,
    ) -> Result<ureq::http::Response<Body>> {
        let request = self.agent.configure_request(request).timeout_global(Some(limit)).build();
        self.agent.run(request).map_err(|error| match error {
            ureq::Error::Timeout(_) => anyhow!("no answer within {}", humantime::format_duration(limit)),
            other => other.into(),
        })
    }
}

/// An error while an answer is read, in words where ureq has none.
fn in_words(error: io::Error) -> Error {
    let own = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    match own {
        Some(ureq::Error::Timeout(_)) => anyhow!("the answer did not end in time"),
        _ => error.into(),
    }
}

/// Did nobody answer? Then the error is of the connection, and not of an answer.
pub fn is_silence(error: &Error) -> bool {
    use ureq::Error::{ConnectionFailed, Io};
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(ConnectionFailed | Io(_))))
}

/// What a service is told by headers, with names in lowercase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Whose deployment is meant: that of another project refuses.
    pub project: Option<(String, String)>,
    /// What lets us in where the public is not let in.
    pub token: Option<(String, String)>,
}

/// A service, and what lets us in.
#[derive(Clone)]
pub struct Client {
    wire: Arc<dyn Wire>,
    project: String,
    pass: Pass,
    limit: Option<Duration>,
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Names are lowercase.
    pub headers: HeaderMap,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// For messages: status and the start of the body. Secrets are masked before it is cut.
    pub fn brief(&self) -> String {
        let start: String = secrets::mask(&self.body).chars().take(SHOWN).collect();
        format!("{} {}", self.status, start.trim())
    }
}

impl Client {
    /// Of a service on 127.0.0.1. Each request, including its body, may take `limit`.
    pub fn new(port: u16, project: &str, pass: Pass, limit: Duration) -> Self {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self::at(&at.to_string(), Box::new(move || Ok(at)), project, pass, limit)
    }

    /// Of a service at the address that is found for each request. In messages it is called `name`.
    pub fn at(name: &str, at: Box<Finds>, project: &str, pass: Pass, limit: Duration) -> Self {
        let agent = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_response_header_size(HEAD)
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .build()
            .new_agent();
        Self::over(Arc::new(Http { base: format!("http://{name}"), at, agent, limit }), project, pass)
    }

    /// One whose requests go over this wire.
    pub fn over(wire: Arc<dyn Wire>, project: &str, pass: Pass) -> Self {
        Self { wire, project: project.to_owned(), pass, limit: None }
    }

    /// The address of the service, as another program on this machine uses it.
    pub fn url(&self) -> Result<String> {
        self.wire.url()
    }

    /// Where it leads, for messages.
    pub fn place(&self) -> &str {
        self.wire.base().trim_start_matches("http://")
    }

    /// The project whose services are asked.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The same client, whose requests take `limit` at most.
    pub fn within(&self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self.clone() }
    }

    /// The same client without the token, as the public has it.
    pub fn public(&self) -> Self {
        Self { pass: Pass { token: None, ..self.pass.clone() }, ..self.clone() }
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.read(path, self.send("GET", path, None, None))
    }

    /// HEAD.
    pub fn head(&self, path: &str) -> Result<Answer> {
        self.read(path, self.send("HEAD", path, None, None))
    }

    /// POST with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.read(path, self.send("POST", path, None, Some(body.to_string())))
    }

    /// GET of an event stream. A status other than 200 is an error that shows the answer.
    pub fn stream(&self, path: &str, last_event: Option<&str>) -> Result<Events> {
        let started = Instant::now();
        let reply = self.send("GET", path, last_event, None).with_context(|| self.tried(path))?;
        if reply.status != 200 {
            let answer = self.read(path, Ok(reply))?;
            bail!("{}: {}", self.tried(path), answer.brief());
        }
        let reader: Box<dyn BufRead> = Box::new(BufReader::new(reply.body));
        Ok(Events { reader, started, what: self.tried(path), seen: 0, begun: false })
    }

    fn tried(&self, path: &str) -> String {
        format!("{}{path}", self.wire.base())
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        last_event: Option<&str>,
        body: Option<String>,
    ) -> Result<Reply> {
        let Pass { project, token } = &self.pass;
        let own = project.iter().chain(token).map(|(name, value)| (name.as_str(), value.clone()));
        let mut headers: Vec<(&str, String)> = own.collect();
        headers.extend(last_event.map(|id| ("last-event-id", id.to_owned())));
        self.wire.send(&Request { method, path, headers, body, limit: self.limit })
    }

    fn read(&self, path: &str, reply: Result<Reply>) -> Result<Answer> {
        let mut reply = reply.with_context(|| self.tried(path))?;
        let mut bytes = Vec::new();
        reply.body.read_to_end(&mut bytes).map_err(in_words).with_context(|| self.tried(path))?;
        let body = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer { status: reply.status, headers: reply.headers, body })
    }
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `msg_001`.
    pub id: String,
    /// `token`, `done`, …; `message` if the service gives none.
    pub name: String,
    /// JSON text, byte for byte. Several lines are joined by line feeds.
    pub data: String,
    /// Time since the request was sent.
    pub after: Duration,
}

/// An event stream that is being read.
pub struct Events {
    reader: Box<dyn BufRead>,
    started: Instant,
    what: String,
    seen: usize,
    /// Was anything read?
    begun: bool,
}

impl Events {
    /// Reads to the end of the stream.
    pub fn rest(self) -> Result<Vec<Event>> {
        self.collect()
    }

    /// Reads up to and including the next event with this name. Errors if the stream ends before it.
    pub fn until(&mut self, name: &str) -> Result<Event> {
        let mut last: Option<Event> = None;
        for event in self.by_ref() {
            let event = event?;
            if event.name == name {
                return Ok(event);
            }
            last = Some(event);
        }
        match last {
            Some(Event { name: ended, data, .. }) => {
                let data: String = secrets::mask(&data).chars().take(SHOWN).collect();
                bail!("{}: expected {name}, the stream ended with {ended}: {data}", self.what)
            }
            None => bail!("{}: the stream ended without {name}", self.what),
        }
    }
}

impl Events {
    /// The next line without its line break; nothing at the end of the stream.
    fn line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = self.reader.by_ref().take(LINE + 1).read_line(&mut line);
        let read = read.map_err(in_words).with_context(|| self.what.clone())? as u64;
        ensure!(read <= LINE, "{}: a line of the stream is longer than {LINE} bytes", self.what);
        if read == 0 {
            return Ok(None);
        }
        let begun = std::mem::replace(&mut self.begun, true);
        let text = line.strip_prefix('\u{feff}').filter(|_| !begun).unwrap_or(&line);
        let text = text.strip_suffix('\n').unwrap_or(text);
        Ok(Some(text.strip_suffix('\r').unwrap_or(text).to_owned()))
    }

    /// The next event, as the standard has it (WHATWG HTML, server-sent events): one ends with an empty line, and has a
    /// name or data. What is more here: a name without data counts. What is less: the id does not go over to the next.
    fn event(&mut self) -> Result<Option<Event>> {
        let (mut id, mut name, mut data) = (String::new(), String::new(), None::<String>);
        while let Some(line) = self.line()? {
            if line.is_empty() {
                if name.is_empty() && data.is_none() {
                    id.clear();
                    continue;
                }
                self.seen += 1;
                ensure!(self.seen <= EVENTS, "{}: the stream has more than {EVENTS} events", self.what);
                let name = if name.is_empty() { UNNAMED.to_owned() } else { name };
                let data = data.unwrap_or_default();
                return Ok(Some(Event { id, name, data, after: self.started.elapsed() }));
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match (field, &mut data) {
                ("id", _) => id = value.to_owned(),
                ("event", _) => name = value.to_owned(),
                ("data", Some(data)) => data.extend(["\n", value]),
                ("data", none) => *none = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.event().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// Longest that the requests of these tests may take; far more than their limit, on a busy machine.
    const SLACK: Duration = Duration::from_secs(60);

    /// A server that writes `head` and then `more` for ever, until nobody listens;
    /// slowly where that is little.
    fn hostile(head: &'static str, more: &'static str, times: usize, limit: Duration) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let more = more.repeat(times);
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).unwrap();
            socket.write_all(head.as_bytes()).ok();
            while socket.write_all(more.as_bytes()).is_ok() {
                std::thread::sleep(Duration::from_millis(if times == 1 { 50 } else { 0 }));
            }
        });
        Client::new(port, "test", Pass::default(), limit)
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    /// What it answers to both kinds of request: an error in bounded time.
    fn refused(make: impl Fn() -> Client) -> (String, String) {
        let begun = Instant::now();
        let plain = make().get("/x").map(|answer| answer.brief());
        let stream = make().stream("/x", None).and_then(Events::rest).map(|events| events.len());
        assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
        let text = |error: Error| {
            let text = format!("{error:#}");
            assert!(text.contains("http://127.0.0.1:") && text.len() < 1000, "{text}");
            text
        };
        (text(plain.map(drop).unwrap_err()), text(stream.map(drop).unwrap_err()))
    }

    #[test]
    fn what_never_ends_is_refused() {
        let long_enough = Duration::from_secs(20);
        let (body, line) = refused(|| hostile(OK, "x", 1 << 16, long_enough));
        assert!(body.contains("limit"), "{body}");
        assert!(line.contains("a line of the stream is longer than 65536 bytes"), "{line}");
        let (_, events) = refused(|| hostile(OK, "event: token\ndata: {}\n\n", 1000, long_enough));
        assert!(events.contains("more than 10000 events"), "{events}");
        let long =
            "event: token\ndata: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n";
        let (_, no_event_ends) = refused(|| hostile(OK, long, 1000, long_enough));
        assert!(no_event_ends.contains("limit"), "{no_event_ends}");
        refused(|| hostile(CHUNKED, "1\r\nx\r\n", 1000, long_enough));
        refused(|| hostile(CHUNKED, "1;", 1000, long_enough));
        refused(|| hostile("HTTP/1.1 200 OK\r\n", "a: b\r\n", 1000, long_enough));
        refused(|| hostile("HTTP/1.1 200 OK\r\na: ", "b", 1000, long_enough));
        // The library reads on for as long as this is said: the limit of the request ends it.
        refused(|| hostile("", "HTTP/1.1 100 Continue\r\n\r\n", 1000, Duration::from_secs(1)));
        refused(|| hostile("", "garbage ", 1000, long_enough));
        let claimed = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n";
        refused(|| hostile(claimed, "x", 1 << 16, long_enough));
    }

    #[test]
    fn every_request_says_which_project_is_meant_and_the_public_has_no_token() {
        #[derive(Default)]
        struct Hears(std::sync::Mutex<Vec<String>>);
        impl Wire for Hears {
            fn base(&self) -> &str {
                "http://hears"
            }
            fn send(&self, request: &Request<'_>) -> Result<Reply> {
                let headers: Vec<String> =
                    request.headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
                self.0.lock().unwrap().push(headers.join(" "));
                Ok(Reply { status: 200, headers: HeaderMap::new(), body: Box::new(&b""[..]) })
            }
        }
        let own = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        let wire = Arc::new(Hears::default());
        let pass = Pass { project: own("x-project", "mine"), token: own("x-token", "t") };
        let client = Client::over(wire.clone(), "mine", pass);
        client.get("/").unwrap();
        client.head("/").unwrap();
        client.post("/", &Value::Null).unwrap();
        client.stream("/", Some("7")).unwrap();
        client.public().get("/").unwrap();
        let both = "x-project=mine x-token=t";
        let resumed = format!("{both} last-event-id=7");
        assert_eq!(*wire.0.lock().unwrap(), [both, both, both, &resumed, "x-project=mine"]);
    }

    #[test]
    fn events_are_read_as_the_standard_has_them() {
        struct Says(&'static str);
        impl Wire for Says {
            fn base(&self) -> &str {
                "http://says"
            }
            fn send(&self, _: &Request<'_>) -> Result<Reply> {
                Ok(Reply { status: 200, headers: HeaderMap::new(), body: Box::new(self.0.as_bytes()) })
            }
        }
        let events = |said| {
            let client = Client::over(Arc::new(Says(said)), "test", Pass::default());
            let all = client.stream("/x", None).unwrap().rest().unwrap();
            all.into_iter().map(|one| [one.id, one.name, one.data].join("|")).collect::<Vec<_>>()
        };
        for (said, read) in [
            ("\u{feff}id: 1\r\nevent: token\r\ndata: {}\r\n\r\n", &["1|token|{}"][..]),
            ("event: token\ndata: one\ndata:  two\n\n", &["|token|one\n two"]),
            // A name is not that of the event behind it, nor is data.
            ("data: one\n\nevent: done\ndata: two\n\n", &["|message|one", "|done|two"]),
            // Nor does a field without a value end an event.
            ("event: token\ndata\nretry\n: still here\n\nid: 7\n\nevent: done\n\n", &["|token|", "|done|"]),
            ("event: token\ndata: not yet", &[]),
        ] {
            assert_eq!(events(said), read, "{said:?}");
        }
    }

    #[test]
    fn what_trickles_ends_at_the_deadline_of_the_whole() {
        let limit = Duration::from_millis(500);
        for (head, more) in [
            (OK, "x"),
            (OK, ": still here\n"),
            (OK, "event: token\ndata: {}\n\n"),
            (CHUNKED, "1\r\n\n\r\n"),
            ("HTTP/1.1 200 OK\r\n", "a: b\r\n"),
            ("", "HTTP/1.1 100 Continue\r\n\r\n"),
        ] {
            let (plain, stream) = refused(|| hostile(head, more, 1, 2 * SLACK).within(limit));
            // The head has ended where the answer is a good one.
            let said = if head.ends_with("\r\n\r\n") {
                "the answer did not end in time"
            } else {
                "no answer within 500ms"
            };
            assert!(plain.ends_with(said) && stream.ends_with(said), "{more:?}: {plain} {stream}");
        }
    }
}
