//! Starts the helper process that undoes a pause when this process ends or hangs, and waits until it stands ready. What
//! the helper does is in `pause`. Called by `deploy/paused`, through the role `Data`.

use crate::base::deadline::Deadline;
use crate::base::machine;
use anyhow::{Context, Result, bail};
use std::io::Read;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

/// What the helper says when it stands ready.
pub const READY: &str = "ready\n";

/// How much longer than the pause the helper waits: we undo it by ourselves, unless we hang.
pub const GRACE: Duration = Duration::from_secs(1);

/// How long the helper may take until it stands ready.
const BEGINS: Duration = Duration::from_secs(10);

/// A helper that stands ready. When this is dropped, it undoes what is still written down, and ends.
pub struct Helper(Child);

impl Helper {
    /// Starts a helper for the pause that will be written down here. It stands ready when this returns, and undoes the
    /// pause when `limit` and a moment have passed.
    pub fn start(record: &Path, limit: Duration) -> Result<Self> {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let helper = Command::new(machine::this_program()?)
            .arg("unpause")
            .arg(record)
            .arg(limit_ms.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut helper = Self(helper.context("cannot start the helper that ends a pause")?);
        let mut out = helper.0.stdout.take().context("the helper has no output")?;
        let (tell, told) = channel();
        // Its end closes the pipe, so this thread ends with it.
        std::thread::spawn(move || {
            let mut said = [0; READY.len()];
            tell.send(out.read_exact(&mut said).is_ok_and(|()| said == *READY.as_bytes())).ok();
        });
        if told.recv_timeout(BEGINS) != Ok(true) {
            helper.0.kill().ok();
            bail!("the helper that ends a pause did not start");
        }
        Ok(helper)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It has nothing left to do, unless the pause could not be undone: then it goes on without us.
        let ended = || match self.0.try_wait() {
            Ok(None) => Continue(()),
            _ => Break(()),
        };
        Deadline::after(GRACE).poll(Duration::from_millis(2), ended).ok();
    }
}
