//! What a sequence is played on: the world with its clients, and what is remembered of the steps so far.

use super::sequence::Event;
use crate::base::failure::Exit;
use crate::engine::fake::world::World;
use crate::operations::in_memory::Scene;

/// The world and its clients.
pub struct Stage {
    pub world: World,
    pub clients: Vec<Scene>,
    pub seen: Seen,
}

/// What is remembered over a whole sequence.
#[derive(Default)]
pub struct Seen {
    /// How the last command ended.
    pub last: Option<Ended>,
    /// Somebody let the public in against a hold without this tool, or a command said that it could not close.
    pub excused: bool,
    /// The engine has lost its records.
    pub lost_records: bool,
    /// The engine has said that something was done, and it was not.
    pub lied: bool,
    /// Somebody has unpinned a release.
    pub unpinned: bool,
    /// A journal may lack lines, or be gone.
    pub lost_journal: bool,
}

impl Seen {
    /// What a person does by hand is not what the tool does.
    pub fn note(&mut self, event: Event) {
        let starts = |service: &str| service == "gateway";
        // What is paused was written down there, and what was watched.
        let is_deleted = matches!(event, Event::FolderIsDeleted(_));
        self.lied |= is_deleted;
        self.lost_journal |= is_deleted;
        self.lost_records |= matches!(event, Event::EverythingIsPruned | Event::RecordsArePruned);
        match event {
            Event::GateIsOpened | Event::EverythingIsPruned => self.excused = true,
            Event::ServiceIsUpdated(service, _) if starts(service) => self.excused = true,
            _ => {}
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub exit: Option<Exit>,
    pub text: String,
}
