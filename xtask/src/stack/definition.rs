//! What Compose says that a stack is: its services, volumes and networks. Values only. A release keeps them
//! as `model.json`, so that looking and planning need no compose file. An engine makes them
//! (`Runtime::definition`); the store of releases reads and writes them.

use crate::stack::envfile::EnvFile;
use crate::stack::manifest;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

const FORMAT: u32 = 1;

/// A stack as Compose resolved it. The environment of the services is not in it: it has secrets, and the env
/// file of the release has the same values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    version: u32,
    /// By name, those of every profile.
    pub services: BTreeMap<String, Service>,
    /// By the key in the compose file.
    pub volumes: BTreeMap<String, Resource>,
    /// By the key in the compose file.
    pub networks: BTreeMap<String, Resource>,
    /// The configs that are files: their paths, as in `Service::files`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub configs: BTreeMap<String, String>,
    /// The secrets that are files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The reference of its image; none if Compose makes a name for the image that it builds.
    pub image: Option<String>,
    /// Can Compose build its image?
    pub has_build: bool,
    /// The folder that Compose builds it from: relative if it is in the stack's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The ports that it publishes.
    pub ports: Vec<Port>,
    /// What it mounts, except memory (tmpfs).
    pub mounts: Vec<Mount>,
    /// The services that it depends on.
    pub depends_on: BTreeSet<String>,
    /// Does the stack give it a health check? Its image may have one of its own.
    pub has_health_check: bool,
    /// Its profiles; none if it always starts.
    pub profiles: BTreeSet<String>,
    /// How many containers it has.
    pub containers: u32,
    /// The files in the stack's folder that it mounts (configs, secrets, binds of one file), relative to the
    /// folder.
    pub files: BTreeSet<String>,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The address of the host; none for all of them.
    pub host_ip: Option<String>,
    /// The port of the host; none if the engine chooses it, from a range or freely.
    pub published: Option<u16>,
    /// The port of the container.
    pub target: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// Something that a service mounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What it is.
    pub source: Source,
    /// The path in the container.
    pub target: String,
    /// May the service only read it?
    pub read_only: bool,
    /// How SELinux labels a bind mount: `z` (shared) or `Z` (private).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<String>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A volume, by its key in the compose file.
    Volume(String),
    /// A volume without a name.
    Anonymous,
    /// A path: relative if it is in the stack's folder, else absolute.
    Bind(String),
}

/// A volume or a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Its name in the engine.
    pub name: String,
    /// Did someone else make it? Then it is never removed.
    pub external: bool,
}

impl Definition {
    /// From its parts, in the current format.
    pub fn new(
        services: BTreeMap<String, Service>,
        volumes: BTreeMap<String, Resource>,
        networks: BTreeMap<String, Resource>,
    ) -> Self {
        let (configs, secrets) = Default::default();
        Self { version: FORMAT, services, volumes, networks, configs, secrets }
    }

    /// What the manifest says of a stack, for an engine that runs it without Compose.
    pub fn of_manifest(pilot: &Pilot, env: &EnvFile) -> Result<Self> {
        let own = || pilot.manifest.services.iter();
        let service = |service: &manifest::Service| {
            let port = pilot.port(&service.name, env)?;
            let port = Port {
                host_ip: Some(Ipv4Addr::LOCALHOST.to_string()),
                published: Some(port),
                target: port,
                protocol: "tcp".to_owned(),
            };
            let source = Source::Volume(service.volume.clone());
            let all = Service {
                image: Some(pilot.image_name(&service.name)),
                ports: vec![port],
                mounts: vec![Mount {
                    source,
                    target: format!("volumes/{}", service.name),
                    read_only: false,
                    selinux: None,
                }],
                containers: 1,
                ..Service::default()
            };
            Ok((service.name.clone(), all))
        };
        // Data is kept by service.
        let volume = |service: &manifest::Service| {
            (service.volume.clone(), Resource { name: service.name.clone(), external: false })
        };
        let services = own().map(service).collect::<Result<_>>()?;
        Ok(Self::new(services, own().map(volume).collect(), BTreeMap::new()))
    }

    /// Parses a `model.json`. Errors: a newer format, or a name that no volume or network can have. The names
    /// are given to programs, and a release can come from another host.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(text).context("it is not JSON")?;
        let version = value["version"].as_u64().context("it has no format version")?;
        ensure!(version <= FORMAT.into(), "it has the newer format {version}; use the xtask that wrote it");
        let definition: Self = serde_json::from_value(value).context("it does not describe a stack")?;
        for resource in definition.volumes.values().chain(definition.networks.values()) {
            let name = &resource.name;
            let fits = name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
            ensure!(fits, "{name:?} is not the name of a volume or network");
        }
        Ok(definition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_and_a_name_that_docker_would_read_as_a_path_or_an_option_are_refused() {
        let volume = |name: &str| Resource { name: name.into(), external: false };
        let named = |name: &str| {
            Definition::new(BTreeMap::new(), [("data".into(), volume(name))].into(), BTreeMap::new())
        };
        let read = |definition: &Definition| Definition::parse(&serde_json::to_vec(definition).unwrap());
        assert_eq!(read(&named("p_data.1-x")).unwrap(), named("p_data.1-x"));
        for name in ["", "/etc", "--force", "a b", "a/b", "a:b"] {
            assert!(read(&named(name)).unwrap_err().to_string().contains("is not the name"), "{name}");
        }
        let newer = Definition { version: FORMAT + 1, ..named("p_data") };
        assert!(read(&newer).unwrap_err().to_string().contains("newer format"));
    }
}
