//! The services as local processes: observes them through their members, starts each under a supervisor, and
//! ends them.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode};
use crate::base::machine;
use crate::base::proc::cmd;
use crate::base::secrets;
use crate::engine::process::home::{Processes, Spec};
use crate::engine::process::members::{Member, new_alive, run_well};
use crate::engine::process::supervise;
use crate::engine::roles::{Engine, Extent, Kind, Runtime};
use crate::release::description::Release;
use crate::release::store::settings_in;
use crate::stack::definition::Resolved;
use crate::stack::envfile::EnvFile;
use crate::stack::model::{Instance, PAUSED, Service};
use crate::stack::names;
use crate::stack::pilot::Pilot;
use crate::stack::ports;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

impl Runtime for Processes {
    fn project(&self) -> &str {
        &self.pilot.project
    }

    fn for_stack(&self, pilot: &Pilot) -> Result<Box<dyn Engine>> {
        Ok(Box::new(Self::new(pilot)))
    }

    fn resolve(&self, dir: &Path, _: &dyn Fn(&str) -> bool, _: Deadline) -> Result<Resolved> {
        let settings = settings_in(dir, &self.pilot.layout)?;
        Ok(Resolved { definition: self.pilot.by_manifest(&settings)?, environment: None })
    }

    fn services(&self, _: Deadline) -> Result<BTreeMap<String, Service>> {
        let mut services = BTreeMap::new();
        let members = self.members()?;
        // Also services that the manifest does not name: another release may have started them.
        for service in self.known_services()? {
            let members = members.get(&service).map_or(&[][..], Vec::as_slice);
            if let Some(instance) = self.instance(&service, members)? {
                secrets::learn(&instance.env);
                services.insert(service, Service(vec![instance]));
            }
        }
        Ok(services)
    }

    fn kind(&self) -> Kind {
        Kind::Process
    }

    fn describe(&self, _: Deadline) -> String {
        "local processes".into()
    }

    fn apply(
        &self,
        release: &Release,
        dir: &Path,
        force: &[String],
        held_back: &[String],
        deadline: Deadline,
    ) -> Result<()> {
        let mut fresh = Vec::new();
        let members = self.members()?;
        for service in self.pilot.services() {
            let spec = self.spec(release, dir, service)?;
            let now = self.read_spec(service).ok().flatten();
            let runs = members.get(service).is_some_and(|members| run_well(members));
            let same = now.is_some_and(|now| now.settings == spec.settings)
                && (runs || held_back.iter().any(|held| held == service))
                && !force.iter().any(|f| f == service);
            if !same {
                fresh.push((service.to_owned(), spec));
            }
        }
        // Stop all before the first is started: two services may have swapped their ports.
        let names: Vec<String> = fresh.iter().map(|(service, _)| service.clone()).collect();
        self.end(&names, deadline)?;
        fresh.iter().try_for_each(|(service, spec)| match held_back.contains(service) {
            true => self.write_spec(service, spec),
            false => self.begin(service, spec),
        })
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

    fn start(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let members = self.members()?;
        let down =
            services.iter().filter(|name| !members.get(*name).is_some_and(|members| run_well(members)));
        down.into_iter().try_for_each(|service| {
            let spec = self.read_spec(service)?.with_context(|| format!("{service} was never started"))?;
            self.stop(service, deadline)?;
            self.begin(service, &spec)
        })
    }

    /// Nothing starts a process again whose supervisor was ended.
    fn keep_down(&self, services: &[String], deadline: Deadline) -> Result<()> {
        self.end(services, deadline)
    }

    fn exec(&self, _: &Instance, words: &[String], _: &[(&str, &str)], _: Deadline) -> Result<(i32, String)> {
        Err(no_container(words))
    }

    fn remove(&self, services: &[String], deadline: Deadline) -> Result<()> {
        services.iter().try_for_each(|service| {
            self.stop(service, deadline)?;
            files::remove(&self.dir(service).join("service.json")).map(drop)
        })
    }

    fn add(&self, _: &Path, services: &[String], _: Deadline) -> Result<()> {
        let what = format!("{} can only run on Docker", services.join(" and "));
        Err(fail(Exit::Usage, what, "run the same command with --engine compose, on a host with Docker"))
    }

    fn down(&self, extent: Extent, deadline: Deadline) -> Result<()> {
        let mut services = self.known_services()?;
        services.extend(self.members()?.into_keys());
        self.end(&services, deadline)?;
        for service in services {
            // If it cannot be removed (a read-only disk), the service is shown as ended, which is right.
            files::remove(&self.dir(&service).join("service.json")).ok();
        }
        match extent {
            Extent::Services => Ok(()),
            Extent::Data => self.remove_whole(&self.home.join("volumes")),
            Extent::Everything => files::remove(&self.home).map(drop),
        }
    }

    fn resources(&self, _: Deadline) -> Result<Vec<String>> {
        let mut all: Vec<String> =
            self.members()?.into_keys().map(|service| format!("processes of {service}")).collect();
        let data = self.pilot.services().map(|service| self.data(service)).filter(|path| path.exists());
        all.extend(data.map(|path| format!("data {}", path.display())));
        Ok(all)
    }
}

impl Processes {
    /// The port of a service, which must have one: nothing else says where it answers.
    fn port(&self, service: &str, env: &EnvFile) -> Result<u16> {
        self.pilot.port_in(service, env)?.with_context(|| format!("{service} has no port in the manifest"))
    }

