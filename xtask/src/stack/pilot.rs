//! The pilot that a command works with: where the repository, the state folder and the env file are, which
//! project it is, and which manifest is used. Read-only; every later stage gets a `Pilot`.

use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::secrets;
use crate::stack::envfile::EnvFile;
use crate::stack::hiding;
use crate::stack::ledger::{Ledger, Record};
use crate::stack::manifest::{Manifest, Service};
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The project of the pilot that users run. Other projects are drills, tests and private copies.
pub const DEFAULT_PROJECT: &str = "pilot-deploy";

/// The names of drill projects begin with this.
pub const REHEARSALS: &str = "pilot-drill-";

/// Longest name of a project. It becomes a part of DNS names, in which a label has at most 63 characters.
const LONGEST_NAME: usize = 63;

/// Bytes of an env file that are searched for secrets.
const LONGEST_ENV: u64 = 256 * 1024;

/// Which manifest a command uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The manifest of the source code, which is built and deployed.
    Tree,
    /// The manifest of the release that runs. If none is recorded, that of the source code.
    Running,
    /// The same. If neither can be read, the manifest that this program was built with.
    Any,
}

fn image_name(project: &str, manifest: &Manifest, service: &str) -> String {
    let prefix = if project == DEFAULT_PROJECT { &manifest.build.package } else { project };
    format!("{prefix}-{service}")
}

/// Is the name of a project valid for everything that gets a name from it: images, volumes, networks,
/// folders? The strictest is the name of an image: words with a single `-` or `_` between them.
fn check_name(project: &str) -> Result<()> {
    let word =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fits = project.starts_with(|c: char| c.is_ascii_lowercase()) && project.split(['-', '_']).all(word);
    if fits && project.len() <= LONGEST_NAME {
        return Ok(());
    }
    let shown: String = project.chars().take(LONGEST_NAME + 1).collect();
    let what = format!(
        "--project {shown}: use at most {LONGEST_NAME} lowercase letters and digits, with a letter first, \
         and a single - or _ between words"
    );
    Err(fail(Exit::Usage, what, Next::xtask("--help")))
}

/// Errors if anything of the project would have the same name as something of the pilot that users run.
fn check_apart(project: &str, manifest: &Manifest) -> Result<()> {
    let names = |project: &str| {
        let all = manifest.services.iter().chain(&manifest.observability);
        let images = all.clone().map(|s| format!("image {}", image_name(project, manifest, &s.name)));
        let volumes = all.map(|s| format!("volume {project}_{}", s.volume));
        let network = [format!("network {}", network_name(project))];
        images.chain(volumes).chain(network).collect::<Vec<_>>()
    };
    let taken = names(DEFAULT_PROJECT);
    match names(project).into_iter().find(|name| project != DEFAULT_PROJECT && taken.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let what = format!("--project {project}: its {name} would be the one of {DEFAULT_PROJECT}");
            Err(fail(Exit::Usage, what, "choose another name"))
        }
    }
}

/// Name of the project's network. The first one is the default in the compose file.
pub fn network_name(project: &str) -> String {
    if project == DEFAULT_PROJECT { "pilot-network".into() } else { format!("{project}-network") }
}

/// The pilot, with its paths and its manifest.
#[derive(Clone, Debug)]
pub struct Pilot {
    /// Root of the repository.
    pub root: PathBuf,
    /// `pilot-deploy/`.
    pub pack: PathBuf,
    /// Compose project.
    pub project: String,
    /// The state folder: `.pilot/`, or the folder in `PILOT_STATE_DIR`.
    pub state: StateDir,
    /// The env file in use.
    pub env_path: PathBuf,
    /// `pilot.toml`.
    pub manifest: Manifest,
}

