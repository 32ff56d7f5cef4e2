//! Prometheus for real: the very config, rules and dashboard of the pack, scraped from a running pilot.
//! Grafana cannot be pulled here; its dashboard's expressions are asked of prometheus one by one.

use crate::http::http;
use crate::pilot::Engine::{Compose1, Compose2, Process};
use crate::pilot::{Folder, Pilot, docker, on, skip, workspace};
use serde_json::Value;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Runs the test where prometheus and promtool are on the PATH.
fn with_prometheus(name: &str, test: impl Fn(&Path, &Path)) {
    match (program("prometheus"), program("promtool")) {
        (Some(prometheus), Some(promtool)) => test(&prometheus, &promtool),
        _ => skip(name, "prometheus and promtool are not on the PATH"),
    }
}

fn pack(name: &str) -> PathBuf {
    workspace().join("pilot-deploy/observability").join(name)
}

#[track_caller]
fn accepts(promtool: &Path, args: &[&str], input: Option<&str>) {
    let mut command = Command::new(promtool);
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.unwrap_or_default().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {args:?}: {said}");
    assert!(!said.contains("WARN"), "promtool {args:?}: {said}");
}

/// An image of the program that is installed here, with the libraries it needs, as the official one has it: user
/// nobody, its data in /prometheus. Removed when dropped.
struct Image(String);

impl Image {
    fn of(prometheus: &Path) -> Self {
        let folder = Folder::new("prometheus");
        let tag = folder.0.file_name().unwrap().to_string_lossy().replace("pilot-test-", "pt-") + ":1";
        let libraries = Command::new("ldd").arg(prometheus).output().unwrap();
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        let root = folder.0.join("root");
        for path in paths.chain([prometheus.to_str().unwrap()]) {
            let to = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(path, to).unwrap();
        }
        std::fs::create_dir_all(root.join("prometheus")).unwrap();
        let layer = folder.0.join("layer.tar").display().to_string();
        let mut tar = Command::new("tar");
        tar.args(["--owner=65534", "--group=65534", "-cf", &layer, "-C"]).arg(&root).arg(".");
        assert!(tar.status().unwrap().success());
        let entry = format!("ENTRYPOINT [{:?}]", prometheus.display().to_string());
        docker(&["import", "--change", "USER 65534:65534", "--change", &entry, &layer, &tag]);
        Self(tag)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["rmi", &self.0]);
    }
}

fn api(port: u16, path: &str) -> Value {
    let answer = http("GET", port, path, &[], None);
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.json()
}

