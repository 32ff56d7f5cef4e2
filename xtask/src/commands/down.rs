//! `down`: stops the pilot's services. Data, images and releases stay.

use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::engine::roles::Extent;
use anyhow::Result;

/// `cargo xtask down`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask down")]
pub struct Args {}

/// Stops the services without a grace period.
pub fn run(session: &Session) -> Result<Finished> {
    let _lock = session.lock("down")?;
    session.engine.down(Extent::Services, Deadline::after(session.pilot.manifest.limits.deploy))?;
    session.out.say(format!("{} is stopped; its data and releases are kept", session.pilot.project));
    Ok(Finished::plain(Exit::Ok))
}
