//! The ordered steps of a deployment or a rollback, as plain data. `make` is pure: it decides all that
//! is to be decided, and `--plan` prints the very value that `execute` runs.

use crate::base::fact::Fact;
use crate::checks::health::Health;
use crate::deploy::drift::{Difference, Scenario};
use crate::deploy::gate::Gate;
use crate::deploy::observe::Observation;
use crate::release::description::Release;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Close the gate over HTTP and prove it; where that fails, stop the gateway (Option B).
    CloseGate,
    /// Stop the gateway, which does not answer (Option B), so that the public is out at once.
    StopGateway,
    /// Stop every service that is published: what runs belongs to no release that is known, so nobody can
    /// tell how its gate is closed.
    StopPublished {
        /// Which.
        services: Vec<String>,
    },
    /// Free what is the pilot's own and no longer needed.
    FreeSpace,
    /// Evidence and backup, side by side: logs, inspect output and metrics before anything is replaced,
    /// and a verified copy of the env file and of stored state that will be removed. Evidence that
    /// cannot be had is recorded as missed; without the backup nothing goes on.
    Preserve {
        /// Services whose stored data is backed up.
        data: Vec<String>,
    },
    /// Remove the project's containers, volumes and network, and check that nothing of it is left.
    TearDown,
    /// Take images in from the release, which the engine has lost.
    LoadImages {
        /// Services whose image is missing.
        services: Vec<String>,
    },
    /// Move the image tags to the release.
    PointTags,
    /// Put the release's env file in place of the tree's.
    RestoreEnvFile,
    /// Remove the stored data of these services; a verified backup exists.
    RemoveData {
        /// Which.
        services: Vec<String>,
    },
    /// Bring back the stored data that `Preserve` has copied.
    ReturnData {
        /// Services whose data stays out: it is corrupt.
        except: Vec<String>,
    },
    /// Bring stored data from a backup.
    RestoreData {
        /// Its folder.
        from: PathBuf,
        /// Whose.
        services: Vec<String>,
    },
    /// See whether the engine answers again: without it nothing can be changed, with it the plan is another.
    AskEngine,
    /// Close the gate on disk, so that the gateway comes up closed.
    CloseGateOnDisk,
    /// Remove services that the release does not have.
    RemoveServices {
        /// Which.
        services: Vec<String>,
    },
    /// Bring the services to the release.
    Replace {
        /// Services that are replaced even though the engine sees no difference.
        force: Vec<String>,
    },
    /// Load the release's demo scenario, which is there already unless the store is new.
    Seed,
    /// Watch restarts, memory and the host until they are steady.
    Watch,
    /// The new gateway proves that it is closed; what runs is compared with the release; all smoke checks.
    Verify,
    /// Open the gate and wait for a public stream's first token.
    OpenGate,
    /// Leave the gate closed, and prove it: a person holds it.
    KeepClosed {
        /// Who, since when and why.
        hold: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloseGate => write!(f, "close the gate and prove it"),
            Self::StopGateway => write!(f, "stop the gateway, which does not answer"),
            Self::StopPublished { services } => {
                write!(f, "stop all that is published: {}", services.join(", "))
            }
            Self::RemoveServices { services } => {
                write!(f, "remove what the release does not have: {}", services.join(", "))
            }
            Self::KeepClosed { hold } => write!(f, "leave the gate closed, {hold}"),
            Self::Preserve { data } if data.is_empty() => write!(f, "capture evidence, back up the env file"),
            Self::Preserve { data } => {
                write!(f, "capture evidence, back up {}", data.join(", "))
            }
            Self::FreeSpace => write!(f, "free what is the pilot's own and not needed"),
            Self::TearDown => write!(f, "tear the project down, check that nothing is left"),
            Self::ReturnData { except } if except.is_empty() => write!(f, "bring the data back"),
            Self::ReturnData { except } => write!(f, "bring the data back, but not of {}", except.join(", ")),
            Self::RestoreData { services, .. } => write!(f, "restore data of {}", services.join(", ")),
            Self::AskEngine => write!(f, "see whether the engine answers again"),
            Self::Watch => write!(f, "watch resources until they are steady"),
            Self::LoadImages { services } => write!(f, "load lost images of {}", services.join(", ")),
            Self::PointTags => write!(f, "move the image tags"),
            Self::RestoreEnvFile => write!(f, "restore the env file"),
            Self::RemoveData { services } => write!(f, "remove the data of {}", services.join(", ")),
            Self::CloseGateOnDisk => write!(f, "close the gate on disk"),
            Self::Replace { force } if force.is_empty() => write!(f, "replace what differs"),
            Self::Replace { force } => write!(f, "replace what differs, and {}", force.join(", ")),
            Self::Seed => write!(f, "load the demo scenario"),
            Self::Verify => write!(f, "verify behind the closed gate"),
            Self::OpenGate => write!(f, "open the gate, first public token"),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The release it leads to.
    pub release: String,
    /// Why.
    pub scenarios: Vec<Scenario>,
    /// In order; empty when there is nothing to do.
    pub steps: Vec<Step>,
}

