//! The stack that a command works with: where its folder, the repository, the state folder and the env file are, which
//! project it is, which manifest is used, and what Compose says that it is, as far as that is known. Read-only; every
//! later stage gets a `Pilot`.

use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::secrets;
use crate::base::stderr;
use crate::stack::call::{filled, names};
use crate::stack::definition::{self, Definition, Mount, Port, Resource, Source};
use crate::stack::envfile::EnvFile;
use crate::stack::hiding;
use crate::stack::layout::{ENV_FILE, Layout, has_compose_file, project_name};
use crate::stack::ledger::{Ledger, Record};
use crate::stack::manifest::{self, DataRule, MANIFEST_FILE, Manifest};
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder of the stack that the repository ships with. It is used where no other is named.
const SHIPPED: &str = "pilot-deploy";

/// What a stack is, as Compose understood it, in the folder of a release.
pub const MODEL_FILE: &str = "model.json";

/// The names of drill projects begin with this.
pub const REHEARSALS: &str = "pilot-drill-";

/// The variable that says how long what runs is watched, instead of `[watch] for`.
const WATCH: &str = "PILOT_WATCH";

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

/// Is the name of a project valid for everything that gets a name from it: images, volumes, networks,
/// folders? The strictest is the name of an image: words with a single `-` or `_` between them.
fn check_name(project: &str, manifest: &Manifest) -> Result<()> {
    let word =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fits = project.starts_with(|c: char| c.is_ascii_lowercase()) && project.split(['-', '_']).all(word);
    let shown: String = project.chars().take(LONGEST_NAME + 1).collect();
    if !fits || project.len() > LONGEST_NAME {
        let what = format!(
            "the project {shown:?}: use at most {LONGEST_NAME} lowercase letters and digits, with a letter first, \
             and a single - or _ between words"
        );
        return Err(fail(Exit::Usage, what, "name another one with --project NAME"));
    }
    if manifest.projects.refused.iter().any(|refused| refused == project) {
        let what =
            format!("--project {project}: it would share an image or a network with the default project");
        return Err(fail(Exit::Usage, what, "choose another name"));
    }
    Ok(())
}

/// How long is watched, if the user says so by `PILOT_WATCH`. A rehearsal is not watched by itself: it measures how long a
/// rollback takes.
fn watch_named(project: &str) -> Result<Option<Duration>> {
    let Some(text) = std::env::var_os(WATCH).filter(|text| !text.is_empty()) else {
        return Ok(project.starts_with(REHEARSALS).then_some(Duration::ZERO));
    };
    let text = text.to_string_lossy().into_owned();
    humantime::parse_duration(&text).map(Some).map_err(|error| {
        let what = format!("{WATCH}={text} is no time ({error})");
        fail(Exit::Usage, what, "right would be \"0s\", \"500ms\" or \"2m\"")
    })
}

/// Where a stack is.
struct Place {
    root: PathBuf,
    pack: PathBuf,
}

impl Place {
    /// The stack in this folder.
    fn of(pack: PathBuf) -> Self {
        let parent = pack.parent().filter(|_| pack.ends_with(SHIPPED));
        let root = parent.or_else(|| pack.ancestors().find(|dir| dir.join(".git").exists()));
        Self { root: root.unwrap_or(&pack).to_owned(), pack }
    }

    /// The named folder; else the one that the repository ships with; else the nearest folder with a stack.
    fn find(named: Option<&Path>, here: &Path) -> Result<Self> {
        if let Some(named) = named {
            let folder = here.join(named);
            let real = std::fs::canonicalize(&folder).ok().filter(|path| path.is_dir());
            let missing =
                || fail(Exit::Usage, format!("--stack {}: there is no such folder", named.display()), "");
            return real.map(Self::of).ok_or_else(missing);
        }
        let shipped =
            here.ancestors().map(|dir| dir.join(SHIPPED)).find(|dir| dir.join(MANIFEST_FILE).is_file());
        let is_stack = |dir: &&Path| dir.join(MANIFEST_FILE).is_file() || has_compose_file(dir);
        let found = shipped.or_else(|| here.ancestors().find(is_stack).map(Path::to_owned));
        found.map(Self::of).ok_or_else(|| {
            let what = format!(
                "there is no {SHIPPED}/{MANIFEST_FILE} and no compose file in {} or above it",
                here.display()
            );
            fail(
                Exit::Usage,
                what,
                "change to a clone of the repository (cd), or name the folder of a stack with --stack DIR",
            )
        })
    }

