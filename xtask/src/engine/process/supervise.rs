//! `xtask supervise FILE`: keeps one service running until its process group is killed. Hidden from `--help`:
//! only the process engine starts it, with the locked `alive` file as standard input.

use crate::base::files::{self, Mode};
use crate::engine::process::home::Spec;
use anyhow::Result;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest pause before a service that keeps ending is restarted.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Bytes after which a new log file is begun. One older file is kept.
const LOG_LIMIT: u64 = 5 << 20;

/// Runs the service that the file describes, until the file is removed. If the restart count or the log
/// cannot be written (a full disk), the service is started anyway.
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
        // The service inherits standard input, so it holds the lock too, even after this process has ended.
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

/// The log, opened for appending. If that fails, the output is discarded.
pub fn open_log(path: &Path) -> Stdio {
    files::append(path).map_or_else(|_| Stdio::null(), Stdio::from)
}

fn told<T, E: std::fmt::Debug>(done: Result<T, E>) {
    if let Err(error) = done {
        warn("cannot be written", &format!("{error:?}"));
    }
}

/// Writes a line to the log. If it cannot be written it is lost; `eprintln` would
/// panic and end the supervisor.
fn warn(message: &str, how: &str) {
    let line = serde_json::json!({"level": "WARN", "message": message, "how": how});
    writeln!(std::io::stderr(), "{line}").ok();
}
