//! Tests: what runs is watched after its gate was opened. It turns bad in time, is only slow, is held closed, or its run is
//! cut off. Time passes without waiting.

use super::gates::EXEC;
use super::*;
use crate::engine::fake::world::{Fault, InTime, When};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A stack that is watched for three seconds, at each of which there is one look.
pub fn watching() -> Scene {
    watching_with(&[])
}

/// The same with other settings.
fn watching_with(settings: &[(&str, &str)]) -> Scene {
    watching_by(&|manifest| {
        settings.iter().fold(manifest, |manifest, (old, new): &(&str, &str)| manifest.replace(old, new))
    })
}

/// The same with another manifest.
pub fn watching_by(change: &dyn Fn(String) -> String) -> Scene {
    let mut scene = Scene::by(&|manifest| {
        change(manifest.replace("for = \"10s\"", "for = \"3s\"").replace("failures = 3", "failures = 2"))
    });
    scene.pilot.watch = None;
    scene.release("r2", "v2.0.0", &scene.env_text());
    scene.world.begin(None, None);
    scene
}

/// Deploys r2, and goes back if it fails.
pub fn deploy_or_back(session: &Session) -> Result<Finished> {
    let release = session.store.named("r2")?;
    up::deploy(Goal::plain(&release, Purpose::Deploy), false, "in memory", session, budget())
}

impl Scene {
    /// What happens after so many looks.
    pub fn after(&self, looks: usize, happens: impl FnOnce(&mut Things) + Send + 'static) {
        let mut things = self.world.things();
        let at = things.passed + looks;
        things.in_time.insert(at, Box::new(happens) as InTime);
    }

    /// Release r2 gets this defect after so many looks.
    pub fn turns_bad(&self, looks: usize, defect: Defect) {
        let images = self.store().named("r2").unwrap().images;
        self.after(looks, move |things| {
            things.defects.extend(images.into_values().map(|image| (image.id, defect)));
        });
    }

    fn state_of(&self, release: &str) -> State {
        self.store().named(release).unwrap().state
    }

    pub fn runs(&self) -> usize {
        self.pilot.state.every_run().unwrap().len()
    }

    #[track_caller]
    fn went_back(&self, finished: &Finished, why: &str) {
        assert_eq!(
            (finished.outcome, finished.exit, finished.release.as_deref()),
            (Some(Outcome::RolledBack), Exit::RolledBack, Some("r1")),
            "{finished:?}"
        );
        let error = finished.error.clone().unwrap();
        assert!(error.contains("release r2 did not stay well") && error.contains(why), "{error}");
        // It was proved closed at once.
        assert!(!error.contains("MAY BE OPEN"), "{error}");
        // Once: a deployment and a rollback.
        assert_eq!(self.runs(), 2);
        assert_eq!((self.state_of("r1"), self.state_of("r2")), (State::KnownGood, State::Failed));
        self.hold(Some(finished));
    }
}

#[test]
fn a_release_is_a_candidate_until_its_watch_is_over_and_the_public_is_served_meanwhile() {
    let scene = watching();
    let seen = Arc::new(AtomicBool::new(false));
    let (store, look) = (scene.store(), Arc::clone(&seen));
    scene.after(2, move |things| {
        assert!(things.is_open());
        assert_eq!(store.named("r2").unwrap().state, State::Candidate);
        look.store(true, Ordering::Relaxed);
    });
    let finished = scene.finishes(&deploy_or_back);
    assert!(seen.load(Ordering::Relaxed));
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Deployed), Exit::Ok), "{finished:?}");
    scene.went_as_planned("close-gate record-release apply settle seed verify open-gate retag keep-watch");
    assert_eq!(scene.state_of("r2"), State::KnownGood);
    scene.hold(Some(&finished));
}

#[test]
fn what_turns_bad_goes_back_once_by_itself() {
    let scene = watching();
    scene.turns_bad(2, Defect::Unhealthy);
    scene.went_back(&scene.finishes(&deploy_or_back), "out of sorts, 2 looks in a row");
    // Only a watched check sees this.
    let scene = watching();
    scene.turns_bad(1, Defect::Errors);
    scene.went_back(&scene.finishes(&deploy_or_back), "stream starts and gives tokens");
    let scene = watching();
    scene.after(1, |things| things.services.get_mut("jobs").unwrap().restarts += 1);
    scene.went_back(&scene.finishes(&deploy_or_back), "jobs was restarted 1 time within 3s");
    let scene = watching();
    scene.after(1, |things| drop(things.services.remove("jobs")));
    scene.went_back(&scene.finishes(&deploy_or_back), "jobs is not there any more");
    assert!(scene.world.things().is_open());
}

