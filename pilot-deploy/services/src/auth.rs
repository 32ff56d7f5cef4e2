//! The admin token: who has it, and what a wrong one costs. Whoever has it is answered at once, whatever
//! else goes on; wrong ones are looked at a few at a time, so that guessing is slow and cheap to bear.
//! Called by every layer and route where the token makes a difference.

use crate::config::Config;
use crate::refusal::Refusal;
use axum::http::{HeaderMap, StatusCode, header};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Wrong tokens that are answered at the same time; more are refused unseen.
static GUESSES: Semaphore = Semaphore::const_new(4);

/// How long the answer to a wrong token takes.
const GUESS: Duration = Duration::from_millis(250);

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Does this request carry the admin token? An empty token opens nothing.
pub fn has_token(config: &Config, headers: &HeaderMap) -> bool {
    let (Some(given), wanted) = (bearer(headers), config.admin_token.as_bytes()) else { return false };
    // Same time whatever differs, so that the token cannot be guessed byte by byte.
    let differs = given.len() ^ wanted.len();
    let differs = given.bytes().zip(wanted).fold(differs, |acc, (a, b)| acc | usize::from(a ^ b));
    !wanted.is_empty() && differs == 0
}

/// To be awaited before a refusal that the right token would have been spared: if the request carries a
/// token, it is a wrong one, and its sender learns so slowly, or nothing at all while others guess.
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

/// Lets admin requests through that carry the token, and all of them with `ADMIN_AUTH=off`. A
/// request that names another deployment (`X-Pilot-Project`) is refused: it has the wrong port.
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
