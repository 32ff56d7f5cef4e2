//! Runs a plan: one loop, one match. Each step is journaled when it begins and when it ends, and takes
//! the nearer of its own limit and the budget's end. Nothing is decided here; a plan that turns out
//! stale is given back (`Stale`) to be made anew from a fresh observation.

use crate::backup::{self, Backup};
use crate::deadline::Deadline;
use crate::engine::{Engine, Extent};
use crate::envfile::EnvFile;
use crate::evidence;
use crate::failure::{Exit, exit_of, fail};
use crate::files::{self, Mode};
use crate::gate::{self, Gate};
use crate::host;
use crate::http::Client;
use crate::journal::{Event, Output, Progress};
use crate::observe::{self, Observation};
use crate::pilot::Pilot;
use crate::plan::{Plan, Step};
use crate::release::{ENV_FILE, Release, SEED_FILE, Store};
use crate::threads::joined;
use crate::verify::{self, Smoke, StoreCorrupt, Target};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest that one request to the gate takes; it is asked while the public waits.
const GATE_REQUEST: Duration = Duration::from_secs(1);

/// Longest that opening takes, up to a public stream's first token.
const OPENING: Duration = Duration::from_secs(10);

/// An engine that did not answer a moment ago is not waited for again.
const ASK: Duration = Duration::from_secs(2);

/// Between two looks at what the services use.
const WATCH: Duration = Duration::from_secs(1);

/// What every step may need.
pub struct Execution<'a> {
    /// The pilot.
    pub pilot: &'a Pilot,
    /// What runs it.
    pub engine: &'a dyn Engine,
    /// Its releases.
    pub store: &'a Store,
    /// Where events go.
    pub out: &'a Output,
    /// End of the budget.
    pub deadline: Deadline,
    /// The release that the plan leads to, and its env file.
    pub release: &'a Release,
    /// Its settings.
    pub env: &'a EnvFile,
    /// What the plan was made from.
    pub now: &'a Observation,
    /// Folder of the rollback, for evidence and backup; none for a deployment.
    pub place: Option<&'a Path>,
}

/// What was measured on the way.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The gate was proved closed, from the start of the process.
    pub gate_closed_ms: Option<u64>,
    /// A public stream had its first token.
    pub restored_ms: Option<u64>,
    /// The last verification.
    pub smoke: Option<Smoke>,
}

/// The world is no longer what the plan was made from; make a new one.
#[derive(Debug)]
pub struct Stale(String);

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stale {}

/// Runs the steps in order; the first that fails ends it.
pub fn execute(execution: &Execution<'_>, plan: &Plan, measured: &mut Measured) -> Result<()> {
    for step in &plan.steps {
        let begun = Instant::now();
        let say = |progress, detail: Option<String>| {
            execution.out.event(&Event::Step {
                step: step.to_string(),
                progress,
                at_ms: execution.out.elapsed_ms(),
                took_ms: begun.elapsed().as_millis() as u64,
                detail,
            });
        };
        say(Progress::Started, None);
        let done =
            if execution.deadline.passed() { Err(over_budget()) } else { execution.run(step, measured) };
        match done {
            Ok(None) => say(Progress::Done, None),
            Ok(Some(missed)) => say(Progress::Missed, Some(missed)),
            Err(error) if error.is::<Stale>() => {
                say(Progress::Missed, Some(error.to_string()));
                return Err(error);
            }
            Err(error) => {
                say(Progress::Failed, Some(format!("{error:#}")));
                // A step that ran into the end of the budget failed for that reason.
                return Err(if execution.deadline.passed() && exit_of(&error) != Exit::Host {
                    error.context(over_budget_failure())
                } else {
                    error
                });
            }
        }
    }
    Ok(())
}

fn over_budget_failure() -> crate::failure::Failure {
    crate::failure::Failure {
        exit: Exit::OverBudget,
        what: "the budget is used up".into(),
        next: "call the technical lead (Level 2); cargo xtask rollback --budget 15m takes it up again".into(),
    }
}

fn over_budget() -> anyhow::Error {
    anyhow::Error::new(over_budget_failure())
}

