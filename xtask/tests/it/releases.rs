//! Releases and backups as things to compare, check, carry and clear away; the gate when the gateway is gone.

use crate::http::try_http;
use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Pilot, on, pause};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

#[test]
fn what_differs_is_told_with_secrets_masked() {
    on(&[Process], "diff", |pilot| {
        let pilot = pilot.up();
        let token = pilot.setting("ADMIN_TOKEN");
        pilot.edit_env("DEFAULT_SEED", "7");
        pilot.edit_env("ADMIN_TOKEN", "another-token-entirely");
        let tree = pilot.told(&["releases", "diff", "r1", "tree"], 0);
        assert_eq!(tree["settings"]["DEFAULT_SEED"], json!(["42", "7"]));
        assert_eq!(tree["settings"]["ADMIN_TOKEN"], json!(["********", "********"]));
        assert!(tree["images"].is_null(), "{tree}");
        pilot.xtask(&["up"]).expect(0);
        let both = pilot.xtask(&["releases", "diff", "r1", "r2"]).expect(0);
        assert!(both.out.contains("DEFAULT_SEED") && both.out.contains("42 -> 7"), "{}", both.out);
        assert!(!both.all().contains(&token) && !both.all().contains("another-token"), "{}", both.all());
        let running = pilot.told(&["releases", "diff", "r1", "running"], 0);
        assert_eq!(running["settings"]["DEFAULT_SEED"], json!(["42", "7"]));
        assert_eq!(running["compose"], Value::Null);
        assert_eq!(pilot.told(&["releases", "diff", "r2", "running"], 0)["images"], json!({}));
        let same = pilot.xtask(&["releases", "diff", "r2", "running"]).expect(0).out;
        assert!(same.contains("are the same in everything that is known on both sides"), "{same}");
        pilot.xtask(&["releases", "diff", "r1", "r9"]).expect(2);
    });
}

#[test]
fn every_altered_part_of_a_release_is_found() {
    on(&[Process], "verify", |pilot| {
        let pilot = pilot.up();
        pilot.xtask(&["releases", "verify"]).expect(0);
        let release: Value = serde_json::from_str(
            &std::fs::read_to_string(pilot.state().join("releases/r1/release.json")).unwrap(),
        )
        .unwrap();
        let index = release["images"]["jobs"]["index"].as_str().unwrap();
        let listed = std::fs::read(pilot.state().join("blobs").join(index)).unwrap();
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let blobs: Vec<&str> =
            listed.lines().filter_map(|line| line.rsplit_once("blob ")?.1.split(' ').next()).collect();
        assert_eq!(blobs.len(), 1, "the program: {listed}");
        let mut parts: Vec<String> =
            release["files"].as_object().unwrap().keys().map(|name| format!("releases/r1/{name}")).collect();
        parts.extend(blobs.iter().chain(&[index]).map(|blob| format!("blobs/{blob}")));
        parts.push(format!("bin/{}", release["xtask"].as_str().unwrap()));
        assert!(parts.len() >= 12, "{parts:?}");
        for part in parts {
            let path = pilot.state().join(&part);
            let bytes = std::fs::read(&path).unwrap();
            // The xtask runs from its own file, which cannot be written to then: replace it.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, [bytes.as_slice(), b"x"].concat()).unwrap();
            let found = pilot.xtask(&["releases", "verify", "r1"]).expect(1);
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(found.err.contains(&name) && found.err.contains("altered"), "{part}: {}", found.err);
            std::fs::write(&path, bytes).unwrap();
        }
        pilot.xtask(&["releases", "verify"]).expect(0);
    });
}

