//! Requests from the gateway to the engine and the jobs service. Every wait has a deadline, and every answer
//! a size limit: for the head, for a whole short answer, and for the next part of a long one.

use crate::connections::HEAD_LIMIT;
use crate::refusal::Refusal;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header, response::Parts};
use axum::response::Response;
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

/// Limit for an upstream to begin its answer, and for a whole short answer. It is
/// shorter than the client's limit.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Largest short answer, in bytes.
const ANSWER_BYTES: usize = 1 << 20;

/// Limit for the next part of a long answer. It is longer than the pause between the keep-alive
/// comments of an event stream.
const PART_LIMIT: Duration = Duration::from_secs(20);

/// Longest line, in bytes, of a body that is read line by line.
const LINE_BYTES: usize = 64 * 1024;

/// The HTTP client for both services. It keeps connections open.
#[derive(Clone)]
pub struct Upstream {
    client: Client<HttpConnector, Body>,
}

impl Upstream {
    /// A new client. It makes no connection yet.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // Close an idle connection well before the other side does, or a request could be
        // sent at that moment and fail.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(HEAD_LIMIT / 2)
            .build(connector);
        Self { client }
    }

    /// Sends a request, and waits for the head of the answer. Only headers that the other
    /// side needs are passed on.
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
        // Headers about the connection between gateway and upstream are not for the client.
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

    /// The same for a short answer, which is read completely.
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

/// A body that is read part by part.
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
                // Trailers are ignored.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => continue,
                },
            }
        }
    }
}

/// A body with one JSON object on each line, read line by line.
pub struct Lines {
    body: Long,
    rest: Vec<u8>,
}

impl Lines {
    /// A reader for the body of an answer.
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
