//! What the pilot answers: its routes, the fields of its JSON, its variables and its metrics, each named here and
//! nowhere else (`pilot-deploy/services`, and the tests of `contract.rs`, are the other side). Typed requests; what
//! an answer means for a rollback is not decided here.

use crate::base::http::{Answer, Client, Events};
use crate::stack::model::Health;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Variables of the env file and of the services.
pub mod env {
    /// What lets an operator in.
    pub const TOKEN: &str = "ADMIN_TOKEN";
    /// Scenario of the demo.
    pub const SCENARIO: &str = "DEMO_SCENARIO_ID";
    /// Seed of the demo.
    pub const SEED: &str = "DEMO_SEED";
    /// Limit for the first token, in milliseconds.
    pub const FIRST_TOKEN_MS: &str = "TTFF_TARGET_MS";
    /// Limit for a cancel, in milliseconds.
    pub const CANCEL_MS: &str = "CANCEL_TARGET_MS";
    /// Limit for a comparison of all options, in seconds.
    pub const COMPARISON_S: &str = "COMPARISON_TARGET_S";
    /// Compose project, for the compose file.
    pub const PROJECT: &str = "PILOT_PROJECT";
    /// What image names begin with, for the compose file.
    pub const IMAGES: &str = "PILOT_IMAGES";
    /// Name of the network, for the compose file.
    pub const NETWORK: &str = "PILOT_NETWORK";
    /// Which service an image is.
    pub const ROLE: &str = "SCENARIO_ROLE";
    /// Which version it says that it is.
    pub const VERSION: &str = "SCENARIO_VERSION";
    /// Defect for a drill.
    pub const FAULT: &str = "SCENARIO_FAULT";
    /// Project that a service belongs to.
    pub const OWNER: &str = "SCENARIO_PROJECT";
    /// Where a service listens.
    pub const LISTEN: &str = "SCENARIO_LISTEN";
    /// Folder of its stored data.
    pub const DATA: &str = "SCENARIO_DATA";

    /// Where a service finds another one.
    pub fn url_of(service: &str) -> String {
        format!("SCENARIO_{}_URL", service.to_uppercase())
    }
}

/// Words for the program in an image that close the gate on disk, and what it prints then.
pub fn close_on_disk(reason: &str) -> [&str; 3] {
    ["gate", "close", reason]
}

/// What it prints once the gate is closed on disk.
pub const CLOSED_ON_DISK: &str = "closed";

/// Reasons that the gateway gives when it is closed because of itself.
pub const OWN_REASONS: [&str; 2] = ["GLOBAL_KILL_SWITCH is true", "gate file unreadable"];

/// Where the kill switch stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Requests are let in.
    Open,
    /// They are refused, with this reason.
    Closed(String),
    /// Something else was answered.
    Other(String),
}

const HEALTHZ: &str = "/healthz";

/// One probe of a service. The word itself is compared: `unhealthy` contains `healthy`.
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

/// The kill switch, as the gateway tells it.
pub fn switch(gateway: &Client) -> Result<Switch> {
    let answer = gateway.get(HEALTHZ)?;
    let body = answer.json();
    Ok(match body["status"].as_str() {
        Some("healthy") if answer.status == 200 => Switch::Open,
        Some("disabled") => Switch::Closed(body["detail"].as_str().unwrap_or("no reason given").to_owned()),
        _ => Switch::Other(format!("healthz answered {}", answer.brief())),
    })
}

/// Closes the kill switch with a reason, or opens it.
pub fn set_switch(gateway: &Client, closed: Option<&str>) -> Result<()> {
    let body = json!({"enabled": closed.is_some(), "reason": closed.unwrap_or_default()});
    let answer = gateway.post("/admin/kill-switch", &body)?;
    ensure!(answer.status == 200, "POST /admin/kill-switch answered {}", answer.brief());
    Ok(())
}

/// Is a stream, as the public asks for it, refused as one behind a closed kill switch is?
pub fn refuses_public(gateway: &Client) -> Result<()> {
    let refused = gateway.public().get(&public_stream())?;
    if refused.status != 503 || refused.headers.get("retry-after").is_none() {
        bail!("a public stream is not refused while the gate is closed: {}", refused.brief());
    }
    Ok(())
}

/// Waits for the first token of a stream as the public asks for it.
pub fn serves_public(gateway: &Client) -> Result<()> {
    gateway.public().stream(&public_stream(), None)?.until(TOKEN).map(drop)
}

fn public_stream() -> String {
    StreamOf::seed("42").path()
}

