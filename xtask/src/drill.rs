//! The rehearsal: a pilot of its own (project name, ports, images, state), a good release, then what a
//! bad day brings (another env file, another version, deployed past all checks as a colleague would by
//! hand), then the very rollback that an operator would call, as a process of its own so that its
//! times are the operator's. A pilot that runs is never touched.

use crate::deadline::Deadline;
use crate::deploy::Session;
use crate::engine::{self, Engine, Kind};
use crate::envfile::with_value;
use crate::failure::{Exit, fail};
use crate::files::{self, Mode};
use crate::journal::{Finished, Output};
use crate::lock::{self, Lock};
use crate::pilot::Pilot;
use crate::release::{COMPOSE_FILE, ENV_FILE, Release, Store};
use crate::{proc, tree, up};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::time::Duration;

/// Label of the broken version.
const BAD: &str = "v9.9.9-bad";

/// Longest that one part of a drill takes, building apart.
const PART: Duration = Duration::from_secs(300);

/// Drills that are kept for reading.
const KEPT: usize = 5;

/// `cargo xtask drill`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask drill\n  cargo xtask drill --fault ignore-sigterm\n  cargo xtask drill --keep"
)]
pub struct Args {
    /// What is wrong with the bad version [default: error-5xx, and a bad env file with it]
    #[arg(long, value_enum)]
    fault: Option<FaultName>,
    /// Leave the drill's pilot running afterwards, and say how to end it
    #[arg(long)]
    keep: bool,
}

/// The faults that an image can be built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FaultName {
    /// SIGTERM is swallowed
    IgnoreSigterm,
    /// The services end, again and again
    CrashLoop,
    /// The first token comes seconds late
    SlowFirstToken,
    /// Public routes answer 500
    #[value(name = "error-5xx")]
    Error5xx,
    /// Nothing is ever answered
    Hang,
    /// The databases are overwritten with noise
    CorruptStore,
}

impl FaultName {
    fn word(self) -> &'static str {
        match self {
            Self::IgnoreSigterm => "ignore-sigterm",
            Self::CrashLoop => "crash-loop",
            Self::SlowFirstToken => "slow-first-token",
            Self::Error5xx => "error-5xx",
            Self::Hang => "hang",
            Self::CorruptStore => "corrupt-store",
        }
    }
}

/// A pilot that is torn down at the end, however the end comes.
struct Rehearsal {
    session: Session,
    keep: bool,
    _alive: Lock,
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        if !self.keep {
            tear_down(&self.session.pilot, self.session.engine.as_ref());
        }
    }
}

/// Removes all but the rollback's journal, evidence and report.
fn tear_down(pilot: &Pilot, engine: &dyn Engine) {
    if let Err(error) = engine.down(true, Deadline::after(PART)) {
        eprintln!("warning: the drill's pilot is not wholly gone: {error:#}");
        return;
    }
    let Ok(entries) = std::fs::read_dir(&pilot.state) else { return };
    for path in entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| !p.ends_with("rollbacks")) {
        if path.is_dir() {
            std::fs::remove_dir_all(&path).ok();
        } else {
            std::fs::remove_file(&path).ok();
        }
    }
}

/// Runs the rehearsal; the result is that of the rollback in it.
pub fn run(args: &Args, asked: Option<Kind>, real: &Pilot, out: Output) -> Result<Finished> {
    let id = format!("{:x}-{:x}", crate::release::now_ms(), std::process::id());
    let project = format!("pilot-drill-{id}");
    let pilot = Pilot::at(&real.root, &project, real.state.join("drills").join(&project))?;
    clear_old(&pilot)?;
    let alive = lock::take(&pilot.state.join("drill"), "drill")?;
    let engine = engine::choose(&pilot, asked)?;
    files::write(&pilot.state.join("engine"), engine.kind().word().as_bytes(), Mode::Plain)?;
    if !args.keep {
        let (pilot, kind) = (pilot.clone(), engine.kind());
        proc::on_signal(move || {
            if let Ok(engine) = engine::choose(&pilot, Some(kind)) {
                tear_down(&pilot, engine.as_ref());
            }
        });
    }
    let limit = pilot.manifest.limits.engine;
    out.say(format!("drill in project {project}, with {}", engine.describe(Deadline::after(limit))));
    out.say("\n1. a good release");
    let store = Store::new(&pilot.state);
    let rehearsal =
        Rehearsal { session: Session { pilot, engine, store, out }, keep: args.keep, _alive: alive };
    let session = &rehearsal.session;
    let good = up::run(&up::Args::default(), session)?;
    if good.exit_code != 0 {
        let what = good.error.unwrap_or_else(|| "the good release did not come up".into());
        return Err(fail(Exit::NotRestored, what, "cargo xtask up"));
    }
    let fault = args.fault.unwrap_or(FaultName::Error5xx);
    let bad_env = args.fault.is_none();
    let also = if bad_env { " and a bad env file" } else { "" };
    session.out.say(format!(
        "\n2. a bad day: version {BAD} with the fault {}{also}, deployed by hand",
        fault.word()
    ));
    break_it(session, fault, bad_env)?;
    session.out.say("\n3. the rollback");
    let finished = roll_back(session)?;
    if args.keep {
        files::write(&session.pilot.state.join("kept"), b"", Mode::Plain)?;
        session.out.say(format!("\nkept; cargo xtask --project {project} status, with"));
        session.out.say(format!("  PILOT_STATE_DIR={}", session.pilot.state.display()));
    }
    Ok(finished)
}

