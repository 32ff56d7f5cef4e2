//! The builder of the end-to-end tests: a pilot with a project, ports and state folder of its own, gone
//! without a trace when dropped. Docker tests are skipped, and say so, where no engine answers; with
//! `CI=true` they fail instead.

use crate::http::{Answer, try_http_at};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Which engine, and for Docker which Compose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Process,
    Compose2,
    Compose1,
    /// On a lab of the test's own: see `lab`.
    Swarm,
}

impl Engine {
    fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Compose2 | Self::Compose1 => "compose",
            Self::Swarm => "swarm",
        }
    }
}

/// Runs `test` on each engine that is here; the names of those that are not are printed.
pub fn on(engines: &[Engine], name: &str, test: impl Fn(Pilot)) {
    for engine in engines {
        match available(*engine) {
            Ok(()) => test(Pilot::new(name, *engine)),
            Err(why) => skip(&format!("{name} on {engine:?}"), &why),
        }
    }
}

/// A part of a test: its name, and what it does with a pilot that runs release r1.
pub type Part = (&'static str, fn(&mut Pilot));

/// Runs parts one after another on one pilot, which is brought back to release r1 after each. A part that fails takes
/// its pilot with it: the next one begins with a new one. Those that failed are named at the end.
pub fn in_turn(engine: Engine, name: &str, parts: &[Part]) {
    if let Err(why) = available(engine) {
        return skip(&format!("{name} on {engine:?}"), &why);
    }
    let mut ready = None;
    let mut failed = Vec::new();
    for (part, run) in parts {
        let taken: Option<Pilot> = ready.take();
        let after = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut pilot = taken.unwrap_or_else(|| Pilot::new(name, engine).up());
            run(&mut pilot);
            pilot.root = workspace();
            pilot.extra_env.clear();
            pilot.xtask(&["rollback", "--to", "r1", "--open"]).expect(0);
            pilot
        }));
        match after {
            Ok(pilot) => ready = Some(pilot),
            Err(_) => failed.push(*part),
        }
    }
    assert_eq!(failed, [""; 0], "failed of {name} on {engine:?}, each for the reason that it gave above");
}

/// Says that a test is skipped; with `CI=true` none may be.
pub fn skip(name: &str, why: &str) {
    let ci = std::env::var("CI").is_ok_and(|v| v == "true");
    assert!(!ci, "{name} may not be skipped with CI=true: {why}");
    // Written past the test harness, which keeps what a passing test prints to itself.
    std::io::stderr().write_all(format!("SKIPPED {name}: {}\n", why.trim()).as_bytes()).unwrap();
}

