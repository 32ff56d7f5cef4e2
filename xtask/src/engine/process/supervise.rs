//! `xtask supervise FILE`: keeps one service running until its group is ended. Hidden from `--help`: only
//! `apply` starts it, with the locked `alive` file as standard input.

use super::Spec;
use crate::files::{self, Mode};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest pause before a service that ends again and again is started anew.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A log file is begun anew past this size; one older is kept.
const LOG_LIMIT: u64 = 5 << 20;

/// Runs what the file says.
pub fn supervise(path: &Path) -> Result<()> {
    let spec: Spec = files::read_json(path)?;
    let restarts = path.with_file_name("restarts");
    let mut pause = Duration::from_millis(100);
    for count in 0u64.. {
        files::write(&restarts, format!("{count}\n").as_bytes(), Mode::Plain)?;
        if std::fs::metadata(&spec.log).is_ok_and(|m| m.len() > LOG_LIMIT) {
            std::fs::rename(&spec.log, spec.log.with_extension("1")).context("cannot turn the log over")?;
        }
        let log = File::options().create(true).append(true).open(&spec.log).context("cannot open the log")?;
        let started = Instant::now();
        // Standard input is inherited: the service holds the lock too, and outlives us holding it.
        let ended = Command::new(&spec.program)
            .arg(&spec.role)
            .env_clear()
            .envs(&spec.env)
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            .status();
        pause = if started.elapsed() > LONGEST_PAUSE { Duration::from_millis(100) } else { pause };
        eprintln!(
            "{}",
            serde_json::json!({"level": "WARN", "message": "service ended", "how": format!("{ended:?}")})
        );
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}
