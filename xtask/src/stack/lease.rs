//! The lock of a stack at its engine, for clients that do not share a state folder. It is a lease: a record that says
//! who has it and for how long. It is renewed while its holder works. It may be taken over if its time is up by the clock
//! of the engine, or if its holder was a process of this machine that has ended. A takeover puts the next version, makes
//! sure that what it saw before is still there, and only then removes that. So of two clients, one has the lock, in
//! whichever order they do this. Called by `ledger`.

use crate::base::deadline::{Deadline, now, now_ms, time_of_day, utc, wait};
use crate::base::failure::{Exit, fail};
use crate::base::machine::{self, Process};
use crate::base::next::Next;
use crate::base::random::Random;
use crate::stack::shared::Shared;
use crate::stack::shelf::{Kept, Title};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// The name of the record.
const NAME: &str = "lock";

const FORMAT: u32 = 1;

/// How long a lock lasts if nobody says how long the work takes.
pub const USUAL: Duration = Duration::from_secs(60);

/// How much longer it must last than what is done next, and how long it is left alone once its time is up.
const MARGIN: Duration = Duration::from_secs(10);

/// How old the proof that nobody has removed it may be when the next step begins. In memory nothing takes so long.
const FRESH: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };

/// How often the lock is tried for if others try at the same time, and the longest pause after the first try, in
/// milliseconds. It doubles with each: those that are in each other's way must get out of step.
const TRIES: usize = 9;
const STEP: usize = 20;

/// Who has the lock, as its record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    version: u32,
    command: String,
    user: String,
    host: String,
    /// Which processes it could see: those of one boot of one machine, or of one container of it; none if the system
    /// does not say.
    processes: Option<String>,
    process: i32,
    /// With the id, this names one process.
    started: Option<u64>,
    /// When it took the lock, in Unix milliseconds of its own clock.
    since_ms: u64,
    /// How long the lock lasts from when the record was put, in milliseconds.
    lease_ms: u64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, user, host, process, since_ms, .. } = self;
        let since = utc(*since_ms);
        write!(f, "`cargo xtask {command}` of {user}@{host}, process {process}, since {since}")
    }
}

impl Holder {
    fn mine(command: &str, lease: Duration) -> Self {
        let id = i32::try_from(std::process::id()).unwrap_or_default();
        Self {
            version: FORMAT,
            command: command.into(),
            user: machine::person(),
            host: machine::host_name(),
            processes: machine::processes(),
            process: id,
            started: Process::new(id).started(),
            since_ms: now_ms(),
            lease_ms: lease.as_millis() as u64,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let holder: Self = serde_json::from_str(text).context("it is no lock of this tool")?;
        ensure!(holder.version <= FORMAT, "it has the newer format {}", holder.version);
        Ok(holder)
    }

    /// Its process, if this machine can tell what became of it.
    fn process(&self) -> Option<Process> {
        let seen = self.processes.is_some() && self.processes == machine::processes();
        Some(Process::new(self.process)).filter(|_| seen && self.started.is_some())
    }

    /// Has its process ended, as far as this machine can tell?
    fn has_ended(&self) -> bool {
        self.process().is_some_and(|process| process.has_ended() || process.started() != self.started)
    }
}

/// The lock of this process.
#[derive(Debug)]
pub struct Lease {
    kept: Kept,
    holder: Holder,
    asked: Moment,
    /// When it was last seen at the engine.
    seen: Instant,
}

/// A moment by two clocks: one stands still while the machine sleeps, the other may be set.
#[derive(Clone, Copy, Debug)]
struct Moment(Instant, SystemTime);

impl Moment {
    fn now() -> Self {
        Self(now(), time_of_day())
    }

    fn elapsed(self) -> Duration {
        let by_day = time_of_day().duration_since(self.1).unwrap_or_default();
        (now() - self.0).max(by_day)
    }
}

impl Lease {
    fn left(&self) -> Duration {
        Duration::from_millis(self.holder.lease_ms).saturating_sub(self.asked.elapsed())
    }
}

/// The lock of another client, and what may be done about it.
enum Found {
    /// It may be taken over, and why.
    Over(String),
    /// It was given back or renewed since it was seen.
    Gone,
    Held(anyhow::Error),
}

/// The lock of one stack at its engine, as this process has it or asks for it.
#[derive(Debug)]
pub struct EngineLock {
    shared: Arc<Shared>,
    mine: Mutex<Option<Lease>>,
    /// Its records: two while it is renewed. This is never locked while the engine is asked, so a signal can give them back
    /// at any moment.
    records: Mutex<Vec<Kept>>,
    /// The lock could not be taken when it was asked for: for which command, and for how long.
    later: Mutex<Option<(String, Duration)>>,
}

impl EngineLock {
    /// The lock among these records.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, mine: Mutex::default(), records: Mutex::default(), later: Mutex::default() }
    }

