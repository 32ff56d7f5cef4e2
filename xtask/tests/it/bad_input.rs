//! What is wrong with the input is said clearly, with the right exit code, and nothing is lost.

use crate::pilot::Engine::Process;
use crate::pilot::{Folder, Pilot, copy_of_the_tree, on, ran, workspace};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

#[track_caller]
fn says(pilot: &Pilot, args: &[&str], code: i32, words: &[&str]) -> String {
    let said = pilot.xtask(args).expect(code).err;
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    said
}

#[test]
fn usage_errors_name_what_there_is() {
    on(&[Process], "usage", |pilot| {
        says(&pilot, &["rollback"], 6, &["no known-good release", &pilot.suggested("up")]);
        says(&pilot, &["rolback"], 2, &["rollback"]);
        says(&pilot, &["rollback", "--to", "--help2"], 2, &[]);
        says(&pilot, &["rollback", "--scenario", "nonsense"], 2, &["config", "version"]);
        says(&pilot, &["rollback", "--budget", "soon"], 2, &["--budget"]);
        let pilot = pilot.up();
        says(&pilot, &["rollback", "--to", "r11"], 2, &["there are r1", "did you mean r1?"]);
        says(&pilot, &["rollback", "--to", "deadbeef1234"], 2, &["not in this clone", "git fetch"]);
        says(&pilot, &["up", "--from", "no-such-branch"], 2, &["no commit no-such-branch"]);
        says(&pilot, &["up", "--tag", "v0.0.0"], 2, &["v0.0.0"]);
        says(&pilot, &["rollback", "--to", "previous"], 6, &["no other known-good"]);
        says(&pilot, &["releases", "show", "r2"], 2, &["there are r1"]);
    });
}

#[test]
fn a_malformed_env_file_is_named_with_its_place_and_a_rollback_restores_it() {
    on(&[Process], "env", |pilot| {
        let pilot = pilot.up();
        let good = pilot.env_text();
        let cases: [(&[u8], &str); 6] = [
            (b"A=1\nB 2\n", ".env.poc:2:1: expected NAME=VALUE"),
            (b"A=1\r\nB=\"x\r\n", ".env.poc:2:3: the value begins with \""),
            (b"A=1\nB=$HOME\n", ".env.poc:2:3: no line above sets HOME"),
            (b"A=1\nB=$A\nA=2\n", ".env.poc:2:3: A gets another value"),
            (b"\x7fELF\0\0", ".env.poc:1:5: there is a NUL"),
            (b"GATEWAY_PORT=http\n", "GATEWAY_PORT=http is not a port"),
        ];
        for (bytes, place) in cases {
            std::fs::write(pilot.env_path(), bytes).unwrap();
            says(&pilot, &["up"], 2, &[place, &pilot.suggested("rollback")]);
            assert_eq!(std::fs::read(pilot.env_path()).unwrap(), bytes);
            pilot.xtask(&["rollback"]).expect(0);
            assert_eq!(pilot.env_text(), good);
        }
        for emptied in [true, false] {
            if emptied {
                std::fs::write(pilot.env_path(), "A=1\nA 1\n").unwrap();
                // Ports that nobody can name are not fine.
                let host = pilot.xtask(&["host"]).all();
                assert!(host.contains("! ports") && host.contains("cannot tell"), "{host}");
                std::fs::write(pilot.env_path(), "").unwrap();
            } else {
                std::fs::remove_file(pilot.env_path()).unwrap();
                says(&pilot, &["smoke"], 2, &["is missing", &pilot.suggested("rollback")]);
            }
            pilot.xtask(&["rollback"]).expect(0);
            assert_eq!(pilot.env_text(), good);
        }
    });
}

