//! Executes a plan: one loop with one match. Each step is written to the journal when it begins and when it
//! ends. Its deadline is its own limit or the end of the budget, whichever comes first. Nothing is decided
//! here. If the plan is stale (`Stale`), it stops, and `converge` observes and plans again. What a step does
//! is in `steps`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail, next_of, over_budget};
use crate::deploy::event::{Event, Progress};
use crate::deploy::execution::{End, Execution, Measured, Stale};
use crate::deploy::plan::Plan;
use crate::deploy::step::Step;
use anyhow::Result;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an engine may take to notice that it has lost a machine, and the pause between two looks.
const NOTICED: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);

/// Runs the steps in order, and stops at the first one that fails.
pub fn execute(execution: &Execution<'_>, plan: &Plan, measured: &mut Measured) -> Result<()> {
    for step in &plan.steps {
        let begun = Instant::now();
        let limit = execution.limit(step).map(|limit| match step.follows_the_opening() {
            true => limit,
            false => limit.min(execution.deadline.longest()),
        });
        let say = |progress, detail: Option<String>, folder: Option<&Path>| {
            execution.out.event(&Event::Step {
                action: step,
                step: step.to_string(),
                progress,
                at_ms: execution.out.elapsed_ms(),
                took_ms: begun.elapsed().as_millis() as u64,
                limit_ms: limit
                    .filter(|_| progress == Progress::Started)
                    .map(|limit| limit.as_millis() as u64),
                detail,
                folder,
            });
        };
        say(Progress::Started, None, None);
        let done = if execution.deadline.passed() && !step.follows_the_opening() {
            Err(over_budget().into())
        } else {
            execution.keep_lock(step, limit).and_then(|()| {
                measured.past.begins(step);
                execution.run(step, measured)
            })
        };
        match done {
            Ok(end) => {
                let (progress, detail, folder) = match end {
                    End::Done => (Progress::Done, None, None),
                    End::Filled(folder) => (Progress::Done, None, Some(folder)),
                    End::Warned(what, folder) => (Progress::Warned, Some(what), folder),
                    End::Skipped(why) => (Progress::Skipped, Some(format!("skipped: {why}")), None),
                };
                say(progress, detail, folder.as_deref());
                measured.past.ends(step, folder.map(|folder| execution.run.dir.path().join(folder)));
            }
            Err(error) if error.is::<Stale>() => {
                say(Progress::Warned, Some(error.to_string()), None);
                return Err(error);
            }
            Err(error) => {
                // What is left of the stack is planned for once the engine knows it too.
                let lost = Some(())
                    .filter(|()| !step.follows_the_opening())
                    .and_then(|()| execution.lost_a_machine());
                if let Some(lost) = lost {
                    say(Progress::Warned, Some(format!("{lost} was lost meanwhile: {error:#}")), None);
                    return Err(Stale::because(format!("{lost} was lost meanwhile: {error:#}")).into());
                }
                say(Progress::Failed, Some(format!("{error:#}")), None);
                return Err(if step.follows_the_opening() { error } else { execution.classify(error) });
            }
        }
    }
    Ok(())
}

impl Execution<'_> {
    /// Something was already begun, so this is not an error in the command line. A step that the end of the
    /// budget stopped failed because of the budget.
    fn classify(&self, error: anyhow::Error) -> anyhow::Error {
        match exit_of(&error) {
            Exit::Host | Exit::OverBudget | Exit::Locked => error,
            _ if self.deadline.passed() => error.context(over_budget()),
            Exit::NotRestored => error,
            _ => fail(Exit::NotRestored, format!("{error:#}"), next_of(&error).cloned().unwrap_or_default()),
        }
    }

    /// No step begins without the lock, which must outlast it. While the engine does not answer, the public may be shut
    /// out without it.
    fn keep_lock(&self, step: &Step, limit: Option<Duration>) -> Result<()> {
        let need = limit.unwrap_or_else(|| self.deadline.left());
        match self.store.ledger().keep(need) {
            Err(error) if exit_of(&error) == Exit::Host && step.needs_no_lock() => Ok(()),
            kept => kept,
        }
    }

    /// A machine that was lost while the step was done. Waits until the engine has noticed: what is planned before that is
    /// stale too.
    fn lost_a_machine(&self) -> Option<String> {
        let engine = self.target.engine.as_ref();
        let lost = || engine.lost(Deadline::after(self.target.pilot.manifest.limits.engine));
        let first = lost()?;
        let noticed = || if lost().is_some() { Continue(()) } else { Break(()) };
        self.deadline.within(NOTICED).poll(LOOK, noticed).ok();
        Some(first)
    }

    /// The time limit of a step, if it has one of its own.
    fn limit(&self, step: &Step) -> Option<Duration> {
        let limits = &self.target.pilot.manifest.limits;
        match step {
            Step::CloseGate
            | Step::StopGate { .. }
            | Step::StopGateway
            | Step::StopPublished { .. }
            | Step::RemoveData { .. }
            | Step::RemoveServices { .. }
            | Step::Steady
            | Step::Retag => Some(limits.engine),
            Step::FreeSpace | Step::TearDown | Step::CloseGateOnDisk | Step::Apply { .. } => {
                Some(limits.deploy)
            }
            Step::Settle => Some(limits.ready),
            Step::KeepWatch { for_ms } => Some(Duration::from_millis(*for_ms)),
            _ => None,
        }
    }

    /// Runs one step: one call for each.
    fn run(&self, step: &Step, measured: &mut Measured) -> Result<End> {
        let limit = self.limit(step).map_or(self.deadline, |limit| self.deadline.within(limit));
        match step {
            Step::CloseGate | Step::StopGate { .. } => self.close_gate(limit, measured),
            Step::StopGateway => self.stop(&[self.running.pilot.gateway().to_owned()], limit, measured),
            Step::StopPublished { services } => self.stop(services, limit, measured),
            Step::FreeSpace => self.free_space(limit),
            Step::Preserve { data, stop } => self.preserve(data, stop, &measured.past),
            Step::Snapshot { data } => self.snapshot(data, &measured.past),
            Step::TearDown => self.tear_down(limit),
            Step::LoadImages { services, served } => self.load(services, *served),
            Step::RecordRelease => self.record_release(),
            Step::RestoreEnvFile => self.restore_env_file(),
            Step::RemoveData { services } => self.remove_data(services, limit),
            Step::ReturnData { except } => self.return_data(except, &measured.past),
            Step::RestoreData { from, services } => self.restore_data(from, services, &mut measured.past),
            Step::AskEngine => self.ask_engine(measured),
            Step::CloseGateOnDisk => self.close_gate_on_disk(limit, measured),
            Step::RemoveServices { services } => self.remove_services(services, limit),
            Step::Apply { force, held_back, .. } => self.apply(force, held_back, limit),
            Step::Settle => self.settle(limit),
            Step::Seed => self.seed(),
            Step::Steady => self.steady(limit),
            Step::Verify => self.verify(measured),
            Step::OpenGate | Step::StartGate { .. } => self.open_gate(measured),
            Step::KeepClosed { hold, stopped, not_closed } => {
                self.keep_closed(hold, stopped, not_closed, measured)
            }
            Step::Retag => self.retag(measured, limit),
            Step::KeepWatch { for_ms } => self.keep_watch(Duration::from_millis(*for_ms), measured),
        }
    }
}
