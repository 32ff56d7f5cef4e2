//! Tests: rollbacks, resets and deployments on a fake engine and a fake pilot. They compare the plan, the
//! journal and the end. Every operation is made to fail once, and the run is interrupted once before each.
//! The state folder is real.

// If a helper panics, the test has failed, which is the purpose of the helper.
#![allow(clippy::unwrap_used, clippy::panic)]

mod clients;
mod copies;
mod everywhere;
mod folder;
mod gates;
mod guard;
mod images;
mod locks;
mod meanwhile;
mod newer_data;
mod pauses;
mod torture;
mod watch;

use self::everywhere::{everywhere, prepared};
use self::folder::Folder;
use self::gates::with_gate;
use crate::base::courier::Courier;
use crate::base::deadline::{Deadline, now};
use crate::base::failure::Exit;
use crate::base::files::{self, Mode};
use crate::base::next::Context;
use crate::base::output::Output;
use crate::deploy::difference::Scenario;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::invariants::{Before, of_run};
use crate::deploy::plan::{Goal, Purpose};
use crate::deploy::run::{self, Command, Request};
use crate::deploy::session::{Locked, Session};
use crate::engine;
use crate::engine::carry;
use crate::engine::fake::world::{ALWAYS, CORRUPT, Defect, Killed, Things, World};
use crate::engine::roles::Runtime;
use crate::operations::{rollback, up};
use crate::release::description::{Image, Release, State};
use crate::release::form::DESCRIPTION;
use crate::release::store::Store;
use crate::stack::envfile::{EnvFile, with_value};
use crate::stack::gate_rule::Kind;
use crate::stack::hold::Hold;
use crate::stack::manifest::{MANIFEST_FILE, Manifest};
use crate::stack::pilot::{By, MODEL_FILE, Pilot};
use crate::stack::state_dir::StateDir;
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow::{Break, Continue};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const SECRET: &str = "a-token-that-nobody-may-see";
const DATA: [(&str, &str); 3] = [("engine", "kept in engine"), ("gateway", "kept"), ("jobs", "kept in jobs")];

const ENV_FILE: &str = ".env.poc";

/// A stack in memory that runs its release r1, verified, with its own data.
struct Scene {
    _folder: Folder,
    pilot: Pilot,
    world: World,
    /// Has a command the lock when it begins? Otherwise it takes it by itself.
    is_locked: bool,
}

/// How a run ended.
enum Ran {
    Finished(Box<Finished>),
    Refused(anyhow::Error),
    CutOff,
}

impl Scene {
    fn new() -> Self {
        Self::of(None)
    }

    /// With this gate; none for that of the pilot.
    fn of(gate: Option<&str>) -> Self {
        Self::by(&|manifest| gate.map_or(manifest.clone(), |gate| with_gate(&manifest, gate)))
    }

