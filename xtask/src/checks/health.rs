//! One probe of a service's `healthz`. Called by `deploy/observe`, and by the checks that wait for a service.

use crate::base::http::Client;
use crate::stack::model::Health;

/// Asks `healthz` once. The status word is compared as a whole, because `unhealthy` contains `healthy`.
pub fn health(client: &Client) -> Health {
    let answer = match client.get("/healthz") {
        Ok(answer) => answer,
        Err(error) => return Health::Silent(format!("{error:#}")),
    };
    let body = answer.json();
    if let Some(other) = body["project"].as_str().filter(|project| *project != client.project()) {
        return Health::Silent(format!("the service of another project ({other}) answers on this port"));
    }
    match body["status"].as_str() {
        Some("healthy" | "disabled") if answer.status == 200 => {
            Health::Healthy { version: body["version"].as_str().unwrap_or("?").to_owned() }
        }
        _ => match body["reason"].as_str() {
            Some(reason) if reason.starts_with("store corrupt") => Health::StoreCorrupt(reason.to_owned()),
            Some(reason) => Health::Unhealthy(reason.to_owned()),
            None => Health::Unhealthy(format!("healthz: {}", answer.brief())),
        },
    }
}
