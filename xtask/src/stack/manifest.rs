//! What `pilot.toml` says, as it is written. Which manifest a command uses is decided in `pilot`. Called by
//! `pilot` and by everything that reads a part of the manifest.

use crate::base::{files, secrets};
use crate::stack::call::Line;
use crate::stack::gate_rule::GateRule;
use anyhow::{Context, Result, bail, ensure};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use std::path::Path;
use std::time::Duration;

/// `pilot.toml` as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(rename = "version")]
    _version: IgnoredAny,
    /// Name of the env file beside the manifest.
    pub env_file: String,
    /// Name of the file that a new env file is made from.
    pub env_example: String,
    /// Name of the compose file.
    pub compose_file: String,
    /// The demo scenario.
    pub seed_file: String,
    /// What the images are built from.
    pub build: Build,
    /// More files that the compose file mounts. They are part of each release.
    #[serde(default)]
    pub extra_files: Vec<String>,
    /// How the public is let in and shut out. If nothing is said, by stopping what is published.
    #[serde(default)]
    pub gate: GateRule,
    /// How the seed file is loaded.
    pub seed: Seed,
    /// Answers of the services that are kept as evidence.
    #[serde(default)]
    pub evidence: Vec<Document>,
    /// The services of the stack.
    pub services: Vec<Service>,
    /// More services that `observe` starts: prometheus first, then grafana.
    #[serde(default)]
    pub observability: Vec<Service>,
    /// Which variables are secret.
    pub secrets: secrets::Rules,
    /// Safety flags of the running services.
    pub flags: Flags,
    /// How long things may take.
    pub limits: Limits,
    /// What the host must have free.
    #[serde(default)]
    pub host: Host,
    /// Who is called, by level.
    #[serde(default)]
    pub escalation: Vec<Contact>,
}

/// The `[build]` part.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Name of the cargo package, and of its binary.
    pub package: String,
    /// Older manifests name a Dockerfile, which is no longer used.
    #[serde(default, rename = "dockerfile")]
    _dockerfile: IgnoredAny,
}

/// The `[seed]` part.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// Sends the seed file to the gateway.
    pub request: Line,
}

/// One `[[evidence]]`: an answer that is kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The request.
    pub request: Line,
    /// The name of the file. If every service is asked, it begins with the name of the service and a dot.
    pub file: String,
    /// The service that is asked; none for every service.
    pub service: Option<String>,
}

/// One service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// As in the compose file.
    pub name: String,
    /// The variable of the env file that has its published port.
    pub port: String,
    /// The volume that has its stored data.
    pub volume: String,
}

/// The `[flags]` part.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flags {
    /// Flags that must be false.
    pub off: Vec<String>,
    /// Flags that must be true.
    pub on: Vec<String>,
}

/// The `[limits]` part.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Limit of a whole rollback.
    #[serde(deserialize_with = "duration")]
    pub budget: Duration,
    /// Limit of one HTTP request of an observation.
    #[serde(deserialize_with = "duration")]
    pub probe: Duration,
    /// Limit from the start of the services until all are healthy.
    #[serde(deserialize_with = "duration")]
    pub ready: Duration,
    /// Limit of one query to the engine.
    #[serde(deserialize_with = "duration")]
    pub engine: Duration,
    /// Limit for replacing the services.
    #[serde(deserialize_with = "duration")]
    pub deploy: Duration,
    /// Limit for the evidence, and for the backup.
    #[serde(deserialize_with = "duration")]
    pub evidence: Duration,
    /// How many known-good releases retention keeps.
    pub keep_releases: usize,
    /// How many backups retention keeps.
    #[serde(default = "keep_backups")]
    pub keep_backups: usize,
}

fn keep_backups() -> usize {
    5
}

/// The `[host]` part. A manifest without it gets the values of `default`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Least free space, in MiB, where the state folder and the engine's files are.
    pub disk_free_mib: u64,
    /// Least free inodes there.
    pub inodes_free: u64,
    /// Least available memory, in MiB.
    pub memory_free_mib: u64,
    /// Largest difference between the engine's clock and ours.
    #[serde(deserialize_with = "duration")]
    pub clock_skew: Duration,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            disk_free_mib: 100,
            inodes_free: 1000,
            memory_free_mib: 64,
            clock_skew: Duration::from_secs(2),
        }
    }
}

/// One `[[escalation]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// 1 to 3.
    pub level: u8,
    /// Name of the level.
    pub name: String,
    /// The person, and how to reach them.
    pub contact: String,
}

/// What manifests of version 1 do not say, because this program knew it.
const NOT_IN_VERSION_1: &str = include_str!("not_in_version_1.toml");

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

impl Manifest {
    /// Reads `pilot.toml`. An error has line and column.
    pub fn load(path: &Path) -> Result<Self> {
        let text = files::read_text(path)?;
        Self::parse(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// The manifest that this program was built with. It is used if no other can be read, because the public
    /// must be shut out even then.
    pub fn built_in() -> Result<Self> {
        Self::parse(include_str!("../../../pilot-deploy/pilot.toml"))
    }

    fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version } = toml::from_str(text)?;
        ensure!((1..=2).contains(&version), "its version is {version}, but this xtask only knows 1 and 2");
        let added = if version == 1 { NOT_IN_VERSION_1 } else { "" };
        let manifest: Self = toml::from_str(&format!("{text}\n{added}"))?;
        ensure!(!manifest.services.is_empty(), "it names no services");
        let is_known = |name: &str| manifest.services.iter().any(|service| service.name == name);
        if let Some(name) = manifest.gate.named().into_iter().find(|name| !is_known(name)) {
            bail!("the service of its gate is {name}, which is not one of its services");
        }
        // The names become files beside the evidence, and a manifest may come from another host.
        let plain = |name: &str| files::stays_within(name) && !name.contains('/');
        if let Some(document) = manifest.evidence.iter().find(|document| !plain(&document.file)) {
            bail!("the file {:?} of its evidence is not the name of a file", document.file);
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it was at 21325fb.
    const VERSION_1: &str = include_str!("captured/manifest_1.toml");

    #[test]
    fn a_manifest_of_version_1_has_the_gate_of_the_pilot() {
        let (old, new) = (Manifest::parse(VERSION_1).unwrap(), Manifest::built_in().unwrap());
        assert_eq!(format!("{:?}", old.gate), format!("{:?}", new.gate));
        assert_eq!(format!("{:?}", old.evidence), format!("{:?}", new.evidence));
        assert_eq!(old.seed.request, new.seed.request);
    }

    #[test]
    fn a_mistake_is_told_with_its_place_whatever_the_version() {
        let built_in = include_str!("../../../pilot-deploy/pilot.toml");
        for text in [VERSION_1, built_in] {
            let line = text.lines().position(|line| line.starts_with("probe =")).unwrap() + 1;
            let error = Manifest::parse(&text.replace("probe = \"1s\"", "probe = \"1 sheep\"")).unwrap_err();
            assert!(error.to_string().contains(&format!("line {line}, column ")), "{error}");
        }
        for (wrong, why) in [
            (built_in.replace("version = 2", "version = 3"), "its version is 3"),
            (
                built_in.replace("service = \"gateway\"\nclose", "service = \"door\"\nclose"),
                "not one of its services",
            ),
            (built_in.replace("\"POST /admin/seed\"", "\"SEND /admin/seed\""), "the method must be"),
            (built_in.replace("\"sessions.json\"", "\"../sessions.json\""), "is not the name of a file"),
        ] {
            assert!(wrong != built_in);
            let error = Manifest::parse(&wrong).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
