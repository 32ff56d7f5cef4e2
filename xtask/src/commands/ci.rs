//! `ci`: what CI runs: format, lints with warnings as errors, tests. xshell is enough here, because nothing
//! in it can hang on a service.

use crate::base::failure::Exit;
use crate::deploy::event::Finished;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use xshell::{Shell, cmd};

/// `cargo xtask ci`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask ci")]
pub struct Args {}

/// Stops at the first command that fails.
pub fn run(pilot: &Pilot) -> Result<Finished> {
    let shell = Shell::new()?;
    shell.change_dir(&pilot.root);
    cmd!(shell, "cargo fmt --all --check").run()?;
    cmd!(shell, "cargo clippy --locked --all-targets -- --deny warnings").run()?;
    cmd!(shell, "cargo test --locked").run()?;
    Ok(Finished::plain(Exit::Ok))
}
