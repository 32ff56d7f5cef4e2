//! What the checks run against: the services of a release, with the addresses and limits of its env file.

use crate::base::http::Client;
use crate::engine::reach::clients;
use crate::engine::roles::Runtime;
use crate::stack::contract::env as names;
use crate::stack::envfile::EnvFile;
use crate::stack::manifest::Flags;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// Limit of a single request of a check.
const REQUEST: Duration = Duration::from_secs(5);

/// What the checks run against.
pub struct Target {
    /// The services of the pilot, each with the admin token.
    pub clients: BTreeMap<String, Client>,
    /// The gateway among them.
    pub gateway: Client,
    /// Id of the scenario for reports and jobs.
    pub scenario: String,
    /// Seed of every run and report.
    pub seed: String,
    /// Limit for the first token, in milliseconds.
    pub first_token_ms: f64,
    /// Limit for a cancel, in milliseconds.
    pub cancel_ms: f64,
    /// Limit for a comparison of all options, in seconds.
    pub comparison_s: f64,
    /// Flags that must be off, and on.
    pub flags: Flags,
}

impl Target {
    /// From the env file that the services were deployed with. Errors name what is missing in it.
    pub fn new(pilot: &Pilot, runtime: &dyn Runtime, env: &EnvFile) -> Result<Self> {
        let clients = clients(pilot, runtime, env, REQUEST)?;
        let gateway = clients.get(pilot.gateway()).cloned().context("pilot.toml names no gateway")?;
        let text = |key: &str| env.get(key).with_context(|| format!("{key} is missing in the env file"));
        let number = |key: &str| -> Result<f64> {
            let value = text(key)?;
            value.parse().with_context(|| format!("{key}={value} is not a number"))
        };
        Ok(Self {
            clients,
            gateway,
            scenario: text(names::SCENARIO)?.to_owned(),
            seed: text(names::SEED)?.to_owned(),
            first_token_ms: number(names::FIRST_TOKEN_MS)?,
            cancel_ms: number(names::CANCEL_MS)?,
            comparison_s: number(names::COMPARISON_S)?,
            flags: pilot.manifest.flags.clone(),
        })
    }
}
