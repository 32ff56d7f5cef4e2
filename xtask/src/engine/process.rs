//! The engine `process`: the services as local processes, for machines without Docker. Each service
//! is a process group led by a supervisor (this program, `supervise`) that starts it again when it
//! ends. Every member of the group holds a lock on the service's `alive` file through its standard
//! input, so "is it running" and "may this group be ended" are never a guess by process id.

use super::{Build, Engine, Kind, ServiceState, Stack};
use crate::deadline::Deadline;
use crate::failure::{Exit, fail};
use crate::files::{self, Mode};
use crate::pilot::Pilot;
use crate::proc::{cmd, end_group};
use crate::release::{ENV_FILE, Image, Release};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Local processes of one pilot.
pub struct Processes {
    pilot: Pilot,
    home: PathBuf,
}

/// First line of an image archive; the program follows. The content id is the checksum of both.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
    env: BTreeMap<String, String>,
}

/// What a supervisor runs, in `service.json` (0600: the environment has secrets).
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    image: String,
    program: PathBuf,
    role: String,
    env: BTreeMap<String, String>,
    port: u16,
    settings: String,
    log: PathBuf,
    alive: PathBuf,
}

impl Processes {
    /// Everything it keeps is in the pilot's state folder.
    pub fn new(pilot: &Pilot) -> Self {
        Self { pilot: pilot.clone(), home: pilot.state.join("process") }
    }

    fn dir(&self, service: &str) -> PathBuf {
        self.home.join("services").join(service)
    }

    fn data(&self, service: &str) -> PathBuf {
        self.home.join("volumes").join(service)
    }

    /// Programs that were taken in, by image id.
    fn program(&self, image: &str) -> PathBuf {
        self.home.join("images").join(image.trim_start_matches("sha256:"))
    }

    fn tags_path(&self) -> PathBuf {
        self.home.join("tags.json")
    }

    fn tags(&self) -> Result<BTreeMap<String, String>> {
        let path = self.tags_path();
        if path.exists() { files::read_json(&path) } else { Ok(BTreeMap::new()) }
    }

    fn add_tags(&self, more: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let mut tags = self.tags()?;
        tags.extend(more);
        files::write_json(&self.tags_path(), &tags, Mode::Plain)
    }

    /// Takes a program in under its content id.
    fn take_in(&self, archive: &[u8]) -> Result<String> {
        let id = format!("sha256:{}", files::sha256_bytes(archive));
        let path = self.program(&id);
        let end = archive.iter().position(|b| *b == b'\n').context("not an image archive")?;
        let _: Head = serde_json::from_slice(&archive[..end]).context("not an image archive")?;
        files::write(&path, &archive[end + 1..], Mode::Program)?;
        files::write(&path.with_extension("head"), &archive[..=end], Mode::Plain)?;
        Ok(id)
    }

    fn head(&self, image: &str) -> Result<Head> {
        files::read_json(&self.program(image).with_extension("head"))
    }

