//! Makes the plan of a deployment or a rollback: the steps, in order. `make` is pure and decides everything
//! that has to be decided. `--plan` prints the same value that `execute` runs. Called by `converge`.

use crate::base::observed::Observed;
use crate::deploy::difference::{Difference, Scenario};
use crate::deploy::gate::Gate;
use crate::deploy::observe::Observation;
use crate::deploy::step::Step;
use crate::release::description::Release;
use crate::stack::cover::Cover;
use crate::stack::gate_rule::Kind;
use crate::stack::model::Health;
use serde::Serialize;
use std::path::PathBuf;

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
}

impl<'a> Goal<'a> {
    /// The plain goal: this release, for this purpose.
    pub fn plain(release: &'a Release, purpose: Purpose) -> Self {
        Self { release, purpose, named: &[], data: Data::AsFound, lift: &[], known: Vec::new() }
    }
}

/// What the gates cover: that of the release that runs, and that of the target release.
#[derive(Clone, Copy, Debug)]
pub struct Gates<'a> {
    /// The gate of the release that runs; none if what runs belongs to no known release.
    pub running: Option<&'a Cover>,
    /// The gate of the target release.
    pub release: &'a Cover,
}

/// Plans how to get from `now` to the goal.
pub fn make(now: &Observation, drift: &[Difference], goal: &Goal<'_>, gates: Gates<'_>) -> Plan {
    let rollback = goal.purpose == Purpose::Rollback;
    let mut scenarios = if rollback { crate::deploy::drift::scenarios(drift) } else { Vec::new() };
    scenarios.extend(goal.named);
    scenarios.sort_unstable();
    scenarios.dedup();
    let way = Way { now, drift, goal, gates, rollback };
    let steps = match &now.stack {
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
    gates: Gates<'a>,
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
        let matters = |d: &&Difference| !matches!(d, Difference::ComposeFile);
        // A commit names the target; it is not a reason to roll back.
        let as_found = self.goal.named.iter().all(|s| *s == Scenario::Commit);
        let gate_is_right = match &self.now.gate {
            Gate::Open => self.hold().is_none(),
            Gate::Closed(_) => self.hold().is_some(),
            Gate::Unknown(_) => false,
        };
        (self.rollback || self.goal.release.is_known_good())
            && self.drift.iter().find(matters).is_none()
            && as_found
            && self.goal.data == Data::AsFound
            && gate_is_right
    }

    /// The plan if the engine does not answer. Services that answer and are healthy keep serving the public.
    fn ask_the_engine(&self) -> Vec<Step> {
        let healthy = |health: &Health| matches!(health, Health::Healthy { .. });
        let well = self.now.gate == Gate::Open && self.now.unseen.values().all(healthy);
        // The other kinds need the engine to close.
        let by_request = self.gates.running.is_none_or(|cover| cover.kind == Kind::Http);
        let close = (!well && by_request).then_some(Step::CloseGate);
        let keep = self.rollback.then(|| Step::Preserve { data: Vec::new() });
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
        closable(self.now, self.gates).into_iter().collect()
    }

    /// Copy and record what exists, before any of it is changed.
    fn keep(&self) -> Vec<Step> {
        let mut steps = Vec::from_iter(self.frees_space().then_some(Step::FreeSpace));
        if self.rollback {
            steps.push(Step::Preserve { data: self.removed() });
        }
        // Load images before anything is removed: if one cannot be loaded, the run ends here.
        let lost = lost_images(self.now, self.goal.release);
        if !lost.is_empty() && !self.loads_ahead() {
            steps.push(Step::LoadImages { services: lost, served: false });
        }
        steps
    }

    /// Bring the stack to the release, behind the closed gate.
    fn change(&self) -> Vec<Step> {
        let (reset, removed) = (self.is_reset(), self.removed());
        // The gate keeps its position only if the gateway keeps its data.
        let gate = self.gates.release;
        let stays_closed = self.close() == [Step::CloseGate]
            && self.gates.running.is_some_and(|now| now.kind == gate.kind && now.services == gate.services)
            && !removed.iter().any(|service| gate.services.contains(service));
        let mut steps = Vec::new();
        steps.extend(reset.then_some(Step::TearDown));
        steps.push(Step::RecordRelease);
        if self.drift.iter().any(|d| matches!(d, Difference::EnvFile { .. })) {
            steps.push(Step::RestoreEnvFile);
        }
        if !reset && !removed.is_empty() {
            steps.push(Step::RemoveData { services: removed });
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
        self.goal.release.images.keys().filter(|name| self.is_reset() || concerns(name)).cloned().collect()
    }

    /// Prove that the new gateway is closed, check everything, and only then let the public in.
    fn verify_and_open(&self) -> Vec<Step> {
        let gate = self.gates.release;
        // Always load the scenario: if a rollback was interrupted after it removed a store, the new, empty
        // store looks like any other. A gate that stops its services loads it when they are started.
        let seeded = self.goal.release.layout.seed.is_some() && !gate.stops();
        let mut steps = Vec::from_iter(seeded.then_some(Step::Seed));
        steps.extend(self.names(Scenario::Host).then_some(Step::Watch));
        steps.push(Step::Verify);
        let not_closed = gate.not_closed(self.now.stack.known().map(|stack| &stack.services));
        steps.push(match self.hold() {
            None if gate.stops() => Step::StartGate { services: gate.stopped() },
            None => Step::OpenGate,
            Some(hold) => Step::KeepClosed { hold, stopped: gate.stopped(), not_closed },
        });
        steps.push(Step::Retag);
        steps
    }

    /// Services whose stored data is backed up and then removed: all of them in a complete reset; those that
    /// are restored from a backup; those that are corrupt. A deployment removes no data, because it keeps no
    /// backup to restore it from.
    fn removed(&self) -> Vec<String> {
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
fn closable(now: &Observation, gates: Gates<'_>) -> Option<Step> {
    let services = now.stack.known().map(|stack| &stack.services);
    let Some(cover) = gates.running else {
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
    if gates.release.stops() && runs {
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
mod tests {
    use super::*;
    use crate::deploy::drift::drift;
    use crate::deploy::drift::tests::{change, matching, says};
    use crate::deploy::invariants::of_plan;
    use crate::host::HostCheck;
    use crate::release::description::State;
    use crate::stack::cover::Beside;
    use crate::stack::hold::Hold;
    use std::sync::LazyLock;

    /// The gate of the pilot.
    static HTTP: LazyLock<Cover> = LazyLock::new(|| Cover {
        kind: Kind::Http,
        services: ["gateway".to_owned()].into(),
        has_offline: true,
        ..Cover::stop()
    });

    fn same() -> Gates<'static> {
        Gates { running: Some(&HTTP), release: &HTTP }
    }

    /// Makes a plan and checks it against the invariants.
    fn make(now: &Observation, drift: &[Difference], goal: &Goal<'_>, gates: Gates<'_>) -> Plan {
        let plan = super::make(now, drift, goal, gates);
        of_plan(&plan, now, goal.purpose);
        plan
    }

    fn back(release: &Release) -> Goal<'_> {
        Goal::plain(release, Purpose::Rollback)
    }

    fn plan(how: impl FnOnce(&mut Observation), named: &[Scenario]) -> Plan {
        let (mut now, release, env) = matching();
        how(&mut now);
        let goal = Goal { named, ..back(&release) };
        make(&now, &drift(&now, &release, &env), &goal, same())
    }

    /// What becomes of the gate.
    fn end(plan: &Plan) -> Option<&Step> {
        end_of(&plan.steps)
    }

    fn end_of(steps: &[Step]) -> Option<&Step> {
        steps.iter().nth_back(1)
    }

    fn position(plan: &Plan, wanted: impl Fn(&Step) -> bool) -> usize {
        plan.steps.iter().position(wanted).unwrap_or_else(|| panic!("not in {:?}", plan.steps))
    }

    #[test]
    fn nothing_to_do_touches_nothing_and_a_closed_gate_is_something() {
        assert_eq!(plan(|_| (), &[]).steps, []);
        assert!(!plan(|n| n.gate = Gate::Closed("maintenance".into()), &[]).steps.is_empty());
        assert!(!plan(|_| (), &[Scenario::Config]).steps.is_empty());
    }

    #[test]
    fn the_gate_closes_first_and_opens_last_after_verify() {
        let p = plan(|n| change(n, "engine", |s| s.image = "e2".into()), &[]);
        assert_eq!(p.steps.first(), Some(&Step::CloseGate));
        assert_eq!(p.steps[p.steps.len() - 3..], [Step::Verify, Step::OpenGate, Step::Retag]);
        assert_eq!(p.scenarios, [Scenario::Version]);
    }

    #[test]
    fn only_what_drifted_is_restored() {
        let p = plan(|n| change(n, "engine", |s| s.image = "e2".into()), &[]);
        assert!(!p.steps.contains(&Step::RestoreEnvFile));
        assert!(!p.steps.iter().any(|s| matches!(s, Step::RemoveData { .. } | Step::LoadImages { .. })));
    }

    #[test]
    fn a_gateway_that_does_not_answer_is_stopped_and_comes_up_closed() {
        let p = plan(|n| n.gate = Gate::Unknown("timeout".into()), &[]);
        assert_eq!(p.steps.first(), Some(&Step::StopGateway));
        let on_disk = position(&p, |s| *s == Step::CloseGateOnDisk);
        assert!(on_disk < position(&p, |s| matches!(s, Step::Apply { .. })));
    }

    #[test]
    fn a_gateway_that_is_down_comes_up_closed_too() {
        let p = plan(
            |n| {
                change(n, "gateway", |s| s.state = "exited".into());
                n.gate = Gate::Unknown("it does not run".into());
            },
            &[],
        );
        assert!(!p.steps.contains(&Step::CloseGate) && !p.steps.contains(&Step::StopGateway));
        position(&p, |s| *s == Step::CloseGateOnDisk);
    }

    #[test]
    fn data_is_removed_only_after_its_backup_and_only_where_it_is_corrupt() {
        let corrupt = Health::StoreCorrupt("noise".into());
        let p = plan(|n| says(n, "engine", corrupt), &[]);
        let engine = vec!["engine".to_owned()];
        let backup = position(&p, |s| *s == Step::Preserve { data: engine.clone() });
        let removed = position(&p, |s| *s == Step::RemoveData { services: engine.clone() });
        assert!(backup < removed && removed < position(&p, |s| *s == Step::Seed));
        // If the run was interrupted after the removal, the next plan sees a new store and no corruption.
        let again = plan(|n| n.gate = Gate::Closed("rollback".into()), &[]);
        position(&again, |s| *s == Step::Seed);
    }

    #[test]
    fn a_whole_reset_backs_up_all_that_there_is_and_tears_down_before_anything_is_made() {
        let p = plan(
            |n| {
                if let Observed::Known(stack) = &mut n.stack {
                    stack.data.insert("prometheus".into());
                }
            },
            &[Scenario::Reset],
        );
        let all: Vec<String> = ["engine", "gateway", "prometheus"].map(str::to_owned).into();
        let backup = position(&p, |s| *s == Step::Preserve { data: all.clone() });
        let down = position(&p, |s| *s == Step::TearDown);
        assert!(backup < down && down < position(&p, |s| *s == Step::CloseGateOnDisk), "{:?}", p.steps);
        assert!(!p.steps.iter().any(|s| matches!(s, Step::RemoveData { .. } | Step::ReturnData { .. })));
    }

    #[test]
    fn data_from_a_backup_takes_the_place_of_what_was_preserved() {
        let (now, release, _) = matching();
        let data = Data::From("/b".into(), vec!["engine".into(), "jobs".into()]);
        let p = make(&now, &[], &Goal { data, ..back(&release) }, same());
        // `jobs` has no data, so nothing is removed there.
        let engine = vec!["engine".to_owned()];
        let kept = position(&p, |s| *s == Step::Preserve { data: engine.clone() });
        let gone = position(&p, |s| *s == Step::RemoveData { services: engine.clone() });
        let back = position(&p, |s| matches!(s, Step::RestoreData { .. }));
        assert!(kept < gone && gone < back && back < position(&p, |s| matches!(s, Step::Apply { .. })));
    }

    #[test]
    fn with_the_engine_gone_the_gate_is_closed_only_where_something_is_wrong() {
        let gone = |n: &mut Observation| n.stack = Observed::Unknown("hung".into());
        let well = plan(gone, &[]);
        assert_eq!(well.steps, [Step::Preserve { data: Vec::new() }, Step::AskEngine]);
        let sick = plan(
            |n| {
                gone(n);
                says(n, "engine", Health::Unhealthy("tired".into()));
            },
            &[],
        );
        assert_eq!(sick.steps[0], Step::CloseGate);
        assert_eq!(sick.steps.last(), Some(&Step::AskEngine));
        assert_eq!(
            plan(
                |n| {
                    gone(n);
                    n.gate = Gate::Unknown("timeout".into());
                },
                &[]
            )
            .steps[0],
            Step::CloseGate
        );
    }

    #[test]
    fn a_full_disk_is_relieved_before_anything_is_written() {
        let full =
            HostCheck { name: "disk".into(), ok: Some(false), detail: "0 free".into(), fix: "x".into() };
        let p = plan(|n| n.shortages.push(full), &[]);
        assert!(
            position(&p, |s| *s == Step::FreeSpace) < position(&p, |s| matches!(s, Step::Preserve { .. }))
        );
    }

    #[test]
    fn only_sick_services_without_another_difference_are_forced() {
        let p = plan(
            |n| {
                change(n, "engine", |s| s.image = "e2".into());
                says(n, "engine", Health::Silent("timeout".into()));
                says(n, "gateway", Health::Silent("timeout".into()));
            },
            &[],
        );
        let (services, force) = (vec!["engine".into(), "gateway".into()], vec!["gateway".into()]);
        assert!(p.steps.contains(&Step::Apply { services, force, held_back: Vec::new() }), "{:?}", p.steps);
    }

    #[test]
    fn a_hold_keeps_the_gate_closed_and_is_lifted_only_where_it_stood() {
        let hold = Hold::mine("bad answers");
        let held = |n: &mut Observation| n.holds = Observed::Known(vec![hold.clone()]);
        let closed = |n: &mut Observation| {
            held(n);
            n.gate = Gate::Closed("bad answers".into());
        };
        // Closed as it should be, and no difference.
        assert_eq!(plan(closed, &[]).steps, []);
        // The gate is open under a hold: `kill-switch on` was interrupted.
        let p = plan(held, &[]);
        assert_eq!(p.steps[0], Step::CloseGate);
        assert!(matches!(end(&p), Some(Step::KeepClosed { hold, .. }) if hold.contains("bad answers")));
        let p = plan(|n| n.holds = Observed::Unknown("no such disk".into()), &[]);
        assert!(matches!(end(&p), Some(Step::KeepClosed { hold, .. }) if hold.contains("no such disk")));
        // Only the hold with this id is lifted.
        let (mut now, release, _) = matching();
        closed(&mut now);
        let lift = [hold.id.clone()];
        let goal = Goal { lift: &lift, ..back(&release) };
        assert_eq!(make(&now, &[], &goal, same()).steps.iter().nth_back(1), Some(&Step::OpenGate));
        let mut other = Hold::mine("another");
        other.id = "another".into();
        now.holds = Observed::Known(vec![hold, other]);
        let p = make(&now, &[], &Goal { named: &[Scenario::Config], ..goal }, same());
        assert!(matches!(end(&p), Some(Step::KeepClosed { hold, .. }) if hold.contains("another")));
    }

    #[test]
    fn what_belongs_to_no_known_release_is_stopped_where_it_is_published() {
        let (mut now, release, _) = matching();
        change(&mut now, "engine", |s| s.address = None);
        let p = make(&now, &[], &back(&release), Gates { running: None, ..same() });
        // No difference, but it is unknown which release runs.
        assert_eq!(p.steps, []);
        let named = Goal { named: &[Scenario::Version], ..back(&release) };
        let p = make(&now, &[], &named, Gates { running: None, ..same() });
        assert_eq!(p.steps[0], Step::StopPublished { services: vec!["gateway".into()] });
        position(&p, |s| *s == Step::CloseGateOnDisk);
    }

    #[test]
    fn a_gate_that_stops_closes_what_is_there_and_starts_it_last() {
        let beside = vec![Beside { service: "engine".into(), at: vec!["0.0.0.0:2".into()], always: true }];
        let stop = Cover { services: ["gateway".to_owned()].into(), beside, ..Cover::stop() };
        let (now, release, _) = matching();
        let named = Goal { named: &[Scenario::Version], ..back(&release) };
        let steps = |running, release| make(&now, &[], &named, Gates { running, release }).steps;
        let gateway = vec!["gateway".to_owned()];
        let all = steps(Some(&stop), &stop);
        let not_closed = vec!["engine 0.0.0.0:2".to_owned()];
        assert_eq!(all[0], Step::StopGate { services: gateway.clone(), not_closed });
        assert_eq!(end_of(&all), Some(&Step::StartGate { services: gateway.clone() }));
        assert!(!all.contains(&Step::CloseGateOnDisk) && !all.contains(&Step::Seed), "{all:?}");
        // From a gate that is closed by a request, and to one.
        assert_eq!(steps(Some(&HTTP), &stop)[0], Step::StopPublished { services: gateway });
        let all = steps(Some(&stop), &HTTP);
        assert!(matches!(all[0], Step::StopGate { .. }) && all.contains(&Step::CloseGateOnDisk), "{all:?}");
        assert_eq!(end_of(&all), Some(&Step::OpenGate));
    }

    #[test]
    fn a_service_that_the_release_does_not_have_is_removed_after_the_evidence() {
        let p = plan(
            |n| {
                if let Observed::Known(stack) = &mut n.stack {
                    let more = stack.services["engine"].clone();
                    stack.services.insert("search".into(), more);
                }
            },
            &[],
        );
        let gone = Step::RemoveServices { services: vec!["search".into()] };
        assert!(position(&p, |s| matches!(s, Step::Preserve { .. })) < position(&p, |s| *s == gone));
    }

    #[test]
    fn a_deployment_removes_no_data() {
        let (mut now, release, env) = matching();
        says(&mut now, "engine", Health::StoreCorrupt("noise".into()));
        let found = drift(&now, &release, &env);
        let p = make(&now, &found, &Goal::plain(&release, Purpose::Deploy), same());
        assert!(!p.steps.iter().any(|s| matches!(s, Step::RemoveData { .. })), "{:?}", p.steps);
    }

    #[test]
    fn a_deployment_of_what_runs_and_is_known_to_be_good_does_nothing() {
        let (now, mut release, env) = matching();
        let steps = |now: &Observation, release: &Release| {
            make(now, &drift(now, release, &env), &Goal::plain(release, Purpose::Deploy), same()).steps
        };
        assert!(!steps(&now, &release).is_empty(), "it was never verified");
        release.state = State::KnownGood;
        assert_eq!(steps(&now, &release), []);
        let changed = |how: &dyn Fn(&mut Observation)| {
            let mut now = now.clone();
            how(&mut now);
            steps(&now, &release)
        };
        assert!(!changed(&|n| n.gate = Gate::Closed("maintenance".into())).is_empty());
        assert!(!changed(&|n| change(n, "engine", |s| s.state = "exited".into())).is_empty());
        assert!(!changed(&|n| n.stack = Observed::Unknown("hung".into())).is_empty());
    }

    #[test]
    fn lost_images_are_loaded_before_anything_is_changed() {
        let p = plan(
            |n| {
                if let Observed::Known(stack) = &mut n.stack {
                    stack.images.clear();
                    stack.services.clear();
                }
            },
            &[],
        );
        let two = |s: &Step| matches!(s, Step::LoadImages { services, .. } if services.len() == 2);
        let loaded = position(&p, two);
        assert!(loaded < position(&p, |s| *s == Step::RecordRelease));
    }

    #[test]
    fn images_are_loaded_ahead_of_the_gate_only_while_what_runs_passes_its_checks() {
        let lost = |how: &dyn Fn(&mut Observation)| {
            plan(
                |n| {
                    change(n, "engine", |s| s.image = "e2".into());
                    if let Observed::Known(stack) = &mut n.stack {
                        stack.images.clear();
                    }
                    n.passes = true;
                    how(n);
                },
                &[],
            )
        };
        let loads = |p: &Plan| position(p, |s| matches!(s, Step::LoadImages { .. }));
        let p = lost(&|_| ());
        assert!(matches!(p.steps[0], Step::LoadImages { served: true, .. }), "{:?}", p.steps);
        assert_eq!(p.steps[1], Step::CloseGate);
        let full =
            HostCheck { name: "disk".into(), ok: Some(false), detail: "0 free".into(), fix: "x".into() };
        let fails: &dyn Fn(&mut Observation) = &|n| n.passes = false;
        let closed: &dyn Fn(&mut Observation) = &|n| n.gate = Gate::Closed("rollback".into());
        for how in [fails, closed, &|n| n.shortages.push(full.clone())] {
            let p = lost(how);
            assert!(0 < loads(&p) && p.steps[0] == Step::CloseGate, "{:?}", p.steps);
            assert!(matches!(p.steps[loads(&p)], Step::LoadImages { served: false, .. }), "{:?}", p.steps);
        }
    }
}
