//! What `pilot.toml` says, as it is written. Which manifest a command uses is decided in `pilot`. Called by
//! `pilot` and by everything that reads a part of the manifest.

use crate::base::{files, secrets};
use crate::stack::call::{Call, Line};
use anyhow::{Context, Result, bail, ensure};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// `pilot.toml` as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(rename = "version")]
    _version: IgnoredAny,
    /// Name of the env file beside the manifest. None for `.env`, if there is one.
    pub env_file: Option<String>,
    /// Name of the file that a new env file is made from.
    pub env_example: Option<String>,
    /// Name of the compose file. None for the one that Compose finds.
    pub compose_file: Option<String>,
    /// The demo scenario.
    pub seed_file: Option<String>,
    /// What the images are built from that Compose does not build.
    pub build: Option<Build>,
    /// More files that are part of each release. Those that Compose mentions are found without this.
    #[serde(default)]
    pub extra_files: Vec<String>,
    /// What a project with another name than the default one needs.
    #[serde(default)]
    pub projects: Projects,
    /// How the public is let in and shut out.
    pub gate: Option<GateRule>,
    /// How the seed file is loaded.
    pub seed: Option<Seed>,
    /// Answers of the services that are kept as evidence.
    #[serde(default)]
    pub evidence: Vec<Document>,
    /// The services of the stack, for the process engine, which cannot ask Compose.
    #[serde(default)]
    pub services: Vec<Service>,
    /// More services that `observe` starts: prometheus first, then grafana.
    #[serde(default)]
    pub observability: Vec<Service>,
    /// Which variables are secret.
    #[serde(default)]
    pub secrets: secrets::Rules,
    /// Safety flags of the running services.
    #[serde(default)]
    pub flags: Flags,
    /// How long things may take.
    #[serde(default)]
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

/// The `[projects]` part. A project of another name than the default one may run beside it and must share nothing with it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projects {
    /// Variables that its env file gets, with `${PROJECT}`. The names of images and networks of the stack depend on them.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// Names that no project may have, because it would share an image or a network with the default one.
    #[serde(default)]
    pub refused: Vec<String>,
}

/// The `[gate]` part: the service that lets the public in, and the requests that close it, open it, and prove both.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateRule {
    /// The service.
    pub service: String,
    /// Closes the gate, with `${REASON}`.
    pub close: Call,
    /// Opens it.
    pub open: Call,
    /// Fails unless the gate is closed.
    pub refused: Call,
    /// Fails unless the gate is open.
    pub served: Call,
    /// Says whether it is closed, and why.
    pub position: Position,
    /// Closes the gate of a service that does not run.
    pub offline: Offline,
    /// The reasons that the service gives if it closed the gate by itself.
    #[serde(default)]
    pub own_reasons: Vec<String>,
}

/// A request whose answer says whether the gate is closed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The request.
    pub request: Line,
    /// The values of a closed gate, by JSON pointer (RFC 6901).
    pub closed: BTreeMap<String, Value>,
    /// The values of an open gate. The status must be 200 too.
    pub open: BTreeMap<String, Value>,
    /// Where the reason is that was given when it was closed.
    pub reason: String,
}

/// A program in the image of the service that closes the gate in its stored data.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offline {
    /// The arguments, with `${REASON}`.
    pub run: Vec<String>,
    /// What it prints after it has closed the gate.
    pub prints: String,
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
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flags {
    /// Flags that must be false.
    pub off: Vec<String>,
    /// Flags that must be true.
    pub on: Vec<String>,
}

/// The `[limits]` part. What is left out has the value of `default`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
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
    pub keep_backups: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            budget: seconds(300),
            probe: seconds(1),
            ready: seconds(60),
            engine: seconds(10),
            deploy: seconds(120),
            evidence: seconds(5),
            keep_releases: 5,
            keep_backups: 5,
        }
    }
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

/// The manifest in the folder of a stack, and in that of a release.
pub const MANIFEST_FILE: &str = "pilot.toml";

/// What manifests of version 1 do not say, because this program knew it.
const NOT_IN_VERSION_1: &str = include_str!("not_in_version_1.toml");

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

impl Manifest {
    /// Reads the manifest in a folder, if there is one. An error has line and column.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_FILE);
        if path.exists() { Self::load(&path) } else { Ok(Self::none()) }
    }

    /// That of a stack without a manifest.
    pub fn none() -> Self {
        Self::parse("version = 2").unwrap_or_else(|error| unreachable!("{error:#}"))
    }

    /// How the public is let in and shut out.
    pub fn gate(&self) -> Result<&GateRule> {
        self.gate.as_ref().context("the manifest of the stack has no [gate]")
    }

    /// Reads a manifest. An error has line and column.
    fn load(path: &Path) -> Result<Self> {
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
        let gateway =
            manifest.gate.iter().map(|gate| &gate.service).filter(|_| !manifest.services.is_empty());
        let known = |name: &&String| manifest.services.iter().any(|service| service.name == **name);
        if let Some(gateway) = gateway.clone().find(|name| !known(name)) {
            bail!("the service of its gate is {gateway}, which is not one of its services");
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
        assert_eq!(format!("{:?}", old.seed), format!("{:?}", new.seed));
        assert_eq!(format!("{:?}", old.projects), format!("{:?}", new.projects));
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