/// What a colleague in a hurry does: edits the env file, tags other images, and brings them up.
fn break_it(session: &Session, fault: FaultName, bad_env: bool) -> Result<()> {
    let pilot = &session.pilot;
    let _lock = lock::take(&pilot.state, "drill")?;
    let deadline = Deadline::after(PART);
    let binary = tree::build(pilot, &pilot.root, &session.out)?;
    let dockerfile = pilot.pack.join(&pilot.manifest.build.dockerfile);
    let images = session.engine.build(&binary, &dockerfile, BAD, fault.word(), deadline)?;
    if bad_env {
        let path = &pilot.env_path;
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = with_value(&with_value(&text, "USE_SIMULATION", "false"), "ENABLE_CACHE", "true");
        files::write(path, text.as_bytes(), Mode::Private)?;
    }
    let dir = pilot.state.join("bad");
    files::copy(&pilot.env_path, &dir.join(ENV_FILE), Mode::Private)?;
    files::copy(&pilot.pack.join(&pilot.manifest.compose_file), &dir.join(COMPOSE_FILE), Mode::Plain)?;
    let bad = Release::unrecorded(BAD, session.engine.kind().word(), images);
    session.engine.point_tags(&bad, deadline)?;
    session.engine.apply(&bad, &dir, &[], deadline)?;
    // The fault has to show before anybody would call for a rollback.
    std::thread::sleep(Duration::from_millis(1_000));
    Ok(())
}

/// `cargo xtask rollback`, in a process of its own, as an operator calls it; the user sees what it
/// says. Its last event is in its report.
fn roll_back(session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let format = if session.out.is_json() { "json" } else { "text" };
    let me = std::env::current_exe().context("cannot find this program")?;
    let kind = session.engine.kind().word();
    let ran = proc::cmd(me, &["--project", &pilot.project, "--engine", kind, "--format", format, "rollback"])
        .dir(&pilot.root)
        .env("PILOT_STATE_DIR", &pilot.state.display().to_string())
        .show()
        .run(Deadline::after(PART));
    let folder = pilot.state.join("rollbacks");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()));
    let report = entries.ok().into_iter().flatten().find_map(|e| Some(e.ok()?.path().join("report.json")));
    match (report.filter(|path| path.exists()), ran) {
        (Some(path), _) => files::read_json(&path),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => anyhow::bail!("the rollback left no report in {}", folder.display()),
    }
}

/// What drills that were killed left behind goes; of the others the newest few stay for reading.
fn clear_old(pilot: &Pilot) -> Result<()> {
    let Some(folder) = pilot.state.parent() else { return Ok(()) };
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut done = Vec::new();
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        if path.join("drill").exists() {
            // Held by a drill that runs, or kept on purpose.
            let Ok(_dead) = lock::take(&path.join("drill"), "drill") else { continue };
            if path.join("kept").exists() {
                continue;
            }
            let project = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let word = std::fs::read_to_string(path.join("engine")).unwrap_or_default();
            let Ok(kind) = Kind::from_str(&word, true) else { continue };
            let left = Pilot::at(&pilot.root, &project, path.clone())?;
            if let Ok(engine) = engine::choose(&left, Some(kind)) {
                tear_down(&left, engine.as_ref());
            }
        }
        done.push(path);
    }
    // Their names begin with the time.
    done.sort();
    let surplus = done.len().saturating_sub(KEPT - 1);
    for path in done.into_iter().take(surplus) {
        std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
