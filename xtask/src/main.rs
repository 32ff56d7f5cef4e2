//! `cargo xtask`: parses the command line, calls the command, and turns its result into the last line and the
//! exit code. No command does its work here. `docs/architecture.md` has the map of the code.

// See `base::stderr`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod base;
mod checks;
mod cli;
mod commands;
mod deploy;
mod engine;
mod host;
mod operations;
mod rehearsal;
mod release;
mod stack;

use crate::base::courier::{self, Courier};
use crate::base::failure::{Exit, exit_of, fail, next_of};
use crate::base::next::{Context, Next};
use crate::base::output::{Format, Loudness, Output, Style};
use crate::base::screen;
use crate::base::signals;
use crate::base::stderr;
use crate::deploy::event::{Event, Finished, Outcome};
use crate::deploy::session::Session;
use crate::engine::roles::Engine;
use crate::operations::look::is_a_project;
use crate::operations::{notify, pipeline, register};
use crate::release::store::Store;
use crate::stack::escalation::{self, Escalation};
use crate::stack::manifest::Manifest;
use crate::stack::pilot::{By, Pilot};
use anyhow::Result;
use cli::{Cli, Command};
use commands::{assess, completions, diagnose, flags, man, preflight, seed, snapshot};
use commands::{bench, ci, down, drill, guard, kill_switch, releases, reset, rollback, smoke, status};
use commands::{torture, up};
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let start = Instant::now();
    if std::env::args_os().len() == 1 {
        Output::new(Style::PLAIN, start, Context::default()).say(Cli::overview());
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return mistyped(&error, start),
    };
    let helper = match &cli.command {
        Command::Supervise { file } => Some(engine::supervise(file)),
        Command::Unpause { file, limit_ms } => {
            Some(engine::pause::help(file, Duration::from_millis(*limit_ms)))
        }
        Command::Deliver => Some(courier::help()),
        _ => None,
    };
    if let Some(ended) = helper {
        return match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                stderr::line(format!("{error:#}"));
                ExitCode::FAILURE
            }
        };
    }
    // Before anything else: this may begin the program again.
    let chosen = cli.choose_context();
    let context = cli.context();
    let style = cli.style();
    let out = Output::new(style, start, context.clone());
    screen::begin(cli.screen(), style.loudness == Loudness::Verbose, signals::stopped);
    // Whoever watches has seen enough when they end it.
    signals::only_looks(match &cli.command {
        Command::Status(args) => args.watch.is_some(),
        Command::Guard(_) => true,
        _ => false,
    });
    let finished = chosen
        .and_then(|()| listen(style, start))
        .and_then(|()| run(&cli, start))
        .unwrap_or_else(|error| Finished::refused(&error, &context))
        .masked();
    signals::over();
    screen::end();
    register::end(&finished, &out);
    pipeline::tell(verdict(&finished, &cli.command), &finished, &out);
    conclude(&out, &finished, &cli.command);
    if let Some(why) = screen::lost() {
        stderr::line(format!("{} standard output could not be written: {why}", out.mark(Some(false))));
        // What was to be shown was not; but what was done was done.
        if finished.exit == Exit::Ok && finished.outcome.is_none() {
            return ExitCode::from(Exit::Host as u8);
        }
    }
    ExitCode::from(u8::from(finished.exit))
}

/// Shows help, or the error in the command line. In JSON, the last event has the error too.
fn mistyped(error: &clap::Error, start: Instant) -> ExitCode {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let json = words.iter().any(|word| word == "--format=json")
        || words.windows(2).any(|pair| pair == ["--format", "json"]);
    if !json || !error.use_stderr() {
        // As in `print` of clap: if the output is closed, that is not an error.
        error.print().ok();
        return ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { Exit::Ok as u8 });
    }
    let text = error.render().to_string();
    let text = text.trim().trim_start_matches("error: ");
    let context = Context::default();
    let finished = Finished::refused(&fail(Exit::Usage, text, Next::xtask("--help")), &context);
    Output::new(Style { format: Format::Json, ..Style::PLAIN }, start, context)
        .event(&Event::Finished(&finished));
    ExitCode::from(u8::from(finished.exit))
}

/// From here on, a signal ends this command: as interrupted, but for one that only looks.
fn listen(style: Style, start: Instant) -> Result<()> {
    signals::listen(move |looks| {
        screen::end();
        let out = Output::new(style, start, Context::default());
        if looks {
            out.event(&Event::Finished(&Finished::plain(Exit::Ok)));
            return Exit::Ok as i32;
        }
        let finished = Finished::interrupted();
        register::end(&finished, &out);
        pipeline::tell("interrupted", &finished, &out);
        out.event(&Event::Finished(&finished));
        if let (Some(error), false) = (&finished.error, out.is_json()) {
            stderr::line(format!("\n{} {error}", out.mark(Some(false))));
        }
        Exit::Interrupted as i32
    })
}

