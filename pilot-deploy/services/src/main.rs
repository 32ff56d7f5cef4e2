//! One static binary with three roles: `scenario gateway|engine|jobs`. It also has two one-off commands:
//! `healthcheck` (the health probe of the container) and `gate` (the kill switch on disk, for a gateway that
//! does not answer). This file only dispatches; each role is in its own module. The role comes from the
//! argument, or from `SCENARIO_ROLE`, which each image sets.

mod auth;
mod config;
mod connections;
mod engine;
mod fault;
mod gate;
mod gateway;
mod healthcheck;
mod http;
mod jobs;
mod metrics;
mod refusal;
mod report;
mod seed;
mod sessions;
mod simulate;
mod store;
mod stream;
mod upstream;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.is_empty()
        && let Ok(role) = std::env::var("SCENARIO_ROLE")
    {
        args.push(role);
    }
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["gateway"] => serve(gateway::serve),
        ["engine"] => serve(engine::serve),
        ["jobs"] => serve(jobs::serve),
        ["healthcheck"] => healthcheck::run(),
        ["gate", rest @ ..] => gate::run_command(rest),
        _ => Err(format!(
            "usage: scenario gateway|engine|jobs|healthcheck|gate close REASON|gate open|gate status (got {words:?})"
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("scenario: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the settings, starts the runtime and runs one role until a signal stops it.
fn serve<F, S>(role: F) -> Result<(), String>
where
    F: FnOnce(config::Config) -> S,
    S: Future<Output = Result<(), String>>,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_max_level(config::log_level()?)
        .init();
    let config = config::Config::from_env()?;
    fault::at_start(config.fault, &config.data)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?
        .block_on(role(config))
}
