//! The gateway's way to engine and jobs: requests with a limit on the wait for the answer's head, and
//! bodies passed on as they come.

use crate::http::Refusal;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::Response;
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// How long an upstream may take to begin its answer. The client's own limit is longer.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

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
        Self { client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// Sends one request on; of the headers, only those that mean something upstream.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Refusal> {
        let mut request = Request::builder().method(method).uri(url);
        for name in [header::AUTHORIZATION, header::CONTENT_TYPE] {
            if let Some(value) = headers.get(&name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(body).map_err(|e| unreachable_service(url, &e.to_string()))?;
        match tokio::time::timeout(HEAD_LIMIT, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response.map(Body::new)),
            Ok(Err(e)) => Err(unreachable_service(url, &e.to_string())),
            Err(_) => Err(unreachable_service(url, "no answer within 5 s")),
        }
    }
}

/// A body of one JSON object a line, read a line at a time.
pub struct Lines {
    body: Body,
    rest: Vec<u8>,
}

impl Lines {
    /// Takes over the body of an answer.
    pub fn new(response: Response) -> Self {
        Self { body: response.into_body(), rest: Vec::new() }
    }

    /// The next line, or nothing at the end of the body.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(e)) => return Err(e.to_string()),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn unreachable_service(url: &str, what: &str) -> Refusal {
    let service = url.split('/').nth(2).unwrap_or(url);
    Refusal::new(StatusCode::BAD_GATEWAY, "upstream", format!("{service}: {what}"))
}
