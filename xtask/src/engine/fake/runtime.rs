//! Tests: the engine on a fake world. It has all four roles.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Freed};
use crate::base::http::Client;
use crate::base::observed::Observed;
use crate::engine::fake::pilot::Answers;
use crate::engine::fake::world::{ALWAYS, Started, World};
use crate::engine::helper::Helper;
use crate::engine::roles::{
    Build, Data, Engine, EngineHost, Extent, Images, Inspect, Kind, Ledger, Log, Runtime, Usage, Use, User,
};
use crate::release::description::{Image, Release};
use crate::release::store::settings_in;
use crate::stack::definition::{Definition, Resolved};
use crate::stack::endpoint::Endpoint;
use crate::stack::model::{Instance, Service};
use crate::stack::pilot::Pilot;
use crate::stack::shelf::Shelf;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// An engine for one stack.
pub struct Fake {
    pilot: Pilot,
    world: World,
}

impl World {
    /// An engine on this world.
    pub fn engine(&self, pilot: &Pilot) -> Fake {
        Fake { pilot: pilot.clone(), world: self.clone() }
    }
}

impl Fake {
    fn wanted(&self, release: &Release, dir: &Path, service: &str) -> Result<Started> {
        let env = settings_in(dir, &self.pilot.layout)?;
        let image = release.images.get(service).with_context(|| format!("no image of {service}"))?.id.clone();
        let port = self.pilot.port(service, &env)?;
        let mut all = self.world.things().built_in(&image);
        all.extend(env.map());
        let port = port.context("no port")?;
        Ok(Started { image, env: all, port, runs: true, restart: ALWAYS, restarts: 0 })
    }
}

impl Runtime for Fake {
    fn kind(&self) -> Kind {
        Kind::Process
    }

    fn describe(&self, _: Deadline) -> String {
        "in memory".into()
    }

    fn for_stack(&self, pilot: &Pilot) -> Result<Box<dyn Engine>> {
        Ok(Box::new(self.world.engine(pilot)))
    }

    fn resolve(&self, dir: &Path, _: &dyn Fn(&str) -> bool, _: Deadline) -> Result<Resolved> {
        drop(self.world.act("definition")?);
        let settings = settings_in(dir, &self.pilot.layout)?;
        Ok(Resolved { definition: self.pilot.by_manifest(&settings)?, environment: None })
    }

    fn beyond_reach(&self) -> Result<Vec<String>> {
        Ok(self.world.things().beyond_reach.clone())
    }

