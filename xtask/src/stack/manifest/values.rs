//! The parts of a manifest, as values. They are read by `sections`.

use super::reading::Needs;
use crate::base::http::Pass;
use crate::base::secrets;
use crate::stack::call::{Line, names};
use crate::stack::check::{Check, Criterion};
use crate::stack::gate_rule::{Command, GateRule};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `pilot.toml` as it is written. The default is a stack without a manifest.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Name of the env file beside the manifest. None for `.env`, if there is one.
    pub env_file: Option<String>,
    /// Name of the file that a new env file is made from.
    pub env_example: Option<String>,
    /// Name of the compose file. None for the one that Compose finds.
    pub compose_file: Option<String>,
    /// The demo scenario.
    pub seed_file: Option<String>,
    /// What the images are built from that Compose does not build.
    pub build: Option<Build>,
    /// More files that are part of each release. Those that Compose mentions are found without this.
    pub extra_files: Vec<String>,
    /// What a project with another name than the default one needs.
    pub projects: Projects,
    /// How the public is let in and shut out.
    pub gate: GateRule,
    /// How the seed file is loaded.
    pub seed: Option<Seed>,
    /// Answers of the services that are kept as evidence.
    pub evidence: Vec<Document>,
    /// What lets us in where the public is not let in.
    pub auth: Auth,
    /// How a service says that it is healthy; none if the engine's word counts.
    pub health: Option<HealthRule>,
    /// What must hold before the gate opens.
    pub checks: Vec<Check>,
    /// The "Success Criteria".
    pub criteria: Vec<Criterion>,
    /// How a service says how much memory it uses; none if the engine's figure counts.
    pub memory: Option<MemoryRule>,
    /// How the number of running sessions is asked for, if there are any.
    pub sessions: Option<SessionRule>,
    /// The streams of the benchmark.
    pub load: Option<LoadRule>,
    /// The services of the stack, for the process engine, which cannot ask Compose.
    pub services: Vec<Service>,
    /// More services that `observe` starts: prometheus first, then grafana.
    pub observability: Vec<Service>,
    /// Which variables are secret.
    pub secrets: secrets::Rules,
    /// Safety flags of the running services.
    pub flags: Option<Flags>,
    /// How long things may take.
    pub limits: Limits,
    /// What is watched after the gate was opened.
    pub watch: WatchRule,
    /// How stored data is copied.
    pub data: DataRules,
    /// Where backups are kept off the host, if they are.
    pub remote: Option<Remote>,
    /// What the host must have free.
    pub host: Host,
    /// Where the images of releases are kept too, on a Swarm: the host of a registry, with a path or without.
    pub registry: Option<String>,
    /// Who is called, by level.
    pub escalation: Vec<Contact>,
    /// The folder that it was read from, which has the programs of its checks; none for the built-in one.
    pub folder: Option<PathBuf>,
    /// What lets a drill break the stack by its settings.
    pub drill: Drill,
    /// Who is told of what is done, if anybody is.
    pub notify: Option<Notify>,
    /// Where figures are written for Prometheus, if they are.
    pub metrics: Option<Metrics>,
    /// What its requests and limits need, each with its place.
    pub(super) needs: Needs,
    /// The name of its file, for messages.
    pub(super) file: String,
}

/// The `[drill]` part.
#[derive(Clone, Debug, Default)]
pub struct Drill {
    /// Settings with which the stack fails its checks.
    pub settings: BTreeMap<String, String>,
}

/// The `[projects]` part. A project of another name than the default one may run beside it and must share nothing with it.
#[derive(Clone, Debug, Default)]
pub struct Projects {
    /// Variables that its env file gets, with `${PROJECT}`. The names of images and networks of the stack depend on them.
    pub variables: BTreeMap<String, String>,
    /// Names that no project may have, because it would share an image or a network with the default one.
    pub refused: Vec<String>,
}

/// The `[build]` part.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// Name of the cargo package, and of its binary.
    pub package: String,
}

/// The `[seed]` part.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Sends the seed file to the gateway.
    pub request: Line,
}

/// One `[[evidence]]`: an answer that is kept.
#[derive(Clone, Debug)]
pub struct Document {
    /// The request.
    pub request: Line,
    /// The name of the file. If every service is asked, it begins with the name of the service and a dot.
    pub file: String,
    /// The service that is asked; none for every service.
    pub service: Option<String>,
}

/// One service.
#[derive(Clone, Debug)]
pub struct Service {
    /// As in the compose file.
    pub name: String,
    /// The variable of the env file that has its published port.
    pub port: String,
    /// The volume that has its stored data.
    pub volume: String,
}

