//! The engine of another machine, through a Docker context.

use crate::daemon::{self, Daemon};
use crate::notes;
use crate::pilot::Engine::Compose2;
use crate::pilot::{Folder, Pilot, Ran, docker_client, ran, skip, source_that_says_more, workspace};
use crate::refused::config_with;
use crate::sshd::{self, Server};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_daemon_elsewhere_is_reached_at_an_address_of_its_own_and_leaves_nothing() {
    if let Some(why) = daemon::missing() {
        return skip("elsewhere", &why);
    }
    let mut daemon = Daemon::elsewhere();
    let folder = |daemon: &Daemon| {
        let told = ["--host", &daemon.tcp(), "info", "--format", "{{.DockerRootDir}}"];
        let told = docker_client().args(told).output().unwrap();
        told.status.success().then(|| String::from_utf8(told.stdout).unwrap())
    };
    let is_own = |daemon: &Daemon| folder(daemon).is_some_and(|folder| folder.contains("pilot-test-daemon"));
    assert!(is_own(&daemon));
    // With the same address after it was away.
    daemon.stop();
    assert!(!is_own(&daemon));
    daemon.start();
    assert!(is_own(&daemon));
    let card = daemon.card().to_owned();
    let is_there = || Command::new("ip").args(["link", "show", &card]).output().unwrap().status.success();
    assert!(is_there());
    drop(daemon);
    assert!(!is_there(), "{card} is left");
}

const COMPOSE: &str = "pilot-deploy/docker-compose.poc.yml";

/// The source of the pilot, whose ports are published at every address of the engine's machine.
fn published_source() -> Folder {
    let tree = source_that_says_more("published", "");
    let text = std::fs::read_to_string(workspace().join(COMPOSE)).unwrap();
    std::fs::remove_file(tree.0.join(COMPOSE)).unwrap();
    std::fs::write(tree.0.join(COMPOSE), text.replace("\"127.0.0.1:${", "\"${")).unwrap();
    tree
}

