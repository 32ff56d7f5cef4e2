//! Makes the plan of a deployment or a rollback: the steps, in order. `make` is pure and decides everything
//! that has to be decided. `--plan` prints the same value that `execute` runs. Called by `converge`.

use crate::base::observed::Observed;
use crate::deploy::difference::{Difference, Scenario};
use crate::deploy::gate::Gate;
use crate::deploy::gate::stop::stays_down;
use crate::deploy::observe::Observation;
use crate::deploy::step::Step;
use crate::release::description::Release;
use crate::stack::cover::Cover;
use crate::stack::gate_rule::Kind;
use crate::stack::model::Health;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The target release.
    pub release: String,
    /// The scenarios: the reason for it.
    pub scenarios: Vec<Scenario>,
    /// The steps in order; empty if there is nothing to do.
    pub steps: Vec<Step>,
}

/// What the plan is for. The drift does not say this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Go back to a release.
    Rollback,
    /// Start a new release.
    Deploy,
}

/// What to do with stored data, besides what the drift requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Remove corrupt data after it was backed up; keep the rest.
    AsFound,
    /// A reset restores the data that it has just backed up.
    ThroughReset,
    /// Restore these services from the backup in this folder.
    From(PathBuf, Vec<String>),
}

/// The target, and what the user wants besides what the drift requires.
#[derive(Clone, Debug)]
pub struct Goal<'a> {
    /// The target release.
    pub release: &'a Release,
    /// Go back, or deploy.
    pub purpose: Purpose,
    /// Scenarios that the user named.
    pub named: &'a [Scenario],
    /// What to do with stored data.
    pub data: Data,
    /// The ids of holds that the user wants to lift.
    pub lift: &'a [String],
    /// Differences that an observation does not show, such as failed checks.
    pub known: Vec<Difference>,
    /// A run that asked for the same has opened the gate on this release, and was cut off before its watch was over.
    pub opened: bool,
}

impl<'a> Goal<'a> {
    /// The plain goal: this release, for this purpose.
    pub fn plain(release: &'a Release, purpose: Purpose) -> Self {
        Self {
            release,
            purpose,
            named: &[],
            data: Data::AsFound,
            lift: &[],
            known: Vec::new(),
            opened: false,
        }
    }
}

/// What the manifests say.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// What the gate of the release that runs covers; none if what runs belongs to no known release.
    pub running: Option<&'a Cover>,
    /// What the gate of the target release covers.
    pub release: &'a Cover,
    /// The data of which a snapshot is taken before a deployment changes anything.
    pub snapshots: &'a [String],
    /// How long what runs is watched after the gate was opened; zero: it is not.
    pub watch: Duration,
}

/// Plans how to get from `now` to the goal.
pub fn make(now: &Observation, drift: &[Difference], goal: &Goal<'_>, rules: Rules<'_>) -> Plan {
    let rollback = goal.purpose == Purpose::Rollback;
    let mut scenarios = if rollback { crate::deploy::drift::scenarios(drift) } else { Vec::new() };
    scenarios.extend(goal.named);
    scenarios.sort_unstable();
    scenarios.dedup();
    let way = Way { now, drift, goal, rules, rollback };
    let steps = match &now.stack {
        _ if way.only_watches() => [vec![Step::Retag], way.keep_watch()].concat(),
        _ if way.is_there() => Vec::new(),
        Observed::Unknown(_) => way.ask_the_engine(),
        Observed::Known(_) => {
            [way.load_ahead(), way.close(), way.keep(), way.change(), way.verify_and_open()].concat()
        }
    };
    Plan { release: goal.release.id.clone(), scenarios, steps }
}

/// The values that the parts of a plan are made from.
struct Way<'a> {
    now: &'a Observation,
    drift: &'a [Difference],
    goal: &'a Goal<'a>,
    rules: Rules<'a>,
    rollback: bool,
}

