//! Tests: what exists in the fake world: images, volumes, services, and the gate in the gateway's volume. It
//! counts the operations, and makes one fail, or interrupts the run, when a test asks for it.

use crate::base::fake::wait;
use crate::stack::names::VERSION;
use crate::stack::shelf::Kept;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

/// What is wrong with the services of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Streams are answered with 500.
    Errors,
    /// Streams of the public are answered with 500, but only while the gate is open.
    FailsWhenOpen,
    /// The gateway says that its gate is closed, but lets everybody in.
    LyingGate,
    /// It says that it is not healthy.
    Unhealthy,
}

/// A service as it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its image.
    pub image: String,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its port.
    pub port: u16,
    /// Does it run?
    pub runs: bool,
    /// Its restart policy: `ALWAYS`, or `no` while it is kept down.
    pub restart: &'static str,
    /// How often the engine has restarted it.
    pub restarts: u64,
}

/// The restart policy of every service in its release.
pub const ALWAYS: &str = "always";

/// What another process does before one operation of a run.
pub type Meanwhile = (usize, Box<dyn FnOnce(&mut Things) + Send>);

/// The records that the engine keeps for every client.
#[derive(Clone, Default)]
pub struct Records {
    /// The records.
    pub all: Vec<Kept>,
    /// Archives of files by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// How old every record is.
    pub age: Duration,
    /// How many were ever put: each has a handle of its own.
    pub put: u64,
}

/// What happens while a watch goes on, after so many looks.
pub type InTime = Box<dyn FnOnce(&mut Things) + Send>;

/// How an operation goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and has done nothing.
    Fails,
    /// The same after a long time.
    Hangs,
    /// It is done, and fails all the same.
    FailsLate,
    /// It does nothing, and says that it is done.
    Lies,
    /// The process dies before it.
    Kills,
}

/// Which operations go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Those with these numbers (counted from 1), of the thread that is counted.
    Numbers(usize, usize),
    /// Those with this name, in every thread.
    Named(&'static str),
}

/// How long what hangs takes.
const LONG: Duration = Duration::from_secs(20);

/// What a lie leaves as it was.
struct Before {
    images: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    volumes: BTreeMap<String, String>,
    gate: Option<String>,
    paused: BTreeSet<String>,
    services: BTreeMap<String, Started>,
    records: Option<Records>,
    let_in: (usize, usize),
}

/// One operation under way.
pub struct Acting<'a> {
    things: MutexGuard<'a, Things>,
    before: Option<Box<Before>>,
    late: Option<&'static str>,
}

impl Acting<'_> {
    /// It is over: an error if it has to fail although it is done.
    pub fn over(self) -> Result<()> {
        self.late.map_or(Ok(()), |name| bail!("{name} fails late, as the test wants it"))
    }
}

impl Deref for Acting<'_> {
    type Target = Things;

    fn deref(&self) -> &Things {
        &self.things
    }
}

impl DerefMut for Acting<'_> {
    fn deref_mut(&mut self) -> &mut Things {
        &mut self.things
    }
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.things.put_back(*before);
        }
    }
}

/// Everything that exists.
#[derive(Default)]
pub struct Things {
    /// Images by id, with the version that each reports.
    pub images: BTreeMap<String, String>,
    /// Images with a defect.
    pub defects: BTreeMap<String, Defect>,
    /// What a service with this image makes of its stored data when it starts.
    pub migrations: BTreeMap<String, String>,
    /// Image ids by tag.
    pub tags: BTreeMap<String, String>,
    /// Stored data by service.
    pub volumes: BTreeMap<String, String>,
    /// Why the gate is closed, in the gateway's volume; none if it is open.
    pub gate: Option<String>,
    /// The services that let the public in, if the gate stops them; empty for a gate of another kind.
    pub edge: BTreeSet<String>,
    /// The services that are paused: they run, and do not answer.
    pub paused: BTreeSet<String>,
    /// What may serve the public on a machine that is not reached.
    pub beyond_reach: Vec<String>,
    /// Services by name.
    pub services: BTreeMap<String, Started>,
    /// Sessions that were cancelled.
    pub cancelled: BTreeSet<String>,
    /// How often the gate was opened while a service had a defect.
    pub let_in_to_bad: usize,
    /// The names of the operations, in order.
    pub done: Vec<&'static str>,
    /// What goes wrong, and when.
    pub faults: Vec<(When, Fault)>,
    /// The process of the run was killed: nothing of it acts any more.
    pub is_dead: bool,
    /// How often something was let in that any check of the tool could have seen: a service had a defect that shows
    /// behind a closed gate, or did not run.
    pub let_in_unseen: usize,
    /// How often these images must still be asked for their health until they are well.
    pub starting: BTreeMap<String, usize>,
    /// The records of this stack, for every client; none if the engine keeps none.
    pub records: Option<Records>,
    /// What another process does before the operation with this number.
    pub meanwhile: Option<Meanwhile>,
    /// The engine does not say what runs.
    pub is_silent: bool,
    /// How often a watch has let time pass.
    pub passed: usize,
    /// What happens when time has passed so often.
    pub in_time: BTreeMap<usize, InTime>,
    /// The thread whose operations are counted: the order of the other threads varies.
    counted: Option<ThreadId>,
}

