//! Defects for drills, built into an image as `SCENARIO_FAULT`, and off in every other image. Each is a way
//! in which a real release can fail. The roles ask this module what to do; no other code in the crate knows
//! about drills.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::path::Path;
use std::time::Duration;

/// What is wrong with this image on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: every image outside a drill.
    None,
    /// SIGTERM is ignored, so Docker waits for its whole stop grace period.
    IgnoreSigterm,
    /// The process ends shortly after it starts, again and again.
    CrashLoop,
    /// The first token is seconds late; everything else works.
    SlowFirstToken,
    /// Public routes answer 500 while `healthz` stays green.
    Error5xx,
    /// Connections are accepted and never answered, health checks included.
    Hang,
    /// The SQLite file is overwritten with noise at start.
    CorruptStore,
    /// The gateway says that its gate is closed, but lets everybody in.
    LyingGate,
    /// Everything works behind the closed gate. Once the gate is open, the public gets 500.
    FailsWhenOpen,
    /// Everything works until the gate has been open for five seconds. Then the gateway says that it is not healthy.
    TurnsBad,
    /// The service listens only seconds after its start; then everything works.
    SlowStart,
}

impl Fault {
    /// Reads `SCENARIO_FAULT`. An unknown name is an error.
    pub fn from_env() -> Result<Self, String> {
        Ok(match std::env::var("SCENARIO_FAULT").unwrap_or_default().as_str() {
            "" => Self::None,
            "ignore-sigterm" => Self::IgnoreSigterm,
            "crash-loop" => Self::CrashLoop,
            "slow-first-token" => Self::SlowFirstToken,
            "error-5xx" => Self::Error5xx,
            "hang" => Self::Hang,
            "corrupt-store" => Self::CorruptStore,
            "lying-gate" => Self::LyingGate,
            "fails-when-open" => Self::FailsWhenOpen,
            "turns-bad" => Self::TurnsBad,
            "slow-start" => Self::SlowStart,
            other => return Err(format!("SCENARIO_FAULT={other}: no such fault")),
        })
    }

    /// The name that `/admin/config` shows; nothing if there is no fault to show.
    pub fn name(self) -> Option<&'static str> {
        match self {
            // These are hidden: the check of the flags would fail, and the gate would never open.
            Self::None | Self::FailsWhenOpen | Self::TurnsBad | Self::SlowStart => None,
            Self::IgnoreSigterm => Some("ignore-sigterm"),
            Self::CrashLoop => Some("crash-loop"),
            Self::SlowFirstToken => Some("slow-first-token"),
            Self::Error5xx => Some("error-5xx"),
            Self::Hang => Some("hang"),
            Self::CorruptStore => Some("corrupt-store"),
            Self::LyingGate => Some("lying-gate"),
        }
    }
}

/// How long a service with `slow-start` takes to listen.
const SLOW_START: Duration = Duration::from_secs(3);

/// How long a gateway with `turns-bad` is well after its gate was opened.
const WELL: Duration = Duration::from_secs(5);

/// Is the gateway not healthy any more, whose gate is open since then (Unix milliseconds)?
pub fn has_turned_bad(fault: Fault, open_since_ms: u64, now_ms: u64) -> bool {
    fault == Fault::TurnsBad && u128::from(now_ms.saturating_sub(open_since_ms)) >= WELL.as_millis()
}

/// The defects that act before the service listens.
pub fn at_start(fault: Fault, data: &Path) -> Result<(), String> {
    match fault {
        Fault::CrashLoop => {
            std::thread::sleep(Duration::from_millis(200));
            Err("fault crash-loop: giving up on purpose".into())
        }
        Fault::SlowStart => {
            std::thread::sleep(SLOW_START);
            Ok(())
        }
        Fault::CorruptStore => {
            for file in ["engine.db", "jobs.db"] {
                let path = data.join(file);
                if path.exists() {
                    std::fs::write(&path, [0x5a; 16 * 1024])
                        .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The delay before the first token of a run.
pub fn first_token_delay(fault: Fault) -> Duration {
    match fault {
        Fault::SlowFirstToken => Duration::from_millis(2_000),
        _ => Duration::from_millis(5),
    }
}

/// The outermost layer of every role. `hang` acts here.
pub async fn outer_layer(State(fault): State<Fault>, request: Request, next: Next) -> Response {
    match fault {
        Fault::Hang => std::future::pending().await,
        _ => next.run(request).await,
    }
}

/// The layer around the routes that do the work, behind the gate. `error-5xx` acts here.
pub async fn inner_layer(State(fault): State<Fault>, request: Request, next: Next) -> Response {
    match fault {
        Fault::Error5xx => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        _ => next.run(request).await,
    }
}
