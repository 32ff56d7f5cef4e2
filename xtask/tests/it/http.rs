//! Requests of the tests to the services, and their answers, read to the end.

use serde_json::Value;
use std::time::Duration;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// Names of the events of a stream, with their data.
    pub fn events(&self) -> Vec<(String, Value)> {
        let mut name = String::new();
        let mut all = Vec::new();
        for line in self.body.lines() {
            if let Some(n) = line.strip_prefix("event: ") {
                name = n.into();
            } else if let Some(data) = line.strip_prefix("data: ") {
                all.push((name.clone(), serde_json::from_str(data).unwrap()));
            }
        }
        all
    }
}

/// One request to 127.0.0.1, at most a minute long.
pub fn http(method: &str, port: u16, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
    try_http(method, port, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// The same where a failure is an answer too.
pub fn try_http(
    method: &str,
    port: u16,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Result<Answer, ureq::Error> {
    try_http_at(&format!("127.0.0.1:{port}"), method, path, headers, body)
}

/// The same at any address.
pub fn try_http_at(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Result<Answer, ureq::Error> {
    let agent = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = match body {
        Some(body) => agent.run(request.body(body.to_owned())?)?,
        None => agent.run(request.body(())?)?,
    };
    let status = response.status().as_u16();
    let body = response.body_mut().read_to_string()?;
    Ok(Answer { status, headers: response.headers().clone(), body })
}