fn run(cli: &Cli, start: Instant) -> Result<Finished> {
    match &cli.command {
        Command::Completions(args) => return completions::run(args, Cli::described(), &output(cli, start)),
        Command::Man(args) => return man::run(args, Cli::described(), &output(cli, start)),
        _ => {}
    }
    let pilot = Pilot::find(cli.stack.as_deref(), cli.project.as_deref(), cli.command.by())?;
    let out = output(cli, start);
    let changes = cli.command.changes();
    if let Some(command) = changes {
        register::begin(&pilot, command);
    }
    match &cli.command {
        Command::Ci(_) => return ci::run(&pilot),
        Command::Drill(args) => return drill::run(args, cli.engine(), &pilot, out),
        Command::Bench(args) => return bench::run(args, &pilot, &out),
        Command::Torture(args) => return torture::run(args, &pilot, &out),
        Command::History(_) => return commands::history::run(&pilot, &out),
        Command::Report(args) => return commands::report::run(args, &pilot, &out),
        Command::Backup(args) => {
            if let Some(finished) = commands::backup::run_remote(args, &pilot, &out) {
                return finished;
            }
        }
        _ => {}
    }
    let courier = Courier::default();
    let (pilot, engine, store) = match open(cli, pilot.clone(), &out) {
        Ok(opened) => opened,
        Err(error) => {
            let mut finished = Finished::refused(&nothing_done(cli, error), out.context());
            finished.escalation = level(cli, finished.exit, &pilot.manifest);
            if let Some(command) = changes {
                let by = notify::Teller { pilot: &pilot, courier: &courier, out: &out };
                notify::ends(by, command, &finished);
            }
            return Ok(finished);
        }
    };
    let session = Session { pilot, engine, store, out, courier };
    if cli.project.is_some() && cli.command.by() != By::Tree && changes.is_none() {
        is_a_project(&session)?;
    }
    let manifest = session.pilot.manifest.clone();
    let mut finished =
        dispatch(cli, &session).unwrap_or_else(|error| Finished::refused(&error, session.out.context()));
    finished.escalation = finished.escalation.or_else(|| level(cli, finished.exit, &manifest));
    if let Some(command) = changes {
        notify::ends(notify::Teller::from(&session), command, &finished);
    }
    Ok(finished)
}

/// The stack, its engine, and its releases with what other clients have done. If one of them has deployed another release
/// since, its manifest counts.
fn open(cli: &Cli, pilot: Pilot, out: &Output) -> Result<(Pilot, Box<dyn Engine>, Store)> {
    let by = cli.command.by();
    let engine = engine::choose(&pilot, cli.engine())?;
    let (store, folder) = (engine::store(&pilot, engine.as_ref()), Store::new(&pilot.state));
    let runs = || folder.current().ok().flatten().map(|release| release.id);
    let before = runs();
    match store.meet() {
        Ok(failed) => failed.into_iter().for_each(|told| out.note(told)),
        Err(error) => out.note(format!("what other clients have done is not known: {error:#}")),
    }
    let (pilot, engine) = if before == runs() {
        (pilot, engine)
    } else {
        let pilot = Pilot::find(cli.stack.as_deref(), cli.project.as_deref(), by)?;
        let engine = engine::choose(&pilot, cli.engine())?;
        (pilot, engine)
    };
    let (pilot, engine) = engine::open(pilot, engine, by)?;
    Ok((pilot, engine, store))
}

/// Who is called, for the commands that say it.
fn level(cli: &Cli, exit: Exit, manifest: &Manifest) -> Option<Escalation> {
    match cli.command {
        Command::Rollback(_) | Command::Reset(_) => Some(escalation::of(exit, manifest)),
        Command::Diagnose(_) => Some(escalation::of_a_look(exit, manifest)),
        _ => None,
    }
}

fn output(cli: &Cli, start: Instant) -> Output {
    Output::new(cli.style(), start, cli.context())
}

/// Without an engine, a rollback can neither check nor close anything; the error says so.
fn nothing_done(cli: &Cli, error: anyhow::Error) -> anyhow::Error {
    if !matches!(cli.command, Command::Rollback(_) | Command::Reset(_)) {
        return error;
    }
    let what =
        format!("{error:#}; so it is unknown what runs: the gate was not changed, and no evidence was saved");
    fail(exit_of(&error), what, next_of(&error).cloned().unwrap_or_default())
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
        Command::Nodes(args) => commands::nodes::run(args, session),
        Command::Observe(args) => commands::observe::run(args, session),
        Command::KillSwitch(args) => kill_switch::run(args, session),
        Command::Status(status::Args { watch: Some(pause), times }) => {
            commands::watch::run(*pause, *times, session)
        }
        Command::Status(_) => status::run(session),
        Command::Logs(args) => commands::logs::run(args, session),
        Command::Smoke(_) => smoke::run(session),
        Command::Up(args) => up::run(args, session),
        Command::Guard(args) => guard::run(args, session),
        Command::Down(_) => down::run(session),
        Command::Releases(args) => releases::run(args, session),
        Command::Init(_) => commands::init::run(session),
        Command::Ci(_)
        | Command::Drill(_)
        | Command::Bench(_)
        | Command::Torture(_)
        | Command::History(_)
        | Command::Report(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Supervise { .. }
        | Command::Deliver
        | Command::Unpause { .. } => Ok(Finished::plain(Exit::Ok)),
    }
}

