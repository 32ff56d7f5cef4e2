//! Makes clients for the services of a stack, at the addresses that its engine uses. Called by `checks` and
//! `commands`.

use crate::base::http::Client;
use crate::engine::roles::Runtime;
use crate::stack::endpoint::endpoints;
use crate::stack::envfile::EnvFile;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Duration;

/// Clients for all services of a release, by its env file. Each request takes `limit` at most.
pub fn clients(
    pilot: &Pilot,
    runtime: &dyn Runtime,
    env: &EnvFile,
    limit: Duration,
) -> Result<BTreeMap<String, Client>> {
    let all = endpoints(pilot, env)?;
    Ok(all.into_iter().map(|(name, endpoint)| (name, runtime.reach(&endpoint, limit))).collect())
}