    /// With another manifest than that of the pilot.
    fn by(change: &dyn Fn(String) -> String) -> Self {
        let folder = Folder::new();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pilot-deploy");
        let pack = folder.0.as_path().join("pilot-deploy");
        std::fs::create_dir_all(pack.join("seed")).unwrap();
        for name in [".env.poc.example", "docker-compose.poc.yml", "seed/demo-scenario.json"] {
            std::fs::copy(from.join(name), pack.join(name)).unwrap();
        }
        // Nothing takes long in memory, so do not wait for what never comes.
        let manifest = std::fs::read_to_string(from.join("pilot.toml")).unwrap();
        let manifest = manifest.replace("ready = \"20s\"", "ready = \"150ms\"");
        std::fs::write(pack.join("pilot.toml"), change(manifest)).unwrap();
        let state = folder.state();
        let mut pilot = Pilot::at(&pack, "memory", state, By::Tree).unwrap();
        // The tests in `watch` watch.
        pilot.watch = Some(Duration::ZERO);
        let scene = Self { _folder: folder, pilot, world: World::default(), is_locked: true };
        scene.world.things().edge =
            scene.pilot.manifest.gate.named().into_iter().map(str::to_owned).collect();
        if scene.pilot.manifest.gate.kind() != Kind::Stop {
            scene.world.things().edge.clear();
        }
        let env = files::read_text(&scene.pilot.pack.join(".env.poc.example")).unwrap();
        let env =
            with_value(&with_value(&env, "PILOT_PROJECT", "memory").unwrap(), "ADMIN_TOKEN", SECRET).unwrap();
        let Manifest { services, observability, .. } = &scene.pilot.manifest;
        let ports = services.iter().chain(observability).zip(20_001..);
        let env = ports
            .fold(env, |env, (service, port)| with_value(&env, &service.port, &port.to_string()).unwrap());
        files::write(&scene.pilot.env_path, env.as_bytes(), Mode::Private).unwrap();
        let release = scene.release("r1", "v1.0.0", &env);
        scene.apply(&release);
        scene.world.things().volumes = DATA.map(|(name, data)| (name.to_owned(), data.to_owned())).into();
        let limit = Deadline::after(Duration::from_secs(1));
        let services = scene.world.engine(&scene.pilot).services(limit).unwrap();
        let settings = services.into_iter().map(|(name, service)| (name, service.0[0].settings.clone()));
        scene.save("r1");
        scene.store().promote("r1", "compose", settings.collect(), 0).unwrap();
        scene.store().set_current("r1").unwrap();
        scene
    }

    fn store(&self) -> Store {
        engine::store(&self.pilot, &self.world.engine(&self.pilot))
    }

    fn save(&self, id: &str) {
        let limit = Duration::from_secs(1);
        let over = AtomicBool::new(false);
        carry::save(id, &self.world.engine(&self.pilot), &self.store(), limit, &over).unwrap();
    }

    /// Starts something by hand, without this tool.
    fn apply(&self, release: &Release) {
        let (dir, limit) = (self.store().dir(&release.id), Deadline::after(Duration::from_secs(1)));
        self.world.engine(&self.pilot).apply(release, &dir, &[], &[], limit).unwrap();
    }

    /// A candidate in the store; the engine has its images.
    fn release(&self, id: &str, version: &str, env: &str) -> Release {
        let (state, pack) = (&self.pilot.state, &self.pilot.pack);
        let image = |service: &str| {
            let image = format!("sha256:{}", files::sha256_bytes(format!("{version} {service}").as_bytes()));
            self.world.things().add_image(&image, version);
            (service.to_owned(), Image::new(image, format!("memory-{service}:latest")))
        };
        let images = self.pilot.services().map(image).collect();
        let mut release = Release::unrecorded(version, "process", images);
        let program = files::sha256_bytes(b"xtask");
        files::write(&state.program(&program), b"xtask", Mode::Program).unwrap();
        (release.id, release.xtask) = (id.to_owned(), program);
        let seed = files::read(&pack.join("seed/demo-scenario.json")).unwrap();
        let mut model = self.pilot.by_manifest(&EnvFile::parse("", env.as_bytes()).unwrap()).unwrap();
        model.services.values_mut().for_each(|service| service.restart = Some(ALWAYS.to_owned()));
        for (name, bytes) in [
            ("docker-compose.poc.yml", files::read(&pack.join("docker-compose.poc.yml")).unwrap()),
            (ENV_FILE, env.as_bytes().to_vec()),
            ("demo-scenario.json", seed),
            (MANIFEST_FILE, files::read(&pack.join(MANIFEST_FILE)).unwrap()),
            (MODEL_FILE, serde_json::to_vec(&model).unwrap()),
        ] {
            let path = state.release(id).join(name);
            files::write(&path, &bytes, Mode::Private).unwrap();
            release.files.insert(name.to_owned(), files::sha256(&path).unwrap());
        }
        files::write_json(&state.release(id).join(DESCRIPTION), &release, Mode::Plain).unwrap();
        release
    }

    fn env_text(&self) -> String {
        files::read_text(&self.pilot.env_path).unwrap()
    }

