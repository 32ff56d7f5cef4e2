//! A stack, or a Docker engine, that cannot work here is refused before anything is changed, with everything that is
//! wrong at once; and a Docker context of this machine is followed.

use crate::daemon::{self, Daemon};
use crate::pilot::Engine::{Compose1, Compose2};
use crate::pilot::{Engine, Folder, Pilot, copy_of_the_tree, docker, docker_client, on, skip, workspace};
use std::path::{Path, PathBuf};

/// `up` in a tree without the sources: with the images of the release before.
const UP: [&str; 3] = ["up", "--tag", "v1.0.0"];

/// A file, what is in it, and what takes its place.
type Edit<'a> = (&'a str, &'a str, &'a str);

/// Files of the tree, changed.
fn edit(pack: &Path, edits: &[Edit<'_>]) {
    for (name, old, new) in edits {
        let text = std::fs::read_to_string(pack.join(name)).unwrap();
        assert!(text.contains(old), "{old} is not in {name}");
        std::fs::write(pack.join(name), text.replacen(old, new, 1)).unwrap();
    }
}

fn mend(pack: &Path) {
    for name in [COMPOSE, MANIFEST] {
        std::fs::copy(workspace().join("pilot-deploy").join(name), pack.join(name)).unwrap();
    }
}

const COMPOSE: &str = "docker-compose.poc.yml";
const MANIFEST: &str = "pilot.toml";

/// What a refusal must leave as it was.
fn standing(pilot: &Pilot) -> (Vec<(String, String)>, Vec<PathBuf>, usize, String) {
    let releases = std::fs::read_dir(pilot.state().join("releases")).unwrap().flatten();
    let releases = releases.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count();
    (pilot.containers("{{.Id}}"), pilot.runs(), releases, pilot.env_text())
}

/// Each with the words that must be said of it.
fn cases(engine: Engine) -> Vec<(Vec<Edit<'static>>, Vec<&'static str>)> {
    let compose = |old, new| (COMPOSE, old, new);
    let by = if engine == Compose1 { "docker-compose 1." } else { "docker compose 2." };
    let mut all = vec![
        (vec![compose("services:\n", "services: [broken\n")], vec![by, "does not understand the stack"]),
        // Everything at once.
        (
            vec![
                compose(
                    "networks:\n  pilot:\n",
                    "networks:\n  edge: { name: pt-no-network, external: true }\n  pilot:\n",
                ),
                compose("\n  jobs_data:\n", "\n  jobs_data: { name: pt-no-volume, external: true }\n"),
                compose(
                    "\"gateway_data:/data\"",
                    "\"gateway_data:/data\", \"./data:/x\", \"/nonexistent/pt:/y\"",
                ),
                compose("  networks: [pilot]\n", "  networks: [pilot, edge]\n"),
                compose("    ports: [\"127.0.0.1:${ENGINE_PORT:-3002}:3002\"]\n", ""),
                (MANIFEST, "name = \"jobs\"\nport", "name = \"nobody\"\nport"),
            ],
            vec![
                "the external network pt-no-network, is missing: docker network create pt-no-network",
                "the external volume pt-no-volume, is missing: docker volume create pt-no-volume",
                "gateway mounts ./data",
                "/nonexistent/pt, which is outside",
                "sends requests to engine ([[services]]), which publishes no fixed TCP port",
                "names the service nobody ([[services]]), which the compose file does not have",
                "nothing was begun",
            ],
        ),
        (
            vec![(
                MANIFEST,
                "request = \"GET gateway/admin/metrics\"",
                "request = \"GET nobody/admin/metrics\"",
            )],
            vec!["pilot.toml:223:11", "there is no service nobody"],
        ),
    ];
    if engine == Compose1 {
        let said = vec![by, "install the Compose that it is written for"];
        all.push((vec![compose("services:\n", "version: \"9\"\nservices:\n")], said.clone()));
        // Only Compose 2 knows this.
        all.push((vec![compose("services:\n", "include: []\nservices:\n")], said));
    } else {
        // A newer Compose 2 may know this; this one must not start what it does not understand.
        let said = vec![by, "install the Compose that it is written for"];
        all.push((vec![compose("services:\n", "from_the_future: {}\nservices:\n")], said));
    }
    all
}

#[test]
fn a_stack_that_cannot_work_is_refused_before_anything_is_changed() {
    on(&[Compose2, Compose1], "refused", |pilot| {
        let mut pilot = pilot.up();
        let tree = copy_of_the_tree("refused-tree");
        let pack = tree.0.join("pilot-deploy");
        pilot.root = tree.0.clone();
        let before = standing(&pilot);
        for (edits, words) in cases(pilot.engine) {
            edit(&pack, &edits);
            let said = pilot.xtask(&UP).expect(2).all();
            for word in words {
                assert!(said.contains(word), "{word:?} is not in {said}");
            }
            assert_eq!(standing(&pilot), before, "{said}");
            mend(&pack);
        }
        std::fs::remove_file(pack.join(COMPOSE)).unwrap();
        let said = pilot.xtask(&UP).expect(2).all();
        assert!(said.contains("there is no compose file") && said.contains("nothing was begun"), "{said}");
        assert_eq!(standing(&pilot), before);
        mend(&pack);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
        what_is_outside_stays_outside_and_is_missed(&pilot, &pack);
    });
}

/// A network that nobody but its maker removes; gone when dropped.
struct Network(String);

impl Drop for Network {
    fn drop(&mut self) {
        docker_client().args(["network", "rm", &self.0]).output().unwrap();
    }
}

fn what_is_outside_stays_outside_and_is_missed(pilot: &Pilot, pack: &Path) {
    let network = Network(format!("{}-edge", pilot.project));
    docker(&["network", "create", &network.0]);
    let edge = format!("networks:\n  edge: {{ name: {}, external: true }}\n  pilot:\n", network.0);
    edit(
        pack,
        &[
            (COMPOSE, "networks:\n  pilot:\n", &edge),
            (COMPOSE, "  networks: [pilot]\n", "  networks: [pilot, edge]\n"),
            (COMPOSE, "\"gateway_data:/data\"", "\"gateway_data:/data\", \"/etc/hostname:/y:ro\""),
        ],
    );
    let said = pilot.xtask(&UP).expect(0).all();
    assert!(said.contains("not part of the release, so no rollback restores it: /etc/hostname"), "{said}");
    pilot.xtask(&["down"]).expect(0);
    docker(&["network", "rm", &network.0]);
    // A release that cannot work is passed over, with the reason.
    let ran = pilot.json(&["rollback"]).expect(0);
    assert_eq!(ran.finished()["release"], "r1", "{}", ran.out);
    let said = ran.all();
    assert!(said.contains("passing over release r2") && said.contains(&network.0), "{said}");
    let refused = pilot.xtask(&["rollback", "--to", "r2"]);
    assert!(refused.code != 0 && refused.err.contains(&network.0), "{}", refused.all());
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
}

/// Settings of a docker client with a context of its own, and the plugins that there are.
pub fn config_with(name: &str, address: &str) -> Folder {
    let folder = Folder::new("contexts");
    let config = folder.0.display().to_string();
    let plugins = PathBuf::from(std::env::var_os("HOME").unwrap()).join(".docker/cli-plugins");
    if plugins.exists() {
        std::os::unix::fs::symlink(plugins, folder.0.join("cli-plugins")).unwrap();
    }
    let host = format!("host={address}");
    docker(&["--config", &config, "context", "create", name, "--docker", &host]);
    folder
}

#[test]
fn a_context_of_this_machine_is_followed() {
    on(&[Compose2, Compose1], "context", |mut pilot| {
        if let Some(why) = daemon::missing() {
            return skip("context", &why);
        }
        let mut daemon = Daemon::new();
        daemon.serve(&mut pilot);
        let config = config_with("own", &daemon.host());
        if pilot.engine == Compose1 {
            std::fs::remove_file(config.0.join("cli-plugins")).ok();
        }
        pilot.set("DOCKER_HOST", "");
        pilot.set("DOCKER_CONTEXT", "own");
        pilot.set("DOCKER_CONFIG", &config.0.display().to_string());
        pilot.xtask(&["up"]).expect(0);
        assert_eq!(pilot.containers("{{.Id}}").len(), 3);
        pilot.xtask(&["status"]).expect(0);
        pilot.edit_env("ENABLE_CACHE", "true");
        pilot.xtask(&["rollback"]).expect(0);
        // Nothing of it is on the daemon that everybody uses.
        let filter = format!("label=com.docker.compose.project={}", pilot.project);
        assert_eq!(docker(&["ps", "--all", "--quiet", "--filter", &filter]), "");
        daemon.stop();
    });
}
