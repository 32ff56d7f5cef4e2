//! Tests: `guard` looks at what runs until its time is over, or until that turns bad; then it goes back once. Time passes
//! without waiting.

use super::watch::{deploy_or_back, watching, watching_by};
use super::*;
use crate::base::failure::exit_of;
use crate::operations::guard;
use std::sync::{Arc, Mutex};

fn guarded(session: &Session) -> Result<Finished> {
    guard::run(Some(Duration::from_secs(20)), session)
}

/// A stack that runs r2; before it there was r1. A guard takes the lock by itself.
fn two_releases() -> Scene {
    let mut scene = watching();
    assert_eq!(scene.finishes(&deploy_or_back).exit, Exit::Ok);
    scene.world.begin(None, None);
    scene.is_locked = false;
    scene
}

#[track_caller]
fn restored(scene: &Scene, finished: &Finished, release: &str) {
    assert_eq!(
        (finished.outcome, finished.exit, finished.release.as_deref()),
        (Some(Outcome::Restored), Exit::Ok, Some(release)),
        "{finished:?}"
    );
    assert!(scene.world.things().is_open());
    scene.hold(Some(finished));
}

#[test]
fn while_all_is_well_nothing_is_touched() {
    let scene = two_releases();
    let before = scene.runs();
    // Not well for a moment, restarted by hand, and slow to start.
    scene.turns_bad(2, Defect::Unhealthy);
    scene.after(3, |things| things.defects.clear());
    let finished = scene.finishes(&guarded);
    assert_eq!((finished.exit, finished.release.as_deref()), (Exit::Ok, Some("r2")), "{finished:?}");
    assert_eq!((finished.outcome, scene.runs()), (None, before));
    let done = scene.world.things().done.clone();
    assert!(done.iter().all(|done| matches!(*done, "services" | "request")), "{done:?}");
    assert!(done.len() > 20, "{done:?}");
}

#[test]
fn a_release_that_turns_bad_is_left_for_the_one_before_once() {
    for defect in [Defect::Unhealthy, Defect::Errors] {
        let scene = two_releases();
        let before = scene.runs();
        scene.turns_bad(7, defect);
        let finished = scene.finishes(&guarded);
        restored(&scene, &finished, "r1");
        assert_eq!(scene.runs(), before + 1);
        // It is not watched for longer than until then.
        assert!(scene.world.things().passed < 20);
    }
    let scene = two_releases();
    scene.after(3, |things| things.services.get_mut("jobs").unwrap().restarts += 1);
    restored(&scene, &scene.finishes(&guarded), "r1");
    // Long before, it may have been restarted as often as it likes.
    let scene = two_releases();
    scene.world.things().services.get_mut("jobs").unwrap().restarts = 9;
    assert_eq!(scene.finishes(&guarded).outcome, None);
}

#[test]
fn what_is_gone_or_was_changed_by_hand_is_brought_back() {
    let scene = two_releases();
    scene.after(3, |things| drop(things.services.remove("jobs")));
    restored(&scene, &scene.finishes(&guarded), "r2");
    let scene = two_releases();
    scene.break_version(Defect::Errors);
    restored(&scene, &scene.finishes(&guarded), "r2");
    // Where there is no release before it.
    let mut scene = watching();
    scene.is_locked = false;
    let images = scene.store().named("r1").unwrap().images;
    scene.after(2, move |things| {
        things.defects.extend(images.into_values().map(|image| (image.id, Defect::Unhealthy)));
    });
    let finished = scene.finishes(&guarded);
    assert_eq!((finished.exit, finished.release.as_deref()), (Exit::NotRestored, Some("r1")), "{finished:?}");
    assert!(!scene.world.things().is_open());
    scene.hold(Some(&finished));
}

#[test]
fn under_a_hold_nothing_opens() {
    let scene = two_releases();
    Hold::mine("maintenance").place(&scene.store().ledger()).unwrap();
    scene.world.things().set_gate(Some("maintenance".into()));
    assert_eq!(scene.finishes(&guarded).exit, Exit::Ok);
    scene.turns_bad(2, Defect::Unhealthy);
    let finished = scene.finishes(&guarded);
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Restored), Exit::Held), "{finished:?}");
    assert!(!scene.world.things().is_open());
    scene.hold(Some(&finished));
    // Where the hold keeps services down, these are not gone.
    let mut scene = watching_by(&|manifest| with_gate(&manifest, gates::STOP));
    scene.is_locked = false;
    Hold::mine("maintenance").place(&scene.store().ledger()).unwrap();
    assert_eq!(scene.finishes(&deploy_or_back).exit, Exit::Held);
    assert_eq!(scene.finishes(&guarded).exit, Exit::Ok);
    scene.turns_bad(2, Defect::Unhealthy);
    let finished = scene.finishes(&guarded);
    assert_eq!((finished.exit, finished.release.as_deref()), (Exit::Held, Some("r1")), "{finished:?}");
    assert!(!scene.world.things().is_open());
    scene.hold(Some(&finished));
}

#[test]
fn what_somebody_has_closed_or_taken_down_is_not_judged() {
    let scene = two_releases();
    let before = scene.runs();
    let jobs = scene.store().named("r2").unwrap().images["jobs"].id.clone();
    scene.after(1, |things| {
        things.defects.insert(jobs, Defect::Unhealthy);
    });
    scene.world.things().set_gate(Some("by hand".into()));
    assert_eq!(scene.finishes(&guarded).outcome, None);
    let scene = two_releases();
    scene.after(1, Things::end_all);
    assert_eq!(scene.finishes(&guarded).outcome, None);
    assert_eq!(scene.runs(), before);
}

#[test]
fn while_another_command_is_at_work_it_does_not_judge() {
    let scene = two_releases();
    let before = scene.runs();
    scene.turns_bad(1, Defect::Unhealthy);
    let held = Arc::new(Mutex::new(None));
    let (ledger, taken) = (scene.store().ledger(), Arc::clone(&held));
    scene.after(2, move |_| *taken.lock().unwrap() = Some(ledger.lock_folder("up").unwrap()));
    scene.after(15, move |things| {
        things.defects.clear();
        *held.lock().unwrap() = None;
    });
    let finished = scene.finishes(&guarded);
    assert_eq!((finished.outcome, finished.exit, scene.runs()), (None, Exit::Ok, before), "{finished:?}");
}

#[test]
fn an_engine_that_does_not_answer_at_the_end_is_told() {
    let scene = two_releases();
    scene.after(2, |things| things.is_silent = true);
    let Ran::Refused(error) = scene.run(&guarded) else { panic!("it was not told") };
    assert_eq!(exit_of(&error), Exit::Host, "{error:#}");
    scene.world.things().is_silent = false;
    assert!(scene.world.things().is_open());
}

#[test]
fn a_guard_that_is_cut_off_anywhere_leaves_a_way_back() {
    let bad = || {
        let scene = two_releases();
        scene.turns_bad(1, Defect::Unhealthy);
        scene
    };
    let to_r1 = |session: &Session| {
        let request = Request { to: Some("r1".into()), ..Request::by(Command::Rollback) };
        rollback::locked(&request, session, budget())
    };
    let points = everywhere(&bad, &[], &guarded, &to_r1, &|_| ());
    assert!(points > 60, "only {points} points");
}
