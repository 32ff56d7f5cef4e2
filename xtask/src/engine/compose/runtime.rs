//! The services of a project under Docker: observes, applies, stops and removes them. They are found by
//! Compose's labels, which Compose 1 and 2 write in the same way.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::http::Client;
use crate::base::proc::Cmd;
use crate::base::threads::side_by_side;
use crate::engine::compose::api::Way;
use crate::engine::compose::client::{Compose, Generation, classify, exec_code};
use crate::engine::compose::config::{Place, unescaped};
use crate::engine::compose::parts::PARTS;
use crate::engine::compose::state::{services, was_paused};
use crate::engine::roles::{Engine, Extent, Kind, Runtime};
use crate::release::description::Release;
use crate::stack::definition::Resolved;
use crate::stack::endpoint::Endpoint;
use crate::stack::envfile::EnvFile;
use crate::stack::model::{Instance, Service};
use crate::stack::pilot::Pilot;
use crate::stack::ports;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the next probe of a health check may take: Docker makes one every 30 s, if nothing else is said.
const NEXT_PROBE: Duration = Duration::from_secs(60);

impl Runtime for Compose {
    fn project(&self) -> &str {
        &self.pilot.project
    }

    fn kind(&self) -> Kind {
        Kind::Compose
    }

    fn for_stack(&self, pilot: &Pilot) -> Result<Box<dyn Engine>> {
        Ok(Box::new(self.for_pilot(pilot)))
    }

    fn resolve(&self, dir: &Path, is_file: &dyn Fn(&str) -> bool, deadline: Deadline) -> Result<Resolved> {
        if let Some(known) = self.recorded(dir, is_file) {
            return Ok(known);
        }
        // Compose resolves `..`, and links as its version likes. It must print the folder as it is known here.
        let dir = files::real_path(dir);
        let compose = self.compose(&dir, deadline)?;
        let run = |command: Cmd| command.run(deadline);
        let place = Place { project: &self.pilot.project, dir: &dir, is_file };
        match self.generation(deadline)? {
            Generation::Two => {
                // Services of a profile are left out unless it is named.
                let profiles = run(compose.clone().args(["config", "--profiles"]))?;
                let named = profiles.lines().flat_map(|profile| ["--profile", profile]);
                place.compose_2(&run(compose.args(named).args(["config", "--format", "json"]))?)
            }
            Generation::One(_) => place.compose_1(&run(compose.args(["config"]))?),
        }
    }

    fn services(&self, deadline: Deadline) -> Result<BTreeMap<String, Service>> {
        let mut all = services(&self.inspected(deadline)?)?;
        for instance in all.values_mut().flat_map(|service| &mut service.0) {
            instance.node = self.elsewhere();
            instance.address = instance.address.map(|at| SocketAddr::new(self.daemon.ip(), at.port()));
        }
        Ok(all)
    }

    fn reach(&self, endpoint: &Endpoint, limit: Duration) -> Client {
        let (port, daemon) = (endpoint.port, self.daemon.clone());
        // The port of a service is what is known of it; which addresses it is bound to, a test of the stack has seen.
        let bound = if daemon.reaches_loopback() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let at = move || daemon.reached(SocketAddr::from((bound, port)));
        Client::at(&self.daemon.shown(port), Box::new(at), &self.pilot.project, endpoint.pass.clone(), limit)
    }

    fn elsewhere(&self) -> Option<String> {
        self.daemon.elsewhere().map(str::to_owned)
    }

    fn reached(&self, published: SocketAddr) -> Result<Vec<SocketAddr>> {
        Ok(vec![self.daemon.reached(published)?])
    }

    fn shown(&self, port: u16) -> String {
        self.daemon.shown(port)
    }

    fn answers_at(&self, address: SocketAddr, limit: Duration) -> Result<bool> {
        self.daemon.answers(address, limit)
    }

    fn taken_by(&self, port: u16, deadline: Deadline) -> Result<Option<String>> {
        if self.daemon.elsewhere().is_none() {
            return Ok(ports::owner_of(port));
        }
        // Of the other programs there nothing is known.
        let publish = format!("publish={port}");
        let names = self.docker(&["ps", "--filter", &publish, "--format", "{{.Names}}"], deadline)?;
        Ok(names.lines().next().map(|name| format!("container {name}")))
    }

    fn describe(&self, deadline: Deadline) -> String {
        if let Some(known) = self.described.get() {
            return known.clone();
        }
        let version = || {
            let name = match self.generation(deadline)? {
                Generation::Two => "docker compose",
                Generation::One(_) => "docker-compose",
            };
            let version = self.compose_command(deadline)?.args(["version", "--short"]).run(deadline)?;
            Ok::<_, anyhow::Error>(format!("{name} {}", version.trim().trim_start_matches('v')))
        };
        match version() {
            Ok(known) => self.described.get_or_init(|| known).clone(),
            Err(error) => format!("compose ({error:#})"),
        }
    }