    /// The state folder of the default project.
    fn state(&self) -> StateDir {
        StateDir::new(if self.pack.ends_with(SHIPPED) {
            self.root.join(".pilot")
        } else {
            self.pack.join(".pilot")
        })
    }
}

/// The stack, with its paths and its manifest.
#[derive(Clone, Debug)]
pub struct Pilot {
    /// Root of the repository; the folder of the stack if it is in none.
    pub root: PathBuf,
    /// The folder of the stack.
    pub pack: PathBuf,
    /// Compose project.
    pub project: String,
    /// The project of the stack if the user names none. Other projects are drills, tests and private copies.
    pub default_project: String,
    /// The state folder: `.pilot/`, or the folder in `PILOT_STATE_DIR`.
    pub state: StateDir,
    /// The env file in use.
    pub env_path: PathBuf,
    /// `pilot.toml`.
    pub manifest: Manifest,
    /// The names of its files.
    pub layout: Layout,
    /// What Compose says that it is; none if that is not known.
    pub definition: Option<Definition>,
    /// How long what runs is watched after its gate was opened, whatever its manifest says.
    pub watch: Option<Duration>,
}

impl Pilot {
    /// Finds the stack and reads its manifest. `stack` and `project` are what the user named.
    pub fn find(stack: Option<&Path>, project: Option<&str>, by: By) -> Result<Self> {
        let here = std::env::current_dir().context("cannot find out the current folder")?;
        let place = Place::find(stack, &here)?;
        let own = place.state();
        let default = project_name(&place.pack);
        let project = project.unwrap_or(&default);
        let state = match std::env::var_os("PILOT_STATE_DIR") {
            Some(dir) if !dir.is_empty() => StateDir::new(here.join(dir)),
            _ if project == default => own,
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
        Self::at(&place.pack, project, state, by)
    }

    /// The stack in the folder `pack` with every value given. Drills use it for their separate stack.
    pub fn at(pack: &Path, project: &str, state: StateDir, by: By) -> Result<Self> {
        if state.path().exists() && !state.path().is_dir() {
            let what = format!("the state folder {} is not a folder", state.path().display());
            return Err(fail(
                Exit::Usage,
                what,
                "move that file away, or set PILOT_STATE_DIR to another folder",
            ));
        }
        let Place { root, pack } = Place::of(pack.to_owned());
        let running = (by != By::Tree).then(|| running_release(&state)).flatten();
        let definition = running.as_deref().and_then(definition_in);
        let manifest = chosen_manifest(&pack, running.as_deref(), by)?;
        check_name(project, &manifest)?;
        // What is wrong with the files of the source does not matter to a command that does not use them.
        let layout = match Layout::of(&pack, &manifest) {
            Err(error) if by == By::Tree => return Err(error),
            found => found.ok().or_else(|| layout_in(running.as_deref()?)).unwrap_or_default(),
        };
        let default_project = project_name(&pack);
        let env = layout.env.as_deref().unwrap_or(ENV_FILE);
        let env_path = if project == default_project { pack.join(env) } else { state.env_file(env) };
        let (project, watch) = (project.to_owned(), watch_named(project)?);
        let pilot = Self {
            root,
            pack,
            project,
            default_project,
            state,
            env_path,
            manifest,
            layout,
            definition,
            watch,
        };
        let words: Vec<String> = pilot.every_service().map(str::to_owned).collect();
        secrets::follow(&pilot.manifest.secret_rules(), words.into_iter().chain([pilot.project.clone()]));
        pilot.learn_secrets();
        Ok(pilot)
    }

    /// Registers the secrets of every env file, so that they are masked from now on in the output of any
    /// program. A file that cannot be read is passed over here; the code that needs it reports the error.
    fn learn_secrets(&self) {
        let tree = self.layout.private().map(|name| self.pack.join(name));
        let kept = self.state.every_env_file(&self.layout);
        // Releases and rollbacks keep one each, which mostly say the same.
        let mut texts = BTreeSet::new();
        for path in kept.into_iter().chain(tree).chain([self.env_path.clone()]) {
            if let Ok(file) = files::open_regular(&path) {
                let mut bytes = Vec::new();
                file.take(LONGEST_ENV).read_to_end(&mut bytes).ok();
                texts.insert(bytes);
            }
        }
        texts.iter().for_each(|text| hiding::learn(&String::from_utf8_lossy(text)));
        if let Some(webhook) = self.manifest.notify.as_ref().and_then(|notify| notify.webhook.as_ref()) {
            let own = names(webhook).unwrap_or_default();
            let whole = own.is_empty().then(|| ("WEBHOOK".to_owned(), webhook.clone()));
            let set = own.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
            secrets::learn(&set.chain(whole).collect());
        }
    }

    /// The path of a file of the source, by its name in the stack, with the env file at `env`.
    pub fn source(&self, name: &str, env: &Path) -> PathBuf {
        let is_env = self.layout.env.as_deref() == Some(name);
        if is_env { env.to_owned() } else { self.pack.join(name) }
    }

    /// The projects of this stack that have a state folder, and the one that is used if the user names none.
    pub fn other_projects(&self) -> Vec<String> {
        let folder = self.state.path().parent().unwrap_or(self.state.path());
        let projects = StateDir::new(folder.parent().unwrap_or(folder)).projects();
        let mut all = if projects == folder { files::names(folder).unwrap_or_default() } else { Vec::new() };
        all.insert(0, self.default_project.clone());
        all.retain(|name| *name != self.project);
        all
    }

    /// How long what runs is watched after its gate was opened; zero: it is not.
    pub fn watched_for(&self) -> Duration {
        self.watch.unwrap_or(self.manifest.watch.time)
    }

    /// Is it the project that is used if the user names none?
    pub fn is_default(&self) -> bool {
        self.project == self.default_project
    }

    /// Name of the gateway: the service that lets the public in. Where the gate stops services, it is the first one.
    pub fn gateway(&self) -> &str {
        self.manifest.gate.service().or_else(|| self.services().next()).unwrap_or_default()
    }

    /// Does a service that always starts use this data, and is it the stack's own?
    pub fn needs_data(&self, data: &str) -> bool {
        match &self.definition {
            Some(definition) => definition.needs(data),
            None => self.services().any(|service| service == data),
        }
    }

    /// What the manifest says of this data, which it may call by its volume.
    pub fn data_rule(&self, data: &str) -> Option<&DataRule> {
        let rules = &self.manifest.data.each;
        let by_volume = || rules.get(self.definition.as_ref()?.volume_of(data)?);
        rules.get(data).or_else(by_volume)
    }

    /// Names of the services that always start.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        let known = self.definition.iter().flat_map(Definition::services);
        let unknown = self.manifest.services.iter().filter(|_| self.definition.is_none());
        known.chain(unknown.map(|service| service.name.as_str()))
    }

