//! The settings of a service, read once from its environment (`.env.poc` and the variables in the image). A
//! value that cannot be parsed ends the service with the name of the variable; there is no silent default.
//! Called by `main`; every role gets the result.

use crate::fault::Fault;
use crate::seed::check_id;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Flags that must be off in a pilot, so that it measures only the product.
const SAFETY_FLAGS: [&str; 6] = [
    "ENABLE_RATE_LIMITING",
    "ENABLE_CACHE",
    "ENABLE_USAGE_TRACKING",
    "ENABLE_MONITORING",
    "ENABLE_SECRET_HYGIENE_BLOCKING",
    "ENABLE_SLOS",
];

/// Flags that must be on in a pilot, because its data is simulated and repeatable.
const SIMULATION_FLAGS: [&str; 4] =
    ["USE_MOCK_DATA", "USE_SIMULATION", "ENABLE_SEED_ECHO", "ENABLE_DETERMINISTIC_REPLAY"];

/// The name that always means the demo scenario, whatever its id is.
pub const DEMO: &str = "demo";

/// All settings of a role.
#[derive(Clone, Debug)]
pub struct Config {
    /// Project that this service belongs to. An admin request for another project is refused.
    pub project: String,
    /// Version of the image, as `healthz` reports it.
    pub version: String,
    /// Address to listen on.
    pub listen: String,
    /// Folder for the stored data of the role.
    pub data: PathBuf,
    /// URL of the engine, for the gateway.
    pub engine_url: String,
    /// URL of the jobs service, for the gateway.
    pub jobs_url: String,
    /// Origins that browsers may call from; `*` allows any.
    pub cors_origins: Vec<String>,
    /// Token for the admin routes. If it is empty, no request can have it.
    pub admin_token: String,
    /// False with `ADMIN_AUTH=off`: admin routes then need no token, as in the old
    /// plan. Only for a closed lab.
    pub admin_auth: bool,
    /// True: the gate is closed at start, whatever is on disk.
    pub kill_switch: bool,
    /// Id of the demo scenario.
    pub demo_scenario: String,
    /// Seed of a request that gives none.
    pub default_seed: u64,
    /// Tokens of a run that gives no budget.
    pub quota_per_run: u32,
    /// Streams a minute, if rate limiting is on.
    pub quota_per_minute: u32,
    /// Largest budget that a run may ask for, in tokens.
    pub max_tokens_per_run: u32,
    /// How many jobs of the public run at once. More wait in the queue.
    pub max_concurrent_jobs: usize,
    /// A job that runs longer than this fails.
    pub job_timeout: Duration,
    /// Defect that is built into the image of a drill.
    pub fault: Fault,
    flags: BTreeMap<&'static str, bool>,
}

impl Config {
    /// Reads the environment. An error names the variable, its value and what is allowed.
    pub fn from_env() -> Result<Self, String> {
        let mut flags = BTreeMap::new();
        for name in SAFETY_FLAGS {
            flags.insert(name, flag(name, false)?);
        }
        for name in SIMULATION_FLAGS {
            flags.insert(name, flag(name, true)?);
        }
        Ok(Self {
            project: text("SCENARIO_PROJECT", "pilot-deploy"),
            version: text("SCENARIO_VERSION", concat!("v", env!("CARGO_PKG_VERSION"))),
            listen: text("SCENARIO_LISTEN", "127.0.0.1:0"),
            data: PathBuf::from(text("SCENARIO_DATA", "/data")),
            engine_url: text("SCENARIO_ENGINE_URL", "http://engine:3002"),
            jobs_url: text("SCENARIO_JOBS_URL", "http://jobs:3003"),
            cors_origins: text("CORS_ORIGINS", "")
                .split(',')
                .map(str::trim)
                .filter(|origin| !origin.is_empty())
                .map(str::to_owned)
                .collect(),
            admin_token: text("ADMIN_TOKEN", ""),
            admin_auth: match text("ADMIN_AUTH", "on").as_str() {
                "on" => true,
                "off" => false,
                other => return Err(format!("ADMIN_AUTH={other}: expected on or off")),
            },
            kill_switch: flag("GLOBAL_KILL_SWITCH", false)?,
            demo_scenario: scenario_id("DEMO_SCENARIO_ID", "demo-scenario")?,
            default_seed: number("DEFAULT_SEED", 42)?,
            quota_per_run: number("QUOTA_PER_RUN", 24)?,
            quota_per_minute: number("QUOTA_PER_MINUTE", 600)?,
            max_tokens_per_run: number("MAX_TOKENS_PER_RUN", 4000)?,
            max_concurrent_jobs: number::<usize>("MAX_CONCURRENT_JOBS", 4)?.max(1),
            job_timeout: Duration::from_millis(number("JOB_TIMEOUT_MS", 30_000)?),
            fault: Fault::from_env()?,
            flags,
        })
    }

    /// Is this flag on? The name must be in one of the two lists above.
    pub fn flag(&self, name: &str) -> bool {
        self.flags.get(name).copied().unwrap_or(false)
    }

    /// The id of the scenario that a client asked for.
    pub fn scenario(&self, asked: String) -> String {
        if asked == DEMO { self.demo_scenario.clone() } else { asked }
    }

    /// The answer to `GET /admin/config`: the present values, without secrets.
    pub fn effective(&self) -> Value {
        let mut out = Map::new();
        for (name, on) in &self.flags {
            out.insert((*name).to_owned(), json!(on));
        }
        out.insert("ADMIN_AUTH".into(), json!(self.admin_auth));
        out.insert("CORS_ORIGINS".into(), json!(self.cors_origins.join(",")));
        out.insert("DEFAULT_SEED".into(), json!(self.default_seed));
        out.insert("DEMO_SCENARIO_ID".into(), json!(self.demo_scenario));
        out.insert("GLOBAL_KILL_SWITCH".into(), json!(self.kill_switch));
        out.insert("JOB_TIMEOUT_MS".into(), json!(self.job_timeout.as_millis() as u64));
        out.insert("MAX_CONCURRENT_JOBS".into(), json!(self.max_concurrent_jobs));
        out.insert("MAX_TOKENS_PER_RUN".into(), json!(self.max_tokens_per_run));
        out.insert("QUOTA_PER_MINUTE".into(), json!(self.quota_per_minute));
        out.insert("QUOTA_PER_RUN".into(), json!(self.quota_per_run));
        let fault = self.fault.name();
        json!({"project": self.project, "version": self.version, "fault": fault, "values": out})
    }
}

/// `LOG_LEVEL`. Read separately, because logging starts before the other settings are parsed.
pub fn log_level() -> Result<tracing::Level, String> {
    let level = text("LOG_LEVEL", "info");
    tracing::Level::from_str(&level)
        .map_err(|e| format!("LOG_LEVEL={level}: {e}; expected error, warn, info, debug or trace"))
}

fn text(name: &str, default: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => default.to_owned(),
    }
}

fn scenario_id(name: &str, default: &str) -> Result<String, String> {
    let id = text(name, default);
    check_id(name, &id)?;
    Ok(id)
}

fn flag(name: &str, default: bool) -> Result<bool, String> {
    match text(name, if default { "true" } else { "false" }).as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("{name}={other}: expected true or false")),
    }
}

fn number<T: FromStr>(name: &str, default: T) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => {
            value.parse().map_err(|e| format!("{name}={value}: {e}; expected a whole number"))
        }
        _ => Ok(default),
    }
}