/// What the plan is for, beyond what the drift says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Go back to a release.
    Rollback,
    /// Start a new release.
    Deploy,
}

/// What becomes of stored data, beyond what the drift asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// What is corrupt goes, after its backup; the rest stays.
    AsFound,
    /// A reset brings back what it has just backed up.
    ThroughReset,
    /// These services get theirs from the backup in this folder.
    From(PathBuf, Vec<String>),
}

/// What is wanted, beyond what the drift says.
#[derive(Clone, Debug)]
pub struct Intent<'a> {
    /// Go back, or deploy.
    pub purpose: Purpose,
    /// Scenarios that the user named.
    pub named: &'a [Scenario],
    /// What to do with stored data.
    pub data: Data,
    /// Holds that the user wants lifted, by id.
    pub lift: &'a [String],
}

/// Who has the gate: what runs by its own manifest, and the release gone to by its own.
#[derive(Clone, Copy, Debug)]
pub struct Gateways<'a> {
    /// The gateway of what runs; none where what runs belongs to no release that is known.
    pub running: Option<&'a str>,
    /// The gateway of the release gone to.
    pub release: &'a str,
}

/// Plans the way from `now` to `release`.
pub fn make(
    now: &Observation,
    drift: &[Difference],
    release: &Release,
    intent: &Intent<'_>,
    gateways: Gateways<'_>,
) -> Plan {
    let Intent { purpose, named, data, lift } = intent;
    let rollback = *purpose == Purpose::Rollback;
    let hold = now.holds.held(lift);
    let mut scenarios = if rollback { crate::deploy::drift::scenarios(drift) } else { Vec::new() };
    scenarios.extend(*named);
    scenarios.sort_unstable();
    scenarios.dedup();
    let mut plan = Plan { release: release.id.clone(), scenarios, steps: Vec::new() };
    let matters = |d: &&Difference| !matches!(d, Difference::ComposeFile);
    // A commit names the target; it is not a reason to roll back.
    let as_found = named.iter().all(|s| *s == Scenario::Commit) && *data == Data::AsFound;
    let gate_is_right = match &now.gate {
        Gate::Open => hold.is_none(),
        Gate::Closed(_) => hold.is_some(),
        Gate::Unknown(_) => false,
    };
    // A new release is always gone to: it has yet to be verified.
    let proven = rollback || release.is_known_good();
    if proven && drift.iter().find(matters).is_none() && as_found && gate_is_right {
        return plan;
    }
    let steps = &mut plan.steps;
    if let Fact::Unknown(_) = now.stack {
        // Services that answer and are healthy are not shut out because of an engine that does not.
        let healthy = |health: &Health| matches!(health, Health::Healthy { .. });
        let well = now.gate == Gate::Open && now.health.values().all(healthy);
        if !well {
            steps.push(Step::CloseGate);
        }
        if rollback {
            steps.push(Step::Preserve { data: Vec::new() });
        }
        steps.push(Step::AskEngine);
        return plan;
    }
    let closable = closable(now, gateways.running);
    let whole = rollback && named.contains(&Scenario::Reset);
    let removed = removed(now, drift, intent, whole);
    // Only a gateway that keeps its data comes up as it was left.
    let kept = closable == Some(Step::CloseGate)
        && gateways.running == Some(gateways.release)
        && !removed.iter().any(|service| service == gateways.release);
    let on_disk = whole || !kept;
    steps.extend(closable);
    let short = drift.iter().any(|d| matches!(d, Difference::Shortage { .. }));
    if rollback && (short || named.contains(&Scenario::Host)) {
        steps.push(Step::FreeSpace);
    }
    if rollback {
        steps.push(Step::Preserve { data: removed.clone() });
    }
    // Before anything is removed: an image that cannot be had ends the run here. What an engine has that says
    // nothing is unknown, not lost.
    let has = |id: &String| now.stack.known().is_none_or(|stack| stack.images.contains(id));
    let lost = release.images.iter().filter(|(_, image)| !has(&image.id));
    let lost: Vec<String> = lost.map(|(service, _)| service.clone()).collect();
    if !lost.is_empty() {
        steps.push(Step::LoadImages { services: lost });
    }
    if whole {
        steps.push(Step::TearDown);
    }
    steps.push(Step::PointTags);
    if drift.iter().any(|d| matches!(d, Difference::EnvFile { .. })) {
        steps.push(Step::RestoreEnvFile);
    }
    if !whole && !removed.is_empty() {
        steps.push(Step::RemoveData { services: removed });
    }
    match data {
        Data::AsFound => {}
        Data::ThroughReset => steps.push(Step::ReturnData { except: corrupt(drift) }),
        Data::From(_, services) if services.is_empty() => {}
        Data::From(dir, services) => {
            steps.push(Step::RestoreData { from: dir.clone(), services: services.clone() });
        }
    }
    if on_disk {
        steps.push(Step::CloseGateOnDisk);
    }
    let extra = extra(drift);
    if !whole && !extra.is_empty() {
        steps.push(Step::RemoveServices { services: extra });
    }
    steps.push(Step::Replace { force: sick(drift) });
    // Always: a store that was reset by a rollback which was then cut off looks like any other.
    steps.push(Step::Seed);
    if rollback && named.contains(&Scenario::Host) {
        steps.push(Step::Watch);
    }
    steps.push(Step::Verify);
    steps.push(match hold {
        None => Step::OpenGate,
        Some(hold) => Step::KeepClosed { hold },
    });
    plan
}

