//! The machine under the pilot: an engine that lost everything, that is stopped, that is new; a full disk.

use crate::daemon::{self, Daemon};
use crate::pilot::Engine::Compose2;
use crate::pilot::{Pilot, on, skip};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A pilot on a daemon of its own.
fn on_own_daemon(name: &str, test: impl Fn(&mut Daemon, Pilot)) {
    on(&[Compose2], name, |mut pilot| match daemon::missing() {
        Some(why) => skip(name, &why),
        None => {
            let mut daemon = Daemon::new();
            daemon.serve(&mut pilot);
            test(&mut daemon, pilot);
        }
    });
}

#[track_caller]
fn serves(pilot: &Pilot, release: &str) {
    pilot.xtask(&["smoke"]).expect(0);
    assert_eq!(pilot.running_images(), pilot.release_images(release));
}

#[test]
fn an_engine_that_lost_everything_gets_it_back_from_the_release() {
    on_own_daemon("wiped", |daemon, pilot| {
        let mut pilot = pilot.up();
        daemon.wipe();
        let finished = pilot.json(&["rollback"]).expect(0).finished();
        assert_eq!(finished["scenarios"], json!(["reset", "host"]), "{finished}");
        assert_eq!(finished["outcome"], "restored");
        serves(&pilot, "r1");
        // And a daemon with another data folder, which knows nothing at all.
        daemon.wipe();
        daemon.stop();
        daemon.start_empty();
        daemon.serve(&mut pilot);
        let finished = pilot.json(&["rollback"]).expect(0).finished();
        assert_eq!(finished["outcome"], "restored", "{finished}");
        serves(&pilot, "r1");
    });
}

#[test]
fn with_docker_stopped_every_command_ends_in_seconds_and_says_what_is_wrong() {
    on_own_daemon("stopped", |daemon, pilot| {
        let mut pilot = pilot.up();
        daemon.stop();
        daemon.serve(&mut pilot);
        for command in ["assess", "diagnose", "evidence", "rollback", "host", "preflight", "status"] {
            let start = Instant::now();
            let ran = pilot.xtask(&[command]).expect(4);
            // Generous: the machine is shared. The engine is not waited for.
            assert!(start.elapsed() < Duration::from_secs(15), "{command} took {:?}", start.elapsed());
            let said = ran.all();
            assert!(said.contains("does not answer"), "{said}");
            assert!(said.contains("next: "), "{command}: {said}");
        }
        let rollback = pilot.json(&["rollback"]).expect(4).finished();
        assert_eq!(rollback["escalation"]["level"], 3);
        assert_eq!(rollback["next"], pilot.suggested("host"));
        let bundle = pilot.json(&["evidence"]).expect(4);
        let folder = PathBuf::from(bundle.finished()["evidence"].as_str().unwrap());
        let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
        assert!(text.contains("\"gateway.log\": ") && text.contains("Docker"), "{text}");
        assert!(folder.join("env.masked").exists() && folder.join("journal.jsonl").exists());
        // The daemon that a DOCKER_HOST names is not this host's to restart.
        let refused = pilot.xtask(&["host", "--restart-engine", "--yes"]).expect(2);
        assert!(refused.err.contains("DOCKER_HOST"), "{}", refused.err);
        daemon.start();
        daemon.serve(&mut pilot);
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["release"], "r1");
        serves(&pilot, "r1");
    });
}

#[test]
fn an_engine_that_hangs_does_not_shut_out_a_pilot_that_is_well() {
    on_own_daemon("hangs", |daemon, mut pilot| {
        pilot.xtask(&["up"]).expect(0);
        // A tree of its own, with a short limit for the engine.
        let tree = pilot.folder.0.join("tree");
        std::fs::create_dir_all(&tree).unwrap();
        let copied = Command::new("cp").arg("-r").arg(pilot.root.join("pilot-deploy")).arg(&tree).status();
        assert!(copied.unwrap().success());
        let path = tree.join("pilot-deploy/pilot.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("engine = \"10s\"", "engine = \"1s\"")).unwrap();
        pilot.root = tree;
        daemon.signal("STOP");
        let ran = pilot.json(&["rollback"]).expect(4);
        let finished = ran.finished();
        assert!(ran.out.contains("their gate is left open"), "{}", ran.out);
        assert!(finished["error"].as_str().unwrap().contains("did not answer in time"), "{finished}");
        assert_eq!(finished["gate_closed_ms"], serde_json::Value::Null);
        // With something wrong it is closed, which needs no engine.
        pilot.xtask(&["kill-switch", "on"]).expect(0);
        daemon.signal("CONT");
        assert_eq!(pilot.json(&["rollback", "--open"]).expect(0).finished()["outcome"], "restored");
    });
}

/// A small disk of a test's own, taken away when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(at: &Path, size: &str) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        Self::mounted(at, &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    /// What is there, to be read alone.
    pub fn read_only(at: &Path) -> Result<Self, String> {
        let path = at.display().to_string();
        let disk = Self::mounted(at, &["--bind", &path])?;
        Self::mounted(at, &["-o", "remount,ro,bind"]).map(std::mem::forget)?;
        Ok(disk)
    }

    fn mounted(at: &Path, words: &[&str]) -> Result<Self, String> {
        match Command::new("mount").args(words).arg(at).output() {
            Ok(output) if output.status.success() => Ok(Self(at.to_owned())),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().unwrap();
    }
}

#[test]
fn a_full_disk_under_the_state_folder_does_not_stop_a_rollback() {
    on(&[Compose2], "full", |pilot| {
        let _disk = match SmallDisk::mount(&pilot.state(), "160M") {
            Ok(disk) => disk,
            Err(why) => return skip("full disk", &why),
        };
        pilot.xtask(&["up"]).expect(0);
        let env = pilot.env_text();
        pilot.build_bad_version("SCENARIO_FAULT=error-5xx");
        pilot.compose_by_hand(&["up", "--detach"]).expect(0);
        let filler = pilot.state().join("filler");
        let mut full = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut full, &[0; 65536]).is_ok() {}
        let finished = pilot.json(&["rollback"]).expect(0).finished();
        assert_eq!(finished["scenarios"], json!(["version", "host"]), "{finished}");
        assert_eq!(finished["outcome"], "restored");
        serves(&pilot, "r1");
        // The backup is where there was room for it, and holds what was there.
        let place = Path::new(finished["evidence"].as_str().unwrap()).parent().unwrap();
        assert!(!place.starts_with(pilot.state()), "{}", place.display());
        assert_eq!(std::fs::read_to_string(place.join("backup/.env.poc")).unwrap(), env);
        assert!(place.join("report.html").exists() && place.join("journal.jsonl").exists());
        let checked = pilot.xtask(&["host"]).expect(4);
        assert!(checked.all().contains("disk, state folder"), "{}", checked.all());
        std::fs::remove_file(filler).unwrap();
        let after = pilot.json(&["rollback"]).finished();
        assert_eq!(after["exit_code"], 0, "{after}");
    });
}
