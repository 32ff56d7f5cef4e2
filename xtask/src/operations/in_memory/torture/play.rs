//! Plays a sequence on a scene: its commands as they are called, its faults at the operations that it names, its events
//! between and in the middle of them.

use super::check;
use super::sequence::{Command, Event, GateKind, Quality, Sequence, Stack, Step, Trouble};
use super::stage::{Seen, Stage};
use crate::base::deadline::{Deadline, now};
use crate::base::failure::Exit;
use crate::base::fake;
use crate::base::files::{self, Mode};
use crate::deploy::backup;
use crate::deploy::difference::Scenario;
use crate::deploy::event::Finished;
use crate::deploy::paused::Longest;
use crate::deploy::plan::{Goal, Purpose};
use crate::deploy::run::{self, Request};
use crate::deploy::session::Session;
use crate::engine::fake::world::{CORRUPT, Defect, InTime, Records, Things, When};
use crate::engine::roles::Extent;
use crate::operations::in_memory::gates::{EXEC, STOP, with_gate};
use crate::operations::in_memory::newer_data::RULES;
use crate::operations::in_memory::{DATA, Ran, Scene};
use crate::operations::{guard, kill_switch, rollback, up, with_data};
use crate::release::description::Release;
use crate::stack::envfile::with_value;
use crate::stack::hold::Hold;
use crate::stack::shelf::{Kept, Title};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a guard watches.
const GUARDED: Duration = Duration::from_secs(6);

/// How long ago everything was put at the engine when a lock has run out.
const LONG_AGO: Duration = Duration::from_secs(3600);

/// The stack of a sequence while it is played.
pub struct Play {
    stage: Stage,
    env: String,
    /// How many versions there were.
    versions: usize,
    /// Is what was killed still not taken up by anybody?
    was_killed: bool,
    /// What has not happened yet of a watch.
    later: Vec<InTime>,
}

/// Plays it to its end. The error says which step broke what.
pub fn play(sequence: &Sequence) -> Result<(), String> {
    let mut play = Play::new(sequence.stack);
    for (at, step) in sequence.steps.iter().enumerate() {
        play.step(step).map_err(|why| format!("step {}: {step:?}: {why}", at + 1))?;
    }
    play.ends().map_err(|why| format!("at the end: {why}"))
}