pub fn available(engine: Engine) -> Result<(), String> {
    let tried = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{program} {args:?}: {}", text(&output.stderr))),
            Err(error) => Err(format!("{program}: {error}")),
        }
    };
    match engine {
        Engine::Process => Ok(()),
        Engine::Compose2 | Engine::Swarm => {
            tried("docker", &["version"]).and_then(|()| tried("docker", &["compose", "version"]))
        }
        Engine::Compose1 => {
            tried("docker", &["version"]).and_then(|()| tried("docker-compose", &["version"]))
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A folder of this test's own, removed when dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pilot-test-{name}-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A copy of the pack alone, for breaking.
pub fn copy_of_the_tree(name: &str) -> Folder {
    let tree = Folder::new(name);
    let pack = tree.0.join("pilot-deploy");
    std::fs::create_dir_all(pack.join("seed")).unwrap();
    for file in [
        "pilot.toml",
        "known-good.toml",
        "docker-compose.poc.yml",
        ".env.poc.example",
        "seed/demo-scenario.json",
        "observability/prometheus.yml",
        "observability/rules.yml",
        "observability/grafana/datasource.yml",
        "observability/grafana/dashboards.yml",
        "observability/grafana/pilot.json",
    ] {
        let to = pack.join(file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(workspace().join("pilot-deploy").join(file), to).unwrap();
    }
    tree
}

/// The whole source, which can be built, with more in the manifest. All but the manifest are links.
pub fn source_that_says_more(name: &str, more: &str) -> Folder {
    let tree = Folder::new(name);
    let link = |name: &str| std::os::unix::fs::symlink(workspace().join(name), tree.0.join(name)).unwrap();
    std::fs::create_dir_all(tree.0.join("pilot-deploy")).unwrap();
    ["Cargo.toml", "Cargo.lock", "xtask"].into_iter().for_each(link);
    for entry in std::fs::read_dir(workspace().join("pilot-deploy")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "pilot.toml" {
            link(&format!("pilot-deploy/{name}"));
        }
    }
    let manifest = std::fs::read_to_string(workspace().join("pilot-deploy/pilot.toml")).unwrap();
    std::fs::write(tree.0.join("pilot-deploy/pilot.toml"), format!("{manifest}\n{more}")).unwrap();
    tree
}

/// Writes a script that stands in for a program, for a test of how that is called.
pub fn program(path: &Path, script: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// How often something random is tried: `PILOT_TRIES`, or so often.
pub fn tries(few: usize) -> usize {
    std::env::var("PILOT_TRIES").ok().map_or(few, |text| text.parse().unwrap())
}

/// Every third point at which something is cut off; with `PILOT_TRIES` every one. In memory every operation is cut
/// off each time (`operations/in_memory.rs`).
pub const STRIDE: usize = 3;

/// Numbers of the events after which a run is cut off.
pub fn cuts() -> impl Iterator<Item = usize> {
    let stride = if std::env::var_os("PILOT_TRIES").is_some() { 1 } else { STRIDE };
    (1..).step_by(stride)
}

/// Random numbers (splitmix64) from a seed that is printed; `PILOT_SEED` brings one back.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("PILOT_SEED").ok().map(|text| text.parse().unwrap());
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = seed.unwrap_or(clock.as_nanos() as u64);
        println!("PILOT_SEED={seed}");
        Self(seed)
    }

    /// Those of a given seed, for one try among many.
    #[cfg(target_os = "linux")]
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }

    pub fn up_to(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.below(longest.as_micros() as u64))
    }
}

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The events of `--format json`.
    pub fn events(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"));
        self.out.lines().map(parse).collect()
    }

    /// The last event.
    pub fn finished(&self) -> Value {
        let last = self.events().pop().unwrap_or_else(|| panic!("no events: {self:?}"));
        assert_eq!(last["event"], "finished", "{self:?}");
        last
    }

    /// Ends the test unless the command ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\n--- out\n{}\n--- err\n{}", self.out, self.err);
        self
    }

    /// All that was said.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// A pilot of one test.
pub struct Pilot {
    pub project: String,
    pub engine: Engine,
    pub folder: Folder,
    /// Where commands run: the workspace, unless a test gives another tree.
    pub root: PathBuf,
    /// What commands are run by: something that puts them into another namespace.
    pub within: Vec<String>,
    /// The machine that has its ports.
    pub at: String,
    empty_docker_config: Folder,
    extra_env: Vec<(String, String)>,
}

impl Pilot {
    pub fn new(name: &str, engine: Engine) -> Self {
        let folder = Folder::new(name);
        let unique = folder.0.file_name().unwrap().to_string_lossy().replace("pilot-test-", "pt-");
        Self {
            project: unique.to_lowercase(),
            engine,
            folder,
            root: workspace(),
            within: Vec::new(),
            at: "127.0.0.1".into(),
            empty_docker_config: Folder::new("docker-config"),
            extra_env: Vec::new(),
        }
    }

    /// Sets a variable for all commands.
    pub fn set(&mut self, name: &str, value: &str) {
        self.extra_env.push((name.into(), value.into()));
    }

    pub fn state(&self) -> PathBuf {
        self.folder.0.join("state")
    }

    pub fn env_path(&self) -> PathBuf {
        self.state().join(".env.poc")
    }

    pub fn env_text(&self) -> String {
        std::fs::read_to_string(self.env_path()).unwrap()
    }

