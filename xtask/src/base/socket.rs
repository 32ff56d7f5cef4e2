//! A connection to a server of this machine at its socket, with a deadline. Called by `engine/compose/api`.

use crate::base::deadline::Deadline;
use crate::base::pipe::Pipe;
use crate::base::proc::late;
use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The pause before a server is asked again whose queue is full.
const AGAIN: Duration = Duration::from_millis(20);

/// A connection.
pub struct Socket {
    path: PathBuf,
    to: Pipe<UnixStream>,
    from: Pipe<UnixStream>,
}

impl Socket {
    /// Errors: nobody listens there, or its queue was full until the deadline (`RunError::Deadline`).
    pub fn connect(path: &Path, deadline: Deadline) -> Result<Self> {
        let what = || format!("failed to connect to unix://{}", path.display());
        let address = SocketAddrUnix::new(path).with_context(what)?;
        let tried = deadline.poll(AGAIN, || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let made = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            match made.and_then(|socket| connect(&socket, &address).map(|()| socket)) {
                Err(Errno::AGAIN) => Continue(()),
                other => Break(other),
            }
        });
        let Ok(made) = tried else {
            return Err(late(deadline, format!("{}: its queue was full", what())));
        };
        let to = UnixStream::from(made.with_context(what)?);
        let from = to.try_clone().with_context(what)?;
        Ok(Self {
            path: path.to_owned(),
            to: Pipe::new(to, deadline).with_context(what)?,
            from: Pipe::new(from, deadline).with_context(what)?,
        })
    }

    /// `talk` writes to the server and reads its answers. Errors: it did not answer before the deadline
    /// (`RunError::Deadline`), and that of `talk`. After one nothing more can be said.
    pub fn part<T>(
        &mut self,
        deadline: Deadline,
        talk: impl FnOnce(&mut dyn Write, &mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        self.to.until(deadline);
        self.from.until(deadline);
        talk(&mut self.to, &mut self.from).map_err(|error| {
            let server = format!("unix://{}", self.path.display());
            let cause = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
            match cause.map(std::io::Error::kind) {
                Some(ErrorKind::TimedOut) => late(deadline, format!("{server} did not answer in time")),
                Some(ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    error.context(format!("{server} ended the connection"))
                }
                _ => error,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::files::Scratch;
    use crate::base::proc::RunError;
    use std::os::unix::net::UnixListener;

    fn limit(milliseconds: u64) -> Deadline {
        Deadline::after(Duration::from_millis(milliseconds))
    }

    fn is_late<T>(result: Result<T>) -> bool {
        result.is_err_and(|error| matches!(error.downcast_ref(), Some(RunError::Deadline(_))))
    }

    #[test]
    fn a_server_that_takes_no_connection_or_gives_no_answer_costs_no_more_than_the_deadline() {
        let scratch = Scratch::new("socket-test").unwrap();
        let path = scratch.path().join("s");
        let error = Socket::connect(&path, limit(5_000)).err().unwrap();
        assert!(format!("{error:#}").contains(&path.display().to_string()), "{error:#}");
        let listener = UnixListener::bind(&path).unwrap();
        let mut first = Socket::connect(&path, limit(5_000)).unwrap();
        let read = |socket: &mut Socket, deadline| {
            socket.part(deadline, |to, from| {
                to.write_all(b"ping")?;
                let mut answer = [0; 4];
                from.read_exact(&mut answer)?;
                Ok(answer)
            })
        };
        assert!(is_late(read(&mut first, limit(100))));
        // Nobody takes these. How many wait in the queue is the kernel's choice.
        rustix::net::listen(&listener, 1).unwrap();
        let mut waiting = Vec::new();
        let refused = (0..100).find_map(|_| match Socket::connect(&path, limit(100)) {
            Ok(socket) => {
                waiting.push(socket);
                None
            }
            Err(error) => Some(error),
        });
        assert!(is_late::<()>(Err(refused.expect("the queue has an end"))));
        // One that goes away is an error of its own.
        drop(listener);
        let error = read(&mut first, limit(5_000)).unwrap_err();
        assert!(!is_late::<()>(Err(error)));
    }
}
