//! The admin token. A request with the right token is answered at once, whatever else happens. Wrong tokens
//! are answered slowly and only a few at a time, so that guessing is slow and costs little. Called by every
//! layer and route that needs the token.

use crate::config::Config;
use crate::refusal::Refusal;
use axum::http::{HeaderMap, StatusCode, header};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How many wrong tokens are answered at the same time. More are refused at once.
static GUESSES: Semaphore = Semaphore::const_new(4);

/// How long the answer to a wrong token takes.
const GUESS: Duration = Duration::from_millis(250);

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Has this request the admin token? An empty token never counts.
pub fn has_token(config: &Config, headers: &HeaderMap) -> bool {
    let (Some(given), wanted) = (bearer(headers), config.admin_token.as_bytes()) else { return false };
    // Takes the same time for every wrong token, so that it cannot be guessed byte by byte.
    let differs = given.len() ^ wanted.len();
    let differs = given.bytes().zip(wanted).fold(differs, |acc, (a, b)| acc | usize::from(a ^ b));
    !wanted.is_empty() && differs == 0
}

/// Waits before a refusal that the right token would have avoided. If the request has a token, it is wrong:
/// then the answer is slow, or a 429 while others are guessing too.
pub async fn slow_down(headers: &HeaderMap) -> Result<(), Refusal> {
    if bearer(headers).is_none() {
        return Ok(());
    }
    let Ok(_place) = GUESSES.try_acquire() else {
        let message = "too many wrong tokens at once";
        return Err(Refusal::later(StatusCode::TOO_MANY_REQUESTS, "too_many_guesses", message, 1));
    };
    tokio::time::sleep(GUESS).await;
    Ok(())
}

/// Passes on admin requests with the token, and all admin requests with `ADMIN_AUTH=off`. A request that
/// names another project (`X-Pilot-Project`) is refused, because it was sent to the wrong port.
pub async fn admin(config: &Config, headers: &HeaderMap) -> Result<(), Refusal> {
    if let Some(project) = headers.get("x-pilot-project")
        && project.as_bytes() != config.project.as_bytes()
    {
        let message = format!("this is project {}", config.project);
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "other_project", message));
    }
    if !config.admin_auth || has_token(config, headers) {
        return Ok(());
    }
    slow_down(headers).await?;
    let message = "send Authorization: Bearer $ADMIN_TOKEN (it is in .env.poc)";
    Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", message))
}