impl Way<'_> {
    fn names(&self, scenario: Scenario) -> bool {
        self.rollback && self.goal.named.contains(&scenario)
    }

    /// A complete reset: everything of the project is removed.
    fn is_reset(&self) -> bool {
        self.names(Scenario::Reset)
    }

    fn hold(&self) -> Option<String> {
        self.now.holds.held(self.goal.lift)
    }

    /// Is there nothing to do? A new release always has steps, because it was never verified.
    fn is_there(&self) -> bool {
        // A commit names the target; it is not a reason to roll back.
        let as_found = self.goal.named.iter().all(|s| *s == Scenario::Commit);
        (self.rollback || self.goal.release.is_known_good())
            && as_found
            && self.goal.data == Data::AsFound
            && self.is_as_wanted()
    }

    /// Does the release run without a difference, and is its gate as it has to be?
    fn is_as_wanted(&self) -> bool {
        let matters = |d: &&Difference| !matches!(d, Difference::ComposeFile);
        let gate_is_right = match &self.now.gate {
            // A hold that is lifted is lifted in the step that opens the gate.
            Gate::Open => self.now.holds.held(&[]).is_none(),
            Gate::Closed(_) => self.hold().is_some() && self.stays_closed(),
            Gate::Unknown(_) => false,
        };
        self.drift.iter().find(matters).is_none() && gate_is_right
    }

    /// Does the engine start nothing again by itself that was stopped to close the gate?
    fn stays_closed(&self) -> bool {
        let services = self.now.stack.known().map(|stack| &stack.services);
        services
            .is_none_or(|services| self.rules.release.stopped().iter().all(|name| stays_down(services, name)))
    }

    /// A run that was cut off on its watch is taken up: it repeats no earlier step.
    fn only_watches(&self) -> bool {
        self.goal.opened && !self.rules.watch.is_zero() && self.is_as_wanted()
    }

    fn keep_watch(&self) -> Vec<Step> {
        let for_ms = self.rules.watch.as_millis() as u64;
        Vec::from_iter((for_ms > 0).then_some(Step::KeepWatch { for_ms }))
    }

    /// The plan if the engine does not answer. Services that answer and are healthy keep serving the public.
    fn ask_the_engine(&self) -> Vec<Step> {
        let healthy = |health: &Health| matches!(health, Health::Healthy { .. });
        let well = self.now.gate == Gate::Open && self.now.unseen.values().all(healthy);
        // The other kinds need the engine to close.
        let by_request = self.rules.running.is_none_or(|cover| cover.kind == Kind::Http);
        let close = (!well && by_request).then_some(Step::CloseGate);
        let keep = self.rollback.then(|| Step::Preserve { data: Vec::new(), stop: Vec::new() });
        close.into_iter().chain(keep).chain([Step::AskEngine]).collect()
    }

    /// Load images while the public is still served, if what runs passes its checks and there is room for them.
    fn load_ahead(&self) -> Vec<Step> {
        let lost = lost_images(self.now, self.goal.release);
        let ahead = self.loads_ahead() && !lost.is_empty();
        Vec::from_iter(ahead.then_some(Step::LoadImages { services: lost, served: true }))
    }

    fn loads_ahead(&self) -> bool {
        self.now.passes && self.now.gate == Gate::Open && !self.frees_space()
    }

    fn frees_space(&self) -> bool {
        let short = self.drift.iter().any(|d| matches!(d, Difference::Shortage { .. }));
        self.rollback && (short || self.names(Scenario::Host))
    }

    /// Shut the public out.
    fn close(&self) -> Vec<Step> {
        closable(self.now, self.rules).into_iter().collect()
    }

    /// Copy and record what exists, before any of it is changed.
    fn keep(&self) -> Vec<Step> {
        let mut steps = Vec::from_iter(self.frees_space().then_some(Step::FreeSpace));
        if self.rollback {
            steps.push(Step::Preserve { data: self.replaced(), stop: self.halted() });
        }
        // Load images before anything is removed: if one cannot be loaded, the run ends here.
        let lost = lost_images(self.now, self.goal.release);
        if !lost.is_empty() && !self.loads_ahead() {
            steps.push(Step::LoadImages { services: lost, served: false });
        }
        let snapshots = self.rules.snapshots.to_vec();
        steps.extend((!self.rollback && !snapshots.is_empty()).then_some(Step::Snapshot { data: snapshots }));
        steps
    }

    /// Bring the stack to the release, behind the closed gate.
    fn change(&self) -> Vec<Step> {
        let (reset, replaced) = (self.is_reset(), self.replaced());
        // The gate keeps its position only if the gateway keeps its data.
        let gate = self.rules.release;
        let stays_closed = self.close() == [Step::CloseGate]
            && self.rules.running.is_some_and(|now| now.kind == gate.kind && now.services == gate.services)
            && !replaced.iter().any(|service| gate.services.contains(service));
        let mut steps = Vec::new();
        steps.extend(reset.then_some(Step::TearDown));
        steps.push(Step::RecordRelease);
        if self.drift.iter().any(|d| matches!(d, Difference::EnvFile { .. })) {
            steps.push(Step::RestoreEnvFile);
        }
        // What is restored from a backup replaces what is there in the step that restores it.
        if !reset && !replaced.is_empty() && self.goal.data == Data::AsFound {
            steps.push(Step::RemoveData { services: replaced });
        }
        match &self.goal.data {
            Data::AsFound => {}
            Data::ThroughReset => steps.push(Step::ReturnData { except: corrupt(self.drift) }),
            Data::From(_, services) if services.is_empty() => {}
            Data::From(dir, services) => {
                steps.push(Step::RestoreData { from: dir.clone(), services: services.clone() });
            }
        }
        steps.extend((gate.has_offline && (reset || !stays_closed)).then_some(Step::CloseGateOnDisk));
        let extra = extra(self.drift);
        if !reset && !extra.is_empty() {
            steps.push(Step::RemoveServices { services: extra });
        }
        steps.push(Step::Apply {
            services: self.restarted(),
            force: unhealthy(self.drift),
            held_back: gate.stopped(),
        });
        steps
    }

    /// The services that the engine will restart, as far as the drift shows.
    fn restarted(&self) -> Vec<String> {
        let concerns = |name: &String| self.drift.iter().any(|d| d.restarts().is_some_and(|s| s == name));
        let halted = self.halted();
        let restarts = |name: &&String| self.is_reset() || halted.contains(name) || concerns(name);
        self.goal.release.images.keys().filter(restarts).cloned().collect()
    }

    /// Prove that the new gateway is closed, check everything, and only then let the public in.
    fn verify_and_open(&self) -> Vec<Step> {
        let gate = self.rules.release;
        // Always load the scenario: if a rollback was interrupted after it removed a store, the new, empty
        // store looks like any other. A gate that stops its services loads it when they are started.
        let seeded = self.goal.release.layout.seed.is_some() && !gate.stops();
        let mut steps = if seeded { vec![Step::Settle, Step::Seed] } else { Vec::new() };
        steps.extend(self.names(Scenario::Host).then_some(Step::Steady));
        steps.push(Step::Verify);
        let not_closed = gate.not_closed(self.now.stack.known().map(|stack| &stack.services));
        steps.push(match self.hold() {
            None if gate.stops() => Step::StartGate { services: gate.stopped() },
            None => Step::OpenGate,
            Some(hold) => Step::KeepClosed { hold, stopped: gate.stopped(), not_closed },
        });
        steps.push(Step::Retag);
        steps.extend(self.keep_watch());
        steps
    }

    /// Services that are stopped before the data is copied that will be replaced, because what they write afterwards would
    /// be lost: all; of data that is corrupt, its services alone. A database is among them, so its volume is copied: a dump
    /// has not all that a volume has, and it comes back only where the command that restores it works.
    /// What was stopped to close the gate is down already.
    fn halted(&self) -> Vec<String> {
        let replaced = self.replaced();
        let down = match self.close().first() {
            Some(Step::StopGate { services, .. } | Step::StopPublished { services }) => services.clone(),
            Some(Step::StopGateway) => {
                self.rules.running.into_iter().flat_map(|gate| &gate.services).cloned().collect()
            }
            _ => Vec::new(),
        };
        let runs = |name: &&String| {
            self.now.service(name).is_some_and(|service| service.is_live()) && !down.contains(name)
        };
        let there: Vec<&String> =
            self.now.stack.known().into_iter().flat_map(|stack| stack.services.keys()).filter(runs).collect();
        let all = self.is_reset() || self.goal.data != Data::AsFound;
        let concerns = |name: &&String| if all { !replaced.is_empty() } else { replaced.contains(*name) };
        there.into_iter().filter(concerns).cloned().collect()
    }

    /// Data that is backed up and then replaced or removed: all of it in a complete reset; what is restored from a backup;
    /// what is corrupt. A deployment replaces no data, because it keeps no backup to restore it from.
    fn replaced(&self) -> Vec<String> {
        let there =
            |service: &String| self.now.stack.known().is_none_or(|stack| stack.data.contains(service));
        match &self.goal.data {
            _ if !self.rollback => Vec::new(),
            _ if self.is_reset() => {
                self.now.stack.known().into_iter().flat_map(|stack| &stack.data).cloned().collect()
            }
            Data::From(_, services) => services.iter().filter(|s| there(s)).cloned().collect(),
            _ => corrupt(self.drift),
        }
    }
}

