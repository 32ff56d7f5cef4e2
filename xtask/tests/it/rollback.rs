//! What a rollback restores, what it keeps, and what it leaves alone.

use crate::host::SmallDisk;
use crate::http::try_http;
use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, on, skip};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}

/// A scenario and a job that were there before.
pub fn store_something(pilot: &Pilot) {
    pilot.store_scenario();
    let job = pilot.public("GET", "/jobs/stream?scenarioId=kept", None);
    assert_eq!(job.events().last().unwrap().0, "job-completed");
}

pub fn is_still_there(pilot: &Pilot) {
    assert!(pilot.has_scenario());
    let jobs = pilot.request("GET", "jobs", "/jobs", None).json();
    assert!(jobs["jobs"].as_array().unwrap().iter().any(|j| j["scenarioId"] == "kept"), "{jobs}");
}

/// The run after the deployment, and no other.
fn the_only_rollback(pilot: &Pilot) -> std::path::PathBuf {
    let mut all = pilot.runs();
    assert_eq!(all.len(), 2);
    all.pop().unwrap()
}

#[test]
fn no_compiler_git_or_cargo_is_needed() {
    on(&[Process], "bare", |pilot| bare(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn bare(pilot: &mut Pilot) {
    pilot.xtask(&["down"]).expect(0);
    // A PATH with docker alone, and the xtask that the release kept.
    let bin = pilot.folder.0.join("bare-bin");
    std::fs::create_dir_all(&bin).unwrap();
    if pilot.engine != Process {
        let found = std::env::var("PATH").unwrap();
        let docker = found.split(':').map(|d| Path::new(d).join("docker")).find(|p| p.exists()).unwrap();
        std::os::unix::fs::symlink(docker, bin.join("docker")).unwrap();
    }
    for tool in ["sh", "tar"] {
        let found = [Path::new("/bin").join(tool), Path::new("/usr/bin").join(tool)];
        let found = found.iter().find(|p| p.exists()).unwrap();
        std::os::unix::fs::symlink(found, bin.join(tool)).unwrap();
    }
    let mut command = std::process::Command::new(pilot.state().join("xtask"));
    command.args(["--project", &pilot.project, "rollback"]).current_dir(&pilot.root);
    command.env("PILOT_STATE_DIR", pilot.state()).env("PATH", &bin).env("PILOT_WATCH", "0s");
    crate::pilot::ran(command.output().unwrap()).expect(0);
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
}

#[test]
fn a_failed_deployment_stays_behind_the_gate_and_is_rolled_back() {
    on(&[Process], "failed", |pilot| failed_deployment(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn failed_deployment(pilot: &mut Pilot) {
    store_something(pilot);
    let good = pilot.env_text();
    // On Docker, `promises.rs` has failed deployments that wait for a rollback.
    if pilot.engine == Process {
        pilot.edit_env("USE_SIMULATION", "false");
        let up = pilot.json(&["up", "--stay"]).expect(1);
        assert_eq!(up.finished()["next"], pilot.suggested("rollback"));
        // The gate never opened on it.
        let refused = pilot.public("GET", "/stream?route=critique&seed=42", None);
        assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "disabled");
        pilot.xtask(&["kill-switch", "off"]).expect(1);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "disabled");
        let list = pilot.xtask(&["releases", "list"]).expect(0).out;
        assert!(
            list.contains("r1")
                && list.contains("known-good")
                && list.contains("r2")
                && list.contains("failed"),
            "{list}"
        );
        // A failed release is no target.
        let refused = pilot.xtask(&["rollback", "--to", "r2"]).expect(2);
        assert!(refused.err.contains("r2 is failed"), "{}", refused.err);

        let finished = pilot.json(&["rollback"]).expect(0).finished();
        assert_eq!((&finished["release"], &finished["outcome"]), (&json!("r1"), &json!("restored")));
        assert_eq!(pilot.env_text(), good);
        assert_eq!(pilot.running_values("engine")["USE_SIMULATION"], true);
        is_still_there(pilot);
    }

    pilot.edit_env("USE_SIMULATION", "false");
    let back = pilot.json(&["up"]).expect(7).finished();
    assert_eq!((&back["release"], &back["outcome"]), (&json!("r1"), &json!("rolled-back")));
    assert_eq!(pilot.env_text(), good);
    assert_eq!(pilot.running_values("engine")["USE_SIMULATION"], true);
    is_still_there(pilot);
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
}

#[test]
fn the_default_target_is_what_ran_last_and_previous_goes_further() {
    on(&[Process], "targets", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("DEFAULT_SEED", "7");
        pilot.xtask(&["up"]).expect(0);
        assert_eq!(pilot.running_values("gateway")["DEFAULT_SEED"], 7);
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["outcome"], "nothing-to-do");
        assert_eq!(pilot.json(&["rollback", "--to", "previous"]).expect(0).finished()["release"], "r1");
        assert_eq!(pilot.running_values("gateway")["DEFAULT_SEED"], 42);
        // r1 is what was verified last now; the broken one after it must not lead to r2.
        pilot.edit_env("USE_SIMULATION", "false");
        pilot.xtask(&["up", "--stay"]).expect(1);
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["release"], "r1");
    });
}

#[test]
fn an_altered_release_is_passed_over_and_the_next_one_is_used() {
    on(&[Process], "altered", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("DEFAULT_SEED", "7");
        pilot.xtask(&["up"]).expect(0);
        let file = pilot.state().join("releases/r2/.env.poc");
        std::fs::write(&file, "ENABLE_CACHE=true\n").unwrap();
        let refused = pilot.xtask(&["rollback", "--to", "r2"]).expect(6);
        assert!(refused.err.contains("altered") && refused.err.contains("--to r1"), "{}", refused.err);
        let ran = pilot.json(&["rollback"]).expect(0);
        assert_eq!(ran.finished()["release"], "r1");
        assert!(ran.out.contains("passing over release r2"), "{}", ran.out);
    });
}

