//! Runs a plan: one loop, one match. Each step is journaled when it begins and when it ends, and takes
//! the nearer of its own limit and the budget's end. Nothing is decided here; a plan that turns out
//! stale is given back (`Stale`) to be made anew from a fresh observation. What a step does is in `steps`.

mod steps;

use crate::deadline::Deadline;
use crate::engine::Extent;
use crate::envfile::EnvFile;
use crate::event::{Event, Progress};
use crate::failure::{Exit, exit_of, fail, next_of, over_budget};
use crate::gate::Gate;
use crate::lockout;
use crate::observe::Observation;
use crate::output::Output;
use crate::plan::{Plan, Step};
use crate::release::{Release, Store};
use crate::run::{Past, Run};
use crate::verify::Smoke;
use crate::view::View;
use anyhow::{Result, bail, ensure};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An engine that did not answer a moment ago is not waited for again.
const ASK: Duration = Duration::from_secs(2);

/// What every step may need.
pub struct Execution<'a> {
    /// The stack by the manifest of what runs: it is closed, copied and kept as evidence.
    pub running: &'a View,
    /// The stack by the manifest of the release gone to: it is applied, checked and opened.
    pub target: &'a View,
    /// The releases.
    pub store: &'a Store,
    /// Where events go.
    pub out: &'a Output,
    /// End of the budget.
    pub deadline: Deadline,
    /// The release that the plan leads to.
    pub release: &'a Release,
    /// Its settings.
    pub env: &'a EnvFile,
    /// What the plan was made from.
    pub now: &'a Observation,
    /// The run, whose folder has evidence and backups.
    pub run: &'a Run,
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
    /// Who holds the gate closed at the end, and why.
    pub held: Option<String>,
    /// Whether what runs is known to be well or wrong, for the end of a run that fails.
    pub stance: Stance,
    /// What this run has done so far, with what its journal proves of an earlier try.
    pub past: Past,
}

/// What is known of a stack that could not be brought to a release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    /// Nothing yet: it is judged at the end.
    #[default]
    Open,
    /// The services answer and are healthy although the engine does not: their gate is left open on purpose.
    LeftServed,
    /// It is wrong.
    Wrong,
}

/// How a step ended, when it did not fail.
#[derive(Debug, Default)]
struct Done {
    /// What was missed without harm.
    missed: Option<String>,
    /// Folder, within the run's, that the step has filled.
    folder: Option<PathBuf>,
}

impl Done {
    fn missing(what: impl Into<String>) -> Self {
        Self { missed: Some(what.into()), folder: None }
    }
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
        let say = |progress, detail: Option<String>, folder: Option<&Path>| {
            execution.out.event(&Event::Step {
                action: step,
                step: step.to_string(),
                progress,
                at_ms: execution.out.elapsed_ms(),
                took_ms: begun.elapsed().as_millis() as u64,
                detail,
                folder,
            });
        };
        say(Progress::Started, None, None);
        let done = if execution.deadline.passed() {
            Err(over_budget().into())
        } else {
            measured.past.begins(step);
            execution.run(step, measured)
        };
        match done {
            Ok(Done { missed, folder }) => {
                let progress = if missed.is_some() { Progress::Missed } else { Progress::Done };
                say(progress, missed, folder.as_deref());
                measured.past.ends(step, folder.map(|folder| execution.run.dir.path().join(folder)));
            }
            Err(error) if error.is::<Stale>() => {
                say(Progress::Missed, Some(error.to_string()), None);
                return Err(error);
            }
            Err(error) => {
                say(Progress::Failed, Some(format!("{error:#}")), None);
                return Err(execution.classify(error));
            }
        }
    }
    Ok(())
}

impl Execution<'_> {
    /// Something was begun, so the command is not what is wrong; a step that ran into the end of the budget
    /// failed for that reason.
    fn classify(&self, error: anyhow::Error) -> anyhow::Error {
        match exit_of(&error) {
            Exit::Host | Exit::OverBudget => error,
            _ if self.deadline.passed() => error.context(over_budget()),
            Exit::NotRestored => error,
            _ => fail(Exit::NotRestored, format!("{error:#}"), next_of(&error).cloned().unwrap_or_default()),
        }
    }

    /// One step.
    fn run(&self, step: &Step, measured: &mut Measured) -> Result<Done> {
        let limits = &self.target.pilot.manifest.limits;
        let question = self.deadline.within(limits.engine);
        let deploy = self.deadline.within(limits.deploy);
        let engine = self.target.engine.as_ref();
        let dir = self.store.dir(&self.release.id);
        match step {
            Step::CloseGate => self.close_gate(question, measured)?,
            Step::StopGateway => self.stop(&[self.running.pilot.gateway().to_owned()], question, measured)?,
            Step::StopPublished { services } => self.stop(services, question, measured)?,
            Step::FreeSpace => return self.free_space(deploy),
            Step::Preserve { data } => return self.preserve(data),
            Step::TearDown => {
                self.running.engine.down(Extent::Data, deploy)?;
                let left = engine.belongings(question)?;
                ensure!(left.is_empty(), "still there after the teardown: {}", left.join(", "));
            }
            Step::LoadImages { services } => self.load(services, deploy)?,
            Step::PointTags => {
                self.store.set_current(&self.release.id)?;
                engine.point_tags(self.release, question)?;
            }
            Step::RestoreEnvFile => self.restore_env_file()?,
            Step::RemoveData { services } => {
                services.iter().try_for_each(|s| self.running.engine.remove_data(s, question))?;
            }
            Step::ReturnData { except } => self.return_data(&dir, except, &measured.past, deploy)?,
            Step::RestoreData { from, services } => self.restore_data(&dir, from, services, deploy)?,
            Step::AskEngine => {
                if self.now.gate == Gate::Open && measured.gate_closed_ms.is_none() {
                    self.out.note("the services answer and are healthy: their gate is left open");
                    measured.stance = Stance::LeftServed;
                }
                engine.observe(self.deadline.within(ASK))?;
                bail!(Stale("the engine answers again".into()));
            }
            Step::CloseGateOnDisk => {
                lockout::close_on_disk(self.target, self.store, &self.reason(), deploy)?;
                measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
            }
            Step::RemoveServices { services } => engine.remove(services, question)?,
            Step::Replace { force } => self.replace(&dir, force, deploy)?,
            Step::Seed => self.seed()?,
            Step::Watch => return self.watch(question),
            Step::Verify => self.verify(measured)?,
            Step::OpenGate => self.open_gate(measured)?,
            Step::KeepClosed { hold } => {
                self.wait_for_gateway()?;
                measured.held = Some(hold.clone());
            }
        }
        Ok(Done::default())
    }

    /// What the public is told: why a person holds the gate closed, else what the run is about.
    fn reason(&self) -> String {
        self.run.reason_under(&self.now.holds)
    }
}