/// The `[auth]` part: headers by which a service knows who asks.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// The variable of the env file that has the admin token.
    pub token: Option<String>,
    /// The header that carries the token, in lowercase; none for `authorization: Bearer TOKEN`.
    pub header: Option<String>,
    /// The header that carries the name of the project, so that the service of another project refuses.
    pub project: Option<String>,
}

impl Manifest {
    /// The rules by which secrets are known. What the URL of a webhook is made of is secret too.
    pub fn secret_rules(&self) -> secrets::Rules {
        let mut rules = self.secrets.clone();
        let webhook = self.notify.iter().filter_map(|notify| notify.webhook.as_deref());
        rules.variables.extend(webhook.flat_map(|url| names(url).unwrap_or_default()).map(str::to_owned));
        rules
    }
}

impl Drill {
    /// The settings, as pairs.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

impl Auth {
    /// What is sent to a service of this project that was started with this token.
    pub fn pass(&self, project: &str, token: Option<&str>) -> Pass {
        let token = token.filter(|token| !token.is_empty()).map(|token| match &self.header {
            Some(header) => (header.clone(), token.to_owned()),
            None => ("authorization".to_owned(), format!("Bearer {token}")),
        });
        Pass { project: self.project.clone().map(|header| (header, project.to_owned())), token }
    }
}

/// The `[health]` part: what a healthy service answers.
#[derive(Clone, Debug)]
pub struct HealthRule {
    /// The request, to every service.
    pub request: Line,
    /// The values of a healthy service, by JSON pointer (RFC 6901); one of several. The status must be 200 too.
    pub healthy: BTreeMap<String, Vec<Value>>,
    /// Where its version is.
    pub version: Option<String>,
    /// Must all services have the same version?
    pub same_version: bool,
    /// Where the project is that it belongs to.
    pub project: Option<String>,
    /// Where the reason is, if it is not healthy.
    pub reason: Option<String>,
    /// How the reason begins if the service cannot use its stored data.
    pub corrupt: Option<String>,
}

/// The `[memory]` part: a page of metrics as Prometheus reads it.
#[derive(Clone, Debug)]
pub struct MemoryRule {
    /// The request, to every service.
    pub request: Line,
    /// The metric, in bytes.
    pub metric: String,
}

/// The `[sessions]` part.
#[derive(Clone, Debug)]
pub struct SessionRule {
    /// The request.
    pub request: Line,
    /// Where the number of running sessions is.
    pub active: String,
}

/// The `[load]` part: the streams of the benchmark.
#[derive(Clone, Debug)]
pub struct LoadRule {
    /// The request, with `${N}`, the number of the stream.
    pub request: Line,
    /// The event by which a stream has begun.
    pub begins: String,
    /// The last event of a stream that the gate has ended.
    pub ends: String,
}

/// The `[flags]` part.
#[derive(Clone, Debug)]
pub struct Flags {
    /// The request, to every service.
    pub request: Line,
    /// Where the object with the values is, as a JSON pointer.
    pub values: String,
    /// Flags that must be false.
    pub off: Vec<String>,
    /// Flags that must be true.
    pub on: Vec<String>,
    /// More values of the same answer.
    pub more: Vec<Row>,
}

/// One `[[flags.more]]`.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in output.
    pub name: String,
    /// Where it is in the answer.
    pub pointer: String,
    /// What it must be.
    pub is: String,
    /// What it is if the answer does not have it; none if that is not known.
    pub absent: Option<String>,
}

/// The `[limits]` part. What is left out has the value of `default`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Limit of a whole rollback.
    pub budget: Duration,
    /// Limit of one HTTP request of an observation.
    pub probe: Duration,
    /// Limit from the start of the services until all are healthy.
    pub ready: Duration,
    /// Limit of one query to the engine.
    pub engine: Duration,
    /// Limit for replacing the services.
    pub deploy: Duration,
    /// Limit for the evidence, and for the backup.
    pub evidence: Duration,
    /// How many known-good releases retention keeps.
    pub keep_releases: usize,
    /// How many backups retention keeps.
    pub keep_backups: usize,
    /// How many runs, with their evidence, retention keeps.
    pub keep_runs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            budget: seconds(300),
            probe: seconds(1),
            ready: seconds(60),
            engine: seconds(10),
            deploy: seconds(120),
            evidence: seconds(5),
            keep_releases: 5,
            keep_backups: 5,
            keep_runs: 50,
        }
    }
}

/// The `[watch]` part: what is watched after the gate was opened, and what is too much. A manifest without it gets the
/// values of `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRule {
    /// How long; zero: not at all. Restarts are counted within so long.
    pub time: Duration,
    /// The time between two looks.
    pub every: Duration,
    /// Names of the checks that are made at each look. Health is always watched.
    pub checks: Vec<String>,
    /// How many restarts of one service are not too many.
    pub restarts: u64,
    /// How many bad looks in a row are needed until something counts as bad.
    pub failures: usize,
}

