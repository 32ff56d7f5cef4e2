//! What did not change is left alone: the same tree makes the same images, and a deployment of what runs
//! already touches nothing.

use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Pilot, on};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Every file of the state folder with the time it was written, but for the lock and the audit log, which every command
/// that may change something writes, and what the services themselves write.
fn state_files(pilot: &Pilot) -> BTreeMap<PathBuf, SystemTime> {
    fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, SystemTime>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let data = std::fs::symlink_metadata(&path).unwrap();
            let services_own = path.ends_with("process/services") || path.ends_with("process/volumes");
            if data.is_dir() && !services_own {
                walk(&path, found);
            } else if !data.is_dir()
                && !["lock", "audit.log"].iter().any(|name| path.ends_with(Path::new("state").join(name)))
            {
                found.insert(path, data.modified().unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&pilot.state(), &mut found);
    found
}

/// What runs: a container or a process that was replaced or started again shows.
fn running(pilot: &Pilot) -> Vec<(String, String)> {
    if pilot.engine == Process {
        let pid = |service: &str| {
            let path = pilot.state().join("process/services").join(service).join("alive");
            (service.to_owned(), std::fs::read_to_string(path).unwrap())
        };
        return ["engine", "gateway", "jobs"].map(pid).into();
    }
    pilot.containers("{{.Id}} {{.State.StartedAt}}")
}

#[test]
fn an_unchanged_tree_is_not_deployed_again() {
    on(&[Process, Compose2], "unchanged", |pilot| {
        let pilot = pilot.up();
        let before = (running(&pilot), state_files(&pilot));
        let finished = pilot.json(&["up"]).expect(0).finished();
        assert_eq!(
            (&finished["outcome"], &finished["release"]),
            (&json!("nothing-to-do"), &json!("r1")),
            "{finished}"
        );
        assert_eq!(finished["smoke"]["passed"], true, "{finished}");
        let said = pilot.xtask(&["up"]).expect(0).out;
        assert!(said.contains("nothing changed: release r1 runs, verified"), "{said}");
        assert_eq!((running(&pilot), state_files(&pilot)), before);
        // A closed gate, an edited setting or a service that is down is something to do.
        pilot.xtask(&["kill-switch", "on"]).expect(0);
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        pilot.edit_env("DEFAULT_SEED", "7");
        assert_eq!(pilot.json(&["up"]).expect(0).finished()["release"], "r2");
        // And what was deployed before is the same release again, not a third.
        pilot.edit_env("DEFAULT_SEED", "42");
        let finished = pilot.json(&["up"]).expect(0).finished();
        assert_eq!(
            (&finished["outcome"], &finished["release"]),
            (&json!("deployed"), &json!("r1")),
            "{finished}"
        );
        assert_eq!(pilot.running_values("gateway")["DEFAULT_SEED"], 42);
        if pilot.engine == Compose2 {
            the_same_tree_makes_the_same_images(&pilot);
            two_services_may_share_one_image(&pilot);
        }
    });
}

#[test]
fn a_release_that_is_sick_is_not_taken_for_unchanged() {
    on(&[Process], "unchanged-sick", |pilot| {
        let pilot = pilot.up();
        pilot.xtask(&["down"]).expect(0);
        let finished = pilot.json(&["up"]).expect(0).finished();
        assert_eq!(
            (&finished["outcome"], &finished["release"]),
            (&json!("deployed"), &json!("r1")),
            "{finished}"
        );
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    });
}

/// Goes on with a pilot that has a second release, of other settings.
fn the_same_tree_makes_the_same_images(pilot: &Pilot) {
    let first = pilot.release_images("r1");
    assert_eq!(pilot.release_images("r2"), first);
    assert_eq!(pilot.running_images(), first);
    // An image that somebody built from ours, under our tags, is not ours.
    pilot.build_bad_version("PATCHED=1");
    for service in ["gateway", "engine", "jobs"] {
        let name = format!("{}-{service}", pilot.project);
        pilot.docker(&["tag", &format!("{name}:latest"), &format!("{name}:v1.0.0")]);
    }
    pilot.edit_env("DEFAULT_SEED", "8");
    pilot.xtask(&["up"]).expect(0);
    assert_eq!(pilot.running_images(), first);
    let tagged = format!("{}-gateway:v1.0.0", pilot.project);
    let tagged = pilot.docker(&["image", "inspect", "--format", "{{.Id}}", &tagged]);
    assert_eq!(tagged.trim(), first[1].1);
    // The engine has lost them: the copies in the store are the same.
    pilot.xtask(&["down"]).expect(0);
    pilot.lose_images();
    let left = pilot.docker(&["images", "--no-trunc", "--quiet"]);
    assert!(first.iter().all(|(_, id)| !left.contains(id)), "{left}");
    assert_eq!(pilot.json(&["up"]).expect(0).finished()["release"], "r3");
    assert_eq!(pilot.running_images(), first);
}

/// Goes on with a pilot that has three releases.
fn two_services_may_share_one_image(pilot: &Pilot) {
    let jobs = format!("{}-jobs:latest", pilot.project);
    let id = pilot.docker(&["image", "inspect", "--format", "{{.Id}}", &jobs]).trim().to_owned();
    for service in ["gateway", "engine", "jobs"] {
        pilot.docker(&["tag", &id, &format!("{}-{service}:shared", pilot.project)]);
    }
    // Three times `jobs` is no pilot, but it is a release. It failed, so its images are not saved.
    let said = pilot.xtask(&["up", "--tag", "shared", "--stay"]).expect(1);
    assert!(said.err.contains("release r4 failed"), "{}", said.err);
    let verified = pilot.xtask(&["releases", "verify", "r4"]).expect(0);
    assert!(verified.out.contains("0 of 3 images"), "{}", verified.out);
    pilot.xtask(&["rollback"]).expect(0);
}
