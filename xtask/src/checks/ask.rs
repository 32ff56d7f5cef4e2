//! Sends a request of a manifest to a service, and compares the answer with what it must be. Called by the rest of
//! `checks`, by `deploy` and by the command `seed`.

use crate::base::http::{Answer, Client};
use crate::stack::call::{Call, Line, filled_json, filled_path};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Sends the request and checks the answer. `values` are the variables in it, besides the name of the project.
pub fn ask(client: &Client, call: &Call, values: &[(&str, &str)]) -> Result<()> {
    if !call.is_stream() {
        return answer(client, call, values).map(drop);
    }
    let mut events = stream(client, call, values, None)?;
    if let Some(event) = &call.sse {
        events.until(event)?;
    }
    if let Some(wanted) = &call.ends_with {
        let last = events.rest()?.pop().map_or("nothing".to_owned(), |event| event.name);
        ensure!(last == *wanted, "{}: the stream ended with {last}, expected {wanted}", call.request);
    }
    Ok(())
}

/// The answer, if it is as it must be.
pub fn answer(client: &Client, call: &Call, values: &[(&str, &str)]) -> Result<Answer> {
    let values = known(client, values);
    let body = call.json.as_ref().map(|json| filled_json(json, &values)).transpose()?;
    let line = Line { path: filled_path(&call.request.path, &values)?, ..call.request.clone() };
    let answer = send(&asker(client, call), &line, body.as_ref())?;
    let header = |name: &str| answer.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    call.compare(answer.status, header, &answer.json(), &answer.brief()).with_context(|| line.to_string())?;
    Ok(answer)
}

/// The stream of a call, from its beginning or after the event with this id.
pub fn stream(
    client: &Client,
    call: &Call,
    values: &[(&str, &str)],
    after: Option<&str>,
) -> Result<crate::base::http::Events> {
    asker(client, call).stream(&filled_path(&call.request.path, &known(client, values))?, after)
}

fn asker(client: &Client, call: &Call) -> Client {
    if call.public { client.public() } else { client.clone() }
}

fn known<'a>(client: &'a Client, values: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [("PROJECT", client.project())].into_iter().chain(values.iter().copied()).collect()
}

/// Sends a request as it stands.
pub fn send(client: &Client, line: &Line, body: Option<&Value>) -> Result<Answer> {
    match (line.method.as_str(), body) {
        ("POST", body) => client.post(&line.path, body.unwrap_or(&Value::Null)),
        ("HEAD", _) => client.head(&line.path),
        _ => client.get(&line.path),
    }
}
