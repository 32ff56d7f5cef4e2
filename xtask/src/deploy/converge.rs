//! Brings a stack to a release: observe, drift, plan, execute, record. Called by `up` and by `rollback`. What
//! only one of them does is not here.

use crate::base::deadline::Deadline;
use crate::base::failure::{Failure, over_budget};
use crate::base::observed::Observed;
use crate::base::screen;
use crate::deploy::difference::{Difference, Scenario};
use crate::deploy::drift;
use crate::deploy::edge::verify;
use crate::deploy::event::Event;
use crate::deploy::execute::execute;
use crate::deploy::execution::{Execution, Measured, Stale, Stance, Unrecorded};
use crate::deploy::gate::{self, Closer, Gate};
use crate::deploy::observe::Observation;
use crate::deploy::old_runs;
use crate::deploy::plan::{self, Goal, Plan, Purpose, Rules};
use crate::deploy::run::{self, Run};
use crate::deploy::session::Session;
use crate::deploy::view::View;
use crate::engine::carry;
use crate::release::description::{Image, Release};
use crate::stack::cover::Cover;
use crate::stack::hold::{self, Hold};
use crate::stack::state_dir;
use anyhow::Result;
use std::sync::atomic::AtomicBool;

/// How many plans are made for one release before the tool stops trying.
const PLANS: usize = 3;

/// An observation, and what it means for a goal.
pub struct Preview {
    /// What was observed.
    pub now: Observation,
    /// What differs.
    pub drift: Vec<Difference>,
    /// What would be done.
    pub plan: Plan,
    /// The stack by the manifest of the release that runs.
    pub running: View,
    /// The stack by the manifest of the target release.
    pub target: View,
}

impl Preview {
    /// If the budget ended before the stack was observed, do not plan anything, and do not blame a service.
    pub fn in_time(self, deadline: Deadline) -> Result<Self> {
        match &self.now.stack {
            Observed::Unknown(_) if deadline.passed() => {
                let what = "the budget was used up before the tool could see what runs".into();
                Err(Failure { what, ..over_budget() }.into())
            }
            _ => Ok(self),
        }
    }
}

/// What a stale plan has found, which the next observation does not show.
fn found_by(error: &anyhow::Error) -> Option<Difference> {
    error.downcast_ref::<Stale>()?.found.clone()
}

/// Is a service down because the gate was closed, by a run or under a hold? Then it does not differ from its
/// release.
fn is_closed_by_gate(
    difference: &Difference,
    now: &Observation,
    cover: Option<&Cover>,
    running: &View,
) -> bool {
    let (Gate::Closed(reason), Some(cover)) = (&now.gate, cover.filter(|cover| cover.stops())) else {
        return false;
    };
    let by_us =
        now.holds.held(&[]).is_some() || gate::closer_by(&running.pilot.manifest.gate, reason) == Closer::Run;
    let Difference::Down { service, state } = difference else { return false };
    by_us && state != "missing" && cover.services.contains(service)
}

impl Session {
    /// Observes and plans; changes nothing.
    pub fn preview(&self, goal: &Goal<'_>, deadline: Deadline) -> Result<Preview> {
        let _shown = screen::doing(format!("compare what runs with release {}", goal.release.id));
        let target = self.by(goal.release)?;
        let running = self.running(deadline)?;
        let mut now = running.observe(target.engine.as_ref(), deadline);
        if now.gate == Gate::Open && !plan::lost_images(&now, goal.release).is_empty() {
            let soon = deadline.within(running.pilot.manifest.limits.probe);
            now.passes = verify(&running, false, soon).is_ok_and(|smoke| smoke.passed);
        }
        self.judge(goal, now, running, target)
    }