impl Play {
    fn new(stack: Stack) -> Self {
        let change = |manifest: String| {
            let manifest =
                manifest.replace("for = \"10s\"", "for = \"3s\"").replace("failures = 3", "failures = 2");
            let manifest = if stack.snapshots { manifest + RULES } else { manifest };
            match stack.gate {
                GateKind::Http => manifest,
                GateKind::Exec => with_gate(&manifest, EXEC),
                GateKind::Stop => with_gate(&manifest, STOP),
            }
        };
        let mut first = Scene::by(&change);
        first.pilot.watch = (!stack.watches).then_some(Duration::ZERO);
        let world = first.world.clone();
        if stack.keeps_records {
            first.keeps_records();
            first.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
        }
        let env = first.env_text();
        let mut clients = vec![first];
        for _ in 1..stack.clients {
            let mut other = clients[0].client();
            other.pilot.watch = clients[0].pilot.watch;
            clients.push(other);
        }
        let stage = Stage { world, clients, seen: Seen::default() };
        Self { stage, env, versions: 1, was_killed: false, later: Vec::new() }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Happens(event) => {
                self.happens(event);
                Ok(())
            }
            Step::Run { client, command, trouble, lock_ran_out } => {
                self.run(client, command, trouble, lock_ran_out)
            }
        }
    }

    /// Another release of this client, as a candidate.
    fn new_release(&mut self, client: usize, quality: Quality) -> Option<Release> {
        let scene = &self.stage.clients[client];
        let store = scene.store();
        store.meet().ok();
        self.versions += 1;
        let env = if scene.pilot.env_path.exists() { scene.env_text() } else { self.env.clone() };
        files::write(&scene.pilot.env_path, env.as_bytes(), Mode::Private).ok()?;
        let release = scene.release(&store.free_id().ok()?, &format!("v{}.0.0", self.versions), &env);
        let images: Vec<(String, String)> =
            release.images.iter().map(|(service, image)| (service.clone(), image.id.clone())).collect();
        let mut things = self.stage.world.things();
        let all = |defect: Defect| images.iter().map(move |(_, id)| (id.clone(), defect));
        match quality {
            Quality::Good => {}
            Quality::Bad(defect) => things.defects.extend(all(defect)),
            Quality::TurnsBad(looks) => {
                let ids: Vec<_> = all(Defect::Unhealthy).collect();
                let at = things.passed + looks;
                things.in_time.insert(at, Box::new(move |things| things.defects.extend(ids)));
            }
            Quality::Slow(times) => things.starting.extend(images.iter().map(|(_, id)| (id.clone(), times))),
            Quality::Migrates(is_well) => {
                let newer = |(service, id): &(String, String)| (id.clone(), format!("{service} of {id}"));
                things.migrations.extend(images.iter().filter(|(name, _)| name != "gateway").map(newer));
                if !is_well {
                    things.defects.extend(all(Defect::Errors));
                }
            }
        }
        Some(release)
    }

    fn run(
        &mut self,
        client: usize,
        command: Command,
        trouble: Option<Trouble>,
        ran_out: bool,
    ) -> Result<(), String> {
        let release = match command {
            Command::Up { quality, .. } => self.new_release(client, quality),
            _ => None,
        };
        if self.was_killed && ran_out {
            self.let_locks_run_out();
        }
        let before = check::Before::of(&self.stage, client);
        self.stage.world.begin_with(match trouble {
            Some(Trouble::At(first, last, fault)) => vec![(When::Numbers(first, last), fault)],
            Some(Trouble::Every(name, fault)) => vec![(When::Named(name), fault)],
            Some(Trouble::Meanwhile(..)) | None => Vec::new(),
        });
        if let Some(Trouble::Meanwhile(at, event)) = trouble {
            self.meanwhile(at, event);
        }
        let scene = &mut self.stage.clients[client];
        scene.is_locked = !matches!(command, Command::Guard | Command::HoldOn | Command::HoldOff);
        let between = self.stage.world.clone();
        fake::between_writes(Some(Box::new(move |what| {
            between.act(what).map(drop).map_err(|error| std::io::Error::other(format!("{error:#}")))
        })));
        let ran = check::quietly(|| scene.run(&|session| called(command, release.as_ref(), session)));
        fake::between_writes(None);
        let reached = {
            let mut things = self.stage.world.things();
            // What was not reached does not happen later.
            let happened = matches!(trouble, Some(Trouble::Meanwhile(..))) && things.meanwhile.is_none();
            (things.faults, things.meanwhile) = (Vec::new(), None);
            things.is_dead = false;
            things.cancelled.clear();
            if let Some(records) = &mut things.records {
                records.age = Duration::ZERO;
            }
            self.later.extend(std::mem::take(&mut things.in_time).into_values());
            happened
        };
        self.was_killed = matches!(ran, Ok(Ran::CutOff));
        if self.was_killed {
            // The helper of a copy ends the pause when its command has ended. It knows nothing of other clients.
            self.stage.world.things().paused.clear();
        }
        let result = check::after(&mut self.stage, &before, command, trouble, reached, ran?);
        let mut things = self.stage.world.things();
        self.later.drain(..).for_each(|turns| turns(&mut things));
        result
    }

    fn let_locks_run_out(&self) {
        if let Some(records) = &mut self.stage.world.things().records {
            records.age = LONG_AGO;
        }
    }

    /// With all faults gone, a rollback ends well.
    fn ends(&mut self) -> Result<(), String> {
        for heals in [false, true] {
            if heals {
                self.stage.world.things().defects.clear();
            }
            for client in 0..self.stage.clients.len() {
                self.was_killed = true;
                let command = Command::Rollback { to: None, open: false };
                self.run(client, command, None, true)
                    .map_err(|why| format!("rollback of client {client}: {why}"))?;
                let ended = self.stage.seen.last.take();
                check::no_wedge(&self.stage, client, ended)
                    .map_err(|why| format!("client {client}: {why}"))?;
            }
        }
        check::at_last(&self.stage)
    }

    fn meanwhile(&self, at: usize, event: Event) {
        let folders: Vec<_> =
            self.stage.clients.iter().map(|scene| scene.pilot.state.path().to_owned()).collect();
        let envs: Vec<_> = self.stage.clients.iter().map(|scene| scene.pilot.env_path.clone()).collect();
        let acts = move |things: &mut Things| {
            happens(things, event, &folders, &envs);
        };
        self.stage.world.things().meanwhile = Some((at, Box::new(acts)));
    }

    fn happens(&mut self, event: Event) {
        let folders: Vec<_> =
            self.stage.clients.iter().map(|scene| scene.pilot.state.path().to_owned()).collect();
        let envs: Vec<_> = self.stage.clients.iter().map(|scene| scene.pilot.env_path.clone()).collect();
        self.stage.seen.note(event);
        happens(&mut self.stage.world.things(), event, &folders, &envs);
    }
}