    fn records(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mine(&self) -> MutexGuard<'_, Option<Lease>> {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock for `command`, for as long as `need`. Returns what was taken over. The error (exit 5) says who
    /// has it.
    pub fn acquire(&self, command: &str, need: Duration) -> Result<Option<String>> {
        let mut mine = self.mine();
        self.shared.look_within(FRESH)?;
        let time = time_of_day().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut random = Random::new(time.as_nanos() as u64 ^ u64::from(std::process::id()));
        for tries in 0..TRIES {
            let seen = self.shared.every(NAME);
            let (title, over) = match self.shared.newest(NAME) {
                None => (Title::first(NAME), None),
                Some(kept) => match self.judge(&kept)? {
                    Found::Over(why) => (kept.title.next(), Some(why)),
                    Found::Gone => {
                        self.shared.look()?;
                        continue;
                    }
                    Found::Held(error) => return Err(error),
                },
            };
            if let Some(lease) = self.take(&title, Holder::mine(command, need + MARGIN), &seen)? {
                *mine = Some(lease);
                return Ok(over);
            }
            wait(Duration::from_millis(random.below(STEP << tries) as u64));
            self.shared.look()?;
        }
        let what = "several commands try to lock this stack at once";
        Err(fail(Exit::Locked, what, "run this command again"))
    }

    /// Takes the lock when it is needed.
    pub fn acquire_later(&self, command: &str, need: Duration) {
        *self.later.lock().unwrap_or_else(PoisonError::into_inner) = Some((command.to_owned(), need));
    }

    /// Puts the record of a lock in place of those that were seen. None if somebody else did so first.
    fn take(&self, title: &Title, holder: Holder, seen: &[Kept]) -> Result<Option<Lease>> {
        let asked = Moment::now();
        let Some(kept) = self.shared.put(title, &serde_json::to_string(&holder)?, false)? else {
            return Ok(None);
        };
        self.records().push(kept.clone());
        self.shared.look()?;
        let mut all = self.shared.every(NAME);
        all.retain(|other| other.handle != kept.handle);
        let same = all.len() == seen.len() && seen.iter().all(|kept| all.contains(kept));
        if !same {
            self.shared.take_away(std::slice::from_ref(&kept))?;
            self.records().retain(|own| *own != kept);
            return Ok(None);
        }
        self.shared.take_away(seen)?;
        *self.records() = vec![kept.clone()];
        Ok(Some(Lease { kept, holder, asked, seen: now() }))
    }

    fn judge(&self, kept: &Kept) -> Result<Found> {
        let by_hand = || Next::shell(self.shared.shelf.by_hand(kept));
        let holder = match Holder::parse(&kept.text) {
            Ok(holder) => holder,
            Err(error) => {
                let what = format!("this stack is locked by a record that cannot be read: {error:#}");
                let next = by_hand().so("if it is known that nobody works on this stack");
                return Ok(Found::Held(fail(Exit::Locked, what, next)));
            }
        };
        if holder.has_ended() {
            return Ok(Found::Over(format!("the lock of {holder} was taken over: that process has ended")));
        }
        let Some(age) = self.shared.shelf.age(kept, Deadline::after(USUAL))? else { return Ok(Found::Gone) };
        let lasts = Duration::from_millis(holder.lease_ms);
        if age > lasts + MARGIN {
            return Ok(Found::Over(format!(
                "the lock of {holder} was taken over: it was not renewed for {} s",
                age.as_secs()
            )));
        }
        let what = format!("this stack is locked by {holder}");
        let Some(process) = holder.process() else {
            let left = (lasts + MARGIN).saturating_sub(age).as_secs() + 1;
            let what = format!("{what}; if that process has died, its lock can be taken over in {left} s");
            let next = by_hand().so("if it is known that it has died; else wait, and run this command again");
            return Ok(Found::Held(fail(Exit::Locked, what, next)));
        };
        let pid = process.id();
        if process.is_stopped() {
            let what = format!("{what}; it is stopped: let it continue (kill -CONT {pid}), or kill it");
            return Ok(Found::Held(fail(Exit::Locked, what, Next::shell(format!("kill -KILL {pid}")))));
        }
        let next = format!("wait until it has ended, or end it (kill {pid}); then run this command again");
        Ok(Found::Held(fail(Exit::Locked, what, next)))
    }

    /// Makes sure that the lock is still this process's, and that it outlasts what takes `need`. The error (exit 5)
    /// says who has it now.
    pub fn keep(&self, need: Duration) -> Result<()> {
        let later = self.later.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((command, need)) = later {
            self.acquire(&command, need)?;
            *self.later.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let mut mine = self.mine();
        let Some(lease) = mine.as_mut() else {
            let what = "this command has lost the lock of the stack; it stopped where it was";
            return Err(fail(Exit::Locked, what, Next::xtask("status")));
        };
        if lease.left() >= need + MARGIN {
            if now() - lease.seen < FRESH {
                return Ok(());
            }
            self.shared.look()?;
            if self.shared.every(NAME).contains(&lease.kept) {
                lease.seen = now();
                return Ok(());
            }
        } else {
            self.shared.look()?;
        }
        // It ends too soon, or somebody has removed it.
        let seen = self.shared.every(NAME);
        let (was, others) = seen.iter().partition::<Vec<_>, _>(|kept| **kept == lease.kept);
        let renewed = match (others.first(), was.first()) {
            (Some(other), _) => {
                Err(Holder::parse(&other.text).map_or_else(|_| "somebody".into(), |h| h.to_string()))
            }
            (None, was) => {
                let title = was.map_or_else(|| Title::first(NAME), |kept| kept.title.next());
                let holder =
                    Holder { lease_ms: (need + 2 * MARGIN).as_millis() as u64, ..lease.holder.clone() };
                let taken = self.take(&title, holder, &seen)?;
                taken.ok_or_else(|| "somebody who took it at this moment".to_owned())
            }
        };
        match renewed {
            Ok(renewed) => {
                *lease = renewed;
                Ok(())
            }
            Err(who) => {
                (*mine, *self.records()) = (None, Vec::new());
                let what =
                    format!("this command has lost the lock of the stack to {who}; it stopped where it was");
                Err(fail(Exit::Locked, what, Next::xtask("status")))
            }
        }
    }

    /// Renews the lock if more than half of its time is up.
    pub fn renew(&self) -> Result<()> {
        let due = match &*self.mine() {
            Some(lease) => lease.left() * 2 < Duration::from_millis(lease.holder.lease_ms),
            None => false,
        };
        if due { self.keep(USUAL) } else { Ok(()) }
    }

    /// Gives the lock back, and removes what was replaced under it.
    pub fn release(&self) -> Result<()> {
        *self.mine() = None;
        *self.later.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.release_now()
    }

    /// The same while another thread may stand still in the middle of its work.
    pub fn release_now(&self) -> Result<()> {
        let records = std::mem::take(&mut *self.records());
        self.shared.take_away(&records)
    }

    /// Has this process the lock?
    pub fn has_lock(&self) -> bool {
        self.mine().is_some()
    }

    /// Who has the lock, in words; none if nobody has who still works, as far as is known. Asks the engine.
    pub fn holder(&self) -> Result<Option<String>> {
        self.shared.look()?;
        let holder = self.shared.newest(NAME).and_then(|kept| Holder::parse(&kept.text).ok());
        Ok(holder.filter(|holder| !holder.has_ended()).map(|holder| holder.to_string()))
    }
}

/// How often it is asked whether the lock must be renewed.
const RENEWAL: Duration = Duration::from_secs(5);

/// Renews a lock in a thread of its own, until this is dropped.
#[derive(Debug)]
pub struct Renewal {
    over: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Renewal {
    /// Calls `renew` every few seconds. If it fails, it is called again; what begins next finds out what became of the
    /// lock.
    pub fn begin(renew: impl Fn() + Send + 'static) -> Self {
        let (over, ended) = channel();
        let thread = std::thread::spawn(move || {
            while ended.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
                renew();
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.over.send(()).ok();
        self.thread.take().map(JoinHandle::join);
    }
}
