//! Pauses that always end. What uses stored data is paused while the data is copied. Before that, a file in the state
//! folder says what is paused, and a helper, which is a process of this program in a session of its own, stands ready:
//! it undoes the pause when its pipe to us closes, because we ended in whatever way, or when the time is up. What it
//! could not undo, the next command does that takes the lock. Which data is copied and when is decided in
//! `deploy/paused`; how an engine pauses is in its `data`; the helper is started in `helper`. Called by `deploy/paused`,
//! and by `main`, which is the helper.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Mode};
use crate::base::machine;
use crate::engine::helper::{GRACE, READY};
use crate::engine::roles::Kind;
use crate::engine::{compose, process, swarm};
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

const FORMAT: u32 = 1;

/// How long the helper tries to undo a pause, for an engine that does not answer; one try, and the time between two.
const TRIES: Duration = Duration::from_secs(120);
const ONE_TRY: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_millis(200);

/// What is paused, as it is written down before it is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    version: u32,
    /// The engine that knows the handles, by its name.
    pub engine: String,
    /// The data that is copied.
    pub data: String,
    /// What is paused, as the engine finds it.
    pub handles: Vec<String>,
    /// The services that it belongs to.
    pub services: Vec<String>,
}

impl Pause {
    /// A pause for the copy of this data.
    pub fn new(engine: Kind, data: &str, handles: Vec<String>, services: Vec<String>) -> Self {
        let (engine, data) = (engine.as_str().to_owned(), data.to_owned());
        Self { version: FORMAT, engine, data, handles, services }
    }

    /// Where the next pause is written down: under a name that no other has.
    pub fn place(state: &StateDir) -> Result<PathBuf> {
        Ok(state.pauses().join(format!("{}.json", files::random()?)))
    }

    /// Writes it down. It is on disk when this returns.
    pub fn record(&self, path: &Path) -> Result<()> {
        files::write_json(path, self, Mode::Plain)
    }

    /// All that are written down, with their files. A file that another process has just removed is passed over.
    pub fn all(state: &StateDir) -> Result<Vec<(PathBuf, Self)>> {
        let folder = state.pauses();
        let names = files::names(&folder)?.into_iter().filter(|name| !name.starts_with('.'));
        let each = names.map(|name| folder.join(name)).map(|path| Ok((Self::read(&path)?, path)));
        let read: Result<Vec<_>> = each.collect();
        Ok(read?.into_iter().filter_map(|(pause, path)| Some((path, pause?))).collect())
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        let Some(bytes) = files::read_if_there(path)? else { return Ok(None) };
        let pause: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        ensure!(pause.version <= FORMAT, "{} has the newer format {}", path.display(), pause.version);
        Ok(Some(pause))
    }

    /// Is a docker client still about to pause this? It goes on when the command that started it was killed, and what it
    /// pauses then would stay so. A system that does not list its processes does not say.
    fn is_coming(&self) -> bool {
        let pauses = |words: &[String]| {
            // A handle of a Swarm has the way to its node before the id.
            let id = |handle: &String| handle.rsplit(' ').next().unwrap_or_default().to_owned();
            words.iter().any(|word| word == "pause")
                && self.handles.iter().map(id).any(|id| words.contains(&id))
        };
        machine::all().is_ok_and(|all| all.into_iter().any(|process| pauses(&process.words())))
    }

    /// Undoes it without the engine of a stack: the handles are enough.
    pub fn undo(&self, deadline: Deadline) -> Result<()> {
        match Kind::named(&self.engine) {
            Some(Kind::Compose) => compose::data::unpause(Path::new("docker"), &self.handles, deadline),
            Some(Kind::Swarm) => swarm::data::unpause(Path::new("docker"), &self.handles, deadline),
            Some(Kind::Process) => process::data::unpause(&self.handles, deadline),
            None => bail!("the engine {} is unknown", self.engine),
        }
    }
}

/// `xtask unpause FILE LIMIT_MS`: the helper. Hidden from `--help`. Its standard input is the pipe to the process that
/// pauses. It is started before the record is written, so that no record is without a helper.
pub fn help(record: &Path, limit: Duration) -> Result<()> {
    // No signal of the terminal or to the group of the other process ends it.
    rustix::process::setsid().ok();
    let mut out = std::io::stdout();
    // If nobody listens, the other process has ended already, and the pipe says so.
    out.write_all(READY.as_bytes()).and_then(|()| out.flush()).ok();
    let (tell, told) = channel::<()>();
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        drop(tell);
    });
    // Nothing is sent: this ends when the pipe closes or the time is up.
    told.recv_timeout(limit.saturating_add(GRACE)).ok();
    let undone = || {
        let Some(pause) = Pause::read(record)? else { return Ok(()) };
        let is_coming = pause.is_coming();
        pause.undo(Deadline::after(ONE_TRY))?;
        // What that client pauses after this is undone by the next try.
        ensure!(!is_coming, "{} is being paused", pause.data);
        files::remove(record).map(drop)
    };
    Deadline::after(TRIES).poll(BETWEEN, || undone().map_or_else(Continue, Break))
}