/// One event in the world.
fn happens(things: &mut Things, event: Event, folders: &[PathBuf], envs: &[PathBuf]) {
    match event {
        Event::ImagesArePruned => {
            let used: Vec<String> = things.services.values().map(|one| one.image.clone()).collect();
            things.images.retain(|id, _| used.contains(id));
        }
        Event::EverythingIsPruned => {
            things.end_all();
            things.images.clear();
            things.volumes.clear();
            things.gate = None;
            things.records = things.records.take().map(|_| Records::default());
        }
        Event::RecordsArePruned => things.records = things.records.take().map(|_| Records::default()),
        Event::DataIsDeleted(service) => drop(things.volumes.remove(service)),
        Event::DataIsCorrupted(service) => drop(things.volumes.insert(service.into(), CORRUPT.into())),
        Event::PublicStores(service) => {
            if things.is_open() && things.volumes.contains_key(service) {
                let stored = format!("stored in {service} after {} looks", things.done.len());
                things.volumes.insert(service.into(), stored);
            }
        }
        Event::FolderIsDeleted(client) => drop(std::fs::remove_dir_all(&folders[client])),
        Event::EnvFileIsEdited(client) => edit(&envs[client]),
        Event::GateIsOpened => things.gate = None,
        Event::GateIsClosed => things.gate = Some("by hand".into()),
        Event::ServiceIsKilled(service) => {
            if let Some(started) = things.services.get_mut(service) {
                started.runs = false;
            }
        }
        Event::ServiceIsRemoved(service) => drop(things.services.remove(service)),
        Event::ServiceIsUpdated(service, defect) => {
            let id = format!("sha256:{}", files::sha256_bytes(format!("by hand {service}").as_bytes()));
            if let Some(started) = things.services.get_mut(service) {
                started.image = id.clone();
                started.runs = true;
                // It is a new container.
                things.paused.remove(service);
                things.add_image(&id, "v6.6.6");
                things.defects.extend(defect.map(|defect| (id, defect)));
            }
        }
        Event::ReleaseTurnsBad => {
            let ids: Vec<String> = things.services.values().map(|one| one.image.clone()).collect();
            things.defects.extend(ids.into_iter().map(|id| (id, Defect::Unhealthy)));
        }
        Event::ReleaseFileIsDamaged(client) => {
            let file = folders[client].join("releases/r1/demo-scenario.json");
            if file.exists() {
                std::fs::write(file, "damaged").ok();
            }
        }
        Event::ClockIsSet(by) => fake::set_time_of_day(by),
        Event::HoldIsPlaced => place(things),
        Event::LockIsTaken => take_lock(things),
    }
}

