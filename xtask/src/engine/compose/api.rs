//! Asks a Docker engine through its API: at its socket, or where that is of another machine, over the docker client, by
//! whatever way that reaches it (TCP with TLS, ssh): `docker system dial-stdio` passes on what it reads. The API takes and
//! gives whole objects with their versions, which the commands of the client do not, and an answer takes less time than the
//! client takes to start. Called by the other files of `compose`, and by `swarm`.

use crate::base::deadline::Deadline;
use crate::base::proc::{Talk, cmd};
use crate::base::socket::Socket;
use crate::engine::compose::line::{Line, Refused, status_of};
use anyhow::Result;
use serde_json::Value;
use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The version of the API that is asked for where the engine speaks it: that of Docker 20.10. The oldest one of Docker 29.0 is
/// 1.44.
const VERSION: Version = (1, 41);

/// A version of the API.
type Version = (u32, u32);

/// The way to a Docker engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Options of the docker client before each command; none for the engine that the client goes to by itself.
    pub options: Vec<String>,
    /// The socket of the engine, if it is one of this machine.
    socket: Option<PathBuf>,
}

impl Way {
    /// To the engine that the client goes to by itself, which has this address.
    pub fn own(address: &str) -> Self {
        Self { options: Vec::new(), socket: address.strip_prefix("unix://").map(PathBuf::from) }
    }

    /// Through a context of the client, with the address that it has.
    pub fn context(name: &str, address: &str) -> Self {
        Self { options: vec!["--context".into(), name.into()], ..Self::own(address) }
    }

    /// Do both lead to the same socket of this machine?
    pub fn is_same_engine(&self, other: &Self) -> bool {
        self.socket.is_some() && self.socket == other.socket
    }

    /// By these options alone, over the client.
    pub fn with(options: &[String]) -> Self {
        Self { options: options.to_vec(), socket: None }
    }
}

/// As a part of a command that can be pasted.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("docker")?;
        self.options.iter().try_for_each(|word| write!(f, " {word}"))
    }
}

/// How long a connection is kept that nobody uses. An older one may be dead without our knowing it.
const KEPT: Duration = Duration::from_secs(5);

/// Connections for the next questions: to make one takes longer than most answers.
#[derive(Default)]
pub struct Lines {
    idle: Mutex<Vec<(Way, Instant, Carrier)>>,
    /// The versions of the engines that refused `VERSION`.
    versions: Mutex<Vec<(Way, Version)>>,
}

/// What carries questions and answers.
enum Carrier {
    Socket(Socket),
    Client(Box<Talk>),
}

impl Carrier {
    fn part<T>(
        &mut self,
        deadline: Deadline,
        talk: impl FnOnce(&mut dyn Write, &mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::Socket(socket) => socket.part(deadline, talk),
            Self::Client(client) => client.part(deadline, talk),
        }
    }
}

impl Lines {
    fn take(&self, way: &Way) -> Option<Carrier> {
        let mut all = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, used, _)| used.elapsed() < KEPT);
        let at = all.iter().position(|(to, ..)| to == way)?;
        Some(all.swap_remove(at).2)
    }

    fn keep(&self, way: &Way, line: Carrier) {
        let mut all = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((way.clone(), Instant::now(), line));
    }

    fn version(&self, way: &Way) -> Version {
        let all = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(to, _)| to == way).map_or(VERSION, |(_, version)| *version)
    }

    fn note_version(&self, way: &Way, version: Version) {
        let mut all = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(to, _)| to != way);
        all.push((way.clone(), version));
    }
}

/// A Docker engine.
#[derive(Clone)]
pub struct Api {
    /// Path of the docker client.
    pub docker: PathBuf,
    /// Which engine.
    pub way: Way,
    /// The connections of this command.
    pub lines: Arc<Lines>,
}

