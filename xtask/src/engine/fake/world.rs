//! Tests: what exists in the fake world: images, volumes, services, and the gate in the gateway's volume. It
//! counts the operations, and makes one fail, or interrupts the run, when a test asks for it.

use crate::stack::names::VERSION;
use crate::stack::shelf::Kept;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Services by name.
    pub services: BTreeMap<String, Started>,
    /// Sessions that were cancelled.
    pub cancelled: BTreeSet<String>,
    /// How often the gate was opened while a service had a defect.
    pub let_in_to_bad: usize,
    /// The names of the operations, in order.
    pub done: Vec<&'static str>,
    /// The number of the operation that fails (counted from 1).
    pub fail_at: Option<usize>,
    /// The run is interrupted before the operation with this number.
    pub kill_at: Option<usize>,
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
        let mut things = self.things();
        things.done.clear();
        things.let_in_to_bad = 0;
        (things.fail_at, things.kill_at) = (fail_at, kill_at);
        things.counted = Some(std::thread::current().id());
    }

    /// One operation. Returns an error if it has to fail; panics if the run is interrupted here.
    pub fn act(&self, name: &'static str) -> Result<MutexGuard<'_, Things>> {
        let mut things = self.things();
        if things.counted == Some(std::thread::current().id()) {
            things.done.push(name);
            let number = things.done.len();
            if let Some((_, act)) = things.meanwhile.take_if(|(at, _)| *at == number) {
                act(&mut things);
            }
            if things.kill_at == Some(number) {
                drop(things);
                std::panic::resume_unwind(Box::new(Killed));
            }
            if things.fail_at == Some(number) {
                anyhow::bail!("{name} fails, as the test wants it");
            }
        }
        Ok(things)
    }
}
