//! The values that a stack on a Swarm consists of, what they are made from, and the draft that collects them. No rule
//! of Swarm is here. Used by every file of `spec`.

use anyhow::Result;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

/// The label that `docker stack` has on all that belongs to a stack. Its value is the project.
pub const STACK: &str = "com.docker.stack.namespace";

/// The first part of our own labels.
pub const OWN: &str = "rollback.invalid/";

/// A stack as the engine creates it.
#[derive(Default)]
pub struct Plan {
    /// The whole `ServiceSpec` of each service, by its name in the compose file. Its `Name` is `PROJECT_service`.
    pub services: BTreeMap<String, Value>,
    /// The networks that these services use, by their real names.
    pub networks: Vec<Network>,
    /// The configs to create. A file that a service mounts is one too.
    pub configs: Vec<File>,
    /// The secrets to create.
    pub secrets: Vec<File>,
    /// The volumes that these services mount, by their real names.
    pub volumes: BTreeMap<String, Volume>,
    /// What is different on a Swarm, but works: a sentence each, with the service.
    pub notes: Vec<String>,
    /// What cannot be carried over: a sentence each, with what to do. If there is one, nothing may be created.
    pub refusals: Vec<String>,
}

/// A network of a stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name in the engine.
    pub name: String,
    /// Did someone else make it? Then it must be there already.
    pub external: bool,
    /// The body of `POST /networks/create`; null if it is external.
    pub spec: Value,
}

/// A config or a secret. It has no `Debug`, so that what is in it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its name in the engine. It has the checksum of the content in it, because the engine never changes a content.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its content, as it is; the engine wants it in Base64.
    pub data: Vec<u8>,
}

/// A volume of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Did someone else make it? Then it must be there already.
    pub external: bool,
}

/// What the plan is made from.
pub struct Source<'a> {
    /// The project.
    pub project: &'a str,
    /// What `docker compose config --format json` prints, with each `$$` read as `$`.
    pub config: &'a Value,
    /// The id of the image (`sha256:…`) of each service.
    pub images: &'a BTreeMap<String, String>,
    /// The folder that absolute paths of the stack begin with in `config`.
    pub dir: &'a Path,
    /// Reads a file of the stack, by its path relative to `dir`. An error means that it is no file.
    pub read: &'a dyn Fn(&str) -> Result<Vec<u8>>,
    /// The services to make; the caller leaves out those of inactive profiles.
    pub services: &'a BTreeSet<String>,
}

/// The kinds of `File`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everybody who reaches the engine can read it.
    Config,
    /// Only the tasks that use it can read it.
    Secret,
}

impl Kind {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Secret => "secret",
        }
    }
}

/// A plan that is being made.
pub struct Draft<'a> {
    /// What it is made from.
    pub source: &'a Source<'a>,
    /// What there is of it so far.
    pub plan: Plan,
}

impl Draft<'_> {
    /// Says what is different on a Swarm. `subject` is a service or a part of the stack.
    pub fn note(&mut self, subject: &str, what: impl Display) {
        say(&mut self.plan.notes, subject, &what);
    }

    /// Says what cannot be carried over, and what to do.
    pub fn refuse(&mut self, subject: &str, what: impl Display) {
        say(&mut self.plan.refusals, subject, &what);
    }

    /// The labels that the stack gives something, and that of the stack. A label that the stack has of that name is not
    /// used.
    pub fn labels(&self, given: &Value) -> Map<String, Value> {
        let plain = |value: &Value| match value {
            Value::Null => Value::from(""),
            Value::String(_) => value.clone(),
            other => Value::from(other.to_string()),
        };
        let given = given.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with(OWN));
        let mut all: Map<String, Value> = given.map(|(name, value)| (name.clone(), plain(value))).collect();
        all.insert(STACK.to_owned(), self.source.project.into());
        all
    }
}

/// Adds a sentence once.
fn say(all: &mut Vec<String>, subject: &str, what: &impl Display) {
    let sentence = format!("{subject}: {what}");
    if !all.contains(&sentence) {
        all.push(sentence);
    }
}
