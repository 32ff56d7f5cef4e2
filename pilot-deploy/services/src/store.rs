//! SQLite of one service, on its named volume. A file that fails its check is reported through
//! `healthz` and left as it is: the service stays up to say so, and the rollback decides.

use rusqlite::Connection;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long what a look at the store found is true.
const FRESH: Duration = Duration::from_millis(50);

/// When the store was looked at, and what was wrong with it.
type Look = (Instant, Option<String>);

/// The database of a role, or the reason why there is none.
#[derive(Clone)]
pub struct Store {
    path: PathBuf,
    inner: Result<Arc<Mutex<Connection>>, String>,
    looked: Arc<Mutex<Option<Look>>>,
}

impl Store {
    /// Opens `data/file`, checks it and lays out `schema` (idempotent SQL).
    pub fn open(data: &Path, file: &str, schema: &str) -> Self {
        let path = data.join(file);
        let opened = open(&path, schema);
        if let Err(error) = &opened {
            tracing::error!(error, "store unusable");
        }
        Self { path, inner: opened.map(|db| Arc::new(Mutex::new(db))), looked: Arc::default() }
    }

    /// Why the store cannot be used, if it cannot. Asked by `healthz`, so it looks at the file anew:
    /// a database overwritten under a running service is found too. Those who ask at once, or within
    /// `FRESH`, share a look: however many they are, the work on the store is not held up.
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

    /// Runs `work` on the database, off the event loop, in the order of asking: whoever waits for its
    /// turn takes no thread.
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

/// SQLite reads from its cache, so noise written over the file shows in the file alone.
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
