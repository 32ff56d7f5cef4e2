//! Calls `docker` and Compose for one project. Every command names the project, or an id that was found by
//! the project's label. There is no prune and no removal by pattern.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::proc::{Cmd, RunError, cmd};
use crate::engine::compose::state::plugin_folders;
use crate::engine::roles::Runtime;
use crate::release::description::{COMPOSE_FILE, ENV_FILE};
use crate::stack::definition::Definition;
use crate::stack::envfile::EnvFile;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// The profile of the compose file that contains prometheus and grafana.
pub const PROFILE: &str = "observability";

/// How often `steady` asks again if an object disappears in between, and the pause before it does.
const ASKED: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(50);

/// Docker Compose for one project.
pub struct Compose {
    /// The stack.
    pub pilot: Pilot,
    /// What the stack is, by the release that has the same manifest; none if it is not known.
    pub definition: Option<Definition>,
    /// Path of the docker client.
    pub docker: PathBuf,
    /// Which Compose is installed; empty until it was needed.
    pub generation: OnceLock<Generation>,
}

/// Which Compose is installed, by its command.
#[derive(Clone, Debug)]
pub enum Generation {
    /// `docker compose`.
    Two,
    /// `docker-compose`.
    One(PathBuf),
}

/// An error if no Docker engine answers. `is_hung` says whether it did not answer in time.
pub fn answers(deadline: Deadline) -> Result<()> {
    let docker = which::which("docker").context("docker is not on the PATH")?;
    cmd(docker, &["version", "--format", "{{.Server.Version}}"]).run(deadline).map(drop)
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

/// The variables that Compose may not get from the shell: those that the env file sets or asks for, because they
/// would win over it, and those that control Compose itself. Those of Docker stay, whatever the file says:
/// without them Compose would change another engine than the one that is asked.
fn removed(shell: impl Iterator<Item = String>, env: &EnvFile) -> Vec<String> {
    let own = shell.filter(|name| name.starts_with("COMPOSE_") || name.starts_with("PILOT_"));
    let named = env.names().filter(|name| !name.starts_with("DOCKER_")).map(str::to_owned);
    own.chain(named).collect()
}

impl Compose {
    /// An error (exit 4) if there is no docker client. Whether the engine answers is not checked here.
    pub fn new(pilot: &Pilot, definition: Option<Definition>) -> Result<Self> {
        let docker = which::which("docker").map_err(|e| {
            let next = "install Docker, or use --engine process (local processes)";
            fail(Exit::Host, format!("the compose engine needs the docker client: {e}"), next)
        })?;
        Ok(Self { pilot: pilot.clone(), definition, docker, generation: OnceLock::new() })
    }

    /// Runs a docker command and returns its output.
    pub fn docker(&self, args: &[&str], deadline: Deadline) -> Result<String> {
        cmd(&self.docker, args).run(deadline).map_err(classify)
    }

    /// Compose 2 if the client has it, else Compose 1. The file of the plugin is searched first, because
    /// asking the client takes a tenth of a second.
    pub fn generation(&self, deadline: Deadline) -> Result<Generation> {
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
                    let next = "install the docker compose plugin, or use --engine process";
                    return Err(fail(Exit::Host, what, next));
                }
            }
        };
        Ok(self.generation.get_or_init(|| found).clone())
    }

    /// The command of the Compose that is installed.
    pub fn compose_command(&self, deadline: Deadline) -> Result<Cmd> {
        Ok(match self.generation(deadline)? {
            Generation::Two => cmd(&self.docker, &["compose"]),
            Generation::One(path) => cmd(path, &[]),
        })
    }

    /// A Compose command on the files in `dir`, with only those variables of the shell that it may get.
    pub fn compose(&self, dir: &Path, deadline: Deadline) -> Result<Cmd> {
        let env_file = dir.join(ENV_FILE);
        let bytes = files::read_if_there(&env_file)?.unwrap_or_default();
        let env = EnvFile::parse(&env_file.display().to_string(), &bytes)?;
        self.can_read(&env, deadline)?;
        let shell = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        Ok(self
            .compose_command(deadline)?
            .args(["--project-name", &self.pilot.project])
            .args(["--file", &dir.join(COMPOSE_FILE).display().to_string()])
            .args(["--env-file", &env_file.display().to_string()])
            .env_remove(removed(shell, &env)))
    }

    /// The docker filter for everything that Compose made for this project.
    pub fn label(&self) -> String {
        format!("label=com.docker.compose.project={}", self.pilot.project)
    }

    /// The option that forbids pulling; nothing for Compose 1, which does not have it.
    pub fn no_pull(&self, deadline: Deadline) -> Result<&'static [&'static str]> {
        Ok(match self.generation(deadline)? {
            Generation::Two => &["--pull", "never"],
            Generation::One(_) => &[],
        })
    }

    /// Ids of the project's containers, also stopped ones, but without one-off containers (`compose run`).
    pub fn containers(&self, deadline: Deadline) -> Result<Vec<String>> {
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

    /// Runs one docker command on all of `names`; nothing if there are none.
    pub fn each(&self, words: &[&str], names: &[String], deadline: Deadline) -> Result<Option<String>> {
        if names.is_empty() {
            return Ok(None);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.docker(&[words, &names].concat(), deadline).map(Some)
    }

    /// For a query of two parts: list the objects, then inspect each. If an object disappears between the
    /// two, as it can during a deployment, the whole query is repeated.
    pub fn steady<T>(&self, deadline: Deadline, ask: impl Fn() -> Result<T>) -> Result<T> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let shell = ["PATH", "COMPOSE_FILE", "PILOT_NETWORK", "DOCKER_HOST", "A"].map(str::to_owned);
        assert_eq!(removed(shell.into_iter(), &env), ["COMPOSE_FILE", "PILOT_NETWORK", "A", "B", "C"]);
    }
}
