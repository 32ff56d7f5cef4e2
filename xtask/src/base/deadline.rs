//! Deadlines, polling until a deadline, and the time of day. Everything that can hang is given a deadline.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

/// The moment by which something must have ended. A step gets the earlier of its own limit and the end of the
/// run's budget. It can tell which one it is: a step that the budget cut short did not fail by itself.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    budget: bool,
}

impl Deadline {
    /// `limit` from now, as the limit of one action.
    pub fn after(limit: Duration) -> Self {
        Self { at: later(Instant::now(), limit), budget: false }
    }

    /// The end of the budget of a run that began at `start`.
    pub fn from(start: Instant, limit: Duration) -> Self {
        Self { at: later(start, limit), budget: true }
    }

    /// `limit` from now, but not later than this.
    pub fn within(self, limit: Duration) -> Self {
        let own = Self::after(limit);
        if self.at < own.at { self } else { own }
    }

    /// Is this the end of a run's budget, and not the limit of one action?
    pub fn is_budget(self) -> bool {
        self.budget
    }

    /// The time that is left; zero when the deadline has passed.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Has it passed?
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// Calls `ask` until it returns `Break`, and waits for `pause` after each `Continue`. `Continue` carries
    /// the reason; when the deadline has passed, the last reason is the error.
    pub fn poll<T, E>(self, pause: Duration, mut ask: impl FnMut() -> ControlFlow<T, E>) -> Result<T, E> {
        loop {
            match ask() {
                ControlFlow::Break(found) => return Ok(found),
                ControlFlow::Continue(why) if self.passed() => return Err(why),
                ControlFlow::Continue(_) => std::thread::sleep(pause),
            }
        }
    }
}

/// The speed at which bytes are read, written or carried at least, in bytes a second.
const SLOWEST: u64 = 10 << 20;

/// A limit that grows with the number of bytes: `limit` is for none.
pub fn for_bytes(limit: Duration, bytes: u64) -> Duration {
    limit.saturating_add(Duration::from_secs(bytes / SLOWEST))
}

/// `start` plus `limit`. A limit too large for the clock becomes ten years.
fn later(start: Instant, limit: Duration) -> Instant {
    start.checked_add(limit).unwrap_or_else(|| start + Duration::from_secs(10 * 365 * 24 * 3600))
}

/// Unix time in milliseconds. Only to be shown: nothing may be ordered by it, because clocks can jump.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
