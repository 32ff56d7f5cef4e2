//! A release names its images and mounted files by what they are: what did not change is not touched, and no
//! tag of the user decides what runs.

use crate::pilot::Engine::{Compose1, Compose2};
use crate::pilot::{Folder, Pilot, copy_of_the_tree, docker, on};
use crate::resume::step;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

const SERVICES: [&str; 3] = ["engine", "gateway", "jobs"];

/// `up` in a tree without the sources: with the images of this tag.
const UP: [&str; 3] = ["up", "--tag", "v1.0.0"];

fn ids(pilot: &Pilot) -> BTreeMap<String, String> {
    pilot.containers("{{.Id}}").into_iter().collect()
}

/// The services whose container is another one than before.
#[track_caller]
fn replaced(before: &BTreeMap<String, String>, pilot: &Pilot) -> Vec<String> {
    let after = ids(pilot);
    assert_eq!(after.len(), before.len());
    after.into_iter().filter(|(service, id)| before[service] != *id).map(|(service, _)| service).collect()
}

/// The images that the user's own tags name.
fn tags(pilot: &Pilot, tag: &str) -> Vec<String> {
    let name = |service: &str| format!("{}-{service}:{tag}", pilot.project);
    let names = SERVICES.map(name);
    let mut words = vec!["image", "inspect", "--format", "{{.Id}}"];
    words.extend(names.iter().map(String::as_str));
    docker(&words).lines().map(str::to_owned).collect()
}

/// Another image of one service, under its tags.
fn other_image(pilot: &Pilot, service: &str, more: &str) {
    let context = Folder::new("context");
    let name = format!("{}-{service}", pilot.project);
    std::fs::write(context.0.join("Dockerfile"), format!("FROM {name}:v1.0.0\nENV {more}\n")).unwrap();
    let tags = [format!("{name}:v1.0.0"), format!("{name}:latest")];
    let context = context.0.display().to_string();
    docker(&["build", "--quiet", "--tag", &tags[0], "--tag", &tags[1], &context]);
}

/// Changes the compose file of a tree.
fn edit(tree: &Path, edits: &[(&str, &str)]) {
    let path = tree.join("pilot-deploy/docker-compose.poc.yml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    for (old, new) in edits {
        assert!(text.contains(old), "{old}");
        text = text.replacen(old, new, 1);
    }
    std::fs::write(path, text).unwrap();
}

/// Runs a command and looks at each of its events.
pub fn watched(pilot: &Pilot, words: &[&str], mut look: impl FnMut(&Value)) -> i32 {
    let mut command = pilot.command(&[&["--format", "json"], words].concat());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        look(&serde_json::from_str(&line.unwrap()).unwrap());
    }
    child.wait().unwrap().code().unwrap()
}

#[test]
fn only_what_changed_is_replaced_and_no_tag_of_the_user_decides_what_runs() {
    on(&[Compose2, Compose1], "pins", |pilot| {
        let mut pilot = pilot.up();
        let first = ids(&pilot);
        // Another image of one service, and another release.
        other_image(&pilot, "jobs", "CHANGED=1");
        let tree = copy_of_the_tree("pins-tree");
        pilot.root = tree.0.clone();
        pilot.xtask(&UP).expect(0);
        assert_eq!(replaced(&first, &pilot), ["jobs"]);
        // Back: that one again, and the tags move once the gate is open.
        let (before, bad) = (ids(&pilot), tags(&pilot, "latest"));
        let mut seen = Vec::new();
        let mut order = Vec::new();
        let code = watched(&pilot, &["rollback", "--to", "r1"], |event| {
            if event["event"] == "step" && event["progress"] == "started" {
                order.push(event["action"]["step"].as_str().unwrap().to_owned());
            }
            // The gate opens within milliseconds after the last check, and to ask Docker takes longer.
            if step("apply", "done")(event) || step("verify", "started")(event) {
                seen.push(tags(&pilot, "latest"));
            }
        });
        assert_eq!((code, seen), (0, vec![bad.clone(), bad.clone()]));
        assert!(order.ends_with(&["verify".into(), "open-gate".into(), "retag".into()]), "{order:?}");
        assert_eq!(replaced(&before, &pilot), ["jobs"]);
        let r1: Vec<String> = pilot.release_images("r1").into_iter().map(|(_, id)| id).collect();
        assert_eq!(tags(&pilot, "latest"), r1);
        // What the user tags meanwhile is not moved by a rollback that fails, nor does it run.
        other_image(&pilot, "engine", "CHANGED=2");
        let theirs = tags(&pilot, "latest");
        pilot.xtask(&["rollback", "--to", "r2", "--budget", "1ms"]).expect(3);
        assert_eq!(tags(&pilot, "latest"), theirs);
        pilot.xtask(&["rollback", "--to", "r1"]).expect(0);
        assert_eq!(pilot.running_images(), pilot.release_images("r1"));
        mounted_files(&pilot, &tree);
    });
}

/// Goes on with two releases: a file, a folder and a secret are mounted, and one of them changes.
fn mounted_files(pilot: &Pilot, tree: &Folder) {
    let rules = "./observability/rules.yml:/etc/rules.yml:ro";
    edit(
        &tree.0,
        &[
            ("[\"gateway_data:/data\"]", "[\"gateway_data:/data\"]\n    secrets: [token]"),
            ("[\"engine_data:/data\"]", &format!("[\"engine_data:/data\", \"{rules}\"]")),
            ("[\"jobs_data:/data\"]", "[\"jobs_data:/data\", \"./observability/grafana:/etc/grafana\"]"),
            ("\nvolumes:\n", "\nsecrets:\n  token:\n    file: ./observability/prometheus.yml\n\nvolumes:\n"),
        ],
    );
    pilot.xtask(&UP).expect(0);
    let mounted = pilot.containers("{{range .Mounts}}{{.Source}} {{end}}");
    let of = |service: &str| mounted.iter().find(|(name, _)| name == service).unwrap().1.clone();
    for (service, name) in [("gateway", "prometheus.yml"), ("engine", "rules.yml"), ("jobs", "grafana")] {
        let path = of(service).split(' ').find(|path| path.ends_with(name)).unwrap().to_owned();
        assert!(path.contains("/state/mounted/"), "{path}");
        assert!(Path::new(&path).exists(), "{path}");
    }
    for (file, service) in [
        ("observability/rules.yml", "engine"),
        ("observability/prometheus.yml", "gateway"),
        ("observability/grafana/pilot.json", "jobs"),
    ] {
        let path = tree.0.join("pilot-deploy").join(file);
        let (before, good) = (ids(pilot), std::fs::read_to_string(&path).unwrap());
        std::fs::write(&path, format!("{good}\n")).unwrap();
        pilot.xtask(&UP).expect(0);
        assert_eq!(replaced(&before, pilot), [service], "{file}");
    }
    let before = ids(pilot);
    pilot.xtask(&["rollback", "--to", "previous"]).expect(0);
    assert_eq!(replaced(&before, pilot), ["jobs"]);
    // Nothing is kept that no release needs.
    pilot.xtask(&["releases", "prune", "--keep", "1"]).expect(0);
    let there = |folder: &str| std::fs::read_dir(pilot.state().join(folder)).unwrap().count();
    assert_eq!((there("pins"), there("mounted")), (1, 6));
}
