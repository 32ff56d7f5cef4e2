//! Where the services of a stack answer: as the engine has them, or by an env file.

use crate::stack::contract;
use crate::stack::envfile::EnvFile;
use crate::stack::model::{Instance, Service};
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::collections::BTreeMap;

/// Where a service answers, and the token it was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// On 127.0.0.1.
    pub port: u16,
    /// What lets an operator in.
    pub token: Option<String>,
}

impl Endpoint {
    /// Of an instance that runs and is published.
    pub fn of(instance: &Instance) -> Option<Self> {
        let address = instance.address.filter(|_| instance.is_running())?;
        Some(Self { port: address.port(), token: instance.env.get(contract::env::TOKEN).cloned() })
    }

    /// Of any such instance of a service.
    pub fn any_of(service: &Service) -> Option<Self> {
        service.0.iter().find_map(Self::of)
    }
}

/// By the env file: of a release, or the tree's.
pub fn endpoints(pilot: &Pilot, env: &EnvFile) -> Result<BTreeMap<String, Endpoint>> {
    let token = env.get(contract::env::TOKEN).map(str::to_owned);
    let endpoint = |service: &str| {
        Ok((service.to_owned(), Endpoint { port: pilot.port(service, env)?, token: token.clone() }))
    };
    pilot.services().map(endpoint).collect()
}