    /// What an observation means for this goal.
    fn judge(&self, goal: &Goal<'_>, now: Observation, running: View, target: View) -> Result<Preview> {
        let gate = target.cover()?;
        // A deployment uses the manifest of the source if there is no release.
        let of_running = match running.release {
            Some(_) => running.cover().ok(),
            None => {
                (goal.purpose == Purpose::Deploy).then(|| running.cover().unwrap_or_else(|_| gate.clone()))
            }
        };
        let mut drift = drift::drift(&now, goal.release, &target.wanted());
        drift.retain(|difference| !is_closed_by_gate(difference, &now, of_running.as_ref(), &running));
        let deployed = self.store.current().ok().flatten().map(|release| release.id);
        if deployed.as_ref() != Some(&goal.release.id) {
            drift.push(Difference::Release { deployed });
        }
        let unseen: Vec<Difference> =
            goal.known.iter().filter(|known| !drift.contains(known)).cloned().collect();
        drift.extend(unseen);
        let stored: Vec<&String> = now.stack.known().into_iter().flat_map(|stack| &stack.data).collect();
        let rule =
            |view: &View, data: &String| view.pilot.data_rule(data).cloned().map(|rule| (data.clone(), rule));
        let wanted =
            stored.iter().filter_map(|data| rule(&target, data)).filter(|(_, rule)| rule.before_deploy);
        let snapshots: Vec<String> = wanted.map(|(data, _)| data).collect();
        let watch = target.pilot.watched_for();
        let rules = Rules { running: of_running.as_ref(), release: &gate, snapshots: &snapshots, watch };
        let plan = plan::make(&now, &drift, goal, rules);
        Ok(Preview { now, drift, plan, running, target })
    }

    /// Brings the stack to the release and records that it is verified. Returns the plan that was executed.
    /// It is empty if there was nothing to do; then the checks have passed, because the engine alone does not
    /// see every problem.
    pub fn converge(
        &self,
        goal: &mut Goal<'_>,
        run: &Run,
        deadline: Deadline,
        measured: &mut Measured,
    ) -> Result<Plan> {
        goal.opened = run::is_on_watch(&self.pilot.state, &run.request)?;
        let plan = self.plan_and_execute(goal, run, deadline, measured)?;
        if !plan.steps.is_empty() {
            return Ok(plan);
        }
        goal.known = self.look_closer(goal.release, deadline, measured)?;
        if !goal.known.is_empty() {
            return self.plan_and_execute(goal, run, deadline, measured);
        }
        // The run before this one may have been cut off right after it opened the gate.
        let limit = deadline.within(self.pilot.manifest.limits.engine);
        if let Err(error) = self.by(goal.release)?.engine.retag(goal.release, limit) {
            self.out.note(format!("the image tags were not moved: {error:#}"));
        }
        Ok(plan)
    }