    fn services(&self, _: Deadline) -> Result<BTreeMap<String, Service>> {
        let things = self.world.act("services")?;
        ensure!(!things.is_silent, "the engine does not answer");
        let instance = |(name, started): (&String, &Started)| {
            let instance = Instance {
                state: match (started.runs, things.paused.contains(name)) {
                    (true, true) => "paused",
                    (true, false) => "running",
                    (false, _) => "exited",
                }
                .into(),
                image: started.image.clone(),
                env: started.env.clone(),
                address: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, started.port))),
                node: None,
                health: None,
                settings: files::sha256_bytes(format!("{:?}", started.env).as_bytes()),
                state_dir: None,
                restarts: started.restarts,
                restart: Some(started.restart.into()),
                handle: name.clone(),
                inspect: String::new(),
            };
            (name.clone(), Service(vec![instance]))
        };
        Ok(things.services.iter().map(instance).collect())
    }

    fn project(&self) -> &str {
        &self.pilot.project
    }

    fn reach(&self, endpoint: &Endpoint, _: Duration) -> Client {
        let wire =
            Answers { world: self.world.clone(), port: endpoint.port, project: self.pilot.project.clone() };
        Client::over(Arc::new(wire), &self.pilot.project, endpoint.pass.clone())
    }

    /// Nobody waits in memory.
    fn pass(&self, time: Duration) -> Duration {
        self.world.things().pass();
        time
    }

    /// As Compose: what is right already is only started, and keeps its restart policy.
    fn apply(
        &self,
        release: &Release,
        dir: &Path,
        force: &[String],
        held_back: &[String],
        _: Deadline,
    ) -> Result<()> {
        for service in self.pilot.services() {
            let starts = !held_back.iter().any(|held| held == service);
            let mut wanted = Started { runs: starts, ..self.wanted(release, dir, service)? };
            let mut things = self.world.act("start")?;
            let forced = force.iter().any(|f| f == service);
            let now = things.services.get(service).filter(|_| !forced);
            match now {
                Some(now)
                    if (&now.image, &now.env, now.port) == (&wanted.image, &wanted.env, wanted.port) =>
                {
                    (wanted.runs, wanted.restart) = (starts || now.runs, now.restart);
                    wanted.restarts = now.restarts;
                }
                _ => {
                    ensure!(things.images.contains_key(&wanted.image), "no such image: {}", wanted.image);
                    // A new container is not paused.
                    things.paused.remove(service);
                }
            }
            things.volumes.entry(service.to_owned()).or_insert_with(|| "new".into());
            if let Some(newer) = things.migrations.get(&wanted.image).filter(|_| starts).cloned() {
                things.volumes.insert(service.to_owned(), newer);
            }
            things.services.insert(service.to_owned(), wanted);
            if starts {
                things.lets_in(service);
            }
            things.over()?;
        }
        Ok(())
    }

    fn run_once(&self, _: &Release, _: &Path, service: &str, words: &[&str], _: Deadline) -> Result<String> {
        let mut things = self.world.act("run once")?;
        let offline = self.pilot.manifest.gate.offline().context("this gate has no such program")?;
        let [first, second, reason] = words else { bail!("unexpected words: {words:?}") };
        ensure!([*first, *second, "${REASON}"] == *offline.run, "unexpected words: {words:?}");
        things.volumes.entry(service.to_owned()).or_insert_with(|| "new".into());
        things.gate = Some((*reason).to_owned());
        things.over()?;
        Ok(offline.prints.clone())
    }

    fn stop(&self, service: &str, _: Deadline) -> Result<()> {
        let mut things = self.world.act("stop")?;
        things.services.get_mut(service).with_context(|| format!("{service} is not there"))?.runs = false;
        things.over()
    }

    fn start(&self, services: &[String], _: Deadline) -> Result<()> {
        services.iter().try_for_each(|service| {
            let mut things = self.world.act("start again")?;
            things.services.get_mut(service).with_context(|| format!("{service} is not there"))?.runs = true;
            things.lets_in(service);
            things.over()
        })
    }

    fn keep_down(&self, services: &[String], _: Deadline) -> Result<()> {
        let mut things = self.world.act("keep down")?;
        things.keep_down(services);
        things.over()
    }

    fn restart_as(&self, policies: &BTreeMap<String, String>, _: Deadline) -> Result<()> {
        let mut things = self.world.act("restart policy")?;
        for (name, policy) in policies {
            ensure!(policy == ALWAYS, "the policy {policy} is not the one of the release");
            things.services.get_mut(name).with_context(|| format!("{name} is not there"))?.restart = ALWAYS;
        }
        things.over()
    }

    fn answers_at(&self, address: SocketAddr, _: Duration) -> Result<bool> {
        let things = self.world.act("connect")?;
        Ok(things.services.values().any(|started| started.runs && started.port == address.port()))
    }

    fn exec(
        &self,
        instance: &Instance,
        words: &[String],
        env: &[(&str, &str)],
        _: Deadline,
    ) -> Result<(i32, String)> {
        let mut things = self.world.act("exec")?;
        let runs = things.services.get(&instance.handle).is_some_and(|started| started.runs);
        ensure!(runs && instance.handle == self.pilot.gateway(), "{} does not run", instance.handle);
        let reason = env.iter().find(|(name, _)| *name == "REASON").map(|(_, value)| (*value).to_owned());
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["gate", "close"] => things.set_gate(reason),
            ["gate", "open"] => things.set_gate(None),
            ["gate", "closed"] => return Ok((i32::from(things.gate.is_none()), String::new())),
            _ => return Ok((2, format!("unexpected words: {words:?}"))),
        }
        things.over()?;
        Ok((0, String::new()))
    }

    fn remove(&self, services: &[String], _: Deadline) -> Result<()> {
        let mut things = self.world.act("remove")?;
        things.services.retain(|name, _| !services.contains(name));
        things.over()
    }

    fn add(&self, _: &Path, _: &[String], _: Deadline) -> Result<()> {
        bail!("a fake pilot has no other services")
    }

    fn down(&self, extent: Extent, _: Deadline) -> Result<()> {
        // Services start one by one: a run may be interrupted in between.
        let mut things = self.world.act("end")?;
        things.end_all();
        things.over()?;
        if extent != Extent::Services {
            let mut things = self.world.act("remove volumes")?;
            things.volumes.clear();
            things.gate = None;
            things.over()?;
        }
        Ok(())
    }

    fn resources(&self, _: Deadline) -> Result<Vec<String>> {
        let things = self.world.act("resources")?;
        Ok(things.services.keys().chain(things.volumes.keys()).cloned().collect())
    }
}

