//! The pilot that a command is about: where the repository is, what `pilot.toml` says, which project,
//! where its state and its env file are. Read-only; every later stage gets a `Pilot`.

use crate::envfile::EnvFile;
use crate::failure::{Exit, fail};
use crate::files;
use crate::secrets;
use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Project of the pilot that users run; others are drills, tests and private copies.
pub const DEFAULT_PROJECT: &str = "pilot-deploy";

/// What env files are called in the state folder.
const ENV_NAME: &str = ".env.poc";

/// Bytes of an env file that are searched for secrets.
const LONGEST_ENV: u64 = 256 * 1024;

/// `pilot.toml` as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// Name of the env file beside the manifest.
    pub env_file: String,
    /// What a new env file is made from.
    pub env_example: String,
    /// Name of the compose file.
    pub compose_file: String,
    /// The demo scenario.
    pub seed_file: String,
    /// Where images come from.
    pub build: Build,
    /// Further files that the compose file mounts; they are part of each release.
    #[serde(default)]
    pub extra_files: Vec<String>,
    /// The first is the gateway.
    pub services: Vec<Service>,
    /// Services beside the pilot's own: prometheus first, then grafana.
    #[serde(default)]
    pub observability: Vec<Service>,
    /// What is never shown.
    pub secrets: secrets::Rules,
    /// What must hold in running services.
    pub flags: Flags,
    /// How long things may take.
    pub limits: Limits,
    /// What the host must have.
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
    /// Cargo package with the binary of the same name.
    pub package: String,
    /// Dockerfile, from the pack's folder.
    pub dockerfile: String,
}

/// One service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// As in the compose file.
    pub name: String,
    /// Variable of the env file with its published port.
    pub port: String,
    /// Volume with its state.
    pub volume: String,
}

/// The `[flags]` part.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flags {
    /// Must be false.
    pub off: Vec<String>,
    /// Must be true.
    pub on: Vec<String>,
}

/// The `[limits]` part.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// A whole rollback.
    #[serde(deserialize_with = "duration")]
    pub budget: Duration,
    /// One HTTP request of an observation.
    #[serde(deserialize_with = "duration")]
    pub probe: Duration,
    /// From start to healthy.
    #[serde(deserialize_with = "duration")]
    pub ready: Duration,
    /// One question to the engine.
    #[serde(deserialize_with = "duration")]
    pub engine: Duration,
    /// Replacing the services.
    #[serde(deserialize_with = "duration")]
    pub deploy: Duration,
    /// Evidence and backup, each.
    #[serde(deserialize_with = "duration")]
    pub evidence: Duration,
    /// Known-good releases that retention leaves.
    pub keep_releases: usize,
    /// Backups that retention leaves.
    #[serde(default = "keep_backups")]
    pub keep_backups: usize,
}

fn keep_backups() -> usize {
    5
}

/// The `[host]` part. A manifest without it gets these.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Least space where the state and the engine's files are, in MiB.
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
    /// What the level is called.
    pub name: String,
    /// Who, and how to reach them.
    pub contact: String,
}

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

impl Manifest {
    /// Reads `pilot.toml`; the error has line and column.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest: Self =
            toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
        if manifest.version != 1 {
            anyhow::bail!("{} has version {}, this xtask knows 1", path.display(), manifest.version);
        }
        if manifest.services.is_empty() {
            anyhow::bail!("{} names no services", path.display());
        }
        Ok(manifest)
    }
}

/// The pilot and its places.
#[derive(Clone, Debug)]
pub struct Pilot {
    /// Root of the repository.
    pub root: PathBuf,
    /// `pilot-deploy/`.
    pub pack: PathBuf,
    /// Compose project.
    pub project: String,
    /// `.pilot/`, or where `PILOT_STATE_DIR` says.
    pub state: PathBuf,
    /// The env file in use.
    pub env_path: PathBuf,
    /// `pilot.toml`.
    pub manifest: Manifest,
}

impl Pilot {
    /// Finds the repository from the current folder upwards and reads its manifest.
    pub fn find(project: &str) -> Result<Self> {
        let here = std::env::current_dir().context("cannot tell the current folder")?;
        let root = here.ancestors().find(|dir| dir.join("pilot-deploy/pilot.toml").is_file());
        let Some(root) = root else {
            let what = format!("no pilot-deploy/pilot.toml in {} or above it", here.display());
            return Err(fail(Exit::Usage, what, "change into a clone of the repository"));
        };
        let state = match std::env::var_os("PILOT_STATE_DIR") {
            Some(dir) if !dir.is_empty() => here.join(dir),
            _ if project == DEFAULT_PROJECT => root.join(".pilot"),
            _ => root.join(".pilot/projects").join(project),
        };
        Self::at(root, project, state)
    }

