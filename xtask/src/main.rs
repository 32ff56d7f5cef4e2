//! `cargo xtask`: see `docs/architecture.md` for the map. This file takes the command line apart, calls
//! the command, and turns what comes back into the last line and the exit code.

mod archive;
mod ask;
mod backup;
mod bench;
mod candidate;
mod cli;
mod commands;
mod deadline;
mod deploy;
mod drift;
mod drill;
mod engine;
mod envfile;
mod escalation;
mod evidence;
mod execute;
mod failure;
mod fence;
mod files;
mod gate;
mod host;
mod http;
mod journal;
mod lock;
mod observe;
mod pilot;
mod plan;
mod portable;
mod proc;
mod rehearsal;
mod release;
mod report;
mod rollback;
mod secrets;
mod threads;
mod tree;
mod up;
mod verify;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command};
use commands::{assess, diagnose, flags, preflight, seed, snapshot};
use commands::{ci, down, kill_switch, releases, reset, smoke, status};
use deploy::Session;
use failure::Exit;
use journal::{Event, Finished, Outcome, Output};
use pilot::Pilot;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let start = Instant::now();
    let cli = Cli::parse();
    if let Command::Supervise { file } = &cli.command {
        return match engine::supervise(file) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("supervise: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let out = Output::new(cli.format, start);
    let finished = proc::forward_signals()
        .and_then(|()| run(&cli, start))
        .unwrap_or_else(|error| Finished::refused(&error))
        .masked();
    conclude(&out, &finished, matches!(cli.command, Command::Drill(_)));
    ExitCode::from(finished.exit_code)
}

fn run(cli: &Cli, start: Instant) -> Result<Finished> {
    let pilot = Pilot::find(&cli.project)?;
    let out = Output::new(cli.format, start);
    match &cli.command {
        Command::Ci(_) => return ci::run(&pilot),
        Command::Drill(args) => return drill::run(args, cli.engine, &pilot, out),
        Command::Bench(args) => return bench::run(args, &pilot, &out),
        _ => {}
    }
    let engine = engine::choose(&pilot, cli.engine)?;
    let store = release::Store::new(&pilot.state);
    let session = Session { pilot, engine, store, out };
    let escalates = matches!(cli.command, Command::Rollback(_) | Command::Reset(_) | Command::Diagnose(_));
    let manifest = session.pilot.manifest.clone();
    let mut finished = dispatch(cli, &session).unwrap_or_else(|error| Finished::refused(&error));
    if escalates && finished.escalation.is_none() {
        finished.escalation = Some(escalation::of(finished.exit_code, &manifest));
    }
    Ok(finished)
}

fn dispatch(cli: &Cli, session: &Session) -> Result<Finished> {
    match &cli.command {
        Command::Rollback(args) => rollback::run(args, cli.yes, session),
        Command::Reset(args) => reset::run(args, cli.yes, session),
        Command::Assess(_) => assess::run(session),
        Command::Diagnose(_) => diagnose::run(session),
        Command::Evidence(args) => commands::evidence::run(args, session),
        Command::Preflight(_) => preflight::run(session),
        Command::Flags(_) => flags::run(session),
        Command::Snapshot(args) => snapshot::run(args, session),
        Command::Seed(args) => seed::run(args, session),
        Command::Backup(args) => commands::backup::run(args, cli.yes, session),
        Command::Host(args) => commands::host::run(args, cli.yes, session),
        Command::Observe(args) => commands::observe::run(args, session),
        Command::KillSwitch(args) => kill_switch::run(args, session),
        Command::Status(_) => status::run(session),
        Command::Smoke(_) => smoke::run(session),
        Command::Up(args) => up::run(args, session),
        Command::Down(_) => down::run(session),
        Command::Releases(args) => releases::run(args, session),
        Command::Ci(_) | Command::Drill(_) | Command::Bench(_) | Command::Supervise { .. } => {
            Ok(Finished::plain(Exit::Ok))
        }
    }
}

/// The last line: an event, or what a person wants to know.
fn conclude(out: &Output, finished: &Finished, drill: bool) {
    out.event(&Event::Finished(finished));
    if drill && finished.rollback.is_some() {
        // The rollback in it has told the rest.
        let good = finished.exit_code == 0;
        out.say(format!("\n{} drill {}", out.mark(Some(good)), if good { "passed" } else { "failed" }));
        return;
    }
    let seconds = |ms: u64| format!("{:.2} s", ms as f64 / 1e3);
    let release = finished.release.as_deref().unwrap_or("?");
    match finished.outcome {
        Some(Outcome::Restored) => {
            out.say(format!("\n{} RESTORED: release {release} serves again", out.mark(Some(true))));
            if let (Some(closed), Some(restored)) = (finished.gate_closed_ms, finished.restored_ms) {
                let (closed, restored) = (seconds(closed), seconds(restored));
                out.say(format!("  gate closed after {closed}, first public token after {restored}"));
            }
        }
        Some(Outcome::NothingToDo) => {
            out.say(format!(
                "\n{} nothing to do: release {release} runs, unchanged and verified",
                out.mark(Some(true))
            ));
            out.say("  to go back further: cargo xtask rollback --to previous");
        }
        _ => {}
    }
    if finished.outcome == Some(Outcome::NotRestored) && finished.gate_closed_ms.is_some() {
        out.say("\n  the gate stays closed until something is verified");
    }
    if let Some(report) = &finished.report {
        out.say(format!("  report {report}"));
    }
    if let (Some(error), false) = (&finished.error, out.is_json()) {
        let head = match finished.exit_code {
            1 | 3 if finished.rollback.is_some() => "NOT RESTORED: ",
            4 => "HOST OR ENGINE FAILURE (Level 3, infrastructure): ",
            _ => "error: ",
        };
        eprintln!("{} {head}{error}", out.mark(Some(false)));
    }
    if let (Some(escalation), false) = (&finished.escalation, out.is_json()) {
        eprintln!("  {escalation}");
    }
    if let (Some(next), false) = (&finished.next, out.is_json()) {
        eprintln!("  next: {next}");
    }
}
