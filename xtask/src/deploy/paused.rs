//! Copies stored data as it was at one moment: while everything that uses it is paused. A database recovers from such
//! a copy as from a power cut. A pause always ends: it is written down before it begins, a helper undoes it if this
//! process ends or hangs (`engine/pause`), and every command that takes the lock first undoes what is left of
//! others. Called by `backup`, `session` and the drill.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::output::Output;
use crate::engine::pause::Pause;
use crate::engine::roles::{Engine, Use, User};
use crate::stack::state_dir::StateDir;
use anyhow::{Error, Result};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Copies that are made before data is said to be in use all the time: what starts again and again by itself cannot be
/// paused before it runs.
const COPIES: usize = 6;

/// How long undoing a pause may take: also after the deadline of the copy has passed.
const UNDO: Duration = Duration::from_secs(20);

/// How long the users of data may be paused.
#[derive(Clone, Copy, Debug)]
pub enum Longest {
    /// As long as the copy takes: the public is shut out.
    Copy,
    /// This long, because the public is served meanwhile.
    Served(Duration),
}

/// A copy that is to be made.
pub struct Copy<'a> {
    /// The engine that has the data.
    pub engine: &'a dyn Engine,
    /// Where pauses are written down.
    pub state: &'a StateDir,
    /// The data.
    pub data: &'a str,
    /// How long its users may be paused.
    pub longest: Longest,
    /// How long one action may take, copying apart from its size.
    pub limit: Duration,
    /// When it must be ready, whatever its size.
    pub deadline: Deadline,
}

/// What ran while a copy was made, although everything was paused.
type Ran = Vec<String>;

impl Copy<'_> {
    /// Has `make` make the copy while what uses the data is paused, within the deadline that it is given. Returns what
    /// the reader of the copy should know. Errors: something outside the project uses the data; the pause or the copy
    /// failed or took too long. Whatever happens, nothing stays paused.
    pub fn make(&self, make: &mut dyn FnMut(Deadline) -> Result<()>) -> Result<Vec<String>> {
        let mut ran = Ran::new();
        for _ in 0..COPIES {
            let users = self.users()?;
            ran = self.once(&users, make)?;
            if ran.is_empty() {
                let paused = users.iter().filter(|user| user.state == Use::Paused);
                let told = |user: &User| format!("{} was paused already, and stays so", user.name);
                return Ok(paused.map(told).collect());
            }
        }
        let (ran, data) = (ran.join(", "), self.data);
        let what = format!("{ran} ran during each of {COPIES} copies of {data}, so no copy is of one moment");
        Err(fail(
            Exit::NotRestored,
            what,
            Next::xtask("status").so("stop what starts again and again, and run this again"),
        ))
    }

    /// What uses the data; all of it belongs to the project.
    fn users(&self) -> Result<Vec<User>> {
        let users = self.engine.users(self.data, self.deadline.growing(self.limit))?;
        refuse_strangers(self.data, &users)?;
        Ok(users)
    }

    /// One copy. It is none if anything ran meanwhile.
    fn once(&self, users: &[User], make: &mut dyn FnMut(Deadline) -> Result<()>) -> Result<Ran> {
        let running: Vec<&User> = users.iter().filter(|user| user.state == Use::Runs).collect();
        let copying = || self.deadline.growing(self.limit);
        if running.is_empty() {
            return self.unless_it_runs(copying(), make);
        }
        let limited = || match self.longest {
            Longest::Served(limit) => copying().within(limit),
            Longest::Copy => copying(),
        };
        let handles = running.iter().map(|user| user.handle.clone()).collect();
        let services: BTreeSet<String> = running.iter().filter_map(|user| user.service.clone()).collect();
        let services = services.into_iter().collect();
        let pause = Pause::new(self.engine.kind(), self.data, handles, services);
        let record = Pause::place(self.state)?;
        let helper = self.engine.helper(&record, limited().longest())?;
        pause.record(&record)?;
        let (begun, limited) = (Instant::now(), limited());
        let paused = self.engine.pause(&pause.handles, copying());
        let copied = paused.and_then(|()| self.unless_it_runs(limited, make));
        let lasted = begun.elapsed();
        let undone = undo(self.engine, &pause, &record);
        // Only now: it undoes what is still written down.
        drop(helper);
        match (copied, undone, self.longest) {
            (Ok(ran), undone, _) => undone.map(|()| ran),
            (Err(error), Err(undone), _) => {
                Err(undone.context(format!("{error:#}, and the pause could not be undone")))
            }
            (Err(error), Ok(()), Longest::Served(limit)) if lasted >= limit => {
                Err(too_long(self.data, limit, &error))
            }
            (Err(error), Ok(()), _) => Err(error),
        }
    }

    /// Makes a copy if nothing runs, and looks whether anything ran meanwhile.
    fn unless_it_runs(&self, limited: Deadline, make: &mut dyn FnMut(Deadline) -> Result<()>) -> Result<Ran> {
        let before = self.users()?;
        if before.iter().all(|user| user.state != Use::Runs) {
            make(limited)?;
        }
        let ran = |user: &&User| user.state == Use::Runs || !before.contains(user);
        Ok(self.users()?.iter().filter(ran).map(|user| user.name.clone()).collect())
    }
}