    /// The same with everything given; drills use it for a pilot of their own.
    pub fn at(root: &Path, project: &str, state: PathBuf) -> Result<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if !project.starts_with(|c: char| c.is_ascii_lowercase()) || !project.chars().all(fits) {
            let what = format!("--project {project}: lowercase letters, digits, - and _, a letter first");
            return Err(fail(Exit::Usage, what, "cargo xtask --help"));
        }
        let pack = root.join("pilot-deploy");
        let manifest = manifest(&pack, &state)?;
        let env_path =
            if project == DEFAULT_PROJECT { pack.join(&manifest.env_file) } else { state.join(ENV_NAME) };
        let words = manifest.services.iter().chain(&manifest.observability).map(|s| s.name.clone());
        secrets::follow(&manifest.secrets, words.chain([project.to_owned()]));
        let pilot =
            Self { root: root.to_owned(), pack, project: project.to_owned(), state, env_path, manifest };
        pilot.learn_secrets();
        Ok(pilot)
    }

    /// Whatever any program repeats of the env files that there are is masked from here on. One that cannot
    /// be read tells nothing now, and why when it is needed.
    fn learn_secrets(&self) {
        let kept = [("releases", ""), ("backups", ""), ("rollbacks", "backup")].into_iter().flat_map(
            |(all, within)| {
                let folder = self.state.join(all);
                let names = files::names(&folder).unwrap_or_default();
                names.into_iter().map(move |name| folder.join(name).join(within).join(ENV_NAME))
            },
        );
        for path in kept.chain([self.env_path.clone(), self.pack.join(&self.manifest.env_file)]) {
            if path.is_file()
                && let Ok(file) = std::fs::File::open(&path)
            {
                let mut bytes = Vec::new();
                file.take(LONGEST_ENV).read_to_end(&mut bytes).ok();
                secrets::learn_env_file(&String::from_utf8_lossy(&bytes));
            }
        }
    }

    /// Name of the gateway.
    pub fn gateway(&self) -> &str {
        &self.manifest.services[0].name
    }

    /// Names of the services.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.manifest.services.iter().map(|s| s.name.as_str())
    }

    /// The pilot's services and those beside them.
    pub fn every_service(&self) -> impl Iterator<Item = &Service> {
        self.manifest.services.iter().chain(&self.manifest.observability)
    }

    /// What images are called: `scenario-gateway` for the pilot, `PROJECT-gateway` for others.
    pub fn image_name(&self, service: &str) -> String {
        let prefix =
            if self.project == DEFAULT_PROJECT { &self.manifest.build.package } else { &self.project };
        format!("{prefix}-{service}")
    }

    /// The env file, parsed; the error says where it is wrong.
    pub fn env(&self) -> Result<EnvFile> {
        let next = "cargo xtask rollback, which restores it from the last known-good release";
        let Some(bytes) = files::read_if_there(&self.env_path)? else {
            let what = format!("{} is missing", self.env_path.display());
            return Err(fail(Exit::Usage, what, format!("cargo xtask up, which makes it; or {next}")));
        };
        EnvFile::parse(&self.env_path.display().to_string(), &bytes)
            .map_err(|e| fail(Exit::Usage, e.to_string(), format!("mend it; or {next}")))
    }

    /// Published port of a service according to `env`.
    pub fn port(&self, service: &str, env: &EnvFile) -> Result<u16> {
        let variable = self.every_service().find(|s| s.name == service).map(|s| s.port.as_str());
        let variable = variable.with_context(|| format!("pilot.toml has no service {service}"))?;
        let value = env.get(variable).unwrap_or_default();
        value.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            let what = format!("{variable}={value} is not a port (1 to 65535)");
            fail(
                Exit::Usage,
                what,
                format!("mend it in {}; or cargo xtask rollback", self.env_path.display()),
            )
        })
    }
}

/// The tree's manifest; where it is broken, that of the running release, so that a rollback works
/// even then. The user is told.
fn manifest(pack: &Path, state: &Path) -> Result<Manifest> {
    let broken = match Manifest::load(&pack.join("pilot.toml")) {
        Ok(manifest) => return Ok(manifest),
        Err(error) => error,
    };
    let current = std::fs::read_to_string(state.join("current")).ok();
    let id = current.as_deref().map(str::trim).filter(|id| files::stays_within(id) && !id.contains('/'));
    if let Some(path) = id.map(|id| state.join("releases").join(id).join("pilot.toml"))
        && let Ok(manifest) = Manifest::load(&path)
    {
        eprintln!("warning: {broken:#}");
        eprintln!("warning: going on with {}", path.display());
        return Ok(manifest);
    }
    Err(fail(Exit::Usage, format!("{broken:#}"), "mend the file, or git checkout pilot-deploy/pilot.toml"))
}
