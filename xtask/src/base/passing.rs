//! A stream whose bytes are shown while they pass: of an image that is saved or loaded, of a file that is packed. It writes no
//! event; `deploy/progress` does that for stored data. Called by `engine/carry` and `release/export`.

use crate::base::files::human;
use crate::base::screen::{Doer, doing};
use std::io::Read;
use std::time::{Duration, Instant};

/// The time between two figures.
const PAUSE: Duration = Duration::from_millis(100);

/// Says how many bytes of this stream have passed, and of how many.
pub struct Passing<R> {
    stream: R,
    doer: Doer,
    passed: u64,
    all: Option<u64>,
    told: Instant,
}

impl<R> Passing<R> {
    /// `what` is done with this stream, which has `all` bytes if that is known.
    pub fn new(stream: R, what: impl Into<String>, all: Option<u64>) -> Self {
        Self { stream, doer: doing(what), passed: 0, all, told: Instant::now() }
    }
}

impl<R: Read> Read for Passing<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stream.read(into)?;
        self.passed += read as u64;
        if self.told.elapsed() >= PAUSE {
            self.told = Instant::now();
            let all = self.all.map(|all| format!(" of {}", human(all))).unwrap_or_default();
            self.doer.detail(human(self.passed) + &all);
        }
        Ok(read)
    }
}