impl Api {
    /// Several questions over one connection: one that is left from before, or a new one. They are asked again over a new
    /// one if the engine has ended that from before, and in another version of the API if the engine refuses this one.
    pub fn talk<T>(&self, deadline: Deadline, talk: impl Fn(&mut Line<'_>) -> Result<T>) -> Result<T> {
        let version = self.lines.version(&self.way);
        match self.talk_in(&prefix(version), deadline, &talk) {
            // The engine is not asked before: that takes it longer than most answers (it starts two programs).
            Err(error) if is_other_version(&error) => {
                let told = self.talk_in("", deadline, &|line: &mut Line<'_>| line.get("/version"))?;
                let spoken = spoken(&told);
                if spoken == version {
                    return Err(error);
                }
                self.lines.note_version(&self.way, spoken);
                self.talk_in(&prefix(spoken), deadline, &talk)
            }
            other => other,
        }
    }

    fn talk_in<T>(
        &self,
        version: &str,
        deadline: Deadline,
        talk: &impl Fn(&mut Line<'_>) -> Result<T>,
    ) -> Result<T> {
        if let Some(kept) = self.lines.take(&self.way) {
            match self.talk_over(kept, version, deadline, talk) {
                Err(error) if status_of(&error).is_none() && !deadline.passed() => {}
                other => return other,
            }
        }
        self.talk_over(self.connected(deadline)?, version, deadline, talk)
    }

    /// A new connection.
    fn connected(&self, deadline: Deadline) -> Result<Carrier> {
        Ok(match &self.way.socket {
            Some(path) => Carrier::Socket(Socket::connect(path, deadline)?),
            None => {
                let dial = cmd(&self.docker, &[]).args(&self.way.options).args(["system", "dial-stdio"]);
                Carrier::Client(Box::new(dial.talk(deadline)?))
            }
        })
    }

    fn talk_over<T>(
        &self,
        mut over: Carrier,
        version: &str,
        deadline: Deadline,
        talk: &impl Fn(&mut Line<'_>) -> Result<T>,
    ) -> Result<T> {
        let answer = over.part(deadline, |to, from| {
            match talk(&mut Line::new(to, from, version)) {
                Err(error) if status_of(&error).is_none() => Err(error),
                // A refusal was read to its end, as any other answer.
                answer => Ok(answer),
            }
        })?;
        self.lines.keep(&self.way, over);
        answer
    }

    /// One question.
    pub fn get(&self, path: &str, deadline: Deadline) -> Result<Value> {
        self.talk(deadline, |line| line.get(path))
    }

    /// Does the engine answer? This takes it the least time of all questions.
    pub fn ping(&self, deadline: Deadline) -> Result<()> {
        self.talk(deadline, |line| line.ping())
    }
}

/// What a path begins with in this version of the API.
fn prefix((major, minor): Version) -> String {
    format!("/v{major}.{minor}")
}

/// Did the engine refuse the version of the API? `client version 1.41 is too old`, or too new (moby, `middleware/version.go`).
fn is_other_version(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|refused: &Refused| {
        refused.status == 400 && refused.message.starts_with("client version ")
    })
}

/// Which version is spoken with an engine that says this of itself (`GET /version`).
fn spoken(told: &Value) -> Version {
    let version = |name: &str| -> Option<Version> {
        let (major, minor) = told[name].as_str()?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let oldest = version("MinAPIVersion").unwrap_or(VERSION);
    VERSION.min(version("ApiVersion").unwrap_or(VERSION)).max(oldest)
}

/// Does nobody answer there? In the words of `socket`, and of the docker client, with a connection of its own, through
/// `dial-stdio`, and through ssh.
pub fn is_gone(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    [
        "Cannot connect to the Docker daemon",
        "error during connect",
        "failed to connect",
        "failed to open the raw stream connection",
        "stderr=ssh: ",
        " ended the connection",
    ]
    .iter()
    .any(|mark| text.contains(mark))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::base::files::{self, Mode, Scratch};
    use serde_json::json;
    use std::io::{BufRead, BufReader};

    /// A docker client that is a script of the shell, in a folder that has what it notes. `asks` reads a question, and
    /// `answers STATUS BODY` answers it.
    pub fn scripted(scratch: &Scratch, script: &str) -> Api {
        let docker = scratch.path().join("docker");
        let script = format!(
            r#"#!/bin/sh
cd {}
asks() {{
  read -r asked || exit
  while read -r line && [ ${{#line}} -gt 1 ]; do case "$line" in Content-Length:*) length=$(echo "${{line#*: }}" | tr -d '\r') ;; esac; done
  head -c "$length" >/dev/null
}}
answers() {{ printf 'HTTP/1.1 %s\r\nContent-Length: %s\r\n\r\n%s' "$1" ${{#2}} "$2"; }}
{script}"#,
            scratch.path().display()
        );
        files::write(&docker, script.as_bytes(), Mode::Program).unwrap();
        Api { docker, way: Way::default(), lines: Arc::default() }
    }

    /// A docker client that notes each of its starts and what it is asked, and answers so many requests, as an engine that
    /// speaks no version before 1.44.
    fn client(scratch: &Scratch, answers: u32) -> Api {
        let script = format!(
            r#"echo start >> starts
for _ in $(seq {answers}); do
  asks
  echo "$asked" >> asked
  case "$asked" in
  *" /v1.41/"*) answers '400 Bad Request' '{{"message":"client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade your client to a newer version"}}' ;;
  *) answers '200 OK' '{{"MinAPIVersion": "1.44"}}' ;;
  esac
done
"#
        );
        scripted(scratch, &script)
    }

    #[test]
    fn a_connection_serves_the_next_question_and_one_that_has_ended_is_made_anew() {
        let limit = || Deadline::after(Duration::from_secs(20));
        let noted = |scratch: &Scratch, what: &str| files::read_text(&scratch.path().join(what)).unwrap();
        // Two answers before the first one: that it does not speak our version, and which one it speaks.
        for (answers, starts) in [(5, 1), (2, 3), (3, 2)] {
            let scratch = Scratch::new("api-test").unwrap();
            let api = client(&scratch, answers);
            for _ in 0..3 {
                api.get("/info", limit()).unwrap();
            }
            assert_eq!(noted(&scratch, "starts").lines().count(), starts, "{answers} answers");
            let asked = noted(&scratch, "asked");
            assert_eq!(asked.matches("GET /v1.41/info HTTP").count(), 1, "{asked}");
            assert_eq!(asked.matches("GET /version HTTP").count(), 1, "{asked}");
            assert_eq!(asked.matches("GET /v1.44/info HTTP").count(), 3, "{asked}");
        }
        // Not to another engine.
        let scratch = Scratch::new("api-test").unwrap();
        let api = client(&scratch, 9);
        api.get("/info", limit()).unwrap();
        Api { way: Way::context("node2", "ssh://node2"), ..api.clone() }.get("/info", limit()).unwrap();
        assert_eq!(noted(&scratch, "starts").lines().count(), 2);
        // An engine that never answers is asked once.
        let scratch = Scratch::new("api-test").unwrap();
        let silent = client(&scratch, 0);
        let script = format!("#!/bin/sh\necho start >> {}/starts\nexec sleep 60\n", scratch.path().display());
        files::write(&silent.docker, script.as_bytes(), Mode::Program).unwrap();
        assert!(silent.get("/info", Deadline::after(Duration::from_millis(800))).is_err());
        assert_eq!(noted(&scratch, "starts").lines().count(), 1);
    }

    #[test]
    fn an_engine_of_this_machine_is_asked_at_its_socket_and_no_client_is_started() {
        let scratch = Scratch::new("api-test").unwrap();
        let path = scratch.path().join("engine");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut to, from) = listener.accept().map(|(one, _)| (one.try_clone().unwrap(), one)).unwrap();
            let mut ends = BufReader::new(from).lines().map_while(Result::ok).filter(|line| line.is_empty());
            ends.next().unwrap();
            to.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}").unwrap();
        });
        let way = Way::context("node1", &format!("unix://{}", path.display()));
        let api = Api { way, ..client(&scratch, 9) };
        assert_eq!(api.get("/info", Deadline::after(Duration::from_secs(20))).unwrap()["a"], 1);
        assert!(!scratch.path().join("starts").exists());
        server.join().unwrap();
    }

    #[test]
    fn the_version_is_one_that_the_engine_still_speaks() {
        let told =
            |oldest: &str, newest: &str| spoken(&json!({ "MinAPIVersion": oldest, "ApiVersion": newest }));
        assert_eq!([told("1.12", "1.41"), told("1.24", "1.45"), told("new", "?")], [VERSION; 3]);
        assert_eq!([told("1.44", "1.52"), told("2.0", "2.1")], [(1, 44), (2, 0)]);
        assert_eq!(told("1.12", "1.40"), (1, 40));
        assert_eq!(spoken(&Value::Null), VERSION);
    }
}
