//! Calls `docker` and Compose for one project. Every command names the project, or an id that was found by
//! the project's label. There is no prune and no removal by pattern.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::proc::{Cmd, RunError, cmd};
use crate::engine::compose::api::{self, Api, Lines, Way};
use crate::engine::compose::daemon::Daemon;
use crate::engine::compose::line::{by_labels, listed};
use crate::engine::compose::state::plugin;
use crate::engine::roles::Runtime;
use crate::release::store::settings_in;
use crate::stack::envfile::EnvFile;
use crate::stack::layout;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The labels of Compose: the project of what it made, and whether a container is one of `compose run`.
pub const PROJECT: &str = "com.docker.compose.project";
const ONE_OFF: &str = "com.docker.compose.oneoff";

/// How often `steady` asks again if an object disappears in between, and the pause before it does.
const ASKED: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(50);

/// Docker Compose for one project.
pub struct Compose {
    /// The stack.
    pub pilot: Pilot,
    /// Path of the docker client.
    pub docker: PathBuf,
    /// The daemon that it talks to.
    pub daemon: Daemon,
    /// The way to it.
    pub way: Way,
    /// Which Compose is installed; empty until it was needed.
    pub generation: OnceLock<Generation>,
    /// What it says of itself; empty until it was needed. Asking takes as long as a small command of it.
    pub described: OnceLock<String>,
    /// Connections to daemons.
    pub lines: Arc<Lines>,
}

/// Which Compose is installed, by its command.
#[derive(Clone, Debug)]
pub enum Generation {
    /// `docker compose`.
    Two,
    /// `docker-compose`.
    One(PathBuf),
}

/// An error if no Docker engine answers. `is_hung` says whether it did not answer in time. If it was to be one of another
/// machine, the error has exit code 4; if it is not known where the client leads, 2.
pub fn answers(deadline: Deadline) -> Result<()> {
    let docker = which::which("docker").context("docker is not on the PATH")?;
    let daemon = Daemon::of_client(&docker, deadline)?;
    let api = Api { docker, way: Way::own(&daemon.address), lines: Arc::default() };
    api.get("/info", deadline).map(drop).map_err(|error| match daemon.elsewhere() {
        Some(host) => silent_there(host, &format!("{error:#}")),
        None => error,
    })
}

/// The engine of another machine does not answer.
fn silent_there(host: &str, said: &str) -> anyhow::Error {
    let next = Next::shell("docker version").so(format!("to see whether it answers; then look at {host}"));
    fail(Exit::Host, format!("the Docker engine of {host} does not answer: {said}"), next)
}

/// Did the engine miss the deadline? Otherwise it refused.
pub fn is_hung(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RunError::Deadline(_)))
}

/// Does the engine say that the object does not exist?
fn is_gone(error: &anyhow::Error) -> bool {
    let said = format!("{error:#}").to_lowercase();
    ["no such container", "no such object", "no such volume", "no such network"]
        .iter()
        .any(|s| said.contains(s))
}

/// The exit code of a program that `docker exec` ran; none if it was not run to its end. Docker's own failures
/// have the codes 125 to 127, or 1 with a message of its own, and a killed program has a code above them.
pub fn exec_code(error: &anyhow::Error) -> Option<i32> {
    let Some(RunError::Status(text, Some(code))) = error.downcast_ref() else { return None };
    let of_docker = ["Error response from daemon", "Error: No such", "Cannot connect to the Docker daemon"];
    let ran = (1..125).contains(code) && !of_docker.iter().any(|said| text.contains(said));
    ran.then_some(*code)
}

/// Finds the exit code for a failed docker command. If the daemon cannot be reached or misses the deadline,
/// it is a host failure (exit 4), unless the budget of the run cut the command short.
pub fn classify(error: anyhow::Error) -> anyhow::Error {
    if exit_of(&error) == Exit::OverBudget {
        return error;
    }
    let text = format!("{error:#}");
    if is_hung(&error) || api::is_gone(&error) {
        let next = Next::xtask("host")
            .so("to see what is wrong; host --restart-engine restarts Docker, if it is of this machine");
        return fail(Exit::Host, format!("the Docker engine does not answer: {text}"), next);
    }
    error
}

/// The variables that Compose may not get from the shell: those that the env file sets or asks for and those that the
/// compose files mention, because they would win over it, and those that control Compose itself. So a release is the
/// same from every shell. Those of Docker stay, whatever the files say: without them Compose would change another
/// engine than the one that is asked.
fn removed(shell: impl Iterator<Item = String>, env: &EnvFile, mentioned: &BTreeSet<String>) -> Vec<String> {
    let own = shell.filter(|name| name.starts_with("COMPOSE_"));
    let named = env.names().map(str::to_owned).chain(mentioned.iter().cloned());
    own.chain(named.filter(|name| !name.starts_with("DOCKER_"))).collect()
}