/// The result of an expression, once there is one that is a number.
#[track_caller]
fn gives_data(port: u16, expression: &str) {
    let escaped: String = expression.bytes().map(|b| format!("%{b:02X}")).collect();
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let body = api(port, &format!("/api/v1/query?query={escaped}"));
        let rows = body["data"]["result"].as_array().unwrap();
        let is_number = |row: &Value| row["value"][1].as_str().is_some_and(|v| v != "NaN");
        if !rows.is_empty() && rows.iter().all(is_number) {
            return;
        }
        assert!(Instant::now() < limit, "no data for {expression}: {body}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Streams, a cancelled one, reports, errors of both kinds.
fn traffic(pilot: &Pilot) {
    for seed in 0..3 {
        pilot.public("GET", &format!("/stream?route=critique&seed={seed}&budget=2"), None);
        pilot.public("GET", "/report?scenarioId=demo-scenario", None);
        pilot.public("GET", "/stream?route=nonsense", None);
        // The smoke checks cancel streams.
        pilot.xtask(&["smoke"]).expect(0);
    }
}

#[test]
fn promtool_accepts_the_config_the_rules_and_what_each_service_tells() {
    with_prometheus("promtool", |_, promtool| {
        accepts(promtool, &["check", "config", &pack("prometheus.yml").display().to_string()], None);
        accepts(promtool, &["check", "rules", &pack("rules.yml").display().to_string()], None);
        on(&[Process], "promtool", |pilot| {
            let pilot = pilot.up();
            for service in ["gateway", "engine", "jobs"] {
                let text = pilot.request("GET", service, "/metrics", None).body;
                accepts(promtool, &["check", "metrics"], Some(&text));
            }
        });
    });
}

#[test]
fn targets_are_up_rules_are_loaded_and_every_panel_has_data() {
    with_prometheus("observe", |prometheus, _| {
        // One for both, made where there is Docker.
        let image = OnceCell::new();
        on(&[Compose2, Compose1], "observe", |pilot| {
            let Image(tag) = image.get_or_init(|| Image::of(prometheus));
            // The env file is made by the first command that needs it.
            let pilot = pilot.up();
            let with_image = format!("{}PROMETHEUS_IMAGE={tag}\n", pilot.env_text());
            std::fs::write(pilot.env_path(), with_image).unwrap();
            pilot.xtask(&["up"]).expect(0);
            let before = pilot.containers("{{.Id}}");
            pilot.xtask(&["observe", "--only", "prometheus"]).expect(0);
            let port = pilot.port("prometheus");
            // The pilot itself did not feel it.
            let own = |all: Vec<(String, String)>| {
                all.into_iter().filter(|(n, _)| n != "prometheus").collect::<Vec<_>>()
            };
            assert_eq!(own(pilot.containers("{{.Id}}")), before);
            let bindings =
                pilot.containers("{{range .HostConfig.PortBindings}}{{(index . 0).HostIp}}{{end}}");
            assert!(bindings.iter().all(|(_, ip)| ip == "127.0.0.1"), "{bindings:?}");
            let volumes = docker(&["volume", "ls", "--quiet"]);
            assert!(volumes.contains(&format!("{}_prometheus_data", pilot.project)), "{volumes}");

            for service in ["gateway", "engine", "jobs"] {
                gives_data(port, &format!("up{{service=\"{service}\"}} == 1"));
            }
            let rules = api(port, "/api/v1/rules");
            let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
            assert_eq!(rules.len(), 6);
            assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
            // What prometheus makes of it is no matter of the Compose that started it.
            if pilot.engine == Compose1 {
                return;
            }
            // Rates need traffic between two scrapes.
            traffic(&pilot);
            std::thread::sleep(Duration::from_secs(6));
            traffic(&pilot);
            let dashboard: Value =
                serde_json::from_str(&std::fs::read_to_string(pack("grafana/pilot.json")).unwrap()).unwrap();
            let mut count = 0;
            for target in
                dashboard["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap())
            {
                gives_data(port, target["expr"].as_str().unwrap());
                count += 1;
            }
            assert!(count >= 15, "only {count} expressions");
            let said = pilot.xtask(&["diagnose"]).expect(0).out;
            assert!(said.contains("gateway:3001: up"), "{said}");

            // It is the project's own: a reset takes it down with its data, which is backed up first.
            let finished = pilot.json(&["reset", "--yes"]).expect(0).finished();
            let backup = Path::new(finished["report"].as_str().unwrap()).with_file_name("backup");
            assert!(backup.join("prometheus.data.tar.lz4").metadata().unwrap().len() > 0);
            let volumes = docker(&["volume", "ls", "--quiet"]);
            assert!(!volumes.contains(&format!("{}_prometheus_data", pilot.project)), "{volumes}");
        });
    });
}

#[test]
fn a_wrong_name_and_an_engine_without_docker_are_told() {
    on(&[Process], "observe-usage", |pilot| {
        let pilot = pilot.up();
        let refused = pilot.xtask(&["observe", "--only", "nagios"]).expect(2);
        assert!(refused.err.contains("prometheus, grafana"), "{}", refused.err);
        let refused = pilot.xtask(&["observe"]).expect(2);
        assert!(refused.err.contains("can only run on Docker"), "{}", refused.err);
    });
}