fn edit(path: &Path) {
    let Ok(text) = std::fs::read_to_string(path) else { return };
    let value = if text.contains("ENABLE_CACHE=true") { "false" } else { "true" };
    if let Ok(text) = with_value(&text, "ENABLE_CACHE", value) {
        std::fs::write(path, text).ok();
    }
}

/// A client that is not played places a hold at the engine, and closes the gate.
fn place(things: &mut Things) {
    let Some(records) = &mut things.records else { return };
    let mut hold = Hold::mine("not now");
    hold.id = "another-1".into();
    let title = Title::first(&format!("hold.{}", hold.id));
    if records.all.iter().any(|kept| kept.title == title) {
        return;
    }
    let text = serde_json::to_string(&hold).unwrap_or_default();
    records.all.push(Kept { title, text, handle: "another client's".into() });
    things.gate = Some("not now".into());
    let edge: Vec<String> = things.edge.iter().cloned().collect();
    things.keep_down(&edge);
}

fn take_lock(things: &mut Things) {
    let Some(records) = things.records.as_mut().map(|records| &mut records.all) else { return };
    let Some(at) = records.iter().position(|kept| kept.title.name == "lock") else { return };
    let old = records.remove(at);
    let text = old.text.replace("\"test\"", "\"up\"");
    records.push(Kept { title: old.title.next(), text, handle: "other".into() });
}

/// Calls it as its command does.
fn called(command: Command, release: Option<&Release>, session: &Session) -> Result<Finished> {
    session.store.meet().ok();
    let budget = || Deadline::from(now(), Duration::from_secs(60));
    match command {
        Command::Up { stay, .. } => {
            let Some(release) = release else { return Ok(Finished::plain(Exit::Host)) };
            session.admissible(release)?;
            up::deploy(Goal::plain(release, Purpose::Deploy), stay, "in memory", session, budget())
        }
        Command::Rollback { to, open } => {
            let mut request = Request { to: to.map(str::to_owned), ..Request::by(run::Command::Rollback) };
            if open {
                request.lift_standing(&session.ledger())?;
            }
            rollback::locked(&request, session, budget())
        }
        Command::WithData { to } => {
            let request = Request { to: to.map(str::to_owned), ..Request::by(run::Command::Rollback) };
            rollback::locked(&with_data::chosen(request, session)?, session, budget())
        }
        Command::Reset { keep_data } => {
            let scenarios = vec![Scenario::Reset];
            let request = Request { scenarios, keep_data, ..Request::by(run::Command::Reset) };
            rollback::locked(&request, session, budget())
        }
        Command::HoldOn => kill_switch::on("bad answers", session),
        Command::HoldOff => kill_switch::off(session),
        Command::Guard => guard::run(Some(GUARDED), session),
        Command::Pin(name, pinned) => {
            let release = session.store.named(name)?;
            session.store.pin(&release.id, pinned)?;
            Ok(Finished::plain(Exit::Ok))
        }
        Command::BackUp => back_up(session),
        Command::Down => {
            session.engine.down(Extent::Services, budget())?;
            Ok(Finished::plain(Exit::Ok))
        }
    }
}

fn back_up(session: &Session) -> Result<Finished> {
    let data: Vec<String> = DATA.map(|(name, _)| name.to_owned()).into();
    let longest = Longest::Served(Duration::from_secs(10));
    let what = backup::Contents {
        release: None,
        data: &data,
        longest,
        logs: false,
        snapshot: false,
        out: &session.out,
    };
    backup::keep(&session.pilot, session.engine.as_ref(), what, Deadline::after(Duration::from_secs(20)))?;
    Ok(Finished::plain(Exit::Ok))
}
