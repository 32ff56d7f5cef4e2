//! Killed at any point and run again, it finishes; one at a time; deadlines hold.

use crate::pilot::Engine::Process;
use crate::pilot::{Folder, Pilot, STRIDE, cuts, on, program};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Starts a command, kills it with SIGKILL after so many events, and says whether it was still at it.
pub fn kill_after(pilot: &Pilot, words: &[&str], events: usize) -> bool {
    heard_until_killed(pilot, words, events).0
}

/// The same with what it said until then.
pub fn heard_until_killed(pilot: &Pilot, words: &[&str], events: usize) -> (bool, String) {
    let mut command = pilot.command(&[&["--format", "json"], words].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let heard: Vec<String> = lines.take(events).map(Result::unwrap).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    (heard.len() == events, heard.join("\n"))
}

/// Starts a command and kills it with SIGKILL at the first event that fits.
#[track_caller]
pub fn kill_when(pilot: &Pilot, words: &[&str], fits: impl Fn(&Value) -> bool) {
    let mut command = pilot.command(&[&["--format", "json"], words].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).any(|event| fits(&event));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(seen, "{words:?} ended without such an event");
}

/// The event that a step has come so far.
pub fn step(name: &str, progress: &str) -> impl Fn(&Value) -> bool {
    move |event| event["action"]["step"] == name && event["progress"] == progress
}

#[test]
fn killed_at_every_event_and_run_again_it_finishes() {
    on(&[Process], "killed", |pilot| {
        let pilot = pilot.up();
        let good = pilot.env_text();
        let mut points = 0;
        for events in cuts() {
            pilot.edit_env("USE_SIMULATION", "false");
            let broken = pilot.env_text();
            pilot.xtask(&["up", "--stay"]).expect(1);
            let before = pilot.runs().len();
            let cut_off = kill_after(&pilot, &["rollback"], events);
            let ran = pilot.json(&["rollback"]).expect(0);
            assert_eq!(ran.finished()["release"], "r1", "after {events} events");
            assert_eq!(pilot.env_text(), good, "after {events} events");
            assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
            // A backup holds what was there first, not what the first try had restored.
            let kept = pilot.runs()[before..].iter().any(|run| {
                std::fs::read_to_string(run.join("backup/.env.poc")).is_ok_and(|text| text == broken)
            });
            assert!(kept, "after {events} events");
            if !cut_off {
                break;
            }
            points += 1;
        }
        assert!(points * STRIDE > 10, "only {points} points");
    });
}

#[test]
fn killed_in_a_reset_and_run_again_it_finishes() {
    on(&[Process], "killed-reset", |pilot| {
        let pilot = pilot.up();
        let mut points = 0;
        for events in cuts() {
            let store = pilot.state().join("process/volumes/engine/engine.db");
            std::fs::write(&store, [0x5a; 9000]).unwrap();
            let cut_off = kill_after(&pilot, &["rollback"], events);
            pilot.xtask(&["rollback"]).expect(0);
            let report = pilot.public("GET", "/report?scenarioId=demo-scenario", None);
            assert_eq!(report.status, 200, "after {events} events: {}", report.body);
            if !cut_off {
                break;
            }
            points += 1;
        }
        assert!(points * STRIDE > 8, "only {points} points");
    });
}

#[test]
fn killed_in_a_whole_reset_and_run_again_the_data_is_still_there() {
    on(&[Process], "killed-whole", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        let words = ["reset", "--yes", "--keep-data"];
        let mut points = 0;
        for events in cuts() {
            let cut_off = kill_after(&pilot, &words, events);
            pilot.xtask(&words).expect(0);
            assert!(pilot.has_scenario(), "after {events} events");
            if !cut_off {
                break;
            }
            points += 1;
        }
        assert!(points * STRIDE > 15, "only {points} points");
        // And when somebody runs something else instead, where the data is, is told.
        kill_when(&pilot, &words, step("tear-down", "done"));
        let volumes = pilot.state().join("process/volumes");
        assert!(!volumes.exists() || std::fs::read_dir(volumes).unwrap().count() < 3);
        let said = pilot.xtask(&["rollback"]).expect(0).out;
        let command = said
            .lines()
            .find_map(|line| line.split_once(" backup restore "))
            .unwrap_or_else(|| panic!("{said}"));
        let words: Vec<&str> =
            ["backup", "restore"].into_iter().chain(command.1.split_whitespace()).collect();
        pilot.xtask(&words).expect(0);
        assert!(pilot.has_scenario());
    });
}

#[test]
fn a_deployment_that_is_killed_is_rolled_back() {
    on(&[Process], "killed-up", |pilot| {
        let pilot = pilot.up();
        let mut points = 0;
        for events in cuts() {
            pilot.edit_env("USE_SIMULATION", "false");
            let cut_off = kill_after(&pilot, &["up"], events);
            assert_eq!(
                pilot.json(&["rollback"]).expect(0).finished()["release"],
                "r1",
                "after {events} events"
            );
            assert_eq!(pilot.running_values("engine")["USE_SIMULATION"], true);
            if !cut_off {
                break;
            }
            points += 1;
        }
        assert!(points * STRIDE > 8, "only {points} points");
    });
}

