//! The safety flags of the running services, as `[flags]` of the manifest names them. Each service is asked over HTTP; no
//! file is read.

use crate::base::http::Client;
use crate::checks::ask::send;
use crate::checks::target::{REQUEST, Target};
use crate::stack::manifest::Flags;
use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// One flag of one running service.
#[derive(Clone, Debug, Serialize)]
pub struct Flag {
    /// Which service.
    pub service: String,
    /// Which of its instances, by its address; none if there is one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
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

    /// Who reports it.
    pub fn by(&self) -> String {
        self.at.as_ref().map_or_else(|| self.service.clone(), |at| format!("{} at {at}", self.service))
    }
}

/// Asks each instance of each service for its flags, and for more values that must be so; none if the manifest has no `[flags]`.
pub fn flags(target: &Target<'_>) -> Vec<Flag> {
    let Some(rule) = &target.pilot.manifest.flags else { return Vec::new() };
    let asked = target.reachable(rule.request.service.as_deref());
    asked.flat_map(|service| of_each(target, service, rule)).collect()
}

/// Those of each instance of a service. Where nobody can say which instances run, none is reported.
fn of_each(target: &Target<'_>, service: &str, rule: &Flags) -> Vec<Flag> {
    let said = target.each(service, REQUEST, |client| Ok((client.place().to_owned(), body(client, rule))));
    let all = said.unwrap_or_else(|_| vec![(String::new(), None)]);
    let several = all.len() > 1;
    let named = |(at, body)| of(service, several.then_some(at), body, rule);
    all.into_iter().flat_map(named).collect()
}

/// What an instance says of its flags.
fn body(client: &Client, rule: &Flags) -> Option<Value> {
    let answer = send(client, &rule.request, None).ok().filter(|answer| answer.status == 200);
    answer.map(|answer| answer.json())
}

fn of(service: &str, at: Option<String>, body: Option<Value>, rule: &Flags) -> Vec<Flag> {
    let shown = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let flag = |name: &str, want: &str, is| Flag {
        service: service.into(),
        at: at.clone(),
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
            format!("{}: {} is {}", flag.by(), flag.name, flag.is.as_deref().unwrap_or("not reported"))
        })
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    ensure!(!all.is_empty(), "no service could be asked");
    let services: BTreeSet<&str> = all.iter().map(|flag| flag.service.as_str()).collect();
    Ok(format!("{} flags in {} services", all.len(), services.len()))
}
