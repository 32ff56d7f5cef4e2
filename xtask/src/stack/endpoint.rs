//! The address and the admin token of each service, as the engine reports them or from an env file. No
//! requests are made here. Called by `engine`, `deploy` and `checks`.

use crate::base::http::Pass;
use crate::stack::envfile::EnvFile;
use crate::stack::model::{Instance, Service};
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The port of a service, and what lets us in: the admin token that it was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The port at which it is published.
    pub port: u16,
    /// The address of one instance of it, if one is meant.
    pub at: Option<SocketAddr>,
    /// What it is told by headers.
    pub pass: Pass,
}

impl Endpoint {
    /// The endpoint of an instance; none if it does not run or is not published.
    pub fn of(instance: &Instance, pilot: &Pilot) -> Option<Self> {
        let address = instance.address.filter(|_| instance.is_running())?;
        let token = |name: &str| instance.env.get(name).map(String::as_str);
        Some(Self { port: address.port(), at: Some(address), pass: pass(pilot, token) })
    }

    /// The endpoint of the first instance of a service that has one.
    pub fn any_of(service: &Service, pilot: &Pilot) -> Option<Self> {
        service.0.iter().find_map(|instance| Self::of(instance, pilot))
    }
}

fn pass<'a>(pilot: &Pilot, value: impl Fn(&str) -> Option<&'a str>) -> Pass {
    let auth = &pilot.manifest.auth;
    auth.pass(&pilot.project, auth.token.as_deref().and_then(value))
}

/// The endpoint of each service that publishes a port, from the definition of the stack or from an env file.
pub fn endpoints(pilot: &Pilot, env: &EnvFile) -> Result<BTreeMap<String, Endpoint>> {
    let pass = pass(pilot, |name| env.get(name));
    let endpoint = |service: &str| {
        let port = pilot.port(service, env)?;
        Ok(port.map(|port| (service.to_owned(), Endpoint { port, at: None, pass: pass.clone() })))
    };
    pilot.services().filter_map(|service| endpoint(service).transpose()).collect()
}