/// Event of a stream that carries a piece of the answer.
pub const TOKEN: &str = "token";
/// Event that tells how far a stream is.
pub const PROGRESS: &str = "progress";
/// Last event of a stream that came to its end.
pub const DONE: &str = "done";
/// Last event of a stream that was cancelled.
pub const CANCELLED: &str = "cancelled";

/// A stream to ask for.
#[derive(Clone, Copy, Debug)]
pub struct StreamOf<'a> {
    /// Makes the answer the same each time.
    pub seed: &'a str,
    /// Tokens at most.
    pub budget: Option<u32>,
    /// Name of the session, to cancel it by.
    pub session: Option<&'a str>,
}

impl<'a> StreamOf<'a> {
    /// As long as the pilot makes it.
    pub fn seed(seed: &'a str) -> Self {
        Self { seed, budget: None, session: None }
    }

    /// Its route with its query.
    pub fn path(&self) -> String {
        let budget = self.budget.map(|budget| format!("&budget={budget}")).unwrap_or_default();
        let session = self.session.map(|id| format!("&sessionId={id}")).unwrap_or_default();
        format!("/stream?route=critique&seed={}{budget}{session}", self.seed)
    }

    /// Opens it, or what is left of it after that event.
    pub fn open(&self, gateway: &Client, after: Option<&str>) -> Result<Events> {
        gateway.stream(&self.path(), after)
    }

    /// Reads it as one answer.
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

/// Cancels it again, which is refused.
pub fn cancel_again(gateway: &Client, session: &str) -> Result<()> {
    let answer = gateway.post("/cancel", &json!({"sessionId": session}))?;
    let refused = answer.status == 409 && answer.json()["status"] == "already_cancelled";
    ensure!(refused, "a second POST /cancel answered {}, expected 409 already_cancelled", answer.brief());
    Ok(())
}

/// A report and the number of options that it compares. Errors name a field that is missing.
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

/// Its head alone.
pub fn report_head(gateway: &Client, scenario: &str, seed: &str) -> Result<()> {
    let path = report_path(scenario, seed);
    let head = gateway.head(&path)?;
    ensure!(head.status == 200, "HEAD {path} answered {}", head.brief());
    Ok(())
}

fn report_path(scenario: &str, seed: &str) -> String {
    format!("/report?scenarioId={scenario}&seed={seed}")
}

/// Runs a job to its end; how many events it had.
pub fn job(gateway: &Client, scenario: &str) -> Result<usize> {
    let events = gateway.stream(&format!("/jobs/stream?scenarioId={scenario}"), None)?.rest()?;
    let last = events.last().map_or("nothing", |e| e.name.as_str());
    ensure!(last == "job-completed", "the job ended with {last}");
    Ok(events.len())
}

/// An answer whose headers are looked at.
pub fn healthz(client: &Client) -> Result<Answer> {
    client.get(HEALTHZ)
}

/// Offers a scenario, which may be refused (400).
pub fn seed(gateway: &Client, scenario: &Value) -> Result<Answer> {
    gateway.post("/admin/seed", scenario)
}

/// Loads a scenario that must be taken.
pub fn load_scenario(gateway: &Client, scenario: &Value) -> Result<()> {
    let answer = seed(gateway, scenario)?;
    ensure!(answer.status == 200, "POST /admin/seed answered {}", answer.brief());
    Ok(())
}

/// The settings in force in a service, by name, and its defect for a drill; none when it does not tell.
pub fn settings(client: &Client) -> Option<Value> {
    let answer = client.get("/admin/config").ok().filter(|answer| answer.status == 200)?;
    Some(answer.json())
}

/// Streams that run.
pub fn sessions(gateway: &Client) -> Result<Value> {
    Ok(gateway.get(SESSIONS)?.json())
}

const SESSIONS: &str = "/admin/sessions";
const METRICS: &str = "/metrics";

/// Documents of every service that are kept as evidence: how a file with it ends, and its route.
pub const OF_EACH: [(&str, &str); 1] = [("metrics.txt", METRICS)];
/// Documents of the gateway that are kept as evidence: the file and its route.
pub const OF_GATEWAY: [(&str, &str); 2] = [("metrics.json", "/admin/metrics"), ("sessions.json", SESSIONS)];

/// One of these documents.
pub fn document(client: &Client, route: &str) -> Result<String> {
    let answer = client.get(route)?;
    ensure!(answer.status == 200, "{route} answered {}", answer.brief());
    Ok(answer.body)
}

/// Resident memory of a service, in bytes.
pub fn memory(client: &Client) -> Result<f64> {
    let text = client.get(METRICS)?.body;
    let value = text.lines().find_map(|line| line.strip_prefix("scenario_resident_memory_bytes "));
    value.and_then(|value| value.trim().parse().ok()).context("it does not tell its memory")
}
