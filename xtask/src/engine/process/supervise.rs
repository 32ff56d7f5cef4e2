//! `xtask supervise FILE`: keeps one service running until its group is ended. Hidden from `--help`: only
//! `apply` starts it, with the locked `alive` file as standard input.

use crate::base::files;
use crate::base::files::Mode;
use crate::engine::process::home::Spec;
use anyhow::Result;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest pause before a service that ends again and again is started anew.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A log file is begun anew past this size; one older is kept.
const LOG_LIMIT: u64 = 5 << 20;

/// Runs what the file says, until that is gone. What cannot be written beside it (a full disk) is no reason to
/// leave the service down.
pub fn supervise(path: &Path) -> Result<()> {
    let spec: Spec = files::read_json(path)?;
    let restarts = path.with_file_name("restarts");
    let mut pause = Duration::from_millis(100);
    for count in 0u64.. {
        if !path.exists() {
            break;
        }
        told(files::write(&restarts, format!("{count}\n").as_bytes(), Mode::Plain));
        if std::fs::metadata(&spec.log).is_ok_and(|m| m.is_file() && m.len() > LOG_LIMIT) {
            told(std::fs::rename(&spec.log, spec.log.with_extension("1")));
        }
        let started = Instant::now();
        // Standard input is inherited: the service holds the lock too, and outlives us holding it.
        let ended = Command::new(&spec.program)
            .arg(&spec.role)
            .env_clear()
            .envs(&spec.env)
            .stdout(open_log(&spec.log))
            .stderr(open_log(&spec.log))
            .status();
        pause = if started.elapsed() > LONGEST_PAUSE { Duration::from_millis(100) } else { pause };
        warn("service ended", &format!("{ended:?}"));
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// The log, to be added to; nothing is kept where it cannot be written.
pub fn open_log(path: &Path) -> Stdio {
    files::append(path).map_or_else(|_| Stdio::null(), Stdio::from)
}

fn told<T, E: std::fmt::Debug>(done: Result<T, E>) {
    if let Err(error) = done {
        warn("cannot be written", &format!("{error:?}"));
    }
}

/// Into the log; a line that cannot be written is lost, where `eprintln` would end the supervisor.
fn warn(message: &str, how: &str) {
    let line = serde_json::json!({"level": "WARN", "message": message, "how": how});
    writeln!(std::io::stderr(), "{line}").ok();
}
