//! The builder of the tests with another stack: the notes, or the ledger, of `tests/stacks`, which share nothing with
//! the pilot. Each has a folder, a project, a port and images of its own, gone without a trace when dropped.

use crate::http::{Answer, try_http};
use crate::pilot::{
    Engine, Folder, Ran, available, docker, docker_client, lose_records, ran, remove, skip, workspace,
};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Which stack: its folder in `tests/stacks`, and the base images that it is made from, with their tags.
pub struct Kind {
    folder: &'static str,
    pub bases: &'static [(&'static str, &'static str)],
    images: Mutex<Weak<Images>>,
}

/// A proxy, an API, two workers and MariaDB.
pub static NOTES: Kind = Kind::new("notes", &[("mariadb", "10.11"), ("python", "3.11"), ("nginx", "1.22")]);

/// PostgreSQL alone.
pub static LEDGER: Kind = Kind::new("ledger", &[("postgres", "15")]);

impl Kind {
    const fn new(folder: &'static str, bases: &'static [(&'static str, &'static str)]) -> Self {
        Self { folder, bases, images: Mutex::new(Weak::new()) }
    }

    pub fn files(&self) -> PathBuf {
        workspace().join("xtask/tests/stacks").join(self.folder)
    }
}

/// The base images of one kind of stack: there is no registry. The first test that needs them imports them, and the
/// last one that uses them removes them.
struct Images {
    kind: &'static Kind,
    prefix: String,
}

impl Images {
    fn shared(kind: &'static Kind) -> Arc<Self> {
        let mut shared = kind.images.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let made = Arc::new(Self::import(kind));
            *shared = Arc::downgrade(&made);
            made
        })
    }

    fn import(kind: &'static Kind) -> Self {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let folder = archives();
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let images = Self { kind, prefix: format!("pt-{}-{}-{n}", kind.folder, std::process::id()) };
        for (name, tag) in kind.bases {
            let archive = folder.join(format!("{name}.tar")).display().to_string();
            docker(&["import", &archive, &images.tag(name, tag)]);
        }
        images
    }

    fn tag(&self, name: &str, tag: &str) -> String {
        format!("{}-{name}:{tag}", self.prefix)
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        for (name, tag) in self.kind.bases {
            docker_client().args(["rmi", &self.tag(name, tag)]).output().ok();
        }
    }
}

/// The folder with the base images as archives. They are made once, and kept in `target/` by the content of the
/// script that makes them.
pub fn archives() -> PathBuf {
    // Two kinds of stack may need them at the same time.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let script = workspace().join("xtask/tests/stacks/images.sh");
    let stamp = ran(Command::new("sha256sum").arg(&script).output().unwrap()).expect(0).out;
    let kept = workspace().join("target/stack-images").join(&stamp[..16]);
    if !kept.is_dir() {
        std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
        let making = kept.with_extension(std::process::id().to_string());
        std::fs::create_dir_all(&making).unwrap();
        ran(Command::new("bash").arg(&script).arg(&making).output().unwrap()).expect(0);
        // Another process of tests may have been quicker.
        if std::fs::rename(&making, &kept).is_err() {
            std::fs::remove_dir_all(&making).unwrap();
        }
    }
    kept
}

/// The notes of one test.
pub type Notes = Stack;

/// The stack of one test.
pub struct Stack {
    pub project: String,
    pub engine: Engine,
    pub port: u16,
    folder: Folder,
    images: Arc<Images>,
    no_plugins: Folder,
}

/// Runs `test` with the notes on each version of Compose that is here; the names of those that are not are printed.
pub fn on(engines: &[Engine], name: &str, test: impl Fn(Notes)) {
    with(&NOTES, engines, name, test);
}

/// The same with the stack of this kind.
pub fn with(kind: &'static Kind, engines: &[Engine], name: &str, test: impl Fn(Stack)) {
    for engine in engines {
        match available(*engine) {
            Ok(()) => test(Stack::new(kind, name, *engine)),
            Err(why) => skip(&format!("{name} on {engine:?}"), &why),
        }
    }
}

