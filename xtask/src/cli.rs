//! The command line: the commands, and the options that all commands have. Only parsing;
//! `main` calls the commands.

use crate::base::failure::{EXIT_TABLE, Exit, fail};
use crate::base::next::Context;
use crate::base::output::{Format, Loudness, Style};
use crate::base::screen;
use crate::commands::values::{ColorName, EngineName, FormatName};
use crate::commands::{
    assess, backup, bench, ci, completions, diagnose, down, drill, evidence, flags, guard, guide, history,
    host, init, kill_switch, logs, man, nodes, observe, preflight, releases, report, reset, rollback, seed,
    smoke, snapshot, status, torture, up,
};
use crate::engine;
use crate::engine::roles::Kind;
use crate::stack::pilot::By;
use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;

/// Brings a broken pilot back to its last known-good release, checks that it works, and keeps the evidence.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXIT_TABLE, version)]
pub struct Cli {
    /// Folder of the stack [default: pilot-deploy of this repository, else the nearest folder with a compose file]
    #[arg(long, global = true, value_name = "DIR")]
    pub stack: Option<PathBuf>,
    /// Compose project; each project has its own ports, images and state [default: as Compose calls the stack]
    #[arg(long, global = true, value_name = "NAME")]
    pub project: Option<String>,
    /// What runs the services [default: compose if Docker answers, else process]
    #[arg(long, global = true, value_enum)]
    engine: Option<EngineName>,
    /// Docker context whose engine is used, as in docker --context [default: as docker chooses]
    #[arg(long = "context", global = true, value_name = "CONTEXT")]
    pub docker_context: Option<String>,
    /// Form of the output: text, or one JSON event a line (the last one is `finished`)
    #[arg(long, global = true, value_enum, default_value = "text")]
    format: FormatName,
    /// Colours: auto means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    color: ColorName,
    /// Say only how it ended
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Also show each check that passed, and each command that is run
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Answer every question with yes
    #[arg(long, global = true)]
    pub yes: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands, the most urgent first.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Go back to the last known-good release, and check that it works
    Rollback(rollback::Args),
    /// Close or open the gate (the gateway's kill switch), or show whether it is open
    KillSwitch(kill_switch::Args),
    /// Show what runs, and how it differs from the release
    Status(status::Args),
    /// 60-second overview: status, sessions, errors, and what a rollback would do
    Assess(assess::Args),
    /// Show the newest log lines of the services
    Logs(logs::Args),
    /// Full examination: also resources, logs, networks, volumes, host, and a fix for each finding
    Diagnose(diagnose::Args),
    /// Save the evidence, with secrets masked, as a folder and an archive
    Evidence(evidence::Args),
    /// Show every rollback, deployment and reset: when, by whom, and how it ended
    History(history::Args),
    /// Show the report of a run; open its page
    Report(report::Args),
    /// Run all checks against the running pilot
    Smoke(smoke::Args),
    /// Say whether the pilot is ready for a demo: go or no-go
    Preflight(preflight::Args),
    /// Show the safety flags of the running services
    Flags(flags::Args),
    /// Measure the running pilot, and write the figures to a file
    Snapshot(snapshot::Args),
    /// Load the demo scenario, or another scenario
    Seed(seed::Args),
    /// Build the source code, start it, check it, and keep it as a release
    Up(up::Args),
    /// Watch what runs, and go back once if it turns bad
    Guard(guard::Args),
    /// Start clean: back up, delete everything, deploy the last known-good release
    Reset(reset::Args),
    /// Stop the services; data and releases stay
    Down(down::Args),
    /// List, compare, check, export, import or remove releases
    Releases(releases::Args),
    /// Make, list or restore copies of settings, logs and data; send them off this machine
    Backup(backup::Args),
    /// Check this machine; free disk space of the pilot; restart Docker
    Host(host::Args),
    /// Show the nodes of a Swarm, with their images and tasks; give them the images that they lack
    Nodes(nodes::Args),
    /// Start prometheus and grafana for the pilot
    Observe(observe::Args),
    /// Practise: break a separate pilot, and roll it back
    Drill(drill::Args),
    /// Write a manifest for a stack that has a compose file and no manifest
    Init(init::Args),
    /// Measure the speed against plain Compose, plain Swarm and the old runbook
    Bench(bench::Args),
    /// Search for counter-examples to what this program promises
    Torture(torture::Args),
    /// Check the format, run the lints and the tests
    Ci(ci::Args),
    /// Print what makes a shell complete these commands
    Completions(completions::Args),
    /// Print or write the manual pages
    Man(man::Args),
    /// Keeps one service of the process engine running
    #[command(hide = true)]
    Supervise {
        /// Path of its `service.json`
        file: PathBuf,
    },
    /// Delivers messages to receivers outside
    #[command(hide = true)]
    Deliver,
    /// Undoes a pause when the process that began it has ended
    #[command(hide = true)]
    Unpause {
        /// Path of the record
        file: PathBuf,
        /// How long the pause may last, in milliseconds
        limit_ms: u64,
    },
}