impl Pilot {
    /// Searches for the repository in the current folder and above it, and reads the manifest.
    pub fn find(project: &str, by: By) -> Result<Self> {
        let here = std::env::current_dir().context("cannot find out the current folder")?;
        let root = here.ancestors().find(|dir| dir.join("pilot-deploy/pilot.toml").is_file());
        let Some(root) = root else {
            let what = format!("there is no pilot-deploy/pilot.toml in {} or above it", here.display());
            return Err(fail(
                Exit::Usage,
                what,
                "change to a clone of the repository (cd), and run the command again",
            ));
        };
        check_name(project)?;
        let own = StateDir::new(root.join(".pilot"));
        let state = match std::env::var_os("PILOT_STATE_DIR") {
            Some(dir) if !dir.is_empty() => StateDir::new(here.join(dir)),
            _ if project == DEFAULT_PROJECT => own,
            _ if project.starts_with(REHEARSALS) => StateDir::new(own.drills().join(project)),
            _ => StateDir::new(own.projects().join(project)),
        };
        // The next drill removes everything of a project whose name begins like this.
        if project.starts_with(REHEARSALS) && !state.drill().path().is_dir() {
            let what = format!(
                "--project {project}: names that begin with {REHEARSALS} belong to drills, and there is no such drill"
            );
            return Err(fail(Exit::Usage, what, "choose another name"));
        }
        Self::at(root, project, state, by)
    }

    /// The same with every value given. Drills use it for their separate pilot.
    pub fn at(root: &Path, project: &str, state: StateDir, by: By) -> Result<Self> {
        check_name(project)?;
        if state.path().exists() && !state.path().is_dir() {
            let what = format!("the state folder {} is not a folder", state.path().display());
            return Err(fail(
                Exit::Usage,
                what,
                "move that file away, or set PILOT_STATE_DIR to another folder",
            ));
        }
        let pack = root.join("pilot-deploy");
        let manifest = manifest(&pack, &state, by)?;
        check_apart(project, &manifest)?;
        let env_path =
            if project == DEFAULT_PROJECT { pack.join(&manifest.env_file) } else { state.env_file() };
        let words = manifest.services.iter().chain(&manifest.observability).map(|s| s.name.clone());
        secrets::follow(&manifest.secrets, words.chain([project.to_owned()]));
        let pilot =
            Self { root: root.to_owned(), pack, project: project.to_owned(), state, env_path, manifest };
        pilot.learn_secrets();
        Ok(pilot)
    }

    /// Registers the secrets of every env file, so that they are masked from now on in the output of any
    /// program. A file that cannot be read is passed over here; the code that needs it reports the error.
    fn learn_secrets(&self) {
        let kept = self.state.every_env_file().into_iter();
        for path in kept.chain([self.env_path.clone(), self.pack.join(&self.manifest.env_file)]) {
            if let Ok(file) = files::open_regular(&path) {
                let mut bytes = Vec::new();
                file.take(LONGEST_ENV).read_to_end(&mut bytes).ok();
                hiding::learn(&String::from_utf8_lossy(&bytes));
            }
        }
    }

    /// Name of the gateway: the service that lets the public in. Where the gate stops services, it is the
    /// first one of the manifest.
    pub fn gateway(&self) -> &str {
        let first = || self.manifest.services.first().map_or("", |service| service.name.as_str());
        self.manifest.gate.service().unwrap_or_else(first)
    }

    /// Names of the services.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.manifest.services.iter().map(|s| s.name.as_str())
    }

    /// The pilot's services, and prometheus and grafana.
    pub fn every_service(&self) -> impl Iterator<Item = &Service> {
        self.manifest.services.iter().chain(&self.manifest.observability)
    }

    /// Name of a service's image: `scenario-gateway` for the pilot, `PROJECT-gateway` for another project.
    pub fn image_name(&self, service: &str) -> String {
        image_name(&self.project, &self.manifest, service)
    }

    /// Reads and parses the env file. The error says where it is wrong.
    pub fn env(&self) -> Result<EnvFile> {
        let next = Next::xtask("rollback").so("to restore it from the last known-good release");
        let Some(bytes) = files::read_if_there(&self.env_path)? else {
            let what = format!("{} is missing", self.env_path.display());
            return Err(fail(Exit::Usage, what, next));
        };
        EnvFile::parse(&self.env_path.display().to_string(), &bytes)
            .map_err(|e| fail(Exit::Usage, e.to_string(), next))
    }

    /// The published port of a service, from `env`.
    pub fn port(&self, service: &str, env: &EnvFile) -> Result<u16> {
        let variable = self.every_service().find(|s| s.name == service).map(|s| s.port.as_str());
        let variable = variable.with_context(|| format!("pilot.toml has no service {service}"))?;
        let value = env.get(variable).unwrap_or_default();
        value.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            let what = format!("{variable}={value} is not a port (1 to 65535)");
            fail(
                Exit::Usage,
                what,
                Next::xtask("rollback").so(format!("or fix it in {}", self.env_path.display())),
            )
        })
    }
}

