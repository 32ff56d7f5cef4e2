//! Points in time by which something must be over, and the time of day. Everything that can hang is given a deadline.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

/// A moment; steps take the nearer of their own limit and the whole budget's end, and know which it was:
/// what a budget cut short has not failed by itself.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    budget: bool,
}

impl Deadline {
    /// So long from now, as the limit of one thing.
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

    /// Is it a budget that ends here, and not the limit of one thing?
    pub fn is_budget(self) -> bool {
        self.budget
    }

    /// What is left; zero when it has passed.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Has it passed?
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// Asks until something comes of it (`Break`), with a pause after each time that nothing has (`Continue`, with
    /// why). When this has passed, the last reason is the error.
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

/// A limit past the end of the clock is one that nobody lives to see: ten years do.
fn later(start: Instant, limit: Duration) -> Instant {
    start.checked_add(limit).unwrap_or_else(|| start + Duration::from_secs(10 * 365 * 24 * 3600))
}

/// Unix time in milliseconds. For people: nothing is ordered by it.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
