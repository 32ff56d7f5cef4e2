//! The one way to bring a pilot to a release, used by `up` and by `rollback`: observe, drift, plan,
//! execute, record. What is particular to either stays with it.

use crate::deadline::Deadline;
use crate::drift::{self, Difference, Scenario};
use crate::engine::Engine;
use crate::execute::{Execution, Measured, Stale, execute};
use crate::failure::{Failure, over_budget};
use crate::fence;
use crate::journal::{Event, Output};
use crate::observe::{self, Fact, Observation};
use crate::pilot::Pilot;
use crate::plan::{self, Data, Intent, Plan, Purpose};
use crate::release::{Release, Store};
use crate::verify::{Target, verify};
use anyhow::Result;
use std::path::Path;

/// Plans that are made for one release before it is given up.
const PLANS: usize = 3;

/// What a command works with.
pub struct Session {
    /// The pilot.
    pub pilot: Pilot,
    /// What runs it.
    pub engine: Box<dyn Engine>,
    /// Its releases.
    pub store: Store,
    /// Where events go.
    pub out: Output,
}

/// Where to, and why.
pub struct Goal<'a> {
    /// The release.
    pub release: &'a Release,
    /// What is wanted beyond what the drift says.
    pub intent: Intent<'a>,
    /// Differences found by other means than an observation.
    pub known: Vec<Difference>,
    /// Folder of the rollback.
    pub place: Option<&'a Path>,
}

impl<'a> Goal<'a> {
    /// A release, for this purpose, with nothing particular about it.
    pub fn plain(release: &'a Release, purpose: Purpose) -> Self {
        Self {
            release,
            intent: Intent { purpose, named: &[], data: Data::AsFound },
            known: Vec::new(),
            place: None,
        }
    }
}

/// What an observation means for a goal.
pub struct Outlook {
    /// What is.
    pub now: Observation,
    /// What differs.
    pub drift: Vec<Difference>,
    /// What would be done.
    pub plan: Plan,
}

impl Outlook {
    /// What was not seen because the budget ended is nobody's fault, and no reason to plan anything.
    pub fn in_time(self, deadline: Deadline) -> Result<Self> {
        match &self.now.stack {
            Fact::Unknown(_) if deadline.passed() => {
                let what = "the budget was used up before it was seen what runs".into();
                Err(Failure { what, ..over_budget() }.into())
            }
            _ => Ok(self),
        }
    }
}

impl Session {
    /// Looks and plans; changes nothing.
    pub fn outlook(&self, goal: &Goal<'_>, deadline: Deadline) -> Result<Outlook> {
        let env = observe::release_env(&self.store, goal.release)?;
        let now = observe::observe(&self.pilot, self.engine.as_ref(), Some(&env), deadline);
        let mut drift = drift::drift(&now, goal.release, &env.map());
        let deployed = self.store.current().ok().flatten().map(|release| release.id);
        if deployed.as_ref() != Some(&goal.release.id) {
            drift.push(Difference::Release { deployed });
        }
        drift.extend(goal.known.iter().cloned());
        let gateway = self.pilot.gateway();
        let plan = plan::make(&now, &drift, goal.release, &goal.intent, gateway);
        Ok(Outlook { now, drift, plan })
    }

    /// Brings the pilot to the release and records that it is verified. Returns the plan that was
    /// executed; it is empty when there was nothing to do.
    pub fn bring_to(&self, goal: &Goal<'_>, deadline: Deadline, measured: &mut Measured) -> Result<Plan> {
        let env = observe::release_env(&self.store, goal.release)?;
        let mut scenarios: Vec<Scenario> = Vec::new();
        // A plan can turn out stale in two ways, each of which the next plan takes into account: the
        // gate could not be closed, so the gateway was stopped; a service that did not run turned out,
        // once it ran, to have a corrupt store.
        for attempt in 1..=PLANS {
            let Outlook { now, drift, mut plan } = self.outlook(goal, deadline)?.in_time(deadline)?;
            scenarios.extend(&plan.scenarios);
            scenarios.sort_unstable();
            scenarios.dedup();
            plan.scenarios = scenarios.clone();
            if goal.intent.purpose == Purpose::Rollback {
                self.out.event(&Event::Drift { release: &goal.release.id, differences: &drift });
            }
            if plan.steps.is_empty() {
                return Ok(plan);
            }
            self.out.event(&Event::Planned { plan: &plan });
            let execution = Execution {
                pilot: &self.pilot,
                engine: self.engine.as_ref(),
                store: &self.store,
                out: &self.out,
                deadline,
                release: goal.release,
                env: &env,
                now: &now,
                place: goal.place,
            };
            match execute(&execution, &plan, measured) {
                Err(error) if error.is::<Stale>() && attempt < PLANS => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.record(goal)?;
                    return Ok(plan);
                }
            }
        }
        anyhow::bail!("the plan went stale {PLANS} times")
    }

    /// The checks of a release from which nothing differs. What they find, the engine cannot see, so every
    /// service counts as sick; nothing where all are passed.
    pub fn look_closer(
        &self,
        release: &Release,
        deadline: Deadline,
        measured: &mut Measured,
    ) -> Result<Vec<Difference>> {
        let env = observe::release_env(&self.store, release)?;
        let smoke =
            verify(&Target::new(&self.pilot, &env)?, deadline.within(self.pilot.manifest.limits.ready));
        self.out.event(&Event::Smoke { smoke: &smoke });
        let reason = smoke.summary();
        let sick = |service: &str| Difference::Sick { service: service.to_owned(), reason: reason.clone() };
        let found = if smoke.passed { Vec::new() } else { self.pilot.services().map(sick).collect() };
        measured.smoke = Some(smoke);
        Ok(found)
    }

    /// The release is verified on the running pilot; what the engine made of its settings is noted, to
    /// be compared with later. The public is served again by now, so a rollback does not fail over its
    /// own books (it would go on to an older release); a new release that cannot be promoted does.
    fn record(&self, goal: &Goal<'_>) -> Result<()> {
        let limit = Deadline::after(self.pilot.manifest.limits.engine);
        let promoted = self.engine.observe(limit).and_then(|stack| {
            let settings = stack.services.into_iter().map(|(name, state)| (name, state.settings)).collect();
            self.store.promote(&goal.release.id, settings)
        });
        match promoted {
            Err(error) if goal.intent.purpose == Purpose::Deploy => return Err(error),
            Err(error) => self.out.note(format!("not recorded: {error:#}")),
            Ok(()) => {}
        }
        if let Err(error) = self.store.retain(self.pilot.manifest.limits.keep_releases) {
            self.out.note(format!("old releases were not cleared away: {error:#}"));
        }
        if let Err(error) = fence::forget(self) {
            self.out.note(format!("{error:#}"));
        }
        Ok(())
    }
}
