//! Tests: images that the engine has lost, and images that have to be saved.

use super::everywhere::prepared;
use super::{Ran, Scene, deploy, everywhere, roll_back};
use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::files;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::lockout::Public;
use crate::deploy::run::{Command, Request};
use crate::deploy::session::Session;
use crate::engine::fake::world::Defect;
use crate::operations::in_memory::budget;
use crate::operations::rollback;
use crate::release::description::State;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn back_to_r1(session: &Session) -> Result<Finished> {
    let request = Request { to: Some("r1".into()), ..Request::by(Command::Rollback) };
    rollback::locked(&request, session, budget())
}

/// A newer release runs and is known-good, and the engine has lost the images of the older one.
fn newer(scene: &Scene) {
    let newer = scene.release("r2", "v2.0.0", &scene.env_text());
    scene.apply(&newer);
    scene.save("r2");
    scene.store().promote("r2", "compose", BTreeMap::new(), 1).unwrap();
    scene.store().set_current("r2").unwrap();
    lose(scene);
}

fn lose(scene: &Scene) {
    let release = scene.store().named("r1").unwrap();
    let lost: Vec<&String> = release.images.values().map(|image| &image.id).collect();
    scene.world.things().images.retain(|id, _| !lost.contains(&id));
}

#[test]
fn lost_images_are_loaded_while_what_runs_is_served_if_it_passes_its_checks() {
    let scene = Scene::new();
    newer(&scene);
    scene.world.begin(None, None);
    let finished = scene.finishes(&back_to_r1);
    scene.hold(Some(&finished));
    assert_eq!(finished.outcome, Some(Outcome::Restored), "{finished:?}");
    scene.went_as_planned(
        "load-images close-gate preserve record-release apply settle seed verify open-gate retag",
    );
    let scene = Scene::new();
    scene.break_version(Defect::Errors);
    lose(&scene);
    scene.world.begin(None, None);
    let finished = scene.finishes(&roll_back);
    scene.hold(Some(&finished));
    assert_eq!(finished.outcome, Some(Outcome::Restored), "{finished:?}");
    assert_eq!(scene.planned()[..3], ["close-gate", "preserve", "load-images"]);
}

#[test]
fn loading_that_takes_half_of_the_budget_while_the_public_is_served_goes_on_behind_the_closed_gate() {
    let budget = Duration::from_secs(6);
    let back = |session: &Session| {
        let request = Request { to: Some("r1".into()), ..Request::by(Command::Rollback) };
        rollback::locked(&request, session, Deadline::from(Instant::now(), budget))
    };
    let scene = Scene::new();
    newer(&scene);
    scene.world.begin(None, None);
    scene.finishes(&back);
    let first = scene.world.things().done.iter().position(|name| *name == "load").unwrap() + 1;
    let scene = Scene::new();
    newer(&scene);
    // The engine is ended at the deadline, as a child is.
    scene.world.begin(Some(first), None);
    scene.world.things().meanwhile = Some((first, Box::new(move |_| std::thread::sleep(budget / 2))));
    let finished = scene.finishes(&back);
    scene.hold(Some(&finished));
    assert_eq!(finished.outcome, Some(Outcome::Restored), "{finished:?}");
    let steps: Vec<String> = scene.journal().into_iter().map(|(step, end)| format!("{step} {end}")).collect();
    assert_eq!(
        steps[..4],
        ["load-images warned", "close-gate done", "preserve done", "load-images done"],
        "{steps:?}"
    );
}

#[test]
fn a_damaged_image_is_named_and_what_runs_is_left_served() {
    let scene = Scene::new();
    newer(&scene);
    let image = scene.store().named("r1").unwrap().images["jobs"].clone();
    let blob = scene.pilot.state.blob(image.index.as_ref().unwrap());
    files::write(&blob, b"noise", files::Mode::Plain).unwrap();
    scene.world.begin(None, None);
    let finished = scene.finishes(&back_to_r1);
    scene.hold(Some(&finished));
    assert_eq!((finished.exit, &finished.public), (Exit::NotRestored, &Some(Public::Served)), "{finished:?}");
    let error = finished.error.unwrap();
    assert!(error.contains(&blob.display().to_string()) && error.contains("altered"), "{error}");
    let done = scene.world.things().done.clone();
    let changes = ["load", "start", "stop", "remove", "retag"];
    assert!(!done.iter().any(|name| changes.contains(name)), "{done:?}");
}

#[test]
fn a_rollback_that_loads_images_and_fails_or_is_cut_off_anywhere_can_be_run_again() {
    let points = everywhere(&prepared(None, &newer), &[], &back_to_r1, &back_to_r1, &|_| ());
    assert!(points > 45, "only {points} points");
}

#[test]
fn the_public_is_served_before_the_images_are_saved_and_a_release_is_known_good_afterwards() {
    let scene = Scene::new();
    scene.release("r2", "v2.0.0", &scene.env_text());
    scene.world.begin(None, None);
    let finished = scene.finishes(&deploy);
    scene.hold(Some(&finished));
    let done = scene.world.things().done.clone();
    let saves = done.iter().filter(|name| **name == "save").count();
    let first = done.iter().position(|name| *name == "save").unwrap();
    assert_eq!(saves, 3, "{done:?}");
    assert!(done.iter().rposition(|name| *name == "retag").unwrap() < first, "{done:?}");
    let release = scene.store().named("r2").unwrap();
    assert!(release.is_known_good() && scene.store().check(&release).is_ok());
}

#[test]
fn a_release_whose_images_cannot_be_saved_serves_and_stays_a_candidate() {
    for number in 1.. {
        let scene = Scene::new();
        scene.release("r2", "v2.0.0", &scene.env_text());
        scene.world.begin(Some(number), None);
        let ran = scene.run(&deploy);
        let Some(name) = scene.world.things().done.get(number - 1).copied() else { break };
        let Ran::Finished(finished) = ran else { continue };
        if !["save", "size"].contains(&name) {
            continue;
        }
        scene.hold(Some(&finished));
        assert_eq!((finished.exit, &finished.public), (Exit::NotRestored, &Some(Public::Served)));
        let error = finished.error.as_ref().unwrap();
        assert!(error.contains("release r2 runs and was verified") && error.contains(name), "{error}");
        assert_eq!(scene.store().named("r2").unwrap().state, State::Candidate);
        // Deployed once more, it is complete.
        scene.world.begin(None, None);
        assert_eq!(scene.finishes(&deploy).exit, Exit::Ok);
        assert_eq!(scene.store().named("r2").unwrap().state, State::KnownGood);
    }
}

#[test]
fn a_release_that_fails_is_not_saved() {
    let scene = Scene::new();
    let bad = scene.release("r2", "v2.0.0", &scene.env_text());
    let defects = bad.images.values().map(|image| (image.id.clone(), Defect::Errors));
    scene.world.things().defects.extend(defects);
    scene.world.begin(None, None);
    assert_eq!(scene.finishes(&deploy).exit, Exit::NotRestored);
    assert!(!scene.world.things().done.contains(&"save"));
    assert_eq!(scene.store().named("r2").unwrap().state, State::Failed);
}
