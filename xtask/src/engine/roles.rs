//! What an engine does, as five small roles: a caller asks only for those that it needs. They use the words
//! stack and data, not containers, so that a third engine (a swarm) is possible. An engine decides nothing.
//! `compose`, `process` and `fake` implement the roles.

use crate::base::deadline::Deadline;
use crate::base::files::Freed;
use crate::base::http::Client;
use crate::base::observed::Observed;
use crate::engine::helper::Helper;
use crate::release::description::{Image, Release};
use crate::stack::definition::{Definition, Resolved};
use crate::stack::endpoint::Endpoint;
use crate::stack::envfile::EnvFile;
use crate::stack::model::{Instance, Node, Service};
use crate::stack::pilot::Pilot;
use crate::stack::ports;
use crate::stack::shelf::Shelf;
use anyhow::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Which engine; the word in `--engine` and in `release.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Docker Compose, 1 or 2.
    Compose,
    /// Local processes, no Docker.
    Process,
    /// Docker Swarm.
    Swarm,
}

impl Kind {
    /// The engine with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Compose, Self::Process, Self::Swarm].into_iter().find(|kind| kind.as_str() == name)
    }

    /// The name in `--engine` and in `release.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compose => "compose",
            Self::Process => "process",
            Self::Swarm => "swarm",
        }
    }
}

/// How much of a project is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The services and the network.
    Services,
    /// Also the stored data.
    Data,
    /// Also the images.
    Everything,
}

/// The end of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Its lines.
    pub bytes: Vec<u8>,
    /// Are there older lines, which were left out?
    pub is_cut: bool,
}

/// What one running service uses, as the engine reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The container, or the service.
    pub name: String,
    /// Percent of one core.
    pub cpu: String,
    /// Memory in use, and its limit.
    pub memory: String,
    /// Processes or threads.
    pub processes: String,
}

/// The engine as part of the host.
#[derive(Clone, Debug, Serialize)]
pub struct EngineHost {
    /// Its version.
    pub version: String,
    /// The folder for images and volumes; unknown if this host does not see it.
    pub root: Observed<PathBuf>,
    /// The difference between its clock and ours; none if it does not report the time.
    pub skew: Option<Duration>,
    /// How many containers run, of all projects.
    pub running: Option<u64>,
    /// What it uses on disk, one line each, as the engine reports it.
    pub used: Observed<Vec<String>>,
}

/// Something that uses stored data: a container, or a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// How the engine finds it.
    pub handle: String,
    /// Its name, for people.
    pub name: String,
    /// Its service; none if it does not belong to the project.
    pub service: Option<String>,
    /// What it does.
    pub state: Use,
    /// When it was started, in the words of the engine.
    pub started: String,
}

/// What a user of stored data does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It runs, and may write.
    Runs,
    /// It is paused.
    Paused,
    /// It has ended, and the engine starts it again in a moment.
    Restarts,
}

/// What to build images from.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// The static binary.
    pub binary: &'a Path,
    /// The version that `healthz` reports; also the tag of the images.
    pub label: &'a str,
    /// The fault for a drill; otherwise empty.
    pub fault: &'a str,
}

/// Runs the services of a stack.
pub trait Runtime: Sync {
    /// Which engine it is.
    fn kind(&self) -> Kind;

    /// With versions, for people.
    fn describe(&self, deadline: Deadline) -> String;

    /// The same engine for a stack by another manifest and definition.
    fn for_stack(&self, pilot: &Pilot) -> Result<Box<dyn Engine>>;

    /// What the stack with the files in `dir` is. The names of the files are those of the stack. `is_file` says whether a
    /// path, relative to the folder of the stack, is a file. Reads only files.
    fn resolve(&self, dir: &Path, is_file: &dyn Fn(&str) -> bool, deadline: Deadline) -> Result<Resolved>;

    /// The services as they are now. Read-only.
    fn services(&self, deadline: Deadline) -> Result<BTreeMap<String, Service>>;

