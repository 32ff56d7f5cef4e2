//! The engine `compose`: Docker through its client and Compose 2 (`docker compose`) or Compose 1
//! (`docker-compose`). State is read by Compose's labels, which both write alike. Every command names
//! the project or an id that was found by it; there is no prune here and no removal by pattern.

mod clean;
mod data;
mod state;

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::files::Freed;
use crate::base::next::Next;
use crate::base::proc::{Cmd, RunError, cmd};
use crate::base::threads::joined;
use crate::engine::roles::{Build, Engine, EngineHost, Extent, Kind, Usage};
use crate::release::description::{COMPOSE_FILE, ENV_FILE, Image, Release};
use crate::stack::model::{ServiceState, Stack};
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use state::{plugin_folders, service_state};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Profile of the compose file with prometheus and grafana.
const PROFILE: &str = "observability";

/// Times that a question is asked when what it is about goes away meanwhile, and the time between.
const ASKED: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(50);

/// Docker Compose for one project.
pub struct Compose {
    pilot: Pilot,
    docker: PathBuf,
    generation: OnceLock<Generation>,
}

/// Which Compose there is, by how it is called.
#[derive(Clone, Debug)]
enum Generation {
    /// `docker compose`.
    Two,
    /// `docker-compose`.
    One(PathBuf),
}

/// Does a Docker engine answer? An error when not; `is_hung` tells the two ways apart.
pub fn answers(deadline: Deadline) -> Result<()> {
    let docker = which::which("docker").context("docker is not on the PATH")?;
    cmd(docker, &["version", "--format", "{{.Server.Version}}"]).run(deadline).map(drop)
}

/// Did the engine not answer in time (rather than refuse)?
pub fn is_hung(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RunError::Deadline(_)))
}

/// Does the engine say that what was asked for is not there?
fn is_gone(error: &anyhow::Error) -> bool {
    let said = format!("{error:#}").to_lowercase();
    ["no such container", "no such object", "no such volume", "no such network"]
        .iter()
        .any(|s| said.contains(s))
}

/// A docker command failed: whose fault is it? Anything that says that the daemon is not there, or
/// says nothing in time, is the host's (exit 4); but not what the run's budget cut short.
fn blame(error: anyhow::Error) -> anyhow::Error {
    if exit_of(&error) == Exit::OverBudget {
        return error;
    }
    let text = format!("{error:#}");
    let host = [
        "Cannot connect to the Docker daemon",
        "error during connect",
        "failed to connect",
        "Is the docker daemon running",
    ];
    if is_hung(&error) || host.iter().any(|mark| text.contains(mark)) {
        let next = Next::xtask("host").so("to see what is wrong; host --restart-engine restarts Docker");
        return fail(Exit::Host, format!("the Docker engine does not answer: {text}"), next);
    }
    error
}

impl Compose {
    /// Errors where there is no docker client (exit 4); whether the engine answers shows later.
    pub fn new(pilot: &Pilot) -> Result<Self> {
        let docker = which::which("docker").map_err(|e| {
            let next = "install Docker, or --engine process for the embedded engine";
            fail(Exit::Host, format!("the compose engine needs the docker client: {e}"), next)
        })?;
        Ok(Self { pilot: pilot.clone(), docker, generation: OnceLock::new() })
    }

    fn docker(&self, args: &[&str], deadline: Deadline) -> Result<String> {
        cmd(&self.docker, args).run(deadline).map_err(blame)
    }

    /// Compose 2 where the client has it, else Compose 1. Found by the plugin's file where that is in
    /// one of Docker's folders, because asking the client costs a tenth of a second.
    fn generation(&self, deadline: Deadline) -> Result<Generation> {
        if let Some(known) = self.generation.get() {
            return Ok(known.clone());
        }
        let found = if plugin_folders().iter().any(|folder| folder.join("docker-compose").exists()) {
            Generation::Two
        } else {
            let two = cmd(&self.docker, &["compose", "version", "--short"]).run(deadline);
            match (two, which::which("docker-compose")) {
                (Ok(_), _) => Generation::Two,
                (Err(_), Ok(path)) => Generation::One(path),
                (Err(error), Err(_)) => {
                    let what = format!("there is neither `docker compose` nor `docker-compose`: {error:#}");
                    let next = "install the docker compose plugin, or --engine process";
                    return Err(fail(Exit::Host, what, next));
                }
            }
        };
        Ok(self.generation.get_or_init(|| found).clone())
    }

    /// The command of the Compose there is.
    fn compose_command(&self, deadline: Deadline) -> Result<Cmd> {
        Ok(match self.generation(deadline)? {
            Generation::Two => cmd(&self.docker, &["compose"]),
            Generation::One(path) => cmd(path, &[]),
        })
    }