/// The services whose image the engine has lost. If the engine does not answer, assume that its images exist.
pub fn lost_images(now: &Observation, release: &Release) -> Vec<String> {
    let has = |id: &String| now.stack.known().is_none_or(|stack| stack.images.contains(id));
    let lost = release.images.iter().filter(|(_, image)| !has(&image.id));
    lost.map(|(service, _)| service.clone()).collect()
}

/// The step that shuts the public out before anything changes; none if nothing serves the public.
fn closable(now: &Observation, rules: Rules<'_>) -> Option<Step> {
    let services = now.stack.known().map(|stack| &stack.services);
    let Some(cover) = rules.running else {
        let published = services.into_iter().flatten().filter(|(_, service)| service.is_published());
        let services: Vec<String> = published.map(|(name, _)| name.clone()).collect();
        return (!services.is_empty()).then_some(Step::StopPublished { services });
    };
    let seen = |name: &&String| now.service(name).is_some_and(|service| !service.0.is_empty());
    if cover.stops() {
        // One that is down is kept down: a restart of the engine could start it.
        let there: Vec<String> = cover.services.iter().filter(seen).cloned().collect();
        let not_closed = cover.not_closed(services);
        return (!there.is_empty()).then_some(Step::StopGate { services: there, not_closed });
    }
    let runs = cover.services.iter().any(|name| now.service(name).is_some_and(|s| s.is_live()));
    // A service that was closed by a request would stay so after a gate of the kind `stop` has started it.
    if rules.release.stops() && runs {
        return Some(Step::StopPublished { services: cover.services.iter().cloned().collect() });
    }
    // Unknown does not mean closed: a gateway that runs but does not answer is stopped.
    match &now.gate {
        Gate::Open | Gate::Closed(_) => Some(Step::CloseGate),
        Gate::Unknown(_) if runs => Some(Step::StopGateway),
        Gate::Unknown(_) => None,
    }
}

/// Services that run but are not in the release.
fn extra(drift: &[Difference]) -> Vec<String> {
    let extra = |d: &Difference| match d {
        Difference::Extra { service } => Some(service.clone()),
        _ => None,
    };
    drift.iter().filter_map(extra).collect()
}

fn corrupt(drift: &[Difference]) -> Vec<String> {
    let corrupt = |d: &Difference| match d {
        Difference::StoreCorrupt { service, .. } => Some(service.clone()),
        _ => None,
    };
    drift.iter().filter_map(corrupt).collect()
}

/// Services that match the release but are not healthy: the engine would not replace them by itself.
fn unhealthy(drift: &[Difference]) -> Vec<String> {
    let differs = |name: &str| {
        drift.iter().any(|d| match d {
            Difference::Image { service, .. }
            | Difference::Env { service, .. }
            | Difference::Settings { service } => service == name,
            _ => false,
        })
    };
    drift
        .iter()
        .filter_map(|d| match d {
            Difference::Unhealthy { service, .. } | Difference::Paused { service } => Some(service.clone()),
            Difference::Down { service, state } if state != "missing" => Some(service.clone()),
            _ => None,
        })
        .filter(|service| !differs(service))
        .collect()
}

#[cfg(test)]
mod tests;