    /// A client for a service of the stack, whose requests take `limit` at most.
    fn reach(&self, endpoint: &Endpoint, limit: Duration) -> Client {
        Client::new(endpoint.port, self.project(), endpoint.pass.clone(), limit)
    }

    /// A client for each instance of a service that runs, by its port: what is asked of a service with several must hold
    /// for each of them. `anew`: which ones run is asked again, because more than a look depends on it.
    fn reach_each(&self, endpoint: &Endpoint, anew: bool, limit: Duration) -> Result<Vec<Client>> {
        let _ = anew;
        Ok(vec![self.reach(endpoint, limit)])
    }

    /// The name of the machine that the engine is on, if that is not this one. Then what is seen of this machine, such as
    /// its memory and its ports, says nothing about the stack.
    fn elsewhere(&self) -> Option<String> {
        None
    }

    /// Where a port is reached from here that is published at this address of the engine's machine; where the engine has
    /// several machines, one address for each instance.
    fn reached(&self, published: SocketAddr) -> Result<Vec<SocketAddr>> {
        Ok(vec![ports::here(published)])
    }

    /// Where a port is published, in words: an address if there is one that can be opened from here.
    fn shown(&self, port: u16) -> String {
        format!("127.0.0.1:{port}")
    }

    /// Who uses a port of the engine's machine, as far as it can be found out; nothing if it is free as far as is known.
    fn taken_by(&self, port: u16, _: Deadline) -> Result<Option<String>> {
        Ok(ports::owner_of(port))
    }

    /// The name of the stack's project.
    fn project(&self) -> &str;

    /// An error if this engine would read an env file in another way than `EnvFile` does.
    fn can_read(&self, _: &EnvFile, _: Deadline) -> Result<()> {
        Ok(())
    }

    /// A machine of the engine that does not answer although the engine counts on it: what is said to run there may not. None
    /// where there is one machine alone.
    fn lost(&self, _: Deadline) -> Option<String> {
        None
    }

