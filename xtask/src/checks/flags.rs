//! The safety flags of the running services. Each service is asked over HTTP; no file is read.

use crate::checks::target::Target;
use crate::stack::contract;
use anyhow::{Result, ensure};
use serde::Serialize;

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

/// Asks each running service for its flags. Two more rows are violations too: a drill's fault in the
/// image, and `ADMIN_AUTH=off`.
pub fn flags(target: &Target) -> Vec<Flag> {
    let mut all = Vec::new();
    for (service, client) in &target.clients {
        let body = contract::settings(client);
        let mut add = |name: &str, want: &str, is: Option<String>| {
            all.push(Flag { service: service.clone(), name: name.to_owned(), want: want.to_owned(), is });
        };
        let value =
            |name: &str| body.as_ref().and_then(|b| b["values"][name].as_bool()).map(|b| b.to_string());
        target.flags.off.iter().for_each(|name| add(name, "false", value(name)));
        target.flags.on.iter().for_each(|name| add(name, "true", value(name)));
        add("ADMIN_AUTH", "true", value("ADMIN_AUTH"));
        let fault = body.as_ref().map(|body| body["fault"].as_str().unwrap_or("none").to_owned());
        add("drill fault", "none", fault);
    }
    all
}

/// The smoke check: an error names every flag that is wrong.
pub fn hold(target: &Target) -> Result<String> {
    let all = flags(target);
    let wrong: Vec<String> = all
        .iter()
        .filter(|flag| !flag.ok())
        .map(|flag| {
            format!("{}: {} is {}", flag.service, flag.name, flag.is.as_deref().unwrap_or("not reported"))
        })
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(format!("{} flags in {} services", all.len(), target.clients.len()))
}
