//! The command line: every command with its options, and the options that all have. Parsing alone.

use crate::commands::{ci, down, kill_switch, releases, smoke, status};
use crate::engine::Kind;
use crate::failure::EXIT_TABLE;
use crate::journal::Format;
use crate::pilot::DEFAULT_PROJECT;
use crate::{bench, drill, rollback, up};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Brings a broken pilot back to its last known-good release, proves it, and keeps the evidence.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXIT_TABLE, disable_version_flag = true)]
pub struct Cli {
    /// Compose project; others than the default have ports, images and state of their own
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_PROJECT, hide_default_value = true)]
    pub project: String,
    /// What runs the services [default: compose where Docker answers, else process]
    #[arg(long, global = true, value_enum)]
    pub engine: Option<Kind>,
    /// Sentences, or one JSON event a line, the last one `finished`
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub format: Format,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands, the most urgent first.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Go back to the last known-good release, and prove it
    Rollback(rollback::Args),
    /// Close or open the gate by hand
    KillSwitch(kill_switch::Args),
    /// What runs, and what differs from the release
    Status(status::Args),
    /// All checks against the running pilot
    Smoke(smoke::Args),
    /// Build the tree, start it, verify it, keep it as a release
    Up(up::Args),
    /// End the services; data and releases stay
    Down(down::Args),
    /// What there is to go back to
    Releases(releases::Args),
    /// Rehearse: break a pilot of its own and roll it back
    Drill(drill::Args),
    /// Measure against plain Compose and the old runbook
    Bench(bench::Args),
    /// Format, lints and tests
    Ci(ci::Args),
    /// Keeps one service of the process engine running
    #[command(hide = true)]
    Supervise {
        /// Its `service.json`
        file: PathBuf,
    },
}
