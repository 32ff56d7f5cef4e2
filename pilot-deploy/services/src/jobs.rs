//! The jobs role: a queue in SQLite. A few jobs run at a time, and clients watch them over event streams.
//! Jobs that were queued or running when the service stopped are continued when it starts. The queue is
//! limited. Requests with the admin token have a separate queue.

use crate::auth::{has_token, slow_down};
use crate::config::Config;
use crate::connections::{Room, public_places};
use crate::engine::{health, unavailable};
use crate::http::{self, Query, body, now_ms};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::seed::check_id;
use crate::store::Store;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use rusqlite::OptionalExtension;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::wrappers::ReceiverStream;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, scenario_id TEXT NOT NULL, state TEXT NOT NULL, updated_ms INTEGER NOT NULL)";
const STEPS: u32 = 4;
const STEP: Duration = Duration::from_millis(30);

/// How many jobs of one lane may wait. More are refused.
const QUEUE: usize = 256;

/// How many ended jobs are remembered: the newest ones.
const KEPT: u32 = 1024;

struct Jobs {
    config: Config,
    store: Store,
    metrics: Arc<Metrics>,
    public: Lane,
    /// For requests with the admin token, so that a verification never waits behind the public.
    operator: Lane,
    live: Mutex<HashMap<String, Arc<Live>>>,
    counter: AtomicU64,
}

/// One of the two queues, with its own permits.
struct Lane {
    /// A permit that each job has from its acceptance to its end.
    room: Arc<Semaphore>,
    /// A permit that each running job has.
    places: Semaphore,
}

impl Lane {
    fn new(places: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(QUEUE + places)), places: Semaphore::new(places) }
    }
}

