//! What a command works with: the stack, its engine, its releases, and the output; and which manifest counts
//! for what. Made by `main`, used by every command that needs a stack.

use crate::base::courier::Courier;
use crate::base::deadline::Deadline;
use crate::base::lock::Lock;
use crate::base::output::Output;
use crate::deploy::paused;
use crate::deploy::view::View;
use crate::engine::roles::Engine;
use crate::release::description::Release;
use crate::release::store::Store;
use crate::stack::ledger::Ledger;
use crate::stack::pilot::Pilot;
use anyhow::{Result, ensure};

/// What a command works with.
pub struct Session {
    /// The stack.
    pub pilot: Pilot,
    /// The engine that runs it.
    pub engine: Box<dyn Engine>,
    /// Its releases.
    pub store: Store,
    /// Where events go.
    pub out: Output,
    /// Carries messages to receivers outside.
    pub courier: Courier,
}

impl Session {
    /// The records of this stack.
    pub fn ledger(&self) -> Ledger {
        self.store.ledger()
    }

    /// Takes the lock of the stack for a command that changes it. What a copy that was cut off has left paused is
    /// undone first. The error (exit 5) says who has the lock.
    pub fn lock(&self, command: &str) -> Result<Lock> {
        let lock = self.ledger().lock(command)?;
        paused::undo_all(self.engine.as_ref(), &self.pilot.state, &self.out);
        Ok(lock)
    }

    /// The stack by the manifest of the release that runs.
    pub fn running(&self, deadline: Deadline) -> Result<View> {
        View::running(&self.pilot, self.engine.as_ref(), &self.store, deadline)
    }

    /// The stack by the manifest of a release.
    pub fn by(&self, release: &Release) -> Result<View> {
        View::of(&self.pilot, self.engine.as_ref(), &self.store, release)
    }

    /// Can a run go to this release? Its files must be unchanged, its manifest and settings must be readable,
    /// also for this engine, its stack must be able to work here, and the settings must have everything that the
    /// checks need. A release is refused here, before the first step.
    pub fn admissible(&self, release: &Release) -> Result<()> {
        self.store.check_files(release)?;
        let view = self.by(release)?;
        let env = view.env()?;
        let deadline = Deadline::after(view.pilot.manifest.limits.engine);
        view.engine.can_read(env, deadline)?;
        if let Some(definition) = self.store.definition(release)? {
            let files = release.files.keys().cloned().collect();
            let refusals = view.engine.refusals(&definition, &files, deadline)?;
            ensure!(refusals.is_empty(), "it cannot work here: {}", refusals.join("; "));
        }
        view.pilot.services().try_for_each(|service| view.pilot.port(service, env).map(drop))?;
        view.target().map(drop)
    }
}
