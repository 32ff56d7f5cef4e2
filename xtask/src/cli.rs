//! The command line: every command with its options, and the options that all have. Parsing alone.

use crate::base::failure::EXIT_TABLE;
use crate::base::next::Context;
use crate::base::output::Format;
use crate::commands::values::{EngineName, FormatName};
use crate::commands::{
    assess, backup, bench, ci, diagnose, down, drill, evidence, flags, host, kill_switch, observe, preflight,
    releases, reset, rollback, seed, smoke, snapshot, status, up,
};
use crate::engine::roles::Kind;
use crate::stack::pilot::{By, DEFAULT_PROJECT};
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
    engine: Option<EngineName>,
    /// Sentences, or one JSON event a line, the last one `finished`
    #[arg(long, global = true, value_enum, default_value = "text")]
    format: FormatName,
    /// Yes to every question
    #[arg(long, global = true)]
    pub yes: bool,
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
    /// The 60-second look: status, sessions, errors, and what a rollback would choose
    Assess(assess::Args),
    /// The deep look: also resources, logs, networks, volumes, host, and what fixes each finding
    Diagnose(diagnose::Args),
    /// Keep what there is, secrets masked, as a folder and an archive
    Evidence(evidence::Args),
    /// All checks against the running pilot
    Smoke(smoke::Args),
    /// Go or no-go before a demo
    Preflight(preflight::Args),
    /// The safety flags of the running services
    Flags(flags::Args),
    /// Measure the running pilot into a metrics file
    Snapshot(snapshot::Args),
    /// Load the demo scenario, or another
    Seed(seed::Args),
    /// Build the tree, start it, verify it, keep it as a release
    Up(up::Args),
    /// A clean stack: back up, delete, deploy the last known-good release
    Reset(reset::Args),
    /// End the services; data and releases stay
    Down(down::Args),
    /// What there is to go back to
    Releases(releases::Args),
    /// Copies of settings, logs and data
    Backup(backup::Args),
    /// The machine: check it, free what is the pilot's own, restart Docker
    Host(host::Args),
    /// Start prometheus and grafana beside the pilot
    Observe(observe::Args),
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

impl Cli {
    /// What runs the services, where the user says so.
    pub fn engine(&self) -> Option<Kind> {
        self.engine.map(Kind::from)
    }

    /// How the command says what it does.
    pub fn format(&self) -> Format {
        self.format.into()
    }

    /// What a suggested command needs in front to act on the same stack.
    pub fn context(&self) -> Context {
        let state = std::env::var_os("PILOT_STATE_DIR").filter(|dir| !dir.is_empty());
        let state = state.and_then(|dir| std::path::absolute(dir).ok());
        let project = Some(self.project.as_str()).filter(|project| *project != DEFAULT_PROJECT);
        Context::new(project, state.as_deref(), self.engine().map(Kind::as_str))
    }
}

impl Command {
    /// Whose manifest it works by.
    pub fn by(&self) -> By {
        match self {
            Self::Up(_) | Self::Drill(_) | Self::Bench(_) | Self::Ci(_) => By::Tree,
            Self::Rollback(_) | Self::Reset(_) | Self::KillSwitch(_) | Self::Evidence(_) | Self::Down(_) => {
                By::Any
            }
            _ => By::Running,
        }
    }
}
