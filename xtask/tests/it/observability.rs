//! Prometheus for real: the very config, rules and dashboard of the pack, scraped from a running pilot.
//! Grafana cannot be pulled here; its dashboard's expressions are asked of prometheus one by one.

use crate::http::{http, try_http};
use crate::pilot::Engine::{Compose1, Compose2, Process};
use crate::pilot::{Folder, Pilot, docker, on, skip, source_that_says_more, workspace};
use serde_json::Value;
use std::cell::OnceCell;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
    Write::write_all(&mut child.stdin.take().unwrap(), input.unwrap_or_default().as_bytes()).unwrap();
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
            assert_eq!(rules.len(), 8);
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
                let expression = target["expr"].as_str().unwrap();
                // node_exporter tells of these, below.
                if !expression.contains("pilot_") {
                    gives_data(port, expression);
                    count += 1;
                }
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

/// Serves a file over HTTP, as node_exporter serves what is in its folder. Ends with the test process.
fn serve(path: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut head = [0; 4096];
            assert!(socket.read(&mut head).unwrap() > 0);
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close";
            write!(socket, "{head}\r\ncontent-length: {}\r\n\r\n{text}", text.len()).ok();
        }
    });
    port
}

/// A prometheus of this machine, ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn commands_are_counted_for_prometheus() {
    with_prometheus("metrics", |prometheus, promtool| {
        on(&[Process], "metrics", |pilot| {
            let folder = Folder::new("textfile");
            let metrics = format!("[metrics]\ntextfile = \"{}\"\n", folder.0.display());
            let tree = source_that_says_more("metrics-tree", &metrics);
            let mut pilot = pilot;
            pilot.root = tree.0.clone();
            pilot.set("CARGO_TARGET_DIR", &workspace().join("target").display().to_string());
            let pilot = pilot.up();
            let path = folder.0.join(format!("pilot-{}.prom", pilot.project));
            let figure = |name: &str| {
                let text = std::fs::read_to_string(&path).unwrap();
                accepts(promtool, &["check", "metrics"], Some(&text));
                let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
                line.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            };
            let project = format!("project=\"{}\"", pilot.project);
            let runs = |command: &str, outcome: &str| {
                figure(&format!("pilot_runs_total{{{project},command=\"{command}\",outcome=\"{outcome}\"}}"))
            };
            assert_eq!((runs("up", "deployed"), figure("pilot_gate_closed")), (Some(1.0), Some(0.0)));
            assert_eq!((figure("pilot_drill_"), figure("pilot_backup_")), (None, None));
            pilot.xtask(&["kill-switch", "on"]).expect(0);
            assert_eq!(figure("pilot_gate_closed"), Some(1.0));
            for _ in 0..2 {
                pilot.edit_env("ENABLE_CACHE", "true");
                pilot.xtask(&["rollback", "--open"]).expect(0);
            }
            assert_eq!((runs("rollback", "restored"), figure("pilot_gate_closed")), (Some(2.0), Some(0.0)));
            pilot.xtask(&["backup", "create"]).expect(0);
            let now =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
            let recent = |name: &str| figure(name).is_some_and(|at| (now - 120.0..now + 120.0).contains(&at));
            assert!(recent("pilot_backup_timestamp_seconds"));
            // A drill counts for the real stack, and its own stack has no file.
            pilot.xtask(&["drill"]).expect(0);
            assert!(recent("pilot_drill_success_timestamp_seconds"));
            assert_eq!((runs("drill", "restored"), figure("pilot_gate_closed")), (Some(1.0), Some(0.0)));
            let names: Vec<_> = std::fs::read_dir(&folder.0).unwrap().flatten().map(|e| e.path()).collect();
            assert_eq!(names, std::slice::from_ref(&path));
            // A folder that is gone is a remark.
            let away = folder.0.with_extension("away");
            std::fs::rename(&folder.0, &away).unwrap();
            let told = pilot.xtask(&["seed"]).expect(0).out;
            std::fs::rename(&away, &folder.0).unwrap();
            assert!(told.contains("[metrics]: no figures for Prometheus: there is no folder"), "{told}");
            every_panel_about_commands_has_data(prometheus, &path);
        });
    });
}

