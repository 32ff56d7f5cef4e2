//! Deadlines, polling until a deadline, and the time of day. Everything that can hang is given a deadline.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

/// The moment by which something must have ended. A step gets the earlier of its own limit and the end of the
/// run's budget. It can tell which one it is: a step that the budget cut short did not fail by itself.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    /// How late it may become while bytes are passed on.
    last: Instant,
    /// Is `last` the end of a budget?
    budget: bool,
}

/// Bytes a second that are passed on at least, unless something hangs: a slow disk, or one across a network.
const SLOWEST: u64 = 4 << 20;

impl Deadline {
    /// `limit` from now, as the limit of one action.
    pub fn after(limit: Duration) -> Self {
        Self::at(later(now(), limit), false)
    }

    /// The end of the budget of a run that began at `start`.
    pub fn from(start: Instant, limit: Duration) -> Self {
        Self::at(later(start, limit), true)
    }

    fn at(at: Instant, budget: bool) -> Self {
        Self { at, last: at, budget }
    }

    /// `limit` from now, but not later than this.
    pub fn within(self, limit: Duration) -> Self {
        let own = Self::after(limit).at;
        let last = self.last.min(own);
        Self { at: self.at.min(own), last, budget: self.budget && self.last == last }
    }

    /// `limit` from now, and later the more bytes are passed on (`for_bytes`), but not later than this. So what hangs is
    /// ended after `limit`, and what is only large is not.
    pub fn growing(self, limit: Duration) -> Self {
        Self { at: later(now(), limit).min(self.last), ..self }
    }

    /// The deadline of something that has passed on, or has to pass on, so many bytes.
    pub fn for_bytes(self, bytes: u64) -> Self {
        Self { at: later(self.at, for_bytes(Duration::ZERO, bytes)).min(self.last), ..self }
    }

    /// Is this the end of a run's budget, and not the limit of one action?
    pub fn is_budget(self) -> bool {
        self.budget && self.at == self.last
    }

    /// The time that is left; zero when the deadline has passed.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(now())
    }

    /// The time that is left if it grows as far as it may.
    pub fn longest(self) -> Duration {
        self.last.saturating_duration_since(now())
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
                ControlFlow::Continue(_) => wait(pause),
            }
        }
    }
}

/// The time that deadlines are made from.
pub fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = crate::base::fake::now() {
        return now;
    }
    Instant::now()
}

/// The time of day, which may be set to another one at any moment.
pub fn time_of_day() -> SystemTime {
    #[cfg(test)]
    if let Some(now) = crate::base::fake::time_of_day() {
        return now;
    }
    SystemTime::now()
}

/// Waits.
pub fn wait(time: Duration) {
    #[cfg(test)]
    if crate::base::fake::wait(time) {
        return;
    }
    std::thread::sleep(time);
}

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
    time_of_day().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A Unix time in milliseconds as people read it, in UTC: `2026-11-26T02:11:22Z`.
pub fn utc(ms: u64) -> String {
    // A file may have any number, and this form of a time ends with the year 9999.
    if ms > 253_402_300_799_000 {
        return "an unknown time".into();
    }
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_deadline_grows_with_the_bytes_but_not_past_what_it_was_made_from() {
        let is = |deadline: Deadline, wanted: u64| {
            let left = deadline.left();
            assert!(left <= seconds(wanted) && left > seconds(wanted - 1), "{left:?}, not {wanted} s");
        };
        let budget = Deadline::from(Instant::now(), seconds(100));
        let copy = budget.growing(seconds(10));
        is(copy, 10);
        is(copy.for_bytes(SLOWEST * 20), 30);
        is(copy.for_bytes(u64::MAX), 100);
        assert!(!copy.is_budget() && copy.for_bytes(u64::MAX).is_budget());
        // What has its own limit does not grow past it.
        let paused = copy.within(seconds(15));
        is(paused, 10);
        is(paused.for_bytes(u64::MAX), 15);
        assert!(!paused.for_bytes(u64::MAX).is_budget());
        is(copy.within(seconds(5)).for_bytes(u64::MAX), 5);
        // It grows anew for each action, and what does not grow stays as it is.
        is(copy.for_bytes(u64::MAX).growing(seconds(10)), 10);
        is(Deadline::after(seconds(10)).for_bytes(u64::MAX), 10);
        is(budget.within(seconds(200)), 100);
        assert!(budget.within(seconds(200)).is_budget() && !budget.within(seconds(50)).is_budget());
    }
}
