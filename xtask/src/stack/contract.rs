//! The contract: the routes, JSON fields, variables and metrics of the pilot. They are named only here. The
//! other side is `pilot-deploy/services`; the tests in `contract.rs` compare both. Requests have types. What
//! an answer means for a rollback is not decided here. Called by `engine`, `checks`, `deploy` and `commands`.

use crate::base::http::{Answer, Client, Events};
use crate::stack::model::Health;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Variables of the env file and of the services.
pub mod env {
    /// The admin token.
    pub const TOKEN: &str = "ADMIN_TOKEN";
    /// The scenario of the demo.
    pub const SCENARIO: &str = "DEMO_SCENARIO_ID";
    /// The seed of the demo.
    pub const SEED: &str = "DEMO_SEED";
    /// The limit for the first token, in milliseconds.
    pub const FIRST_TOKEN_MS: &str = "TTFF_TARGET_MS";
    /// The limit for a cancel, in milliseconds.
    pub const CANCEL_MS: &str = "CANCEL_TARGET_MS";
    /// The limit for a comparison of all options, in seconds.
    pub const COMPARISON_S: &str = "COMPARISON_TARGET_S";
    /// The service that an image is for.
    pub const ROLE: &str = "SCENARIO_ROLE";
    /// The version that an image reports.
    pub const VERSION: &str = "SCENARIO_VERSION";
    /// The fault for a drill.
    pub const FAULT: &str = "SCENARIO_FAULT";
    /// The project that a service belongs to.
    pub const OWNER: &str = "SCENARIO_PROJECT";
    /// The address that a service listens on.
    pub const LISTEN: &str = "SCENARIO_LISTEN";
    /// The folder of its stored data.
    pub const DATA: &str = "SCENARIO_DATA";

    /// The variable with the address of another service.
    pub fn url_of(service: &str) -> String {
        format!("SCENARIO_{}_URL", service.to_uppercase())
    }
}

const HEALTHZ: &str = "/healthz";

/// Asks a service for its health once. The whole word is compared, because `unhealthy` contains `healthy`.
pub fn health(client: &Client) -> Health {
    let answer = match client.get(HEALTHZ) {
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

/// The event that carries a part of the answer.
pub const TOKEN: &str = "token";
/// The event that says how far a stream is.
pub const PROGRESS: &str = "progress";
/// The last event of a stream that finished.
pub const DONE: &str = "done";
/// The last event of a stream that was cancelled.
pub const CANCELLED: &str = "cancelled";

/// A stream to request.
#[derive(Clone, Copy, Debug)]
pub struct StreamOf<'a> {
    /// Makes the answer the same each time.
    pub seed: &'a str,
    /// The largest number of tokens.
    pub budget: Option<u32>,
    /// The name of the session, which is needed to cancel it.
    pub session: Option<&'a str>,
}

impl<'a> StreamOf<'a> {
    /// A stream that is as long as the pilot allows.
    pub fn seed(seed: &'a str) -> Self {
        Self { seed, budget: None, session: None }
    }

    /// The route with its query.
    pub fn path(&self) -> String {
        let budget = self.budget.map(|budget| format!("&budget={budget}")).unwrap_or_default();
        let session = self.session.map(|id| format!("&sessionId={id}")).unwrap_or_default();
        format!("/stream?route=critique&seed={}{budget}{session}", self.seed)
    }

    /// Opens the stream, or continues it after that event.
    pub fn open(&self, gateway: &Client, after: Option<&str>) -> Result<Events> {
        gateway.stream(&self.path(), after)
    }

    /// Reads the stream as one answer.
    pub fn whole(&self, gateway: &Client) -> Result<Answer> {
        gateway.get(&self.path())
    }
}

/// Cancels a session: 202 the first time, 409 after that.
pub fn cancel(gateway: &Client, session: &str) -> Result<()> {
    let wish = json!({"sessionId": session});
    let answer = gateway.post("/cancel", &wish)?;
    let expected = answer.status == 202 && answer.json()["status"] == "cancelling";
    ensure!(expected, "POST /cancel answered {}, expected 202 cancelling", answer.brief());
    Ok(())
}

/// Cancels a session again, which must be refused.
pub fn cancel_again(gateway: &Client, session: &str) -> Result<()> {
    let answer = gateway.post("/cancel", &json!({"sessionId": session}))?;
    let refused = answer.status == 409 && answer.json()["status"] == "already_cancelled";
    ensure!(refused, "a second POST /cancel answered {}, expected 409 already_cancelled", answer.brief());
    Ok(())
}

/// Gets a report, and the number of options that it compares. The error names a missing field.
pub fn report(gateway: &Client, scenario: &str, seed: &str) -> Result<(String, usize)> {
    let path = report_path(scenario, seed);
    let answer = gateway.get(&path)?;
    ensure!(answer.status == 200, "{path} answered {}", answer.brief());
    let body = answer.json();
    for field in [
        "/decision/title",
        "/decision/options/0/score",
        "/recommendation/primary",
        "/analysis/confidence",
        "/meta/seed",
    ] {
        ensure!(body.pointer(field).is_some_and(|v| !v.is_null()), "the report lacks {field}");
    }
    Ok((answer.body, body["decision"]["options"].as_array().map_or(0, Vec::len)))
}

/// Gets only the head of a report.
pub fn report_head(gateway: &Client, scenario: &str, seed: &str) -> Result<()> {
    let path = report_path(scenario, seed);
    let head = gateway.head(&path)?;
    ensure!(head.status == 200, "HEAD {path} answered {}", head.brief());
    Ok(())
}

fn report_path(scenario: &str, seed: &str) -> String {
    format!("/report?scenarioId={scenario}&seed={seed}")
}

/// Runs a job to its end. Returns the number of its events.
pub fn job(gateway: &Client, scenario: &str) -> Result<usize> {
    let events = gateway.stream(&format!("/jobs/stream?scenarioId={scenario}"), None)?.rest()?;
    let last = events.last().map_or("nothing", |e| e.name.as_str());
    ensure!(last == "job-completed", "the job ended with {last}");
    Ok(events.len())
}

/// A request whose answer is checked for its headers.
pub fn healthz(client: &Client) -> Result<Answer> {
    client.get(HEALTHZ)
}

/// The settings that a service uses, by name, and its fault for a drill; none if it does not report them.
pub fn settings(client: &Client) -> Option<Value> {
    let answer = client.get("/admin/config").ok().filter(|answer| answer.status == 200)?;
    Some(answer.json())
}

/// The streams that are running.
pub fn sessions(gateway: &Client) -> Result<Value> {
    Ok(gateway.get(SESSIONS)?.json())
}

const SESSIONS: &str = "/admin/sessions";
const METRICS: &str = "/metrics";

/// Resident memory of a service, in bytes.
pub fn memory(client: &Client) -> Result<f64> {
    let text = client.get(METRICS)?.body;
    let value = text.lines().find_map(|line| line.strip_prefix("scenario_resident_memory_bytes "));
    value.and_then(|value| value.trim().parse().ok()).context("it does not report its memory")
}