    /// Names of all services, those of every profile too.
    pub fn every_service(&self) -> impl Iterator<Item = &str> {
        let known = self.definition.iter().flat_map(|definition| definition.services.keys());
        let more = self.manifest.services.iter().chain(&self.manifest.observability);
        known.map(String::as_str).chain(more.filter(|_| self.definition.is_none()).map(|s| s.name.as_str()))
    }

    /// Name of the image that is built for a service by this program: `scenario-gateway`, or `PROJECT-gateway` for
    /// another project than the default one.
    pub fn image_name(&self, service: &str) -> String {
        let package =
            self.manifest.build.as_ref().map(|build| build.package.as_str()).filter(|_| self.is_default());
        format!("{}-{service}", package.unwrap_or(&self.project))
    }

    /// The variables that the env file of this project gets; none for the default project.
    pub fn own_variables(&self) -> Result<BTreeMap<String, String>> {
        let all = self.manifest.projects.variables.iter().filter(|_| !self.is_default());
        let value = |(name, value): (&String, &String)| {
            Ok((name.clone(), filled(value, &[("PROJECT", &self.project)])?))
        };
        all.map(value).collect()
    }

    /// Reads and parses the env file. The error says where it is wrong. A stack without an env file has no settings.
    pub fn env(&self) -> Result<EnvFile> {
        let next = Next::xtask("rollback").so("to restore it from the last known-good release");
        let Some(bytes) = files::read_if_there(&self.env_path)? else {
            if self.layout.env.is_none() {
                return Ok(EnvFile::default());
            }
            let what = format!("{} is missing", self.env_path.display());
            return Err(fail(Exit::Usage, what, next));
        };
        EnvFile::parse(&self.env_path.display().to_string(), &bytes)
            .map_err(|e| fail(Exit::Usage, e.to_string(), next))
    }