#[test]
fn what_turns_bad_at_the_last_look_is_not_yet_decided_then() {
    let scene = watching();
    scene.turns_bad(3, Defect::Unhealthy);
    scene.went_back(&scene.finishes(&deploy_or_back), "2 looks in a row");
}

#[test]
fn with_stay_what_turns_bad_is_only_shut_out() {
    let scene = watching();
    scene.turns_bad(1, Defect::Unhealthy);
    let finished = scene.finishes(&deploy);
    assert_eq!((finished.exit, finished.release.as_deref()), (Exit::NotRestored, Some("r2")));
    assert!(finished.next.as_ref().is_some_and(|next| next.ends_with(" rollback")), "{finished:?}");
    assert!(!scene.world.things().is_open());
    assert_eq!((scene.runs(), scene.state_of("r2")), (1, State::Failed));
    scene.hold(Some(&finished));
}

#[test]
fn what_is_only_slow_or_not_well_for_a_moment_stays() {
    let scene = watching();
    scene.turns_bad(1, Defect::Unhealthy);
    scene.after(2, |things| things.defects.clear());
    assert_eq!(scene.finishes(&deploy_or_back).exit, Exit::Ok);
    // A service is restarted as often as it may be, and takes its time.
    let scene = watching_with(&[("restarts = 0 ", "restarts = 1 "), ("ready = \"150ms\"", "ready = \"3s\"")]);
    let slow = scene.store().named("r2").unwrap().images["jobs"].id.clone();
    scene.after(1, move |things| {
        things.services.get_mut("jobs").unwrap().restarts += 1;
        things.defects.insert(slow, Defect::Unhealthy);
    });
    scene.after(4, |things| things.defects.clear());
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!((finished.exit, scene.state_of("r2")), (Exit::Ok, State::KnownGood), "{finished:?}");
    assert!(scene.world.things().in_time.is_empty());
    scene.hold(Some(&finished));
}

#[test]
fn under_a_hold_health_is_watched_and_nothing_opens() {
    let scene = watching();
    Hold::mine("maintenance").place(&scene.store().ledger()).unwrap();
    for looks in 1..4 {
        scene.after(looks, |things| assert!(!things.is_open()));
    }
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Deployed), Exit::Held), "{finished:?}");
    assert_eq!(scene.state_of("r2"), State::KnownGood);
    scene.hold(Some(&finished));
    // It turns bad behind the gate.
    let scene = watching();
    Hold::mine("maintenance").place(&scene.store().ledger()).unwrap();
    scene.turns_bad(1, Defect::Unhealthy);
    let finished = scene.finishes(&deploy_or_back);
    scene.went_back(&finished, "would serve again, but for a hold");
    assert!(finished.held && !scene.world.things().is_open());
}

#[test]
fn a_hold_that_is_placed_in_the_middle_is_kept_and_told() {
    let scene = watching();
    let ledger = scene.store().ledger();
    scene.after(1, move |things| {
        Hold::mine("bad answers").place(&ledger).unwrap();
        things.set_gate(Some("bad answers".into()));
    });
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Deployed), Exit::Held), "{finished:?}");
    scene.hold(Some(&finished));
}

/// Whatever fails while it is watched, one operation or two in a row, what is said of the public is so.
#[test]
fn that_a_hold_keeps_the_gate_closed_is_said_only_of_one_that_is_closed() {
    let mut failed = 0;
    let all = (30..).flat_map(|at| [(at, at), (at, at + 1)]);
    for (first, last) in all {
        let scene = watching_by(&|manifest| with_gate(&manifest, EXEC));
        scene.keeps_records();
        scene.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
        scene.break_version(Defect::Errors);
        scene.world.begin_with(vec![(When::Numbers(first, last), Fault::Fails)]);
        let ran = scene.run(&roll_back);
        if scene.world.things().done.len() < first {
            break;
        }
        failed += 1;
        let Ran::Finished(finished) = ran else { continue };
        let is_open = scene.world.things().is_open();
        assert!(!finished.exit.is_good() || is_open != finished.held, "failure {first}: {finished:?}");
    }
    assert!(failed > 10, "{failed}");
}

#[test]
fn a_gate_that_is_opened_against_a_hold_in_the_middle_is_closed_again() {
    let scene = watching();
    Hold::mine("maintenance").place(&scene.store().ledger()).unwrap();
    scene.after(2, |things| things.gate = None);
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Deployed), Exit::Held), "{finished:?}");
    assert!(!scene.world.things().is_open());
    scene.hold(Some(&finished));
}

#[test]
fn a_gate_that_is_closed_without_this_tool_in_the_middle_is_a_hold_and_one_that_closed_itself_is_bad() {
    let scene = watching();
    scene.after(1, |things| things.set_gate(Some("by hand".into())));
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Deployed), Exit::Held), "{finished:?}");
    assert!(finished.hold.as_ref().is_some_and(|hold| hold.contains("by hand")), "{finished:?}");
    scene.hold(Some(&finished));
    let scene = watching();
    scene.after(1, |things| things.set_gate(Some("gate file unreadable".into())));
    scene.went_back(&scene.finishes(&deploy_or_back), "the gate was closed meanwhile: gate file unreadable");
}

