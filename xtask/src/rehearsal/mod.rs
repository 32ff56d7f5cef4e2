//! A separate stack (project name, ports, images, state) for `drill` and `bench`: a good release is deployed,
//! then broken as a colleague would break it by hand, then rolled back as an operator would do it. It is
//! always removed at the end. The stack that is running is never touched.
//!
//! A manifest can say with `[projects]` how its stack gets another project's values. Any other stack is rehearsed on a
//! changed copy of its last known-good release (`separate`).

mod apart;
pub mod bench;
pub mod drill;
mod separate;
pub mod torture;

use crate::base::courier::Courier;
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode};
use crate::base::machine;
use crate::base::next::{Context as Whose, Next};
use crate::base::output::Output;
use crate::base::stderr;
use crate::base::{proc, signals};
use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::engine;
use crate::engine::roles::{Build, Engine, Extent, Kind};
use crate::operations::{candidate, pipeline, up};
use crate::rehearsal::separate::Original;
use crate::release::description::{Image, Release, mode_of};
use crate::release::source;
use crate::stack::envfile::with_value;
use crate::stack::ledger::{Ledger, Lock};
use crate::stack::pilot::{By, Pilot, REHEARSALS};
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
    /// What its images are built from.
    source: Pilot,
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
        stderr::line(format!("warning: could not remove all of the drill's pilot: {error:#}"));
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
    /// Sets up a separate stack and deploys a good release on it.
    pub fn begin(real: &Pilot, asked: Option<Kind>, out: Output, keep: bool) -> Result<Self> {
        let rehearsal = Self::prepare(real, &real.pack, asked, out, keep)?;
        rehearsal.deploy(&up::Options::default())?;
        Ok(rehearsal)
    }

    /// The same with these values in the env file; it is removed at the end.
    fn with(real: &Pilot, asked: Option<Kind>, out: Output, settings: &[(&str, &str)]) -> Result<Self> {
        let rehearsal = Self::prepare(real, &real.pack, asked, out, false)?;
        rehearsal.set(settings)?;
        rehearsal.deploy(&up::Options::default())?;
        Ok(rehearsal)
    }

    /// Makes the env file, with these values.
    fn set(&self, settings: &[(&str, &str)]) -> Result<()> {
        let path = &self.session.pilot.env_path;
        // The ports stay free until the services start, as far as anybody can tell.
        drop(candidate::ensure_env(&self.session)?);
        let text = files::read_text(path)?;
        let text = settings.iter().try_fold(text, |text, (name, value)| with_value(&text, name, value))?;
        files::write(path, text.as_bytes(), Mode::Private)
    }

    /// Deploys a good release.
    fn deploy(&self, options: &up::Options<'_>) -> Result<()> {
        let good = up::run(options, &self.session)?;
        if good.exit == Exit::Ok {
            return Ok(());
        }
        let what = good.error.unwrap_or_else(|| "the good release did not come up".into());
        Err(fail(Exit::NotRestored, what, Next::xtask("up")))
    }

    /// Sets up a separate stack with the files in `pack`; nothing runs yet.
    fn prepare(real: &Pilot, pack: &Path, asked: Option<Kind>, out: Output, keep: bool) -> Result<Self> {
        let id = format!("{:x}-{:x}", crate::base::deadline::now_ms(), std::process::id());
        let project = format!("{REHEARSALS}{id}");
        let state = StateDir::new(real.state.drills().join(&project));
        let own_values = !real.manifest.projects.variables.is_empty();
        let original = if own_values { None } else { Some(Original::of(real)?) };
        clear_old(real)?;
        let alive = Ledger::new(&state.drill()).lock_folder("drill")?;
        let (pack, ports) = match &original {
            None => (pack.to_owned(), Vec::new()),
            Some(original) => (state.drill_stack(), original.write(&project, &state.drill_stack())?),
        };
        let pilot = Pilot::at(&pack, &project, state, By::Tree)?;
        let engine = engine::choose(&pilot, asked)?;
        let (pilot, engine) = engine::open(pilot, engine, By::Tree)?;
        if let Some(original) = &original {
            let own = pilot.definition.as_ref();
            original.check_apart(own.context("the engine does not understand the separate stack")?)?;
        }
        files::write(&pilot.state.drill_engine(), engine.kind().as_str().as_bytes(), Mode::Plain)?;
        if keep {
            files::write(&pilot.state.drill_kept(), b"", Mode::Plain)?;
        } else {
            remove_when_interrupted(&pilot, engine.kind());
        }
        let word = Some(engine.kind().as_str());
        let whose = Whose::new(Some(&pilot.project), Some(pilot.state.path()), word);
        let out = out.of(whose.in_stack(Some(pilot.pack.clone())));
        let store = engine::store(&pilot, engine.as_ref());
        let session = Session { pilot, engine, store, out, courier: Courier::default() };
        let rehearsal = Self { session, source: real.clone(), keep, _alive: alive };
        if let Some(original) = &original {
            original.name_images(rehearsal.session.engine.as_ref())?;
        }
        drop(ports);
        Ok(rehearsal)
    }

    /// Builds the source as images with another label and with this fault; an empty fault means none.
    pub fn images(&self, label: &str, fault: &str) -> Result<BTreeMap<String, Image>> {
        let binary = source::build(&self.source, &self.source.root, &|text| self.session.out.note(text))?;
        let build = Build { binary: &binary, label, fault };
        self.session.engine.build(&build, Deadline::after(PART))
    }

    /// What a colleague in a hurry does: edit the env file, tag other images, start them.
    pub fn deploy_by_hand(&self, images: BTreeMap<String, Image>, settings: &[(&str, &str)]) -> Result<()> {
        let Session { pilot, engine, .. } = &self.session;
        let _lock = self.session.lock("drill")?;
        let path = &pilot.env_path;
        let text = files::read_text(path)?;
        let edited = settings.iter().try_fold(text, |text, (key, value)| with_value(&text, key, value))?;
        files::write(path, edited.as_bytes(), Mode::Private)?;
        let dir = self.by_hand();
        copy_files(pilot, &dir)?;
        let bad = Release::unrecorded("by-hand", engine.kind().as_str(), images);
        let deadline = Deadline::after(PART);
        engine.retag(&bad, deadline)?;
        engine.apply(&bad, &dir, &[], &[], deadline)
    }

    /// The folder with the files that were deployed by hand.
    pub fn by_hand(&self) -> PathBuf {
        self.session.pilot.state.by_hand()
    }

    /// This program as an operator calls it on this stack.
    pub fn command(&self, words: &[&str]) -> Result<proc::Cmd> {
        let Session { pilot, engine, out, .. } = &self.session;
        let format = if out.is_json() { "json" } else { "text" };
        let (me, pack) = (machine::this_program()?, pilot.pack.display().to_string());
        let options = ["--stack", &pack, "--project", &pilot.project, "--engine", engine.kind().as_str()];
        Ok(proc::cmd(me, &options)
            .args(["--format", format])
            .args(words)
            .dir(&pilot.root)
            // This process tells the pipeline how the drill ended.
            .env_remove(pipeline::VARIABLES.map(str::to_owned))
            .env("PILOT_STATE_DIR", &pilot.state.path().display().to_string()))
    }

    /// Runs a command in a separate process, as an operator does. With `show`, the user sees its output.
    pub fn operate(&self, words: &[&str], show: bool) -> Result<String> {
        let command = self.command(words)?;
        let ran = if show { command.show() } else { command }.run(Deadline::after(PART));
        self.session.meet()?;
        ran
    }

    /// Runs a command that goes back to a release. Its last event is read from its report.
    pub fn go_back(&self, words: &[&str], show: bool) -> Result<Finished> {
        let state = &self.session.pilot.state;
        let before = state.every_run()?.len();
        let ran = self.operate(words, show);
        let newest = state.every_run()?.into_iter().skip(before).last().map(|(_, run)| run.report());
        match (newest.filter(|path| path.exists()), ran) {
            (Some(path), _) => files::read_json(&path),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => {
                anyhow::bail!("{} left no report in {}", words.join(" "), state.runs().display())
            }
        }
    }
}

