//! A reset, a rollback and a deployment cut off at every event, each followed by every other command: nothing is
//! lost that no copy can be found of with the commands that the output names.

use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, STRIDE, cuts, on, tries};
use crate::resume::heard_until_killed;

/// What a user may run next, whatever was cut off.
const NEXT: [&[&str]; 9] = [
    &["rollback"],
    &["reset", "--yes"],
    &["reset", "--yes", "--keep-data"],
    &["up"],
    &["backup", "create"],
    &["kill-switch", "on"],
    &["down"],
    &["host", "--free"],
    &["rollback", "--abandon"],
];

/// A command of the output that brings data back, as words for `xtask`.
fn named(said: &str) -> Option<Vec<String>> {
    let words = said.lines().find_map(|line| line.split_once(" backup restore "))?.1;
    let id = words.split_whitespace().next()?.to_owned();
    Some(["backup", "restore", &id, "--only", "data", "--yes"].map(str::to_owned).into())
}

/// The scenario is there, or comes back by a command that the output named. What was said last counts first.
#[track_caller]
fn nothing_is_lost(pilot: &Pilot, said: &[String], when: &str) {
    if pilot.has_scenario() {
        return;
    }
    for said in said.iter().rev() {
        let Some(words) = named(said) else { continue };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let back = pilot.xtask(&words);
        assert_eq!(back.code, 0, "{when}: {words:?}: {}", back.all());
        if pilot.has_scenario() {
            return;
        }
    }
    panic!("{when}: the data is lost, and this was said:\n{}", said.join("\n---\n"));
}

/// Cuts `words` off after every third event and runs one of the others, a different one each time; with
/// `PILOT_TRIES` at 9 and above every event meets every other.
fn cut_off_everywhere(pilot: &Pilot, words: &[&str], prepare: impl Fn(&Pilot)) {
    let rounds = tries(1).min(NEXT.len());
    for round in 0..rounds {
        let mut points = 0;
        for events in cuts() {
            if !pilot.has_scenario() {
                pilot.store_scenario();
            }
            prepare(pilot);
            let (cut, heard) = heard_until_killed(pilot, words, events);
            let next = NEXT[(events + round) % NEXT.len()];
            let when = format!("{words:?} cut off after {events} events, then {next:?}");
            let ran = pilot.xtask(next);
            assert!(matches!(ran.code, 0 | 9), "{when}: {}", ran.all());
            let again = pilot.xtask(&["rollback", "--open"]);
            assert_eq!(again.code, 0, "{when}: it does not come up again: {}", again.all());
            nothing_is_lost(pilot, &[heard, ran.all(), again.all()], &when);
            if !cut {
                break;
            }
            points += 1;
        }
        assert!(points * STRIDE > 8, "{words:?}: only {points} points");
    }
}

#[test]
fn a_reset_cut_off_anywhere_loses_nothing_whatever_runs_next() {
    on(&[Process], "cut-reset", |pilot| {
        let pilot = pilot.up();
        cut_off_everywhere(&pilot, &["reset", "--yes"], |_| ());
        cut_off_everywhere(&pilot, &["reset", "--yes", "--keep-data"], |_| ());
    });
}

#[test]
fn a_rollback_cut_off_anywhere_loses_nothing_whatever_runs_next() {
    on(&[Process], "cut-rollback", |pilot| {
        let pilot = pilot.up();
        let seed = std::cell::Cell::new(100);
        cut_off_everywhere(&pilot, &["rollback"], |pilot| {
            seed.set(seed.get() + 1);
            pilot.edit_env("DEFAULT_SEED", &seed.get().to_string());
        });
    });
}

#[test]
fn a_deployment_cut_off_anywhere_loses_nothing_whatever_runs_next() {
    on(&[Process], "cut-up", |pilot| {
        let pilot = pilot.up();
        let seed = std::cell::Cell::new(100);
        cut_off_everywhere(&pilot, &["up"], |pilot| {
            seed.set(seed.get() + 1);
            pilot.edit_env("DEFAULT_SEED", &seed.get().to_string());
        });
    });
}