impl Default for WatchRule {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { time: seconds(10), every: seconds(1), checks: Vec::new(), restarts: 0, failures: 3 }
    }
}

/// The `[data]` part. A manifest without it gets the values of `default`.
#[derive(Clone, Debug)]
pub struct DataRules {
    /// How long what uses stored data may be paused for a copy while the public is served.
    pub pause_max: Duration,
    /// `[data.NAME]`, by the name of the data or of its volume.
    pub each: BTreeMap<String, DataRule>,
}

impl Default for DataRules {
    fn default() -> Self {
        Self { pause_max: Duration::from_secs(10), each: BTreeMap::new() }
    }
}

/// One `[data.NAME]`.
#[derive(Clone, Debug, Default)]
pub struct DataRule {
    /// How its database is dumped; none if its volume is copied.
    pub dump: Option<Dump>,
    /// Is a snapshot of it taken before a deployment changes anything?
    pub before_deploy: bool,
}

/// Two programs in the container of a database: one prints what is stored, the other reads that and stores it again.
#[derive(Clone, Debug)]
pub struct Dump {
    /// The service of the database.
    pub service: String,
    /// Prints what is stored.
    pub backup: Command,
    /// Replaces what is stored by what it reads.
    pub restore: Command,
}

/// The `[remote]` part: a repository of restic, which keeps backups off the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it is, as restic calls it. It has no password in it.
    pub repository: String,
    /// The file with its password; a path from the folder of the stack, if it is not absolute.
    pub password_file: String,
    /// How many backups of the project retention keeps there: so many with data, and so many without.
    pub keep: usize,
    /// How much of it is read back after a push, such as `5%`.
    pub check: String,
}

/// The `[host]` part. A manifest without it gets the values of `default`.
#[derive(Clone, Debug)]
pub struct Host {
    /// Least free space, in MiB, where the state folder and the engine's files are.
    pub disk_free_mib: u64,
    /// Least free inodes there.
    pub inodes_free: u64,
    /// Least available memory, in MiB.
    pub memory_free_mib: u64,
    /// Largest difference between the engine's clock and ours.
    pub clock_skew: Duration,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            disk_free_mib: 100,
            inodes_free: 1000,
            memory_free_mib: 64,
            clock_skew: Duration::from_secs(2),
        }
    }
}

/// The `[notify]` part: receivers outside of the stack, and what they are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// A URL, with `${NAME}` for variables of the environment or of the env file. It is a secret.
    pub webhook: Option<String>,
    /// A program with its arguments.
    pub command: Option<Command>,
    /// When.
    pub on: Vec<Occasion>,
    /// How long one receiver may take.
    pub limit: Duration,
}

/// When somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Occasion {
    /// A run begins.
    Start,
    /// It has ended.
    End,
    /// Somebody must be called: Level 2 or 3.
    Escalation,
    /// A person has closed the gate, or opens it; or a run leaves it closed because of that.
    Hold,
}

impl Occasion {
    /// All, by their words in the manifest.
    pub const ALL: [(&str, Self); 4] =
        [("start", Self::Start), ("end", Self::End), ("escalation", Self::Escalation), ("hold", Self::Hold)];
}

/// The `[metrics]` part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// The folder that the textfile collector of node_exporter reads; a path from the folder of the stack, if it is not
    /// absolute.
    pub textfile: PathBuf,
}

/// One `[[escalation]]`.
#[derive(Clone, Debug)]
pub struct Contact {
    /// 1 to 3.
    pub level: u8,
    /// Name of the level.
    pub name: String,
    /// The person, and how to reach them.
    pub contact: String,
}

/// What the manifest that is shipped has instead of a person.
const NOBODY: &str = "put a name and a number here";

impl Contact {
    /// Is nobody named yet?
    pub fn is_nobody(&self) -> bool {
        self.contact.trim().is_empty() || self.contact == NOBODY
    }
}

/// Names of the files of every evidence bundle; with `SERVICE.` before them, of each service.
pub const EVIDENCE_FILES: [&str; 10] = [
    "observation.json",
    "env.masked",
    "manifest.json",
    "stats.json",
    "networks-and-volumes.json",
    "host.json",
    "drift.json",
    "plan.json",
    "release.json",
    "journal.jsonl",
];

/// Endings of the files that every evidence bundle has of each service.
pub const EVIDENCE_OF_SERVICE: [&str; 2] = ["log", "inspect.json"];