impl Images for Fake {
    fn images(&self, _: Deadline) -> Result<Vec<String>> {
        Ok(self.world.act("images")?.images.keys().cloned().collect())
    }

    fn build(&self, _: &Build<'_>, _: Deadline) -> Result<BTreeMap<String, Image>> {
        bail!("nothing is built in memory")
    }

    fn named(&self, name: &str, _: Deadline) -> Result<String> {
        Ok(name.to_owned())
    }

    fn provide(
        &self,
        _: &Definition,
        _: &Path,
        _: Option<&str>,
        _: Deadline,
    ) -> Result<BTreeMap<String, Image>> {
        Ok(BTreeMap::new())
    }

    fn tagged(&self, tag: &str, _: Deadline) -> Result<BTreeMap<String, Image>> {
        bail!("nothing has the tag {tag}")
    }

    fn tag(&self, _: &BTreeMap<String, Image>, _: &str, _: Deadline) -> Result<()> {
        self.world.act("tag").map(drop)
    }

    fn retag(&self, release: &Release, _: Deadline) -> Result<()> {
        let mut things = self.world.act("retag")?;
        let tags = release.images.values().map(|image| (image.tag.clone(), image.id.clone()));
        things.tags.extend(tags);
        things.over()
    }

    fn size(&self, _: &Image, _: Deadline) -> Result<u64> {
        self.world.act("size").map(|_| 0)
    }

    fn save(
        &self,
        image: &Image,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        _: Deadline,
    ) -> Result<()> {
        let version = self.world.act("save")?.images.get(&image.id).cloned().context("no such image")?;
        take(&mut version.as_bytes())
    }

    fn load(&self, image: &Image, from: &mut dyn Read, _: Deadline) -> Result<()> {
        let version = std::io::read_to_string(from)?;
        let mut things = self.world.act("load")?;
        things.add_image(&image.id, &version);
        things.over()
    }

    /// The operations of one thread are counted.
    fn at_a_time(&self) -> usize {
        1
    }

    fn forget(&self, _: &[String], _: Deadline) -> Result<Vec<Freed>> {
        self.world.act("forget").map(|_| Vec::new())
    }
}

impl Data for Fake {
    fn stored(&self, _: Deadline) -> Result<BTreeSet<String>> {
        Ok(self.world.act("stored")?.volumes.keys().cloned().collect())
    }

    fn bytes(&self, data: &str, _: Deadline) -> Result<Option<u64>> {
        Ok(self.world.act("bytes")?.volumes.get(data).map(|data| data.len() as u64))
    }

    fn users(&self, service: &str, _: Deadline) -> Result<Vec<User>> {
        let things = self.world.act("users")?;
        let user = |started: &Started| User {
            handle: service.to_owned(),
            name: service.to_owned(),
            service: Some(service.to_owned()),
            state: if things.paused.contains(service) { Use::Paused } else { Use::Runs },
            started: started.image.clone(),
        };
        Ok(things.services.get(service).filter(|started| started.runs).map(user).into_iter().collect())
    }