/// How the public is shut out before anything changes; nothing where nothing serves it.
fn closable(now: &Observation, gateway: Option<&str>) -> Option<Step> {
    let Some(gateway) = gateway else {
        let all = now.stack.known().into_iter().flat_map(|stack| &stack.services);
        let published = all.filter(|(_, state)| state.is_live() && state.port.is_some());
        let services: Vec<String> = published.map(|(name, _)| name.clone()).collect();
        return (!services.is_empty()).then_some(Step::StopPublished { services });
    };
    let runs = now.service(gateway).is_some_and(|s| s.is_live());
    // Unknown is not open: a gateway that runs and does not answer is taken out of the way.
    match &now.gate {
        Gate::Open | Gate::Closed(_) => Some(Step::CloseGate),
        Gate::Unknown(_) if runs => Some(Step::StopGateway),
        Gate::Unknown(_) => None,
    }
}

/// Services that run and that the release does not have.
fn extra(drift: &[Difference]) -> Vec<String> {
    let extra = |d: &Difference| match d {
        Difference::Extra { service } => Some(service.clone()),
        _ => None,
    };
    drift.iter().filter_map(extra).collect()
}

/// Services whose stored data is backed up and removed: all that there is in a whole reset; what will
/// come from a backup; what is corrupt. A deployment removes nothing: it has no place for a backup.
fn removed(now: &Observation, drift: &[Difference], intent: &Intent<'_>, whole: bool) -> Vec<String> {
    let there = |service: &String| now.stack.known().is_none_or(|stack| stack.data.contains(service));
    match &intent.data {
        _ if intent.purpose == Purpose::Deploy => Vec::new(),
        _ if whole => now.stack.known().into_iter().flat_map(|stack| &stack.data).cloned().collect(),
        Data::From(_, services) => services.iter().filter(|s| there(s)).cloned().collect(),
        _ => corrupt(drift),
    }
}

fn corrupt(drift: &[Difference]) -> Vec<String> {
    let corrupt = |d: &Difference| match d {
        Difference::StoreCorrupt { service, .. } => Some(service.clone()),
        _ => None,
    };
    drift.iter().filter_map(corrupt).collect()
}