#[test]
fn a_restored_pilot_stays_restored_when_the_books_cannot_be_kept() {
    on(&[Process], "books", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("DEFAULT_SEED", "7");
        pilot.xtask(&["up"]).expect(0);
        let dir = pilot.state().join("releases/r2");
        let text = std::fs::read_to_string(dir.join("release.json")).unwrap();
        pilot.edit_env("ENABLE_CACHE", "true");
        let _disk = match SmallDisk::read_only(&dir) {
            Ok(disk) => disk,
            Err(why) => return skip("books", &why),
        };
        let ran = pilot.json(&["rollback"]).expect(0);
        assert_eq!(ran.finished()["release"], "r2");
        assert!(ran.out.contains("not recorded"), "{}", ran.out);
        assert_eq!(std::fs::read_to_string(dir.join("release.json")).unwrap(), text);
        assert_eq!(pilot.running_values("gateway")["DEFAULT_SEED"], 7);
    });
}

#[test]
fn a_plan_touches_nothing_and_what_it_says_is_done_while_two_hundred_streams_end() {
    on(&[Process], "plan", |pilot| {
        let pilot = pilot.up();
        let before = files(&pilot.state());
        pilot.edit_env("ENABLE_CACHE", "true");
        let edited = pilot.env_text();
        let shown = pilot.json(&["rollback", "--plan"]).expect(0);
        assert_eq!(files(&pilot.state()), before);
        assert_eq!(pilot.env_text(), edited);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
        let planned = |ran: &crate::pilot::Ran| -> Value {
            ran.events().into_iter().find(|e| e["event"] == "planned").unwrap()
        };
        let port = pilot.port("gateway");
        let (executed, ends) = std::thread::scope(|scope| {
            let stream = |n: u16| {
                let path = format!("/stream?route=critique&seed={n}&budget=4000");
                match try_http("GET", port, &path, &[], None) {
                    Ok(answer) if answer.status == 200 => {
                        answer.events().pop().map_or("nothing".into(), |e| e.0)
                    }
                    Ok(answer) => answer.status.to_string(),
                    Err(error) => error.to_string(),
                }
            };
            let streams: Vec<_> = (0..200).map(|n| scope.spawn(move || stream(n))).collect();
            let limit = Instant::now() + Duration::from_secs(20);
            let active =
                || pilot.request("GET", "gateway", "/admin/sessions", None).json()["active"].as_u64();
            while active() < Some(200) {
                assert!(Instant::now() < limit, "only {:?} streams started", active());
                std::thread::sleep(Duration::from_millis(20));
            }
            let executed = pilot.json(&["rollback"]).expect(0);
            let ends: Vec<String> = streams.into_iter().map(|s| s.join().unwrap()).collect();
            (executed, ends)
        });
        assert_eq!(planned(&shown)["plan"], planned(&executed)["plan"]);
        assert_eq!(ends.len(), 200);
        assert!(ends.iter().all(|end| end == "cancelled" || end == "503"), "{ends:?}");
    });
}

#[test]
fn secrets_are_in_no_output_journal_evidence_or_report() {
    on(&[Process], "secrets", |pilot| {
        let pilot = pilot.up();
        let (token, password) = (pilot.setting("ADMIN_TOKEN"), pilot.setting("GRAFANA_ADMIN_PASSWORD"));
        assert!(token.len() == 32 && password.len() == 32);
        pilot.edit_env("ADMIN_TOKEN", "another-token-by-hand");
        pilot.edit_env("ENABLE_CACHE", "true");
        let mut said = pilot.json(&["rollback", "--plan"]).expect(0).all();
        said += &pilot.json(&["rollback"]).expect(0).all();
        said += &pilot.json(&["status"]).expect(0).all();
        said += &pilot.json(&["releases", "show", "r1"]).expect(0).all();
        said += &pilot.json(&["smoke"]).expect(0).all();
        // Nobody to call is named in the manifest that is shipped, so it is no-go.
        for (command, code) in [("assess", 0), ("diagnose", 0), ("flags", 0), ("preflight", 1), ("host", 0)] {
            said += &pilot.json(&[command]).expect(code).all();
            said += &pilot.xtask(&[command]).expect(code).all();
        }
        let place = the_only_rollback(&pilot);
        for path in files(&place) {
            if !path.starts_with(place.join("backup")) {
                said += &String::from_utf8_lossy(&std::fs::read(path).unwrap());
            }
        }
        for secret in [&token, &password, &"another-token-by-hand".to_owned()] {
            assert!(!said.contains(secret.as_str()));
        }
        use std::os::unix::fs::PermissionsExt;
        for path in files(&pilot.state()).iter().filter(|p| p.ends_with(".env.poc")) {
            assert_eq!(
                std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
                0o600,
                "{}",
                path.display()
            );
        }
    });
}

#[test]
fn a_pilot_with_another_project_on_the_port_is_not_touched() {
    on(&[Process], "other", |pilot| {
        let pilot = pilot.up();
        // The same token, another deployment: a wrong port must not close somebody else's gate.
        let token = format!("Bearer {}", pilot.setting("ADMIN_TOKEN"));
        let headers = [("authorization", token.as_str()), ("x-pilot-project", "another")];
        let body = r#"{"enabled":true,"reason":"x"}"#;
        let answer =
            crate::http::http("POST", pilot.port("gateway"), "/admin/kill-switch", &headers, Some(body));
        assert_eq!(answer.status, 421);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    });
}
