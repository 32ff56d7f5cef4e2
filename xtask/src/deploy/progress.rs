//! Tells how many bytes of stored data were copied or restored so far, once a second as an event. Called by `archives` and `restoring`.

use crate::base::output::Output;
use crate::deploy::event::Event;
use std::io::{Read, Result, Write};
use std::time::{Duration, Instant};

/// The time between two events.
const EVENTS: Duration = Duration::from_secs(1);

/// A stream whose bytes are counted.
pub struct Counted<'a, T> {
    stream: T,
    out: &'a Output,
    what: String,
    bytes: u64,
    told: Instant,
}

impl<'a, T> Counted<'a, T> {
    /// `what` is done with this stream, in words.
    pub fn new(stream: T, out: &'a Output, what: String) -> Self {
        Self { stream, out, what, bytes: 0, told: Instant::now() }
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.told.elapsed() >= EVENTS {
            self.told = Instant::now();
            self.tell();
        }
    }

    fn tell(&self) {
        let (what, bytes, at_ms) = (self.what.as_str(), self.bytes, self.out.elapsed_ms());
        self.out.event(&Event::Bytes { what, bytes, at_ms });
    }
}

impl<T> Drop for Counted<'_, T> {
    fn drop(&mut self) {
        self.tell();
    }
}

impl<T: Read> Read for Counted<'_, T> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let read = self.stream.read(into)?;
        self.count(read);
        Ok(read)
    }
}

impl<T: Write> Write for Counted<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = self.stream.write(bytes)?;
        self.count(written);
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        self.stream.flush()
    }
}