    /// Folders of all runs, in order.
    pub fn runs(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.state().join("rollbacks")).into_iter().flatten().flatten();
        let mut all: Vec<PathBuf> = all.map(|entry| entry.path()).collect();
        all.sort();
        all
    }

    /// Changes one setting of the env file by hand.
    pub fn edit_env(&self, key: &str, value: &str) {
        let lines: Vec<String> = self
            .env_text()
            .lines()
            .map(|l| if l.starts_with(&format!("{key}=")) { format!("{key}={value}") } else { l.into() })
            .collect();
        std::fs::write(self.env_path(), lines.join("\n") + "\n").unwrap();
    }

    pub fn setting(&self, key: &str) -> String {
        let text = self.env_text();
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("{key} is not in the env file")).to_owned()
    }

    pub fn port(&self, service: &str) -> u16 {
        self.setting(&format!("{}_PORT", service.to_uppercase())).parse().unwrap()
    }

    /// The command, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let words: Vec<&str> =
            self.within.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_xtask")]).collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["--project", &self.project, "--engine", self.engine.word()])
            .args(args)
            .current_dir(&self.root)
            .env("PILOT_STATE_DIR", self.state())
            // The tests in `watch.rs` watch.
            .env("PILOT_WATCH", "0s")
            // What a command that is killed leaves behind goes with the test.
            .env("TMPDIR", &self.folder.0)
            .stdin(Stdio::null());
        // These tests may run in a job of a pipeline themselves.
        for name in ["GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "PILOT_REPORTS"] {
            command.env_remove(name);
        }
        if self.engine == Engine::Compose1 {
            // Without its plugin folder the client has no Compose 2.
            command.env("DOCKER_CONFIG", &self.empty_docker_config.0);
        }
        command.envs(self.extra_env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// A command as the program suggests it to whoever uses this pilot.
    pub fn suggested(&self, words: &str) -> String {
        let (state, project, engine) = (self.state(), &self.project, self.engine.word());
        format!(
            "PILOT_STATE_DIR={} cargo xtask --project {project} --engine {engine} {words}",
            state.display()
        )
    }

    pub fn xtask(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    pub fn json(&self, args: &[&str]) -> Ran {
        self.xtask(&[&["--format", "json"], args].concat())
    }

    /// The value that a looking command tells in JSON.
    #[track_caller]
    pub fn told(&self, args: &[&str], code: i32) -> Value {
        let events = self.json(args).expect(code).events();
        events.into_iter().find(|e| e["event"] == "result").unwrap()["value"].clone()
    }

    /// Stores a scenario of this test's own.
    #[track_caller]
    pub fn store_scenario(&self) {
        let option = |id: &str| json!({"id": id, "name": id});
        let scenario = json!({"scenarioId": "kept", "title": "kept", "options": [option("a"), option("b")]});
        let seeded = self.request("POST", "gateway", "/admin/seed", Some(&scenario.to_string()));
        assert_eq!(seeded.status, 200, "{}", seeded.body);
    }

    /// Is it still there?
    pub fn has_scenario(&self) -> bool {
        self.public("GET", "/report?scenarioId=kept&seed=1", None).status == 200
    }

    /// A good release, running.
    #[track_caller]
    pub fn up(self) -> Self {
        self.xtask(&["up"]).expect(0);
        self
    }

    /// What a colleague does by hand: plain Compose with the env file as it is now, on the files of a
    /// release.
    pub fn compose_by_hand(&self, args: &[&str]) -> Ran {
        let dir = self.folder.0.join("by-hand");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::copy(
            workspace().join("pilot-deploy/docker-compose.poc.yml"),
            dir.join("docker-compose.poc.yml"),
        )
        .unwrap();
        std::fs::copy(self.env_path(), dir.join(".env.poc")).unwrap();
        let file = dir.join("docker-compose.poc.yml").display().to_string();
        let env = dir.join(".env.poc").display().to_string();
        let base = ["--project-name", &self.project, "--file", &file, "--env-file", &env];
        let mut command = self.compose();
        ran(command.args(base).args(args).output().unwrap())
    }

    /// `docker compose` or `docker-compose`, as this pilot is driven.
    pub fn compose(&self) -> Command {
        if self.engine == Engine::Compose2 {
            let mut docker = docker_client();
            docker.arg("compose");
            docker
        } else {
            Command::new("docker-compose")
        }
    }

    /// Overwrites a file in the volume of a service that is stopped meanwhile.
    pub fn overwrite(&self, service: &str, file: &str, bytes: &[u8]) {
        if self.engine == Engine::Process {
            std::fs::write(self.state().join("process/volumes").join(service).join(file), bytes).unwrap();
            return;
        }
        let path = self.folder.0.join(file);
        std::fs::write(&path, bytes).unwrap();
        let id = self.containers("{{.Id}}").into_iter().find(|(name, _)| name == service).unwrap().1;
        // Not by removing it first: the running service has the same file open.
        self.docker(&["cp", &path.display().to_string(), &format!("{id}:/data/{file}")]);
    }

    /// Bytes of a file in the volume of a service.
    pub fn stored(&self, service: &str, file: &str) -> Vec<u8> {
        if self.engine == Engine::Process {
            return std::fs::read(self.state().join("process/volumes").join(service).join(file)).unwrap();
        }
        let id = self.containers("{{.Id}}").into_iter().find(|(name, _)| name == service).unwrap().1;
        let to = self.folder.0.join("stored");
        self.docker(&["cp", &format!("{id}:/data/{file}"), &to.display().to_string()]);
        std::fs::read(to).unwrap()
    }

    /// Another version under the tag that the compose file names, as a careless build leaves it. It
    /// has a tag of its own too, or nobody would find it again once the first one has moved.
    pub fn build_bad_version(&self, more: &str) {
        let tag: String = more.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        std::thread::scope(|scope| {
            for service in ["gateway", "engine", "jobs"] {
                let name = format!("{}-{service}", self.project);
                let (latest, bad) = (format!("{name}:latest"), format!("{name}:bad-{tag}"));
                scope.spawn(move || {
                    let context = Folder::new("context");
                    let file = context.0.join("Dockerfile");
                    std::fs::write(&file, format!("FROM {latest}\nENV SCENARIO_VERSION=v6.6.6 {more}\n"))
                        .unwrap();
                    let (file, context) = (file.display().to_string(), context.0.display().to_string());
                    docker(&["build", "--quiet", "--file", &file, "--tag", &latest, "--tag", &bad, &context]);
                });
            }
        });
    }

    /// Content ids of what runs, by service.
    pub fn running_images(&self) -> Vec<(String, String)> {
        self.containers("{{.Image}}")
    }

    /// Standard output of a docker command, on the daemon that this pilot is on, that has to work.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> String {
        let mut command = docker_client();
        command.args(args).envs(self.extra_env.iter().map(|(k, v)| (k, v)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "docker {args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// One field of each running container, by service.
    pub fn containers(&self, field: &str) -> Vec<(String, String)> {
        let filter = format!("label=com.docker.compose.project={}", self.project);
        let ids = self.docker(&["ps", "--quiet", "--filter", &filter]);
        let ids: Vec<&str> = ids.lines().collect();
        if ids.is_empty() {
            return Vec::new();
        }
        let format = format!("{{{{index .Config.Labels \"com.docker.compose.service\"}}}} {field}");
        let told = self.docker(&[&["inspect", "--format", &format], ids.as_slice()].concat());
        let mut all: Vec<(String, String)> = told
            .lines()
            .map(|line| line.trim().split_once(' ').map(|(a, b)| (a.into(), b.into())).unwrap())
            .collect();
        all.sort();
        all
    }

    /// Content ids that a release has, by service.
    pub fn release_images(&self, id: &str) -> Vec<(String, String)> {
        let path = self.state().join("releases").join(id).join("release.json");
        let release: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let images = release["images"].as_object().unwrap();
        images.iter().map(|(s, i)| (s.clone(), i["id"].as_str().unwrap().to_owned())).collect()
    }

    /// The values in force in a running service, asked over HTTP. What was just started by hand may need a moment,
    /// in which Docker takes connections for it.
    pub fn running_values(&self, service: &str) -> Value {
        let token = format!("Bearer {}", self.setting("ADMIN_TOKEN"));
        let address = format!("{}:{}", self.at, self.port(service));
        let ask = || try_http_at(&address, "GET", "/admin/config", &[("authorization", &token)], None);
        let limit = Instant::now() + Duration::from_secs(20);
        let answer = loop {
            match ask() {
                Ok(answer) => break answer,
                Err(error) => assert!(Instant::now() < limit, "{service}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["values"].clone()
    }

    /// A request with the admin token.
    pub fn request(&self, method: &str, service: &str, path: &str, body: Option<&str>) -> Answer {
        let token = format!("Bearer {}", self.setting("ADMIN_TOKEN"));
        self.http(method, service, path, &[("authorization", &token)], body)
    }

    /// A request as the public makes it.
    pub fn public(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        self.http(method, "gateway", path, &[], body)
    }

    #[track_caller]
    fn http(
        &self,
        method: &str,
        service: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        let address = format!("{}:{}", self.at, self.port(service));
        let answer = try_http_at(&address, method, path, headers, body);
        answer.unwrap_or_else(|error| panic!("{method} {address}{path}: {error}"))
    }
}

impl Pilot {
    /// Removes its images, by all their tags.
    pub fn lose_images(&self) {
        self.docker(&[&["rmi"], words(&self.image_tags()).as_slice()].concat());
    }

    /// Tags of the images that this pilot has, on Docker.
    fn image_tags(&self) -> Vec<String> {
        let mut list = vec!["images".to_owned(), "--format".into(), "{{.Repository}}:{{.Tag}}".into()];
        for service in ["gateway", "engine", "jobs"] {
            list.extend(["--filter".into(), format!("reference={}-{service}", self.project)]);
        }
        // And the private tags, by which releases name their images.
        list.extend(["--filter".into(), format!("reference=rollback.invalid/{}/*", self.project)]);
        let tags = docker(&words(&list));
        tags.lines().filter(|tag| !tag.ends_with("<none>")).map(str::to_owned).collect()
    }
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

impl Drop for Pilot {
    fn drop(&mut self) {
        if self.engine == Engine::Process {
            self.root = workspace();
            self.xtask(&["down"]);
            return;
        }
        // On a daemon of the test's own, which goes as a whole.
        if self.engine == Engine::Swarm || self.extra_env.iter().any(|(name, _)| name == "DOCKER_HOST") {
            return;
        }
        let filter = format!("label=com.docker.compose.project={}", self.project);
        let of_project = |list: &[&str]| docker(&[list, &["--quiet", "--filter", &filter]].concat());
        remove(&["rm", "--force"], &of_project(&["ps", "--all"]));
        lose_records(&self.project);
        remove(&["volume", "rm"], &of_project(&["volume", "ls"]));
        remove(&["network", "rm"], &of_project(&["network", "ls"]));
        // Docker loses hold of a layer that another test, which shares it, removes at this moment: then it says so,
        // and has removed some of the tags. Those that are left are removed by the next try.
        for _ in 0..5 {
            let tags = self.image_tags();
            if tags.is_empty() || try_docker(&[&["rmi"], words(&tags).as_slice()].concat()).is_ok() {
                return;
            }
        }
        assert_eq!(self.image_tags(), [""; 0], "images are left");
    }
}

/// Removes the records of a project that the engine keeps for every client, as `docker system prune` does.
pub fn lose_records(project: &str) {
    let filter = format!("label=rollback.invalid/ledger={project}");
    remove(&["rm"], &docker(&["ps", "--all", "--quiet", "--filter", &filter]));
    let images = format!("ledger.rollback.invalid/{project}");
    remove(&["rmi"], &docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", &images]));
}

/// Removes all of these with one command, where there are any.
pub fn remove(command: &[&str], ids: &str) {
    let ids: Vec<&str> = ids.lines().collect();
    if !ids.is_empty() {
        docker(&[command, &ids].concat());
    }
}

/// The longest that a docker command of a test may take, in seconds.
const LONGEST: &str = "300";

/// Standard output of a docker command that has to work.
#[track_caller]
pub fn docker(args: &[&str]) -> String {
    try_docker(args).unwrap_or_else(|error| panic!("docker {args:?}: {error}"))
}

/// The docker client. A daemon that hangs must not hang a CI job.
pub fn docker_client() -> Command {
    let mut client = Command::new("timeout");
    client.args([LONGEST, "docker"]);
    client
}

/// The same where it may fail: what it says then.
fn try_docker(args: &[&str]) -> Result<String, String> {
    let output = docker_client().args(args).output().unwrap();
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        Some(124) => Err(format!("no answer within {LONGEST} s")),
        _ => Err(text(&output.stderr)),
    }
}

/// Pauses a container. The kernel may be too busy to freeze it at the first try.
#[track_caller]
pub fn pause(id: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(error) = try_docker(&["pause", id]) {
        assert!(error.contains("unable to freeze") && Instant::now() < end, "docker pause {id}: {error}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn ran(output: Output) -> Ran {
    Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}