    fn pause(&self, handles: &[String], _: Deadline) -> Result<()> {
        handles.iter().try_for_each(|handle| {
            self.world.act("pause")?.paused.insert(handle.clone());
            // Docker may fail after it has paused a container.
            self.world.act("was paused").map(drop)
        })
    }

    fn unpause(&self, handles: &[String], _: Deadline) -> Result<()> {
        handles.iter().try_for_each(|handle| {
            let mut things = self.world.act("unpause")?;
            things.paused.remove(handle);
            things.over()
        })
    }

    /// There is no process that could be killed, so the next command must undo what is left.
    fn helper(&self, _: &Path, _: Duration) -> Result<Option<Helper>> {
        self.world.act("helper").map(|_| None)
    }

    fn snapshot(&self, service: &str, into: &mut dyn Write, _: Deadline) -> Result<()> {
        let things = self.world.act("snapshot")?;
        let data = things.volumes.get(service).with_context(|| format!("no data of {service}"))?;
        let runs = things.services.get(service).is_some_and(|started| started.runs);
        ensure!(!runs || things.paused.contains(service), "{service} runs while its data is copied");
        let mut tar = tar::Builder::new(into);
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, "data", data.as_bytes())?;
        Ok(tar.finish()?)
    }

    fn dump(&self, instance: &Instance, words: &[String], into: &mut dyn Write, _: Deadline) -> Result<()> {
        let mut things = self.world.act("dump")?;
        let data = things.stored_by(&instance.handle, words, "dump")?;
        Ok(into.write_all(data.as_bytes())?)
    }

    fn feed(&self, instance: &Instance, words: &[String], from: &mut dyn Read, _: Deadline) -> Result<()> {
        // It removes what is there before it reads, as `dropdb` does.
        let mut things = self.world.act("empty the database")?;
        things.stored_by(&instance.handle, words, "restore")?.clear();
        drop(things);
        let data = std::io::read_to_string(from)?;
        let mut things = self.world.act("fill the database")?;
        *things.stored_by(&instance.handle, words, "restore")? = data;
        things.over()
    }

    fn restore(&self, _: &Release, _: &Path, service: &str, from: &mut dyn Read, _: Deadline) -> Result<()> {
        let mut tar = tar::Archive::new(from);
        let mut entries = tar.entries()?;
        let entry = entries.next().context("an empty archive")??;
        let data = std::io::read_to_string(entry)?;
        let mut things = self.world.act("restore")?;
        things.volumes.insert(service.to_owned(), data);
        things.over()
    }

    fn remove_data(&self, service: &str, _: Deadline) -> Result<()> {
        self.world.act("remove the service")?.services.remove(service);
        let mut things = self.world.act("remove its data")?;
        things.volumes.remove(service);
        if service == self.pilot.gateway() {
            things.gate = None;
        }
        things.over()
    }
}

impl Inspect for Fake {
    fn newest_log(&self, instance: &Instance, _: usize, _: Deadline) -> Result<Log> {
        let bytes = format!("log of {}\n", instance.handle).into_bytes();
        self.world.act("newest log").map(|_| Log { bytes, is_cut: false })
    }

    fn logs(&self, instance: &Instance, _: usize, _: Deadline) -> Result<String> {
        self.world.act("logs").map(|_| format!("log of {}\n", instance.handle))
    }

    fn usage(&self, _: Deadline) -> Result<Vec<Usage>> {
        self.world.act("usage").map(|_| Vec::new())
    }

    fn networks_and_volumes(&self, _: Deadline) -> Result<BTreeMap<String, String>> {
        self.world.act("networks and volumes").map(|_| BTreeMap::new())
    }

    fn host(&self, _: Deadline) -> Result<EngineHost> {
        drop(self.world.act("host")?);
        let version = "in memory".to_owned();
        let root = Observed::Known(self.pilot.state.path().to_owned());
        Ok(EngineHost {
            version,
            root,
            skew: Some(Duration::ZERO),
            running: None,
            used: Observed::Known(Vec::new()),
        })
    }
}

impl Ledger for Fake {
    fn shelf(&self) -> Option<Box<dyn Shelf>> {
        self.world.shelf()
    }
}
