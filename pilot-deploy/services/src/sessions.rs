//! The runs that the gateway knows: those that stream now, and the last that ended, so that a second
//! cancel is told apart from a cancel of nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// Ended runs that are remembered.
const REMEMBERED: usize = 4096;

/// A wish to end a run: when it was made, and why.
pub type Wish = Option<(Instant, String)>;

/// All runs, running and lately ended.
#[derive(Default)]
pub struct Sessions {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    running: HashMap<String, Running>,
    /// Id, and whether it was cancelled; oldest first.
    ended: VecDeque<(String, bool)>,
    started: u64,
}

struct Running {
    number: u64,
    seed: u64,
    wish: watch::Sender<Wish>,
}

/// What a cancel found.
#[derive(Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The run was told to end.
    Now,
    /// It had been told before.
    Already,
    /// It ended by itself.
    Finished,
    /// Nobody knows it.
    Unknown,
}

/// A place in the list; whoever holds it must hand it back with `end`.
#[must_use]
pub struct Ticket {
    /// Name of the run.
    pub id: String,
    number: u64,
    /// Changes when somebody cancels the run.
    pub wish: watch::Receiver<Wish>,
}

impl Sessions {
    /// Enters a run. A name in use is refused, unless the client resumes: then the older stream of
    /// that name, whose connection is gone or going, is ended.
    pub fn begin(&self, id: Option<String>, seed: u64, resumes: bool) -> Result<Ticket, String> {
        let mut inner = self.lock();
        inner.started += 1;
        let number = inner.started;
        let id = id.unwrap_or_else(|| format!("session-{:x}-{number}", crate::http::now_ms()));
        match inner.running.get(&id) {
            Some(_) if !resumes => return Err(id),
            Some(older) => drop(older.wish.send_replace(Some((Instant::now(), "resumed elsewhere".into())))),
            None => {}
        }
        let (wish, receiver) = watch::channel(None);
        inner.running.insert(id.clone(), Running { number, seed, wish });
        Ok(Ticket { id, number, wish: receiver })
    }

    /// Takes a run out of the list.
    pub fn end(&self, ticket: &Ticket) {
        let mut inner = self.lock();
        // A resumed run replaced this one under the same name: leave that one.
        if inner.running.get(&ticket.id).is_some_and(|r| r.number == ticket.number) {
            inner.running.remove(&ticket.id);
            inner.ended.push_back((ticket.id.clone(), ticket.wish.borrow().is_some()));
            if inner.ended.len() > REMEMBERED {
                inner.ended.pop_front();
            }
        }
    }

    /// Tells a run to end.
    pub fn cancel(&self, id: &str) -> Cancelled {
        let inner = self.lock();
        if let Some(run) = inner.running.get(id) {
            let now = Some((Instant::now(), "cancelled by request".to_owned()));
            let first = run.wish.send_if_modified(|wish| {
                let first = wish.is_none();
                if first {
                    *wish = now;
                }
                first
            });
            return if first { Cancelled::Now } else { Cancelled::Already };
        }
        match inner.ended.iter().rev().find(|(ended, _)| ended == id) {
            Some((_, true)) => Cancelled::Already,
            Some((_, false)) => Cancelled::Finished,
            None => Cancelled::Unknown,
        }
    }

    /// Name and seed of each running stream, in order of their start.
    pub fn list(&self) -> Vec<(String, u64)> {
        let inner = self.lock();
        let mut all: Vec<_> = inner.running.iter().map(|(id, r)| (r.number, id.clone(), r.seed)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id, seed)| (id, seed)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_cancel_is_told_apart_from_a_cancel_of_nothing() {
        let all = Sessions::default();
        let ticket = all.begin(Some("a".into()), 1, false).unwrap();
        assert_eq!(all.cancel("a"), Cancelled::Now);
        assert_eq!(all.cancel("a"), Cancelled::Already);
        all.end(&ticket);
        assert_eq!(all.cancel("a"), Cancelled::Already);
        assert_eq!(all.cancel("b"), Cancelled::Unknown);
        let done = all.begin(Some("c".into()), 1, false).unwrap();
        all.end(&done);
        assert_eq!(all.cancel("c"), Cancelled::Finished);
    }

    #[test]
    fn a_name_in_use_is_refused_unless_the_client_resumes() {
        let all = Sessions::default();
        let first = all.begin(Some("a".into()), 1, false).unwrap();
        assert!(all.begin(Some("a".into()), 1, false).is_err());
        let second = all.begin(Some("a".into()), 1, true).unwrap();
        assert!(first.wish.borrow().is_some());
        all.end(&first);
        assert_eq!(all.list().len(), 1);
        all.end(&second);
        assert!(all.list().is_empty());
    }
}
