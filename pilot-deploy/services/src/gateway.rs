//! The gateway role: the public entry of the pilot. Everything except `/healthz`, `/metrics` and `/admin/*`
//! is behind the gate. Requests with the admin token pass a closed gate, so that a restored release can be
//! verified before the public is let in.

use crate::auth::{admin, has_token, slow_down};
use crate::config::Config;
use crate::connections::{Room, public_places};
use crate::fault::{self, Fault};
use crate::gate::{self, Gate};
use crate::http::{self, Query, body, healthy};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::seed::check_id;
use crate::sessions::{Cancelled, Sessions, Taken};
use crate::simulate::ROUTES;
use crate::stream::{Run, Surroundings, pump};
use crate::upstream::{Lines, Upstream};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Seconds until a refused client may try again (`Retry-After`).
const RETRY_AFTER: u32 = 5;

struct Gateway {
    config: Config,
    gate: Gate,
    metrics: Arc<Metrics>,
    sessions: Arc<Sessions>,
    upstream: Upstream,
    /// The present minute and its number of streams, for the rate limit.
    minute: Mutex<(u64, u32)>,
}

type App = State<Arc<Gateway>>;

/// Runs until a signal stops it.
pub async fn serve(config: Config) -> Result<(), String> {
    let metrics = Arc::new(Metrics::new()?);
    let gate = Gate::load(&config.data, config.kill_switch);
    metrics.gate_closed.set(i64::from(gate.position().closed));
    let gateway = Arc::new(Gateway {
        config: config.clone(),
        gate,
        metrics: metrics.clone(),
        sessions: Arc::default(),
        upstream: Upstream::new(),
        minute: Mutex::default(),
    });
    let room = Room::new(&config);
    let routes = Router::new()
        .route("/stream", get(stream))
        .route("/cancel", post(cancel))
        .route("/report", get(to_engine))
        .route("/jobs", get(to_jobs))
        .route("/jobs/stream", get(jobs_stream))
        .route("/jobs/cancel", post(to_jobs))
        .layer(middleware::from_fn_with_state(config.fault, fault::inner_layer))
        .layer(middleware::from_fn_with_state(room.clone(), public_places))
        .layer(middleware::from_fn_with_state(gateway.clone(), behind_gate))
        .route("/healthz", get(healthz))
        .route("/admin/kill-switch", get(gate_position).post(set_gate))
        .route("/admin/sessions", get(sessions))
        .route("/admin/seed", post(seed))
        .route("/admin/metrics", get(metrics_summary))
        .with_state(gateway);
    http::serve(config, metrics, &room, routes).await
}