    /// The first published port of a service; none if it publishes none, or if the engine chooses it. `env` has the
    /// ports of a stack whose definition is not known.
    pub fn port(&self, service: &str, env: &EnvFile) -> Result<Option<u16>> {
        if let Some(definition) = &self.definition {
            let ports = definition.services.get(service).into_iter().flat_map(|service| &service.ports);
            return Ok(ports.filter(|port| port.protocol == "tcp").find_map(|port| port.published));
        }
        self.port_in(service, env)
    }

    /// The published port of a service, from the variable of the env file that the manifest names.
    pub fn port_in(&self, service: &str, env: &EnvFile) -> Result<Option<u16>> {
        let Some(variable) = self.port_variable(service) else { return Ok(None) };
        let value = env.get(variable).unwrap_or_default();
        value.parse().ok().filter(|port| *port != 0).map(Some).ok_or_else(|| {
            let what = format!("{variable}={value} is not a port (1 to 65535)");
            fail(
                Exit::Usage,
                what,
                Next::xtask("rollback").so(format!("or fix it in {}", self.env_path.display())),
            )
        })
    }

    /// What the manifest says that the stack is, for an engine that runs it without Compose.
    pub fn by_manifest(&self, env: &EnvFile) -> Result<Definition> {
        let service = |service: &manifest::Service| {
            let port = self.port_in(&service.name, env)?.context("it has no port")?;
            let port = Port {
                host_ip: Some(Ipv4Addr::LOCALHOST.to_string()),
                published: Some(port),
                target: port,
                protocol: "tcp".to_owned(),
            };
            let source = Source::Volume(service.volume.clone());
            let all = definition::Service {
                image: Some(self.image_name(&service.name)),
                ports: vec![port],
                mounts: vec![Mount {
                    source,
                    target: format!("volumes/{}", service.name),
                    read_only: false,
                    selinux: None,
                }],
                containers: 1,
                ..definition::Service::default()
            };
            Ok((service.name.clone(), all))
        };
        // Data is kept by service.
        let volume = |service: &manifest::Service| {
            (service.volume.clone(), Resource { name: service.name.clone(), external: false })
        };
        let own = &self.manifest.services;
        let services = own.iter().map(service).collect::<Result<_>>()?;
        Ok(Definition::new(services, own.iter().map(volume).collect(), BTreeMap::new()))
    }

    /// The variable of the env file that has the published port of a service, if the manifest names one.
    pub fn port_variable(&self, service: &str) -> Option<&str> {
        let mut all = self.manifest.services.iter().chain(&self.manifest.observability);
        all.find(|known| known.name == service).map(|known| known.port.as_str())
    }
}

/// Reads the manifest that `by` asks for; a stack need not have one. If that of the source is broken, only commands that
/// build the source stop; the others warn and use another manifest. `running` is the folder of the release that runs.
fn chosen_manifest(pack: &Path, running: Option<&Path>, by: By) -> Result<Manifest> {
    let of_running = || running.and_then(|dir| Some((dir, Manifest::in_folder(dir).ok()?)));
    let broken = match Manifest::in_folder(pack) {
        Ok(manifest) if by == By::Tree => return Ok(manifest),
        Ok(manifest) => return Ok(of_running().map_or(manifest, |(_, running)| running)),
        Err(error) => error,
    };
    let path = pack.join(MANIFEST_FILE);
    let next = || Next::shell(format!("git checkout {}", path.display())).so("or fix the file");
    let refused = || Err(fail(Exit::Usage, format!("{broken:#}"), next()));
    let (name, manifest) = match (of_running(), by) {
        (_, By::Tree) => return refused(),
        (Some((dir, manifest)), _) => (dir.join(MANIFEST_FILE).display().to_string(), manifest),
        (None, By::Running) => return refused(),
        // Only the stack that the repository ships with has that one.
        (None, By::Any) if !pack.ends_with(SHIPPED) => {
            ("what is assumed of a stack without a manifest".to_owned(), Manifest::none())
        }
        (None, By::Any) => {
            ("the manifest that this program was built with".to_owned(), Manifest::built_in()?)
        }
    };
    stderr::line(format!("warning: {broken:#}"));
    stderr::line(format!("warning: using {name} instead"));
    Ok(manifest)
}