    /// A bad version and bad settings, deployed without this tool.
    fn break_version(&self, defect: Defect) {
        let env = with_value(&self.env_text(), "ENABLE_CACHE", "true").unwrap();
        let bad = self.release("bad", "v6.6.6", &env);
        files::write(&self.pilot.env_path, env.as_bytes(), Mode::Private).unwrap();
        self.apply(&bad);
        std::fs::remove_dir_all(self.pilot.state.release("bad")).unwrap();
        let ids = bad.images.values().map(|image| (image.id.clone(), defect));
        self.world.things().defects.extend(ids);
    }

    /// One process: it has its own engine on the same world.
    fn run(&self, what: &dyn Fn(&Session) -> Result<Finished>) -> Ran {
        let out = Output::silent(now()).of(Context::new(Some("memory"), None, None));
        let engine = Box::new(self.world.engine(&self.pilot));
        let (pilot, store, courier) = (self.pilot.clone(), self.store(), Courier::default());
        let session = Session { pilot, engine, store, out, courier };
        // As every command does that takes the lock.
        let begins = || {
            let _lock = self.is_locked.then(|| locked(&session)).transpose()?;
            what(&session)
        };
        match std::panic::catch_unwind(AssertUnwindSafe(begins)) {
            Ok(Ok(finished)) => Ran::Finished(Box::new(finished)),
            Ok(Err(error)) => Ran::Refused(error),
            Err(panic) if panic.is::<Killed>() => Ran::CutOff,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    #[track_caller]
    fn finishes(&self, what: &dyn Fn(&Session) -> Result<Finished>) -> Finished {
        match self.run(what) {
            Ran::Finished(finished) => *finished,
            Ran::Refused(error) => panic!("refused: {error:#}"),
            Ran::CutOff => panic!("cut off"),
        }
    }

    /// What must hold in every case.
    #[track_caller]
    fn hold(&self, finished: Option<&Finished>) {
        self.hold_with(&DATA, finished);
    }

    #[track_caller]
    fn hold_with(&self, data: &[(&str, &str)], finished: Option<&Finished>) {
        let before = Before { state: &self.pilot.state, data, secret: SECRET };
        of_run(&before, &self.world.things(), finished);
    }

    /// The public stores something, if it is let in. Returns all the data that must not be lost from now on.
    fn store_more(&self) -> [(&'static str, &'static str); 3] {
        let mut things = self.world.things();
        let mut data = DATA;
        if things.is_open() {
            data[2].1 = "stored since";
            things.volumes.insert(data[2].0.into(), data[2].1.into());
        }
        data
    }

    /// The steps of the newest run from its journal, each with how it ended.
    fn journal(&self) -> Vec<(String, String)> {
        let (_, run) = self.pilot.state.every_run().unwrap().pop().unwrap();
        let text = files::read_text(&run.journal()).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let steps = events.filter(|event| event["event"] == "step" && event["progress"] != "started");
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        steps.map(|event| (word(&event["action"]["step"]), word(&event["progress"]))).collect()
    }

    /// Were these steps planned, and were they all done?
    #[track_caller]
    fn went_as_planned(&self, steps: &str) {
        let steps: Vec<String> = steps.split_whitespace().map(str::to_owned).collect();
        assert_eq!(self.planned(), steps);
        assert_eq!(self.journal(), steps.into_iter().map(|step| (step, "done".into())).collect::<Vec<_>>());
    }

    /// The steps as they were planned.
    fn planned(&self) -> Vec<String> {
        let (_, run) = self.pilot.state.every_run().unwrap().pop().unwrap();
        let text = files::read_text(&run.journal()).unwrap();
        let mut events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let plan = events.find(|event| event["event"] == "planned").unwrap();
        let steps = plan["plan"]["steps"].as_array().unwrap().clone();
        steps.iter().map(|step| step["step"].as_str().unwrap().to_owned()).collect()
    }
}

/// A child that another test starts keeps the lock of the folder until it runs its own program, which closes it.
fn locked(session: &Session) -> Result<Locked<'_>> {
    let locked = Deadline::after(Duration::from_secs(10)).poll(Duration::from_millis(5), || {
        match session.lock_for("test", Duration::from_secs(60)) {
            Err(error) if error.to_string().contains("/state is locked by ") => Continue(error),
            other => Break(other),
        }
    });
    locked.flatten()
}

fn budget() -> Deadline {
    Deadline::from(now(), Duration::from_secs(60))
}

fn roll_back(session: &Session) -> Result<Finished> {
    rollback::locked(&Request::by(Command::Rollback), session, budget())
}

fn reset(session: &Session) -> Result<Finished> {
    let scenarios = vec![Scenario::Reset];
    let request = Request { scenarios, keep_data: true, ..Request::by(Command::Reset) };
    rollback::locked(&request, session, budget())
}

/// Deploys r2. One that fails stays, to be looked at.
fn deploy(session: &Session) -> Result<Finished> {
    let release = session.store.named("r2")?;
    up::deploy(Goal::plain(&release, Purpose::Deploy), true, "in memory", session, budget())
}

#[test]
fn a_rollback_in_memory_is_what_was_planned_and_what_is_said() {
    let scene = Scene::new();
    let good = scene.env_text();
    scene.break_version(Defect::Errors);
    scene.world.begin(None, None);
    let finished = scene.finishes(&roll_back);
    scene.hold(Some(&finished));
    assert_eq!((finished.outcome, finished.release.as_deref()), (Some(Outcome::Restored), Some("r1")));
    assert_eq!(finished.scenarios, [Scenario::Config, Scenario::Version]);
    scene.went_as_planned(
        "close-gate preserve record-release restore-env-file apply \
                settle seed verify open-gate retag",
    );
    assert_eq!(scene.env_text(), good);
    // Run again: there is nothing to do.
    let again = scene.finishes(&roll_back);
    assert_eq!(again.outcome, Some(Outcome::NothingToDo));
}

#[test]
fn a_reset_in_memory_is_what_was_planned_and_brings_the_data_back() {
    let scene = Scene::new();
    scene.world.begin(None, None);
    let finished = scene.finishes(&reset);
    scene.hold(Some(&finished));
    scene.went_as_planned(
        "close-gate preserve tear-down record-release return-data close-gate-on-disk \
                apply settle seed verify open-gate retag",
    );
    let data: BTreeMap<String, String> = DATA.map(|(name, data)| (name.into(), data.into())).into();
    assert_eq!(scene.world.things().volumes, data);
}

#[test]
fn a_deployment_in_memory_is_what_was_planned_and_is_promoted() {
    let scene = Scene::new();
    scene.release("r2", "v2.0.0", &scene.env_text());
    scene.world.begin(None, None);
    let finished = scene.finishes(&deploy);
    scene.hold(Some(&finished));
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Deployed), Exit::Ok));
    scene.went_as_planned("close-gate record-release apply settle seed verify open-gate retag");
    assert_eq!(scene.store().named("r2").unwrap().state, State::KnownGood);
}

