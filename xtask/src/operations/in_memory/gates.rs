//! Tests: the same runs with a gate that stops its services, and with one that is closed by commands.

use super::*;
use crate::deploy::lockout::Public;

/// The gate of a stack without a switch: the gateway is stopped, and the others are behind it.
pub const STOP: &str = "[gate]\nkind = \"stop\"\nservices = [\"gateway\"]\n\n";

/// The gate that is closed by commands in its container.
pub const EXEC: &str = "[gate]\nkind = \"exec\"\nservice = \"gateway\"\nclose = \"gate close\"\nopen = \"gate open\"\n\
    closed = \"gate closed\"\noffline = { run = [\"gate\", \"close\", \"${REASON}\"], prints = \"closed\" }\n\n";

/// A manifest with this gate instead of its own.
pub fn with_gate(manifest: &str, gate: &str) -> String {
    let begin = manifest.find("[gate]\n").unwrap();
    let is_other = |(at, _): &(usize, &str)| !manifest[begin + at..].starts_with("\n[gate.");
    let rest = manifest[begin..].match_indices("\n[").find(is_other).unwrap().0 + begin + 1;
    [&manifest[..begin], gate, &manifest[rest..]].concat()
}

#[test]
fn where_the_gate_stops_its_services_they_start_last_and_the_plan_says_so() {
    let scene = Scene::of(Some(STOP));
    scene.break_version(Defect::Errors);
    scene.world.begin(None, None);
    let finished = scene.finishes(&roll_back);
    scene.hold(Some(&finished));
    assert_eq!((finished.outcome, finished.exit), (Some(Outcome::Restored), Exit::Ok));
    let steps = [
        "stop-gate",
        "preserve",
        "record-release",
        "restore-env-file",
        "apply",
        "verify",
        "start-gate",
        "retag",
    ];
    assert_eq!(scene.planned(), steps);
    // What only the gateway can tell is missing in the evidence, because it is down.
    let ended = |step| if step == "preserve" { "warned" } else { "done" };
    assert_eq!(scene.journal(), steps.map(|step| (step.to_owned(), ended(step).to_owned())));
    assert_eq!(scene.finishes(&roll_back).outcome, Some(Outcome::NothingToDo));
    // Under a hold it stays down, nothing more is to do, and what is not closed is named.
    Hold::mine("bad answers").place(&scene.store().ledger()).unwrap();
    for outcome in [Outcome::Restored, Outcome::NothingToDo] {
        scene.world.begin(None, None);
        let held = scene.finishes(&roll_back);
        assert_eq!((held.outcome, held.exit), (Some(outcome), Exit::Held), "{held:?}");
        scene.hold(Some(&held));
        assert!(!scene.world.things().services["gateway"].runs);
        assert_eq!(held.not_closed, ["engine 127.0.0.1:20002", "jobs 127.0.0.1:20003"], "{held:?}");
    }
}

#[test]
fn what_nobody_can_ask_is_named_where_the_public_is_shut_out() {
    for gate in [None, Some(STOP)] {
        let scene = Scene::of(gate);
        scene.release("r2", "v2.0.0", &scene.env_text());
        scene.world.things().volumes.insert("jobs".into(), CORRUPT.into());
        scene.world.things().beyond_reach = vec!["gateway on b, which is not reached".into()];
        scene.world.begin(None, None);
        let finished = scene.finishes(&deploy);
        assert_eq!(finished.exit, Exit::NotRestored, "{finished:?}");
        let Some(Public::Partly(how)) = &finished.public else { panic!("{finished:?}") };
        assert_eq!(how.matches("gateway on b, which is not reached").count(), 1, "{how}");
    }
}

#[test]
fn a_version_that_fails_behind_a_gate_that_stops_is_never_let_in_and_one_that_fails_in_it_is_stopped() {
    for behind in [true, false] {
        let scene = Scene::of(Some(STOP));
        let bad = scene.release("r2", "v2.0.0", &scene.env_text());
        if behind {
            scene.world.things().volumes.insert("jobs".into(), CORRUPT.into());
        } else {
            scene.world.things().defects.insert(bad.images["gateway"].id.clone(), Defect::Errors);
        }
        scene.world.begin(None, None);
        let finished = scene.finishes(&deploy);
        assert_eq!(finished.exit, Exit::NotRestored, "behind: {behind}: {finished:?}");
        assert_eq!(scene.world.things().done.contains(&"start again"), !behind, "{finished:?}");
        assert!(!scene.world.things().is_open(), "behind: {behind}");
        assert_eq!(scene.world.things().services["gateway"].restart, "no", "behind: {behind}");
        scene.hold_with(&DATA[..2], Some(&finished));
        let back = scene.finishes(&roll_back);
        assert_eq!(back.exit, Exit::Ok, "behind: {behind}: {back:?}");
        scene.hold_with(&DATA[..2], Some(&back));
    }
}

fn break_env(scene: &Scene) {
    let env = with_value(&scene.env_text(), "ENABLE_CACHE", "true").unwrap();
    files::write(&scene.pilot.env_path, env.as_bytes(), Mode::Private).unwrap();
}

#[test]
fn with_a_gate_of_commands_a_rollback_that_fails_or_is_cut_off_anywhere_can_be_run_again() {
    let points = everywhere(&prepared(Some(EXEC), &break_env), &[], &roll_back, &roll_back, &|_| ());
    assert!(points > 30, "only {points} points");
}

#[test]
fn with_a_gate_that_stops_a_rollback_that_fails_or_is_cut_off_anywhere_can_be_run_again() {
    let points = everywhere(&prepared(Some(STOP), &break_env), &[], &roll_back, &roll_back, &|_| ());
    assert!(points > 30, "only {points} points");
}

#[test]
fn with_a_gate_that_stops_a_deployment_that_fails_or_is_cut_off_anywhere_leaves_a_way_back() {
    let prepare = |scene: &Scene| drop(scene.release("r2", "v2.0.0", &scene.env_text()));
    let points = everywhere(&prepared(Some(STOP), &prepare), &[], &deploy, &roll_back, &|_| ());
    assert!(points > 30, "only {points} points");
}

#[test]
fn a_gate_that_a_person_closes_at_any_moment_of_a_run_stays_closed() {
    for gate in [None, Some(STOP), Some(EXEC)] {
        closed_at_any_moment(gate);
    }
}

fn closed_at_any_moment(gate: Option<&str>) {
    let mut points = 0;
    for number in 1.. {
        let scene = Scene::of(gate);
        scene.break_version(Defect::Errors);
        scene.world.begin(None, None);
        let ledger = scene.store().ledger();
        let close = move |things: &mut Things| {
            let hold = Hold::mine("bad answers");
            hold.place(&ledger).unwrap();
            things.gate = Some(hold.reason);
            let edge: Vec<String> = things.edge.iter().cloned().collect();
            things.keep_down(&edge);
        };
        scene.world.things().meanwhile = Some((number, Box::new(close)));
        let finished = scene.finishes(&roll_back);
        if scene.world.things().meanwhile.is_some() {
            break;
        }
        assert!(!scene.world.things().is_open(), "closed before operation {number}: {finished:?}");
        scene.world.begin(None, None);
        let again = scene.finishes(&roll_back);
        assert_eq!(again.exit, Exit::Held, "closed before operation {number}: {again:?}");
        scene.hold(Some(&again));
        points += 1;
    }
    assert!(points > 20, "only {points} points");
}
