//! A Swarm of a test's own: three managers, made and removed by `scripts/swarm-lab`, and the pilot on it with two
//! replicas of each service. Nodes can be lost, cut off and brought back. Needs root and `dockerd`.

use crate::daemon;
use crate::http::{Answer, try_http_at};
use crate::notes;
use crate::pilot::{Engine, Folder, Pilot, Ran, available, ran, skip, workspace};
use crate::scenarios;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The numbers of the nodes.
pub const NODES: [usize; 3] = [1, 2, 3];

/// How long nodes may take to hear of each other again.
const AGAIN: Duration = Duration::from_secs(180);

/// Removed when dropped.
pub struct Lab {
    folder: Folder,
    ips: Vec<String>,
    space: String,
}

/// Runs a test on a lab, where one can be made.
pub fn with(name: &str, test: impl FnOnce(&Lab)) {
    match available(Engine::Compose2).err().or_else(daemon::missing) {
        Some(why) => skip(name, &why),
        None => test(&Lab::new()),
    }
}

fn script(act: &str, dir: &Path, node: Option<usize>) -> Ran {
    let mut script = Command::new("bash");
    script.arg(workspace().join("scripts/swarm-lab")).arg(act).arg(dir);
    ran(script.args(node.map(|node| node.to_string())).stdin(Stdio::null()).output().unwrap())
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Lab {
    pub fn new() -> Self {
        let folder = Folder::new("lab");
        let made = script("up", &folder.0, None).expect(0).out;
        let words = |n: &usize| {
            let line = made.lines().find(|line| line.trim_start().starts_with(&format!("node{n} "))).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        let ips = NODES.iter().map(words).collect();
        let sum = Command::new("sh")
            .args(["-c", "printf %s \"$0\" | cksum | cut -d ' ' -f 1"])
            .arg(&folder.0)
            .output()
            .unwrap();
        let sum: u64 = String::from_utf8_lossy(&sum.stdout).trim().parse().unwrap();
        Self { folder, ips, space: format!("lab{sum:08x}") }
    }

    /// The folder of the client's settings, with a context for each node.
    pub fn client(&self) -> PathBuf {
        self.folder.0.join("client")
    }

    pub fn ip(&self, node: usize) -> &str {
        &self.ips[node - 1]
    }

    /// A docker command at a node.
    #[track_caller]
    pub fn docker(&self, node: usize, args: &[&str]) -> String {
        self.try_docker(node, args).expect(0).out
    }

    pub fn try_docker(&self, node: usize, args: &[&str]) -> Ran {
        let socket = self.socket(node);
        ran(Command::new("timeout").args(["60", "docker", "--host", &socket]).args(args).output().unwrap())
    }

    pub fn socket(&self, node: usize) -> String {
        format!("unix://{}/{node}/docker.sock", self.folder.0.display())
    }

    /// As if its power and its network were cut.
    pub fn lose(&self, node: usize) {
        script("lose", &self.folder.0, Some(node)).expect(0);
    }

    /// Starts a lost node again, and waits until the others hear of it.
    pub fn bring_back(&self, node: usize) {
        // On a busy machine an election takes longer than the script waits.
        script("back", &self.folder.0, Some(node));
        self.are_ready(node);
    }

    /// Waits until a node sees all of them ready, as managers that are reached.
    pub fn are_ready(&self, told_by: usize) {
        let is_ready = |line: &&str| line.starts_with("Ready") && !line.ends_with("Unreachable");
        let are_ready = || {
            let format = "{{.Status}} {{.ManagerStatus}}";
            let seen = self.try_docker(told_by, &["node", "ls", "--format", format]);
            seen.code == 0 && seen.out.lines().filter(is_ready).count() == NODES.len()
        };
        let limit = Instant::now() + AGAIN;
        while !are_ready() {
            if Instant::now() > limit {
                panic!(
                    "not all nodes are ready: {:#?}",
                    NODES.map(|node| self.try_docker(node, &["node", "ls"]))
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// From now on a node's daemon has no room for an image that is loaded: it unpacks it on a disk of one megabyte.
    pub fn fill_disk(&self, node: usize) -> FullDisk {
        let at = self.folder.0.join(format!("{node}/data/tmp"));
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "small"]).arg(&at).status();
        assert!(mounted.unwrap().success());
        FullDisk(at)
    }

    /// Cuts a node off from the others.
    pub fn cut(&self, node: usize) {
        ip(&format!("-n {}-0 link set node{node} down", self.space));
    }

    /// Joins it again.
    pub fn join(&self, node: usize) {
        ip(&format!("-n {}-0 link set node{node} up", self.space));
    }

    /// A node leaves the Swarm for good. Its engine goes on.
    pub fn leaves(&self, node: usize, told_by: usize) {
        let name = format!("node{node}");
        self.docker(told_by, &["node", "demote", &name]);
        let state = |format: &str| {
            self.try_docker(told_by, &["node", "inspect", "--format", format, &name]).out.trim().to_owned()
        };
        self.wait("it is no manager", || state("{{if .ManagerStatus}}yes{{end}}").is_empty());
        self.docker(node, &["swarm", "leave", "--force"]);
        self.wait("it has left", || state("{{.Status.State}}") == "down");
        self.docker(told_by, &["node", "rm", &name]);
    }

    /// A node that is in no Swarm joins this one as a manager.
    pub fn joins(&self, node: usize, told_by: usize) {
        let token = self.docker(told_by, &["swarm", "join-token", "--quiet", "manager"]);
        let (own, to) = (self.ip(node), format!("{}:2377", self.ip(told_by)));
        self.docker(node, &["swarm", "join", "--token", token.trim(), "--advertise-addr", own, &to]);
        self.are_ready(node);
    }

    /// The node that leads the managers, as another one says.
    pub fn leader(&self, told_by: usize) -> usize {
        let all = self.docker(told_by, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]);
        let line = all.lines().find(|line| line.ends_with("Leader")).unwrap().to_owned();
        line.split(' ').next().unwrap().trim_start_matches("node").parse().unwrap()
    }

    #[track_caller]
    pub fn wait(&self, what: &str, holds: impl Fn() -> bool) {
        let limit = Instant::now() + AGAIN;
        while !holds() {
            assert!(Instant::now() < limit, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let removed = script("down", &self.folder.0, None);
        if !std::thread::panicking() {
            assert_eq!(removed.code, 0, "{removed:?}");
        }
    }
}

/// A disk without room. There is room again when it is dropped.
pub struct FullDisk(PathBuf);

impl Drop for FullDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.unwrap().success() || std::thread::panicking());
    }
}

/// The pilot on a lab.
pub struct Stack<'a> {
    pub lab: &'a Lab,
    pub pilot: Pilot,
    _tree: Folder,
}

impl std::ops::Deref for Stack<'_> {
    type Target = Pilot;

    fn deref(&self) -> &Pilot {
        &self.pilot
    }
}

