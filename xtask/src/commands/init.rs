//! `init`: writes a manifest for a stack that has a compose file and no manifest. Changes nothing else.

use crate::base::failure::Exit;
use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::operations::init;
use anyhow::Result;

/// `cargo xtask init`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask --stack shop init")]
pub struct Args {}

/// Writes it and says what comes next.
pub fn run(session: &Session) -> Result<Finished> {
    let path = init::write(session)?;
    session.out.say(format!("wrote {}: read it, and change what does not fit", path.display()));
    session.out.say(format!("  then: {}", session.out.xtask("up")));
    Ok(Finished::plain(Exit::Ok))
}