    fn can_read(&self, env: &EnvFile, deadline: Deadline) -> Result<()> {
        if env.differs().is_empty() || matches!(self.generation(deadline)?, Generation::Two) {
            return Ok(());
        }
        let what = format!("Compose 1 would read this differently:\n  {}", env.differs().join("\n  "));
        Err(fail(Exit::Usage, what, "change these places, or install Compose 2"))
    }

    fn apply(
        &self,
        release: &Release,
        dir: &Path,
        force: &[String],
        held_back: &[String],
        deadline: Deadline,
    ) -> Result<()> {
        let compose = self.compose_release(release, dir, deadline)?;
        if !force.is_empty() {
            // Compose does not replace a container with the right settings, even if it is
            // unhealthy. So remove it first.
            let unwell = self.handles(force, deadline)?;
            self.each(&["rm", "--force"], &unwell, deadline)?;
        }
        // No stop grace period: an incident must not wait ten seconds for a service that ignores SIGTERM.
        let up = compose.args(["up", "--timeout", "0", "--no-build"]).args(self.no_pull(deadline)?);
        let run = |more: &[&str], services: &BTreeSet<String>| {
            let up = || up.clone().args(more).args(services).run(deadline).map(drop).map_err(classify);
            up().or_else(|error| if self.is_judged_again(deadline) { up() } else { Err(error) })
        };
        if held_back.is_empty() {
            let parts = self.parts(release, deadline)?;
            return side_by_side(PARTS, parts, |part| run(&["--detach"], &part)).into_iter().collect();
        }
        let names = self.pilot.services().map(str::to_owned);
        let (held, others): (BTreeSet<String>, BTreeSet<String>) =
            names.partition(|name| held_back.contains(name));
        run(&["--no-start", "--no-deps"], &held)?;
        // Without names, Compose would start all of them.
        if others.is_empty() { Ok(()) } else { run(&["--detach", "--no-deps"], &others) }
    }

    fn run_once(
        &self,
        release: &Release,
        dir: &Path,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<String> {
        let compose = self.compose_release(release, dir, deadline)?;
        let run = compose.args(["run", "--rm", "--no-deps", "-T", service]).args(words);
        run.run(deadline).map_err(classify)
    }

    fn stop(&self, service: &str, deadline: Deadline) -> Result<()> {
        let ids = self.existing(service, deadline)?;
        // `stop` and not `kill`: its restart policy does not restart a container that was stopped.
        self.each(&["stop", "--time", "0"], &ids, deadline).map(drop)
    }

    fn remove(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let ids = self.handles(services, deadline)?;
        self.each(&["rm", "--force"], &ids, deadline).map(drop)
    }

    fn start(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let there = self.services(deadline)?;
        if let Some(name) = services.iter().find(|name| !there.contains_key(*name)) {
            bail!("{name} has no container in project {}", self.pilot.project);
        }
        self.each(&["start"], &handles(&there, services), deadline).map(drop)
    }

    fn keep_down(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let ids = self.handles(services, deadline)?;
        // The policy first: if this is cut off in between, a restart of Docker does not let the public in.
        self.each(&["update", "--restart", "no"], &ids, deadline)?;
        self.each(&["stop", "--time", "0"], &ids, deadline).map(drop)
    }

    fn restart_as(&self, policies: &BTreeMap<String, String>, deadline: Deadline) -> Result<()> {
        let there = self.services(deadline)?;
        policies.iter().try_for_each(|(service, policy)| {
            let ids = handles(&there, std::slice::from_ref(service));
            self.each(&["update", "--restart", policy], &ids, deadline).map(drop)
        })
    }

    fn exec(
        &self,
        instance: &Instance,
        words: &[String],
        env: &[(&str, &str)],
        deadline: Deadline,
    ) -> Result<(i32, String)> {
        let mut exec = self.client(&["exec"]);
        for (name, value) in env {
            // Docker takes the value from its own environment, so that it is not in its arguments.
            exec = exec.args(["--env", name]).env(name, value);
        }
        let exec = exec.args([&instance.handle]).args(words);
        match exec.run(deadline) {
            Ok(printed) => Ok((0, printed)),
            Err(error) => match exec_code(&error) {
                Some(code) => Ok((code, format!("{error:#}"))),
                None => Err(classify(error)),
            },
        }
    }

    fn add(&self, dir: &Path, services: &[String], deadline: Deadline) -> Result<()> {
        let up = self.compose(dir, deadline)?.args(["up", "--detach", "--no-deps"]);
        up.args(services).run(deadline).map(drop).map_err(classify)
    }

    fn down(&self, extent: Extent, deadline: Deadline) -> Result<()> {
        // By label and not with `compose down`: that needs a compose file, which may be broken.
        self.each(&["rm", "--force"], &self.every_container(deadline)?, deadline)?;
        let kinds: &[&str] = if extent == Extent::Services { &["network"] } else { &["network", "volume"] };
        for kind in kinds {
            let found = self.docker(&[kind, "ls", "--quiet", "--filter", &self.label()], deadline)?;
            for name in found.lines() {
                self.docker(&[kind, "rm", name], deadline)?;
            }
        }
        if extent == Extent::Everything {
            let tags = self.own_tags(deadline)?.into_keys().chain(self.pins(deadline)?.into_keys());
            self.each(&["rmi"], &tags.collect::<Vec<_>>(), deadline)?;
            self.shelf_of_project().remove_all(deadline)?;
        }
        Ok(())
    }

    fn resources(&self, deadline: Deadline) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for (kind, args) in [
            ("container", ["ps", "-a", "--format", "{{.Names}}"].as_slice()),
            ("volume", &["volume", "ls", "--format", "{{.Name}}"]),
            ("network", &["network", "ls", "--format", "{{.Name}}"]),
        ] {
            let found = self.docker(&[args, &["--filter", &self.label()]].concat(), deadline)?;
            let mut names: Vec<String> = found.lines().map(|name| format!("{kind} {name}")).collect();
            names.sort_unstable();
            all.append(&mut names);
        }
        Ok(all)
    }
}

