//! Words of the command line that stand for values of the program.

use crate::base::output::Format;
use crate::deploy::difference::Scenario;
use crate::engine::roles::Kind;
use clap::ValueEnum;

/// `--scenario`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScenarioName {
    /// A: the settings are not those of the release
    Config,
    /// B: the images are not those of the release
    Version,
    /// C: stored data is corrupt or gone
    Reset,
    /// D: services are gone or do not answer, or the host is short of something
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

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// Docker Compose, 1 or 2
    Compose,
    /// Local processes, no Docker
    Process,
}

impl From<EngineName> for Kind {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Compose => Self::Compose,
            EngineName::Process => Self::Process,
        }
    }
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// Sentences for people
    Text,
    /// One event a line
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
