//! The safety flags of the running services, as `[flags]` of the manifest names them. Each service is asked over HTTP; no
//! file is read.

use crate::base::http::Client;
use crate::checks::ask::send;
use crate::checks::target::Target;
use crate::stack::manifest::Flags;
use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::Value;

/// One flag of one running service.
#[derive(Clone, Debug, Serialize)]
pub struct Flag {
    /// Which service.
    pub service: String,
    /// Name of the flag.
    pub name: String,
    /// The value that it should have.
    pub want: String,
    /// The value that the service reports; none if it reports none.
    pub is: Option<String>,
}

impl Flag {
    /// Has it the value that it should have?
    pub fn ok(&self) -> bool {
        self.is.as_deref() == Some(&self.want)
    }
}

/// Asks each service for its flags, and for more values that must be so; none if the manifest has no `[flags]`.
pub fn flags(target: &Target<'_>) -> Vec<Flag> {
    let Some(rule) = &target.pilot.manifest.flags else { return Vec::new() };
    let asked = target
        .clients
        .iter()
        .filter(|(name, _)| rule.request.service.as_ref().is_none_or(|service| service == *name));
    asked.flat_map(|(service, client)| of(service, client, rule)).collect()
}

fn of(service: &str, client: &Client, rule: &Flags) -> Vec<Flag> {
    let answer = send(client, &rule.request, None).ok().filter(|answer| answer.status == 200);
    let body = answer.map(|answer| answer.json());
    let shown = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let flag = |name: &str, want: &str, is| Flag {
        service: service.into(),
        name: name.into(),
        want: want.into(),
        is,
    };
    let values = body.as_ref().and_then(|body| body.pointer(&rule.values));
    let value = |name: &String| values.and_then(|values| values.get(name)).and_then(shown);
    let off = rule.off.iter().map(|name| flag(name, "false", value(name)));
    let on = rule.on.iter().map(|name| flag(name, "true", value(name)));
    let more = rule.more.iter().map(|row| {
        let is = |body: &Value| body.pointer(&row.pointer).and_then(shown).or_else(|| row.absent.clone());
        flag(&row.name, &row.is, body.as_ref().and_then(is))
    });
    off.chain(on).chain(more).collect()
}

/// The check: an error names every flag that is wrong.
pub fn hold(target: &Target<'_>) -> Result<String> {
    let all = flags(target);
    let wrong: Vec<String> = all
        .iter()
        .filter(|flag| !flag.ok())
        .map(|flag| {
            format!("{}: {} is {}", flag.service, flag.name, flag.is.as_deref().unwrap_or("not reported"))
        })
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    ensure!(!all.is_empty(), "no service could be asked");
    Ok(format!("{} flags in {} services", all.len(), target.clients.len()))
}