async fn behind_gate(State(gateway): App, request: Request, next: Next) -> Response {
    let position = gateway.gate.position();
    let lying = gateway.config.fault == Fault::LyingGate;
    if has_token(&gateway.config, request.headers()) {
        return next.run(request).await;
    }
    if !position.closed && gateway.config.fault == Fault::FailsWhenOpen {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if !position.closed || lying {
        return next.run(request).await;
    }
    match slow_down(request.headers()).await {
        Ok(()) => {
            let closed = StatusCode::SERVICE_UNAVAILABLE;
            Refusal::later(closed, "gate_closed", position.refusal(), RETRY_AFTER).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn healthz(State(gateway): App) -> Response {
    let mut answer = healthy(&gateway.config);
    let position = gateway.gate.position();
    if !position.closed && fault::has_turned_bad(gateway.config.fault, position.since_ms, http::now_ms()) {
        answer["status"] = json!("unhealthy");
        answer["reason"] = json!("out of sorts");
        return (StatusCode::SERVICE_UNAVAILABLE, Json(answer)).into_response();
    }
    if position.closed {
        answer["status"] = json!("disabled");
        answer["reason"] = json!("Kill switch active");
        answer["detail"] = json!(position.reason);
    }
    Json(answer).into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StreamQuery {
    route: String,
    seed: Option<u64>,
    session_id: Option<String>,
    budget: Option<u32>,
}

async fn stream(
    State(gateway): App,
    method: Method,
    headers: HeaderMap,
    Query(query): Query<StreamQuery>,
) -> Result<Response, Refusal> {
    let started = Instant::now();
    let run = gateway.check(&query, &headers)?;
    if method == Method::HEAD {
        return Ok(http::stream_head());
    }
    gateway.count_stream()?;
    // Watch the gate before the engine is asked, so that no change in between is lost.
    let probe = has_token(&gateway.config, &headers);
    let ticket = gateway
        .sessions
        .begin(query.session_id, run.seed, run.have > 0)
        .map_err(|taken| match taken {
            Taken::Active(id) => ("session_active", format!("{id} is streaming")),
            Taken::Cancelled(id) => ("session_cancelled", format!("{id} was cancelled: begin a new one")),
        })
        .map_err(|(code, message)| Refusal::new(StatusCode::CONFLICT, code, message))?;
    let around = Surroundings {
        ticket,
        sessions: gateway.sessions.clone(),
        gate: (!probe).then(|| gateway.gate.watch()),
        metrics: gateway.metrics.clone(),
    };
    let (client, receiver) = mpsc::channel::<Result<Event, Infallible>>(16);
    tokio::spawn(async move {
        let asked = run.clone();
        pump(run, gateway.ask_engine(&asked, &headers), around, client, started).await;
    });
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response())
}

impl Gateway {
    fn check(&self, query: &StreamQuery, headers: &HeaderMap) -> Result<Run, Refusal> {
        if !ROUTES.contains(&query.route.as_str()) {
            return Err(Refusal::bad("unknown_route", format!("route: one of {}", ROUTES.join(", "))));
        }
        if let Some(id) = &query.session_id {
            check_id("sessionId", id).map_err(|m| Refusal::bad("bad_query", m))?;
        }
        let budget = query.budget.unwrap_or(self.config.quota_per_run);
        if budget == 0 || budget > self.config.max_tokens_per_run {
            let message = format!("budget: 1 to {} tokens", self.config.max_tokens_per_run);
            return Err(Refusal::bad("bad_budget", message));
        }
        let have = match headers.get("last-event-id").map(HeaderValue::to_str) {
            None => 0,
            Some(Ok(id)) => id
                .strip_prefix("msg_")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| Refusal::bad("bad_last_event_id", "Last-Event-ID: as in msg_001"))?,
            Some(Err(e)) => return Err(Refusal::bad("bad_last_event_id", e.to_string())),
        };
        Ok(Run {
            route: query.route.clone(),
            seed: query.seed.unwrap_or(self.config.default_seed),
            budget,
            have,
            echo_seed: self.config.flag("ENABLE_SEED_ECHO"),
            deterministic: self.config.flag("ENABLE_DETERMINISTIC_REPLAY"),
        })
    }

    fn count_stream(&self) -> Result<(), Refusal> {
        if !self.config.flag("ENABLE_RATE_LIMITING") {
            return Ok(());
        }
        let minute = http::now_ms() / 60_000;
        let mut now = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if now.0 != minute {
            *now = (minute, 0);
        }
        now.1 += 1;
        if now.1 > self.config.quota_per_minute {
            let message = format!("over {} streams a minute", self.config.quota_per_minute);
            return Err(Refusal::later(StatusCode::TOO_MANY_REQUESTS, "quota", message, 60));
        }
        Ok(())
    }

    async fn ask_engine(&self, run: &Run, headers: &HeaderMap) -> Result<Lines, String> {
        let url = format!(
            "{}/generate?route={}&seed={}&budget={}&from={}",
            self.config.engine_url,
            run.route,
            run.seed,
            run.budget,
            run.first_token()
        );
        let sent = self.upstream.open(Method::GET, &url, headers, Bytes::new()).await;
        let (head, body) = sent.map_err(|r| r.message)?;
        let mut lines = Lines::new(body);
        if head.status == StatusCode::OK {
            return Ok(lines);
        }
        let status = head.status;
        let line = lines.next().await?.unwrap_or_default();
        let said: Value = serde_json::from_slice(&line).unwrap_or_default();
        Err(said["message"].as_str().map_or_else(|| format!("the engine answered {status}"), str::to_owned))
    }

    /// Passes a request on unchanged, once it is complete.
    async fn pass(&self, base: &str, request: Request) -> Result<Response, Refusal> {
        let (parts, body) = request.into_parts();
        let url = format!("{base}{}", parts.uri.path_and_query().map_or("/", |p| p.as_str()));
        self.upstream.ask(parts.method, &url, &parts.headers, http::bytes(body).await?).await
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cancel {
    session_id: String,
}

async fn cancel(State(gateway): App, request: Request) -> Result<Response, Refusal> {
    let wish: Cancel = body(request).await?;
    let (status, word) = match gateway.sessions.cancel(&wish.session_id) {
        Cancelled::Now => (StatusCode::ACCEPTED, "cancelling"),
        Cancelled::Already => (StatusCode::CONFLICT, "already_cancelled"),
        Cancelled::Finished => (StatusCode::CONFLICT, "already_finished"),
        Cancelled::Unknown => {
            let message = format!("no session {}", wish.session_id);
            return Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_session", message));
        }
    };
    Ok((status, Json(json!({"status": word}))).into_response())
}

async fn to_engine(State(gateway): App, request: Request) -> Result<Response, Refusal> {
    gateway.pass(&gateway.config.engine_url, request).await
}

async fn to_jobs(State(gateway): App, request: Request) -> Result<Response, Refusal> {
    gateway.pass(&gateway.config.jobs_url, request).await
}

/// The event stream of the jobs service. It ends when the gate closes.
async fn jobs_stream(State(gateway): App, request: Request) -> Result<Response, Refusal> {
    let probe = has_token(&gateway.config, request.headers());
    let mut gate = gateway.gate.watch();
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let url = format!("{}{path}", gateway.config.jobs_url);
    let asked = gateway.upstream.open(request.method().clone(), &url, request.headers(), Bytes::new()).await;
    let (head, mut from) = asked?;
    let stays_open = probe || head.status != StatusCode::OK;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, String>>(16);
    tokio::spawn(async move {
        loop {
            let part = tokio::select! {
                biased;
                reason = gate::closed(&mut gate), if !stays_open => {
                    let data = json!({"reason": reason, "timestamp": http::now_ms()});
                    drop(sender.send(Ok(format!("event: cancelled\ndata: {data}\n\n").into())).await);
                    return;
                }
                () = sender.closed() => return,
                part = from.part() => part,
            };
            let Some(part) = part.transpose() else { return };
            let last = part.is_err();
            if sender.send(part).await.is_err() || last {
                return;
            }
        }
    });
    Ok(Response::from_parts(head, Body::from_stream(ReceiverStream::new(receiver))))
}

async fn gate_position(State(gateway): App, headers: HeaderMap) -> Result<Json<Value>, Refusal> {
    admin(&gateway.config, &headers).await?;
    Ok(Json(json!(gateway.gate.position())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetGate {
    enabled: bool,
    #[serde(default)]
    reason: String,
}

async fn set_gate(State(gateway): App, headers: HeaderMap, request: Request) -> Result<Json<Value>, Refusal> {
    admin(&gateway.config, &headers).await?;
    let wish: SetGate = body(request).await?;
    let reason = if wish.reason.is_empty() { "no reason given" } else { &wish.reason };
    let set = gateway.gate.set(wish.enabled, reason);
    let closed = gateway.gate.position().closed;
    gateway.metrics.gate_closed.set(i64::from(closed));
    // The reason is not logged, because request bodies are never logged. The position keeps it.
    tracing::warn!(closed, "kill switch");
    let position = set.map_err(|e| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "gate_not_saved", e))?;
    Ok(Json(json!(position)))
}

async fn sessions(State(gateway): App, headers: HeaderMap) -> Result<Json<Value>, Refusal> {
    admin(&gateway.config, &headers).await?;
    let all: Vec<Value> = gateway
        .sessions
        .list()
        .into_iter()
        .map(|(id, seed)| json!({"sessionId": id, "seed": seed}))
        .collect();
    Ok(Json(json!({"active": all.len(), "sessions": all})))
}

async fn seed(State(gateway): App, headers: HeaderMap, request: Request) -> Result<Response, Refusal> {
    admin(&gateway.config, &headers).await?;
    let (parts, body) = request.into_parts();
    let url = format!("{}/scenarios", gateway.config.engine_url);
    gateway.upstream.ask(parts.method, &url, &parts.headers, http::bytes(body).await?).await
}

async fn metrics_summary(State(gateway): App, headers: HeaderMap) -> Result<Json<Value>, Refusal> {
    admin(&gateway.config, &headers).await?;
    Ok(Json(gateway.metrics.summary()))
}
