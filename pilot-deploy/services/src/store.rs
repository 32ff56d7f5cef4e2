//! The SQLite database of one service, on its volume. A file that fails its check is reported by `healthz`
//! and is not changed: the service keeps running to report it, and the rollback decides what to do.

use rusqlite::Connection;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long the result of a check of the store is used.
const FRESH: Duration = Duration::from_millis(50);

/// When the store was checked, and what was wrong with it.
type Look = (Instant, Option<String>);

/// The database of a role, or the reason why it cannot be used.
#[derive(Clone)]
pub struct Store {
    path: PathBuf,
    inner: Result<Arc<Mutex<Connection>>, String>,
    looked: Arc<Mutex<Option<Look>>>,
}

impl Store {
    /// Opens `data/file`, checks it and creates the tables of `schema` (idempotent SQL).
    pub fn open(data: &Path, file: &str, schema: &str) -> Self {
        let path = data.join(file);
        let opened = open(&path, schema);
        if let Err(error) = &opened {
            tracing::error!(error, "store unusable");
        }
        Self { path, inner: opened.map(|db| Arc::new(Mutex::new(db))), looked: Arc::default() }
    }

    /// Why the store cannot be used; nothing if it can. It checks the file again, so that `healthz` also
    /// reports a database that was overwritten under a running service. All requests within `FRESH` share one
    /// check, so that many requests do not slow down the store.
    pub async fn trouble(&self) -> Option<String> {
        let mut looked = self.looked.lock().await;
        if let Some((at, trouble)) = &*looked
            && at.elapsed() < FRESH
        {
            return trouble.clone();
        }
        let trouble = self.look().await;
        *looked = Some((Instant::now(), trouble.clone()));
        trouble
    }

    async fn look(&self) -> Option<String> {
        let path = self.path.clone();
        let header = self.call(move |_| Ok(header_trouble(&path))).await;
        if let Some(trouble) = header.unwrap_or_else(Some) {
            return Some(trouble);
        }
        self.call(|db| db.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0)))
            .await
            .map_or_else(Some, |word| (word != "ok").then(|| format!("store corrupt: {word}")))
    }

    /// Runs `work` on the database, outside the event loop, in the order of the calls. A call that waits
    /// for its turn uses no thread.
    pub async fn call<T, F>(&self, work: F) -> Result<T, String>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let mut db = self.inner.clone()?.lock_owned().await;
        let done = tokio::task::spawn_blocking(move || work(&mut db).map_err(said));
        done.await.map_err(|e| format!("store: {e}"))?
    }
}

/// Checks the head of the file itself. SQLite reads from its cache, so it may not notice that
/// the file was overwritten.
fn header_trouble(path: &Path) -> Option<String> {
    let mut head = [0u8; 16];
    match File::open(path).and_then(|mut f| f.read_exact(&mut head)) {
        Ok(()) if &head == b"SQLite format 3\0" => None,
        Ok(()) => Some(format!("store corrupt: {} is not a database", path.display())),
        Err(e) => Some(format!("store corrupt: {}: {e}", path.display())),
    }
}

fn open(path: &Path, schema: &str) -> Result<Connection, String> {
    let db = Connection::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let setup = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=2000; \
                 PRAGMA temp_store=MEMORY;";
    db.execute_batch(setup).and_then(|()| db.execute_batch(schema)).map_err(said)?;
    Ok(db)
}

fn said(e: rusqlite::Error) -> String {
    match e.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            format!("store corrupt: {e}")
        }
        _ => format!("store: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn noise_in_the_file_is_called_corrupt() {
        let data = std::env::temp_dir().join(format!("scenario-store-{}", std::process::id()));
        std::fs::create_dir_all(&data).unwrap();
        let schema = "CREATE TABLE IF NOT EXISTS t (a)";
        let running = Store::open(&data, "a.db", schema);
        assert_eq!(running.trouble().await, None);
        std::fs::write(data.join("a.db"), [0x5a; 8192]).unwrap();
        tokio::time::sleep(2 * FRESH).await;
        assert!(running.trouble().await.unwrap().starts_with("store corrupt"));
        std::fs::write(data.join("b.db"), [0x5a; 8192]).unwrap();
        let trouble = Store::open(&data, "b.db", schema).trouble().await.unwrap();
        assert!(trouble.starts_with("store corrupt"), "{trouble}");
        std::fs::remove_dir_all(data).unwrap();
    }
}
