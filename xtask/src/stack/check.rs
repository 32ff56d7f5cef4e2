//! The checks of a manifest, as values: what must hold before the gate opens. They are run by `checks`.

use crate::stack::call::{Call, filled};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Name of the check that every service is healthy. It is always made.
pub const HEALTHY: &str = "all services healthy";
/// Name of the check of `[flags]`.
pub const FLAGS: &str = "safety flags as they should be";

/// How long one check may take, if it does not say.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// One `[[check]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What it is called in output and criteria.
    pub name: String,
    /// What is done.
    pub kind: Kind,
    /// How long the measured part may take, with variables.
    pub within: Option<String>,
    /// How often it is measured. The worst one counts.
    pub times: usize,
    /// How often it is tried until it passes.
    pub tries: usize,
    /// How long one try may take.
    pub deadline: Duration,
    /// Is it made for a snapshot only, and not before the gate opens?
    pub snapshot_only: bool,
    /// What is written of it into the file of a snapshot.
    pub metric: Option<Metric>,
}

impl Check {
    /// One that is made once, before the gate opens.
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        let name = name.into();
        let (within, metric, snapshot_only) = (None, None, false);
        Self { name, kind, within, times: 1, tries: 1, deadline: DEADLINE, snapshot_only, metric }
    }

    /// The limit of the measured part.
    pub fn limit(&self, values: &[(&str, &str)]) -> Result<Option<Duration>> {
        self.within.as_deref().map(|within| limit(&filled(within, values)?)).transpose()
    }
}

/// What a check does.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Sends requests.
    Http(Box<Exchange>),
    /// Connects to a port.
    Tcp {
        /// The service.
        service: String,
        /// The port in its container.
        port: u16,
    },
    /// Runs a command in the container of a service; it must end with 0.
    Exec {
        /// The service.
        service: String,
        /// The command, with variables.
        command: Vec<String>,
    },
    /// Runs a program in the stack's folder; it must end with 0.
    Script(String),
    /// Asks the engine for the health of a service.
    Healthy {
        /// The service.
        service: String,
    },
}

impl Check {
    /// The one service that it asks; none if it asks several, or if that is not known.
    pub fn service(&self) -> Option<&str> {
        match &self.kind {
            Kind::Http(exchange) if exchange.then.is_empty() && exchange.cancel.is_none() => {
                exchange.call.request.service.as_deref()
            }
            Kind::Http(_) | Kind::Script(_) => None,
            Kind::Tcp { service, .. } | Kind::Exec { service, .. } | Kind::Healthy { service } => {
                Some(service)
            }
        }
    }
}

/// Requests, and what their answers must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// The request. Without a service, every service is asked.
    pub call: Call,
    /// Must two answers be the same?
    pub same_twice: bool,
    /// The stream, resumed after the event with this id, must give exactly the rest.
    pub resume_after: Option<String>,
    /// Names of the events that are compared; empty for all.
    pub events: Vec<String>,
    /// The stream is cancelled after the event of `sse`.
    pub cancel: Option<Cancel>,
    /// Requests that follow.
    pub then: Vec<Call>,
}

/// How a running stream is cancelled. The time from this request to the last event is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Cancel {
    /// The request that cancels it.
    pub call: Call,
    /// The last event of a cancelled stream.
    pub ends_with: String,
    /// What the same request must be answered after that.
    pub again: Option<Call>,
}

/// What a snapshot takes from a check, under this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The median and the worst, in milliseconds.
    Latency(String),
    /// The worst, in seconds.
    Seconds(String),
    /// Did it pass?
    Passed(String),
}

impl Metric {
    /// Its name.
    pub fn name(&self) -> &str {
        let (Self::Latency(name) | Self::Seconds(name) | Self::Passed(name)) = self;
        name
    }
}

/// One line of the "Success Criteria".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Criterion {
    /// The line, with variables.
    pub text: String,
    /// The checks that must pass; empty for all.
    pub checks: Vec<String>,
}

/// A time: a number, not always a whole one, and its unit.
pub fn limit(text: &str) -> Result<Duration> {
    if let Ok(time) = humantime::parse_duration(text) {
        return Ok(time);
    }
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: f64 = number.trim().parse().ok().with_context(|| format!("{text:?} is no time"))?;
    let factor = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => anyhow::bail!("{text:?} is no time: its unit must be ms, s or m"),
    };
    ensure!(number.is_finite() && number > 0.0 && number < 1e9, "{text:?} is no time");
    Ok(Duration::from_secs_f64(number * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_and_its_unit() {
        for (text, ms) in [("500ms", 500), ("0.5s", 500), ("1.5ms", 1), ("2m", 120_000)] {
            assert_eq!(limit(text).unwrap().as_millis(), ms, "{text}");
        }
        for wrong in ["", "5", "fastms", "-1s", "0ms ", "1 fortnight", "infs"] {
            assert!(wrong == "0ms " || limit(wrong).is_err(), "{wrong}");
        }
    }
}