impl Compose {
    /// An error if there is no docker client (exit 4), or if it is not known where that leads (exit 2).
    /// Whether the engine answers is not checked here.
    pub fn new(pilot: &Pilot) -> Result<Self> {
        let docker = which::which("docker").map_err(|e| {
            let next = "install Docker, or use --engine process (local processes)";
            fail(Exit::Host, format!("the compose engine needs the docker client: {e}"), next)
        })?;
        let daemon = Daemon::of_client(&docker, Deadline::after(pilot.manifest.limits.engine))?;
        let (generation, described) = (OnceLock::new(), OnceLock::new());
        let (pilot, way, lines) = (pilot.clone(), Way::own(&daemon.address), Arc::default());
        Ok(Self { pilot, docker, daemon, way, generation, described, lines })
    }

    /// The API of the daemon, for questions: a command of the client takes longer to start than most answers.
    pub fn api(&self) -> Api {
        Api { docker: self.docker.clone(), way: self.way.clone(), lines: Arc::clone(&self.lines) }
    }

    /// GET at the daemon.
    pub fn get(&self, path: &str, deadline: Deadline) -> Result<Value> {
        self.api().get(path, deadline).map_err(classify)
    }

    /// A docker command.
    pub fn client(&self, args: &[&str]) -> Cmd {
        cmd(&self.docker, &[]).args(&self.way.options).args(args)
    }

    /// Runs a docker command and returns its output.
    pub fn docker(&self, args: &[&str], deadline: Deadline) -> Result<String> {
        self.client(args).run(deadline).map_err(classify)
    }

    /// Compose 2 if the client has it, else Compose 1. The file of the plugin is searched first, because
    /// asking the client takes a tenth of a second.
    pub fn generation(&self, deadline: Deadline) -> Result<Generation> {
        if let Some(known) = self.generation.get() {
            return Ok(known.clone());
        }
        let found = if plugin().is_some() {
            Generation::Two
        } else {
            let two = cmd(&self.docker, &["compose", "version", "--short"]).run(deadline);
            match (two, which::which("docker-compose")) {
                (Ok(_), _) => Generation::Two,
                (Err(_), Ok(path)) => Generation::One(path),
                (Err(error), Err(_)) => {
                    let what = format!("there is neither `docker compose` nor `docker-compose`: {error:#}");
                    let next = "install the docker compose plugin, or use --engine process";
                    return Err(fail(Exit::Host, what, next));
                }
            }
        };
        Ok(self.generation.get_or_init(|| found).clone())
    }

    /// The command of the Compose that is installed. The plugin is called directly where it is found: it does
    /// the same by itself, and the client in front of it costs as much as the plugin's own start.
    pub fn compose_command(&self, deadline: Deadline) -> Result<Cmd> {
        Ok(match self.generation(deadline)? {
            Generation::Two => {
                plugin().map_or_else(|| cmd(&self.docker, &["compose"]), |path| cmd(path, &[]))
            }
            Generation::One(path) if self.daemon.by_context => {
                cmd(path, &[]).env("DOCKER_HOST", &self.daemon.address)
            }
            Generation::One(path) => cmd(path, &[]),
        })
    }

    /// A Compose command on the files in `dir`, with only those variables of the shell that it may get.
    pub fn compose(&self, dir: &Path, deadline: Deadline) -> Result<Cmd> {
        let layout = &self.pilot.layout;
        let env = settings_in(dir, layout)?;
        self.can_read(&env, deadline)?;
        let mut command = self.compose_command(deadline)?.args(["--project-name", &self.pilot.project]);
        let mut mentioned = BTreeSet::new();
        for name in layout.compose.iter().chain(&layout.included) {
            mentioned.extend(layout::variables(&files::read_text(&dir.join(name))?));
        }
        for name in &layout.compose {
            command = command.args(["--file", &dir.join(name).display().to_string()]);
        }
        if let Some(name) = &layout.env {
            command = command.args(["--env-file", &dir.join(name).display().to_string()]);
        }
        let shell = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        Ok(command.env_remove(removed(shell, &env, &mentioned)))
    }

    /// The docker filter for everything that Compose made for this project.
    pub fn label(&self) -> String {
        format!("label={PROJECT}={}", self.pilot.project)
    }

