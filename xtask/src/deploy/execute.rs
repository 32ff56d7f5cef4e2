//! Runs a plan: one loop, one match. Each step is journaled when it begins and when it ends, and takes
//! the nearer of its own limit and the budget's end. Nothing is decided here; a plan that turns out
//! stale is given back (`Stale`) to be made anew from a fresh observation. What a step does is in `steps`.

use crate::base::failure::{Exit, exit_of, fail, next_of, over_budget};
use crate::deploy::event::{Event, Progress};
use crate::deploy::execution::{Done, Execution, Measured, Stale, Stance};
use crate::deploy::gate::Gate;
use crate::deploy::lockout;
use crate::deploy::plan::Plan;
use crate::deploy::step::Step;
use crate::engine::roles::Extent;
use anyhow::{Result, bail, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

/// An engine that did not answer a moment ago is not waited for again.
const ASK: Duration = Duration::from_secs(2);

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
        let query_deadline = self.deadline.within(limits.engine);
        let deploy = self.deadline.within(limits.deploy);
        let engine = self.target.engine.as_ref();
        let dir = self.store.dir(&self.release.id);
        match step {
            Step::CloseGate => self.close_gate(query_deadline, measured)?,
            Step::StopGateway => {
                self.stop(&[self.running.pilot.gateway().to_owned()], query_deadline, measured)?
            }
            Step::StopPublished { services } => self.stop(services, query_deadline, measured)?,
            Step::FreeSpace => return self.free_space(deploy),
            Step::Preserve { data } => return self.preserve(data),
            Step::TearDown => {
                self.running.engine.down(Extent::Data, deploy)?;
                let left = engine.resources(query_deadline)?;
                ensure!(left.is_empty(), "still there after the teardown: {}", left.join(", "));
            }
            Step::LoadImages { services } => self.load(services, deploy)?,
            Step::Retag => {
                self.store.set_current(&self.release.id)?;
                engine.retag(self.release, query_deadline)?;
            }
            Step::RestoreEnvFile => self.restore_env_file()?,
            Step::RemoveData { services } => {
                services.iter().try_for_each(|s| self.running.engine.remove_data(s, query_deadline))?;
            }
            Step::ReturnData { except } => self.return_data(&dir, except, &measured.past, deploy)?,
            Step::RestoreData { from, services } => self.restore_data(&dir, from, services, deploy)?,
            Step::AskEngine => {
                if self.now.gate == Gate::Open && measured.gate_closed_ms.is_none() {
                    self.out.note("the services answer and are healthy: their gate is left open");
                    measured.stance = Stance::LeftServed;
                }
                engine.services(self.deadline.within(ASK))?;
                bail!(Stale("the engine answers again".into()));
            }
            Step::CloseGateOnDisk => {
                lockout::close_on_disk(self.target, self.store, &self.reason(), deploy)?;
                measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
            }
            Step::RemoveServices { services } => engine.remove(services, query_deadline)?,
            Step::Apply { force, .. } => self.apply(&dir, force, deploy)?,
            Step::Seed => self.seed()?,
            Step::Watch => return self.watch(query_deadline),
            Step::Verify => self.verify(measured)?,
            Step::OpenGate => self.open_gate(measured)?,
            Step::KeepClosed { hold } => {
                self.wait_for_gateway()?;
                measured.held = Some(hold.clone());
            }
        }
        Ok(Done::default())
    }
}
