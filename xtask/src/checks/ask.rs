//! Sends a request of a manifest to a service, and compares the answer with what it must be. Called by `deploy` and by
//! the command `seed`.

use crate::base::http::{Answer, Client};
use crate::stack::call::{Call, Line, filled, filled_json};
use anyhow::{Context, Result};
use serde_json::Value;

/// Sends the request and checks the answer. `values` are the variables in it.
pub fn ask(client: &Client, call: &Call, values: &[(&str, &str)]) -> Result<()> {
    let path = filled(&call.request.path, values)?;
    let body = call.json.as_ref().map(|json| filled_json(json, values)).transpose()?;
    let client = if call.public { client.public() } else { client.clone() };
    if let Some(event) = &call.event {
        return client.stream(&path, None)?.until(event).map(drop);
    }
    let line = Line { path, ..call.request.clone() };
    let answer = send(&client, &line, body.as_ref())?;
    let has_header = |name: &str| answer.headers.contains_key(name);
    call.compare(answer.status, has_header, &answer.json(), &answer.brief()).with_context(|| line.to_string())
}

/// Sends a request as it stands.
pub fn send(client: &Client, line: &Line, body: Option<&Value>) -> Result<Answer> {
    match (line.method.as_str(), body) {
        ("POST", body) => client.post(&line.path, body.unwrap_or(&Value::Null)),
        ("HEAD", _) => client.head(&line.path),
        _ => client.get(&line.path),
    }
}
