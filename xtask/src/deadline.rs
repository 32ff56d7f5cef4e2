//! Points in time by which something must be over, and the time of day. Everything that can hang is given a deadline.

use std::time::{Duration, Instant, SystemTime};

/// A moment; steps take the nearer of their own limit and the whole budget's end.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now.
    pub fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// So long after `start`.
    pub fn from(start: Instant, limit: Duration) -> Self {
        Self(start + limit)
    }

    /// `limit` from now, but not later than this.
    pub fn within(self, limit: Duration) -> Self {
        Self(self.0.min(Instant::now() + limit))
    }

    /// What is left; zero when it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Has it passed?
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }
}

/// Unix time in milliseconds. For people: nothing is ordered by it.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