#[test]
fn a_rollback_that_turns_bad_is_closed_and_goes_nowhere() {
    let scene = watching();
    assert_eq!(scene.finishes(&deploy_or_back).exit, Exit::Ok);
    let images = scene.store().named("r1").unwrap().images;
    scene.after(1, move |things| {
        things.defects.extend(images.into_values().map(|image| (image.id, Defect::Unhealthy)));
    });
    // r2 is older than r1 is verified, and could be tried too.
    let request = Request { to: Some("r1".into()), ..Request::by(Command::Rollback) };
    let finished = scene.finishes(&|session: &Session| rollback::locked(&request, session, budget()));
    assert_eq!(
        (finished.outcome, finished.exit, finished.release.as_deref()),
        (Some(Outcome::NotRestored), Exit::NotRestored, Some("r1")),
        "{finished:?}"
    );
    assert!(!scene.world.things().is_open());
    assert!(matches!(finished.public, Some(crate::deploy::lockout::Public::ShutOut(_))), "{finished:?}");
    assert_eq!((scene.runs(), scene.state_of("r1")), (2, State::KnownGood));
    scene.hold(Some(&finished));
}

/// Of the release that runs, without being named.
#[test]
fn a_rollback_that_turns_bad_does_not_try_the_next_older_release() {
    let scene = watching();
    assert_eq!(scene.finishes(&deploy_or_back).exit, Exit::Ok);
    scene.break_version(Defect::Errors);
    scene.turns_bad(1, Defect::Unhealthy);
    let finished = scene.finishes(&roll_back);
    assert_eq!((finished.exit, finished.release.as_deref()), (Exit::NotRestored, Some("r2")), "{finished:?}");
    assert!(!scene.world.things().is_open());
    scene.hold(Some(&finished));
}

#[test]
fn an_engine_that_does_not_answer_for_the_whole_watch_leaves_it_served_and_a_candidate() {
    let scene = watching();
    scene.after(1, |things| things.is_silent = true);
    scene.after(8, |things| things.is_silent = false);
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!((finished.exit, scene.state_of("r2")), (Exit::Host, State::Candidate), "{finished:?}");
    assert!(finished.error.as_ref().is_some_and(|error| error.contains("cannot tell")), "{finished:?}");
    assert!(scene.world.things().is_open());
    assert_eq!(scene.runs(), 1);
    scene.hold(Some(&finished));
}

/// Deploys r2 and is cut off at this look of its watch.
fn cut_off_at_look(look: usize) -> Scene {
    let twin = watching();
    twin.finishes(&deploy_or_back);
    let done = twin.world.things().done.clone();
    let retagged = done.iter().position(|done| *done == "retag").unwrap();
    let scene = watching();
    scene.world.begin(None, Some(retagged + 1 + look));
    assert!(matches!(scene.run(&deploy_or_back), Ran::CutOff));
    assert_eq!(scene.state_of("r2"), State::Candidate);
    assert!(scene.world.things().is_open());
    scene.world.begin(None, None);
    scene
}

#[test]
fn the_same_command_takes_up_a_watch_that_was_cut_off_and_repeats_nothing() {
    for look in 1..4 {
        let scene = cut_off_at_look(look);
        let finished = scene.finishes(&deploy_or_back);
        assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Deployed), Exit::Ok), "{finished:?}");
        scene.went_as_planned("retag keep-watch");
        assert_eq!(scene.state_of("r2"), State::KnownGood);
        scene.hold(Some(&finished));
        let done = scene.world.things().done.clone();
        assert!(!done.contains(&"start"), "{done:?}");
    }
    // It turns bad while it is watched again.
    let scene = cut_off_at_look(2);
    scene.turns_bad(1, Defect::Unhealthy);
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!((finished.exit, finished.release.as_deref()), (Exit::RolledBack, Some("r1")), "{finished:?}");
    assert_eq!(scene.state_of("r2"), State::Failed);
    scene.hold(Some(&finished));
    // It was changed by hand since, so it is deployed anew.
    let scene = cut_off_at_look(2);
    scene.world.things().services.get_mut("jobs").unwrap().runs = false;
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!(finished.exit, Exit::Ok, "{finished:?}");
    assert!(scene.planned().contains(&"apply".to_owned()));
    scene.hold(Some(&finished));
}

