//! The runs that the gateway knows: those that stream now, those whose client disconnected before the end,
//! and the last ones that have ended. A run that has not ended can be resumed and cancelled; a cancelled run
//! cannot be resumed. Of the runs that do not stream, the last `REMEMBERED` are known.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// How many runs are remembered, apart from those that stream.
const REMEMBERED: usize = 4096;

/// A request to end a run: when it was made, and why.
pub type Wish = Option<(Instant, String)>;

/// All runs that are known.
#[derive(Default)]
pub struct Sessions {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    known: HashMap<String, Session>,
    /// Runs that do not stream, by name and number, oldest first.
    resting: VecDeque<(String, u64)>,
    started: u64,
}

struct Session {
    number: u64,
    seed: u64,
    wish: watch::Sender<Wish>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Streaming,
    /// Its client disconnected before the end.
    Away,
    Over,
}

/// The result of a cancel request.
#[derive(Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The run is being ended, or cannot be resumed any more.
    Now,
    /// It was cancelled before.
    Already,
    /// It had ended by itself.
    Finished,
    /// There is no such run.
    Unknown,
}

/// Why a run could not begin with its name.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// A run with this name is streaming.
    Active(String),
    /// The run with this name was cancelled, so it cannot be resumed.
    Cancelled(String),
}

/// The entry of a run in the list. It must be returned with `end`.
#[must_use]
pub struct Ticket {
    /// Name of the run.
    pub id: String,
    number: u64,
    /// Changes when the run is cancelled.
    pub wish: watch::Receiver<Wish>,
}

impl Sessions {
    /// Adds a run. A name in use is refused, unless the client resumes: then the older stream with that name
    /// is ended, because its connection is lost.
    pub fn begin(&self, id: Option<String>, seed: u64, resumes: bool) -> Result<Ticket, Taken> {
        let mut inner = self.lock();
        inner.started += 1;
        let number = inner.started;
        let id = id.unwrap_or_else(|| format!("session-{:x}-{number}", crate::http::now_ms()));
        if let Some(older) = inner.known.get(&id) {
            let streams = older.state == State::Streaming;
            if resumes && older.wish.borrow().is_some() {
                return Err(Taken::Cancelled(id));
            }
            if streams && !resumes {
                return Err(Taken::Active(id));
            }
            if streams {
                older.wish.send_replace(Some((Instant::now(), "resumed elsewhere".into())));
            }
        }
        let (wish, receiver) = watch::channel(None);
        inner.known.insert(id.clone(), Session { number, seed, wish, state: State::Streaming });
        Ok(Ticket { id, number, wish: receiver })
    }

    /// Notes that a stream has ended: with its last event (`over`), or because its client disconnected.
    pub fn end(&self, ticket: &Ticket, over: bool) {
        let mut inner = self.lock();
        // A resumed run has replaced this one under the same name. Do not touch that one.
        let Some(session) = inner.known.get_mut(&ticket.id).filter(|s| s.number == ticket.number) else {
            return;
        };
        session.state = if over { State::Over } else { State::Away };
        inner.resting.push_back((ticket.id.clone(), ticket.number));
        if inner.resting.len() > REMEMBERED
            && let Some((id, number)) = inner.resting.pop_front()
            && inner.known.get(&id).is_some_and(|s| s.number == number)
        {
            inner.known.remove(&id);
        }
    }

    /// Cancels a run.
    pub fn cancel(&self, id: &str) -> Cancelled {
        let inner = self.lock();
        let Some(session) = inner.known.get(id) else { return Cancelled::Unknown };
        if session.wish.borrow().is_some() {
            return Cancelled::Already;
        }
        if session.state == State::Over {
            return Cancelled::Finished;
        }
        session.wish.send_replace(Some((Instant::now(), "cancelled by request".to_owned())));
        Cancelled::Now
    }

    /// The name and seed of each running stream, in the order in which they started.
    pub fn list(&self) -> Vec<(String, u64)> {
        let inner = self.lock();
        let streaming = inner.known.iter().filter(|(_, s)| s.state == State::Streaming);
        let mut all: Vec<_> = streaming.map(|(id, s)| (s.number, id.clone(), s.seed)).collect();
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

    fn begin(all: &Sessions, id: &str, resumes: bool) -> Result<Ticket, Taken> {
        all.begin(Some(id.into()), 1, resumes)
    }

    #[test]
    fn a_second_cancel_is_told_apart_from_a_cancel_of_nothing() {
        let all = Sessions::default();
        let ticket = begin(&all, "a", false).unwrap();
        assert_eq!(all.cancel("a"), Cancelled::Now);
        assert_eq!(all.cancel("a"), Cancelled::Already);
        all.end(&ticket, true);
        assert_eq!(all.cancel("a"), Cancelled::Already);
        assert_eq!(all.cancel("b"), Cancelled::Unknown);
        let done = begin(&all, "c", false).unwrap();
        all.end(&done, true);
        assert_eq!(all.cancel("c"), Cancelled::Finished);
    }

    #[test]
    fn a_name_in_use_is_refused_unless_the_client_resumes() {
        let all = Sessions::default();
        let first = begin(&all, "a", false).unwrap();
        assert_eq!(begin(&all, "a", false).err(), Some(Taken::Active("a".into())));
        let second = begin(&all, "a", true).unwrap();
        assert!(first.wish.borrow().is_some());
        all.end(&first, false);
        assert_eq!(all.list().len(), 1);
        assert_eq!(all.cancel("a"), Cancelled::Now);
        all.end(&second, true);
        assert!(all.list().is_empty());
    }

    #[test]
    fn a_run_whose_client_went_away_is_resumed_until_it_is_cancelled() {
        let all = Sessions::default();
        all.end(&begin(&all, "a", false).unwrap(), false);
        all.end(&begin(&all, "a", true).unwrap(), false);
        assert_eq!(all.cancel("a"), Cancelled::Now);
        assert_eq!(all.cancel("a"), Cancelled::Already);
        assert_eq!(begin(&all, "a", true).err(), Some(Taken::Cancelled("a".into())));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let all = Sessions::default();
        for n in 0..=REMEMBERED {
            all.end(&begin(&all, &format!("s{n}"), false).unwrap(), false);
        }
        assert_eq!(all.cancel("s0"), Cancelled::Unknown);
        assert_eq!(all.cancel("s1"), Cancelled::Now);
        assert_eq!(all.lock().known.len(), REMEMBERED);
    }
}
