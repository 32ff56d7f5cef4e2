//! What `healthz` of a service says. Called by `observe`, and by the checks that wait for it.

use crate::base::http::Client;
use crate::stack::model::Health;

/// One probe of `healthz`. The word itself is compared: `unhealthy` contains `healthy`.
pub fn health(client: &Client) -> Health {
    let answer = match client.get("/healthz") {
        Ok(answer) => answer,
        Err(error) => return Health::Silent(format!("{error:#}")),
    };
    let body = answer.json();
    if let Some(other) = body["project"].as_str().filter(|project| *project != client.project()) {
        return Health::Silent(format!("project {other} answers there"));
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