/// Gives the pilot of a tree two replicas of each service. Each engine has a store of its own, so the scenario is given to
/// each.
fn two_replicas(root: &Path) {
    let change = |name: &str, changes: &[(&str, &str)]| {
        let path = root.join("pilot-deploy").join(name);
        let mut text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in changes {
            assert!(text.contains(from), "{name} has no {from}");
            text = text.replacen(from, to, 1);
        }
        std::fs::write(path, text).unwrap();
    };
    let replicas = "x-service: &service\n  deploy: { replicas: 2 }\n";
    change("docker-compose.poc.yml", &[("x-service: &service\n", replicas)]);
    change(
        "pilot.toml",
        &[
            ("HEALTH_INTERVAL = \"10s\"", "HEALTH_INTERVAL = \"1s\""),
            ("request = \"POST gateway/admin/seed\"", "request = \"POST engine/scenarios\""),
        ],
    );
}

/// The whole source, with two replicas of each service. All but what differs are links.
fn source() -> Folder {
    let tree = Folder::new("swarm-source");
    let link = |name: &str| std::os::unix::fs::symlink(workspace().join(name), tree.0.join(name)).unwrap();
    std::fs::create_dir_all(tree.0.join("pilot-deploy")).unwrap();
    ["Cargo.toml", "Cargo.lock", "xtask", "target"].into_iter().for_each(link);
    for entry in std::fs::read_dir(workspace().join("pilot-deploy")).unwrap().flatten() {
        let name = format!("pilot-deploy/{}", entry.file_name().to_string_lossy());
        if ["docker-compose.poc.yml", "pilot.toml"].iter().any(|own| name.ends_with(own)) {
            std::fs::copy(workspace().join(&name), tree.0.join(&name)).unwrap();
        } else {
            link(&name);
        }
    }
    two_replicas(&tree.0);
    tree
}