    /// Is any member of the group alive? Only then does the recorded group id still mean it.
    fn alive(&self, service: &str) -> Result<Option<i32>> {
        let path = self.dir(service).join("alive");
        let Ok(file) = File::open(&path) else { return Ok(None) };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let line = BufReader::new(file).lines().next().and_then(Result::ok).unwrap_or_default();
                let pid =
                    line.trim().parse().with_context(|| format!("{} has no process id", path.display()))?;
                Ok(Some(pid))
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot ask {}", path.display())),
        }
    }

    fn end(&self, service: &str, deadline: Deadline) -> Result<()> {
        while let Some(group) = self.alive(service)? {
            end_group(group);
            if deadline.passed() {
                bail!("{service} (process group {group}) is still there after SIGKILL");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Settings of a service under a release: the image's, the env file's, then the engine's own.
    fn spec(&self, release: &Release, dir: &Path, service: &str) -> Result<Spec> {
        let path = dir.join(ENV_FILE);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = crate::envfile::EnvFile::parse(&path.display().to_string(), &bytes)?;
        let image = release.images.get(service).with_context(|| format!("the release has no {service}"))?;
        let mut env = self.head(&image.id)?.env;
        env.extend(file.map());
        let url = |service: &str| {
            Ok::<_, anyhow::Error>(format!("http://127.0.0.1:{}", self.pilot.port(service, &file)?))
        };
        let port = self.pilot.port(service, &file)?;
        env.insert("SCENARIO_PROJECT".into(), self.pilot.project.clone());
        env.insert("SCENARIO_LISTEN".into(), format!("127.0.0.1:{port}"));
        env.insert("SCENARIO_DATA".into(), self.data(service).display().to_string());
        for other in self.pilot.services().skip(1) {
            env.insert(format!("SCENARIO_{}_URL", other.to_uppercase()), url(other)?);
        }
        let settings = files::sha256_bytes(serde_json::to_string(&(&image.id, &env))?.as_bytes());
        Ok(Spec {
            image: image.id.clone(),
            program: self.program(&image.id),
            role: service.to_owned(),
            env,
            port,
            settings,
            log: self.dir(service).join("log"),
            alive: self.dir(service).join("alive"),
        })
    }

    fn start(&self, service: &str, spec: &Spec) -> Result<()> {
        if let Some(owner) = super::owner_of(spec.port) {
            let what = format!("port {} of {service} is taken by {owner}", spec.port);
            return Err(fail(Exit::Host, what, "end that process, or change the port in the env file"));
        }
        files::make_folder(&self.data(service))?;
        let path = self.dir(service).join("service.json");
        files::write_json(&path, spec, Mode::Private)?;
        // Locked here and handed over: from now on somebody holds it until the whole group is gone.
        let alive =
            File::create(&spec.alive).with_context(|| format!("cannot make {}", spec.alive.display()))?;
        // Somebody who only looks holds it for an instant.
        let limit = Deadline::after(Duration::from_secs(1));
        while let Err(error) = alive.try_lock() {
            if limit.passed() {
                bail!("{} is in use: {error}", spec.alive.display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let me = std::env::current_exe().context("cannot find this program")?;
        let log = File::options().create(true).append(true).open(&spec.log);
        let log = log.with_context(|| format!("cannot open {}", spec.log.display()))?;
        let child = Command::new(me)
            .args(["supervise", &path.display().to_string()])
            .process_group(0)
            .stdin(alive.try_clone().context("cannot share a file")?)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start a supervisor")?;
        let mut alive = alive;
        writeln!(alive, "{}", child.id()).context("cannot note the process group")
    }

    fn read_spec(&self, service: &str) -> Result<Option<Spec>> {
        let path = self.dir(service).join("service.json");
        if path.exists() { files::read_json(&path).map(Some) } else { Ok(None) }
    }
}

impl Engine for Processes {
    fn kind(&self) -> Kind {
        Kind::Process
    }

    fn describe(&self, _: Deadline) -> String {
        "local processes".into()
    }

    fn observe(&self, _: Deadline) -> Result<Stack> {
        let mut stack = Stack::default();
        for service in self.pilot.services() {
            let Some(spec) = self.read_spec(service)? else { continue };
            let alive = self.alive(service)?;
            let inspect = serde_json::to_string_pretty(&spec)?;
            let restarts = std::fs::read_to_string(self.dir(service).join("restarts"));
            let restarts = restarts.ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
            stack.services.insert(
                service.to_owned(),
                ServiceState {
                    state: if alive.is_some() { "running" } else { "exited" }.to_owned(),
                    image: spec.image,
                    env: spec.env,
                    port: Some(spec.port),
                    settings: spec.settings,
                    state_dir: None,
                    restarts,
                    handle: self.dir(service).display().to_string(),
                    inspect,
                },
            );
        }
        if let Ok(entries) = std::fs::read_dir(self.home.join("images")) {
            for entry in entries.filter_map(Result::ok) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(id) = name.strip_suffix(".head") {
                    stack.images.push(format!("sha256:{id}"));
                }
            }
        }
        Ok(stack)
    }

    fn build(&self, build: &Build<'_>, _: Deadline) -> Result<BTreeMap<String, Image>> {
        let Build { binary, label, fault, .. } = *build;
        let program = std::fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
        let mut images = BTreeMap::new();
        for service in self.pilot.services() {
            let env = [("SCENARIO_ROLE", service), ("SCENARIO_VERSION", label), ("SCENARIO_FAULT", fault)];
            let env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            let mut archive = serde_json::to_vec(&Head { version: 1, env })?;
            archive.push(b'\n');
            archive.extend_from_slice(&program);
            let id = self.take_in(&archive)?;
            let name = self.pilot.image_name(service);
            self.add_tags([(format!("{name}:{label}"), id.clone())])?;
            images.insert(service.to_owned(), Image { id, tag: format!("{name}:latest"), archive: None });
        }
        Ok(images)
    }

    fn tagged(&self, tag: &str, _: Deadline) -> Result<BTreeMap<String, Image>> {
        let tags = self.tags()?;
        let mut images = BTreeMap::new();
        for service in self.pilot.services() {
            let name = self.pilot.image_name(service);
            let Some(id) = tags.get(&format!("{name}:{tag}")) else {
                let known: Vec<&str> = tags.keys().map(String::as_str).collect();
                let what = format!("there is no image {name}:{tag}; there are {}", known.join(", "));
                return Err(fail(Exit::Usage, what, "cargo xtask up, which builds the tree"));
            };
            images.insert(
                service.to_owned(),
                Image { id: id.clone(), tag: format!("{name}:latest"), archive: None },
            );
        }
        Ok(images)
    }

    fn save(&self, image: &Image, archive: &Path, _: Deadline) -> Result<()> {
        let program = self.program(&image.id);
        let mut bytes = std::fs::read(program.with_extension("head"))
            .with_context(|| format!("there is no image {}", image.id))?;
        bytes.extend(std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?);
        files::write(archive, &bytes, Mode::Plain)
    }

    fn load(&self, image: &Image, archive: &Path, _: Deadline) -> Result<()> {
        let bytes = std::fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        let id = self.take_in(&bytes)?;
        if id != image.id {
            bail!("{} holds {id} and not {}", archive.display(), image.id);
        }
        Ok(())
    }

    fn point_tags(&self, release: &Release, _: Deadline) -> Result<()> {
        self.add_tags(release.images.values().map(|image| (image.tag.clone(), image.id.clone())))
    }

    fn apply(&self, release: &Release, dir: &Path, force: &[String], deadline: Deadline) -> Result<()> {
        let mut fresh = Vec::new();
        for service in self.pilot.services() {
            let spec = self.spec(release, dir, service)?;
            let now = self.read_spec(service)?;
            let same = now.is_some_and(|now| now.settings == spec.settings)
                && self.alive(service)?.is_some()
                && !force.iter().any(|f| f == service);
            if !same {
                fresh.push((service.to_owned(), spec));
            }
        }
        // All ports are given up before the first is taken: two services may have swapped theirs.
        for (service, _) in &fresh {
            self.end(service, deadline)?;
        }
        fresh.iter().try_for_each(|(service, spec)| self.start(service, spec))
    }

    fn run_once(
        &self,
        release: &Release,
        dir: &Path,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<String> {
        let spec = self.spec(release, dir, service)?;
        files::make_folder(&self.data(service))?;
        let run = spec.env.iter().fold(cmd(&spec.program, words), |run, (k, v)| run.env(k, v));
        run.run(deadline)
    }

    fn stop(&self, service: &str, deadline: Deadline) -> Result<()> {
        self.end(service, deadline)
    }

    fn logs(&self, state: &ServiceState, lines: usize, to: &Path, _: Deadline) -> Result<()> {
        let path = Path::new(&state.handle).join("log");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let all: Vec<&str> = text.lines().collect();
        let last = all[all.len().saturating_sub(lines)..].join("\n");
        files::write(to, last.as_bytes(), Mode::Private)
    }

    fn save_data(&self, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        let from = self.data(service);
        let tar = cmd("tar", &["--create", "--file", &archive.display().to_string()]);
        tar.args(["--directory", &from.display().to_string(), "."]).run(deadline).map(drop)
    }

    fn remove_data(&self, service: &str, deadline: Deadline) -> Result<()> {
        self.end(service, deadline)?;
        let path = self.data(service);
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn down(&self, everything: bool, deadline: Deadline) -> Result<()> {
        for service in self.pilot.services() {
            self.end(service, deadline)?;
            let path = self.dir(service).join("service.json");
            std::fs::remove_file(path).ok();
        }
        if everything && self.home.exists() {
            std::fs::remove_dir_all(&self.home)
                .with_context(|| format!("cannot remove {}", self.home.display()))?;
        }
        Ok(())
    }
}

/// Longest pause before a service that ends again and again is started anew.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A log file is begun anew past this size; one older is kept.
const LOG_LIMIT: u64 = 5 << 20;

/// `xtask supervise FILE`: runs one service until its group is ended. Hidden from `--help`: only
/// `apply` starts it, with the locked `alive` file as standard input.
pub fn supervise(path: &Path) -> Result<()> {
    let spec: Spec = files::read_json(path)?;
    let restarts = path.with_file_name("restarts");
    let mut pause = Duration::from_millis(100);
    for count in 0u64.. {
        files::write(&restarts, format!("{count}\n").as_bytes(), Mode::Plain)?;
        if std::fs::metadata(&spec.log).is_ok_and(|m| m.len() > LOG_LIMIT) {
            std::fs::rename(&spec.log, spec.log.with_extension("1")).context("cannot turn the log over")?;
        }
        let log = File::options().create(true).append(true).open(&spec.log).context("cannot open the log")?;
        let started = Instant::now();
        // Standard input is inherited: the service holds the lock too, and outlives us holding it.
        let ended = Command::new(&spec.program)
            .arg(&spec.role)
            .env_clear()
            .envs(&spec.env)
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            .status();
        pause = if started.elapsed() > LONGEST_PAUSE { Duration::from_millis(100) } else { pause };
        eprintln!(
            "{}",
            serde_json::json!({"level": "WARN", "message": "service ended", "how": format!("{ended:?}")})
        );
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}