/// Reads the manifest that `by` asks for. If the manifest of the source code is broken, only commands that
/// build the source code stop; the others warn and use another manifest.
fn manifest(pack: &Path, state: &StateDir, by: By) -> Result<Manifest> {
    let broken = match Manifest::load(&pack.join("pilot.toml")) {
        Ok(manifest) if by == By::Tree => return Ok(manifest),
        Ok(manifest) => return Ok(running_manifest(state).map_or(manifest, |(_, running)| running)),
        Err(error) => error,
    };
    let next = || Next::shell("git checkout pilot-deploy/pilot.toml").so("or fix the file");
    let refused = || Err(fail(Exit::Usage, format!("{broken:#}"), next()));
    let (name, manifest) = match (running_manifest(state), by) {
        (_, By::Tree) => return refused(),
        (Some((path, manifest)), _) => (path.display().to_string(), manifest),
        (None, By::Running) => return refused(),
        (None, By::Any) => {
            ("the manifest that this program was built with".to_owned(), Manifest::built_in()?)
        }
    };
    eprintln!("warning: {broken:#}");
    eprintln!("warning: using {name} instead");
    Ok(manifest)
}

/// The manifest of the release that runs, if a release is recorded and its manifest can be read.
fn running_manifest(state: &StateDir) -> Option<(PathBuf, Manifest)> {
    let id = Ledger::new(state).read(Record::Running).ok()??;
    let id = String::from_utf8(id).ok()?;
    let id = Some(id.trim()).filter(|id| files::stays_within(id) && !id.contains('/'))?;
    let path = state.release(id).join("pilot.toml");
    let manifest = Manifest::load(&path).ok()?;
    Some((path, manifest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../pilot-deploy")
    }

    #[test]
    fn no_project_is_called_so_that_it_would_have_what_is_the_default_ones() {
        let manifest = Manifest::load(&tree().join("pilot.toml")).unwrap();
        for (name, shared) in [("scenario", "image scenario-gateway"), ("pilot", "network pilot-network")] {
            let error = check_apart(name, &manifest).unwrap_err().to_string();
            assert!(error.contains(shared) && error.contains(DEFAULT_PROJECT), "{error}");
        }
        for name in [DEFAULT_PROJECT, "scenario2", "pilot-b", "pilot-deploy-b", "pilot-deploy_b"] {
            check_apart(name, &manifest).unwrap();
        }
        // What the check takes for granted of the compose file.
        let compose = std::fs::read_to_string(tree().join(&manifest.compose_file)).unwrap();
        let network = format!("${{PILOT_NETWORK:-{}}}", network_name(DEFAULT_PROJECT));
        assert!(compose.contains(&network), "the compose file has no {network}");
    }

    #[test]
    fn a_name_fits_everything_that_is_called_by_it() {
        for name in ["a", "pilot-deploy", "a1_b2-c3"] {
            check_name(name).unwrap();
        }
        let long = "a".repeat(LONGEST_NAME + 1);
        for name in ["", "A", "1a", "a-", "a_", "a--b", "a_-b", "a..b", "../a", "-a", "a b", "ä", &long] {
            assert_eq!(crate::base::failure::exit_of(&check_name(name).unwrap_err()), Exit::Usage, "{name}");
        }
    }
}
