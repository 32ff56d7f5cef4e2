//! The `[gate]` part of a manifest: how the public is let in and shut out, by one of three kinds. Values
//! only: the parts of `deploy/gate` do what is written here. Read by `manifest/gate`.

use crate::stack::call::{Call, Line, filled};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The word in `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Requests to a service.
    Http,
    /// Commands in the container of a service.
    Exec,
    /// The published services are stopped.
    Stop,
}

/// How the public is let in and shut out.
#[derive(Clone, Debug)]
pub enum GateRule {
    /// By requests to a service.
    Http(Box<HttpGate>),
    /// By commands in the container of a service.
    Exec(Box<ExecGate>),
    /// By stopping services.
    Stop(StopGate),
}

/// The default for a stack that says nothing: every published service is stopped.
impl Default for GateRule {
    fn default() -> Self {
        Self::Stop(StopGate::default())
    }
}

/// The service that lets the public in, and the requests that close it, open it, and prove both.
#[derive(Clone, Debug)]
pub struct HttpGate {
    /// The service.
    pub service: String,
    /// Closes the gate, with `${REASON}`.
    pub close: Call,
    /// Opens it.
    pub open: Call,
    /// Fails unless the gate is closed.
    pub refused: Call,
    /// Fails unless the gate is open.
    pub served: Call,
    /// Says whether it is closed, and why.
    pub position: Position,
    /// Closes the gate of a service that does not run.
    pub offline: Offline,
    /// The reasons that the service gives if it closed the gate by itself.
    pub own_reasons: Vec<String>,
}

/// The service that lets the public in, and the commands in its container that close it, open it, and say
/// whether it is closed.
#[derive(Clone, Debug)]
pub struct ExecGate {
    /// The service.
    pub service: String,
    /// Closes the gate. The reason is in the variable `REASON`.
    pub close: Command,
    /// Opens it.
    pub open: Command,
    /// Ends with 0 if the gate is closed.
    pub closed: Command,
    /// Fails unless the gate is closed.
    pub refused: Option<Call>,
    /// Fails unless the gate is open.
    pub served: Option<Call>,
    /// Closes the gate of a service that does not run.
    pub offline: Option<Offline>,
}

/// The services that are stopped.
#[derive(Clone, Debug, Default)]
pub struct StopGate {
    /// Their names; none for every published service that no other service depends on.
    pub services: Option<BTreeSet<String>>,
}

/// A request whose answer says whether the gate is closed.
#[derive(Clone, Debug)]
pub struct Position {
    /// The request.
    pub request: Line,
    /// The values of a closed gate, by JSON pointer (RFC 6901).
    pub closed: BTreeMap<String, Value>,
    /// The values of an open gate. The status must be 200 too.
    pub open: BTreeMap<String, Value>,
    /// Where the reason is that was given when it was closed.
    pub reason: String,
}

/// A program in the image of the service that closes the gate in its stored data.
#[derive(Clone, Debug)]
pub struct Offline {
    /// The arguments, with `${REASON}`.
    pub run: Vec<String>,
    /// What it prints after it has closed the gate.
    pub prints: String,
    /// The arguments of the same program that open it again: for machines of the engine where the service does not run now
    /// and may run later.
    pub open: Option<Vec<String>>,
}

impl Offline {
    /// The arguments that close the gate for this reason.
    pub fn words(&self, reason: &str) -> Result<Vec<String>> {
        self.run.iter().map(|word| filled(word, &[("REASON", reason)])).collect()
    }
}

/// The reason that a gate has which is closed before its service starts for the first time on a machine.
pub const NOT_VERIFIED: &str = "rollback: not verified yet";

/// A program and its arguments, without a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command(pub Vec<String>);

impl Command {
    /// The words to run. A word that is only `${REASON}` is replaced. Any other is left to the program, which
    /// has the reason in its environment: text of a person must not become a part of a shell script.
    pub fn words(&self, reason: &str) -> Vec<String> {
        let word = |word: &String| if word == "${REASON}" { reason.to_owned() } else { word.clone() };
        self.0.iter().map(word).collect()
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

impl TryFrom<&str> for Command {
    type Error = String;

    /// Words are separated by spaces. Quotes keep spaces in a word, as in a shell; there is no other syntax.
    fn try_from(text: &str) -> Result<Self, String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in text.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (None, c) if c.is_whitespace() => words.extend(word.take()),
                (_, c) => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        match quote {
            Some(open) => Err(format!("{text:?} is no command: a {open} is not closed")),
            None => Self::try_from(words),
        }
    }
}

impl TryFrom<Vec<String>> for Command {
    type Error = String;

    fn try_from(words: Vec<String>) -> Result<Self, String> {
        if words.first().is_none_or(String::is_empty) {
            return Err("a command needs the name of a program".to_owned());
        }
        Ok(Self(words))
    }
}

impl GateRule {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Http(_) => Kind::Http,
            Self::Exec(_) => Kind::Exec,
            Self::Stop(_) => Kind::Stop,
        }
    }

    /// The service that lets the public in; none where services are stopped.
    pub fn service(&self) -> Option<&str> {
        match self {
            Self::Http(gate) => Some(&gate.service),
            Self::Exec(gate) => Some(&gate.service),
            Self::Stop(_) => None,
        }
    }

    /// The services that the rule names.
    pub fn named(&self) -> BTreeSet<&str> {
        match self {
            Self::Stop(stop) => stop.services.iter().flatten().map(String::as_str).collect(),
            _ => self.service().into_iter().collect(),
        }
    }

    /// How a gate of a service that does not run is closed; none if it cannot be.
    pub fn offline(&self) -> Option<&Offline> {
        match self {
            Self::Http(gate) => Some(&gate.offline),
            Self::Exec(gate) => gate.offline.as_ref(),
            Self::Stop(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_never_becomes_a_part_of_a_script() {
        let words = |text: &str| Command::try_from(text).unwrap().words("a; rm -rf /");
        assert_eq!(words("gate close ${REASON}"), ["gate", "close", "a; rm -rf /"]);
        assert_eq!(words("sh -c 'gate ${REASON}'"), ["sh", "-c", "gate ${REASON}"]);
    }
}
