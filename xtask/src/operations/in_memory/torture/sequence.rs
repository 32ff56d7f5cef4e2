//! A sequence of commands, faults and events, made from a seed. The same seed gives the same sequence, and nothing in it
//! depends on what the commands come to, so any step can be left out.

use crate::base::random::Random;
use crate::engine::fake::world::{Defect, Fault};
use std::fmt;

/// The kinds of gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    Http,
    Exec,
    Stop,
}

/// The stack that a sequence begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    pub gate: GateKind,
    /// How many clients there are. Where there is one, the engine may keep no records.
    pub clients: usize,
    pub keeps_records: bool,
    /// Is what was opened watched?
    pub watches: bool,
    /// Are data dumped and snapshots taken before a deployment?
    pub snapshots: bool,
}

/// A new release, as it turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    Good,
    Bad(Defect),
    /// Well until so many looks of the watch, or after it.
    TurnsBad(usize),
    /// It is asked so often until it is well.
    Slow(usize),
    /// It changes the data when it starts, and then is well or not.
    Migrates(bool),
}

/// What somebody runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Up { quality: Quality, stay: bool },
    Rollback { to: Option<&'static str>, open: bool },
    WithData { to: Option<&'static str> },
    Reset { keep_data: bool },
    HoldOn,
    HoldOff,
    Guard,
    Pin(&'static str, bool),
    BackUp,
    Down,
}

/// What happens beside the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    ImagesArePruned,
    EverythingIsPruned,
    RecordsArePruned,
    DataIsDeleted(&'static str),
    DataIsCorrupted(&'static str),
    PublicStores(&'static str),
    FolderIsDeleted(usize),
    EnvFileIsEdited(usize),
    GateIsOpened,
    GateIsClosed,
    ServiceIsKilled(&'static str),
    ServiceIsRemoved(&'static str),
    ServiceIsUpdated(&'static str, Option<Defect>),
    ReleaseTurnsBad,
    ReleaseFileIsDamaged(usize),
    ClockIsSet(i64),
    /// A hold of another client, which also closes the gate.
    HoldIsPlaced,
    /// Another client takes the lock over.
    LockIsTaken,
}

/// What goes wrong while a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// This many operations from this one on.
    At(usize, usize, Fault),
    /// All operations with this name.
    Every(&'static str, Fault),
    /// Something happens before this operation.
    Meanwhile(usize, Event),
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A client runs a command. If the lock of one that was killed is still there, it has run out or not.
    Run {
        client: usize,
        command: Command,
        trouble: Option<Trouble>,
        lock_ran_out: bool,
    },
    Happens(Event),
}

/// A sequence, and the seed that it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    pub seed: u64,
    pub stack: Stack,
    pub steps: Vec<Step>,
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {:?}", self.seed, self.stack)?;
        self.steps.iter().enumerate().try_for_each(|(at, step)| writeln!(f, "  {}. {step:?}", at + 1))
    }
}

const SERVICES: [&str; 3] = ["engine", "gateway", "jobs"];

/// The operations that may go wrong for a whole command.
const OPERATIONS: [&str; 34] = [
    "services",
    "request",
    "images",
    "snapshot",
    "start",
    "stop",
    "stored",
    "save",
    "load",
    "retag",
    "newest log",
    "host",
    "definition",
    "records",
    "put a record",
    "remove a record",
    "store files",
    "fetch files",
    "age of a record",
    "keep down",
    "start again",
    "restart policy",
    "connect",
    "exec",
    "run once",
    "pause",
    "unpause",
    "users",
    "restore",
    "end",
    "write a file",
    "rename a file",
    "remove a file",
    "write to the journal",
];

impl Sequence {
    /// The sequence of this seed.
    pub fn from(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let gate = random.one(&[GateKind::Http, GateKind::Http, GateKind::Exec, GateKind::Stop]);
        let clients = random.one(&[1, 1, 2]);
        let stack = Stack {
            gate,
            clients,
            keeps_records: clients > 1 || random.chance(50),
            watches: random.chance(50),
            snapshots: random.chance(30),
        };
        let count = 2 + random.below(6);
        let steps = (0..count).map(|_| step(&mut random, clients).visible(gate)).collect();
        Self { seed, stack, steps }
    }
}

impl Step {
    /// Without the switch of the pilot nobody sees what fails only for the public, or a gate that lies: its manifest does
    /// not ask for it.
    fn visible(self, gate: GateKind) -> Self {
        let hidden =
            |defect| matches!(defect, Defect::FailsWhenOpen | Defect::LyingGate) && gate != GateKind::Http;
        let shown = |defect| if hidden(defect) { Defect::Errors } else { defect };
        match self {
            Self::Run {
                client,
                command: Command::Up { quality: Quality::Bad(defect), stay },
                trouble,
                lock_ran_out,
            } => {
                let command = Command::Up { quality: Quality::Bad(shown(defect)), stay };
                Self::Run { client, command, trouble, lock_ran_out }
            }
            Self::Happens(Event::ServiceIsUpdated(service, defect)) => {
                Self::Happens(Event::ServiceIsUpdated(service, defect.map(shown)))
            }
            other => other,
        }
    }
}

fn step(random: &mut Random, clients: usize) -> Step {
    if random.chance(35) {
        return Step::Happens(event(random, clients));
    }
    let command = command(random);
    let trouble = random.chance(50).then(|| trouble(random, clients));
    Step::Run { client: random.below(clients), command, trouble, lock_ran_out: random.chance(70) }
}

fn command(random: &mut Random) -> Command {
    match random.below(100) {
        0..30 => Command::Up { quality: quality(random), stay: random.chance(25) },
        30..60 => Command::Rollback {
            to: random.one(&[None, None, None, Some("r1"), Some("previous"), Some("r2")]),
            open: random.chance(10),
        },
        60..66 => Command::WithData { to: random.one(&[None, Some("r1"), Some("previous")]) },
        66..74 => Command::Reset { keep_data: random.chance(60) },
        74..80 => Command::HoldOn,
        80..86 => Command::HoldOff,
        86..92 => Command::Guard,
        92..95 => Command::Pin(random.one(&["r1", "r2"]), random.chance(70)),
        95..98 => Command::BackUp,
        _ => Command::Down,
    }
}

fn quality(random: &mut Random) -> Quality {
    match random.below(10) {
        0..4 => Quality::Good,
        4..7 => Quality::Bad(defect(random)),
        7 => Quality::TurnsBad(1 + random.below(6)),
        8 => Quality::Slow(1 + random.below(4)),
        _ => Quality::Migrates(random.chance(50)),
    }
}

fn defect(random: &mut Random) -> Defect {
    random.one(&[Defect::Errors, Defect::FailsWhenOpen, Defect::LyingGate, Defect::Unhealthy])
}

fn trouble(random: &mut Random, clients: usize) -> Trouble {
    // Most commands have fewer than two hundred operations, writes to files among them.
    let at = 1 + random.below(220);
    match random.below(100) {
        0..40 => Trouble::At(at, at, Fault::Kills),
        40..65 => {
            let fault = random.one(&[Fault::Fails, Fault::FailsLate, Fault::Lies, Fault::Hangs]);
            Trouble::At(at, at + random.one(&[0, 0, 0, 1, 5, 30]), fault)
        }
        65..85 => {
            let fault = random.one(&[Fault::Fails, Fault::FailsLate, Fault::Lies, Fault::Hangs]);
            Trouble::Every(random.one(&OPERATIONS), fault)
        }
        _ if clients > 1 && random.chance(60) => {
            Trouble::Meanwhile(at, random.one(&[Event::HoldIsPlaced, Event::LockIsTaken]))
        }
        _ => Trouble::Meanwhile(at, event(random, clients)),
    }
}

fn event(random: &mut Random, clients: usize) -> Event {
    let service = random.one(&SERVICES);
    match random.below(19) {
        0 => Event::ImagesArePruned,
        1 => Event::EverythingIsPruned,
        2 => Event::RecordsArePruned,
        3 => Event::DataIsDeleted(service),
        4 | 5 => Event::DataIsCorrupted(service),
        6 | 7 => Event::PublicStores(service),
        8 => Event::FolderIsDeleted(random.below(clients)),
        9 | 10 => Event::EnvFileIsEdited(random.below(clients)),
        11 => Event::GateIsOpened,
        12 => Event::GateIsClosed,
        13 => Event::ServiceIsKilled(service),
        14 => Event::ServiceIsRemoved(service),
        15 | 16 => Event::ServiceIsUpdated(service, random.chance(60).then(|| defect(random))),
        17 if random.chance(50) => Event::ReleaseTurnsBad,
        17 => Event::ReleaseFileIsDamaged(random.below(clients)),
        _ => Event::ClockIsSet(random.one(&[-86_400, -5, 60, 3_600, 400 * 86_400])),
    }
}