impl Cli {
    /// Reads the command line of this process.
    pub fn read() -> std::result::Result<Self, clap::Error> {
        Self::described().try_get_matches().and_then(|matches| Self::from_arg_matches(&matches))
    }

    /// The command line, with all that its help says.
    pub fn described() -> clap::Command {
        guide::described(Self::command())
    }

    /// What is shown if no command is given.
    pub fn overview() -> String {
        guide::overview(&Self::command(), Context::new(None, None, None).xtask("").trim_end())
    }

    /// What runs the services, where the user says so.
    pub fn engine(&self) -> Option<Kind> {
        self.engine.map(Kind::from)
    }

    /// Every docker client that is started from now on uses the context that the user names. An error if another engine
    /// is named with it.
    pub fn choose_context(&self) -> Result<()> {
        let Some(name) = &self.docker_context else { return Ok(()) };
        if self.engine() == Some(Kind::Process) {
            let what = format!("--context {name} is for Docker, and --engine names another engine");
            return Err(fail(Exit::Usage, what, "leave out one of the two"));
        }
        engine::in_context(name)
    }

    /// How the command says what it does.
    pub fn style(&self) -> Style {
        let format = Format::from(self.format);
        let loudness = match (self.quiet, self.verbose) {
            (true, _) => Loudness::Quiet,
            (_, true) => Loudness::Verbose,
            _ => Loudness::Normal,
        };
        Style { format, color: format == Format::Text && self.color.colors(), loudness }
    }

    /// What is shown while the command works.
    pub fn screen(&self) -> screen::Kind {
        match self.style() {
            Style { format: Format::Text, color, loudness } if loudness > Loudness::Quiet => {
                screen::Kind::of_stdout(color)
            }
            _ => screen::Kind::Off,
        }
    }

    /// The options that a suggested command needs so that it acts on the same stack.
    pub fn context(&self) -> Context {
        let state = std::env::var_os("PILOT_STATE_DIR").filter(|dir| !dir.is_empty());
        let state = state.and_then(|dir| std::path::absolute(dir).ok());
        let stack = self.stack.as_deref().and_then(|dir| std::path::absolute(dir).ok());
        let context =
            Context::new(self.project.as_deref(), state.as_deref(), self.engine().map(Kind::as_str));
        context.in_stack(stack).through(self.docker_context.clone())
    }
}

impl Command {
    /// What a command is called that changes something; nothing for one that only looks.
    pub fn changes(&self) -> Option<&'static str> {
        match self {
            Self::Rollback(args) => args.changes(),
            Self::KillSwitch(args) => args.changes(),
            Self::Backup(args) => args.changes(),
            Self::Host(args) => args.changes(),
            Self::Nodes(args) => args.changes(),
            Self::Releases(args) => args.changes(),
            Self::Up(_) => Some("up"),
            Self::Guard(_) => Some("guard"),
            Self::Reset(_) => Some("reset"),
            Self::Down(_) => Some("down"),
            Self::Seed(_) => Some("seed"),
            Self::Observe(_) => Some("observe"),
            Self::Init(_) => Some("init"),
            Self::Drill(_) => Some("drill"),
            Self::Bench(_) => Some("bench"),
            Self::Status(_)
            | Self::Assess(_)
            | Self::Logs(_)
            | Self::Diagnose(_)
            | Self::Evidence(_)
            | Self::Smoke(_)
            | Self::Preflight(_)
            | Self::Flags(_)
            | Self::Snapshot(_)
            | Self::History(_)
            | Self::Report(_)
            | Self::Ci(_)
            | Self::Torture(_)
            | Self::Completions(_)
            | Self::Man(_)
            | Self::Supervise { .. }
            | Self::Deliver
            | Self::Unpause { .. } => None,
        }
    }

    /// Which manifest the command uses.
    pub fn by(&self) -> By {
        match self {
            Self::Up(_)
            | Self::Drill(_)
            | Self::Bench(_)
            | Self::Torture(_)
            | Self::Ci(_)
            | Self::Init(_) => By::Tree,
            Self::Rollback(_)
            | Self::Reset(_)
            | Self::KillSwitch(_)
            | Self::Guard(_)
            | Self::Evidence(_)
            | Self::Down(_)
            | Self::History(_)
            | Self::Report(_) => By::Any,
            _ => By::Running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_situation_and_says_what_it_touches() {
        let overview = Cli::overview();
        for command in Cli::described().get_subcommands().filter(|command| !command.is_hide_set()) {
            let (name, help) = (command.get_name(), command.get_after_help().unwrap().to_string());
            let lines = overview.lines().filter(|line| line.split_whitespace().any(|word| word == name));
            assert!(lines.count() >= 1, "{name} is in no situation");
            assert!(help.contains("Touches: ") && help.contains("Exit codes:\n  0 "), "{name}: {help}");
        }
    }
}
