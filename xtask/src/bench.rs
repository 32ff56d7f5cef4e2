//! bench

use crate::journal::{Finished, Output};
use crate::pilot::Pilot;
use anyhow::Result;

/// `cargo xtask bench`.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// todo
pub fn run(_: &Args, _: &Pilot, _: Output) -> Result<Finished> {
    Ok(Finished::plain(crate::failure::Exit::Ok))
}
