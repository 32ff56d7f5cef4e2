//! What Compose says that a stack is: its services, volumes and networks. Values only. A release keeps them
//! as `model.json`, so that looking and planning need no compose file. An engine makes them
//! (`Runtime::resolve`); the store of releases reads and writes them.

use crate::stack::manifest::Parts;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Each new field raises it, so that a model that lacks the field is not taken for the whole truth.
const FORMAT: u32 = 2;

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
    /// The networks that it is in, by their keys in the compose file. Releases of older versions do not say.
    #[serde(default)]
    pub networks: BTreeSet<String>,
    /// The services that it depends on.
    pub depends_on: BTreeSet<String>,
    /// When the engine starts it again: `always`, `unless-stopped`, `on-failure:3`; none if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
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

impl Service {
    /// The volumes that it mounts, by their keys.
    fn volumes(&self) -> BTreeSet<&String> {
        let mut found = BTreeSet::new();
        for mount in &self.mounts {
            if let Source::Volume(key) = &mount.source {
                found.insert(key);
            }
        }
        found
    }
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

/// The environment of each service, as Compose resolved it. It has secrets.
pub type Environment = BTreeMap<String, BTreeMap<String, String>>;

/// What Compose made of the files of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What the stack is.
    pub definition: Definition,
    /// The environment of its services; none if the engine does not know it.
    pub environment: Option<Environment>,
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

    /// Does it say everything that this version would find out?
    pub fn is_current(&self) -> bool {
        self.version == FORMAT
    }

    /// The services that always start.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().filter(|(_, service)| service.profiles.is_empty()).map(|(name, _)| name.as_str())
    }

    /// The stored data of the stack: what it is called, and its volume. Data is called as its service if no other
    /// service uses it and the service uses no other; else as its volume in the compose file.
    pub fn data(&self) -> BTreeMap<String, &Resource> {
        self.named_data().map(|(name, key)| (name, &self.volumes[key])).collect()
    }

    /// The key of the volume that has this data. A backup of another release may call it otherwise: by a service that
    /// mounts no other volume here, or by the volume.
    pub fn volume_of(&self, data: &str) -> Option<&String> {
        let own = self.named_data().find(|(name, _)| name == data).map(|(_, key)| key);
        let of_service = || self.only_volume(data);
        let by_name = || self.volumes.iter().find(|(key, volume)| *key == data || volume.name == data);
        own.or_else(of_service).or_else(|| by_name().map(|(key, _)| key))
    }

    /// What a manifest may name.
    pub fn parts(&self) -> Parts {
        let data = self.named_data().flat_map(|(name, key)| [name, key.clone()]).collect();
        Parts { services: self.services.keys().cloned().collect(), data }
    }

    /// The services that mount the volume with this name, those that always start first.
    pub fn users(&self, volume: &str) -> impl Iterator<Item = &str> {
        let mounts = move |service: &Service| {
            service
                .volumes()
                .into_iter()
                .any(|key| self.volumes.get(key).is_some_and(|known| known.name == volume))
        };
        let mut all: Vec<_> = self.services.iter().filter(|(_, service)| mounts(service)).collect();
        all.sort_by_key(|(_, service)| !service.profiles.is_empty());
        all.into_iter().map(|(name, _)| name.as_str())
    }

    /// The key of the volume of a service that mounts no other.
    fn only_volume(&self, service: &str) -> Option<&String> {
        match self.services.get(service)?.volumes().into_iter().collect::<Vec<_>>()[..] {
            [key] => self.volumes.get_key_value(key).map(|(key, _)| key),
            _ => None,
        }
    }

    /// The names of the stored data, each with the key of its volume.
    fn named_data(&self) -> impl Iterator<Item = (String, &String)> {
        let used = move |key: &str| -> Vec<&String> {
            let mounts = |service: &Service| service.volumes().iter().any(|volume| *volume == key);
            self.services.iter().filter(|(_, service)| mounts(service)).map(|(name, _)| name).collect()
        };
        let name = move |key: &String| match used(key)[..] {
            [one] if self.services[one].volumes().len() == 1 => one.clone(),
            _ if self.services.contains_key(key) => format!("{key}-volume"),
            _ => key.clone(),
        };
        self.volumes.keys().map(move |key| (name(key), key))
    }

    /// The data that must exist while the stack runs: what a service that always starts mounts, and what is not external.
    pub fn own_data(&self) -> BTreeSet<String> {
        self.named_data().filter(|(_, key)| self.must_have(key)).map(|(name, _)| name).collect()
    }

    /// Must this data exist, whatever a backup calls it?
    pub fn needs(&self, data: &str) -> bool {
        self.volume_of(data).is_some_and(|key| self.must_have(key))
    }

    fn must_have(&self, key: &String) -> bool {
        let mut always = self.services.values().filter(|service| service.profiles.is_empty());
        always.any(|service| service.volumes().contains(key))
            && self.volumes.get(key).is_some_and(|volume| !volume.external)
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
