//! The engine role: generates runs and reports, and keeps the scenarios in SQLite. Normally only the gateway
//! calls it; its port is published for diagnosis.

use crate::auth::admin;
use crate::config::{Config, DEMO};
use crate::connections::{Room, public_places};
use crate::fault::first_token_delay;
use crate::http::{self, Query, body, healthy};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::report::report;
use crate::seed::{Scenario, check_id};
use crate::simulate::{ROUTES, TOKEN_INTERVAL, token};
use crate::store::Store;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use rusqlite::OptionalExtension;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS scenarios (
    id TEXT PRIMARY KEY, body TEXT NOT NULL, updated_ms INTEGER NOT NULL)";

struct Engine {
    config: Config,
    store: Store,
    metrics: Arc<Metrics>,
}

/// Runs until a signal stops it.
pub async fn serve(config: Config) -> Result<(), String> {
    let metrics = Arc::new(Metrics::new()?);
    let store = Store::open(&config.data, "engine.db", SCHEMA);
    let engine = Engine { config: config.clone(), store, metrics: metrics.clone() };
    let room = Room::new(&config);
    let routes = Router::new()
        .route("/generate", get(generate))
        .route("/report", get(get_report))
        .route("/scenarios", get(list).post(put))
        .layer(middleware::from_fn_with_state(room.clone(), public_places))
        .route("/healthz", get(healthz))
        .with_state(Arc::new(engine));
    http::serve(config, metrics, &room, routes).await
}

async fn healthz(State(engine): State<Arc<Engine>>) -> Response {
    health(&engine.config, &engine.store).await
}

/// `healthz` of a role with a store: 503 with the reason if the store cannot be used.
pub async fn health(config: &Config, store: &Store) -> Response {
    let mut answer = healthy(config);
    match store.trouble().await {
        None => Json(answer).into_response(),
        Some(reason) => {
            answer["status"] = json!("unhealthy");
            answer["reason"] = json!(reason);
            (StatusCode::SERVICE_UNAVAILABLE, Json(answer)).into_response()
        }
    }
}

#[derive(Deserialize)]
struct Run {
    route: String,
    seed: u64,
    budget: u32,
    /// How many tokens the client has already. They are skipped without their delay.
    #[serde(default)]
    from: u32,
}

/// A run as one JSON object a line: `{"index":0,"text":"…","model":"…"}`.
async fn generate(State(engine): State<Arc<Engine>>, Query(run): Query<Run>) -> Result<Response, Refusal> {
    if !ROUTES.contains(&run.route.as_str()) {
        return Err(Refusal::bad("unknown_route", format!("route: one of {}", ROUTES.join(", "))));
    }
    if !engine.config.flag("USE_SIMULATION") {
        let message = "USE_SIMULATION is false and a pilot has no other model";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no_model", message));
    }
    let most = engine.config.max_tokens_per_run;
    if run.budget > most {
        return Err(Refusal::bad("bad_budget", format!("budget: up to {most} tokens")));
    }
    let (lines, receiver) = tokio::sync::mpsc::channel::<Result<String, Infallible>>(8);
    tokio::spawn(async move {
        let start = Instant::now();
        engine.metrics.active_sessions.inc();
        tokio::time::sleep(first_token_delay(engine.config.fault)).await;
        let model = format!("sim-{}-1", run.route);
        let mut tick = tokio::time::interval(TOKEN_INTERVAL);
        for index in run.from..run.budget {
            tick.tick().await;
            let text = token(&run.route, run.seed, index);
            let line = json!({"index": index, "text": text, "model": model});
            if lines.send(Ok(format!("{line}\n"))).await.is_err() {
                break;
            }
            if index == run.from {
                engine.metrics.first_token(start.elapsed());
            }
        }
        engine.metrics.active_sessions.dec();
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok(([("content-type", "application/x-ndjson")], body).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReportQuery {
    scenario_id: String,
    seed: Option<u64>,
}

async fn get_report(
    State(engine): State<Arc<Engine>>,
    Query(query): Query<ReportQuery>,
) -> Result<Json<Value>, Refusal> {
    check_id("scenarioId", &query.scenario_id).map_err(|m| Refusal::bad("bad_query", m))?;
    if !engine.config.flag("USE_MOCK_DATA") {
        let message = "USE_MOCK_DATA is false and a pilot has no other data";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no_data", message));
    }
    let wanted = engine.config.scenario(query.scenario_id);
    let id = wanted.clone();
    let sql = "SELECT body FROM scenarios WHERE id = ?1";
    let found = engine
        .store
        .call(move |db| db.query_row(sql, [id], |row| row.get::<_, String>(0)).optional())
        .await
        .map_err(unavailable)?;
    let Some(text) = found else {
        let message = format!("no scenario {wanted}; POST it to /admin/seed");
        return Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_scenario", message));
    };
    let scenario: Scenario = serde_json::from_str(&text).map_err(|e| unavailable(e.to_string()))?;
    Ok(Json(report(&scenario, query.seed.unwrap_or(engine.config.default_seed))))
}

async fn list(State(engine): State<Arc<Engine>>) -> Result<Json<Value>, Refusal> {
    let sql = "SELECT id, updated_ms FROM scenarios ORDER BY id";
    let rows = engine
        .store
        .call(move |db| {
            db.prepare(sql)?
                .query_map([], |row| {
                    Ok(json!({"scenarioId": row.get::<_, String>(0)?, "updated": row.get::<_, i64>(1)?}))
                })?
                .collect::<rusqlite::Result<Vec<Value>>>()
        })
        .await
        .map_err(unavailable)?;
    Ok(Json(json!({"scenarios": rows})))
}

async fn put(
    State(engine): State<Arc<Engine>>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    admin(&engine.config, &headers).await?;
    let scenario: Scenario = body(request).await?;
    scenario.check().map_err(|m| Refusal::bad("bad_scenario", m))?;
    if scenario.scenario_id == DEMO && engine.config.demo_scenario != DEMO {
        let demo = &engine.config.demo_scenario;
        let message = format!("scenarioId: {DEMO} names the demo scenario, which is {demo}; take another");
        return Err(Refusal::bad("bad_scenario", message));
    }
    let id = scenario.scenario_id.clone();
    let text = serde_json::to_string(&scenario).map_err(|e| unavailable(e.to_string()))?;
    let sql = "INSERT INTO scenarios (id, body, updated_ms) VALUES (?1, ?2, ?3)
               ON CONFLICT (id) DO UPDATE SET body = ?2, updated_ms = ?3";
    let row = (id.clone(), text, http::now_ms() as i64);
    engine.store.call(move |db| db.execute(sql, row)).await.map_err(unavailable)?;
    Ok(Json(json!({"status": "seeded", "scenarioId": id})))
}

/// The store failed: 503, because a new try works after a repair.
pub fn unavailable(message: String) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "store", message)
}