fn every_panel_about_commands_has_data(prometheus: &Path, file: &Path) {
    let folder = Folder::new("prometheus-data");
    let config = folder.0.join("prometheus.yml");
    let target = serve(file.to_owned());
    let text = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{:?}]\nscrape_configs:\n  - job_name: \
         host\n    static_configs: [{{ targets: [\"127.0.0.1:{target}\"] }}]\n",
        pack("rules.yml").display().to_string()
    );
    std::fs::write(&config, text).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new(prometheus)
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.0.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _running = Running(child);
    let limit = Instant::now() + Duration::from_secs(30);
    while !try_http("GET", port, "/-/ready", &[], None).is_ok_and(|answer| answer.status == 200) {
        assert!(Instant::now() < limit, "prometheus does not become ready");
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = std::fs::read_to_string(pack("grafana/pilot.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap());
    let mine = targets.map(|target| target["expr"].as_str().unwrap()).filter(|expr| expr.contains("pilot_"));
    let mine: Vec<&str> = mine.collect();
    assert_eq!(mine.len(), 4);
    mine.into_iter().for_each(|expression| gives_data(port, expression));
}

/// The alerts about drills, on figures of three weeks that promtool makes up.
#[test]
fn a_drill_that_is_long_ago_is_an_alert() {
    with_prometheus("alerts", |_, promtool| {
        let folder = Folder::new("alerts");
        let rules = pack("rules.yml").display().to_string();
        let deployed = "pilot_last_run_timestamp_seconds{project=\"shop\",command=\"up\"}";
        let alert = |at: &str, name: &str, labels: &str| {
            let expected =
                if labels.is_empty() { "[]".to_owned() } else { format!("[{{ exp_labels: {labels} }}]") };
            format!("    - {{ eval_time: {at}, alertname: {name}, exp_alerts: {expected} }}\n")
        };
        let series = |rows: &[(&str, &str)]| -> String {
            let row =
                |(name, values): &(&str, &str)| format!("    - {{ series: '{name}', values: '{values}' }}\n");
            rows.iter().map(row).collect()
        };
        let test = |rows: &[(&str, &str)], alerts: &[String]| {
            format!(
                "- interval: 1h\n  input_series:\n{}  alert_rule_test:\n{}",
                series(rows).replace("    -", "  -"),
                alerts.concat().replace("    -", "  -")
            )
        };
        let drill = "pilot_drill_success_timestamp_seconds{project=\"shop\"}";
        let old = "{ severity: ticket, project: shop }, exp_annotations: { fix: cargo xtask drill, summary: no successful \
                   drill of shop for 15d 0h 0m 0s }";
        let never = "{ severity: ticket, project: shop, command: up }, exp_annotations: { fix: cargo xtask drill, summary: \
                     \"shop has been deployed, and no drill of it has ever succeeded\" }";
        let tests = [
            test(
                &[(drill, "0x600"), (deployed, "0x600")],
                &[
                    alert("13d", "PilotNoDrill", ""),
                    alert("15d", "PilotNoDrill", old),
                    alert("20d", "PilotNeverDrilled", ""),
                ],
            ),
            test(
                &[(deployed, "0x600")],
                &[alert("13d", "PilotNeverDrilled", ""), alert("15d", "PilotNeverDrilled", never)],
            ),
        ];
        let path = folder.0.join("test.yml");
        let text = format!("rule_files: [{rules:?}]\nevaluation_interval: 1h\ntests:\n{}", tests.concat());
        std::fs::write(&path, &text).unwrap();
        let output = Command::new(promtool).args(["test", "rules"]).arg(&path).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&said));
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
