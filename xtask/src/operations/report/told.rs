//! Reads the journal and the last event of a run for the three reports. Nothing is formatted for one of them
//! here.

use crate::deploy::event::Finished;
use anyhow::Result;
use serde_json::Value;

/// The events of one kind, in order.
pub fn of<'a>(events: &'a [Value], name: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["event"] == name)
}

/// The steps that ended, in order.
pub fn steps(events: &[Value]) -> impl Iterator<Item = &Value> {
    of(events, "step").filter(|step| step["progress"] != "started")
}

/// The smoke checks of the release that runs now.
pub fn checks(finished: &Finished) -> impl Iterator<Item = &Value> {
    finished.smoke.as_ref().and_then(|smoke| smoke["checks"].as_array()).into_iter().flatten()
}

/// A time in seconds, or `not measured`.
pub fn seconds(ms: Option<u64>) -> String {
    ms.map_or("not measured".into(), |ms| format!("{:.2} s", ms as f64 / 1e3))
}

/// How it ended, in words.
pub fn outcome(finished: &Finished) -> Result<String> {
    let outcome = serde_json::to_value(finished.outcome)?;
    Ok(outcome.as_str().unwrap_or("unknown").replace('-', " "))
}

/// The command that began the run, and its id.
pub fn title(events: &[Value], finished: &Finished) -> String {
    let command = of(events, "started").find_map(|event| event["command"].as_str()).unwrap_or("run");
    format!("{command} {}", finished.rollback.as_deref().unwrap_or("?"))
}

/// Who holds the gate closed, what this leaves open, and what the public got at the end, if this is known.
pub fn gate(finished: &Finished) -> impl Iterator<Item = String> {
    let hold = finished.hold.as_ref().map(|hold| format!("the gate is {hold}"));
    let beside =
        (!finished.not_closed.is_empty()).then(|| format!("not closed: {}", finished.not_closed.join(", ")));
    hold.into_iter().chain(beside).chain(finished.public.as_ref().map(ToString::to_string))
}

/// The text of a JSON string, without quotes.
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Escapes text for HTML and XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
