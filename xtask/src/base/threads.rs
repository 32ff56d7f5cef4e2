//! Waiting for a scoped thread. A panic in the thread becomes an error of the caller.

use anyhow::{Result, anyhow};
use std::thread::ScopedJoinHandle;

/// The result of the thread.
pub fn joined<T>(handle: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(anyhow!("a thread panicked: {}", text.unwrap_or("no message")))
    })
}