    /// The option that forbids pulling; nothing for Compose 1, which does not have it.
    pub fn no_pull(&self, deadline: Deadline) -> Result<&'static [&'static str]> {
        Ok(match self.generation(deadline)? {
            Generation::Two => &["--pull", "never"],
            Generation::One(_) => &[],
        })
    }

    /// What the daemon says of each of the project's containers, also stopped ones, but without one-off containers (`compose
    /// run`).
    pub fn inspected(&self, deadline: Deadline) -> Result<Vec<Value>> {
        inspected(&self.api(), &self.pilot.project, deadline)
    }

    /// Runs one docker command on all of `names`; nothing if there are none.
    pub fn each(&self, words: &[&str], names: &[String], deadline: Deadline) -> Result<Option<String>> {
        if names.is_empty() {
            return Ok(None);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.docker(&[words, &names].concat(), deadline).map(Some)
    }

    /// Content ids of images.
    pub fn ids(&self, references: &[String], deadline: Deadline) -> Result<Vec<String>> {
        let mut args = vec!["image", "inspect", "--format", "{{.Id}}"];
        args.extend(references.iter().map(String::as_str));
        Ok(self.docker(&args, deadline)?.lines().map(str::to_owned).collect())
    }

    /// A service's image name with this tag.
    pub fn tag_of(&self, service: &str, tag: &str) -> String {
        format!("{}:{tag}", self.pilot.image_name(service))
    }

    /// The lines that a list command prints for the project.
    pub fn listed(&self, words: &[&str], deadline: Deadline) -> Result<Vec<String>> {
        let label = self.label();
        let text = self.docker(&[words, &["--filter", &label]].concat(), deadline)?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

fn inspected(api: &Api, project: &str, deadline: Deadline) -> Result<Vec<Value>> {
    let labels = [format!("{PROJECT}={project}"), format!("{ONE_OFF}=False")];
    let list = format!("/containers/json?all=1&filters={}", by_labels(&labels));
    steady(deadline, || {
        let inspected = api.talk(deadline, |line| {
            let all = line.get(&list)?;
            let ids = listed(&all)?.iter().filter_map(|one| one["Id"].as_str());
            ids.map(|id| line.get(&format!("/containers/{id}/json"))).collect()
        });
        inspected.map_err(classify)
    })
}

/// For a query of two parts: list the objects, then inspect each. If an object disappears between the
/// two, as it can during a deployment, the whole query is repeated.
pub fn steady<T>(deadline: Deadline, ask: impl Fn() -> Result<T>) -> Result<T> {
    let mut asked = 0;
    let found = deadline.poll(BETWEEN, || {
        asked += 1;
        match ask() {
            Err(error) if is_gone(&error) && asked < ASKED => Continue(error),
            other => Break(other),
        }
    });
    found.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::files::Scratch;
    use crate::engine::compose::api::tests::scripted;

    #[test]
    fn the_code_of_a_program_is_told_from_a_failure_of_docker() {
        let code = |text: &str, code| exec_code(&RunError::Status(text.into(), code).into());
        assert_eq!(code("`docker exec` ended with exit status: 1: it wrote no message", Some(1)), Some(1));
        // As Docker 20.10 says it of a container that is stopped, and of one that is gone.
        assert_eq!(code("Error response from daemon: Container 1 is not running", Some(1)), None);
        assert_eq!(code("Error: No such container: 1", Some(1)), None);
        // A program that is not there, and one that was killed.
        assert_eq!(code("OCI runtime exec failed", Some(126)), None);
        assert_eq!(code("killed", Some(137)), None);
        assert_eq!(code("`docker` was ended by a signal", None), None);
    }

    #[test]
    fn compose_gets_no_variable_of_the_shell_that_the_env_file_decides() {
        let env = EnvFile::parse("", b"A=1\nB=${C:-2}\nDOCKER_HOST=tcp://other\n").unwrap();
        let shell = ["PATH", "COMPOSE_FILE", "DOCKER_HOST", "A"].map(str::to_owned);
        let mentioned = ["D".to_owned(), "DOCKER_TAG".to_owned()].into();
        assert_eq!(removed(shell.into_iter(), &env, &mentioned), ["COMPOSE_FILE", "A", "B", "C", "D"]);
    }

    /// A docker client that tells of a container the first `times` that it lists any; it is gone when it is asked for, as in
    /// the middle of a deployment.
    fn with_one_that_goes_away(scratch: &Scratch, times: usize) -> Api {
        let script = format!(
            r#"while asks; do
  case "$asked" in
  *"/containers/json?"*)
    echo x >> listed
    if [ $(wc -l < listed) -gt {times} ]; then answers '200 OK' '[]'; else answers '200 OK' '[{{"Id":"gone"}}]'; fi ;;
  *) answers '404 Not Found' '{{"message":"No such container: gone"}}' ;;
  esac
done
"#
        );
        scripted(scratch, &script)
    }

    #[test]
    fn a_container_that_goes_away_between_two_questions_is_no_failure() {
        let ask = |times| {
            let scratch = Scratch::new("client-test").unwrap();
            inspected(
                &with_one_that_goes_away(&scratch, times),
                "shop",
                Deadline::after(Duration::from_secs(20)),
            )
        };
        assert_eq!(ask(3).unwrap(), Vec::<Value>::new());
        // One that is always named and never there.
        let error = format!("{:#}", ask(10_000).unwrap_err());
        assert!(error.contains("No such container") && error.lines().count() == 1, "{error}");
    }
}
