//! What the three roles share over HTTP: queries and bodies, headers, `healthz`, `/metrics`, listening and
//! stopping. Each role adds its own routes; this module knows none of them.

use crate::auth::admin;
use crate::config::Config;
use crate::connections::{self, Room};
use crate::fault::{self, Fault};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// Limit for the body of a request.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// Parses the query string. A wrong one is a 400 in the form of `refusal`, not in the framework's form.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|e| Refusal::bad("bad_query", e.body_text()))
    }
}

/// Reads the whole body of a request, at most 256 KiB.
pub async fn bytes(body: Body) -> Result<Bytes, Refusal> {
    let whole = tokio::time::timeout(BODY_LIMIT, axum::body::to_bytes(body, 256 * 1024)).await;
    let slow = |_| {
        let message = format!("the body was not there within {} s", BODY_LIMIT.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message)
    };
    whole.map_err(slow)?.map_err(|e| Refusal::bad("bad_body", e.to_string()))
}

/// Parses a JSON body, whatever its content type.
pub async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let bytes = bytes(request.into_body()).await?;
    serde_json::from_slice(&bytes).map_err(|e| Refusal::bad("bad_body", e.to_string()))
}

/// The body of `healthz` for a healthy service.
pub fn healthy(config: &Config) -> Value {
    json!({
        "status": "healthy",
        "version": config.version,
        "project": config.project,
        "timestamp": now_ms(),
    })
}

/// The answer to HEAD of an event stream. No run is started for it.
pub fn stream_head() -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], ()).into_response()
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Adds what every role has (`/metrics`, `/admin/config`, headers, CORS, logs, faults), then listens until
/// SIGTERM or SIGINT. It stops at once: its state is on disk, and a client can resume its stream later.
pub async fn serve(config: Config, metrics: Arc<Metrics>, room: &Room, routes: Router) -> Result<(), String> {
    let shared = (Arc::new(config.clone()), metrics);
    let common = Router::new()
        .route("/metrics", axum::routing::get(metrics_page))
        .route("/admin/config", axum::routing::get(admin_config))
        .with_state(shared.clone());
    let app = routes
        .merge(common)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(first_origin(&config)?, secure_headers))
        .layer(cors(&config)?)
        .layer(middleware::from_fn_with_state(shared, observe))
        .layer(middleware::from_fn_with_state(config.fault, fault::outer_layer));
    let listener = tokio::net::TcpListener::bind(&config.listen)
        .await
        .map_err(|e| format!("cannot listen on {}: {e}", config.listen))?;
    tracing::info!(listen = config.listen, version = config.version, "listening");
    tokio::select! {
        () = connections::serve(listener, app, room) => Ok(()),
        signal = stop_signal(config.fault) => {
            tracing::info!(signal = signal?, "stopping");
            // Exit here. After a return, the runtime would wait for tasks that still block.
            std::process::exit(0)
        }
    }
}

async fn stop_signal(fault: Fault) -> Result<&'static str, String> {
    use tokio::signal::unix::{SignalKind, signal};
    let said = |e: std::io::Error| format!("cannot listen for signals: {e}");
    let mut terminate = signal(SignalKind::terminate()).map_err(said)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(said)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => if fault != Fault::IgnoreSigterm { return Ok("SIGTERM") },
            _ = interrupt.recv() => return Ok("SIGINT"),
        }
    }
}

type Shared = (Arc<Config>, Arc<Metrics>);

async fn metrics_page(State((_, metrics)): State<Shared>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(e) => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "metrics", e).into_response(),
    }
}

async fn admin_config(State((config, _)): State<Shared>, headers: HeaderMap) -> Result<Json<Value>, Refusal> {
    admin(&config, &headers).await?;
    Ok(Json(config.effective()))
}

async fn no_route(request: Request) -> Refusal {
    let message = format!("no route {} {}", request.method(), request.uri().path());
    Refusal::new(StatusCode::NOT_FOUND, "no_route", message)
}

async fn no_method(request: Request) -> Refusal {
    let message = format!("{} is not for {}", request.method(), request.uri().path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", message)
}

/// The headers of every answer. The CORS layer answers a request with an origin. A request without one (old
/// clients) gets the first allowed origin, if it only reads.
async fn secure_headers(State(first): State<Option<HeaderValue>>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let origin = first.filter(|_| reads && !request.headers().contains_key(header::ORIGIN));
    let mut response = next.run(request).await;
    let stream = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    let cache = if stream { "no-store, no-cache, must-revalidate" } else { "no-store" };
    for (name, value) in [
        (header::CACHE_CONTROL, cache),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

fn first_origin(config: &Config) -> Result<Option<HeaderValue>, String> {
    let any = config.cors_origins.iter().find(|o| *o == "*");
    let first = any.or(config.cors_origins.first()).map(|o| o.parse()).transpose();
    first.map_err(|e| format!("CORS_ORIGINS: {e}"))
}

fn cors(config: &Config) -> Result<CorsLayer, String> {
    let origin = if config.cors_origins.iter().any(|o| o == "*") {
        AllowOrigin::any()
    } else {
        let parsed: Result<Vec<HeaderValue>, _> = config.cors_origins.iter().map(|o| o.parse()).collect();
        AllowOrigin::list(parsed.map_err(|e| format!("CORS_ORIGINS: {e}"))?)
    };
    Ok(CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("last-event-id"),
        ]))
}

/// Counts and logs each request: method, route and status, but never a body or a query.
async fn observe(
    State((_, metrics)): State<Shared>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let route = path.map_or_else(|| "unmatched".to_owned(), |p| p.as_str().to_owned());
    let method = request.method().clone();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    metrics.request(&route, status);
    let elapsed_ms = start.elapsed().as_millis() as u64;
    if route == "/healthz" || route == "/metrics" {
        tracing::debug!(%method, route, status, elapsed_ms, "request");
    } else {
        tracing::info!(%method, route, status, elapsed_ms, "request");
    }
    response
}