    /// What a service of a release is started with: the settings of the image, then of the env
    /// file, then of the engine.
    fn spec(&self, release: &Release, dir: &Path, service: &str) -> Result<Spec> {
        let file = settings_in(dir, &self.pilot.layout)?;
        let image = release.images.get(service).with_context(|| format!("the release has no {service}"))?;
        let mut env = self.head(&image.id)?.env;
        env.extend(file.map());
        let url = |service: &str| {
            Ok::<_, anyhow::Error>(format!("http://127.0.0.1:{}", self.port(service, &file)?))
        };
        let port = self.port(service, &file)?;
        env.insert(names::OWNER.into(), self.pilot.project.clone());
        env.insert(names::LISTEN.into(), format!("127.0.0.1:{port}"));
        env.insert(names::DATA.into(), self.data(service).display().to_string());
        for other in self.pilot.services().filter(|other| *other != self.pilot.gateway()) {
            env.insert(names::url_of(other), url(other)?);
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

    fn spec_path(&self, service: &str) -> PathBuf {
        self.dir(service).join("service.json")
    }

    fn write_spec(&self, service: &str, spec: &Spec) -> Result<()> {
        let path = self.spec_path(service);
        files::clear_way(&path)?;
        files::write_json(&path, spec, Mode::Private)
    }

    fn begin(&self, service: &str, spec: &Spec) -> Result<()> {
        if let Some(owner) = ports::owner_after_end(spec.port) {
            let what = format!("cannot start {service}: its port {} is taken by {owner}", spec.port);
            return Err(fail(Exit::Host, what, "end that process, or change the port in the env file"));
        }
        files::make_folder(&self.data(service))?;
        self.write_spec(service, spec)?;
        let path = self.spec_path(service);
        // Locked here and handed over: from now on it is locked until the last member has ended.
        let alive = new_alive(&spec.alive)?;
        let mut note = alive.try_clone().context("cannot share a file")?;
        let me = machine::this_program()?;
        files::clear_way(&spec.log)?;
        let supervisor = Command::new(me)
            .args(["supervise", &path.display().to_string()])
            .process_group(0)
            .stdin(alive)
            .stdout(Stdio::null())
            .stderr(supervise::open_log(&spec.log))
            .spawn()
            .context("cannot start a supervisor")?;
        // Only older versions read this id; they need it to end the service.
        writeln!(note, "{}", supervisor.id()).ok();
        Ok(())
    }

    /// What is known about a service; nothing if it does not exist.
    fn instance(&self, service: &str, members: &[Member]) -> Result<Option<Instance>> {
        let spec = match self.read_spec(service) {
            Ok(Some(spec)) => Ok(spec),
            Ok(None) if members.is_empty() => return Ok(None),
            Ok(None) => Err(anyhow::anyhow!("its description (service.json) is missing")),
            Err(error) => Err(error),
        };
        let supervised = members.iter().any(|member| member.supervisor);
        let restarts = files::read_if_there(&self.dir(service).join("restarts")).ok().flatten();
        let restarts = restarts.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok());
        let state = match &spec {
            _ if members.is_empty() => "exited",
            _ if members.iter().any(|member| member.process.is_stopped()) => PAUSED,
            Ok(_) if supervised => "running",
            Ok(_) => "unsupervised",
            Err(_) => "left over",
        };
        let found = Instance {
            state: state.to_owned(),
            image: "unknown".into(),
            env: BTreeMap::new(),
            address: None,
            node: None,
            health: None,
            settings: "unknown".into(),
            state_dir: None,
            restarts: restarts.unwrap_or(0),
            restart: None,
            handle: self.dir(service).display().to_string(),
            inspect: String::new(),
        };
        Ok(Some(match spec {
            Ok(spec) => {
                let inspect = serde_json::to_string_pretty(&spec)?;
                let Spec { image, env, port, settings, .. } = spec;
                Instance { image, env, address: Some(local(port)), settings, inspect, ..found }
            }
            // What is still there tells the most of it.
            Err(error) => {
                let envs = members.iter().filter(|m| !m.supervisor).map(|m| m.process.env());
                let env: BTreeMap<String, String> = envs.flatten().collect();
                let listen = env.get(names::LISTEN).and_then(|address| address.rsplit(':').next());
                let address = listen.and_then(|port| port.parse().ok()).map(local);
                Instance { env, address, inspect: format!("{error:#}"), ..found }
            }
        }))
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The error of a command that can only run in a container.
pub fn no_container(words: &[String]) -> anyhow::Error {
    let what = format!("{} is a command for a container, and this stack has none", words.join(" "));
    fail(Exit::Usage, what, "use --engine compose")
}
