//! The gateway's way to engine and jobs. Whatever they do, a wait ends at a deadline and an answer is
//! taken up to a size: for the head, for the whole of a short answer, and for the next part of a long one.

use crate::connections::HEAD_LIMIT;
use crate::refusal::Refusal;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header, response::Parts};
use axum::response::Response;
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

/// How long an upstream may take to begin its answer, and for all of a short one. The client's own
/// limit is longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Largest short answer.
const ANSWER_BYTES: usize = 1 << 20;

/// How long the next part of a long answer may take: longer than the keep-alive comments of an event
/// stream are apart.
const PART_LIMIT: Duration = Duration::from_secs(20);

/// Largest line of a body that is read line by line.
const LINE_BYTES: usize = 64 * 1024;

/// Keeps connections to both services.
#[derive(Clone)]
pub struct Upstream {
    client: Client<HttpConnector, Body>,
}

impl Upstream {
    /// No connection is made yet.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // Given up well before the other side gives it up, or a request could meet that moment.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(HEAD_LIMIT / 2)
            .build(connector);
        Self { client }
    }

    /// Sends one request on, and waits for the head of the answer. Of the headers, only those go
    /// along that mean something on the other side.
    pub async fn open(
        &self,
        method: Method,
        url: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(Parts, Long), Refusal> {
        let mut request = Request::builder().method(method.clone()).uri(url);
        for name in [header::AUTHORIZATION, header::CONTENT_TYPE] {
            if let Some(value) = headers.get(&name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Body::from(body)).map_err(|e| failed(url, &e.to_string()))?;
        let response = match tokio::time::timeout(ANSWER_LIMIT, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(e)) => return Err(failed(url, &e.to_string())),
            Err(_) => return Err(failed(url, "no answer within 5 s")),
        };
        let (mut head, body) = response.into_parts();
        // What the answer says of the connection between the two of us is no matter of the client's.
        let theirs = std::mem::take(&mut head.headers);
        for name in [header::CONTENT_TYPE, header::RETRY_AFTER, header::CONTENT_LENGTH] {
            if let Some(value) = theirs.get(&name)
                && (name != header::CONTENT_LENGTH || method == Method::HEAD)
            {
                head.headers.insert(name, value.clone());
            }
        }
        Ok((head, Long(Body::new(body))))
    }

    /// The same for an answer that is short: all of it.
    pub async fn ask(
        &self,
        method: Method,
        url: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response, Refusal> {
        let whole = async {
            let (head, Long(body)) = self.open(method, url, headers, body).await?;
            let bytes = axum::body::to_bytes(body, ANSWER_BYTES).await;
            Ok(Response::from_parts(head, Body::from(bytes.map_err(|e| failed(url, &e.to_string()))?)))
        };
        let limit = tokio::time::timeout(ANSWER_LIMIT, whole).await;
        limit.unwrap_or_else(|_| Err(failed(url, "no whole answer within 5 s")))
    }
}

/// A body that is taken as it comes.
pub struct Long(Body);

impl Long {
    /// The next part, or nothing at the end.
    pub async fn part(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let Ok(frame) = tokio::time::timeout(PART_LIMIT, self.0.frame()).await else {
                return Err(format!("silent for {} s", PART_LIMIT.as_secs()));
            };
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(e.to_string()),
                // Trailers say nothing that matters here.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => continue,
                },
            }
        }
    }
}

/// A body of one JSON object a line, read a line at a time.
pub struct Lines {
    body: Long,
    rest: Vec<u8>,
}

impl Lines {
    /// Takes over the body of an answer.
    pub fn new(body: Long) -> Self {
        Self { body, rest: Vec::new() }
    }

    /// The next line, or nothing at the end of the body.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.rest.len() > LINE_BYTES {
                return Err(format!("a line of more than {LINE_BYTES} bytes"));
            }
            match self.body.part().await? {
                None if self.rest.is_empty() => return Ok(None),
                None => return Ok(Some(std::mem::take(&mut self.rest))),
                Some(data) => self.rest.extend_from_slice(&data),
            }
        }
    }
}

fn failed(url: &str, what: &str) -> Refusal {
    let service = url.split('/').nth(2).unwrap_or(url);
    Refusal::new(StatusCode::BAD_GATEWAY, "upstream", format!("{service}: {what}"))
}
