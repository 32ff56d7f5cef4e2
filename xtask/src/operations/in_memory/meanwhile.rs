//! Tests: what somebody does by hand between the start of the services and their verification.

use super::{Defect, Finished, Scene, Things, files, roll_back};

/// A rollback to r1. When its services were started, this happens.
fn rolled_back(happens: fn(&mut Things)) -> (Scene, Finished) {
    let broken = || {
        let scene = Scene::new();
        scene.break_version(Defect::Errors);
        scene.world.begin(None, None);
        scene
    };
    let whole = broken();
    whole.finishes(&roll_back);
    let last = whole.world.things().done.iter().rposition(|name| *name == "start").unwrap();
    let scene = broken();
    // Operations are counted from 1.
    scene.world.things().meanwhile = Some((last + 2, Box::new(happens)));
    let finished = scene.finishes(&roll_back);
    assert!(scene.world.things().meanwhile.is_none(), "it did not happen");
    scene.hold(Some(&finished));
    (scene, finished)
}

#[test]
fn a_gate_that_is_opened_before_the_verification_is_closed_first() {
    let (scene, finished) = rolled_back(|things| things.gate = None);
    assert!(finished.exit.is_good(), "{finished:?}");
    let (_, run) = scene.pilot.state.every_run().unwrap().pop().unwrap();
    let journal = files::read_text(&run.journal()).unwrap();
    assert!(journal.contains("the gate came up open; it was closed before anything else"), "{journal}");
}

#[test]
fn restored_is_not_said_where_an_image_is_another_one() {
    let (_, finished) = rolled_back(|things| {
        things.add_image("sha256:another", "v1.0.0");
        things.services.get_mut("engine").unwrap().image = "sha256:another".into();
    });
    assert!(!finished.exit.is_good(), "{finished:?}");
    assert!(finished.error.as_ref().unwrap().contains("what runs is not release r1"), "{finished:?}");
}
