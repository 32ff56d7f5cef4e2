//! What runs a release: `compose` if a Docker engine answers, otherwise `process`. What an engine can do is
//! in `roles`. An engine does what a plan says and decides nothing. Called by `deploy`, `operations` and
//! `commands`.

pub mod carry;
mod compose;
pub mod copying;
#[cfg(test)]
pub mod fake;
mod helper;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod pause;
mod process;
pub mod reach;
pub mod roles;
pub mod swarm;
pub mod tree;

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::machine;
use crate::base::screen;
use crate::base::stderr;
use crate::engine::roles::{Engine, Kind};
use crate::release::store::Store;
use crate::stack::ledger::Ledger;
use crate::stack::pilot::{By, Pilot};
use anyhow::Result;

pub use process::supervise::supervise;

/// The stack as its engine knows it, and the engine for it: if no release says what it is, Compose is asked. What
/// Compose does not understand is an error (exit 2) for a command that looks at what runs (`By::Running`). For one that
/// must always work it stays unknown, with a warning; one that uses the source reports it when it does.
pub fn open(mut pilot: Pilot, engine: Box<dyn Engine>, by: By) -> Result<(Pilot, Box<dyn Engine>)> {
    let _shown = screen::doing("ask the engine");
    // Without Compose, the manifest says it.
    if pilot.definition.is_some() || engine.kind() != Kind::Compose {
        return Ok((pilot, engine));
    }
    let deadline = Deadline::after(pilot.manifest.limits.engine);
    // A private copy that has no env file yet begins with the settings of the stack.
    let own = pilot.env_path.exists() || pilot.is_default();
    let env = pilot.layout.env.as_ref().map(|name| pilot.pack.join(name)).filter(|_| !own);
    let env = env.unwrap_or_else(|| pilot.env_path.clone());
    match tree::resolve(&pilot, &|name| pilot.source(name, &env), engine.as_ref(), deadline) {
        Ok(resolved) => pilot.definition = Some(resolved.definition),
        Err(error) if by == By::Running && exit_of(&error) == Exit::Usage => return Err(error),
        Err(error) if by == By::Any => stderr::line(format!("warning: {error:#}")),
        Err(_) => {}
    }
    let engine = engine.for_stack(&pilot)?;
    Ok((pilot, engine))
}

/// The releases of a stack, with the records that its engine keeps for every client.
pub fn store(pilot: &Pilot, engine: &dyn Engine) -> Store {
    let ledger = Ledger::of(&pilot.state, engine.shelf(), pilot.manifest.limits.engine);
    Store::of(&pilot.state, ledger)
}

/// The Docker daemon that the client talks to; none if there is no client, or if it is not known where that leads.
pub fn daemon(deadline: Deadline) -> Option<Daemon> {
    let docker = which::which("docker").ok()?;
    Daemon::of_client(&docker, deadline).ok()
}

pub use compose::daemon::{Daemon, in_context};

/// The address of the daemon that is a service of the machine itself.
pub use compose::daemon::DEFAULT as SYSTEM_DAEMON;

/// The engine for a pilot: the requested one; else the one that the running release was made with; else, if Docker
/// answers, `swarm` if the stack is deployed on a Swarm there, or `compose`; and `process` if there is no Docker. If Docker
/// hangs, or was to be that of another machine, that is an error, and does not mean that there is no Docker.
pub fn choose(pilot: &Pilot, asked: Option<Kind>) -> Result<Box<dyn Engine>> {
    let means_docker = compose::daemon::is_named();
    let recorded = || {
        let kind = Kind::named(&Store::new(&pilot.state).current().ok().flatten()?.engine)?;
        Some(kind).filter(|kind| *kind != Kind::Process || !means_docker)
    };
    let deadline = || Deadline::after(pilot.manifest.limits.engine);
    let kind = match asked.or_else(recorded) {
        Some(kind) => kind,
        None => match compose::client::answers(deadline()) {
            Ok(()) if swarm::cluster::Swarm::new(pilot)?.has_stack(deadline())? => Kind::Swarm,
            Ok(()) => Kind::Compose,
            Err(error) if means_docker || matches!(exit_of(&error), Exit::Usage | Exit::Host) => {
                return Err(error);
            }
            Err(error) if compose::client::is_hung(&error) => {
                let next = "--engine process, or docker version to see what is wrong";
                return Err(fail(Exit::Host, format!("{error:#}"), next));
            }
            Err(_) => Kind::Process,
        },
    };
    Ok(match kind {
        Kind::Compose => Box::new(compose::client::Compose::new(pilot)?),
        Kind::Swarm => Box::new(swarm::cluster::Swarm::new(pilot)?),
        Kind::Process if !machine::SHOWS_OPEN_FILES => {
            let what = "local processes need Linux: this system does not tell which files a process has open, so \
                        those of a stack cannot be told from others";
            return Err(fail(Exit::Usage, what, "start Docker, and run the command with --engine compose"));
        }
        Kind::Process => Box::new(process::home::Processes::new(pilot)),
    })
}
