//! A gate of the kind `stop`, on real Docker: the pilot with a manifest that has no switch. Its gateway is stopped
//! and started last; engine and jobs are behind it.

use crate::daemon::{self, Daemon};
use crate::http::try_http;
use crate::pilot::Engine::{Compose1, Compose2};
use crate::pilot::{Folder, Pilot, copy_of_the_tree, on, skip};
use serde_json::json;

/// A pilot whose manifest stops these services. The images are built from the workspace.
fn without_a_switch(mut pilot: Pilot, gate: &str) -> (Pilot, Folder) {
    let tree = copy_of_the_tree("stop-tree");
    let path = tree.0.join("pilot-deploy/pilot.toml");
    let manifest = std::fs::read_to_string(&path).unwrap();
    let begin = manifest.find("[gate]\n").unwrap();
    let is_other = |(at, _): &(usize, &str)| !manifest[begin + at..].starts_with("\n[gate.");
    let end = manifest[begin..].match_indices("\n[").find(is_other).unwrap().0 + begin;
    std::fs::write(&path, [&manifest[..begin], gate, &manifest[end..]].concat()).unwrap();
    pilot.root = tree.0.clone();
    (pilot, tree)
}

const GATEWAY: &str = "[gate]\nkind = \"stop\"\nservices = [\"gateway\"]\n";

/// Nothing takes a connection at the gateway's port.
#[track_caller]
fn refuses(pilot: &Pilot, when: &str) {
    let answer = try_http("GET", pilot.port("gateway"), "/healthz", &[], None);
    assert!(answer.is_err(), "{when}: {answer:?}");
}

#[track_caller]
fn serves(pilot: &Pilot) {
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
}

/// The state and the restart policy of the gateway's container.
fn gateway(pilot: &Pilot) -> String {
    let filters = [
        format!("label=com.docker.compose.project={}", pilot.project),
        "label=com.docker.compose.service=gateway".to_owned(),
    ];
    let id = pilot.docker(&["ps", "--all", "--quiet", "--filter", &filters[0], "--filter", &filters[1]]);
    let format = "{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}";
    pilot.docker(&["inspect", "--format", format, id.trim()]).trim().to_owned()
}

/// From the images of the release before: a copy of the tree has nothing to build from.
const UP: [&str; 3] = ["up", "--tag", "v1.0.0"];

#[test]
fn a_stack_without_a_switch_is_closed_by_stopping_and_its_hold_outlives_the_run() {
    on(&[Compose2, Compose1], "stop", |pilot| {
        let (pilot, _tree) = without_a_switch(pilot.up(), GATEWAY);
        // The release before has a gate that is closed by a request.
        pilot.xtask(&UP).expect(0);
        serves(&pilot);
        assert_eq!(gateway(&pilot), "running unless-stopped");
        let not_closed = ["engine", "jobs"].map(|name| format!("{name} 127.0.0.1:{}", pilot.port(name)));
        let named = format!("not closed: {}", not_closed.join(", "));
        // A rollback of a setting: the plan, the run, the end.
        pilot.edit_env("ENABLE_CACHE", "true");
        let plan = pilot.xtask(&["rollback", "--plan"]).expect(0).out;
        for words in
            [&named, "stop gateway and prove it", "do not start gateway", "weaker than a kill switch"]
        {
            assert!(plan.contains(words), "{words}: {plan}");
        }
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["outcome"], "restored");
        serves(&pilot);
        assert_eq!(gateway(&pilot), "running unless-stopped");
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["outcome"], "nothing-to-do");
        pilot.xtask(&["status"]).expect(0);
        // A hold.
        let closed = pilot.xtask(&["kill-switch", "on", "--reason", "bad answers"]).expect(0).all();
        assert!(closed.contains(&named) && !closed.contains("the gate is closed"), "{closed}");
        refuses(&pilot, "after kill-switch on");
        assert_eq!(gateway(&pilot), "exited no");
        for words in [&["status"][..], &["assess"], &["kill-switch", "status"]] {
            let said = pilot.xtask(words).all();
            assert!(said.contains(&named) && said.contains("bad answers"), "{words:?}: {said}");
        }
        let finished = pilot.json(&["rollback"]).expect(9).finished();
        assert_eq!(
            (&finished["outcome"], &finished["not_closed"]),
            (&json!("nothing-to-do"), &json!(not_closed)),
            "{finished}"
        );
        pilot.edit_env("ENABLE_CACHE", "true");
        let ended = pilot.xtask(&["rollback"]).expect(9).all();
        assert!(
            ended.contains("but for gateway, which the hold keeps down") && ended.contains(&named),
            "{ended}"
        );
        refuses(&pilot, "after a rollback under a hold");
        pilot.xtask(&["reset", "--yes"]).expect(9);
        refuses(&pilot, "after a reset under a hold");
        // It was never started, and a restart of Docker would not start it.
        assert_eq!(gateway(&pilot), "created no");
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        serves(&pilot);
        assert_eq!(gateway(&pilot), "running unless-stopped");
        pilot.xtask(&["smoke"]).expect(0);
        // Back to the gate that is closed by a request, from one that was stopped.
        pilot.xtask(&["kill-switch", "on"]).expect(0);
        pilot.xtask(&["rollback", "--to", "r1", "--open"]).expect(0);
        serves(&pilot);
        assert_eq!(gateway(&pilot), "running unless-stopped");
    });
}

