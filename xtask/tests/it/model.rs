//! What a release knows of its stack: the model is what Compose says, and volumes are found by their real
//! names.

use crate::pilot::Engine::{Compose1, Compose2, Process};
use crate::pilot::{Pilot, copy_of_the_tree, docker, on, workspace};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The text of a release's model.
fn text(pilot: &Pilot, release: &str) -> String {
    std::fs::read_to_string(pilot.state().join("releases").join(release).join("model.json")).unwrap()
}

fn model(pilot: &Pilot, release: &str) -> Value {
    serde_json::from_str(&text(pilot, release)).unwrap()
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// The second run of `up` has nothing to do.
fn nothing_changed(pilot: &Pilot, up: &[&str], release: &str) {
    let finished = pilot.json(up).expect(0).finished();
    let found = (&finished["outcome"], &finished["release"]);
    assert_eq!(found, (&json!("nothing-to-do"), &json!(release)), "{finished}");
}

/// `up` in a tree without the sources: with the images of the release before.
const UP: [&str; 3] = ["up", "--tag", "v1.0.0"];

#[test]
fn a_release_keeps_what_compose_says_of_the_stack() {
    on(&[Compose2, Compose1], "model", |pilot| {
        let pilot = pilot.up();
        let model = model(&pilot, "r1");
        let compose = |what: &str| lines(&pilot.compose_by_hand(&["config", what]).expect(0).out);
        let all = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        // Compose 2 says only which services always start, Compose 1 all of them.
        let always = if pilot.engine == Compose2 {
            compose("--services")
        } else {
            all(&["gateway", "engine", "jobs"])
        };
        let services = model["services"].as_object().unwrap();
        let found = services.iter().filter(|(_, s)| s["profiles"] == json!([])).map(|(name, _)| name.clone());
        assert_eq!(found.collect::<BTreeSet<_>>(), always);
        for name in ["prometheus", "grafana"] {
            assert_eq!(services[name]["profiles"], json!(["observability"]), "{name}");
        }
        assert_eq!(
            services["grafana"]["files"],
            json!([
                "observability/grafana/dashboards.yml",
                "observability/grafana/datasource.yml",
                "observability/grafana/pilot.json"
            ])
        );
        let port = json!([{
            "host_ip": "127.0.0.1", "published": pilot.port("gateway"), "target": 3001, "protocol": "tcp"
        }]);
        assert_eq!(services["gateway"]["ports"], port);
        assert_eq!(services["gateway"]["has_health_check"], true);
        assert_eq!(services["gateway"]["image"], format!("{}-gateway:latest", pilot.project));
        assert!(keys(&model["volumes"]).is_superset(&compose("--volumes")));
        // The names are those that the engine has.
        let label = format!("label=com.docker.compose.project={}", pilot.project);
        let there = |kind: &str| lines(&docker(&[kind, "ls", "--filter", &label, "--format", "{{.Name}}"]));
        let names = |kind: &str| {
            let all = model[kind].as_object().unwrap().values();
            all.map(|one| one["name"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        // Compose 1 also makes the volumes of services that do not start.
        let (there_is, named) = (there("volume"), names("volumes"));
        assert!(named.is_superset(&there_is) && there_is.len() >= 3, "{there_is:?} {named:?}");
        assert_eq!(there("network"), names("networks"));
        // Neither a secret nor a path of this machine.
        let text = text(&pilot, "r1");
        for unwanted in [pilot.setting("ADMIN_TOKEN"), pilot.folder.0.display().to_string()] {
            assert!(!text.contains(&unwanted), "{text}");
        }
        assert!(!text.contains(&workspace().display().to_string()), "{text}");
        docker_finds_it_healthy(&pilot);
        nothing_changed(&pilot, &["up"], "r1");
        a_broken_compose_file_is_refused_before_anything_is_begun(pilot);
    });
}

/// The health check of the compose file is one that Docker can run.
fn docker_finds_it_healthy(pilot: &Pilot) {
    let limit = Instant::now() + Duration::from_secs(30);
    let asked = || pilot.containers("{{.Config.Healthcheck.Interval}} {{.State.Health.Status}}");
    while !asked().iter().all(|(_, said)| said == "10s healthy") {
        assert!(Instant::now() < limit, "{:?}", asked());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(asked().len(), 3);
}

fn a_broken_compose_file_is_refused_before_anything_is_begun(mut pilot: Pilot) {
    let tree = copy_of_the_tree("broken-compose");
    let file = tree.0.join("pilot-deploy/docker-compose.poc.yml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replacen("restart:", "restrat:", 1)).unwrap();
    pilot.root = tree.0.clone();
    let ran = pilot.xtask(&UP).expect(2);
    let said = ran.all();
    assert!(said.contains("restrat") && said.contains(&file.display().to_string()), "{said}");
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    pilot.xtask(&["status"]).expect(0);
}

#[test]
fn the_model_of_local_processes_comes_from_the_manifest() {
    on(&[Process], "model-process", |pilot| {
        let pilot = pilot.up();
        let model = model(&pilot, "r1");
        assert_eq!(keys(&model["services"]), lines("gateway\nengine\njobs"));
        assert_eq!(model["services"]["jobs"]["ports"][0]["published"], pilot.port("jobs"));
        nothing_changed(&pilot, &["up"], "r1");
    });
}

/// A volume that nobody but its maker removes; gone when dropped.
struct External(String);

impl Drop for External {
    fn drop(&mut self) {
        docker(&["volume", "rm", "--force", &self.0]);
    }
}

#[test]
fn volumes_are_found_by_their_real_names() {
    on(&[Compose2, Compose1], "volumes", |pilot| {
        let external = External(format!("{}-external", pilot.project));
        // Dropped before the volume, which its container uses.
        let mut pilot = pilot.up();
        docker(&["volume", "create", &external.0]);
        let tree = copy_of_the_tree("volumes-tree");
        let pack = tree.0.join("pilot-deploy");
        let edit = |name: &str, edits: &[(&str, String)]| {
            let mut text = std::fs::read_to_string(pack.join(name)).unwrap();
            for (old, new) in edits {
                assert!(text.contains(old), "{old}");
                text = text.replacen(old, new, 1);
            }
            std::fs::write(pack.join(name), text).unwrap();
        };
        let named = format!("{}-named", pilot.project);
        edit(
            "docker-compose.poc.yml",
            &[
                ("[\"gateway_data:/data\"]", "[\"gateway_data:/data\", \"more_data:/more\"]".into()),
                ("[\"engine_data:/data\"]", "[\"engine_data:/data\", \"jobs_data:/jobs\"]".into()),
                ("\n  gateway_data:\n", format!("\n  more_data:\n  gateway_data: {{ name: {named} }}\n")),
                ("\n  jobs_data:\n", format!("\n  jobs_data: {{ name: {}, external: true }}\n", external.0)),
            ],
        );
        pilot.root = tree.0.clone();
        pilot.xtask(&UP).expect(0);
        let volumes = model(&pilot, "r2")["volumes"].clone();
        assert_eq!(volumes["gateway_data"], json!({ "name": named, "external": false }));
        assert_eq!(volumes["jobs_data"], json!({ "name": external.0, "external": true }));
        pilot.xtask(&["status"]).expect(0);
        nothing_changed(&pilot, &UP, "r2");
        // Every volume is copied; those of no service, and those of the release before, under their own
        // names.
        pilot.xtask(&["backup", "create"]).expect(0);
        let backups = std::fs::read_dir(pilot.state().join("backups")).unwrap();
        let backup = backups.flatten().next().unwrap().path();
        let archives: BTreeSet<String> = std::fs::read_dir(backup)
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".data.tar.lz4").map(str::to_owned))
            .collect();
        // Data of a service that uses several volumes, or shares one, is called as its volume.
        let mut all = lines("gateway_data\nengine_data\njobs_data\nmore_data");
        if pilot.engine == Compose1 {
            // It also made the volumes of services that do not start.
            all.extend(["grafana", "prometheus"].map(str::to_owned));
        }
        all.extend(["gateway", "jobs"].map(|key| format!("{}_{key}_data", pilot.project)));
        assert_eq!(archives, all);
        // Nobody but its maker removes an external volume.
        pilot.xtask(&["--yes", "reset"]).expect(0);
        let is_there = || lines(&docker(&["volume", "ls", "--quiet"])).contains(&external.0);
        assert!(is_there());
        let runs = pilot.runs().len();
        let ran = pilot.xtask(&["--yes", "backup", "restore", "latest", "--only", "data"]).expect(2);
        let said = ran.all();
        assert!(said.contains(&format!("volume {} of jobs_data is external", external.0)), "{said}");
        // Said before the run, which would have closed the gate.
        assert_eq!(pilot.runs().len(), runs);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
        assert!(is_there());
    });
}