/// Ids of the containers of these services.
fn handles(there: &BTreeMap<String, Service>, services: &[String]) -> Vec<String> {
    let all = services.iter().filter_map(|service| there.get(service)).flat_map(|service| &service.0);
    all.map(|instance| instance.handle.clone()).collect()
}

impl Compose {
    /// The same engine for a stack by another manifest and definition.
    pub fn for_pilot(&self, pilot: &Pilot) -> Self {
        let (docker, daemon, way) = (self.docker.clone(), self.daemon.clone(), self.way.clone());
        let (generation, described) = (self.generation.clone(), self.described.clone());
        let (pilot, lines) = (pilot.clone(), Arc::clone(&self.lines));
        Self { pilot, docker, daemon, way, generation, described, lines }
    }

    /// The same for another daemon.
    pub fn through(&self, way: &Way) -> Self {
        Self { way: way.clone(), ..self.for_pilot(&self.pilot) }
    }

    /// What Compose 2 makes of the files in `dir`: everything in its long form.
    pub fn config_of(&self, dir: &Path, deadline: Deadline) -> Result<Value> {
        if let Generation::One(_) = self.generation(deadline)? {
            let what = "Compose 1 does not say everything that a Swarm needs to know of a stack";
            return Err(fail(Exit::Usage, what, "install Compose 2 (docker compose)"));
        }
        let printed = self.compose(dir, deadline)?.args(["config", "--format", "json"]);
        let printed = printed.run(deadline).map_err(classify)?;
        serde_json::from_str(&unescaped(&printed)).context("cannot parse the output of docker compose config")
    }

    /// A container that was paused counts as unhealthy until its next probe, and Compose starts nothing that depends on
    /// it. If there is one, waits for that probe, and says that there was one.
    fn is_judged_again(&self, deadline: Deadline) -> bool {
        let mut asked = 0;
        let judged = deadline.within(NEXT_PROBE).poll(Duration::from_millis(500), || {
            asked += 1;
            match self.inspected(deadline) {
                Ok(all) if all.iter().any(was_paused) => Continue(()),
                Ok(_) => Break(true),
                Err(_) => Break(false),
            }
        });
        judged == Ok(true) && asked > 1
    }

    /// Ids of the containers of these services.
    fn handles(&self, services: &[String], deadline: Deadline) -> Result<Vec<String>> {
        Ok(handles(&self.services(deadline)?, services))
    }

    /// Ids of the containers of a service. An error if it has none.
    fn existing(&self, service: &str, deadline: Deadline) -> Result<Vec<String>> {
        let found = self.handles(&[service.to_owned()], deadline)?;
        ensure!(!found.is_empty(), "{service} has no container in project {}", self.pilot.project);
        Ok(found)
    }

    /// Ids of all containers of the project, also one-off ones.
    fn every_container(&self, deadline: Deadline) -> Result<Vec<String>> {
        let found =
            self.docker(&["ps", "-a", "--no-trunc", "--quiet", "--filter", &self.label()], deadline)?;
        Ok(found.lines().map(str::to_owned).collect())
    }
}
