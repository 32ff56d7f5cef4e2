//! The gateway's kill switch over HTTP: closing it and proving that it is closed (healthz says so AND
//! a public stream is refused), opening it and proving that a public stream runs.

use crate::http::Client;
use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;

/// A stream as the public asks for it.
pub const PUBLIC_STREAM: &str = "/stream?route=critique&seed=42";

/// Where the gate stands, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// Requests are let in.
    Open,
    /// They are refused, with this reason.
    Closed(String),
    /// Cannot tell: this is why.
    Unknown(String),
}

/// Asks `healthz`.
pub fn position(gateway: &Client) -> Gate {
    let answer = match gateway.get("/healthz") {
        Ok(answer) => answer,
        Err(error) => return Gate::Unknown(format!("{error:#}")),
    };
    let body = answer.json();
    match body["status"].as_str() {
        Some("healthy") if answer.status == 200 => Gate::Open,
        Some("disabled") => Gate::Closed(body["detail"].as_str().unwrap_or("no reason given").to_owned()),
        _ => Gate::Unknown(format!("healthz answered {}", answer.brief())),
    }
}

/// Closes the gate and proves it.
pub fn close(gateway: &Client, reason: &str) -> Result<()> {
    let answer = gateway.post("/admin/kill-switch", &json!({"enabled": true, "reason": reason}))?;
    if answer.status != 200 {
        bail!("POST /admin/kill-switch answered {}", answer.brief());
    }
    prove_closed(gateway)
}

/// Both halves of the proof.
pub fn prove_closed(gateway: &Client) -> Result<()> {
    match position(gateway) {
        Gate::Closed(_) => {}
        other => bail!("healthz does not say disabled after closing: {other:?}"),
    }
    let refused = gateway.public().get(PUBLIC_STREAM)?;
    if refused.status != 503 || refused.headers.get("retry-after").is_none() {
        bail!("a public stream is not refused while the gate is closed: {}", refused.brief());
    }
    Ok(())
}

/// Opens the gate and waits for the first token of a public stream: only then is service restored.
pub fn open(gateway: &Client) -> Result<()> {
    let answer = gateway.post("/admin/kill-switch", &json!({"enabled": false, "reason": ""}))?;
    if answer.status != 200 {
        bail!("POST /admin/kill-switch answered {}", answer.brief());
    }
    gateway.public().stream(PUBLIC_STREAM, None)?.until("token").map(drop)
}
