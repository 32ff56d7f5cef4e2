//! The drill: every fault, beside a running pilot and among other projects, without touching either.

use crate::http::try_http;
use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Pilot, docker, on};
use serde_json::json;

fn passes(pilot: &Pilot, args: &[&str]) -> serde_json::Value {
    let finished = pilot.json(&[&["drill"], args].concat()).expect(0).finished();
    assert_eq!(finished["outcome"], "restored");
    assert_eq!(finished["smoke"]["passed"], true);
    assert!(finished["gate_closed_ms"].is_u64() && finished["restored_ms"].is_u64(), "{finished}");
    let report = std::fs::read_to_string(finished["report"].as_str().unwrap()).unwrap();
    for words in ["restored", "r1", "Level 1, self-service"] {
        assert!(report.contains(words), "no {words} in {report}");
    }
    let other = |name: &str| {
        let path = std::path::Path::new(finished["report"].as_str().unwrap()).with_file_name(name);
        std::fs::read_to_string(path).unwrap()
    };
    let (markdown, junit) = (other("report.md"), other("report.xml"));
    assert!(markdown.starts_with("# rollback ") && markdown.contains("first token in time"), "{markdown}");
    assert!(junit.contains("failures=\"0\"") && junit.contains("cancelled in time"), "{junit}");
    finished
}

#[test]
fn a_bad_env_and_a_bad_version_in_one_go() {
    on(&[Process, Compose2], "drill", |pilot| {
        assert_eq!(passes(&pilot, &[])["scenarios"], json!(["config", "version"]));
    });
}

#[test]
fn every_fault_is_rolled_back() {
    on(&[Process], "faults", |pilot| {
        for fault in [
            "ignore-sigterm",
            "crash-loop",
            "slow-first-token",
            "error-5xx",
            "hang",
            "lying-gate",
            "fails-when-open",
            "turns-bad",
            "slow-start",
        ] {
            assert_eq!(passes(&pilot, &["--fault", fault])["scenarios"], json!(["version"]), "{fault}");
        }
        assert_eq!(passes(&pilot, &["--fault", "corrupt-store"])["scenarios"], json!(["version", "reset"]));
    });
}

/// Those that an engine deals with: it ends the service, starts it again, stops one that does not answer. What
/// the others do is found by questions over HTTP, which are the same on every engine; a store is reset on
/// Docker below, and gates that lie are in `promises.rs`.
#[test]
fn faults_that_the_engine_has_to_deal_with_are_rolled_back_on_docker() {
    on(&[Compose2], "faults-docker", |pilot| {
        for fault in ["ignore-sigterm", "crash-loop", "hang"] {
            assert_eq!(passes(&pilot, &["--fault", fault])["scenarios"], json!(["version"]), "{fault}");
        }
    });
}

/// A drill beside a pilot that runs: neither its services nor its streams feel it.
fn drill_beside(pilot: &Pilot, args: &[&str]) -> serde_json::Value {
    let env = pilot.env_text();
    let running = || (pilot.engine != Process).then(|| pilot.containers("{{.Id}} {{.State.StartedAt}}"));
    let before = running();
    let port = pilot.port("gateway");
    let finished = std::thread::scope(|scope| {
        // Longer than the drill takes.
        let path = "/stream?route=critique&seed=1&budget=400";
        let stream = scope.spawn(move || try_http("GET", port, path, &[], None));
        let finished = passes(pilot, args);
        let answer = stream.join().unwrap().unwrap();
        let (last, data) = answer.events().pop().unwrap();
        assert_eq!((last.as_str(), &data["totalTokens"]), ("done", &json!(400)));
        finished
    });
    assert_eq!(running(), before);
    assert_eq!(pilot.env_text(), env);
    pilot.xtask(&["status"]).expect(0);
    finished
}

#[test]
fn a_running_pilot_beside_it_is_not_touched_and_its_streams_run_on() {
    on(&[Process], "beside", |pilot| drop(drill_beside(&pilot.up(), &[])));
}

#[test]
fn on_docker_the_pilot_beside_it_and_other_projects_survive_and_nothing_is_left() {
    on(&[Compose2], "canary", |pilot| {
        let pilot = pilot.up();
        // A foreign project: a running and a stopped container, an unused image, volume and network.
        let name = format!("canary-{}", std::process::id());
        let image = format!("{name}:1");
        docker(&["tag", &format!("{}-jobs:latest", pilot.project), &image]);
        docker(&["volume", "create", &name]);
        docker(&["network", "create", &name]);
        docker(&["create", "--name", &name, "--volume", &format!("{name}:/data"), &image]);
        docker(&["run", "--detach", "--name", &format!("{name}-up"), "--network", "none", &image]);
        let world = || {
            let volumes = docker(&["volume", "ls", "--quiet"]);
            let networks = docker(&["network", "ls", "--format", "{{.Name}}"]);
            let containers = docker(&["ps", "--all", "--no-trunc", "--format", "{{.ID}} {{.Names}}"]);
            let images = docker(&["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
            [volumes, networks, containers, images].map(|list| {
                let mut lines: Vec<String> = list.lines().map(str::to_owned).collect();
                // Other tests of this run come and go, each with a project of its own.
                lines.retain(|l| l.contains(&name) || l.contains(&pilot.project));
                lines.sort();
                lines
            })
        };
        let started = docker(&["inspect", "--format", "{{.State.StartedAt}}", &format!("{name}-up")]);
        let before = world();
        let finished = drill_beside(&pilot, &["--fault", "corrupt-store"]);
        assert_eq!(finished["scenarios"], json!(["version", "reset"]));
        let after = world();
        let report = finished["report"].as_str().unwrap();
        let drill = report.split('/').find(|part| part.starts_with("pilot-drill-")).unwrap();
        let everything = [["ps", "--all"], ["volume", "ls"], ["network", "ls"], ["image", "ls"]]
            .map(|l| docker(&l))
            .concat();
        assert!(!everything.contains(drill), "{drill} left something: {everything}");
        assert_eq!(docker(&["inspect", "--format", "{{.State.StartedAt}}", &format!("{name}-up")]), started);
        docker(&["rm", "--force", &name, &format!("{name}-up")]);
        docker(&["volume", "rm", &name]);
        docker(&["network", "rm", &name]);
        docker(&["rmi", &image]);
        assert_eq!(after, before);
    });
}