    fn plan_and_execute(
        &self,
        goal: &Goal<'_>,
        run: &Run,
        deadline: Deadline,
        measured: &mut Measured,
    ) -> Result<Plan> {
        let mut scenarios: Vec<Scenario> = Vec::new();
        let (own, mut goal) = (goal.known.clone(), goal.clone());
        // A plan can become stale in two ways, and the next plan considers both: the gate could not be
        // closed, so the gateway was stopped; or a service that did not run was started, and its store is
        // corrupt.
        for attempt in 1..=PLANS {
            let mut preview = self.preview(&goal, deadline)?.in_time(deadline)?;
            if self.takes_over_a_hold(&mut preview.now, run) {
                let Preview { now, running, target, .. } = preview;
                preview = self.judge(&goal, now, running, target)?;
            }
            // What was tried ahead of the gate once is not tried so again.
            if attempt > 1 && preview.now.passes {
                let Preview { mut now, running, target, .. } = preview;
                now.passes = false;
                preview = self.judge(&goal, now, running, target)?;
            }
            let Preview { now, drift, mut plan, running, target } = preview;
            scenarios.extend(&plan.scenarios);
            scenarios.sort_unstable();
            scenarios.dedup();
            plan.scenarios = scenarios.clone();
            let found = Event::Drift { release: &goal.release.id, differences: &drift };
            match goal.purpose {
                Purpose::Rollback => self.out.event(&found),
                // A deployment is meant to differ; its report shows how.
                Purpose::Deploy => drop(self.out.record(&found)),
            }
            if plan.steps.is_empty() {
                measured.held = now.holds.held(&[]);
                if measured.held.is_some() {
                    measured.stopped = target.cover()?.stopped();
                }
                measured.not_closed = now.not_closed;
                return Ok(plan);
            }
            let left_ms = deadline.left().as_millis() as u64;
            self.out.event(&Event::Planned { plan: &plan, left_ms });
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
                Err(error) if attempt < PLANS && error.is::<Stale>() => {
                    goal.known = own.iter().cloned().chain(found_by(&error)).collect();
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    self.record(&goal, run, measured)?;
                    return Ok(plan);
                }
            }
        }
        anyhow::bail!("the plan was stale {PLANS} times: the stack changed each time")
    }

    /// Runs the checks if no difference from the release was found. The engine cannot see what they find, so
    /// if one fails, every service counts as unhealthy. Returns nothing if all checks pass.
    pub fn look_closer(
        &self,
        release: &Release,
        deadline: Deadline,
        measured: &mut Measured,
    ) -> Result<Vec<Difference>> {
        let view = self.by(release)?;
        let _shown = screen::doing("check what runs");
        // Without a difference, the gate is closed only under a hold.
        let held = Observed::from(hold::standing(&self.ledger())).held(&[]).is_some();
        let smoke = verify(&view, held, deadline.within(view.pilot.manifest.limits.ready))?;
        self.out.event(&Event::Smoke { smoke: &smoke });
        let reason = smoke.summary();
        let sick =
            |service: &str| Difference::Unhealthy { service: service.to_owned(), reason: reason.clone() };
        let found = if smoke.passed { Vec::new() } else { view.pilot.services().map(sick).collect() };
        measured.smoke = Some(smoke);
        Ok(found)
    }

    /// If a person closed the gate without this tool (for example with the old runbook's `curl`), a hold is
    /// written for it, unless the user asked to open the gate. Returns true if a hold was written.
    pub fn takes_over_a_hold(&self, now: &mut Observation, run: &Run) -> bool {
        let Gate::Closed(reason) = &now.gate else { return false };
        let closer = gate::closer_by(&self.pilot.manifest.gate, reason);
        if now.holds.held(&[]).is_some() || run.request.open || closer != Closer::Person {
            return false;
        }
        let hold = Hold::found(reason);
        self.out.note(format!("the gate was closed by hand; it stays closed: {hold}"));
        // This run respects the hold even if it cannot be written.
        if let Err(error) = hold.place(&self.ledger()) {
            self.out.note(format!("that hold is not recorded: {error:#}"));
        }
        now.holds = Observed::Known(vec![hold]);
        true
    }

    /// Saves the images of a new release, and records that it is verified on the running stack, and which settings
    /// the engine made of it, for later comparison. The public is already served again. So if this fails, a rollback
    /// only warns: an error would make it go to an older release. A new release stays a candidate, and serves.
    fn record(&self, goal: &Goal<'_>, run: &Run, measured: &mut Measured) -> Result<()> {
        let limits = &self.pilot.manifest.limits;
        if let Err(error) = self.ledger().keep(limits.deploy) {
            measured.stance = Stance::LeftServed;
            return Err(error.context(Unrecorded(goal.release.id.clone())));
        }
        let open = goal.release.images.values().filter(|image| !image.is_saved()).count();
        let shown =
            (open > 0).then(|| screen::doing(format!("save what is new of release {}", goal.release.id)));
        let saved = carry::save(
            &goal.release.id,
            self.engine.as_ref(),
            &self.store,
            limits.deploy,
            &AtomicBool::new(false),
        );
        drop(shown);
        let images: Vec<Image> = goal.release.images.values().cloned().collect();
        let saved = saved.and_then(|()| self.engine.can_lose_one(&images, Deadline::after(limits.engine)));
        let services = saved.and_then(|()| self.engine.services(Deadline::after(limits.engine)));
        let promoted = services.and_then(|services| {
            let settings = services
                .into_iter()
                .filter_map(|(name, service)| Some((name, service.0.into_iter().next()?.settings)))
                .collect();
            let engine = self.engine.kind().as_str();
            self.store.promote(&goal.release.id, engine, settings, state_dir::number(&run.id))
        });
        match promoted {
            Err(error) if goal.purpose == Purpose::Deploy => {
                measured.stance = Stance::LeftServed;
                return Err(error.context(Unrecorded(goal.release.id.clone())));
            }
            Err(error) => self.out.note(format!("the result was not recorded: {error:#}")),
            Ok(()) => {}
        }
        if let Err(error) = self.store.retain(limits.keep_releases) {
            self.out.note(format!("old releases were not removed: {error:#}"));
        }
        let releases = self.store.ids();
        if let Err(error) = releases.and_then(|ids| old_runs::retain(&self.pilot.state, limits, &ids)) {
            self.out.note(format!("old runs were not removed: {error:#}"));
        }
        Ok(())
    }
}