impl Execution<'_> {
    /// One step. `Some` says what was missed without harm.
    fn run(&self, step: &Step, measured: &mut Measured) -> Result<Option<String>> {
        let limits = &self.pilot.manifest.limits;
        let question = self.deadline.within(limits.engine);
        let deploy = self.deadline.within(limits.deploy);
        let dir = self.store.dir(&self.release.id);
        let gateway = self.pilot.gateway();
        match step {
            Step::CloseGate => self.close_gate(question, measured)?,
            Step::StopGateway => {
                self.engine.stop(gateway, question)?;
                measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
            }
            Step::FreeSpace => return self.free_space(deploy),
            Step::Preserve { data } => return self.preserve(data),
            Step::TearDown => {
                self.engine.down(Extent::Data, deploy)?;
                let left = self.engine.belongings(question)?;
                ensure!(left.is_empty(), "still there after the teardown: {}", left.join(", "));
            }
            Step::LoadImages { services } => {
                for service in services {
                    let image = &self.release.images[service];
                    let archive = self.store.check_archive(image)?;
                    self.engine.load(image, &archive, deploy)?;
                }
            }
            Step::PointTags => {
                self.store.set_current(&self.release.id)?;
                self.engine.point_tags(self.release, question)?;
            }
            Step::RestoreEnvFile => {
                let from = self.store.file(&self.release.id, ENV_FILE);
                files::copy(&from, &self.pilot.env_path, Mode::Private).map(drop)?;
            }
            Step::RemoveData { services } => {
                services.iter().try_for_each(|s| self.engine.remove_data(s, question))?;
            }
            Step::ReturnData { except } => {
                let own = self.place.context("only a rollback has a backup")?.join("backup");
                let mut services = Backup::read(&own)?.context("there is no backup")?.data();
                services.retain(|service| !except.contains(service));
                self.restore_data(&dir, &own, &services, deploy)?;
            }
            Step::RestoreData { from, services } => self.restore_data(&dir, from, services, deploy)?,
            Step::AskEngine => {
                if self.now.gate == Gate::Open && measured.gate_closed_ms.is_none() {
                    self.out.note("the services answer and are healthy: their gate is left open");
                }
                self.engine.observe(self.deadline.within(ASK))?;
                bail!(Stale("the engine answers again".into()));
            }
            Step::CloseGateOnDisk => {
                let words = ["gate", "close", "rollback: not verified yet"];
                let said = self.engine.run_once(self.release, &dir, gateway, &words, deploy)?;
                ensure!(said.trim() == "closed", "the gate on disk is {:?} after closing it", said.trim());
                measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
            }
            Step::Replace { force } => self.replace(&dir, force, deploy)?,
            Step::Seed => {
                let path = self.store.file(&self.release.id, SEED_FILE);
                let seed = files::read_json(&path)?;
                self.wait_for_gateway()?;
                let ready = self.deadline.within(limits.ready);
                let healthy = verify::wait_healthy(&Target::new(self.pilot, self.env)?, ready);
                // A service that did not run could not tell that its store is corrupt.
                healthy.map_err(|e| if e.is::<StoreCorrupt>() { Stale(e.to_string()).into() } else { e })?;
                let answer = self.restored_gateway(limits.ready)?.post("/admin/seed", &seed)?;
                ensure!(answer.status == 200, "POST /admin/seed answered {}", answer.brief());
            }
            Step::Watch => return self.watch(question),
            Step::Verify => self.verify(measured)?,
            Step::OpenGate => {
                gate::open(&self.restored_gateway(OPENING.min(self.deadline.left()))?)?;
                measured.restored_ms = Some(self.out.elapsed_ms());
            }
        }
        Ok(None)
    }

    fn close_gate(&self, question: Deadline, measured: &mut Measured) -> Result<()> {
        let why = match self.place {
            Some(_) => "rollback: restoring the last known-good release",
            None => "a release is being deployed",
        };
        let client = self.now.gateway(self.pilot, GATE_REQUEST).context("nobody tells where it answers");
        let closed = client.and_then(|c| gate::close(&c, why));
        if let Err(error) = closed {
            self.engine.stop(self.pilot.gateway(), question).with_context(|| {
                format!("the gate could not be closed ({error:#}), and the gateway not be stopped")
            })?;
            measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
            bail!(Stale(format!("the gate could not be closed, the gateway was stopped: {error:#}")));
        }
        measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
        Ok(())
    }

    /// Evidence and backup side by side. What evidence missed is no failure.
    fn preserve(&self, data: &[String]) -> Result<Option<String>> {
        let place = self.place.context("only a rollback has a place for evidence")?;
        let limits = &self.pilot.manifest.limits;
        let limit = self.deadline.within(limits.evidence);
        // Data may be large, and without its copy nothing goes on.
        let copying = if data.is_empty() { limit } else { self.deadline.within(limits.deploy) };
        let (evidence, backup) = std::thread::scope(|scope| {
            let evidence = scope.spawn(|| {
                let items = evidence::items(self.pilot, self.engine, self.now, limit);
                evidence::gather(self.pilot, items, &place.join("evidence"))
            });
            // Logs go with a teardown, so they are part of its backup.
            let what = backup::Contents { release: Some(&self.release.id), data, logs: !data.is_empty() };
            let backup = backup::create(self.pilot, self.engine, what, &place.join("backup"), copying);
            (joined(evidence), backup)
        });
        backup.context("nothing was changed, because there is no backup")?;
        Ok(match evidence {
            Ok(manifest) if manifest.missed.is_empty() => None,
            Ok(manifest) => {
                let names: Vec<&str> = manifest.missed.keys().map(String::as_str).collect();
                Some(format!("missed {} (why: evidence/{})", names.join(", "), evidence::INDEX))
            }
            Err(error) => Some(format!("no evidence: {error:#}")),
        })
    }

    /// What could not be freed is no failure: it shows in what comes next.
    fn free_space(&self, deadline: Deadline) -> Result<Option<String>> {
        match host::free(self.pilot, self.engine, self.store, deadline) {
            Ok(freed) => {
                let bytes = freed.iter().map(|f| f.bytes).sum();
                self.out.note(format!("freed {} in {} places", files::human(bytes), freed.len()));
                Ok(None)
            }
            Err(error) => Ok(Some(format!("{error:#}"))),
        }
    }

    fn restore_data(&self, dir: &Path, from: &Path, services: &[String], deadline: Deadline) -> Result<()> {
        let backup = Backup::read(from)?.with_context(|| format!("{} has no backup", from.display()))?;
        for service in services {
            let archive = backup.archive(from, service)?;
            // Cut off halfway and taken up again, there may be half of it.
            self.engine.remove_data(service, deadline)?;
            let restored = self.engine.restore_data(dir, service, &archive, deadline);
            let restored = restored.with_context(|| format!("bringing the data of {service} back"));
            match restored {
                // What stands beside the pilot does not keep it from being restored.
                Err(error) if self.pilot.services().all(|own| own != service) => {
                    self.out.note(format!("it stays in the backup alone: {error:#}"));
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Steady: no service was started anew, memory changed by less than a tenth, and the host is within its
    /// limits. What never gets steady is told, and left to the verification to judge.
    fn watch(&self, deadline: Deadline) -> Result<Option<String>> {
        let mut last: Option<BTreeMap<String, (u64, f64)>> = None;
        let mut why = "nothing could be measured".to_owned();
        while !deadline.passed() {
            let now = self.sample(deadline)?;
            let moved = |(name, (restarts, memory)): (&String, &(u64, f64))| {
                let (old_restarts, old_memory) = last.as_ref()?.get(name)?;
                let grown = (memory - old_memory).abs() > old_memory * 0.1;
                (restarts != old_restarts || grown).then(|| name.clone())
            };
            let moved: Vec<String> = now.iter().filter_map(moved).collect();
            let short = host::quick(self.pilot).into_iter().find(|check| check.ok == Some(false));
            why = match (&last, short) {
                (_, Some(check)) => format!("{}: {}", check.name, check.detail),
                (Some(_), None) if moved.is_empty() => {
                    let each = now
                        .iter()
                        .map(|(name, (_, bytes))| format!("{name} {}", files::human(*bytes as u64)));
                    self.out.note(format!("steady: {}", each.collect::<Vec<_>>().join(", ")));
                    return Ok(None);
                }
                (Some(_), None) => format!("not steady: {}", moved.join(", ")),
                (None, None) => why,
            };
            last = Some(now);
            std::thread::sleep(WATCH);
        }
        Ok(Some(why))
    }

    /// Restarts and resident memory of each service.
    fn sample(&self, deadline: Deadline) -> Result<BTreeMap<String, (u64, f64)>> {
        let stack = self.engine.observe(deadline)?;
        let clients = observe::clients(self.pilot, self.env, GATE_REQUEST)?;
        let mut sample = BTreeMap::new();
        for (name, client) in clients {
            let text = client.get("/metrics")?.body;
            let memory = text.lines().find_map(|line| line.strip_prefix("scenario_resident_memory_bytes "));
            let memory = memory.and_then(|value| value.trim().parse().ok());
            let memory = memory.with_context(|| format!("{name} does not tell its memory"))?;
            sample.insert(name.clone(), (stack.services.get(&name).map_or(0, |s| s.restarts), memory));
        }
        Ok(sample)
    }

    /// Applies until it holds: a client that was killed before may have left an engine at work.
    fn replace(&self, dir: &Path, force: &[String], deadline: Deadline) -> Result<()> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.engine.apply(self.release, dir, force, deadline) {
                Ok(()) => return Ok(()),
                Err(error) if exit_of(&error) == Exit::Host || tries == 3 || deadline.passed() => {
                    return Err(self.name_port_owner(error));
                }
                Err(error) => self.out.note(format!("trying again: {error:#}")),
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// A port that is taken is the host's trouble; whoever has it is named.
    fn name_port_owner(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        if !text.contains("port is already allocated") && !text.contains("address already in use") {
            return error;
        }
        let taken = self.pilot.services().filter_map(|service| {
            let port = self.pilot.port(service, self.env).ok()?;
            let ours = self.engine.observe(self.deadline).ok()?.services.get(service)?.is_running();
            let owner = crate::engine::owner_of(port).filter(|_| !ours)?;
            Some(format!("port {port} of {service} is taken by {owner}"))
        });
        let taken: Vec<String> = taken.collect();
        let what = if taken.is_empty() { text } else { taken.join("; ") };
        fail(Exit::Host, what, "end that process, or change the port in the env file, and run this again")
    }

    /// The gateway as the release has it: the port and token of its env file.
    fn restored_gateway(&self, limit: Duration) -> Result<Client> {
        let clients = observe::clients(self.pilot, self.env, limit)?;
        clients.get(self.pilot.gateway()).cloned().context("pilot.toml names no gateway")
    }

    /// It just started; closed, or it is closed at once.
    fn wait_for_gateway(&self) -> Result<()> {
        let gateway = self.restored_gateway(GATE_REQUEST)?;
        let ready = self.deadline.within(self.pilot.manifest.limits.ready);
        loop {
            match gate::position(&gateway) {
                Gate::Closed(_) => return Ok(()),
                Gate::Open => {
                    self.out.note("the gate came up open; closing it before anything else");
                    return gate::close(&gateway, "rollback: not verified yet");
                }
                Gate::Unknown(why) if ready.passed() => bail!("the gateway does not answer: {why}"),
                Gate::Unknown(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn verify(&self, measured: &mut Measured) -> Result<()> {
        self.wait_for_gateway()?;
        let ready = self.deadline.within(self.pilot.manifest.limits.ready);
        let smoke = verify::verify(&Target::new(self.pilot, self.env)?, ready);
        self.out.event(&Event::Smoke { smoke: &smoke });
        let summary = smoke.summary();
        let passed = smoke.passed;
        measured.smoke = Some(smoke);
        if !passed {
            let what = format!("release {} is not verified: {summary}", self.release.id);
            return Err(fail(Exit::NotRestored, what, "cargo xtask status"));
        }
        Ok(())
    }
}