#[test]
fn a_candidate_whose_watch_was_cut_off_is_no_release_to_go_back_to() {
    let scene = cut_off_at_look(2);
    let finished = scene.finishes(&roll_back);
    assert_eq!((finished.exit, finished.release.as_deref()), (Exit::Ok, Some("r1")), "{finished:?}");
    assert_eq!(scene.state_of("r2"), State::Candidate);
    scene.hold(Some(&finished));
    // What the run came to is written down, and is no success.
    let (_, first) = scene.pilot.state.every_run().unwrap().remove(0);
    let report: Finished = files::read_json(&first.report()).unwrap();
    assert_eq!((report.outcome, report.exit), (Some(Outcome::NotRestored), Exit::Interrupted));
    // The rollback had another request, so a later deployment is one.
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!(finished.exit, Exit::Ok, "{finished:?}");
    assert!(scene.planned().contains(&"close-gate".to_owned()));
}

#[test]
fn a_rollback_that_is_cut_off_on_its_watch_is_taken_up() {
    let twin = watching();
    twin.break_version(Defect::Errors);
    twin.finishes(&roll_back);
    let retagged = twin.world.things().done.iter().position(|done| *done == "retag").unwrap();
    let scene = watching();
    scene.break_version(Defect::Errors);
    scene.world.begin(None, Some(retagged + 3));
    assert!(matches!(scene.run(&roll_back), Ran::CutOff));
    scene.world.begin(None, None);
    let finished = scene.finishes(&roll_back);
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Restored), Exit::Ok), "{finished:?}");
    scene.went_as_planned("retag keep-watch");
    scene.hold(Some(&finished));
}

#[test]
fn a_watched_deployment_that_fails_or_is_cut_off_anywhere_can_be_taken_back_or_taken_up() {
    let points = everywhere(&watching, &[], &deploy, &roll_back, &|scene| {
        assert_eq!(scene.state_of("r1"), State::KnownGood);
    });
    assert!(points > 40, "only {points} points");
    let points = everywhere(&watching, &[], &deploy, &deploy, &|scene| {
        assert_eq!(scene.state_of("r2"), State::KnownGood);
    });
    assert!(points > 40, "only {points} points");
}

#[test]
fn a_way_back_of_what_turned_bad_that_fails_or_is_cut_off_anywhere_can_be_run_again() {
    let bad = || {
        let scene = watching();
        scene.turns_bad(1, Defect::Unhealthy);
        scene
    };
    let points = everywhere(&bad, &[], &deploy_or_back, &roll_back, &|scene| {
        assert_ne!(scene.state_of("r2"), State::KnownGood);
    });
    assert!(points > 60, "only {points} points");
}

#[test]
fn a_watched_rollback_that_fails_or_is_cut_off_anywhere_can_be_run_again() {
    let broken = || {
        let scene = watching();
        scene.break_version(Defect::Errors);
        scene
    };
    let points = everywhere(&broken, &[], &roll_back, &roll_back, &|_| ());
    assert!(points > 50, "only {points} points");
}

/// A gate without a switch, and one that is closed by commands.
#[test]
fn with_every_kind_of_gate_what_turns_bad_is_closed_and_a_hold_is_kept() {
    for gate in [gates::STOP, EXEC] {
        let new = || watching_by(&|manifest| with_gate(&manifest, gate));
        let scene = new();
        scene.turns_bad(1, Defect::Unhealthy);
        scene.went_back(&scene.finishes(&deploy_or_back), "out of sorts");
        assert!(scene.world.things().is_open());
        let scene = new();
        scene.turns_bad(1, Defect::Unhealthy);
        let finished = scene.finishes(&deploy);
        assert_eq!(finished.exit, Exit::NotRestored, "{finished:?}");
        assert!(!scene.world.things().is_open());
        scene.hold(Some(&finished));
        // Behind a gate that stops its services, the others are watched.
        let scene = new();
        Hold::mine("maintenance").place(&scene.store().ledger()).unwrap();
        let finished = scene.finishes(&deploy_or_back);
        assert_eq!((finished.exit, scene.state_of("r2")), (Exit::Held, State::KnownGood), "{finished:?}");
        assert!(!scene.world.things().is_open());
        scene.hold(Some(&finished));
    }
}

#[test]
fn a_watch_ends_also_where_nothing_is_ever_decided() {
    let restarts = [("restarts = 0 ", "restarts = 900 "), ("ready = \"150ms\"", "ready = \"3s\"")];
    let scene = watching_with(&restarts);
    let slow = scene.store().named("r2").unwrap().images["jobs"].id.clone();
    scene.after(1, |things| {
        things.defects.insert(slow, Defect::Unhealthy);
    });
    for looks in 1..60 {
        scene.after(looks + 1, |things| things.services.get_mut("jobs").unwrap().restarts += 1);
    }
    scene.went_back(&scene.finishes(&deploy_or_back), "it may still be starting");
    assert!(scene.world.things().passed < 20);
}
