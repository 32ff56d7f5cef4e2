//! One run as an event stream: `start`, `token`s with `progress` between them, then one of `done`,
//! `cancelled`, `error`. Events are numbered from `msg_001`, the same for the same request, so that
//! `Last-Event-ID` resumes with exactly the rest. Called by the gateway.

use crate::gate::{self, Position};
use crate::http::now_ms;
use crate::metrics::Metrics;
use crate::report::EPOCH_MS;
use crate::sessions::{Sessions, Ticket};
use crate::simulate::TOKEN_INTERVAL;
use crate::upstream::Lines;
use axum::response::sse::Event;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// A progress event follows after this number of tokens.
const PROGRESS_EVERY: u32 = 6;

/// A client that reads nothing for this long is dropped.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// The checked request of a client.
#[derive(Clone, Debug)]
pub struct Run {
    /// One of `simulate::ROUTES`.
    pub route: String,
    /// Decides every token.
    pub seed: u64,
    /// Number of tokens in all.
    pub budget: u32,
    /// How many events the client has already.
    pub have: u32,
    /// Is the seed shown to the client?
    pub echo_seed: bool,
    /// True: timestamps are logical, from a fixed start. False: they come from the clock.
    pub deterministic: bool,
}

/// Number of events up to and including token `index` and its progress event.
fn events_through_token(index: u32) -> u32 {
    1 + (index + 1) + (index + 1) / PROGRESS_EVERY
}

impl Run {
    /// The first token that the client lacks, or whose progress event it lacks.
    pub fn first_token(&self) -> u32 {
        (0..self.budget).find(|i| events_through_token(*i) > self.have).unwrap_or(self.budget)
    }

    fn timestamp(&self, events: u32) -> u64 {
        if self.deterministic {
            EPOCH_MS + u64::from(events) * TOKEN_INTERVAL.as_millis() as u64
        } else {
            now_ms()
        }
    }
}

/// Sends events to the client: numbers them, and skips those that the client has.
struct Sink {
    client: mpsc::Sender<Result<Event, Infallible>>,
    sent: u32,
    have: u32,
}

impl Sink {
    /// Sends an event. False if the client has disconnected.
    async fn send(&mut self, name: &str, data: Value) -> bool {
        self.sent += 1;
        if self.sent <= self.have {
            return true;
        }
        let event = Event::default().id(format!("msg_{:03}", self.sent)).event(name).data(data.to_string());
        matches!(tokio::time::timeout(SEND_LIMIT, self.client.send(Ok(event))).await, Ok(Ok(())))
    }
}

/// What a stream needs from the gateway.
pub struct Surroundings {
    /// The entry of the run in the list.
    pub ticket: Ticket,
    /// The list to which the entry is returned at the end.
    pub sessions: Arc<Sessions>,
    /// The gate; none for a request with the admin token, which passes a closed gate.
    pub gate: Option<watch::Receiver<Position>>,
    /// Where latencies are recorded.
    pub metrics: Arc<Metrics>,
}

/// Passes events from the engine's answer (`ask`) to the client until one of the two ends. Every wait, also
/// the one for the engine's first answer, watches the gate and the cancel request.
pub async fn pump(
    run: Run,
    ask: impl Future<Output = Result<Lines, String>>,
    mut around: Surroundings,
    client: mpsc::Sender<Result<Event, Infallible>>,
    started: Instant,
) {
    let metrics = around.metrics.clone();
    metrics.active_sessions.inc();
    let first = run.first_token();
    let mut sink = Sink { client, sent: 0, have: run.have };
    let mut start = json!({"sessionId": around.ticket.id, "timestamp": run.timestamp(0)});
    if run.echo_seed {
        start["seed"] = json!(run.seed);
    }
    let mut over = false;
    if sink.send("start", start).await {
        // The engine skips the tokens that the client has, but their events keep their numbers.
        sink.sent = first.checked_sub(1).map_or(1, events_through_token);
        let end = tokio::select! {
            biased;
            end = around.ended(sink.client.clone()) => end,
            end = tokens(&run, ask, &metrics, &mut sink, started) => end,
        };
        over = match end {
            End::Gone => false,
            End::Done(tokens) => {
                let mut done = json!({"sessionId": around.ticket.id, "totalTokens": tokens});
                if run.echo_seed {
                    done["seed"] = json!(run.seed);
                }
                sink.send("done", done).await
            }
            End::Failed(message) => sink.send("error", json!({"message": message, "code": "engine"})).await,
            End::Cancelled(since, reason) => {
                let told = sink.send("cancelled", json!({"reason": reason, "timestamp": now_ms()})).await;
                metrics.cancelled(since.elapsed());
                told
            }
        };
    }
    around.sessions.end(&around.ticket, over);
    metrics.active_sessions.dec();
}

/// How a run ends.
enum End {
    Done(u32),
    Failed(String),
    Cancelled(Instant, String),
    /// The client has disconnected.
    Gone,
}

impl Surroundings {
    /// Waits until the gate is closed or the run is cancelled.
    async fn ended(&mut self, client: mpsc::Sender<Result<Event, Infallible>>) -> End {
        let gate = async {
            match &mut self.gate {
                Some(gate) => gate::closed(gate).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            reason = gate => End::Cancelled(Instant::now(), reason),
            wish = self.ticket.wish.wait_for(Option::is_some) => match wish.ok().and_then(|w| w.clone()) {
                Some((since, reason)) => End::Cancelled(since, reason),
                None => End::Gone,
            },
            () = client.closed() => End::Gone,
        }
    }
}

async fn tokens(
    run: &Run,
    ask: impl Future<Output = Result<Lines, String>>,
    metrics: &Metrics,
    sink: &mut Sink,
    started: Instant,
) -> End {
    let mut lines = match ask.await {
        Ok(lines) => lines,
        Err(message) => return End::Failed(message),
    };
    let first = run.first_token();
    for given in first..run.budget {
        let token: Value = match lines.next().await.map(|l| l.map(|l| serde_json::from_slice(&l))) {
            Ok(Some(Ok(token))) => token,
            Ok(None) => return End::Failed("the engine ended early".into()),
            Ok(Some(Err(e))) => return End::Failed(e.to_string()),
            Err(e) => return End::Failed(e),
        };
        let data = json!({
            "text": token["text"],
            "tokenIndex": given,
            "timestamp": run.timestamp(given + 1),
            "model": token["model"],
        });
        if !sink.send("token", data).await {
            return End::Gone;
        }
        if given == first {
            metrics.first_token(started.elapsed());
        }
        let so_far = given + 1;
        if so_far.is_multiple_of(PROGRESS_EVERY) {
            let message = format!("{so_far} of {} tokens", run.budget);
            let progress = json!({"percent": so_far * 100 / run.budget, "message": message});
            if !sink.send("progress", progress).await {
                return End::Gone;
            }
        }
    }
    End::Done(run.budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(have: u32) -> Run {
        Run { route: "critique".into(), seed: 42, budget: 24, have, echo_seed: true, deterministic: true }
    }

    #[test]
    fn resuming_starts_at_the_first_token_whose_events_are_not_all_there() {
        assert_eq!(run(0).first_token(), 0); // nothing yet
        assert_eq!(run(1).first_token(), 0); // start
        assert_eq!(run(2).first_token(), 1); // start, token 0
        assert_eq!(run(7).first_token(), 5); // token 5 there, its progress is not
        assert_eq!(run(8).first_token(), 6);
        assert_eq!(run(29).first_token(), 24); // all but done
    }
}