    /// What may still serve the public and cannot be asked: what was started on a machine that is not reached.
    fn beyond_reach(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// The machines that were left out when the stack was last brought to a release, and why.
    fn left_out(&self) -> Vec<String> {
        Vec::new()
    }

    /// Waits until the machines of the engine agree on what runs: every instance is let in, and found by its name. The error
    /// says what is missing; what comes back is missing too, and does no harm.
    fn agreed(&self, _: Deadline) -> Result<Option<String>> {
        Ok(None)
    }

    /// Lets time pass between two looks at what runs. Returns how much it was.
    fn pass(&self, time: Duration) -> Duration {
        let begun = Instant::now();
        std::thread::sleep(time);
        begun.elapsed()
    }

    /// Brings the stack to a release whose files are in `dir`. Services that are already right are left
    /// alone, except those in `force`. Those in `held_back` are made ready and not started. Does not wait until
    /// old services have stopped or new ones are healthy.
    fn apply(
        &self,
        release: &Release,
        dir: &Path,
        force: &[String],
        held_back: &[String],
        deadline: Deadline,
    ) -> Result<()>;

    /// Runs the image of a service once, with its volume and these arguments.
    fn run_once(
        &self,
        release: &Release,
        dir: &Path,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<String>;

    /// The same on each machine of the engine where the service may start and does not run now, if it has run there.
    /// Nothing to do where there is only one machine, and then false.
    fn run_where_none(&self, _: &Release, _: &Path, _: &str, _: &[&str], _: Deadline) -> Result<bool> {
        Ok(false)
    }

    /// Stops one service at once, and keeps what is left of it for evidence.
    fn stop(&self, service: &str, deadline: Deadline) -> Result<()>;

    /// Starts services that were made ready or stopped. It is an error if one is not there.
    fn start(&self, services: &[String], deadline: Deadline) -> Result<()>;

    /// Stops services, and keeps them down: not even a restart of the engine starts them. One that is not
    /// there is passed over.
    fn keep_down(&self, services: &[String], deadline: Deadline) -> Result<()>;

    /// Sets when the engine starts these services again, in the words of a compose file.
    fn restart_as(&self, _: &BTreeMap<String, String>, _: Deadline) -> Result<()> {
        Ok(())
    }

    /// Does something take a connection at this address of the engine's machine? An error if that is not known.
    fn answers_at(&self, address: SocketAddr, limit: Duration) -> Result<bool> {
        ports::connects(ports::here(address), limit)
    }

    /// Runs a program in a running instance, with these variables too. Returns its exit code and what it
    /// printed. An error if the program could not be run.
    fn exec(
        &self,
        instance: &Instance,
        words: &[String],
        env: &[(&str, &str)],
        deadline: Deadline,
    ) -> Result<(i32, String)>;

    /// Removes services; their data stays.
    fn remove(&self, services: &[String], deadline: Deadline) -> Result<()>;

    /// Starts services besides the pilot's own (prometheus, grafana) from the files in `dir`.
    fn add(&self, dir: &Path, services: &[String], deadline: Deadline) -> Result<()>;

    /// Removes the project, up to this level.
    fn down(&self, extent: Extent, deadline: Deadline) -> Result<()>;

    /// The names of everything that the project has on this host, except images.
    fn resources(&self, deadline: Deadline) -> Result<Vec<String>>;
}

/// Keeps images, by their content ids.
pub trait Images: Sync {
    /// The content ids of the images that exist.
    fn images(&self, deadline: Deadline) -> Result<Vec<String>>;

    /// Builds an image with the binary for each service.
    fn build(&self, build: &Build<'_>, deadline: Deadline) -> Result<BTreeMap<String, Image>>;

    /// The content id of the image with this name. An error (exit 2) if there is none.
    fn named(&self, name: &str, deadline: Deadline) -> Result<String>;

    /// The images of the services that always start, but for those that `build` makes. The files of the stack
    /// are in `dir`. Compose builds what it can build; an image that is only named, and is not there, is
    /// pulled. With a tag, what Compose can build is not built: the existing images with that tag are meant.
    fn provide(
        &self,
        definition: &Definition,
        dir: &Path,
        tag: Option<&str>,
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Image>>;

    /// The existing images with this tag, by service.
    fn tagged(&self, tag: &str, deadline: Deadline) -> Result<BTreeMap<String, Image>>;

    /// Gives images this tag, as `build` does.
    fn tag(&self, images: &BTreeMap<String, Image>, tag: &str, deadline: Deadline) -> Result<()>;

    /// Moves the tags that this tool gave to images that it built, so that plain `docker compose up` starts
    /// this release. Tags of other images are never moved.
    fn retag(&self, release: &Release, deadline: Deadline) -> Result<()>;

    /// The size of an image, in bytes; about as many are saved and loaded.
    fn size(&self, image: &Image, deadline: Deadline) -> Result<u64>;

    /// Saves an image: `take` reads its stream.
    fn save(
        &self,
        image: &Image,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()>;

    /// Loads an image from its stream. If that cannot be read to its end, the engine is as before. It is an error if
    /// the engine then does not have the image with this id.
    fn load(&self, image: &Image, from: &mut dyn Read, deadline: Deadline) -> Result<()>;

    /// Brings images to every machine of the engine that may need them. Nothing to do where there is only one. Returns why
    /// the registry of the stack was not used, if it has one.
    fn bring(&self, _: &[Image], _: Deadline) -> Result<Option<String>> {
        Ok(None)
    }

    /// An error if so few machines have these images that the loss of one would be the loss of the release.
    fn can_lose_one(&self, _: &[Image], _: Deadline) -> Result<()> {
        Ok(())
    }

    /// How many images are saved or loaded at a time.
    fn at_a_time(&self) -> usize {
        4
    }

    /// Removes the project's own resources that do not run and that no image to keep needs.
    fn forget(&self, keep: &[String], deadline: Deadline) -> Result<Vec<Freed>>;
}

/// Keeps the stored data of services.
pub trait Data: Sync {
    /// Services whose stored data exists. Data that belongs to no service has its own name.
    fn stored(&self, deadline: Deadline) -> Result<BTreeSet<String>>;

    /// How many bytes this data has; none if the engine does not say.
    fn bytes(&self, data: &str, deadline: Deadline) -> Result<Option<u64>>;

    /// What uses the data of a service at this moment, also what does not belong to the project.
    fn users(&self, service: &str, deadline: Deadline) -> Result<Vec<User>>;

    /// Pauses users of data. After an error, some of them may be paused.
    fn pause(&self, handles: &[String], deadline: Deadline) -> Result<()>;

    /// Undoes it. What is not paused, or has ended, is passed over.
    fn unpause(&self, handles: &[String], deadline: Deadline) -> Result<()>;

    /// Starts the process that undoes the pause of this record if this one ends, or if the pause outlasts its limit.
    fn helper(&self, record: &Path, limit: Duration) -> Result<Option<Helper>> {
        Helper::start(record, limit).map(Some)
    }

    /// Writes the data of a service as a tar archive, as it comes. The archive is of one moment only if all users of
    /// the data are paused.
    fn snapshot(&self, service: &str, into: &mut dyn Write, deadline: Deadline) -> Result<()>;

    /// Restores the data of a service from a tar archive. The service must have no data. The files of the
    /// release are in `dir`.
    fn restore(
        &self,
        release: &Release,
        dir: &Path,
        service: &str,
        from: &mut dyn Read,
        deadline: Deadline,
    ) -> Result<()>;

    /// Runs a program in a running instance, and writes what it prints as it comes. An error if it fails.
    fn dump(
        &self,
        instance: &Instance,
        words: &[String],
        into: &mut dyn Write,
        deadline: Deadline,
    ) -> Result<()>;

    /// Runs a program in a running instance, which reads `from` to its end. An error if it fails.
    fn feed(
        &self,
        instance: &Instance,
        words: &[String],
        from: &mut dyn Read,
        deadline: Deadline,
    ) -> Result<()>;

    /// The name of the external volume that has the data of a service; none if the data is the stack's own. External
    /// data is never removed, so it cannot be restored either.
    fn external(&self, _service: &str) -> Option<String> {
        None
    }

    /// Removes a service and its data.
    fn remove_data(&self, service: &str, deadline: Deadline) -> Result<()>;
}

/// Reports on what runs. Read-only.
pub trait Inspect: Sync {
    /// The last `lines` log lines of an instance.
    fn logs(&self, instance: &Instance, lines: usize, deadline: Deadline) -> Result<String>;

    /// The newest lines of its log, `most` bytes at most.
    fn newest_log(&self, instance: &Instance, most: usize, deadline: Deadline) -> Result<Log>;

    /// What the running services use.
    fn usage(&self, deadline: Deadline) -> Result<Vec<Usage>>;

    /// The networks and volumes of the project, by name, as the engine reports them.
    fn networks_and_volumes(&self, deadline: Deadline) -> Result<BTreeMap<String, String>>;

    /// The machines of the engine, with how many of these images each has; none if the engine is on one machine.
    fn nodes(&self, _: &BTreeSet<String>, _: Deadline) -> Result<Vec<Node>> {
        Ok(Vec::new())
    }

    /// Everything in this stack that cannot work here, each with what to do about it; none if it can be deployed.
    /// Changes nothing of the stack.
    fn refusals(&self, _: &Definition, _: &BTreeSet<String>, _: Deadline) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// What is different here from what the files of the stack say, and works: told before it is deployed.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// The engine as a part of the host.
    fn host(&self, deadline: Deadline) -> Result<EngineHost>;
}

/// Keeps records for every client of the engine.
pub trait Ledger: Sync {
    /// Where it keeps them; none if the state folder is all there is.
    fn shelf(&self) -> Option<Box<dyn Shelf>> {
        None
    }
}

/// All five roles. Code that needs only one or two asks only for those.
pub trait Engine: Runtime + Images + Data + Inspect + Ledger {}

impl<T: Runtime + Images + Data + Inspect + Ledger> Engine for T {}
