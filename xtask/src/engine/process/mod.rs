//! The engine `process`: the services as local processes, for machines without Docker. Each service
//! is run by a supervisor (this program, `supervise`) that starts it again when it ends. Both hold a lock on
//! the service's `alive` file through their standard input, so "is it running" and "may this be ended" are
//! never a guess by process id (`members`).

mod data;
mod members;
mod programs;
mod supervise;

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::files::{Freed, Mode};
use crate::base::next::Next;
use crate::base::proc::cmd;
use crate::base::secrets;
use crate::engine::roles::{Build, Engine, EngineHost, Extent, Kind, Usage};
use crate::release::description::{ENV_FILE, Image, Release};
use crate::stack::model::{ServiceState, Stack};
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, bail};
use members::{Member, new_alive, run_well};
use programs::Head;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub use supervise::supervise;

/// Local processes of one pilot.
pub struct Processes {
    pilot: Pilot,
    home: PathBuf,
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
    /// For older versions, which look for the supervisor's id in it.
    alive: PathBuf,
}

impl Processes {
    /// Everything it keeps is in the pilot's state folder.
    pub fn new(pilot: &Pilot) -> Self {
        Self { pilot: pilot.clone(), home: pilot.state.process() }
    }

    fn dir(&self, service: &str) -> PathBuf {
        self.home.join("services").join(service)
    }

    fn data(&self, service: &str) -> PathBuf {
        self.home.join("volumes").join(service)
    }

    /// Settings of a service under a release: the image's, the env file's, then the engine's own.
    fn spec(&self, release: &Release, dir: &Path, service: &str) -> Result<Spec> {
        let path = dir.join(ENV_FILE);
        let bytes = files::read(&path)?;
        let file = crate::stack::envfile::EnvFile::parse(&path.display().to_string(), &bytes)?;
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
        if let Some(owner) = crate::base::ports::owner_of(spec.port) {
            let what = format!("port {} of {service} is taken by {owner}", spec.port);
            return Err(fail(Exit::Host, what, "end that process, or change the port in the env file"));
        }
        files::make_folder(&self.data(service))?;
        let path = self.dir(service).join("service.json");
        files::clear_way(&path)?;
        files::write_json(&path, spec, Mode::Private)?;
        // Locked here and handed over: from now on somebody holds it until the last member is gone.
        let alive = new_alive(&spec.alive)?;
        let mut note = alive.try_clone().context("cannot share a file")?;
        let me = files::this_program()?;
        files::clear_way(&spec.log)?;
        let supervisor = Command::new(me)
            .args(["supervise", &path.display().to_string()])
            .process_group(0)
            .stdin(alive)
            .stdout(Stdio::null())
            .stderr(supervise::open_log(&spec.log))
            .spawn()
            .context("cannot start a supervisor")?;
        // An older version could not end it without; nothing here reads it.
        writeln!(note, "{}", supervisor.id()).ok();
        Ok(())
    }

