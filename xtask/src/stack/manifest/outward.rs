//! Reads the parts of a manifest about what is outside of the stack: `[notify]`, `[metrics]` and `[images]`. Called by
//! `sections`.

use super::gate::command;
use super::reading::Value;
use super::values::{Metrics, Notify, Occasion};
use crate::stack::call::names;
use std::time::Duration;

/// How long one receiver may take if the manifest does not say it, and at most.
const LIMIT: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);

/// Receivers, and what they are told.
pub fn notify(value: &Value<'_>) -> Option<Notify> {
    let table = value.table()?;
    let webhook = table.get("webhook", url);
    let command = table.get("command", command);
    let all = || Occasion::ALL.map(|(_, occasion)| occasion).to_vec();
    let on = table.or("on", all(), |value| value.list(&mut occasion));
    let limit = table.or("limit", LIMIT, |value| match value.duration()? {
        limit if limit.is_zero() || limit > LONGEST => value.wrong("from \"1ms\" to \"60s\""),
        limit => Some(limit),
    });
    if !table.has("webhook") && !table.has("command") {
        table.wrong("it names no receiver: `webhook`, `command`, or both");
    }
    table.close();
    Some(Notify { webhook, command, on, limit })
}

fn url(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if let Err(error) = names(&text) {
        return value.wrong(error);
    }
    // It is not repeated: it is a secret.
    let begins = ["https://", "http://", "${"].iter().any(|begin| text.starts_with(begin));
    match begins && !text.contains(char::is_whitespace) && !text.contains(char::is_control) {
        true => Some(text),
        false => value.wrong("it is no URL; right would be \"${SLACK_WEBHOOK}\", or \"https://…\""),
    }
}

fn occasion(value: &Value<'_>) -> Option<Occasion> {
    let word = value.text()?;
    let known = Occasion::ALL.into_iter().find(|(known, _)| *known == word);
    let words = Occasion::ALL.map(|(word, _)| format!("{word:?}")).join(", ");
    known.map(|(_, occasion)| occasion).or_else(|| value.wrong(format!("{word:?} is none of {words}")))
}

/// Where figures are written.
pub fn metrics(value: &Value<'_>) -> Option<Metrics> {
    let table = value.table()?;
    let textfile = table.need("textfile", Value::text);
    table.close();
    Some(Metrics { textfile: textfile?.into() })
}

/// Where images are kept too: `registry`.
pub fn images(value: &Value<'_>) -> Option<String> {
    let table = value.table()?;
    let registry = table.need("registry", registry);
    table.close();
    registry
}

fn registry(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    let (host, path) = text.split_once('/').map_or((&*text, None), |(host, path)| (host, Some(path)));
    let is_of = |part: &str, marks: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || marks.contains(c);
        !part.is_empty() && part.chars().all(allowed)
    };
    // Without a dot or a port, Docker takes the host for a path of Docker Hub.
    let is_host = host == "localhost" || (host.contains(['.', ':']) && is_of(host, ".-:[]"));
    match is_host && path.is_none_or(|path| path.split('/').all(|part| is_of(part, ".-_"))) {
        true => Some(text),
        false => {
            value.wrong("a host, with a path if it has one, such as \"registry.example.com:5000/pilot\"")
        }
    }
}