impl<'a> Stack<'a> {
    /// Nothing runs yet.
    pub fn new(lab: &'a Lab, name: &str) -> Self {
        let tree = source();
        let mut pilot = Pilot::new(name, Engine::Swarm);
        pilot.root = tree.0.clone();
        pilot.set("DOCKER_CONFIG", &lab.client().display().to_string());
        Self { lab, pilot, _tree: tree }
    }

    /// The same, of a repository with two commits.
    pub fn of_commits(lab: &'a Lab, name: &str) -> Self {
        let mut stack = Self::new(lab, name);
        stack.pilot.root = scenarios::clone(&stack._tree, two_replicas);
        stack.pilot.set("CARGO_TARGET_DIR", &workspace().join("target").display().to_string());
        stack
    }

    /// The id of the first of the two commits.
    pub fn first_commit(&self) -> String {
        scenarios::git(&self.root, &["rev-parse", "HEAD~1"])
    }

    #[track_caller]
    pub fn up(self) -> Self {
        self.pilot.xtask(&["up"]).expect(0);
        self
    }

    /// The answers of every task of the gateway that is reached, by node.
    pub fn asked(&self, path: &str) -> Vec<(usize, Answer)> {
        let port = self.port("gateway");
        let ask = |node: &usize| {
            let address = format!("{}:{port}", self.lab.ip(*node));
            Some((*node, try_http_at(&address, "GET", path, &[], None).ok()?))
        };
        NODES.iter().filter_map(ask).collect()
    }

    /// The nodes where the public is served, of those where it is answered.
    pub fn served(&self) -> (usize, usize) {
        let all = self.asked("/report?scenarioId=demo&seed=42");
        (all.iter().filter(|(_, answer)| answer.status == 200).count(), all.len())
    }

    /// Waits until each of the two gateways serves. What there is instead is told.
    #[track_caller]
    pub fn all_serve(&self) {
        self.all_serve_within(AGAIN);
    }

