//! The address and the admin token of each service, as the engine reports them or from an env file. No
//! requests are made here. Called by `engine`, `deploy` and `checks`.

use crate::stack::contract;
use crate::stack::envfile::EnvFile;
use crate::stack::model::{Instance, Service};
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::collections::BTreeMap;

/// The port of a service, and the admin token that it was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// The admin token.
    pub token: Option<String>,
}

impl Endpoint {
    /// The endpoint of an instance; none if it does not run or is not published.
    pub fn of(instance: &Instance) -> Option<Self> {
        let address = instance.address.filter(|_| instance.is_running())?;
        Some(Self { port: address.port(), token: instance.env.get(contract::env::TOKEN).cloned() })
    }

    /// The endpoint of the first instance of a service that has one.
    pub fn any_of(service: &Service) -> Option<Self> {
        service.0.iter().find_map(Self::of)
    }
}

/// The endpoint of each service that publishes a port, from the definition of the stack or from an env file.
pub fn endpoints(pilot: &Pilot, env: &EnvFile) -> Result<BTreeMap<String, Endpoint>> {
    let token = env.get(contract::env::TOKEN).map(str::to_owned);
    let endpoint = |service: &str| {
        let port = pilot.port(service, env)?;
        Ok(port.map(|port| (service.to_owned(), Endpoint { port, token: token.clone() })))
    };
    pilot.services().filter_map(|service| endpoint(service).transpose()).collect()
}
