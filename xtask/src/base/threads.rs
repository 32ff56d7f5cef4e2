//! Work on several threads. A panic in a thread becomes an error of the caller.

use anyhow::{Result, anyhow};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

/// The result of the thread.
pub fn joined<T>(handle: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(anyhow!("a thread panicked: {}", text.unwrap_or("no message")))
    })
}

/// Does `work` on each item, at most `most` at a time; one at a time, in this thread. The results are in the order of the
/// items.
pub fn side_by_side<I: Send, T: Send>(
    most: usize,
    items: Vec<I>,
    work: impl Fn(I) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    if most <= 1 {
        return items.into_iter().map(work).collect();
    }
    let count = items.len();
    let queue = Mutex::new(items.into_iter().enumerate());
    let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let done = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..most.clamp(1, count.max(1)) {
            scope.spawn(|| {
                while let Some((at, item)) = take() {
                    let result = std::thread::scope(|inner| joined(inner.spawn(|| work(item))));
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn work_is_bounded_and_keeps_its_order_and_a_panic_is_an_error() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let results = side_by_side(3, (0..20).collect(), |item: usize| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(2));
            now.fetch_sub(1, Ordering::SeqCst);
            if item == 7 { std::panic::resume_unwind(Box::new("seven")) } else { Ok(item) }
        });
        assert_eq!(most.into_inner(), 3);
        let numbers: Vec<_> = results.iter().map(|result| result.as_ref().ok().copied()).collect();
        assert_eq!(numbers, (0..20).map(|n| (n != 7).then_some(n)).collect::<Vec<_>>());
        assert!(results[7].as_ref().unwrap_err().to_string().contains("seven"));
        assert!(side_by_side(3, Vec::new(), |(): ()| Ok(())).is_empty());
    }
}