impl Stack {
    fn new(kind: &'static Kind, name: &str, engine: Engine) -> Self {
        let folder = Folder::new(name);
        let project = folder.0.file_name().unwrap().to_string_lossy().replace("pilot-test-", "pt-");
        let stack = Self {
            project,
            engine,
            port: free_port(),
            images: Images::shared(kind),
            no_plugins: Folder::new("no-plugins"),
            folder,
        };
        copy(&kind.files(), &stack.dir());
        for (name, tag) in kind.bases {
            docker(&["tag", &stack.images.tag(name, tag), &format!("{}-{name}:{tag}", stack.project)]);
        }
        stack.edit(".env", "_PORT=8085", &format!("_PORT={}", stack.port));
        let theirs = format!("IMAGES=\"{}\"", kind.folder);
        stack.edit(".env", &theirs, &format!("IMAGES=\"{}\"", stack.project));
        stack
    }

    /// The stack's folder. Compose calls a project by its folder.
    pub fn dir(&self) -> PathBuf {
        self.folder.0.join(&self.project)
    }

    /// The same stack without a manifest.
    pub fn without_a_manifest(self) -> Self {
        std::fs::remove_file(self.dir().join("pilot.toml")).unwrap();
        self
    }

    /// Adds text to a file of the stack.
    pub fn append(&self, file: &str, text: &str) {
        let path = self.dir().join(file);
        let old = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, format!("{old}\n{text}")).unwrap();
    }

    /// A line of the docs, as the team types it: `xtask` is installed, and the images are called as in this test.
    pub fn shell(&self, line: &str) -> Ran {
        let bin = self.folder.0.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let link = bin.join("xtask");
        if !link.exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_xtask"), &link).unwrap();
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let line = line.replace("notes-app:", &format!("{}-app:", self.project));
        ran(self.program("sh").args(["-ec", &line]).env("PATH", path).output().unwrap())
    }

    /// Replaces a piece of text that is in a file of the stack.
    #[track_caller]
    pub fn edit(&self, file: &str, old: &str, new: &str) {
        let path = self.dir().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{file} has no {old}");
        std::fs::write(path, text.replace(old, new)).unwrap();
    }

    /// Any program as the stack's team runs it: in their folder, with their Compose.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.current_dir(self.dir()).env("TMPDIR", &self.folder.0).stdin(Stdio::null());
        if self.engine == Engine::Compose1 {
            // Without its plugin folder the client has no Compose 2.
            command.env("DOCKER_CONFIG", &self.no_plugins.0);
        }
        command
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_xtask"));
        command.arg("--stack").arg(self.dir()).args(args).env("PILOT_WATCH", "0s");
        command
    }

    pub fn xtask(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    pub fn json(&self, args: &[&str]) -> Ran {
        self.xtask(&[&["--format", "json"], args].concat())
    }

    /// What a colleague does by hand: plain Compose in the stack's folder.
    pub fn compose(&self, args: &[&str]) -> Ran {
        let mut command = if self.engine == Engine::Compose2 {
            let mut docker = self.program("docker");
            docker.arg("compose");
            docker
        } else {
            self.program("docker-compose")
        };
        ran(command.args(args).output().unwrap())
    }

    /// A release that a colleague starts by hand.
    #[track_caller]
    pub fn deploy_by_hand(&self) {
        self.compose(&["up", "--detach", "--build", "--timeout", "0"]).expect(0);
    }

    /// A request as the public makes it; none where nobody answers.
    pub fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Option<Answer> {
        try_http(method, self.port, path, &[], body).ok()
    }

    /// The status of a note that the public writes; 0 where nobody answers.
    pub fn write(&self, text: &str) -> u16 {
        self.ask("POST", "/notes", Some(&json!({ "text": text }).to_string())).map_or(0, |a| a.status)
    }

    /// Is this note there, with its words counted by a worker? Waits for it.
    pub fn has(&self, text: &str) -> bool {
        within(Duration::from_secs(10), || {
            let answer = self.ask("GET", "/notes", None).filter(|answer| answer.status == 200);
            let notes = answer.map(|answer| answer.json());
            let mut notes = notes.iter().filter_map(Value::as_array).flatten();
            notes.any(|note| note["text"] == text && note["words"] == text.split_whitespace().count())
        })
    }

    /// Version of the API that the public reaches.
    pub fn version(&self) -> String {
        let answer = self.ask("GET", "/health", None).unwrap_or_else(|| panic!("nobody answers"));
        answer.json()["version"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    }

    /// Ids of the running containers of a service.
    pub fn containers(&self, service: &str) -> Vec<String> {
        let of = |label: &str, value: &str| format!("label=com.docker.compose.{label}={value}");
        let (project, service) = (of("project", &self.project), of("service", service));
        let ids = docker(&["ps", "--quiet", "--no-trunc", "--filter", &project, "--filter", &service]);
        let mut ids: Vec<String> = ids.lines().map(str::to_owned).collect();
        ids.sort();
        ids
    }
}

/// A typing error in the SQL: the API's health check is happy, and no note can be written.
pub fn bad_release(notes: &Notes) {
    notes.edit("app/app.py", "insert into notes (text)", "insert into nodes (text)");
    label(notes, "2.0");
}

/// A setting that nobody has: the API and the workers end as soon as they start.
pub fn crash_loop(notes: &Notes) {
    notes.edit("app/app.py", "import pymysql\n", "import pymysql\n\nos.environ[\"NOBODY_SET_THIS\"]\n");
    label(notes, "3.0");
}

/// Another version, and another tag of the image that has it.
pub fn label(notes: &Notes, version: &str) {
    let version_of = |file: &str, before: &str, after: &str| {
        let text = std::fs::read_to_string(notes.dir().join(file)).unwrap();
        let old = text.split(before).nth(1).and_then(|rest| rest.split(after).next()).unwrap().to_owned();
        notes.edit(file, &format!("{before}{old}{after}"), &format!("{before}{version}{after}"));
    };
    version_of("app/app.py", "VERSION = \"", "\"");
    version_of(".env", "NOTES_VERSION=", " ");
}

/// What the team has in its version control.
pub fn check_out(notes: &Notes) {
    let good = NOTES.files();
    for file in ["app/app.py", "proxy/nginx.conf"] {
        std::fs::copy(good.join(file), notes.dir().join(file)).unwrap();
    }
}

/// Does it become true in time?
pub fn within(limit: Duration, what: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        match what() {
            true => return true,
            false if Instant::now() > end => return false,
            false => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A port that nobody uses, above those that the tool chooses and below those of outgoing connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 32_000 + (std::process::id() as u16).wrapping_mul(17).wrapping_add(n) % 700;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let filter = format!("label=com.docker.compose.project={}", self.project);
        let of_project = |list: &[&str]| docker(&[list, &["--quiet", "--filter", &filter]].concat());
        remove(&["rm", "--force", "--volumes"], &of_project(&["ps", "--all"]));
        remove(&["volume", "rm", "--force"], &of_project(&["volume", "ls"]));
        remove(&["network", "rm"], &of_project(&["network", "ls"]));
        lose_records(&self.project);
        // Also the private tags of its releases.
        let project = &self.project;
        let own = [format!("reference={project}*"), format!("reference=rollback.invalid/{project}/*")];
        for _ in 0..5 {
            let list =
                ["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &own[0], "--filter", &own[1]];
            let tags = docker(&list);
            if tags.is_empty() {
                break;
            }
            docker_client().arg("rmi").arg("--force").args(tags.lines()).output().ok();
        }
    }
}
