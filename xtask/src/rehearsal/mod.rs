//! A separate pilot (project name, ports, images, state) for `drill` and `bench`: a good release is deployed,
//! then broken as a colleague would break it by hand, then rolled back as an operator would do it. It is
//! always removed at the end. A pilot that is running is never touched.

pub mod bench;
pub mod drill;

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode};
use crate::base::lock::Lock;
use crate::base::next::{Context as Whose, Next};
use crate::base::output::Output;
use crate::base::{proc, signals};
use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::engine;
use crate::engine::roles::{Build, Engine, Extent, Kind};
use crate::operations::up;
use crate::release::description::{COMPOSE_FILE, ENV_FILE, Image, Release};
use crate::release::source;
use crate::release::store::Store;
use crate::stack::envfile::with_value;
use crate::stack::ledger::Ledger;
use crate::stack::pilot::{By, Pilot, REHEARSALS};
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The time limit for one part, except building.
pub const PART: Duration = Duration::from_secs(300);

/// How long an engine may be at work on a request whose client was ended.
const LAST_REQUEST: Duration = Duration::from_millis(500);

/// How many rehearsals keep their reports.
const KEPT: usize = 5;

/// A pilot that is removed at the end, also after an error.
pub struct Rehearsal {
    /// Its pilot.
    pub session: Session,
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

/// Removes everything except the journal, the evidence and the report of the rollback.
fn tear_down(pilot: &Pilot, engine: &dyn Engine) {
    if let Err(error) = engine.down(Extent::Everything, Deadline::after(PART)) {
        eprintln!("warning: could not remove all of the drill's pilot: {error:#}");
        return;
    }
    let Ok(entries) = std::fs::read_dir(pilot.state.path()) else { return };
    for path in entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| !p.ends_with("rollbacks")) {
        if path.is_dir() {
            std::fs::remove_dir_all(&path).ok();
        } else {
            std::fs::remove_file(&path).ok();
        }
    }
}

impl Rehearsal {
    /// Sets up a pilot and deploys a good release on it.
    pub fn begin(real: &Pilot, asked: Option<Kind>, out: Output, keep: bool) -> Result<Self> {
        let id = format!("{:x}-{:x}", crate::base::deadline::now_ms(), std::process::id());
        let project = format!("{REHEARSALS}{id}");
        let pilot =
            Pilot::at(&real.root, &project, StateDir::new(real.state.drills().join(&project)), By::Tree)?;
        clear_old(&pilot)?;
        let alive = Ledger::new(&pilot.state.drill()).lock("drill")?;
        let engine = engine::choose(&pilot, asked)?;
        files::write(&pilot.state.drill_engine(), engine.kind().as_str().as_bytes(), Mode::Plain)?;
        if keep {
            files::write(&pilot.state.drill_kept(), b"", Mode::Plain)?;
        } else {
            let (pilot, kind) = (pilot.clone(), engine.kind());
            signals::on_signal(move || {
                let Ok(engine) = engine::choose(&pilot, Some(kind)) else { return };
                tear_down(&pilot, engine.as_ref());
                // The engine may still carry out the last request of a client that was ended.
                std::thread::sleep(LAST_REQUEST);
                tear_down(&pilot, engine.as_ref());
            });
        }
        let word = Some(engine.kind().as_str());
        let out = out.of(Whose::new(Some(&pilot.project), Some(pilot.state.path()), word));
        let store = Store::new(&pilot.state);
        let rehearsal = Self { session: Session { pilot, engine, store, out }, keep, _alive: alive };
        let good = up::run(&up::Options::default(), &rehearsal.session)?;
        if good.exit != Exit::Ok {
            let what = good.error.unwrap_or_else(|| "the good release did not come up".into());
            return Err(fail(Exit::NotRestored, what, Next::xtask("up")));
        }
        Ok(rehearsal)
    }

    /// Builds the source as images with another label and with this fault; an empty fault means none.
    pub fn images(&self, label: &str, fault: &str) -> Result<BTreeMap<String, Image>> {
        let pilot = &self.session.pilot;
        let binary = source::build(pilot, &pilot.root, &|text| self.session.out.note(text))?;
        let build = Build { binary: &binary, label, fault };
        self.session.engine.build(&build, Deadline::after(PART))
    }

    /// What a colleague in a hurry does: edit the env file, tag other images, start them.
    pub fn deploy_by_hand(&self, images: BTreeMap<String, Image>, settings: &[(&str, &str)]) -> Result<()> {
        let Session { pilot, engine, .. } = &self.session;
        let _lock = self.session.ledger().lock("drill")?;
        let path = &pilot.env_path;
        let text = files::read_text(path)?;
        let edited = settings.iter().try_fold(text, |text, (key, value)| with_value(&text, key, value))?;
        files::write(path, edited.as_bytes(), Mode::Private)?;
        let dir = self.by_hand();
        files::copy(path, &dir.join(ENV_FILE), Mode::Private)?;
        files::copy(&pilot.pack.join(&pilot.manifest.compose_file), &dir.join(COMPOSE_FILE), Mode::Plain)?;
        let bad = Release::unrecorded("by-hand", engine.kind().as_str(), images);
        let deadline = Deadline::after(PART);
        engine.retag(&bad, deadline)?;
        engine.apply(&bad, &dir, &[], &[], deadline)
    }

    /// The folder with the files that were deployed by hand.
    pub fn by_hand(&self) -> PathBuf {
        self.session.pilot.state.by_hand()
    }

    /// Runs `cargo xtask rollback` in a separate process, as an operator does. Its last event is read from
    /// its report. With `show`, the user sees its output.
    pub fn roll_back(&self, show: bool) -> Result<Finished> {
        let pilot = &self.session.pilot;
        let format = if self.session.out.is_json() { "json" } else { "text" };
        let me = files::this_program()?;
        let kind = self.session.engine.kind().as_str();
        let words = ["--project", &pilot.project, "--engine", kind, "--format", format, "rollback"];
        let command = proc::cmd(me, &words)
            .dir(&pilot.root)
            .env("PILOT_STATE_DIR", &pilot.state.path().display().to_string());
        let ran = if show { command.show() } else { command }.run(Deadline::after(PART));
        let newest = pilot.state.every_run()?.pop().map(|(_, run)| run.report());
        match (newest.filter(|path| path.exists()), ran) {
            (Some(path), _) => files::read_json(&path),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => anyhow::bail!("the rollback left no report in {}", pilot.state.runs().display()),
        }
    }
}

/// Removes what interrupted drills have left. The reports of the newest drills stay.
fn clear_old(pilot: &Pilot) -> Result<()> {
    let Some(folder) = pilot.state.path().parent() else { return Ok(()) };
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut done = Vec::new();
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        let state = StateDir::new(&path);
        if state.drill().path().exists() {
            // A drill uses it now, or the user kept it.
            let Ok(_dead) = Ledger::new(&state.drill()).lock("drill") else { continue };
            if state.drill_kept().exists() {
                continue;
            }
            let project = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let word = files::read_text(&state.drill_engine()).unwrap_or_default();
            let Some(kind) = Kind::named(&word) else { continue };
            let left = Pilot::at(&pilot.root, &project, state, By::Any)?;
            if let Ok(engine) = engine::choose(&left, Some(kind)) {
                tear_down(&left, engine.as_ref());
            }
        }
        done.push(path);
    }
    // The names begin with the time, so the newest is last.
    done.sort();
    let surplus = done.len().saturating_sub(KEPT - 1);
    for path in done.into_iter().take(surplus) {
        std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