#[test]
fn one_archive_brings_a_pilot_up_on_a_new_host() {
    on(&[Process, Compose2], "carry", |pilot| {
        let pilot = pilot.up();
        let token = pilot.setting("ADMIN_TOKEN");
        let file = pilot.folder.0.join("carried.tar");
        let path = file.display().to_string();
        pilot.xtask(&["releases", "export", "r1", "--output", &path]).expect(0);
        let again = pilot.xtask(&["releases", "export", "r1", "--output", &path]).expect(2);
        assert!(again.err.contains("exists already"), "{}", again.err);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let images = (pilot.engine != Process).then(|| pilot.release_images("r1"));
        // A new host has none of it.
        pilot.xtask(&["down"]).expect(0);
        if let Some(images) = &images {
            pilot.lose_images();
            for service in ["gateway", "engine", "jobs"] {
                pilot.docker(&["volume", "rm", &format!("{}_{service}_data", pilot.project)]);
            }
            let left = pilot.docker(&["images", "--no-trunc", "--quiet"]);
            assert!(images.iter().all(|(_, id)| !left.contains(id)), "{left}");
        }
        std::fs::remove_dir_all(pilot.state()).unwrap();
        let foreign = Pilot::new("carry-other", pilot.engine);
        let refused = foreign.xtask(&["releases", "import", &path]).expect(2);
        assert!(refused.err.contains(&format!("--project {}", pilot.project)), "{}", refused.err);

        pilot.xtask(&["releases", "import", &path]).expect(0);
        let again = pilot.xtask(&["releases", "import", &path]).expect(0);
        assert!(again.out.contains("release r1"), "{}", again.out);
        let ran = pilot.json(&["rollback"]).expect(0);
        let finished = ran.finished();
        assert_eq!((&finished["outcome"], &finished["release"]), (&json!("restored"), &json!("r1")));
        assert!(ran.out.contains("load-images"), "{}", ran.out);
        assert_eq!(pilot.setting("ADMIN_TOKEN"), token);
        if let Some(images) = images {
            assert_eq!(pilot.running_images(), images);
        }
        // Damaged on the way: nothing is taken in.
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 64].fill(0);
        std::fs::write(&file, bytes).unwrap();
        pilot.xtask(&["releases", "import", &path]).expect(1);
        assert_eq!(pilot.told(&["releases", "list"], 0)["releases"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn pruning_keeps_the_way_back() {
    on(&[Process], "prune", |pilot| {
        let pilot = pilot.up();
        for seed in ["7", "8", "9"] {
            pilot.edit_env("DEFAULT_SEED", seed);
            pilot.xtask(&["up"]).expect(0);
        }
        pilot.xtask(&["rollback", "--to", "r2"]).expect(0);
        pilot.xtask(&["releases", "prune", "--keep", "1"]).expect(0);
        let left = pilot.told(&["releases", "list"], 0);
        let ids: Vec<&Value> = left["releases"].as_array().unwrap().iter().map(|r| &r["id"]).collect();
        // r2 runs, and was verified last.
        assert_eq!(ids, [&json!("r2")]);
        let refused = pilot.xtask(&["releases", "prune", "--keep", "0"]).expect(2);
        assert!(refused.err.contains("no release to go back to"), "{}", refused.err);
        pilot.xtask(&["rollback"]).expect(0);
    });
}

#[test]
fn a_release_has_a_note_and_a_pinned_one_stays() {
    on(&[Process], "pinned", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("DEFAULT_SEED", "7");
        pilot.xtask(&["up"]).expect(0);
        pilot.xtask(&["releases", "annotate", "r1", "before the  new\nseed"]).expect(0);
        pilot.xtask(&["releases", "annotate", "r1", &"x".repeat(501)]).expect(2);
        pilot.xtask(&["releases", "pin", "r1"]).expect(0);
        pilot.xtask(&["releases", "pin", "r7"]).expect(2);
        let list = pilot.xtask(&["releases", "list"]).expect(0).out;
        assert!(list.contains("pinned; before the new seed") && list.contains("1 setting"), "{list}");
        assert!(pilot.xtask(&["releases", "show", "r1"]).expect(0).out.contains("before the new seed"));
        let told = pilot.told(&["releases", "list"], 0);
        assert_eq!(told["differs"]["r2"], json!({"images": [], "settings": 1, "files": []}), "{told}");
        pilot.xtask(&["releases", "verify"]).expect(0);
        let ids = || -> Vec<Value> {
            let told = pilot.told(&["releases", "list"], 0)["releases"].clone();
            told.as_array().unwrap().iter().map(|release| release["id"].clone()).collect()
        };
        pilot.xtask(&["releases", "prune", "--keep", "1"]).expect(0);
        assert_eq!(ids(), ["r1", "r2"]);
        pilot.xtask(&["releases", "unpin", "r1"]).expect(0);
        pilot.xtask(&["releases", "prune", "--keep", "1"]).expect(0);
        assert_eq!(ids(), ["r2"]);
    });
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    on(&[Process], "no-archive", |pilot| {
        let path = pilot.folder.0.join("notes.txt");
        std::fs::write(&path, "these are notes\n".repeat(100)).unwrap();
        for file in [path.as_path(), &pilot.folder.0, std::path::Path::new("/no/such/file")] {
            let refused = pilot.xtask(&["releases", "import", &file.display().to_string()]).expect(2);
            assert!(refused.err.contains("which is no archive of a release"), "{}", refused.err);
            assert!(refused.err.contains(&file.display().to_string()), "{}", refused.err);
        }
    });
}

#[test]
fn backups_are_checked_kept_in_number_and_brought_back_in_parts() {
    on(&[Process], "backups", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("DEFAULT_SEED", "7");
        pilot.xtask(&["up"]).expect(0);
        let first = pilot.told(&["backup", "create"], 0);
        pilot.edit_env("DEFAULT_SEED", "8");
        pilot.xtask(&["up"]).expect(0);
        let id = first["backup"].as_str().unwrap();
        let refused = pilot.xtask(&["backup", "restore", id]).expect(2);
        assert!(refused.err.contains("--yes"), "{}", refused.err);
        pilot.xtask(&["backup", "restore", id, "--only", "env", "--yes"]).expect(0);
        assert_eq!(pilot.running_values("gateway")["DEFAULT_SEED"], 7);
        assert_eq!(pilot.setting("DEFAULT_SEED"), "7");
        // The safe defaults: what was there is in a backup.
        pilot.xtask(&["up", "--defaults"]).expect(0);
        assert_eq!(pilot.running_values("gateway")["DEFAULT_SEED"], 42);
        pilot.xtask(&["backup", "restore", "latest", "--only", "env", "--yes"]).expect(0);
        // One that was altered is refused, and nothing is changed.
        let path = std::path::Path::new(first["folder"].as_str().unwrap()).join("engine.data.tar.lz4");
        std::fs::write(&path, "noise").unwrap();
        let refused = pilot.xtask(&["backup", "restore", id, "--yes"]).expect(1);
        assert!(refused.err.contains("altered"), "{}", refused.err);
        for _ in 0..7 {
            pilot.xtask(&["backup", "create"]).expect(0);
        }
        // Five with data, and the one of settings that `up --defaults` made: neither sort pushes the other out.
        let left = std::fs::read_dir(pilot.state().join("backups")).unwrap();
        let (with_data, settings): (Vec<_>, Vec<_>) =
            left.map(|entry| entry.unwrap().path()).partition(|dir| dir.join("engine.data.tar.lz4").exists());
        assert_eq!((with_data.len(), settings.len()), (5, 1), "{with_data:?} {settings:?}");
    });
}

#[test]
fn a_gateway_that_does_not_answer_is_fenced_and_released_again() {
    on(&[Process], "fence", |pilot| fenced(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn fenced(pilot: &mut Pilot) {
    let port = pilot.port("gateway");
    let freeze = |signal: &str| {
        if pilot.engine == Process {
            let alive =
                std::fs::read_to_string(pilot.state().join("process/services/gateway/alive")).unwrap();
            let group = format!("-{}", alive.trim());
            std::process::Command::new("kill").args([signal, "--", &group]).status().unwrap();
        } else {
            let id = pilot.containers("{{.Id}}").into_iter().find(|(name, _)| name == "gateway").unwrap().1;
            pause(&id);
        }
    };
    freeze("-STOP");
    let on = pilot.xtask(&["kill-switch", "on", "--reason", "test"]).expect(0);
    assert!(on.out.contains("so gateway was stopped") && on.out.contains("is closed on disk"), "{}", on.out);
    assert!(try_http("GET", port, "/healthz", &[], None).is_err());
    // Nothing serves the public, and that is known.
    assert!(pilot.xtask(&["kill-switch", "status"]).expect(0).out.contains("the public is shut out"));
    let before = (pilot.engine != Process).then(|| pilot.containers("{{.Id}} {{.State.StartedAt}}"));
    let off = pilot.xtask(&["kill-switch", "off"]).expect(0);
    assert!(off.out.contains("started again"), "{}", off.out);
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    // Just that: the others were not touched.
    if let Some(before) = before {
        let after = pilot.containers("{{.Id}} {{.State.StartedAt}}");
        assert!(before.iter().all(|service| after.contains(service)), "{before:?} {after:?}");
    }
    // Stopped by it and then taken down: nothing is there to start.
    if pilot.engine == Process {
        freeze("-STOP");
        pilot.xtask(&["kill-switch", "on"]).expect(0);
        pilot.xtask(&["down"]).expect(0);
        let off = pilot.xtask(&["kill-switch", "off"]).expect(1);
        assert!(off.err.contains(&pilot.suggested("rollback")), "{}", off.err);
        pilot.xtask(&["rollback"]).expect(9);
        pilot.xtask(&["rollback", "--open"]).expect(0);
    }
    // A gateway that somebody else took away is fenced on disk, and not started by `off`.
    pilot.xtask(&["down"]).expect(0);
    pilot.xtask(&["kill-switch", "on"]).expect(0);
    let off = pilot.xtask(&["kill-switch", "off"]).expect(1);
    assert!(off.err.contains(&pilot.suggested("rollback")), "{}", off.err);
    // Who closed it has not lifted it.
    pilot.xtask(&["rollback"]).expect(9);
    pilot.xtask(&["rollback", "--open"]).expect(0);
}
