//! What the checks run against: the services of a release, with the addresses and values of its env file.

use crate::base::deadline::Deadline;
use crate::base::http::Client;
use crate::base::threads::side_by_side;
use crate::checks::defaults::default_checks;
use crate::engine::roles::Runtime;
use crate::stack::call::filled;
use crate::stack::check::Check;
use crate::stack::definition::Definition;
use crate::stack::endpoint::{Endpoint, endpoints};
use crate::stack::envfile::EnvFile;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Limit of a single request that is no check.
pub const REQUEST: Duration = Duration::from_secs(5);

/// How many instances of a service are asked at a time.
const AT_A_TIME: usize = 16;

/// What the checks run against.
pub struct Target<'a> {
    /// The stack, with the manifest that has the checks.
    pub pilot: &'a Pilot,
    /// What runs it.
    pub runtime: &'a dyn Runtime,
    /// The checks: those of the manifest, or those of a stack without any.
    pub checks: Vec<Check>,
    endpoints: BTreeMap<String, Endpoint>,
    env: BTreeMap<String, String>,
    definition: Option<Definition>,
}

impl<'a> Target<'a> {
    /// From the env file that the services were deployed with. Errors: those of `allows`.
    pub fn new(pilot: &'a Pilot, runtime: &'a dyn Runtime, env: &EnvFile) -> Result<Self> {
        let checks = Self::allows(pilot, env)?;
        let env = env.map();
        let endpoints = endpoints(pilot, &EnvFile::of(&env))?;
        let definition = pilot.definition.clone();
        Ok(Self { pilot, runtime, checks, endpoints, env, definition })
    }

    /// Can the stack be checked with these settings? No engine is asked. Returns the checks: those of the manifest, or those
    /// of a stack without any. The error names all that the manifest needs and that is missing.
    pub fn allows(pilot: &Pilot, env: &EnvFile) -> Result<Vec<Check>> {
        let (manifest, env) = (&pilot.manifest, env.map());
        endpoints(pilot, &EnvFile::of(&env))?;
        let parts = pilot.definition.as_ref().map(Definition::parts);
        manifest.check_needs(|name| env.contains_key(name), parts.as_ref())?;
        let checks = match (manifest.checks.as_slice(), &pilot.definition) {
            ([], Some(definition)) => default_checks(definition),
            (own, _) => own.to_vec(),
        };
        let values = values(pilot, &env, "");
        for check in &checks {
            check.limit(&values).with_context(|| format!("the limit of the check {:?}", check.name))?;
        }
        Ok(checks)
    }

    /// The services that can be reached; with a name, that one alone.
    pub fn reachable<'s>(&'s self, only: Option<&'s str>) -> impl Iterator<Item = &'s str> {
        let all = self.endpoints.keys().map(String::as_str);
        all.filter(move |service| only.is_none_or(|only| only == *service))
    }

    /// A client for a service, whose requests end with this deadline.
    pub fn client(&self, service: &str, deadline: Deadline) -> Result<Client> {
        Ok(self.runtime.reach(self.endpoint(service)?, deadline.left()))
    }

    /// The same question to each instance of a service that runs, at the same time. The error says of which service, and of
    /// which instance if there are several.
    pub fn each<T: Send>(
        &self,
        service: &str,
        limit: Duration,
        ask: impl Fn(&Client) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let all = self.runtime.reach_each(self.endpoint(service)?, false, limit)?;
        let count = all.len();
        let name = |client: &Client| match count {
            1 => service.to_owned(),
            _ => format!("{service} at {}", client.place()),
        };
        let asked =
            side_by_side(count.min(AT_A_TIME), all, |client| ask(&client).with_context(|| name(&client)));
        asked.into_iter().collect()
    }

    fn endpoint(&self, service: &str) -> Result<&Endpoint> {
        self.endpoints.get(service).with_context(|| format!("{service} publishes no port"))
    }

    /// Every variable with its value.
    pub fn values<'v>(&'v self, session: &'v str) -> Vec<(&'v str, &'v str)> {
        values(self.pilot, &self.env, session)
    }

    /// A text with its variables replaced.
    pub fn filled(&self, text: &str) -> Result<String> {
        filled(text, &self.values(""))
    }

    /// A name that no other session has.
    pub fn session() -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (now, count) = (crate::base::deadline::now_ms(), COUNT.fetch_add(1, Ordering::Relaxed));
        format!("check-{}-{now:x}-{count}", std::process::id())
    }

    /// Where a published port of a container is reached: one address for each instance that runs.
    pub fn published(&self, service: &str, port: u16) -> Result<Vec<SocketAddr>> {
        self.runtime.reached(self.published_at(service, port)?)
    }

    /// At which address of the engine's machine it is published.
    fn published_at(&self, service: &str, port: u16) -> Result<SocketAddr> {
        let every = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        if let Some(known) = self.definition.as_ref().and_then(|known| known.services.get(service)) {
            let found = known.ports.iter().find(|known| known.target == port && known.protocol == "tcp");
            let found = found.with_context(|| format!("{service} does not publish its port {port}"))?;
            let ip = found.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
            let ip = ip.unwrap_or(every);
            let number = found.published.with_context(|| {
                format!("the engine chooses the port at which {service} publishes {port}; give it a number")
            })?;
            return Ok(SocketAddr::new(ip, number));
        }
        let endpoint = self.endpoints.get(service).with_context(|| format!("{service} publishes no port"))?;
        Ok(SocketAddr::new(every, endpoint.port))
    }

    /// The address of each service, as programs get it: `GATEWAY_URL`. Of a service with several instances it is one.
    pub fn urls(&self) -> Result<Vec<(String, String)>> {
        let url = |(name, endpoint): (&String, &Endpoint)| {
            let name: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            Ok((format!("{}_URL", name.to_uppercase()), self.runtime.reach(endpoint, REQUEST).url()?))
        };
        self.endpoints.iter().map(url).collect()
    }
}

fn values<'v>(
    pilot: &'v Pilot,
    env: &'v BTreeMap<String, String>,
    session: &'v str,
) -> Vec<(&'v str, &'v str)> {
    let own = [("PROJECT", pilot.project.as_str()), ("SESSION", session)];
    let env = env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    own.into_iter().chain(env).collect()
}