/// The folder of the release that runs, if a release is recorded.
fn running_release(state: &StateDir) -> Option<PathBuf> {
    let id = Ledger::new(state).read(Record::Running).ok()??;
    let id = String::from_utf8(id).ok()?;
    let id = Some(id.trim()).filter(|id| files::stays_within(id) && !id.contains('/'))?;
    Some(state.release(id)).filter(|dir| dir.is_dir())
}

/// The definition in the folder of a release. Without one that can be read, the engine is asked, or the manifest.
fn definition_in(release: &Path) -> Option<Definition> {
    Definition::parse(&files::read(&release.join(MODEL_FILE)).ok()?).ok()
}

/// The names of the files of a release, for a source whose compose file is gone.
fn layout_in(release: &Path) -> Option<Layout> {
    let mut told: serde_json::Value = files::read_json(&release.join("release.json")).ok()?;
    serde_json::from_value(told["layout"].take()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_project_is_called_so_that_it_would_have_what_is_the_default_ones() {
        let manifest = Manifest::built_in().unwrap();
        for name in ["scenario", "pilot"] {
            let error = check_name(name, &manifest).unwrap_err().to_string();
            assert!(error.contains("would share an image or a network"), "{error}");
        }
        for name in ["pilot-deploy", "scenario2", "pilot-b", "pilot-deploy-b", "pilot-deploy_b"] {
            check_name(name, &manifest).unwrap();
        }
        // What the refused names take for granted of the compose file.
        let compose = include_str!("../../../pilot-deploy/docker-compose.poc.yml");
        assert!(compose.contains("${PILOT_NETWORK:-pilot-network}"));
        assert!(compose.contains("${PILOT_IMAGES:-scenario}-gateway"));
    }

    #[test]
    fn a_name_fits_everything_that_is_called_by_it() {
        for name in ["a", "pilot-deploy", "a1_b2-c3"] {
            check_name(name, &Manifest::none()).unwrap();
        }
        let long = "a".repeat(LONGEST_NAME + 1);
        for name in ["", "A", "1a", "a-", "a_", "a--b", "a_-b", "a..b", "../a", "-a", "a b", "ä", &long] {
            let error = check_name(name, &Manifest::none()).unwrap_err();
            assert_eq!(crate::base::failure::exit_of(&error), Exit::Usage, "{name}");
        }
    }

    #[test]
    fn a_stack_is_found_where_it_is_named_shipped_or_near() {
        let scratch = files::Scratch::new("pilot-test").unwrap();
        let path = |name: &str| scratch.path().join(name);
        for name in
            ["a/pilot-deploy/pilot.toml", "a/shop/compose.yaml", "b/web/docker-compose.yml", "b/.git/x"]
        {
            files::write(&path(name), b"services: {}", files::Mode::Plain).unwrap();
        }
        let find = |named: Option<&str>, here: &str| {
            let place = Place::find(named.map(Path::new), &path(here))?;
            let state = place.state().path().to_owned();
            let relative = |path: &Path| path.strip_prefix(scratch.path()).unwrap().display().to_string();
            Ok::<_, anyhow::Error>([relative(&place.root), relative(&place.pack), relative(&state)])
        };
        assert_eq!(find(None, "a/shop").unwrap(), ["a", "a/pilot-deploy", "a/.pilot"]);
        assert_eq!(find(Some("../pilot-deploy"), "a/shop").unwrap(), ["a", "a/pilot-deploy", "a/.pilot"]);
        assert_eq!(find(Some("shop"), "a").unwrap(), ["a/shop", "a/shop", "a/shop/.pilot"]);
        assert_eq!(find(None, "b/web").unwrap(), ["b", "b/web", "b/web/.pilot"]);
        assert!(find(Some("gone"), "a").unwrap_err().to_string().contains("there is no such folder"));
    }
}
