//! Brings a stack to a release: observe, drift, plan, execute, record. Used by `up` and by `rollback`; what is
//! particular to either stays with it.

use crate::base::deadline::Deadline;
use crate::base::failure::{Failure, over_budget};
use crate::base::observed::Observed;
use crate::checks::smoke::verify;
use crate::deploy::difference::{Difference, Scenario};
use crate::deploy::drift;
use crate::deploy::event::Event;
use crate::deploy::execute::execute;
use crate::deploy::execution::{Execution, Measured, Stale};
use crate::deploy::gate;
use crate::deploy::gate::{Closer, Gate};
use crate::deploy::observe::Observation;
use crate::deploy::plan::{self, Gateways, Goal, Plan, Purpose};
use crate::deploy::run::Run;
use crate::deploy::session::Session;
use crate::deploy::view::View;
use crate::release::description::Release;
use crate::stack::hold::Hold;
use crate::stack::state_dir;
use anyhow::Result;

/// Plans that are made for one release before it is given up.
const PLANS: usize = 3;

/// What an observation means for a goal.
pub struct Preview {
    /// What is.
    pub now: Observation,
    /// What differs.
    pub drift: Vec<Difference>,
    /// What would be done.
    pub plan: Plan,
    /// The stack by the manifest of what runs.
    pub running: View,
    /// The stack by the manifest of the release gone to.
    pub target: View,
}

impl Preview {
    /// What was not seen because the budget ended is nobody's fault, and no reason to plan anything.
    pub fn in_time(self, deadline: Deadline) -> Result<Self> {
        match &self.now.stack {
            Observed::Unknown(_) if deadline.passed() => {
                let what = "the budget was used up before it was seen what runs".into();
                Err(Failure { what, ..over_budget() }.into())
            }
            _ => Ok(self),
        }
    }
}

impl Session {
    /// Looks and plans; changes nothing.
    pub fn preview(&self, goal: &Goal<'_>, deadline: Deadline) -> Result<Preview> {
        let target = self.by(goal.release)?;
        let running = self.running(deadline)?;
        let now = running.observe(target.engine.as_ref(), deadline);
        Ok(self.judge(goal, now, running, target))
    }

    /// What an observation means.
    fn judge(&self, goal: &Goal<'_>, now: Observation, running: View, target: View) -> Preview {
        let env = target.env.as_ref().map(|env| env.map()).unwrap_or_default();
        let beside: Vec<&str> =
            target.pilot.manifest.observability.iter().map(|service| service.name.as_str()).collect();
        let mut drift = drift::drift(&now, goal.release, &env, &beside);
        let deployed = self.store.current().ok().flatten().map(|release| release.id);
        if deployed.as_ref() != Some(&goal.release.id) {
            drift.push(Difference::Release { deployed });
        }
        drift.extend(goal.known.iter().cloned());
        let gateways = Gateways {
            // A deployment goes by the tree's manifest where there is no other.
            running: (running.release.is_some() || goal.purpose == Purpose::Deploy)
                .then(|| running.pilot.gateway()),
            release: target.pilot.gateway(),
        };
        let plan = plan::make(&now, &drift, goal, gateways);
        Preview { now, drift, plan, running, target }
    }

    /// Brings the stack to the release and records that it is verified. Returns the plan that was executed; it
    /// is empty when there was nothing to do, which the checks have shown: the engine cannot see all.
    pub fn converge(
        &self,
        goal: &mut Goal<'_>,
        run: &Run,
        deadline: Deadline,
        measured: &mut Measured,
    ) -> Result<Plan> {
        let plan = self.plan_and_execute(goal, run, deadline, measured)?;
        if !plan.steps.is_empty() {
            return Ok(plan);
        }
        goal.known = self.look_closer(goal.release, deadline, measured)?;
        if goal.known.is_empty() { Ok(plan) } else { self.plan_and_execute(goal, run, deadline, measured) }
    }

