//! What a command works with: the stack, its engine, its releases, and the output; and which manifest counts
//! for what. Made by `main`, used by every command that needs a stack.

use crate::base::courier::Courier;
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of};
use crate::base::output::Output;
use crate::checks::target::Target;
use crate::deploy::paused;
use crate::deploy::view::View;
use crate::engine::roles::Engine;
use crate::release::description::Release;
use crate::release::store::Store;
use crate::stack::lease;
use crate::stack::ledger::{Ledger, Lock};
use crate::stack::pilot::Pilot;
use anyhow::{Result, ensure};
use std::time::Duration;

/// The lock of a stack, for one command. What the engine has lost of its records is put back before it is released.
#[must_use]
pub struct Locked<'a> {
    session: &'a Session,
    _lock: Lock,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Session { store, out, .. } = self.session;
        if std::thread::panicking() || store.ledger().shared().is_none() || !store.ledger().has_lock() {
            return;
        }
        let put = store.put_back().and_then(|releases| {
            let releases = releases.into_iter().map(|id| format!("release {id}"));
            Ok(releases.chain(store.ledger().put_back()?).collect::<Vec<_>>())
        });
        match put {
            Ok(put) if put.is_empty() => {}
            Ok(put) => out.note(format!("the engine knows now, for every client: {}", put.join(", "))),
            Err(error) => out.note(format!("the engine does not know all that this folder has: {error:#}")),
        }
    }
}

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
    /// undone first, and what other clients have done is copied. The error (exit 5) says who has the lock.
    pub fn lock(&self, command: &str) -> Result<Locked<'_>> {
        let lock = self.ledger().lock(command, lease::USUAL)?;
        self.locked(lock)
    }

    /// The same for a run, which may take as long as `need`. If the engine does not answer, it may still shut the public
    /// out: it takes the lock before it does anything else.
    pub fn lock_for(&self, command: &str, need: Duration) -> Result<Locked<'_>> {
        let ledger = self.ledger();
        let lock = ledger.lock(command, need).or_else(|error| match exit_of(&error) {
            Exit::Host => {
                self.out.note(format!("{error:#}; so the lock is taken when it answers"));
                ledger.lock_later(command, need)
            }
            _ => Err(error),
        })?;
        self.locked(lock)
    }

    fn locked(&self, lock: Lock) -> Result<Locked<'_>> {
        if let Some(over) = &lock.over {
            self.out.note(over);
        }
        paused::undo_all(self.engine.as_ref(), &self.pilot.state, &self.out);
        if self.ledger().has_lock() {
            // The records at the engine count in any case, so a full disk is no reason to stop.
            match self.ledger().look().and_then(|()| self.store.agree()) {
                Ok(told) => told.into_iter().for_each(|told| self.out.note(told)),
                Err(error) => {
                    self.out.note(format!("this folder has no copy of all that the engine knows: {error:#}"))
                }
            }
        }
        Ok(Locked { session: self, _lock: lock })
    }

    /// Copies what other clients have done, as far as this needs no lock. The error says that the engine does not tell it.
    pub fn meet(&self) -> Result<()> {
        self.store.meet().map(drop)
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
        Target::allows(&view.pilot, env).map(drop)
    }
}
