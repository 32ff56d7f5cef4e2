//! What is there: images, volumes, services, and the gate in the gateway's volume. It counts what is done to it, and
//! fails or cuts a run off where a test says so.

use crate::stack::contract::env::VERSION;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// What is wrong with the services of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Streams are answered with 500.
    Errors,
    /// The same, but for the public alone, and only once the gate is open.
    FailsWhenOpen,
    /// The gateway says that it is closed, and lets everybody in.
    LyingGate,
}

/// A service as it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its image.
    pub image: String,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Where it listens.
    pub port: u16,
    /// Does it run?
    pub runs: bool,
}

/// What somebody else does before one operation of a run.
pub type Meanwhile = (usize, Box<dyn FnOnce(&mut Things) + Send>);

/// Everything that there is.
#[derive(Default)]
pub struct Things {
    /// Images by id, with the version that each says that it is.
    pub images: BTreeMap<String, String>,
    /// Images that are not as they should be.
    pub defects: BTreeMap<String, Defect>,
    /// Image ids by tag.
    pub tags: BTreeMap<String, String>,
    /// Stored data by service.
    pub volumes: BTreeMap<String, String>,
    /// Why the gate is closed, in the gateway's volume; none: it is open.
    pub gate: Option<String>,
    /// Services by name.
    pub services: BTreeMap<String, Started>,
    /// Sessions that were cancelled.
    pub cancelled: BTreeSet<String>,
    /// Times that the gate was opened on services of which one is not as it should be.
    pub let_in_to_bad: usize,
    /// Names of what was done, in order.
    pub done: Vec<&'static str>,
    /// Fails the operation of this number (counted from 1).
    pub fail_at: Option<usize>,
    /// Cuts the run off before the operation of this number.
    pub kill_at: Option<usize>,
    /// What somebody else does before the operation of this number.
    pub meanwhile: Option<Meanwhile>,
    /// The thread whose operations are counted: others are not in the same order each time.
    counted: Option<ThreadId>,
}

impl Things {
    /// The version of what runs as this service.
    pub fn version(&self, service: &str) -> Option<&String> {
        self.services.get(service).and_then(|started| self.images.get(&started.image))
    }

    /// The defect of what runs as this service.
    pub fn defect(&self, service: &str) -> Option<Defect> {
        self.services.get(service).and_then(|started| self.defects.get(&started.image)).copied()
    }

    /// Is every service as it should be?
    pub fn is_well(&self) -> bool {
        self.services.keys().all(|service| self.defect(service).is_none())
            && self.volumes.values().all(|data| data != CORRUPT)
    }

    /// Is the public let in: does the gateway run, with an open gate?
    pub fn is_open(&self) -> bool {
        self.services.get("gateway").is_some_and(|gateway| gateway.runs) && self.gate.is_none()
    }

    /// Takes an image in that says that it is this version.
    pub fn add_image(&mut self, id: &str, version: &str) {
        self.images.insert(id.to_owned(), version.to_owned());
    }

    /// Environment that is built into an image.
    pub fn built_in(&self, image: &str) -> BTreeMap<String, String> {
        let version = self.images.get(image).cloned().unwrap_or_default();
        BTreeMap::from([(VERSION.to_owned(), version)])
    }
}

/// Stored data that its service cannot use.
pub const CORRUPT: &str = "corrupt";

/// A run that was cut off: what a panic carries that nobody is to report.
pub struct Killed;

/// The things, shared by all engines of one test.
#[derive(Clone, Default)]
pub struct World(Arc<Mutex<Things>>);

impl World {
    /// The things, to look at or to change by hand.
    pub fn things(&self) -> MutexGuard<'_, Things> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the operations of this thread are counted from 1, and one of them may fail or cut the run off.
    pub fn begin(&self, fail_at: Option<usize>, kill_at: Option<usize>) {
        let mut things = self.things();
        things.done.clear();
        things.let_in_to_bad = 0;
        (things.fail_at, things.kill_at) = (fail_at, kill_at);
        things.counted = Some(std::thread::current().id());
    }

    /// One operation. An error where it is to fail; it does not come back where the run is cut off.
    pub fn act(&self, name: &'static str) -> anyhow::Result<MutexGuard<'_, Things>> {
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