    fn plan_and_execute(
        &self,
        goal: &Goal<'_>,
        run: &Run,
        deadline: Deadline,
        measured: &mut Measured,
    ) -> Result<Plan> {
        let mut scenarios: Vec<Scenario> = Vec::new();
        // A plan can turn out stale in two ways, each of which the next plan takes into account: the
        // gate could not be closed, so the gateway was stopped; a service that did not run turned out,
        // once it ran, to have a corrupt store.
        for attempt in 1..=PLANS {
            let mut preview = self.preview(goal, deadline)?.in_time(deadline)?;
            if self.takes_over_a_hold(&mut preview.now, run) {
                let Preview { now, running, target, .. } = preview;
                preview = self.judge(goal, now, running, target);
            }
            let Preview { now, drift, mut plan, running, target } = preview;
            scenarios.extend(&plan.scenarios);
            scenarios.sort_unstable();
            scenarios.dedup();
            plan.scenarios = scenarios.clone();
            if goal.purpose == Purpose::Rollback {
                self.out.event(&Event::Drift { release: &goal.release.id, differences: &drift });
            }
            if plan.steps.is_empty() {
                measured.held = now.holds.held(&[]);
                return Ok(plan);
            }
            self.out.event(&Event::Planned { plan: &plan });
            let execution = Execution {
                running: &running,
                target: &target,
                store: &self.store,
                out: &self.out,
                deadline,
                release: goal.release,
                env: target.env()?,
                now: &now,
                run,
            };
            match execute(&execution, &plan, measured) {
                Err(error) if error.is::<Stale>() && attempt < PLANS => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.record(goal, run)?;
                    return Ok(plan);
                }
            }
        }
        anyhow::bail!("the plan went stale {PLANS} times")
    }

    /// The checks of a release from which nothing differs. What they find, the engine cannot see, so every
    /// service counts as unhealthy; nothing where all are passed.
    pub fn look_closer(
        &self,
        release: &Release,
        deadline: Deadline,
        measured: &mut Measured,
    ) -> Result<Vec<Difference>> {
        let view = self.by(release)?;
        let smoke = verify(&view.target()?, deadline.within(view.pilot.manifest.limits.ready));
        self.out.event(&Event::Smoke { smoke: &smoke });
        let reason = smoke.summary();
        let sick =
            |service: &str| Difference::Unhealthy { service: service.to_owned(), reason: reason.clone() };
        let found = if smoke.passed { Vec::new() } else { view.pilot.services().map(sick).collect() };
        measured.smoke = Some(smoke);
        Ok(found)
    }

    /// A gate that a person closed without this tool (the old runbook's `curl`) is held like any other, unless
    /// the user asked for it to be opened. True when a hold was written.
    pub fn takes_over_a_hold(&self, now: &mut Observation, run: &Run) -> bool {
        let Gate::Closed(reason) = &now.gate else { return false };
        if now.holds.held(&[]).is_some() || run.request.open || gate::closer(reason) != Closer::Person {
            return false;
        }
        let hold = Hold::found(reason);
        self.out.note(format!("the gate was closed by hand; it stays closed: {hold}"));
        // For this run it stands, whether or not it can be written down.
        if let Err(error) = hold.place(&self.ledger()) {
            self.out.note(format!("that hold is not recorded: {error:#}"));
        }
        now.holds = Observed::Known(vec![hold]);
        true
    }

    /// The release is verified on the running stack; what the engine made of its settings is noted, to be
    /// compared with later. The public is served again by now, so a rollback only warns if the result cannot
    /// be recorded (it would go on to an older release); a new release that cannot be promoted fails.
    fn record(&self, goal: &Goal<'_>, run: &Run) -> Result<()> {
        let limit = Deadline::after(self.pilot.manifest.limits.engine);
        let promoted = self.engine.services(limit).and_then(|services| {
            let settings = services
                .into_iter()
                .filter_map(|(name, service)| Some((name, service.0.into_iter().next()?.settings)))
                .collect();
            self.store.promote(&goal.release.id, settings, state_dir::number(&run.id))
        });
        match promoted {
            Err(error) if goal.purpose == Purpose::Deploy => return Err(error),
            Err(error) => self.out.note(format!("not recorded: {error:#}")),
            Ok(()) => {}
        }
        if let Err(error) = self.store.retain(self.pilot.manifest.limits.keep_releases) {
            self.out.note(format!("old releases were not cleared away: {error:#}"));
        }
        Ok(())
    }
}