impl Things {
    fn before(&self) -> Box<Before> {
        Box::new(Before {
            images: self.images.clone(),
            tags: self.tags.clone(),
            volumes: self.volumes.clone(),
            gate: self.gate.clone(),
            paused: self.paused.clone(),
            services: self.services.clone(),
            records: self.records.clone(),
            let_in: (self.let_in_to_bad, self.let_in_unseen),
        })
    }

    fn put_back(&mut self, before: Before) {
        let Before { images, tags, volumes, gate, paused, services, records, let_in } = before;
        (self.images, self.tags, self.volumes, self.gate) = (images, tags, volumes, gate);
        (self.paused, self.services, self.records) = (paused, services, records);
        (self.let_in_to_bad, self.let_in_unseen) = let_in;
    }

    /// What goes wrong with the operation that has this number, if it is counted, and this name.
    fn fault(&self, number: Option<usize>, name: &str) -> Option<Fault> {
        let is_meant = |when: &When| match *when {
            When::Numbers(first, last) => number.is_some_and(|number| (first..=last).contains(&number)),
            When::Named(other) => name == other,
        };
        self.faults.iter().find(|(when, _)| is_meant(when)).map(|(_, fault)| *fault)
    }

    /// Time passes.
    pub fn pass(&mut self) {
        self.passed += 1;
        if let Some(happens) = self.in_time.remove(&self.passed) {
            happens(self);
        }
    }

    /// The version of this service that runs.
    pub fn version(&self, service: &str) -> Option<&String> {
        self.services.get(service).and_then(|started| self.images.get(&started.image))
    }

    /// The defect of this service that runs.
    pub fn defect(&self, service: &str) -> Option<Defect> {
        self.services.get(service).and_then(|started| self.defects.get(&started.image)).copied()
    }

    /// Does this service still start? Whoever asks it often enough sees that it has started.
    pub fn is_starting(&mut self, service: &str) -> bool {
        let Some(image) = self.services.get(service).map(|started| &started.image) else { return false };
        let Some(left) = self.starting.get_mut(image).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }

    /// Are all services free of a defect, and is no stored data corrupt?
    pub fn is_well(&self) -> bool {
        self.services.keys().all(|service| self.defect(service).is_none())
            && self.volumes.values().all(|data| data != CORRUPT)
    }

    /// Is the public let in: does the gateway run with an open gate, or does any service run that a gate has to
    /// stop?
    pub fn is_open(&self) -> bool {
        if !self.edge.is_empty() {
            return self.edge.iter().any(|name| self.services.get(name).is_some_and(|one| one.runs));
        }
        self.services.get("gateway").is_some_and(|gateway| gateway.runs) && self.gate.is_none()
    }

    /// Is there something behind the gate that a check of the tool sees before it is opened?
    pub fn is_seen_bad(&self) -> bool {
        // Behind a gate that stops its services, nobody sends what the public would.
        let is_bad = |name: &String| match self.defect(name) {
            Some(Defect::Unhealthy) => true,
            Some(Defect::Errors | Defect::LyingGate) => self.edge.is_empty(),
            Some(Defect::FailsWhenOpen) | None => false,
        };
        self.services
            .iter()
            .any(|(name, started)| !self.edge.contains(name) && (!started.runs || is_bad(name)))
            || self.volumes.iter().any(|(name, data)| data == CORRUPT && !self.edge.contains(name))
    }

    /// Removes every service.
    pub fn end_all(&mut self) {
        self.services.clear();
        self.paused.clear();
    }

    /// Counts if a service that lets the public in starts in front of one that is not well.
    pub fn lets_in(&mut self, service: &str) {
        let behind = |name: &&String| !self.edge.contains(*name);
        let bad = self.services.keys().filter(behind).any(|name| self.defect(name).is_some())
            || self.volumes.iter().any(|(name, data)| behind(&name) && data == CORRUPT);
        if bad && self.edge.contains(service) {
            self.let_in_to_bad += 1;
        }
        if self.edge.contains(service) && self.is_seen_bad() {
            self.let_in_unseen += 1;
        }
    }

