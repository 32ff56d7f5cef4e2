//! The `[gate]` part of a manifest: how the public is let in and shut out, by one of three kinds. Values
//! only: the parts of `deploy/gate` do what is written here. Read as a part of the manifest.

use crate::stack::call::{Call, Line};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The word in `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Requests to a service.
    Http,
    /// Commands in the container of a service.
    Exec,
    /// The published services are stopped.
    Stop,
}

/// How the public is let in and shut out.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
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
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offline {
    /// The arguments, with `${REASON}`.
    pub run: Vec<String>,
    /// What it prints after it has closed the gate.
    pub prints: String,
}

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

/// A request or a command, as it is written.
#[derive(Clone, Debug)]
enum Act {
    Request(Box<Call>),
    Run(Command),
}

impl<'de> Deserialize<'de> for Act {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = Act;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command, or a request as { request = \"POST /path\" }")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Act, E> {
                Command::try_from(text).map(Act::Run).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Act, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = all.next_element::<String>()? {
                    words.push(word);
                }
                Command::try_from(words).map(Act::Run).map_err(serde::de::Error::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Act, A::Error> {
                Call::deserialize(MapAccessDeserializer::new(map)).map(Box::new).map(Act::Request)
            }
        }
        input.deserialize_any(Words)
    }
}

/// `[gate]` as it is written: what belongs to which kind is decided in `try_from`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kind: Option<Kind>,
    service: Option<String>,
    services: Option<BTreeSet<String>>,
    close: Option<Act>,
    open: Option<Act>,
    closed: Option<Act>,
    refused: Option<Call>,
    served: Option<Call>,
    position: Option<Position>,
    offline: Option<Offline>,
    own_reasons: Option<Vec<String>>,
}

impl Written {
    /// What belongs to no gate of this kind.
    fn foreign(&self, kind: Kind) -> Vec<&'static str> {
        use Kind::{Exec, Http, Stop};
        let all: [(&'static str, bool, &[Kind]); 10] = [
            ("service", self.service.is_some(), &[Http, Exec]),
            ("services", self.services.is_some(), &[Stop]),
            ("close", self.close.is_some(), &[Http, Exec]),
            ("open", self.open.is_some(), &[Http, Exec]),
            ("closed", self.closed.is_some(), &[Exec]),
            ("refused", self.refused.is_some(), &[Http, Exec]),
            ("served", self.served.is_some(), &[Http, Exec]),
            ("position", self.position.is_some(), &[Http]),
            ("offline", self.offline.is_some(), &[Http, Exec]),
            ("own_reasons", self.own_reasons.is_some(), &[Http]),
        ];
        let foreign = all.into_iter().filter(|(_, given, kinds)| *given && !kinds.contains(&kind));
        foreign.map(|(name, ..)| name).collect()
    }
}

/// Takes the parts of a rule, and remembers what is missing or has the wrong form.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn needed<T>(&mut self, name: &str, part: Option<T>) -> Option<T> {
        if part.is_none() {
            self.0.push(format!("`{name}` is missing"));
        }
        part
    }

    fn request(&mut self, name: &str, part: Option<Act>) -> Option<Call> {
        match self.needed(name, part)? {
            Act::Request(call) => Some(*call),
            Act::Run(_) => {
                self.0.push(format!("`{name}` must be a request, as {{ request = \"POST /path\" }}"));
                None
            }
        }
    }

    fn command(&mut self, name: &str, part: Option<Act>) -> Option<Command> {
        match self.needed(name, part)? {
            Act::Run(command) => Some(command),
            Act::Request(_) => {
                self.0.push(format!("`{name}` must be a command, as \"gate close\""));
                None
            }
        }
    }
}

impl TryFrom<Written> for GateRule {
    type Error = String;

    /// All mistakes are told at once.
    fn try_from(written: Written) -> Result<Self, String> {
        // Manifests of older versions name no kind; theirs are requests.
        let kind = match (written.kind, &written.close) {
            (Some(kind), _) => kind,
            (None, Some(Act::Request(_))) => Kind::Http,
            (None, _) => return Err("`kind` is missing in [gate]: http, exec or stop".to_owned()),
        };
        let name = format!("{kind:?}").to_lowercase();
        let foreign = written.foreign(kind).into_iter();
        let mut wrong = Wrong(foreign.map(|part| format!("`{part}` does not belong there")).collect());
        let w = written;
        let rule = match kind {
            Kind::Http => {
                let service = wrong.needed("service", w.service);
                let (close, open) = (wrong.request("close", w.close), wrong.request("open", w.open));
                let refused = wrong.needed("refused", w.refused);
                let served = wrong.needed("served", w.served);
                let position = wrong.needed("position", w.position);
                let offline = wrong.needed("offline", w.offline);
                let own_reasons = w.own_reasons.unwrap_or_default();
                (|| {
                    let (service, close, open) = (service?, close?, open?);
                    let (refused, served, position, offline) = (refused?, served?, position?, offline?);
                    let gate =
                        HttpGate { service, close, open, refused, served, position, offline, own_reasons };
                    Some(Self::Http(Box::new(gate)))
                })()
            }
            Kind::Exec => {
                let service = wrong.needed("service", w.service);
                let (close, open) = (wrong.command("close", w.close), wrong.command("open", w.open));
                let closed = wrong.command("closed", w.closed);
                let (refused, served, offline) = (w.refused, w.served, w.offline);
                (|| {
                    let (service, close, open, closed) = (service?, close?, open?, closed?);
                    let gate = ExecGate { service, close, open, closed, refused, served, offline };
                    Some(Self::Exec(Box::new(gate)))
                })()
            }
            Kind::Stop => Some(Self::Stop(StopGate { services: w.services })),
        };
        match rule {
            Some(rule) if wrong.0.is_empty() => Ok(rule),
            _ => Err(format!("[gate] of kind {name}: {}", wrong.0.join("; "))),
        }
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

    fn rule(text: &str) -> Result<GateRule, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.to_string())
    }

    #[test]
    fn a_rule_of_each_kind_is_read_and_all_its_mistakes_are_told_at_once() {
        let exec = "kind = \"exec\"\nservice = \"a\"\nclose = [\"gate\", \"close\"]\nopen = \"gate open\"\n\
                    closed = \"sh -c 'test -e /closed'\"";
        let Ok(GateRule::Exec(gate)) = rule(exec) else { panic!("{:?}", rule(exec)) };
        assert_eq!(gate.closed.0, ["sh", "-c", "test -e /closed"]);
        assert_eq!(rule("kind = \"stop\"").unwrap().kind(), Kind::Stop);
        for (text, why) in [
            ("service = \"a\"", vec!["`kind` is missing"]),
            ("kind = \"exec\"\nopen = \"a 'b\"", vec!["a ' is not closed"]),
            (
                "kind = \"exec\"\nservices = [\"a\"]\nopen = { request = \"GET /\" }",
                vec![
                    "`services` does not",
                    "`service` is missing",
                    "`close` is missing",
                    "must be a command",
                ],
            ),
            ("kind = \"stop\"\nservice = \"a\"", vec!["`service` does not belong"]),
            ("kind = \"http\"\nclose = \"a\"", vec!["`close` must be a request", "`position` is missing"]),
            ("kind = \"door\"", vec!["unknown variant"]),
        ] {
            let error = rule(text).unwrap_err();
            why.iter().for_each(|why| assert!(error.contains(why), "{text}: {error}"));
        }
    }

    #[test]
    fn a_reason_never_becomes_a_part_of_a_script() {
        let words = |text: &str| Command::try_from(text).unwrap().words("a; rm -rf /");
        assert_eq!(words("gate close ${REASON}"), ["gate", "close", "a; rm -rf /"]);
        assert_eq!(words("sh -c 'gate ${REASON}'"), ["sh", "-c", "gate ${REASON}"]);
    }
}