/// No copy is of one moment while something writes that is not ours to pause.
fn refuse_strangers(data: &str, users: &[User]) -> Result<()> {
    let strangers: Vec<&str> =
        users.iter().filter(|user| user.service.is_none()).map(|user| user.name.as_str()).collect();
    let Some(first) = strangers.first() else { return Ok(()) };
    let what = format!(
        "the data {data} cannot be copied: {} uses it too and does not belong to this stack, so it is not paused",
        strangers.join(", ")
    );
    Err(fail(Exit::NotRestored, what, Next::shell(format!("docker stop {first}")).so("and run this again")))
}

/// Undoes a pause and removes its record. If that fails, the record stays, and the error says what to do.
fn undo(engine: &dyn Engine, pause: &Pause, record: &std::path::Path) -> Result<()> {
    let deadline = Deadline::after(UNDO);
    let undone = if pause.engine == engine.kind().as_str() {
        engine.unpause(&pause.handles, deadline)
    } else {
        pause.undo(deadline)
    };
    undone.map_err(|error| {
        let what = format!(
            "{} may still be paused after {} was copied: {error:#}",
            pause.services.join(", "),
            pause.data
        );
        fail(
            Exit::Host,
            what,
            Next::xtask("status").so("the next command that changes the stack undoes it first"),
        )
    })?;
    files::remove(record).map(drop)
}

/// Undoes what commands that were killed have left paused. What cannot be undone is told, and does not stop the command.
pub fn undo_all(engine: &dyn Engine, state: &StateDir, out: &Output) {
    let left = match Pause::all(state) {
        Ok(left) => left,
        Err(error) => {
            return out.note(format!("cannot tell what a copy that was cut off has left paused: {error:#}"));
        }
    };
    for (record, pause) in left {
        match undo(engine, &pause, &record) {
            Ok(()) => {
                out.note(format!(
                    "{} was left paused by a copy that was cut off; that is undone",
                    pause.services.join(", ")
                ));
            }
            Err(error) => out.note(format!("{error:#}")),
        }
    }
}

/// The services that are paused at this moment because their data is copied.
pub fn services(state: &StateDir) -> BTreeSet<String> {
    let all = Pause::all(state).unwrap_or_default();
    all.into_iter().flat_map(|(_, pause)| pause.services).collect()
}

/// A copy that took longer than the public may wait, with the ways out.
fn too_long(data: &str, limit: Duration, error: &Error) -> Error {
    let limit = humantime::format_duration(limit);
    let what = format!(
        "the copy of {data} was not ready within {limit}, which is how long its users may be paused while the public is \
         served (`pause_max`); the pause is undone, and there is no copy: {error:#}"
    );
    let next = Next::xtask("kill-switch on").so(
        "to shut the public out, then run this again; or set a longer `pause_max` under [data] in pilot.toml",
    );
    fail(Exit::NotRestored, what, next)
}