#[test]
fn a_version_that_fails_in_any_way_is_never_left_open() {
    for defect in [Defect::Errors, Defect::FailsWhenOpen, Defect::LyingGate] {
        let scene = Scene::new();
        let bad = scene.release("r2", "v2.0.0", &scene.env_text());
        let defects = bad.images.values().map(|image| (image.id.clone(), defect));
        scene.world.things().defects.extend(defects);
        scene.world.begin(None, None);
        let finished = scene.finishes(&deploy);
        assert_eq!(finished.exit, Exit::NotRestored, "{defect:?}: {finished:?}");
        // This release fails only while the gate is open, so the gate must be opened once. The others must
        // never be let in.
        let opened = std::mem::take(&mut scene.world.things().let_in_to_bad);
        assert_eq!(opened > 0, defect == Defect::FailsWhenOpen, "{defect:?}");
        assert!(!scene.world.things().is_open(), "{defect:?}");
        scene.hold(Some(&finished));
        let back = scene.finishes(&roll_back);
        assert_eq!(back.exit, Exit::Ok, "{defect:?}: {back:?}");
        scene.hold(Some(&back));
    }
}

#[test]
fn under_a_hold_everything_is_restored_and_nothing_is_opened() {
    let scene = Scene::new();
    scene.break_version(Defect::Errors);
    Hold::mine("bad answers").place(&scene.store().ledger()).unwrap();
    scene.world.begin(None, None);
    let finished = scene.finishes(&roll_back);
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Restored), Exit::Held));
    scene.hold(Some(&finished));
}

