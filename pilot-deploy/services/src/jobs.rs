//! The jobs role: a queue in SQLite, worked off a few at a time, watched over event streams. What
//! was queued or running when the service stopped is taken up again when it starts.

use crate::config::Config;
use crate::engine::{health, unavailable};
use crate::http::{self, Query, Refusal, body, now_ms};
use crate::metrics::Metrics;
use crate::seed::check_id;
use crate::store::Store;
use axum::extract::{Request, State};
use axum::http::StatusCode;
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
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::ReceiverStream;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, scenario_id TEXT NOT NULL, state TEXT NOT NULL, updated_ms INTEGER NOT NULL)";
const STEPS: u32 = 4;
const STEP: Duration = Duration::from_millis(30);

struct Jobs {
    config: Config,
    store: Store,
    metrics: Arc<Metrics>,
    places: Semaphore,
    live: Mutex<HashMap<String, Arc<Live>>>,
    counter: AtomicU64,
}

/// A job in this process: its events so far, and the wish to cancel it.
struct Live {
    events: watch::Sender<Vec<(&'static str, Value)>>,
    cancel: watch::Sender<bool>,
}

/// Runs until told to stop.
pub async fn serve(config: Config) -> Result<(), String> {
    let metrics = Arc::new(Metrics::new()?);
    let jobs = Arc::new(Jobs {
        store: Store::open(&config.data, "jobs.db", SCHEMA),
        places: Semaphore::new(config.max_concurrent_jobs),
        live: Mutex::default(),
        counter: AtomicU64::new(0),
        metrics: metrics.clone(),
        config: config.clone(),
    });
    jobs.take_up_again().await;
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/jobs", get(list))
        .route("/jobs/stream", get(stream))
        .route("/jobs/cancel", post(cancel))
        .with_state(jobs);
    http::serve(config, metrics, routes).await
}

impl Jobs {
    async fn take_up_again(self: &Arc<Self>) {
        let sql = "SELECT id, scenario_id FROM jobs WHERE state IN ('queued', 'running') ORDER BY updated_ms";
        let rows = self.store.call(move |db| {
            db.prepare(sql)?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<Vec<(String, String)>>>()
        });
        match rows.await {
            Ok(rows) => rows.into_iter().for_each(|(id, scenario)| drop(self.start(id, scenario))),
            Err(error) => tracing::error!(error, "cannot take up old jobs"),
        }
    }

    fn start(self: &Arc<Self>, id: String, scenario: String) -> Arc<Live> {
        let live = Arc::new(Live { events: watch::Sender::default(), cancel: watch::Sender::new(false) });
        let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        // Finished jobs that nobody watches make room.
        if all.len() >= 1024 {
            all.retain(|_, l| Arc::strong_count(l) > 1);
        }
        all.insert(id.clone(), live.clone());
        drop(all);
        tokio::spawn(self.clone().run(id, scenario, live.clone()));
        live
    }

    async fn run(self: Arc<Self>, id: String, scenario: String, live: Arc<Live>) {
        let say = |name: &'static str, mut more: Value| {
            more["jobId"] = json!(id);
            more["timestamp"] = json!(now_ms());
            live.events.send_modify(|events| events.push((name, more)));
        };
        say("job-queued", json!({"scenarioId": scenario}));
        let mut cancelled = live.cancel.subscribe();
        let work = async {
            let place = self.places.acquire().await.map_err(|e| e.to_string())?;
            self.record(&id, &scenario, "running").await?;
            say("job-started", json!({}));
            for step in 1..=STEPS {
                tokio::time::sleep(STEP).await;
                say("job-progress", json!({"percent": step * 100 / STEPS}));
            }
            drop(place);
            Ok::<(), String>(())
        };
        let failure = tokio::select! {
            done = tokio::time::timeout(self.config.job_timeout, work) => match done {
                Ok(Ok(())) => None,
                Ok(Err(message)) => Some(("store", message)),
                Err(_) => Some(("timeout", format!("over {} ms", self.config.job_timeout.as_millis()))),
            },
            _ = cancelled.wait_for(|on| *on) => Some(("cancelled", "cancelled by request".to_owned())),
        };
        let state = if failure.is_none() { "completed" } else { "failed" };
        if let Err(error) = self.record(&id, &scenario, state).await {
            tracing::error!(job = id, error, "state not saved");
        }
        match failure {
            None => say("job-completed", json!({"scenarioId": scenario})),
            Some((code, message)) => say("job-failed", json!({"code": code, "message": message})),
        }
    }

    async fn record(&self, id: &str, scenario: &str, state: &'static str) -> Result<(), String> {
        let sql = "INSERT INTO jobs (id, scenario_id, state, updated_ms) VALUES (?1, ?2, ?3, ?4)
                   ON CONFLICT (id) DO UPDATE SET state = ?3, updated_ms = ?4";
        let row = (id.to_owned(), scenario.to_owned(), state, now_ms() as i64);
        self.store.call(move |db| db.execute(sql, row)).await.map(drop)
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
    Query(query): Query<StreamQuery>,
) -> Result<Response, Refusal> {
    let live = match (query.scenario_id, query.job_id) {
        (Some(scenario), None) => {
            check_id("scenarioId", &scenario).map_err(|m| Refusal::bad("bad_query", m))?;
            let id = format!("job-{:x}-{}", now_ms(), jobs.counter.fetch_add(1, Ordering::Relaxed));
            jobs.record(&id, &scenario, "queued").await.map_err(unavailable)?;
            jobs.start(id, scenario)
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
    let sql = "SELECT state FROM jobs WHERE id = ?1";
    let id = wish.job_id.clone();
    let state = jobs
        .store
        .call(move |db| db.query_row(sql, [id], |row| row.get::<_, String>(0)).optional())
        .await
        .map_err(unavailable)?
        .ok_or_else(|| unknown(&wish.job_id))?;
    let live = jobs.find(&wish.job_id);
    let wished = live.as_ref().is_some_and(|l| l.cancel.send_replace(true));
    let (status, word) = match state.as_str() {
        "queued" | "running" if !wished => (StatusCode::ACCEPTED, "cancelling"),
        _ if wished => (StatusCode::CONFLICT, "already_cancelled"),
        _ => (StatusCode::CONFLICT, "already_finished"),
    };
    Ok((status, Json(json!({"status": word}))).into_response())
}

fn unknown(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "unknown_job", format!("no job {id}"))
}
