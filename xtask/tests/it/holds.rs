//! Holds: a gate that a person closed stays closed, whatever runs meanwhile, before or after.

use crate::http::try_http;
use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, Random, on};
use serde_json::json;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A public stream is refused, or nothing answers at all.
#[track_caller]
pub fn shut_out(pilot: &Pilot, when: &str) {
    let stream = "/stream?route=critique&seed=42";
    if let Ok(answer) = try_http("GET", pilot.port("gateway"), stream, &[], None) {
        assert_eq!(answer.status, 503, "{when}: {}", answer.body);
    }
}

#[track_caller]
fn served(pilot: &Pilot) {
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
}

#[test]
fn a_run_opens_only_what_a_run_closed() {
    on(&[Process], "hold", |pilot| {
        let pilot = pilot.up();
        let good = pilot.env_text();
        pilot.xtask(&["kill-switch", "on", "--reason", "bad answers"]).expect(0);
        // A rollback under a hold restores, verifies, stays closed, and says so.
        pilot.edit_env("ENABLE_CACHE", "true");
        let plan = pilot.xtask(&["rollback", "--plan"]).expect(0).out;
        assert!(plan.contains("leave the gate closed, held by") && plan.contains("bad answers"), "{plan}");
        let ran = pilot.json(&["rollback"]).expect(9);
        let finished = ran.finished();
        assert_eq!(
            (&finished["outcome"], &finished["held"]),
            (&json!("restored"), &json!(true)),
            "{finished}"
        );
        assert!(finished["hold"].as_str().unwrap().contains("bad answers"), "{finished}");
        assert_eq!(finished["smoke"]["passed"], true);
        assert_eq!(pilot.env_text(), good);
        shut_out(&pilot, "after a rollback");
        // So does a deployment, and one with nothing to do.
        pilot.edit_env("DEFAULT_SEED", "7");
        let finished = pilot.json(&["up"]).expect(9).finished();
        assert_eq!(
            (&finished["outcome"], &finished["held"]),
            (&json!("deployed"), &json!(true)),
            "{finished}"
        );
        assert_eq!(pilot.json(&["up"]).expect(9).finished()["outcome"], "nothing-to-do");
        assert_eq!(pilot.json(&["rollback"]).expect(9).finished()["outcome"], "nothing-to-do");
        shut_out(&pilot, "after a deployment");
        for words in [["status"], ["assess"]] {
            let said = pilot.xtask(&words).all();
            assert!(said.contains("held by") && said.contains("bad answers"), "{said}");
        }
        // The public is told the person's reason, not the run's.
        assert!(pilot.public("GET", "/jobs", None).body.contains("bad answers"));
        // A reset, which takes the gateway's own file with it, stays closed too.
        pilot.xtask(&["reset", "--yes"]).expect(9);
        shut_out(&pilot, "after a reset");
        pilot.xtask(&["rollback", "--open"]).expect(0);
        served(&pilot);
        pilot.xtask(&["kill-switch", "on"]).expect(0);
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        served(&pilot);
        assert_eq!(pilot.told(&["kill-switch", "status"], 0)["holds"], json!({"known": []}));
    });
}

#[test]
fn a_gate_that_was_closed_by_hand_is_held_too() {
    on(&[Process], "hold-curl", |pilot| {
        let pilot = pilot.up();
        let body = json!({"enabled": true, "reason": "Emergency rollback"}).to_string();
        assert_eq!(pilot.request("POST", "gateway", "/admin/kill-switch", Some(&body)).status, 200);
        pilot.edit_env("ENABLE_CACHE", "true");
        let finished = pilot.json(&["rollback"]).expect(9).finished();
        assert!(finished["hold"].as_str().unwrap().contains("Emergency rollback"), "{finished}");
        shut_out(&pilot, "after a rollback");
        pilot.xtask(&["rollback", "--open"]).expect(0);
        served(&pilot);
    });
}

#[test]
fn a_hold_that_cannot_be_read_stands() {
    on(&[Process], "hold-noise", |pilot| {
        let pilot = pilot.up();
        std::fs::create_dir_all(pilot.state().join("holds")).unwrap();
        std::fs::write(pilot.state().join("holds/noise"), b"\xff\xfe").unwrap();
        let finished = pilot.json(&["rollback"]).expect(9).finished();
        assert!(finished["hold"].as_str().unwrap().contains("cannot be read"), "{finished}");
        shut_out(&pilot, "under a hold that cannot be read");
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        served(&pilot);
    });
}

/// Throws `kill-switch on` at a random moment of a run; at every third, the run is killed later.
fn throw(pilot: &Pilot, words: &[&str], longest: Duration, random: &mut Random, n: usize) {
    let mut run = pilot.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(random.up_to(longest));
    let reason = format!("try {n}");
    let thrown = std::thread::scope(|scope| {
        let thrown = scope.spawn(|| pilot.xtask(&["kill-switch", "on", "--reason", &reason]));
        if n.is_multiple_of(3) {
            std::thread::sleep(random.up_to(longest / 2));
            run.kill().ok();
        }
        thrown.join().unwrap()
    });
    assert_eq!(thrown.code, 0, "try {n}: {}", thrown.all());
    run.wait().unwrap();
    shut_out(pilot, &format!("try {n}, {words:?}"));
    let said = pilot.xtask(&["kill-switch", "status"]).all();
    assert!(said.contains(&reason), "try {n}: {said}");
}

fn throw_at_random(pilot: &Pilot, tries: usize) {
    let mut random = Random::new();
    let good = pilot.env_text();
    pilot.edit_env("ENABLE_CACHE", "true");
    let start = Instant::now();
    pilot.xtask(&["rollback"]).expect(0);
    let longest = start.elapsed() * 3 / 2;
    for n in 0..tries {
        if n % 2 == 0 {
            pilot.edit_env("ENABLE_CACHE", "true");
            throw(pilot, &["rollback"], longest, &mut random, n);
        } else {
            pilot.edit_env("DEFAULT_SEED", &format!("{}", 100 + n % 7));
            throw(pilot, &["up"], longest, &mut random, n);
        }
        std::fs::write(pilot.env_path(), &good).unwrap();
        let back = pilot.xtask(&["rollback", "--to", "r1", "--open"]);
        assert_eq!(back.code, 0, "try {n}: {}", back.all());
        served(pilot);
    }
}

#[test]
fn a_kill_switch_thrown_at_any_moment_of_a_run_ends_closed_and_named() {
    on(&[Process], "thrown", |pilot| throw_at_random(&pilot.up(), crate::pilot::tries(6)));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn kill_switch_at_any_moment(pilot: &mut Pilot) {
    throw_at_random(pilot, crate::pilot::tries(20) / 10);
}
