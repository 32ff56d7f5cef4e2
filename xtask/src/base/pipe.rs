//! Our end of a pipe to or from a child, or of a connection, with a deadline: a child or a server that hangs, or a
//! grandchild that holds the other end open, cannot keep us waiting. Made by `proc` and `socket`.

use crate::base::deadline::Deadline;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::AsFd;
use std::time::Duration;

/// The longest single wait.
const PART: Duration = Duration::from_secs(3600);

/// One end of a pipe or of a connection. Reading and writing fail with `TimedOut` once the deadline has passed.
pub struct Pipe<T> {
    end: T,
    deadline: Deadline,
    passed: u64,
}

impl<T: AsFd> Pipe<T> {
    /// The other end is not affected.
    pub fn new(end: T, deadline: Deadline) -> Result<Self> {
        fcntl_setfl(&end, fcntl_getfl(&end)? | OFlags::NONBLOCK)?;
        Ok(Self { end, deadline, passed: 0 })
    }

    /// From now on another deadline holds.
    pub fn until(&mut self, deadline: Deadline) {
        (self.deadline, self.passed) = (deadline, 0);
    }

    /// The deadline, which may have grown with the bytes that were passed on.
    pub fn deadline(&self) -> Deadline {
        self.deadline.for_bytes(self.passed)
    }

    fn wait(&self, until: PollFlags) -> Result<()> {
        loop {
            let late = || Error::new(ErrorKind::TimedOut, "it took longer than allowed");
            // A time that is too long for the system is waited for in parts.
            let left = self.deadline().left().min(PART);
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.end, until)], Some(&left)) {
                Ok(0) if self.deadline().passed() => return Err(late()),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<T: AsFd + Read> Read for Pipe<T> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        loop {
            match self.end.read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                other => return other.inspect(|bytes| self.passed += *bytes as u64),
            }
        }
    }
}

impl<T: AsFd + Write> Write for Pipe<T> {
    fn write(&mut self, from: &[u8]) -> Result<usize> {
        loop {
            match self.end.write(from) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                other => return other.inspect(|bytes| self.passed += *bytes as u64),
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.end.flush()
    }
}