    /// Compose on the files in `dir`. What the shell exports must not win over the env file, so every
    /// variable that the file sets, or that steers Compose itself, is taken out.
    fn compose(&self, dir: &Path, deadline: Deadline) -> Result<Cmd> {
        let mut unset: Vec<String> = std::env::vars_os()
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with("COMPOSE_") || name.starts_with("PILOT_"))
            .collect();
        let env_file = dir.join(ENV_FILE);
        if let Some(bytes) = files::read_if_there(&env_file)? {
            let env = crate::stack::envfile::EnvFile::parse(&env_file.display().to_string(), &bytes)?;
            unset.extend(env.keys().map(str::to_owned));
        }
        Ok(self
            .compose_command(deadline)?
            .args(["--project-name", &self.pilot.project])
            .args(["--file", &dir.join(COMPOSE_FILE).display().to_string()])
            .args(["--env-file", &env_file.display().to_string()])
            .env_remove(unset))
    }

    /// The filter that finds what Compose made for this project.
    fn label(&self) -> String {
        format!("label=com.docker.compose.project={}", self.pilot.project)
    }

    /// Compose 1 has no such option.
    fn no_pull(&self, deadline: Deadline) -> Result<&'static [&'static str]> {
        Ok(match self.generation(deadline)? {
            Generation::Two => &["--pull", "never"],
            Generation::One(_) => &[],
        })
    }

    /// Ids of the project's containers, one-off ones left out. `-a` includes the stopped.
    fn containers(&self, deadline: Deadline) -> Result<Vec<String>> {
        let project = self.label();
        let found = self.docker(
            &[
                "ps",
                "-a",
                "--no-trunc",
                "--quiet",
                "--filter",
                &project,
                "--filter",
                "label=com.docker.compose.oneoff=False",
            ],
            deadline,
        )?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    /// A docker command on each of these; nothing where there are none.
    fn each(&self, words: &[&str], names: &[String], deadline: Deadline) -> Result<Option<String>> {
        if names.is_empty() {
            return Ok(None);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.docker(&[words, &names].concat(), deadline).map(Some)
    }

    /// The answer to a question of two parts: what there is, and what each of it is like. What goes away between
    /// the two, as in the middle of a deployment, is no failure: then it is asked again.
    fn steady<T>(&self, deadline: Deadline, ask: impl Fn() -> Result<T>) -> Result<T> {
        for _ in 1..ASKED {
            match ask() {
                Err(error) if is_gone(&error) && !deadline.passed() => std::thread::sleep(BETWEEN),
                other => return other,
            }
        }
        ask()
    }

    fn container(&self, service: &str, deadline: Deadline) -> Result<String> {
        let stack = self.observe(deadline)?;
        let found = stack.services.get(service).map(|s| s.handle.clone());
        found.with_context(|| format!("{service} has no container in project {}", self.pilot.project))
    }

    fn ids(&self, references: &[String], deadline: Deadline) -> Result<Vec<String>> {
        let mut args = vec!["image", "inspect", "--format", "{{.Id}}"];
        args.extend(references.iter().map(String::as_str));
        Ok(self.docker(&args, deadline)?.lines().map(str::to_owned).collect())
    }

    fn tag_of(&self, service: &str, tag: &str) -> String {
        format!("{}:{tag}", self.pilot.image_name(service))
    }
}

impl Engine for Compose {
    fn kind(&self) -> Kind {
        Kind::Compose
    }

    fn describe(&self, deadline: Deadline) -> String {
        let version = || {
            let command = self.compose_command(deadline)?;
            let version = command.clone().args(["version", "--short"]).run(deadline)?;
            Ok::<_, anyhow::Error>(format!("{command} {}", version.trim().trim_start_matches('v')))
        };
        version().unwrap_or_else(|error| format!("compose ({error:#})"))
    }

    fn observe(&self, deadline: Deadline) -> Result<Stack> {
        // Images and volumes do not depend on the containers: they are asked for meanwhile.
        std::thread::scope(|scope| {
            let images = scope.spawn(|| self.docker(&["images", "--no-trunc", "--quiet"], deadline));
            let volumes = scope.spawn(|| self.volumes(deadline));
            let containers = self.steady(deadline, || {
                let ids = self.containers(deadline)?;
                self.each(&["inspect", "--type", "container"], &ids, deadline)
            })?;
            let list: Vec<Value> = match containers {
                Some(text) => serde_json::from_str(&text).context("cannot understand docker inspect")?,
                None => Vec::new(),
            };
            let mut services = BTreeMap::new();
            for container in &list {
                let (name, state) = service_state(container)?;
                let known: Option<&ServiceState> = services.get(&name);
                // Two of one service (a recreate was cut off): the running one counts.
                if known.is_none_or(|other| !other.is_running()) {
                    services.insert(name, state);
                }
            }
            let images = joined(images)?;
            let data = self.services_of(&joined(volumes)?);
            Ok(Stack { services, images: images.lines().map(str::to_owned).collect(), data })
        })
    }

    fn build(&self, build: &Build<'_>, deadline: Deadline) -> Result<BTreeMap<String, Image>> {
        let Build { binary, dockerfile, label, fault } = *build;
        let context = files::Scratch::new("build")?;
        files::make_folder(&context.path().join("data"))?;
        std::fs::copy(binary, context.path().join("scenario"))
            .with_context(|| format!("cannot copy {}", binary.display()))?;
        let built: Vec<Result<(String, Image)>> = std::thread::scope(|scope| {
            let context = context.path().display().to_string();
            let jobs: Vec<_> = self
                .pilot
                .services()
                .map(|service| {
                    let build = cmd(&self.docker, &["build", "--quiet", "--force-rm"])
                        .args(["--file", &dockerfile.display().to_string()])
                        .args(["--build-arg", &format!("PROJECT={}", self.pilot.project)])
                        .args(["--build-arg", &format!("ROLE={service}")])
                        .args(["--build-arg", &format!("VERSION={label}")])
                        .args(["--build-arg", &format!("FAULT={fault}")])
                        .args(["--tag", &self.tag_of(service, label), &context])
                        .env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1");
                    scope.spawn(move || {
                        persist(&build, deadline)?;
                        let tag = self.tag_of(service, label);
                        let id = self.ids(&[tag], deadline)?.pop().context("a built image has no id")?;
                        let tag = self.tag_of(service, "latest");
                        Ok((service.to_owned(), Image { id, tag, archive: None }))
                    })
                })
                .collect();
            jobs.into_iter().map(joined).collect()
        });
        built.into_iter().collect()
    }

    fn tagged(&self, tag: &str, deadline: Deadline) -> Result<BTreeMap<String, Image>> {
        let names: Vec<&str> = self.pilot.services().collect();
        let references: Vec<String> = names.iter().map(|s| self.tag_of(s, tag)).collect();
        let ids = self.ids(&references, deadline).map_err(|e| match exit_of(&e) {
            Exit::Host | Exit::OverBudget => e,
            _ => {
                let what = format!("not all images are there with the tag {tag}: {e:#}");
                fail(Exit::Usage, what, Next::shell(format!("docker images '{}'", self.tag_of("*", "*"))))
            }
        })?;
        Ok(names
            .into_iter()
            .zip(ids)
            .map(|(s, id)| (s.to_owned(), Image { id, tag: self.tag_of(s, "latest"), archive: None }))
            .collect())
    }

    fn tag(&self, images: &BTreeMap<String, Image>, tag: &str, deadline: Deadline) -> Result<()> {
        let there = self.tagged(tag, deadline).unwrap_or_default();
        let same = |service: &String, image: &Image| there.get(service).is_some_and(|t| t.id == image.id);
        for (service, image) in images.iter().filter(|(service, image)| !same(service, image)) {
            self.docker(&["tag", &image.id, &self.tag_of(service, tag)], deadline)?;
        }
        Ok(())
    }

    fn save(&self, image: &Image, archive: &Path, deadline: Deadline) -> Result<()> {
        self.docker(&["save", "--output", &archive.display().to_string(), &image.id], deadline).map(drop)
    }

    fn load(&self, image: &Image, archive: &Path, deadline: Deadline) -> Result<()> {
        self.docker(&["load", "--quiet", "--input", &archive.display().to_string()], deadline)?;
        match self.ids(std::slice::from_ref(&image.id), deadline)?.first() {
            Some(id) if *id == image.id => Ok(()),
            other => bail!("loading {} gave {other:?} instead of {}", archive.display(), image.id),
        }
    }

    fn point_tags(&self, release: &Release, deadline: Deadline) -> Result<()> {
        std::thread::scope(|scope| {
            let mut jobs = Vec::new();
            for (service, image) in &release.images {
                let kept = self.tag_of(service, &format!("{}-{}", release.label, release.id));
                for tag in [image.tag.clone(), kept] {
                    jobs.push(scope.spawn(move || self.docker(&["tag", &image.id, &tag], deadline)));
                }
            }
            jobs.into_iter().try_for_each(|job| joined(job).map(drop))
        })
    }

    fn apply(&self, _: &Release, dir: &Path, force: &[String], deadline: Deadline) -> Result<()> {
        let compose = self.compose(dir, deadline)?;
        if !force.is_empty() {
            // Compose leaves a container alone whose settings fit, however sick it is.
            let stack = self.observe(deadline)?;
            let sick: Vec<&str> =
                force.iter().filter_map(|s| stack.services.get(s)).map(|s| s.handle.as_str()).collect();
            if !sick.is_empty() {
                let mut args = vec!["rm", "--force"];
                args.extend(sick);
                self.docker(&args, deadline)?;
            }
        }
        // No stop grace: in an emergency nobody waits ten seconds for a service that ignores SIGTERM.
        let up = compose.args(["up", "--detach", "--timeout", "0", "--no-build"]);
        up.args(self.no_pull(deadline)?).run(deadline).map(drop).map_err(blame)
    }

    fn run_once(
        &self,
        _: &Release,
        dir: &Path,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<String> {
        let run = self.compose(dir, deadline)?.args(["run", "--rm", "--no-deps", "-T", service]).args(words);
        run.run(deadline).map_err(blame)
    }

    fn stop(&self, service: &str, deadline: Deadline) -> Result<()> {
        let id = self.container(service, deadline)?;
        // `stop` and not `kill`: a container that was told to stop is not started again by its policy.
        self.docker(&["stop", "--time", "0", &id], deadline).map(drop)
    }

    fn logs(&self, state: &ServiceState, lines: Option<usize>, deadline: Deadline) -> Result<String> {
        // The services' own output is on both streams.
        let script = "exec \"$0\" logs --timestamps --tail \"$1\" \"$2\" 2>&1";
        let docker = self.docker.display().to_string();
        let lines = lines.map_or("all".to_owned(), |n| n.to_string());
        cmd("sh", &["-c", script, &docker, &lines, &state.handle]).run(deadline).map_err(blame)
    }

    fn save_data(&self, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        self.save_volume(service, archive, deadline)
    }

    fn restore_data(&self, dir: &Path, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        self.restore_volume(dir, service, archive, deadline)
    }

    fn remove_data(&self, service: &str, deadline: Deadline) -> Result<()> {
        if let Some(state) = self.observe(deadline)?.services.get(service) {
            self.docker(&["rm", "--force", &state.handle], deadline)?;
        }
        self.docker(&["volume", "rm", "--force", &self.volume(service)?], deadline).map(drop)
    }

    fn remove(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let stack = self.observe(deadline)?;
        services
            .iter()
            .filter_map(|service| stack.services.get(service))
            .try_for_each(|state| self.docker(&["rm", "--force", &state.handle], deadline).map(drop))
    }

    fn start(&self, service: &str, deadline: Deadline) -> Result<()> {
        self.docker(&["start", &self.container(service, deadline)?], deadline).map(drop)
    }

    fn add(&self, dir: &Path, services: &[String], deadline: Deadline) -> Result<()> {
        let up = self.compose(dir, deadline)?.args(["--profile", PROFILE, "up", "--detach", "--no-deps"]);
        up.args(services).run(deadline).map(drop).map_err(blame)
    }

    fn belongings(&self, deadline: Deadline) -> Result<Vec<String>> {
        self.list_belongings(deadline)
    }

    fn down(&self, extent: Extent, deadline: Deadline) -> Result<()> {
        self.take_down(extent, deadline)
    }

    fn usage(&self, deadline: Deadline) -> Result<Vec<Usage>> {
        self.read_usage(deadline)
    }

    fn surroundings(&self, deadline: Deadline) -> Result<BTreeMap<String, String>> {
        self.read_surroundings(deadline)
    }

    fn host(&self, deadline: Deadline) -> Result<EngineHost> {
        self.read_host(deadline)
    }

    fn clean_up(&self, keep: &[String], deadline: Deadline) -> Result<Vec<Freed>> {
        self.remove_leftovers(keep, deadline)
    }
}

/// Runs a build. The builder without BuildKit shares layers between projects, and loses hold of one that
/// another project's clean-up removes at that moment: then, and only then, it is run again.
fn persist(build: &Cmd, deadline: Deadline) -> Result<()> {
    let lost = ["failed to get digest", "No such image", "unknown parent"];
    for _ in 0..2 {
        match build.clone().run(deadline) {
            Err(error) if lost.iter().any(|text| format!("{error:#}").contains(text)) => {}
            other => return other.map(drop).map_err(blame),
        }
    }
    build.clone().run(deadline).map(drop).map_err(blame)
}
