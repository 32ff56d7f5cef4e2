//! Values of the command line, with their help texts, and the program values that they stand for. Used by the
//! args of the commands.

use crate::base::output::Format;
use crate::deploy::difference::Scenario;
use crate::engine::roles::Kind;
use clap::ValueEnum;
use std::io::IsTerminal;

/// `--scenario`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScenarioName {
    /// A: the settings differ from the release
    Config,
    /// B: the images differ from the release
    Version,
    /// C: stored data is corrupt or missing
    Reset,
    /// D: services are missing or do not answer, or the host lacks something
    Host,
}

impl From<ScenarioName> for Scenario {
    fn from(name: ScenarioName) -> Self {
        match name {
            ScenarioName::Config => Self::Config,
            ScenarioName::Version => Self::Version,
            ScenarioName::Reset => Self::Reset,
            ScenarioName::Host => Self::Host,
        }
    }
}

/// `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorName {
    /// On a terminal
    Auto,
    /// Also in a file or a pipe
    Always,
    /// Nowhere
    Never,
}

impl ColorName {
    /// With colours? `NO_COLOR` (no-color.org) and a terminal that can do nothing mean none.
    pub fn colors(self) -> bool {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !dumb,
        }
    }
}

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// Docker Compose, 1 or 2
    Compose,
    /// Docker Swarm, through one of its managers
    Swarm,
    /// Local processes, no Docker
    Process,
}

impl From<EngineName> for Kind {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Compose => Self::Compose,
            EngineName::Swarm => Self::Swarm,
            EngineName::Process => Self::Process,
        }
    }
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// Sentences for people
    Text,
    /// One event per line
    Json,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Text => Self::Text,
            FormatName::Json => Self::Json,
        }
    }
}
