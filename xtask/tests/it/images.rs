//! Images in the store and in Docker: a layer is kept once, what Docker has lost comes back as it was, and what was
//! altered in the store is named before anything is changed.

use crate::pilot::Engine::{Compose1, Compose2};
use crate::pilot::{Pilot, copy_of_the_tree, docker, on};
use crate::pins::watched;
use crate::resume::step;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The parts of images that are larger than 1 MB: layers.
fn layers(pilot: &Pilot) -> Vec<PathBuf> {
    let all = std::fs::read_dir(pilot.state().join("blobs")).unwrap().flatten();
    let large = all.filter(|entry| entry.metadata().unwrap().len() > 1_000_000);
    large.map(|entry| entry.path()).collect()
}

/// Another image of `jobs` with the same layer. It is not built on the first one, so that one can be removed.
fn another(pilot: &Pilot, layer: &Path) {
    let name = format!("{}-jobs:v1.0.0", pilot.project);
    let config = docker(&["image", "inspect", "--format", "{{json .Config}}", &name]);
    let config: Value = serde_json::from_str(&config).unwrap();
    let env = config["Env"].as_array().unwrap().iter().map(|word| format!("ENV {}", word.as_str().unwrap()));
    let mut words = vec!["import".to_owned()];
    for line in env.chain([
        format!("USER {}", config["User"].as_str().unwrap()),
        format!("ENTRYPOINT {}", config["Entrypoint"]),
        format!("LABEL pilot.project={}", pilot.project),
        "ENV CHANGED=1".into(),
    ]) {
        words.extend(["--change".into(), line]);
    }
    words.extend([layer.display().to_string(), name]);
    docker(&words.iter().map(String::as_str).collect::<Vec<_>>());
}

fn is_lost(id: &str) -> bool {
    !docker(&["images", "--all", "--no-trunc", "--quiet"]).contains(id)
}

#[test]
fn a_layer_is_stored_once_and_lost_images_come_back_while_the_public_is_served() {
    on(&[Compose2, Compose1], "images", |pilot| {
        let mut pilot = pilot.up();
        let first = layers(&pilot);
        assert_eq!(first.len(), 1, "three images of one program: {first:?}");
        another(&pilot, &first[0]);
        let tree = copy_of_the_tree("images-tree");
        pilot.root = tree.0.clone();
        pilot.xtask(&["up", "--tag", "v1.0.0"]).expect(0);
        assert_eq!(layers(&pilot), first);
        let images = |id: &str| pilot.release_images(id);
        let lost = images("r1").into_iter().find(|image| !images("r2").contains(image)).unwrap().1;
        let lose = || {
            docker(&["rmi", "--force", &lost]);
            assert!(is_lost(&lost));
        };
        let served = || pilot.public("GET", "/healthz", None).json()["status"] == "healthy";
        // Altered in the store: nothing is changed.
        lose();
        let whole = std::fs::read(&first[0]).unwrap();
        let mut altered = whole.clone();
        altered[whole.len() / 2] ^= 1;
        std::fs::write(&first[0], &altered).unwrap();
        let error = pilot.json(&["rollback", "--to", "r1"]).expect(1).finished()["error"].to_string();
        assert!(error.contains("was altered") && error.contains(&first[0].display().to_string()), "{error}");
        assert!(is_lost(&lost) && served() && pilot.running_images() == images("r2"));
        assert!(pilot.xtask(&["releases", "verify"]).expect(1).err.contains("was altered"));
        std::fs::write(&first[0], whole).unwrap();
        pilot.xtask(&["releases", "verify"]).expect(0);
        // Whole: it is loaded before the gate closes.
        let mut seen = Vec::new();
        let code = watched(&pilot, &["rollback", "--to", "r1"], |event| {
            if step("load-images", "done")(event) || step("close-gate", "started")(event) {
                seen.push((event["action"]["step"].as_str().unwrap().to_owned(), is_lost(&lost)));
            }
        });
        assert_eq!((code, seen[0].clone()), (0, ("load-images".to_owned(), false)), "{seen:?}");
        assert_eq!(pilot.running_images(), images("r1"));
        assert!(served());
        // With its last release goes what only that names.
        let count = || std::fs::read_dir(pilot.state().join("blobs")).unwrap().count();
        let before = count();
        pilot.xtask(&["releases", "prune", "--keep", "1"]).expect(0);
        assert_eq!((count(), layers(&pilot)), (before - 1, first));
        pilot.xtask(&["releases", "verify"]).expect(0);
    });
}