#[test]
fn a_gate_that_cannot_be_closed_keeps_the_gateway_down() {
    on(&[Process], "no-gate", |pilot| {
        let pilot = pilot.up();
        // The gateway cannot write its position, so nobody can be sure how it would come up.
        let obstacle = pilot.state().join("process/volumes/gateway/gate.json.new");
        std::fs::create_dir_all(obstacle.join("x")).unwrap();
        pilot.edit_env("ENABLE_CACHE", "true");
        let refused = pilot.json(&["rollback"]).expect(1);
        assert!(refused.out.contains("so gateway was stopped"), "{}", refused.out);
        let port = pilot.setting("GATEWAY_PORT").parse().unwrap();
        assert!(crate::http::try_http("GET", port, "/healthz", &[], None).is_err());
        std::fs::remove_dir_all(obstacle).unwrap();
        pilot.xtask(&["rollback"]).expect(0);
    });
}

/// One of those in `all_on_one.rs`.
pub fn killed_in_the_middle(pilot: &mut Pilot) {
    // After the gate, after the backup, while Compose replaces the services, before verifying.
    for events in [4, 6, 10, 12] {
        // The same each time, so that it is built once.
        pilot.build_bad_version("SCENARIO_TRY=1");
        pilot.compose_by_hand(&["up", "--detach"]).expect(0);
        assert!(kill_after(pilot, &["rollback"], events));
        let finished = pilot.json(&["rollback"]).expect(0).finished();
        assert_eq!(finished["release"], "r1", "after {events} events");
        assert_eq!(pilot.running_images(), pilot.release_images("r1"), "after {events} events");
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    }
}

#[test]
fn one_at_a_time_and_the_holder_is_named() {
    on(&[Process], "lock", |pilot| {
        let pilot = pilot.up();
        let held = std::fs::File::options().read(true).write(true).open(pilot.state().join("lock")).unwrap();
        held.lock().unwrap();
        let refused = pilot.xtask(&["rollback"]).expect(5);
        let holder = format!("process {}, since ", std::process::id());
        assert!(refused.err.contains(&holder), "{}", refused.err);
        // Closing the gate never waits for anybody.
        pilot.xtask(&["kill-switch", "on", "--reason", "test"]).expect(0);
        pilot.xtask(&["kill-switch", "off"]).expect(5);
        drop(held);
        pilot.xtask(&["kill-switch", "off"]).expect(0);
    });
}

#[test]
fn a_budget_that_is_over_says_so_and_leaves_the_gate_closed() {
    on(&[Process], "budget", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("USE_SIMULATION", "false");
        pilot.xtask(&["up", "--stay"]).expect(1);
        let ran = pilot.json(&["rollback", "--budget", "1ms"]).expect(3);
        assert_eq!(ran.finished()["outcome"], "not-restored");
        assert!(ran.finished()["advice"].as_str().unwrap().contains("Level 2"));
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "disabled");
        pilot.xtask(&["rollback"]).expect(0);
    });
}

#[test]
fn a_docker_that_hangs_is_told_apart_from_one_that_is_not_there() {
    on(&[Process], "hung", |mut pilot| {
        // A tree of its own, with a short limit for the engine.
        let tree = Folder::new("hung-tree");
        let pack = tree.0.join("pilot-deploy");
        std::fs::create_dir_all(&pack).unwrap();
        let manifest = std::fs::read_to_string(pilot.root.join("pilot-deploy/pilot.toml")).unwrap();
        let manifest = manifest.replace("engine = \"10s\"", "engine = \"1s\"");
        std::fs::write(pack.join("pilot.toml"), manifest).unwrap();
        let bin = tree.0.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let pid = tree.0.join("pid");
        let script = format!("#!/bin/sh\nsleep 600 &\necho $! > {}\nwait\n", pid.display());
        program(&bin.join("docker"), &script);
        pilot.root = tree.0.clone();
        let start = Instant::now();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["--project", &pilot.project, "status"]).current_dir(&pilot.root);
        command.env("PILOT_STATE_DIR", pilot.state()).env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        command.env("DOCKER_HOST", "tcp://127.0.0.1:9");
        let ran = crate::pilot::ran(command.output().unwrap()).expect(4);
        assert!(ran.err.contains("did not end in time"), "{}", ran.err);
        assert!(start.elapsed() < Duration::from_secs(30));
        let sleeper = std::fs::read_to_string(pid).unwrap();
        // SIGKILL is asynchronous, and the orphan is collected by somebody else: give it a moment.
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", sleeper.trim())).unwrap_or_default();
        let gone = |stat: &str| stat.is_empty() || stat.contains(") Z ");
        let limit = Instant::now() + Duration::from_secs(5);
        while !gone(&stat()) {
            assert!(Instant::now() < limit, "the grandchild is still there: {}", stat());
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}