    /// Stops the services that let the public in, and keeps them down.
    pub fn keep_down(&mut self, services: &[String]) {
        for (_, started) in self.services.iter_mut().filter(|(name, _)| services.contains(name)) {
            (started.runs, started.restart) = (false, "no");
        }
        self.paused.retain(|name| !services.contains(name));
    }

    /// Opens the gate of a gateway, or closes it with this reason.
    pub fn set_gate(&mut self, reason: Option<String>) {
        let was_closed = self.gate.is_some();
        self.gate = reason;
        if was_closed && self.gate.is_none() && !self.is_well() {
            self.let_in_to_bad += 1;
        }
        if was_closed && self.gate.is_none() && self.is_seen_bad() {
            self.let_in_unseen += 1;
        }
    }

    /// What a database has stored that runs, for the program `wanted`.
    pub fn stored_by(&mut self, service: &str, words: &[String], wanted: &str) -> Result<&mut String> {
        ensure!(words == [wanted], "{words:?} is no program of {service}");
        let runs = self.services.get(service).is_some_and(|started| started.runs);
        ensure!(runs && !self.paused.contains(service), "{service} does not run");
        self.volumes.get_mut(service).with_context(|| format!("no data of {service}"))
    }

    /// Adds an image that reports this version.
    pub fn add_image(&mut self, id: &str, version: &str) {
        self.images.insert(id.to_owned(), version.to_owned());
    }

    /// The environment that is built into an image.
    pub fn built_in(&self, image: &str) -> BTreeMap<String, String> {
        let version = self.images.get(image).cloned().unwrap_or_default();
        BTreeMap::from([(VERSION.to_owned(), version)])
    }
}

/// Stored data that its service cannot use.
pub const CORRUPT: &str = "corrupt";

/// An interrupted run: the payload of a panic that must not be printed.
pub struct Killed;

/// The fake world, shared by all engines of one test.
#[derive(Clone, Default)]
pub struct World(Arc<Mutex<Things>>);

impl World {
    /// The contents, to read or to change in a test.
    pub fn things(&self) -> MutexGuard<'_, Things> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the operations of this thread from 1 again. One of them may fail, or the run is interrupted
    /// before it.
    pub fn begin(&self, fail_at: Option<usize>, kill_at: Option<usize>) {
        let fails = fail_at.map(|at| (When::Numbers(at, at), Fault::Fails));
        let kills = kill_at.map(|at| (When::Numbers(at, at), Fault::Kills));
        self.begin_with(fails.into_iter().chain(kills).collect());
    }

    /// The same with any faults.
    pub fn begin_with(&self, faults: Vec<(When, Fault)>) {
        let mut things = self.things();
        things.done.clear();
        (things.let_in_to_bad, things.let_in_unseen) = (0, 0);
        (things.faults, things.is_dead, things.meanwhile) = (faults, false, None);
        things.counted = Some(std::thread::current().id());
    }

    /// One operation. Returns an error if it has to fail; panics if the run is interrupted here.
    pub fn act(&self, name: &'static str) -> Result<Acting<'_>> {
        let mut things = self.things();
        ensure!(!things.is_dead, "the process was killed");
        let is_counted = things.counted == Some(std::thread::current().id());
        if is_counted {
            things.done.push(name);
            let number = things.done.len();
            if let Some((_, act)) = things.meanwhile.take_if(|(at, _)| *at == number) {
                act(&mut things);
            }
        }
        let number = is_counted.then_some(things.done.len());
        let mut acting = Acting { things, before: None, late: None };
        match acting.fault(number, name) {
            Some(Fault::Kills) if is_counted => {
                acting.is_dead = true;
                drop(acting);
                std::panic::resume_unwind(Box::new(Killed));
            }
            Some(Fault::Hangs) => {
                wait(LONG);
                bail!("{name} did not end in time, as the test wants it");
            }
            Some(Fault::Fails) => bail!("{name} fails, as the test wants it"),
            // Nothing looks at a policy once more after it was set.
            Some(Fault::Lies) if name == "restart policy" => bail!("{name} fails, as the test wants it"),
            Some(Fault::FailsLate) => acting.late = Some(name),
            Some(Fault::Lies) => acting.before = Some(acting.things.before()),
            Some(Fault::Kills) | None => {}
        }
        Ok(acting)
    }
}
