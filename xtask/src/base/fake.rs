//! Tests: a clock that moves only when somebody waits, and what happens between two writes to disk. Both are for the
//! whole process, so only a process that does nothing else turns them on: the search for counter-examples.

use std::io::Result;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{OnceLock, RwLock};
use std::time::{Duration, Instant, SystemTime};

static STOPPED: AtomicBool = AtomicBool::new(false);
static BEGAN: OnceLock<(Instant, SystemTime)> = OnceLock::new();
/// How long everybody has waited so far, in nanoseconds.
static WAITED: AtomicU64 = AtomicU64::new(0);
/// By how much the time of day was set to another one, in seconds.
static SET: AtomicI64 = AtomicI64::new(0);

/// Stops the clock of this process. From now on it moves by what is waited.
pub fn stop_the_clock() {
    BEGAN.get_or_init(|| (Instant::now(), SystemTime::now()));
    STOPPED.store(true, Ordering::SeqCst);
}

/// The time by the stopped clock; none if it runs.
pub fn now() -> Option<Instant> {
    let began = STOPPED.load(Ordering::Relaxed).then(|| BEGAN.get())??.0;
    Some(began + Duration::from_nanos(WAITED.load(Ordering::SeqCst)))
}

/// The time of day by the stopped clock; none if it runs.
pub fn time_of_day() -> Option<SystemTime> {
    let began = STOPPED.load(Ordering::Relaxed).then(|| BEGAN.get())??.1;
    let now = began + Duration::from_nanos(WAITED.load(Ordering::SeqCst));
    let set = SET.load(Ordering::SeqCst);
    let by = Duration::from_secs(set.unsigned_abs());
    Some(if set < 0 { now - by } else { now + by })
}

/// Waits by the stopped clock, which takes no time. False if it runs.
pub fn wait(time: Duration) -> bool {
    let stopped = STOPPED.load(Ordering::Relaxed);
    if stopped {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4);
        WAITED.fetch_add(ns, Ordering::SeqCst);
    }
    stopped
}

/// Sets the time of day to another one, by so many seconds; the other clock does not move.
pub fn set_time_of_day(by: i64) {
    SET.fetch_add(by, Ordering::SeqCst);
}

type Hook = dyn Fn(&'static str) -> Result<()> + Send + Sync;

static BETWEEN: RwLock<Option<Box<Hook>>> = RwLock::new(None);

/// What happens before each change to a file from now on. An error is that of the change.
pub fn between_writes(hook: Option<Box<Hook>>) {
    if let Ok(mut between) = BETWEEN.write() {
        *between = hook;
    }
}

/// Called before each change to a file.
pub fn change(what: &'static str) -> Result<()> {
    BETWEEN.read().map_or(Ok(()), |between| between.as_ref().map_or(Ok(()), |hook| hook(what)))
}