/// A pilot whose clients have the context `staging`, which leads to this address.
fn through(name: &str, address: &str) -> (Pilot, Folder) {
    let mut pilot = Pilot::new(name, Compose2);
    let config = config_with("staging", address);
    pilot.set("DOCKER_CONFIG", &config.0.display().to_string());
    // The context that is named wins. (What the daemon has is gone with it, so this pilot clears nothing away.)
    pilot.set("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    pilot.set("CARGO_TARGET_DIR", &workspace().join("target").display().to_string());
    (pilot, config)
}

/// A command through the context.
fn staged(pilot: &Pilot, args: &[&str]) -> Ran {
    pilot.xtask(&[&["--context", "staging"], args].concat())
}

/// What the public gets, asked on the machine of the daemon.
fn there(daemon: &Daemon, url: &str) -> String {
    let words = daemon.within();
    let asked =
        ["curl", "--silent", "--max-time", "20", "--output", "-", "--write-out", " %{http_code}", url];
    let output = Command::new(&words[0]).args(&words[1..]).args(asked).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

const STREAM: &str = "/stream?route=critique&seed=42";

#[test]
fn over_tcp_the_engine_of_another_machine_has_its_ports_at_its_own_address() {
    if let Some(why) = daemon::missing() {
        return skip("over-tcp", &why);
    }
    let mut daemon = Daemon::elsewhere();
    let (mut pilot, _config) = through("over-tcp", &daemon.tcp());
    let host = daemon.address().to_owned();
    let host = host.as_str();
    let unknown = pilot.xtask(&["--context", "nowhere", "status"]).expect(2).err;
    assert!(unknown.contains("nowhere") && unknown.contains("next: docker context ls"), "{unknown}");
    // What is published for that machine alone is not reached from here.
    let refused = staged(&pilot, &["up"]).expect(2);
    for word in
        [host, "gateway publishes", "engine publishes", "jobs publishes", "ssh://USER@", "nothing was begun"]
    {
        assert!(refused.err.contains(word), "{word:?} is not in {}", refused.err);
    }
    assert_eq!(daemon.containers(), "");
    let tree = published_source();
    pilot.root = tree.0.clone();
    pilot.at = host.to_owned();
    let up = staged(&pilot, &["up"]).expect(0).all();
    assert!(up.contains(&format!("at http://{host}:{}", pilot.port("gateway"))), "{up}");
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    let status = staged(&pilot, &["status"]).expect(0).out;
    assert!(status.contains(&format!("{host}:{}", pilot.port("jobs"))), "{status}");
    // The same through a variable.
    let mut command = pilot.command(&["smoke"]);
    ran(command.env("DOCKER_CONTEXT", "staging").env_remove("DOCKER_HOST").output().unwrap()).expect(0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["--context", "staging", "--engine", "process", "status"]).current_dir(workspace());
    ran(command.output().unwrap()).expect(2);
    pilot.edit_env("ENABLE_CACHE", "true");
    staged(&pilot, &["rollback"]).expect(0);
    assert_eq!(pilot.running_values("gateway")["ENABLE_CACHE"], false);
    let closed = staged(&pilot, &["kill-switch", "on", "--reason", "Ann"]).expect(0).all();
    assert_eq!(pilot.public("GET", STREAM, None).status, 503, "{closed}");
    // What comes next is for the same context.
    let held = staged(&pilot, &["rollback"]).expect(9).all();
    assert!(held.contains("--context staging kill-switch off"), "{held}");
    staged(&pilot, &["kill-switch", "off"]).expect(0);
    assert_eq!(pilot.public("GET", STREAM, None).status, 200);
    staged(&pilot, &["backup", "create"]).expect(0);
    // A client that has nothing: what it must know is with that engine.
    std::fs::remove_dir_all(pilot.state()).unwrap();
    let list = staged(&pilot, &["releases", "list"]).expect(0).out;
    assert!(list.contains("* r1 ") && list.contains("known-good"), "{list}");
    staged(&pilot, &["rollback"]).expect(0);
    // Nothing that is seen of this machine is said of that one.
    let seen = staged(&pilot, &["host"]).expect(0).out;
    for word in [
        format!("the engine is on {host}"),
        format!("memory of {host}"),
        "state folder on this machine".to_owned(),
        "used by the pilot itself".to_owned(),
    ] {
        assert!(seen.contains(&word), "{word:?} is not in {seen}");
    }
    let refused = staged(&pilot, &["host", "--restart-engine", "--yes"]).expect(2);
    assert!(refused.err.contains(&format!("the engine is on {host}")), "{}", refused.err);
    let refused = staged(&pilot, &["observe"]).expect(2);
    assert!(refused.err.contains("./observability/prometheus.yml"), "{}", refused.err);
    staged(&pilot, &["bench"]).expect(2);
    staged(&pilot, &["down"]).expect(0);
    assert_eq!(daemon.containers(), "");
    // A daemon that is gone, and without `--engine` there is no silent change to local processes.
    let (address, here) = (daemon.tcp(), daemon.here().to_owned());
    let status = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["--project", "pt-nowhere", "up"]).current_dir(workspace());
        command.env("PILOT_STATE_DIR", pilot.folder.0.join("nowhere")).env("DOCKER_HOST", &address);
        command
    };
    daemon.stop();
    let gone = ran(status().output().unwrap()).expect(4);
    assert!(gone.err.contains(&format!("the Docker engine of {host} does not answer")), "{}", gone.err);
    staged(&pilot, &["status"]).expect(4);
    daemon.start();
    // One that takes connections and says nothing. It is not of this machine: its address is not of the loopback.
    let silent = TcpListener::bind((here.as_str(), 0)).unwrap();
    let address = format!("tcp://{}", silent.local_addr().unwrap());
    let hung = ran(status().env("DOCKER_HOST", address).output().unwrap()).expect(4);
    assert!(hung.err.contains("did not end in time"), "{}", hung.err);
    // An address of no machine.
    let nobody =
        ran(status().env("DOCKER_HOST", "tcp://no.such.host.invalid:2375").output().unwrap()).expect(4);
    assert!(nobody.err.contains("no.such.host.invalid") && nobody.err.contains("next: "), "{}", nobody.err);
}

#[test]
fn through_ssh_ports_are_reached_that_the_other_machine_has_for_itself_alone() {
    if let Some(why) = daemon::missing().or_else(sshd::missing) {
        return skip("through-ssh", &why);
    }
    let daemon = Daemon::elsewhere();
    let (mut pilot, _config) = through("through-ssh", "ssh://elsewhere");
    let remote = format!("SetEnv DOCKER_HOST={}", daemon.host());
    let server =
        Server::start(&pilot.folder.0.join("ssh"), "elsewhere", daemon.address(), &daemon.within(), &remote);
    server.share();
    pilot.set("PATH", &server.path());
    let up = staged(&pilot, &["up"]).expect(0).all();
    let port = pilot.port("gateway");
    assert!(up.contains(&format!("at port {port} of elsewhere")), "{up}");
    let public = |path: &str| there(&daemon, &format!("http://127.0.0.1:{port}{path}"));
    assert!(public("/healthz").contains("\"healthy\""), "{}", public("/healthz"));
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "it is on this machine");
    staged(&pilot, &["status"]).expect(0);
    pilot.edit_env("ENABLE_CACHE", "true");
    // By its address too.
    pilot.set("DOCKER_HOST", "ssh://elsewhere");
    pilot.xtask(&["rollback"]).expect(0);
    pilot.xtask(&["kill-switch", "on", "--reason", "Ann"]).expect(0);
    assert!(public(STREAM).ends_with(" 503"), "{}", public(STREAM));
    pilot.xtask(&["kill-switch", "off"]).expect(0);
    assert!(public(STREAM).ends_with(" 200"), "{}", public(STREAM));
    pilot.xtask(&["backup", "create"]).expect(0);
    a_gate_that_stops_services_is_proved_closed_through_ssh(&pilot, &daemon);
    pilot.xtask(&["down"]).expect(0);
    assert_eq!(daemon.containers(), "");
    drop(server);
    let gone = pilot.xtask(&["status"]).expect(4);
    assert!(gone.all().contains("elsewhere") || gone.all().contains("does not answer"), "{}", gone.all());
}