#[test]
fn what_an_older_version_has_left_is_still_read() {
    let scene = Scene::new();
    scene.break_version(Defect::Errors);
    // A release without the fields that were added later, and an interrupted run with the old names of steps.
    let path = scene.pilot.state.release("r1").join(DESCRIPTION);
    let mut release: Value = files::read_json(&path).unwrap();
    for name in ["verified_run", "same_commits", "inputs"] {
        release.as_object_mut().unwrap().remove(name);
    }
    files::write_json(&path, &release, Mode::Plain).unwrap();
    let run = scene.pilot.state.runs().join("20261101T120000000");
    let request = r#"{"version":1,"to":null,"scenarios":[]}"#;
    let step = |step: &str, progress: &str| {
        format!("{{\"event\":\"step\",\"action\":{step},\"progress\":\"{progress}\"}}\n")
    };
    let journal = [
        step(r#"{"step":"preserve","data":[]}"#, "missed"),
        step(r#"{"step":"point-tags"}"#, "done"),
        step(r#"{"step":"replace","force":["engine"]}"#, "started"),
    ];
    files::write(&run.join("request.json"), request.as_bytes(), Mode::Plain).unwrap();
    files::write(&run.join("journal.jsonl"), journal.concat().as_bytes(), Mode::Plain).unwrap();
    let cut = run::all_cut_off(&scene.pilot.state, None).unwrap();
    assert_eq!(cut[0].past.at.as_deref(), Some("apply the release"));
    scene.world.begin(None, None);
    let finished = scene.finishes(&roll_back);
    assert_eq!((finished.outcome, finished.release.as_deref()), (Some(Outcome::Restored), Some("r1")));
    scene.hold(Some(&finished));
}

#[test]
fn a_rollback_that_fails_or_is_cut_off_anywhere_can_be_run_again() {
    let points = everywhere(
        &prepared(None, &|scene| scene.break_version(Defect::Errors)),
        &[],
        &roll_back,
        &roll_back,
        &|_| (),
    );
    assert!(points > 40, "only {points} points");
}

#[test]
fn a_rollback_over_corrupt_data_that_fails_or_is_cut_off_anywhere_can_be_run_again() {
    let mut points = 0;
    for number in 1.. {
        let scene = Scene::new();
        scene.world.things().volumes.insert("jobs".into(), CORRUPT.into());
        scene.world.begin(None, Some(number));
        let ran = scene.run(&roll_back);
        let cut = matches!(ran, Ran::CutOff);
        // Corrupt data cannot be lost.
        scene.hold_with(&DATA[..2], None);
        scene.world.begin(None, None);
        let finished = scene.finishes(&roll_back);
        assert_eq!(finished.exit, Exit::Ok, "{number}: {finished:?}");
        scene.hold_with(&DATA[..2], Some(&finished));
        if !cut {
            break;
        }
        points += 1;
    }
    assert!(points > 20, "only {points} points");
}

#[test]
fn a_reset_that_fails_or_is_cut_off_anywhere_can_be_run_again() {
    let points = everywhere(&Scene::new, &[], &reset, &reset, &|_| ());
    assert!(points > 40, "only {points} points");
}

#[test]
fn a_deployment_that_fails_or_is_cut_off_anywhere_leaves_a_way_back() {
    let prepare = |scene: &Scene| drop(scene.release("r2", "v2.0.0", &scene.env_text()));
    let points = everywhere(&prepared(None, &prepare), &[], &deploy, &roll_back, &|_| ());
    assert!(points > 30, "only {points} points");
}