/// A job in this process: its events so far, and whether it must be cancelled.
struct Live {
    events: watch::Sender<Vec<(&'static str, Value)>>,
    cancel: watch::Sender<bool>,
}

impl Live {
    fn say(&self, id: &str, name: &'static str, mut data: Value) {
        data["jobId"] = json!(id);
        data["timestamp"] = json!(now_ms());
        self.events.send_modify(|events| events.push((name, data)));
    }
}

/// A job as it was accepted.
struct Job {
    id: String,
    scenario: String,
    operator: bool,
    /// The permit, returned when the job ends.
    _room: OwnedSemaphorePermit,
}

/// Runs until a signal stops it.
pub async fn serve(config: Config) -> Result<(), String> {
    let metrics = Arc::new(Metrics::new()?);
    let jobs = Arc::new(Jobs {
        store: Store::open(&config.data, "jobs.db", SCHEMA),
        public: Lane::new(config.max_concurrent_jobs),
        operator: Lane::new(config.max_concurrent_jobs),
        live: Mutex::default(),
        counter: AtomicU64::new(0),
        metrics: metrics.clone(),
        config: config.clone(),
    });
    // Read before any new job can be accepted.
    let newest = jobs.store.call(|db| db.query_row("SELECT max(rowid) FROM jobs", [], |row| row.get(0)));
    match newest.await {
        Ok(newest) => drop(tokio::spawn(jobs.clone().take_up_again(newest))),
        Err(error) => tracing::error!(error, "cannot continue old jobs"),
    }
    let room = Room::new(&config);
    let routes = Router::new()
        .route("/jobs", get(list))
        .route("/jobs/stream", get(stream))
        .route("/jobs/cancel", post(cancel))
        .layer(middleware::from_fn_with_state(room.clone(), public_places))
        .route("/healthz", get(healthz))
        .with_state(jobs);
    http::serve(config, metrics, &room, routes).await
}

impl Jobs {
    /// Continues the old jobs up to row `newest`, in the public lane, whenever it has room.
    async fn take_up_again(self: Arc<Self>, newest: Option<i64>) {
        let sql = "SELECT rowid, id, scenario_id FROM jobs
                   WHERE rowid > ?1 AND rowid <= ?2 AND state IN ('queued', 'running') ORDER BY rowid LIMIT 1";
        let mut last = 0;
        while let Ok(room) = self.public.room.clone().acquire_owned().await {
            let next = self.store.call(move |db| {
                db.query_row(sql, (last, newest), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                    .optional()
            });
            match next.await {
                Ok(Some((row, id, scenario))) => {
                    last = row;
                    self.start(Job { id, scenario, operator: false, _room: room });
                }
                Ok(None) => return,
                Err(error) => return tracing::error!(error, "cannot continue old jobs"),
            }
        }
    }

    fn lane(&self, operator: bool) -> &Lane {
        if operator { &self.operator } else { &self.public }
    }

    /// Queues a new job. A full queue is a 429 `queue_full`.
    async fn accept(self: Arc<Self>, scenario: String, headers: HeaderMap) -> Result<Arc<Live>, Refusal> {
        let operator = has_token(&self.config, &headers);
        let Ok(room) = self.lane(operator).room.clone().try_acquire_owned() else {
            slow_down(&headers).await?;
            let message = format!("{QUEUE} jobs wait already");
            return Err(Refusal::later(StatusCode::TOO_MANY_REQUESTS, "queue_full", message, 5));
        };
        let id = format!("job-{:x}-{}", now_ms(), self.counter.fetch_add(1, Ordering::Relaxed));
        self.record(&id, &scenario, "queued").await.map_err(unavailable)?;
        Ok(self.start(Job { id, scenario, operator, _room: room }))
    }

    fn start(self: &Arc<Self>, job: Job) -> Arc<Live> {
        let live = Arc::new(Live { events: watch::Sender::default(), cancel: watch::Sender::new(false) });
        let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        // Forget ended jobs that nobody watches.
        if all.len() >= 1024 {
            all.retain(|_, l| Arc::strong_count(l) > 1);
        }
        all.insert(job.id.clone(), live.clone());
        drop(all);
        tokio::spawn(self.clone().run(job, live.clone()));
        live
    }

    async fn run(self: Arc<Self>, job: Job, live: Arc<Live>) {
        live.say(&job.id, "job-queued", json!({"scenarioId": job.scenario}));
        let mut cancelled = live.cancel.subscribe();
        let failure = tokio::select! {
            done = self.work(&job, &live) => done.err(),
            _ = cancelled.wait_for(|on| *on) => Some(("cancelled", "cancelled by request".to_owned())),
        };
        let state = match &failure {
            None => "completed",
            Some(("cancelled", _)) => "cancelled",
            Some(_) => "failed",
        };
        if let Err(error) = self.record_end(&job.id, &job.scenario, state).await {
            tracing::error!(job = job.id, error, "state not saved");
        }
        match failure {
            None => live.say(&job.id, "job-completed", json!({"scenarioId": job.scenario})),
            Some((code, message)) => {
                live.say(&job.id, "job-failed", json!({"code": code, "message": message}));
            }
        }
    }

    /// Waits for a permit, without a time limit, and then runs the job within its time limit.
    async fn work(&self, job: &Job, live: &Live) -> Result<(), (&'static str, String)> {
        let place = self.lane(job.operator).places.acquire().await;
        let _place = place.map_err(|e| ("stopping", e.to_string()))?;
        let steps = async {
            self.record(&job.id, &job.scenario, "running").await.map_err(|message| ("store", message))?;
            live.say(&job.id, "job-started", json!({}));
            for step in 1..=STEPS {
                tokio::time::sleep(STEP).await;
                live.say(&job.id, "job-progress", json!({"percent": step * 100 / STEPS}));
            }
            Ok(())
        };
        let limit = self.config.job_timeout;
        let late = |_| Err(("timeout", format!("over {} ms", limit.as_millis())));
        tokio::time::timeout(limit, steps).await.unwrap_or_else(late)
    }

    async fn record(&self, id: &str, scenario: &str, state: &'static str) -> Result<(), String> {
        let sql = "INSERT INTO jobs (id, scenario_id, state, updated_ms) VALUES (?1, ?2, ?3, ?4)
                   ON CONFLICT (id) DO UPDATE SET state = ?3, updated_ms = ?4";
        let row = (id.to_owned(), scenario.to_owned(), state, now_ms() as i64);
        self.store.call(move |db| db.execute(sql, row)).await.map(drop)
    }

    /// The same for a job that has ended. The oldest ended jobs are forgotten.
    async fn record_end(&self, id: &str, scenario: &str, state: &'static str) -> Result<(), String> {
        self.record(id, scenario, state).await?;
        let sql = "DELETE FROM jobs WHERE rowid <= (SELECT max(rowid) FROM jobs) - ?1
                   AND state NOT IN ('queued', 'running')";
        self.store.call(move |db| db.execute(sql, [KEPT])).await.map(drop)
    }

    fn find(&self, id: &str) -> Option<Arc<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

async fn healthz(State(jobs): State<Arc<Jobs>>) -> Response {
    health(&jobs.config, &jobs.store).await
}

async fn list(State(jobs): State<Arc<Jobs>>) -> Result<Json<Value>, Refusal> {
    let sql = "SELECT id, scenario_id, state FROM jobs ORDER BY updated_ms DESC, id LIMIT 100";
    let rows = jobs.store.call(move |db| {
        db.prepare(sql)?
            .query_map([], |row| {
                let (id, scenario): (String, String) = (row.get(0)?, row.get(1)?);
                Ok(json!({"jobId": id, "scenarioId": scenario, "state": row.get::<_, String>(2)?}))
            })?
            .collect::<rusqlite::Result<Vec<Value>>>()
    });
    Ok(Json(json!({"jobs": rows.await.map_err(unavailable)?})))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StreamQuery {
    /// Starts a new job for this scenario,
    scenario_id: Option<String>,
    /// or watches one that exists.
    job_id: Option<String>,
}

async fn stream(
    State(jobs): State<Arc<Jobs>>,
    method: Method,
    headers: HeaderMap,
    Query(query): Query<StreamQuery>,
) -> Result<Response, Refusal> {
    let live = match (query.scenario_id, query.job_id) {
        (Some(scenario), None) => {
            check_id("scenarioId", &scenario).map_err(|m| Refusal::bad("bad_query", m))?;
            if method == Method::HEAD {
                return Ok(http::stream_head());
            }
            // A separate task: if the client disconnects now, no job is stored without being started.
            let accepted = tokio::spawn(jobs.clone().accept(jobs.config.scenario(scenario), headers));
            accepted.await.map_err(|e| unavailable(e.to_string()))??
        }
        (None, Some(id)) => jobs.find(&id).ok_or_else(|| unknown(&id))?,
        _ => return Err(Refusal::bad("bad_query", "give scenarioId (a new job) or jobId (watch one)")),
    };
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Event, Infallible>>(16);
    jobs.metrics.active_sessions.inc();
    tokio::spawn(async move {
        let mut watch = live.events.subscribe();
        let mut sent = 0;
        'watching: loop {
            let news: Vec<_> = watch.borrow_and_update()[sent..].to_vec();
            for (name, data) in news {
                sent += 1;
                let event = Event::default().id(format!("msg_{sent:03}")).event(name).data(data.to_string());
                let last = matches!(name, "job-completed" | "job-failed");
                if sender.send(Ok(event)).await.is_err() || last {
                    break 'watching;
                }
            }
            if watch.changed().await.is_err() {
                break;
            }
        }
        jobs.metrics.active_sessions.dec();
    });
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cancel {
    job_id: String,
}

async fn cancel(State(jobs): State<Arc<Jobs>>, request: Request) -> Result<Response, Refusal> {
    let wish: Cancel = body(request).await?;
    let sql = "SELECT state, scenario_id FROM jobs WHERE id = ?1";
    let id = wish.job_id.clone();
    let (state, scenario): (String, String) = jobs
        .store
        .call(move |db| db.query_row(sql, [id], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .await
        .map_err(unavailable)?
        .ok_or_else(|| unknown(&wish.job_id))?;
    let already = match (state.as_str(), jobs.find(&wish.job_id)) {
        ("queued" | "running", Some(live)) => live.cancel.send_replace(true),
        // From before this service started, and not continued yet.
        ("queued" | "running", None) => {
            jobs.record(&wish.job_id, &scenario, "cancelled").await.map_err(unavailable)?;
            false
        }
        ("cancelled", _) => true,
        (_, Some(live)) if *live.cancel.borrow() => true,
        _ => return Ok(told(StatusCode::CONFLICT, "already_finished")),
    };
    Ok(if already {
        told(StatusCode::CONFLICT, "already_cancelled")
    } else {
        told(StatusCode::ACCEPTED, "cancelling")
    })
}

fn told(status: StatusCode, word: &str) -> Response {
    (status, Json(json!({"status": word}))).into_response()
}

fn unknown(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "unknown_job", format!("no job {id}"))
}