/// A stack without a manifest, of one service of the pilot, whose port its machine has for itself.
fn a_gate_that_stops_services_is_proved_closed_through_ssh(pilot: &Pilot, daemon: &Daemon) {
    let stack = pilot.folder.0.join("plain");
    std::fs::create_dir_all(&stack).unwrap();
    std::fs::copy(pilot.env_path(), stack.join("settings.env")).unwrap();
    let compose = format!(
        "services:\n  web:\n    image: {}-engine:latest\n    env_file: settings.env\n    environment:\n      \
         SCENARIO_PROJECT: plain\n      SCENARIO_LISTEN: 0.0.0.0:3002\n    ports: [\"127.0.0.1:3999:3002\"]\n",
        pilot.project
    );
    std::fs::write(stack.join("compose.yaml"), compose).unwrap();
    let run = |words: &[&str]| {
        let mut command = pilot.command(&[]);
        let (path, folder) = (stack.display().to_string(), stack.join(".pilot"));
        let own = ["--project", "pt-plain", "--stack", &path];
        let mut own_command = Command::new(command.get_program());
        own_command.args(own).args(words).current_dir(&stack);
        for (name, value) in command.stdin(Stdio::null()).get_envs() {
            match value {
                Some(value) => own_command.env(name, value),
                None => own_command.env_remove(name),
            };
        }
        ran(own_command.env("PILOT_STATE_DIR", folder).output().unwrap())
    };
    let url = "http://127.0.0.1:3999/healthz";
    run(&["up"]).expect(0);
    assert!(there(daemon, url).ends_with(" 200"), "{}", there(daemon, url));
    let closed = run(&["kill-switch", "on", "--reason", "Ann"]).expect(0).all();
    assert!(closed.contains("no port of the gate answers"), "{closed}");
    assert!(there(daemon, url).ends_with(" 000"), "{}", there(daemon, url));
    // Something else that has the port there lets the public in, and only there can it be seen.
    let words = daemon.within();
    let script = "import http.server as s; s.HTTPServer(('127.0.0.1', 3999), s.BaseHTTPRequestHandler).serve_forever()";
    let mut other = Command::new(&words[0])
        .args(&words[1..])
        .args(["python3", "-c", script])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let answers = notes::within(Duration::from_secs(20), || !there(daemon, url).ends_with(" 000"));
    let seen = run(&["status"]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(answers && seen.all().contains("something answers at 127.0.0.1:3999"), "{}", seen.all());
    run(&["kill-switch", "off"]).expect(0);
    assert!(there(daemon, url).ends_with(" 200"), "{}", there(daemon, url));
    run(&["down"]).expect(0);
}

#[test]
fn files_of_this_machine_are_refused_before_anything() {
    if let Some(why) = daemon::missing() {
        return skip("files", &why);
    }
    notes::on(&[Compose2], "files", |notes| {
        let daemon = Daemon::elsewhere();
        let mut command = notes.command(&["up"]);
        let refused = ran(command.env("DOCKER_HOST", daemon.tcp()).output().unwrap()).expect(2);
        for word in ["proxy mounts ./proxy/nginx.conf", daemon.address(), "nothing was begun"] {
            assert!(refused.err.contains(word), "{word:?} is not in {}", refused.err);
        }
        // A path of that machine is one that it has.
        let mounts = "volumes: [\"/etc/hostname:/a:ro\", \"/nonexistent/there:/b:ro\", ";
        notes.edit("docker-compose.yml", "volumes: [\"./proxy", &format!("{mounts}\"./proxy"));
        let mut command = notes.command(&["up"]);
        let refused = ran(command.env("DOCKER_HOST", daemon.tcp()).output().unwrap()).expect(2).err;
        assert!(
            refused.contains("/nonexistent/there, which is outside") && refused.contains("./proxy/nginx")
        );
        assert!(!refused.contains("/etc/hostname"), "{refused}");
        assert_eq!(daemon.containers(), "");
        assert_eq!(daemon.images(), "");
    });
}
