//! The kill switch: `open` or `closed`, kept on disk, so that a gateway that is restarted or replaced comes
//! up as it was. Running streams watch it. The command `gate` changes the file for a gateway that is down. A
//! file that cannot be read means closed: if the position is unknown, no request is let in.

use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tokio::sync::watch;

const FORMAT: u32 = 1;

/// The position: the content of the file, and the answer to `GET /admin/kill-switch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    version: u32,
    /// True: requests are refused.
    pub closed: bool,
    /// Why it is closed; empty if it is open.
    pub reason: String,
    /// Unix time in milliseconds of the last change.
    pub since_ms: u64,
}

impl Position {
    fn new(closed: bool, reason: &str) -> Self {
        let since_ms =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        Self { version: FORMAT, closed, reason: reason.to_owned(), since_ms }
    }

    /// The message for a refused client.
    pub fn refusal(&self) -> String {
        format!("Kill switch active: {}", self.reason)
    }
}

/// The gate of a running gateway.
pub struct Gate {
    path: PathBuf,
    position: watch::Sender<Position>,
}

impl Gate {
    /// Reads the position from disk. `forced` (`GLOBAL_KILL_SWITCH=true`) closes the
    /// gate whatever the file says.
    pub fn load(data: &Path, forced: bool) -> Self {
        let path = file(data);
        let position = match read(&path) {
            _ if forced => Position::new(true, "GLOBAL_KILL_SWITCH is true"),
            Ok(Some(position)) => position,
            Ok(None) => Position::new(false, ""),
            Err(error) => {
                tracing::error!(error, "gate file unreadable, staying closed");
                Position::new(true, "gate file unreadable")
            }
        };
        Self { path, position: watch::Sender::new(position) }
    }

    /// The present position.
    pub fn position(&self) -> Position {
        self.position.borrow().clone()
    }

    /// A receiver for streams, which wakes at each change.
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Closes or opens the gate. If the file cannot be written, closing takes effect
    /// anyway, and opening does not.
    pub fn set(&self, closed: bool, reason: &str) -> Result<Position, String> {
        let position = Position::new(closed, if closed { reason } else { "" });
        if closed {
            self.position.send_replace(position.clone());
        }
        write(&self.path, &position)?;
        self.position.send_replace(position.clone());
        Ok(position)
    }
}

/// Waits until the gate is closed. Returns the reason for the client of a running stream.
pub async fn closed(watch: &mut watch::Receiver<Position>) -> String {
    match watch.wait_for(|position| position.closed).await {
        Ok(position) => position.refusal(),
        Err(_) => "gateway stopping".into(),
    }
}

/// `scenario gate close REASON | open | status`: reads or changes the file in the data
/// folder of this container.
pub fn run_command(words: &[&str]) -> Result<(), String> {
    let data = std::env::var("SCENARIO_DATA").unwrap_or_else(|_| "/data".into());
    let path = file(Path::new(&data));
    match words {
        ["close", reason] => write(&path, &Position::new(true, reason))?,
        ["open"] => write(&path, &Position::new(false, ""))?,
        ["status"] => {}
        _ => return Err("usage: scenario gate close REASON|open|status".into()),
    }
    let position = read(&path)?.unwrap_or_else(|| Position::new(false, ""));
    println!("{}", if position.closed { "closed" } else { "open" });
    Ok(())
}

fn file(data: &Path) -> PathBuf {
    data.join("gate.json")
}

fn read(path: &Path) -> Result<Option<Position>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
    };
    let position: Position =
        serde_json::from_str(&text).map_err(|e| format!("cannot understand {}: {e}", path.display()))?;
    if position.version > FORMAT {
        return Err(format!("{} has the newer format {}", path.display(), position.version));
    }
    Ok(Some(position))
}

fn write(path: &Path, position: &Position) -> Result<(), String> {
    let said = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    let text = serde_json::to_string(position).map_err(|e| e.to_string())?;
    let temporary = path.with_extension("json.new");
    let mut out = std::fs::File::create(&temporary).map_err(said)?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(said)?;
    std::fs::rename(&temporary, path).map_err(said)?;
    // Only now is it as it says after a power cut too.
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("scenario-gate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_replaced_gateway_comes_up_as_it_was() {
        let data = folder("kept");
        Gate::load(&data, false).set(true, "maintenance").unwrap();
        let again = Gate::load(&data, false).position();
        assert!(again.closed);
        assert_eq!(again.reason, "maintenance");
        std::fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn an_unreadable_file_means_closed() {
        let data = folder("noise");
        std::fs::write(file(&data), b"\xff\xfenoise").unwrap();
        assert!(Gate::load(&data, false).position().closed);
        std::fs::write(file(&data), r#"{"version":99,"closed":false,"reason":"","since_ms":0}"#).unwrap();
        assert!(Gate::load(&data, false).position().closed);
        std::fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn opening_needs_the_disk_and_closing_does_not() {
        let gate = Gate::load(Path::new("/nonexistent/folder"), false);
        assert!(gate.set(true, "test").is_err());
        assert!(gate.position().closed);
        assert!(gate.set(false, "").is_err());
        assert!(gate.position().closed);
    }
}