#[test]
fn a_broken_tree_does_not_stop_a_rollback() {
    on(&[Process], "tree", |pilot| {
        let mut pilot = pilot.up();
        let tree = copy_of_the_tree("broken-tree");
        let pack = tree.0.join("pilot-deploy");
        pilot.root = tree.0.clone();
        std::fs::write(pack.join("docker-compose.poc.yml"), "services: [broken\n").unwrap();
        pilot.edit_env("ENABLE_CACHE", "true");
        pilot.xtask(&["rollback"]).expect(0);
        std::fs::remove_file(pack.join("docker-compose.poc.yml")).unwrap();
        pilot.edit_env("ENABLE_CACHE", "true");
        pilot.xtask(&["rollback"]).expect(0);
        // A broken manifest: the release has one of its own.
        std::fs::write(pack.join("pilot.toml"), "version = 1\nenv_file = \n").unwrap();
        pilot.edit_env("ENABLE_CACHE", "true");
        let ran = pilot.xtask(&["rollback"]).expect(0);
        assert!(ran.err.contains("pilot.toml:2:"), "{}", ran.err);
        assert_eq!(pilot.setting("ENABLE_CACHE"), "false");
    });
}

#[test]
fn malformed_toml_is_named_with_line_and_column() {
    on(&[Process], "toml", |mut pilot| {
        let tree = copy_of_the_tree("toml-tree");
        pilot.root = tree.0.clone();
        let pack = tree.0.join("pilot-deploy");
        std::fs::write(pack.join("known-good.toml"), "version = 1\n[[restore_point]]\nlabel = 3\n").unwrap();
        says(&pilot, &["up", "--from", "x"], 2, &["known-good.toml", "line 3, column"]);
        let manifest = std::fs::read_to_string(pack.join("pilot.toml")).unwrap();
        std::fs::write(pack.join("pilot.toml"), manifest.replace("budget = \"5m\"", "budget = \"soon\""))
            .unwrap();
        says(&pilot, &["status"], 2, &["pilot.toml:", "limits.budget: \"soon\" is no time"]);
        std::fs::write(pack.join("pilot.toml"), "version = ").unwrap();
        says(&pilot, &["status"], 2, &["pilot.toml:1:"]);
        pilot.root = std::env::temp_dir();
        says(&pilot, &["status"], 2, &["no pilot-deploy/pilot.toml"]);
    });
}

#[test]
fn a_taken_port_is_told_with_its_owner() {
    on(&[Process], "port", |pilot| taken_port(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn taken_port(pilot: &mut Pilot) {
    pilot.xtask(&["down"]).expect(0);
    let taken = TcpListener::bind(("127.0.0.1", pilot.port("jobs"))).unwrap();
    let port = format!("port {}", pilot.port("jobs"));
    // A child that another test is starting has the listener too, until it runs its own program.
    let told = |command: &str| {
        let said = says(pilot, &[command], 4, &[&port, "is taken by process "]);
        said.contains(&format!("process {} (", std::process::id()))
    };
    assert!((0..5).any(|_| told("up")));
    says(pilot, &["rollback"], 4, &[&port, "is taken by process ", "Level 3"]);
    drop(taken);
    pilot.xtask(&["rollback"]).expect(0);
}

#[test]
fn compose_without_docker_is_the_hosts_failure() {
    on(&[Process], "nodocker", |pilot| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["--project", &pilot.project, "--engine", "compose", "up"]).current_dir(workspace());
        command.env("PILOT_STATE_DIR", pilot.state()).env("DOCKER_HOST", "unix:///nonexistent.sock");
        let refused = ran(command.output().unwrap()).expect(4);
        assert!(refused.err.contains("docker"), "{}", refused.err);
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let empty = Folder::new("empty-path");
        command.args(["--project", &pilot.project, "--engine", "compose", "status"]).current_dir(workspace());
        command.env("PILOT_STATE_DIR", pilot.state()).env("PATH", Path::new(&empty.0));
        let refused = ran(command.output().unwrap()).expect(4);
        assert!(refused.err.contains("--engine process"), "{}", refused.err);
    });
}

#[test]
fn settings_that_the_checks_need_are_missed_before_anything_is_begun() {
    on(&[Process], "missed", |pilot| {
        let pilot = pilot.up();
        let text: Vec<String> = pilot
            .env_text()
            .lines()
            .filter(|l| !l.starts_with("TTFF_TARGET_MS"))
            .map(str::to_owned)
            .collect();
        std::fs::write(pilot.env_path(), text.join("\n") + "\n").unwrap();
        let before = pilot.runs();
        says(&pilot, &["up"], 2, &["TTFF_TARGET_MS is missing", "nothing was begun"]);
        assert_eq!(pilot.runs(), before);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
        pilot.xtask(&["rollback"]).expect(0);
    });
}