#[test]
fn an_edge_that_fails_at_its_opening_is_stopped_again() {
    on(&[Compose2], "stop-edge", |pilot| {
        let (pilot, _tree) = without_a_switch(pilot.up(), GATEWAY);
        pilot.xtask(&UP).expect(0);
        // Healthy, but it answers the public with 500: behind the gate nobody can see that.
        pilot.build_bad_version("SCENARIO_FAULT=error-5xx");
        let ran = pilot.json(&["up", "--tag", "latest", "--stay"]).expect(1);
        let finished = ran.finished();
        let public = finished["public"]["partly"].as_str().unwrap_or_default();
        assert!(public.contains("gateway stopped") && public.contains("not closed: engine"), "{finished}");
        assert!(ran.out.contains("start-gate"), "{}", ran.out);
        refuses(&pilot, "after the failed opening");
        assert_eq!(gateway(&pilot), "exited no");
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["outcome"], "restored");
        serves(&pilot);
        assert_eq!(gateway(&pilot), "running unless-stopped");
    });
}

#[test]
fn a_hold_on_a_stack_without_a_switch_outlives_a_restart_of_docker() {
    let name = "stop-restart";
    on(&[Compose2], name, |mut pilot| {
        if let Some(why) = daemon::missing() {
            return skip(name, &why);
        }
        let mut daemon = Daemon::new();
        daemon.serve(&mut pilot);
        let (mut pilot, _tree) = without_a_switch(pilot.up(), GATEWAY);
        pilot.xtask(&UP).expect(0);
        let restart = |daemon: &mut Daemon, pilot: &mut Pilot| {
            daemon.stop();
            daemon.start();
            daemon.serve(pilot);
        };
        // Without a hold it comes back by itself.
        restart(&mut daemon, &mut pilot);
        assert_eq!(gateway(&pilot), "running unless-stopped");
        pilot.xtask(&["kill-switch", "on", "--reason", "bad answers"]).expect(0);
        restart(&mut daemon, &mut pilot);
        assert_eq!(gateway(&pilot), "exited no");
        let said = pilot.xtask(&["kill-switch", "status"]).expect(0).all();
        assert!(said.contains("bad answers") && said.contains("not closed: engine"), "{said}");
        assert_eq!(pilot.json(&["rollback"]).expect(9).finished()["held"], true);
        assert_eq!(gateway(&pilot), "exited no");
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        assert_eq!(gateway(&pilot), "running unless-stopped");
        pilot.xtask(&["smoke"]).expect(0);
    });
}