/// What was done under a hold. Services that it keeps down were not checked.
fn behind(finished: &Finished, release: &str) -> String {
    if finished.stopped.is_empty() {
        return format!("behind the closed gate: release {release} is verified");
    }
    let down = finished.stopped.join(", ");
    format!(
        "but for {down}, which the hold keeps down and which is not checked: the rest of release {release} is verified"
    )
}

/// What failed, in a word or two.
fn verdict(finished: &Finished, command: &Command) -> &'static str {
    match finished.exit {
        Exit::RolledBack => "NOT DEPLOYED",
        Exit::NotRestored if matches!(command, Command::Up(_)) => "NOT DEPLOYED",
        Exit::NotRestored | Exit::OverBudget | Exit::NoRelease if finished.rollback.is_some() => {
            "NOT RESTORED"
        }
        Exit::Host => "HOST OR ENGINE FAILURE (Level 3, infrastructure)",
        _ => "error",
    }
}

/// The last line: an event, or a summary for people.
fn conclude(out: &Output, finished: &Finished, command: &Command) {
    out.event(&Event::Finished(finished));
    if matches!(command, Command::Drill(_)) && finished.rollback.is_some() {
        // The rollback in the drill has already printed the rest.
        let good = finished.exit == Exit::Ok;
        out.verdict(format!("\n{} drill {}", out.mark(Some(good)), if good { "passed" } else { "failed" }));
        return;
    }
    let seconds = |ms: u64| format!("{:.2} s", ms as f64 / 1e3);
    let release = finished.release.as_deref().unwrap_or("?");
    let good = out.mark(Some(true));
    match finished.outcome {
        Some(Outcome::Restored) if finished.held => {
            out.verdict(format!("\n{good} RESTORED {}", behind(finished, release)));
        }
        Some(Outcome::Restored) => {
            out.verdict(format!("\n{good} RESTORED: release {release} serves again"));
            if let (Some(closed), Some(restored)) = (finished.gate_closed_ms, finished.restored_ms) {
                let (closed, restored) = (seconds(closed), seconds(restored));
                out.verdict(format!("  gate closed after {closed}, first public token after {restored}"));
            }
        }
        Some(Outcome::Deployed) if finished.held => {
            out.verdict(format!("\n{good} DEPLOYED {}", behind(finished, release)));
        }
        Some(Outcome::Deployed) => out.verdict(format!("\n{good} DEPLOYED: release {release} serves")),
        Some(Outcome::NothingToDo) if finished.rollback.is_none() => {
            out.verdict(format!("\n{good} nothing changed: release {release} runs, verified"));
        }
        Some(Outcome::NothingToDo) => {
            out.verdict(format!("\n{good} nothing to do: release {release} runs, unchanged and verified"));
            out.verdict(format!("  to go back further: {}", out.xtask("rollback --to previous")));
        }
        _ => {}
    }
    // A command that only reads, or that closes the gate, has already said this.
    if let (Some(hold), Some(_)) = (&finished.hold, finished.outcome) {
        out.verdict(format!("  the gate is {hold}"));
        if !finished.not_closed.is_empty() {
            out.verdict(format!("  not closed: {}", finished.not_closed.join(", ")));
        }
        out.verdict(format!("  to verify, lift the hold and open: {}", out.xtask("kill-switch off")));
    }
    if let Some(address) = &finished.address {
        out.verdict(format!("  at {address}"));
    }
    if let Some(public) = &finished.public {
        out.verdict(format!("\n  {public}"));
    }
    if let Some(report) = &finished.report {
        out.verdict(format!("  report {report}"));
    }
    if let (Some(error), false) = (&finished.error, out.is_json()) {
        let head = verdict(finished, command);
        stderr::line(format!("{} {head}: {error}", out.mark(Some(false))));
    }
    // Nobody is called for what went well, or for what was mistyped.
    let calls = matches!(
        finished.exit,
        Exit::NotRestored | Exit::OverBudget | Exit::Host | Exit::NoRelease | Exit::RolledBack
    );
    let escalation = finished.escalation.as_ref().filter(|_| calls);
    if let (Some(escalation), false) = (escalation, out.is_json()) {
        stderr::line(format!("  {escalation}"));
    }
    if let (Some(next), false) = (finished.what_next(), out.is_json()) {
        stderr::line(format!("  next: {next}"));
    }
}