/// Services that look as the release wants them and are not well. The engine replaces the others by
/// itself.
fn sick(drift: &[Difference]) -> Vec<String> {
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
            Difference::Sick { service, .. } => Some(service.clone()),
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
    use crate::deploy::drift::tests::{change, matching};
    use crate::host::HostCheck;
    use crate::release::description::State;
    use crate::stack::hold::Hold;

    const SAME: Gateways<'_> = Gateways { running: Some("gateway"), release: "gateway" };
    const PLAIN: Intent<'_> =
        Intent { purpose: Purpose::Rollback, named: &[], data: Data::AsFound, lift: &[] };

    fn plan(how: impl FnOnce(&mut Observation), named: &[Scenario]) -> Plan {
        let (mut now, release, env) = matching();
        how(&mut now);
        let intent = Intent { named, ..PLAIN };
        let plan = make(&now, &drift(&now, &release, &env, &[]), &release, &intent, SAME);
        // Of every plan: the gate opens once, at the very end, right after the verification, or it stays closed
        // under a hold; and nothing is overwritten or removed before it is preserved.
        if let Some(end) = plan.steps.len().checked_sub(1).filter(|_| !plan.steps.contains(&Step::AskEngine))
        {
            let ends = |s: &Step| matches!(s, Step::OpenGate | Step::KeepClosed { .. });
            let opens: Vec<usize> = (0..=end).filter(|n| ends(&plan.steps[*n])).collect();
            assert_eq!(opens, [end], "{:?}", plan.steps);
            let held = now.holds.known().is_none_or(|holds| !holds.is_empty());
            assert_eq!(held, plan.steps[end] != Step::OpenGate, "{:?}", plan.steps);
            assert_eq!(plan.steps[end - 1], Step::Verify);
            let changes = |s: &Step| {
                use Step::{RemoveData, RemoveServices, Replace, RestoreEnvFile, TearDown};
                matches!(
                    s,
                    RestoreEnvFile | RemoveData { .. } | RemoveServices { .. } | Replace { .. } | TearDown
                )
            };
            let preserved = position(&plan, |s| matches!(s, Step::Preserve { .. }));
            assert!(preserved < position(&plan, changes), "{:?}", plan.steps);
        }
        plan
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
        assert_eq!(p.steps[p.steps.len() - 2..], [Step::Verify, Step::OpenGate]);
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
        assert!(on_disk < position(&p, |s| matches!(s, Step::Replace { .. })));
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
        let p = plan(|n| drop(n.health.insert("engine".into(), corrupt)), &[]);
        let engine = vec!["engine".to_owned()];
        let backup = position(&p, |s| *s == Step::Preserve { data: engine.clone() });
        let removed = position(&p, |s| *s == Step::RemoveData { services: engine.clone() });
        assert!(backup < removed && removed < position(&p, |s| *s == Step::Seed));
        // Cut off after the removal, the next plan sees a new store and no corruption.
        let again = plan(|n| n.gate = Gate::Closed("rollback".into()), &[]);
        position(&again, |s| *s == Step::Seed);
    }

    #[test]
    fn a_whole_reset_backs_up_all_that_there_is_and_tears_down_before_anything_is_made() {
        let p = plan(
            |n| {
                if let Fact::Known(stack) = &mut n.stack {
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
        let p = make(&now, &[], &release, &Intent { data, ..PLAIN }, SAME);
        // There is none of jobs, so there is none to remove.
        let engine = vec!["engine".to_owned()];
        let kept = position(&p, |s| *s == Step::Preserve { data: engine.clone() });
        let gone = position(&p, |s| *s == Step::RemoveData { services: engine.clone() });
        let back = position(&p, |s| matches!(s, Step::RestoreData { .. }));
        assert!(kept < gone && gone < back && back < position(&p, |s| matches!(s, Step::Replace { .. })));
    }

    #[test]
    fn with_the_engine_gone_the_gate_is_closed_only_where_something_is_wrong() {
        let gone = |n: &mut Observation| n.stack = Fact::Unknown("hung".into());
        let well = plan(gone, &[]);
        assert_eq!(well.steps, [Step::Preserve { data: Vec::new() }, Step::AskEngine]);
        let sick = plan(
            |n| {
                gone(n);
                n.health.insert("engine".into(), Health::Unhealthy("tired".into()));
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
                n.health.insert("engine".into(), Health::Silent("timeout".into()));
                n.health.insert("gateway".into(), Health::Silent("timeout".into()));
            },
            &[],
        );
        assert!(p.steps.contains(&Step::Replace { force: vec!["gateway".into()] }), "{:?}", p.steps);
    }

    #[test]
    fn a_hold_keeps_the_gate_closed_and_is_lifted_only_where_it_stood() {
        let hold = Hold::mine("bad answers");
        let held = |n: &mut Observation| n.holds = Fact::Known(vec![hold.clone()]);
        let closed = |n: &mut Observation| {
            held(n);
            n.gate = Gate::Closed("bad answers".into());
        };
        // Closed as it should be, and nothing differs.
        assert_eq!(plan(closed, &[]).steps, []);
        // The gate is open although it is held: `kill-switch on` was cut off.
        let p = plan(held, &[]);
        assert_eq!(p.steps[0], Step::CloseGate);
        assert!(matches!(p.steps.last(), Some(Step::KeepClosed { hold }) if hold.contains("bad answers")));
        let p = plan(|n| n.holds = Fact::Unknown("no such disk".into()), &[]);
        assert!(matches!(p.steps.last(), Some(Step::KeepClosed { hold }) if hold.contains("no such disk")));
        // Lifted by its id, and no other with it.
        let (mut now, release, _) = matching();
        closed(&mut now);
        let lift = [hold.id.clone()];
        let intent = Intent { lift: &lift, ..PLAIN };
        assert_eq!(make(&now, &[], &release, &intent, SAME).steps.last(), Some(&Step::OpenGate));
        let mut other = Hold::mine("another");
        other.id = "another".into();
        now.holds = Fact::Known(vec![hold, other]);
        let p = make(&now, &[], &release, &Intent { named: &[Scenario::Config], ..intent }, SAME);
        assert!(matches!(p.steps.last(), Some(Step::KeepClosed { hold }) if hold.contains("another")));
    }

    #[test]
    fn what_belongs_to_no_known_release_is_stopped_where_it_is_published() {
        let (mut now, release, _) = matching();
        change(&mut now, "engine", |s| s.port = None);
        let p = make(&now, &[], &release, &PLAIN, Gateways { running: None, ..SAME });
        // Nothing differs and yet nobody knows what runs.
        assert_eq!(p.steps, []);
        let named = Intent { named: &[Scenario::Version], ..PLAIN };
        let p = make(&now, &[], &release, &named, Gateways { running: None, ..SAME });
        assert_eq!(p.steps[0], Step::StopPublished { services: vec!["gateway".into()] });
        position(&p, |s| *s == Step::CloseGateOnDisk);
    }

    #[test]
    fn a_service_that_the_release_does_not_have_is_removed_after_the_evidence() {
        let p = plan(
            |n| {
                if let Fact::Known(stack) = &mut n.stack {
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
        now.health.insert("engine".into(), Health::StoreCorrupt("noise".into()));
        let found = drift(&now, &release, &env, &[]);
        let p = make(&now, &found, &release, &Intent { purpose: Purpose::Deploy, ..PLAIN }, SAME);
        assert!(!p.steps.iter().any(|s| matches!(s, Step::RemoveData { .. })), "{:?}", p.steps);
    }

    #[test]
    fn a_deployment_of_what_runs_and_is_known_to_be_good_does_nothing() {
        let (now, mut release, env) = matching();
        let intent = Intent { purpose: Purpose::Deploy, ..PLAIN };
        let steps = |now: &Observation, release: &Release| {
            make(now, &drift(now, release, &env, &[]), release, &intent, SAME).steps
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
        assert!(!changed(&|n| n.stack = Fact::Unknown("hung".into())).is_empty());
    }

    #[test]
    fn lost_images_are_loaded_before_the_tags_move() {
        let p = plan(
            |n| {
                if let Fact::Known(stack) = &mut n.stack {
                    stack.images.clear();
                    stack.services.clear();
                }
            },
            &[],
        );
        let loaded = position(&p, |s| matches!(s, Step::LoadImages { services } if services.len() == 2));
        assert!(loaded < position(&p, |s| *s == Step::PointTags));
    }
}