    /// As `all_serve`, within this time.
    #[track_caller]
    pub fn all_serve_within(&self, time: Duration) {
        let limit = Instant::now() + time;
        while self.served() != (2, 2) {
            if Instant::now() > limit {
                let name = format!("{}_gateway", self.project);
                let tasks = self.lab.docker(self.manager(), &["service", "ps", "--no-trunc", &name]);
                let asked = self.asked("/report?scenarioId=demo&seed=42");
                let asked: Vec<_> = asked.iter().map(|(node, answer)| (node, answer.status)).collect();
                panic!("{asked:?}\n{tasks}\n{}", self.xtask(&["status"]).all());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The public is shut out, wherever a gateway answers.
    #[track_caller]
    pub fn is_shut(&self) {
        for (node, answer) in self.asked("/report?scenarioId=demo&seed=42") {
            assert_eq!(answer.status, 503, "node {node}: {}", answer.body);
        }
    }

    /// The spec of a service, as the Swarm has it.
    pub fn spec(&self, service: &str) -> Value {
        let name = format!("{}_{service}", self.project);
        let told =
            self.lab.docker(self.manager(), &["service", "inspect", "--format", "{{json .Spec}}", &name]);
        serde_json::from_str(&told).unwrap()
    }

    /// A manager that answers.
    pub fn manager(&self) -> usize {
        *NODES.iter().find(|node| self.lab.try_docker(**node, &["node", "ls"]).code == 0).unwrap()
    }

    /// The version of the pilot that each running task has, and whether each service has two.
    #[track_caller]
    pub fn runs(&self, version: &str) {
        for service in ["gateway", "engine", "jobs"] {
            let port = self.port(service);
            let answers = NODES.iter().filter_map(|node| {
                let address = format!("{}:{port}", self.lab.ip(*node));
                try_http_at(&address, "GET", "/healthz", &[], None).ok()
            });
            let versions: Vec<String> =
                answers.map(|answer| answer.json()["version"].as_str().unwrap_or("?").to_owned()).collect();
            assert_eq!(versions, [version, version], "{service}");
        }
    }

    /// A command that restores; its last event.
    #[track_caller]
    pub fn restores(&self, args: &[&str]) -> Value {
        let finished = self.json(args).expect(0).finished();
        assert_eq!(finished["outcome"], "restored", "{finished}");
        assert_eq!(finished["smoke"]["passed"], true, "{finished}");
        assert_eq!(self.served(), (2, 2));
        finished
    }

    /// The image that a service has to run.
    pub fn image(&self, service: &str) -> String {
        self.spec(service)["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap().to_owned()
    }

    /// What a colleague does by hand: an image with a fault, on every node, for all services.
    pub fn bad_version_by_hand(&self, fault: &str) {
        for service in ["gateway", "engine", "jobs"] {
            let now = self.image(service);
            let name = format!("{}-{service}:bad", self.project);
            let first = NODES
                .iter()
                .copied()
                .find(|n| self.lab.try_docker(*n, &["image", "inspect", &now]).code == 0);
            let first = first.unwrap();
            let file = self.folder.0.join("Dockerfile");
            std::fs::write(&file, format!("FROM {now}\nENV SCENARIO_VERSION=v6.6.6 {fault}\n")).unwrap();
            let context = Folder::new("context");
            let (file, at) = (file.display().to_string(), context.0.display().to_string());
            self.lab.docker(first, &["build", "--quiet", "--file", &file, "--tag", &name, &at]);
            let archive = context.0.join("bad.tar").display().to_string();
            self.lab.docker(first, &["save", "--output", &archive, &name]);
            for node in NODES.iter().filter(|node| **node != first) {
                self.lab.docker(*node, &["load", "--quiet", "--input", &archive]);
            }
            let id = self.lab.docker(first, &["image", "inspect", "--format", "{{.Id}}", &name]);
            let own = format!("{}_{service}", self.project);
            let update = [
                "service",
                "update",
                "--detach",
                "--no-resolve-image",
                "--update-parallelism",
                "0",
                "--image",
            ];
            self.lab.docker(self.manager(), &[&update, [id.trim(), &own].as_slice()].concat());
        }
        self.lab.wait("the bad version runs", || {
            ["gateway", "engine", "jobs"].iter().all(|service| {
                let own = format!("{}_{service}", self.project);
                let state =
                    ["service", "ps", "--filter", "desired-state=running", "--format", "{{.CurrentState}}"];
                let told = self.lab.docker(self.manager(), &[state.as_slice(), &[&own]].concat());
                let port = self.port(service);
                told.lines().filter(|line| line.starts_with("Running")).count() == 2
                    && NODES.iter().any(|node| {
                        let at = format!("{}:{port}", self.lab.ip(*node));
                        let answer = try_http_at(&at, "GET", "/healthz", &[], None);
                        answer.is_ok_and(|answer| answer.json()["version"] == "v6.6.6")
                    })
            })
        });
    }
}

/// The notes of `tests/stacks` on a lab: a proxy, an API, two workers and MariaDB.
pub struct Stacked<'a> {
    lab: &'a Lab,
    folder: Folder,
    project: String,
}

impl<'a> Stacked<'a> {
    pub fn notes(lab: &'a Lab) -> Self {
        let folder = Folder::new("sn");
        let project = folder.0.file_name().unwrap().to_string_lossy().replace("pilot-test-", "pt-");
        let stack = Self { lab, folder, project };
        notes::copy(&notes::NOTES.files(), &stack.dir());
        for (name, tag) in notes::NOTES.bases {
            let archive = notes::archives().join(format!("{name}.tar")).display().to_string();
            lab.docker(1, &["import", &archive, &format!("{}-{name}:{tag}", stack.project)]);
        }
        stack.edit(".env", "IMAGES=\"notes\"", &format!("IMAGES=\"{}\"", stack.project));
        // The managers build and start with the machine's other tests beside them.
        stack.edit("pilot.toml", "ready = \"25s\"", "ready = \"60s\"\ndeploy = \"120s\"");
        stack
    }

    fn dir(&self) -> PathBuf {
        self.folder.0.join(&self.project)
    }

    #[track_caller]
    pub fn edit(&self, file: &str, old: &str, new: &str) {
        let path = self.dir().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{file} has no {old}: {text}");
        std::fs::write(path, text.replace(old, new)).unwrap();
    }

    pub fn xtask(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("--stack").arg(self.dir()).args(args).current_dir(self.dir()).stdin(Stdio::null());
        command.env("PILOT_WATCH", "0s").env("TMPDIR", &self.folder.0);
        ran(command.env("DOCKER_CONFIG", self.lab.client()).output().unwrap())
    }

    pub fn json(&self, args: &[&str]) -> Ran {
        self.xtask(&[&["--format", "json"], args].concat())
    }

    /// The names of the files of a new backup.
    pub fn backed_up(&self) -> Vec<String> {
        let said = self.xtask(&["backup", "create"]).expect(0).out;
        let folder = said.lines().find_map(|line| line.trim().strip_prefix("in ")).unwrap().to_owned();
        let names = std::fs::read_dir(folder).unwrap().flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    fn ask(&self, method: &str, body: Option<&str>) -> Option<Answer> {
        let text = std::fs::read_to_string(self.dir().join(".env")).unwrap();
        let port = text.lines().find_map(|line| line.strip_prefix("NOTES_PORT=")).unwrap().to_owned();
        let port = port.split_whitespace().next().unwrap().trim_matches('"').to_owned();
        let ask = |node: &usize| {
            try_http_at(&format!("{}:{port}", self.lab.ip(*node)), method, "/notes", &[], body).ok()
        };
        NODES.iter().find_map(ask)
    }

    /// The status of a note that the public writes; 0 where nobody answers.
    pub fn write(&self, text: &str) -> u16 {
        let body = serde_json::json!({ "text": text }).to_string();
        self.ask("POST", Some(&body)).map_or(0, |answer| answer.status)
    }

    pub fn read(&self) -> String {
        self.ask("GET", None).map_or_else(String::new, |answer| answer.body)
    }

    /// The node where a service runs.
    pub fn node_of(&self, service: &str) -> usize {
        let name = format!("{}_{service}", self.project);
        let told = ["service", "ps", "--filter", "desired-state=running", "--format", "{{.Node}}", &name];
        let told =
            NODES.iter().map(|node| self.lab.try_docker(*node, &told)).find(|ran| ran.code == 0).unwrap().out;
        told.lines().next().unwrap().trim_start_matches("node").parse().unwrap()
    }
}
