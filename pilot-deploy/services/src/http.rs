//! What the three roles share over HTTP: error bodies, headers, `healthz`, `/metrics`, the admin
//! check, listening and stopping. Roles add their own routes; none of them is known here.

use crate::config::Config;
use crate::fault::{self, Fault};
use crate::metrics::Metrics;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// A refusal: `{"error": CODE, "message": …}` with its status.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// Word that programs match on.
    pub code: &'static str,
    /// Sentence for people.
    pub message: String,
}

impl Refusal {
    /// A 400.
    pub fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message: message.into() }
    }

    /// Any other status.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"error": self.code, "message": self.message}))).into_response()
    }
}

/// Query string into `T`; what does not fit is a 400 of ours, not the framework's text.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|e| Refusal::bad("bad_query", e.body_text()))
    }
}

/// A JSON body into `T`, at most 256 KiB, whatever content type the client named.
pub async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let bytes = axum::body::to_bytes(request.into_body(), 256 * 1024)
        .await
        .map_err(|e| Refusal::bad("bad_body", e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| Refusal::bad("bad_body", e.to_string()))
}

/// Does this request carry the admin token? An empty token opens nothing.
pub fn has_token(config: &Config, headers: &HeaderMap) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    let (Some(given), wanted) = (given, config.admin_token.as_bytes()) else { return false };
    // Same time whatever differs, so that the token cannot be guessed byte by byte.
    let differs = given.len() ^ wanted.len();
    let differs = given.bytes().zip(wanted).fold(differs, |acc, (a, b)| acc | usize::from(a ^ b));
    !wanted.is_empty() && differs == 0
}

/// Lets admin requests through that carry the token, and all of them with `ADMIN_AUTH=off`. A
/// request that names another deployment (`X-Pilot-Project`) is refused: it has the wrong port.
pub fn admin(config: &Config, headers: &HeaderMap) -> Result<(), Refusal> {
    if let Some(project) = headers.get("x-pilot-project")
        && project.as_bytes() != config.project.as_bytes()
    {
        let message = format!("this is project {}", config.project);
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "other_project", message));
    }
    if !config.admin_auth || has_token(config, headers) {
        return Ok(());
    }
    let message = "send Authorization: Bearer $ADMIN_TOKEN (it is in .env.poc)";
    Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", message))
}

/// Body of a healthy `healthz`.
pub fn healthy(config: &Config) -> Value {
    json!({
        "status": "healthy",
        "version": config.version,
        "project": config.project,
        "timestamp": now_ms(),
    })
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Adds what every role has (`/metrics`, `/admin/config`, headers, CORS, logs, faults), then listens
/// until SIGTERM or SIGINT. It stops at once: state is on disk and streams resume elsewhere.
pub async fn serve(config: Config, metrics: Arc<Metrics>, routes: Router) -> Result<(), String> {
    let shared = (Arc::new(config.clone()), metrics);
    let common = Router::new()
        .route("/metrics", axum::routing::get(metrics_page))
        .route("/admin/config", axum::routing::get(admin_config))
        .with_state(shared.clone());
    let app = routes
        .merge(common)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn(secure_headers))
        .layer(cors(&config)?)
        .layer(middleware::from_fn_with_state(shared, observe))
        .layer(middleware::from_fn_with_state(config.fault, fault::outer_layer));
    let listener = tokio::net::TcpListener::bind(&config.listen)
        .await
        .map_err(|e| format!("cannot listen on {}: {e}", config.listen))?
        // Events are small: held back until the last one is acknowledged, each would come 40 ms late.
        .tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "no nodelay");
            }
        });
    tracing::info!(listen = config.listen, version = config.version, "listening");
    tokio::select! {
        served = axum::serve(listener, app) => served.map_err(|e| format!("cannot serve: {e}")),
        signal = stop_signal(config.fault) => {
            tracing::info!(signal = signal?, "stopping");
            // Not a return: the runtime would wait for what still blocks.
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
    admin(&config, &headers)?;
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

async fn secure_headers(request: Request, next: Next) -> Response {
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
    response
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

/// Counts and logs each request: method, route and status, never a body or a query.
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