/// Removes it if the user ends the drill.
fn remove_when_interrupted(pilot: &Pilot, kind: Kind) {
    let pilot = pilot.clone();
    signals::on_signal(move || {
        let Ok(engine) = engine::choose(&pilot, Some(kind)) else { return };
        tear_down(&pilot, engine.as_ref());
        // The engine may still carry out the last request of a client that was ended.
        std::thread::sleep(LAST_REQUEST);
        tear_down(&pilot, engine.as_ref());
    });
}

/// Copies the files that Compose reads into another folder.
pub fn copy_files(pilot: &Pilot, to: &Path) -> Result<()> {
    for name in pilot.layout.files() {
        files::copy(&pilot.source(name, &pilot.env_path), &to.join(name), mode_of(name, &pilot.layout))?;
    }
    Ok(())
}

/// Removes what interrupted drills have left. The reports of the newest drills stay.
fn clear_old(real: &Pilot) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(real.state.drills()) else { return Ok(()) };
    let mut done = Vec::new();
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        let state = StateDir::new(&path);
        if state.drill().path().exists() {
            // A drill uses it now, or the user kept it.
            let Ok(_dead) = Ledger::new(&state.drill()).lock_folder("drill") else { continue };
            if state.drill_kept().exists() {
                continue;
            }
            let project = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let word = files::read_text(&state.drill_engine()).unwrap_or_default();
            let Some(kind) = Kind::named(&word) else { continue };
            let own = Some(state.drill_stack()).filter(|pack| pack.is_dir());
            let left = Pilot::at(own.as_deref().unwrap_or(&real.pack), &project, state, By::Any)?;
            let chosen = engine::choose(&left, Some(kind));
            if let Ok((left, engine)) = chosen.and_then(|engine| engine::open(left, engine, By::Tree)) {
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