    /// Removes a folder as a whole or not at all: out of the way first, so that one which is there is never half
    /// of what it was. What a killed command has left out of the way goes with the next.
    fn remove_whole(&self, path: &Path) -> Result<()> {
        let trash = self.home.join("trash");
        files::make_folder(&trash)?;
        match std::fs::rename(path, trash.join(files::random()?)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        files::remove(&trash).map(drop)
    }

    fn read_spec(&self, service: &str) -> Result<Option<Spec>> {
        let path = self.dir(service).join("service.json");
        if path.exists() { files::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// What is known of a service; nothing where there is none.
    fn state(&self, service: &str, members: &[Member]) -> Result<Option<ServiceState>> {
        let spec = match self.read_spec(service) {
            Ok(Some(spec)) => Ok(spec),
            Ok(None) if members.is_empty() => return Ok(None),
            Ok(None) => Err(anyhow::anyhow!("its description is gone")),
            Err(error) => Err(error),
        };
        let supervised = members.iter().any(|member| member.supervisor);
        let restarts = files::read_if_there(&self.dir(service).join("restarts")).ok().flatten();
        let restarts = restarts.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok());
        let state = match &spec {
            _ if members.is_empty() => "exited",
            Ok(_) if supervised => "running",
            Ok(_) => "unsupervised",
            Err(_) => "left over",
        };
        let found = ServiceState {
            state: state.to_owned(),
            image: "unknown".into(),
            env: BTreeMap::new(),
            port: None,
            settings: "unknown".into(),
            state_dir: None,
            restarts: restarts.unwrap_or(0),
            handle: self.dir(service).display().to_string(),
            inspect: String::new(),
        };
        Ok(Some(match spec {
            Ok(spec) => {
                let inspect = serde_json::to_string_pretty(&spec)?;
                let Spec { image, env, port, settings, .. } = spec;
                ServiceState { image, env, port: Some(port), settings, inspect, ..found }
            }
            // What is still there tells the most of it.
            Err(error) => {
                let envs = members.iter().filter(|m| !m.supervisor).map(|m| m.process.env());
                let env: BTreeMap<String, String> = envs.flatten().collect();
                let listen = env.get("SCENARIO_LISTEN").and_then(|address| address.rsplit(':').next());
                let port = listen.and_then(|port| port.parse().ok());
                ServiceState { env, port, inspect: format!("{error:#}"), ..found }
            }
        }))
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
        let members = self.members()?;
        // Those too that the manifest does not name: another release has started them.
        for service in self.known_services()? {
            let members = members.get(&service).map_or(&[][..], Vec::as_slice);
            if let Some(state) = self.state(&service, members)? {
                secrets::learn(&state.env);
                stack.services.insert(service, state);
            }
        }
        stack.images = self.images()?;
        // All that there is, also of services that the manifest does not name: a teardown takes it too.
        let mut data = files::names(&self.home.join("volumes"))?;
        data.retain(|name| self.data(name).is_dir());
        stack.data = data.into_iter().collect();
        Ok(stack)
    }

    fn build(&self, build: &Build<'_>, deadline: Deadline) -> Result<BTreeMap<String, Image>> {
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
            let tag = format!("{}:latest", self.pilot.image_name(service));
            images.insert(service.to_owned(), Image { id, tag, archive: None });
        }
        self.tag(&images, label, deadline)?;
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
                return Err(fail(Exit::Usage, what, Next::xtask("up").so("builds the tree")));
            };
            images.insert(
                service.to_owned(),
                Image { id: id.clone(), tag: format!("{name}:latest"), archive: None },
            );
        }
        Ok(images)
    }

    fn tag(&self, images: &BTreeMap<String, Image>, tag: &str, _: Deadline) -> Result<()> {
        let name = |service: &str| format!("{}:{tag}", self.pilot.image_name(service));
        self.add_tags(images.iter().map(|(service, image)| (name(service), image.id.clone())))
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
        let members = self.members()?;
        for service in self.pilot.services() {
            let spec = self.spec(release, dir, service)?;
            let now = self.read_spec(service).ok().flatten();
            let same = now.is_some_and(|now| now.settings == spec.settings)
                && members.get(service).is_some_and(|members| run_well(members))
                && !force.iter().any(|f| f == service);
            if !same {
                fresh.push((service.to_owned(), spec));
            }
        }
        // All ports are given up before the first is taken: two services may have swapped theirs.
        let names: Vec<String> = fresh.iter().map(|(service, _)| service.clone()).collect();
        self.end(&names, deadline)?;
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
        self.end(&[service.to_owned()], deadline)
    }

    fn logs(&self, state: &ServiceState, lines: Option<usize>, _: Deadline) -> Result<String> {
        let path = Path::new(&state.handle).join("log");
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let all: Vec<&str> = text.lines().collect();
        Ok(all[all.len().saturating_sub(lines.unwrap_or(usize::MAX))..].join("\n"))
    }

    fn save_data(&self, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        data::save(&self.data(service), archive, deadline)
    }

    fn restore_data(&self, _: &Path, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        data::restore(&self.data(service), archive, deadline)
    }

    fn remove_data(&self, service: &str, deadline: Deadline) -> Result<()> {
        self.stop(service, deadline)?;
        self.remove_whole(&self.data(service))
    }

    fn remove(&self, services: &[String], deadline: Deadline) -> Result<()> {
        services.iter().try_for_each(|service| {
            self.stop(service, deadline)?;
            files::remove(&self.dir(service).join("service.json")).map(drop)
        })
    }

    fn start(&self, service: &str, deadline: Deadline) -> Result<()> {
        let spec = self.read_spec(service)?.with_context(|| format!("{service} was never started"))?;
        if self.members()?.get(service).is_some_and(|members| run_well(members)) {
            return Ok(());
        }
        self.stop(service, deadline)?;
        Self::start(self, service, &spec)
    }

    fn add(&self, _: &Path, services: &[String], _: Deadline) -> Result<()> {
        let what = format!("{} run on Docker alone", services.join(" and "));
        Err(fail(Exit::Usage, what, "the same with --engine compose, where Docker is"))
    }

    fn belongings(&self, _: Deadline) -> Result<Vec<String>> {
        let mut all: Vec<String> =
            self.members()?.into_keys().map(|service| format!("processes of {service}")).collect();
        let data = self.pilot.services().map(|service| self.data(service)).filter(|path| path.exists());
        all.extend(data.map(|path| format!("data {}", path.display())));
        Ok(all)
    }

    fn down(&self, extent: Extent, deadline: Deadline) -> Result<()> {
        let mut services = self.known_services()?;
        services.extend(self.members()?.into_keys());
        self.end(&services, deadline)?;
        for service in services {
            // Where it cannot be removed (a disk that was made read-only) it is told as what has ended.
            files::remove(&self.dir(&service).join("service.json")).ok();
        }
        match extent {
            Extent::Services => Ok(()),
            Extent::Data => self.remove_whole(&self.home.join("volumes")),
            Extent::Everything => files::remove(&self.home).map(drop),
        }
    }

    fn usage(&self, _: Deadline) -> Result<Vec<Usage>> {
        Ok(self.members()?.iter().map(|(service, members)| data::usage(service, members)).collect())
    }

    fn surroundings(&self, _: Deadline) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for service in self.pilot.services() {
            let path = self.data(service);
            let bytes = files::size(&path)?;
            all.insert(format!("data of {service}"), format!("{}: {bytes} bytes", path.display()));
        }
        Ok(all)
    }

    fn host(&self, _: Deadline) -> Result<EngineHost> {
        Ok(EngineHost {
            version: "local processes".into(),
            root: Some(self.pilot.state.path().to_owned()),
            skew: Some(Duration::ZERO),
            running: None,
            used: vec![format!("programs and data: {} bytes", files::size(&self.home)?)],
        })
    }

    fn clean_up(&self, keep: &[String], _: Deadline) -> Result<Vec<Freed>> {
        let mut keep = keep.to_vec();
        for service in self.pilot.services() {
            keep.extend(self.read_spec(service)?.map(|spec| spec.image));
        }
        let old: Vec<String> = self.images()?.into_iter().filter(|id| !keep.contains(id)).collect();
        let mut tags = self.tags()?;
        tags.retain(|_, id| !old.contains(id));
        files::write_json(&self.tags_path(), &tags, Mode::Plain)?;
        let mut freed = Vec::new();
        for id in old {
            let program = self.program(&id);
            let bytes = files::size(&program)?;
            for path in [program.clone(), program.with_extension("head")] {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            freed.push(Freed { what: format!("program {}", program.display()), bytes });
        }
        freed.extend(self.remove_halves()?);
        Ok(freed)
    }
}
