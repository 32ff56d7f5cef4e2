//! The ordered steps of a deployment or a rollback, as plain data. `make` is pure: it decides all that
//! is to be decided, and `--plan` prints the very value that `execute` runs.

use crate::drift::{Difference, Scenario};
use crate::gate::Gate;
use crate::observe::{Fact, Observation};
use crate::release::Release;
use serde::Serialize;
use std::fmt;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Close the gate over HTTP and prove it; where that fails, stop the gateway (Option B).
    CloseGate,
    /// Stop the gateway, which does not answer (Option B), so that the public is out at once.
    StopGateway,
    /// Evidence and backup, side by side: logs, inspect output and metrics before anything is replaced,
    /// and a verified copy of the env file and of stored state that will be removed. Evidence that
    /// cannot be had is recorded as missed; without the backup nothing goes on.
    Preserve {
        /// Services whose stored state is backed up.
        data: Vec<String>,
    },
    /// Take images in from the release, which the engine has lost.
    LoadImages {
        /// Services whose image is missing.
        services: Vec<String>,
    },
    /// Move the image tags to the release.
    PointTags,
    /// Put the release's env file in place of the tree's.
    RestoreEnvFile,
    /// Remove the stored state of these services; a verified backup exists.
    RemoveData {
        /// Which.
        services: Vec<String>,
    },
    /// Close the gate on disk, so that the gateway comes up closed.
    CloseGateOnDisk,
    /// Bring the services to the release.
    Replace {
        /// Services that are replaced even though the engine sees no difference.
        force: Vec<String>,
    },
    /// Load the release's demo scenario, which is there already unless the store is new.
    Seed,
    /// All smoke checks, behind the closed gate.
    Verify,
    /// Open the gate and wait for a public stream's first token.
    OpenGate,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloseGate => write!(f, "close the gate and prove it"),
            Self::StopGateway => write!(f, "stop the gateway, which does not answer"),
            Self::Preserve { data } if data.is_empty() => write!(f, "capture evidence, back up the env file"),
            Self::Preserve { data } => {
                write!(f, "capture evidence, back up env file and {} data", data.join(", "))
            }
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

/// Plans the way from `now` to `release`. `named` are scenarios that the user asked for.
pub fn make(
    now: &Observation,
    drift: &[Difference],
    release: &Release,
    purpose: Purpose,
    named: &[Scenario],
    gateway: &str,
) -> Plan {
    let mut scenarios = match purpose {
        Purpose::Rollback => crate::drift::scenarios(drift),
        Purpose::Deploy => Vec::new(),
    };
    scenarios.extend(named);
    scenarios.sort_unstable();
    scenarios.dedup();
    let mut plan = Plan { release: release.id.clone(), scenarios, steps: Vec::new() };
    let matters = |d: &&Difference| !matches!(d, Difference::ComposeFile);
    if purpose == Purpose::Rollback
        && drift.iter().find(matters).is_none()
        && named.is_empty()
        && now.gate == Gate::Open
    {
        return plan;
    }
    // A deployment removes nothing: it has no place for a backup.
    let reset = match purpose {
        Purpose::Rollback => reset_of(drift, release, named),
        Purpose::Deploy => Vec::new(),
    };
    let steps = &mut plan.steps;
    let runs = now.service(gateway).is_some_and(|s| s.is_live());
    // Unknown is not open: a gateway that runs and does not answer is taken out of the way, and one
    // that nobody can see is tried.
    let closable = match (&now.stack, &now.gate) {
        (Fact::Unknown(_), _) => Some(Step::CloseGate),
        (_, Gate::Open | Gate::Closed(_)) => Some(Step::CloseGate),
        (_, Gate::Unknown(_)) if runs => Some(Step::StopGateway),
        (_, Gate::Unknown(_)) => None,
    };
    let on_disk = closable != Some(Step::CloseGate) || reset.iter().any(|s| s == gateway);
    steps.extend(closable);
    if purpose == Purpose::Rollback {
        steps.push(Step::Preserve { data: reset.clone() });
    }
    // What an engine has that says nothing is unknown, not lost.
    let has = |id: &String| now.stack.known().is_none_or(|stack| stack.images.contains(id));
    let lost = release.images.iter().filter(|(_, image)| !has(&image.id));
    let lost: Vec<String> = lost.map(|(service, _)| service.clone()).collect();
    if !lost.is_empty() {
        steps.push(Step::LoadImages { services: lost });
    }
    steps.push(Step::PointTags);
    if drift.iter().any(|d| matches!(d, Difference::EnvFile { .. })) {
        steps.push(Step::RestoreEnvFile);
    }
    if !reset.is_empty() {
        steps.push(Step::RemoveData { services: reset.clone() });
    }
    if on_disk {
        steps.push(Step::CloseGateOnDisk);
    }
    steps.push(Step::Replace { force: sick(drift) });
    // Always: a store that was reset by a rollback which was then cut off looks like any other.
    steps.push(Step::Seed);
    steps.push(Step::Verify);
    steps.push(Step::OpenGate);
    plan
}

/// Services whose stored state goes: those that are corrupt, or all when the user asks for a reset.
fn reset_of(drift: &[Difference], release: &Release, named: &[Scenario]) -> Vec<String> {
    if named.contains(&Scenario::Reset) {
        return release.images.keys().cloned().collect();
    }
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
    use crate::drift::drift;
    use crate::drift::tests::{change, matching};
    use crate::observe::Health;

    fn plan(how: impl FnOnce(&mut Observation), named: &[Scenario]) -> Plan {
        let (mut now, release, env) = matching();
        how(&mut now);
        let plan = make(&now, &drift(&now, &release, &env), &release, Purpose::Rollback, named, "gateway");
        // Of every plan: the gate opens once, at the very end, right after the verification, and
        // nothing is overwritten or removed before it is preserved.
        if let Some(end) = plan.steps.len().checked_sub(1) {
            let opens: Vec<usize> = (0..=end).filter(|n| plan.steps[*n] == Step::OpenGate).collect();
            assert_eq!(opens, [end], "{:?}", plan.steps);
            assert_eq!(plan.steps[end - 1], Step::Verify);
            let changes =
                |s: &Step| matches!(s, Step::RestoreEnvFile | Step::RemoveData { .. } | Step::Replace { .. });
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
    fn a_deployment_removes_no_data() {
        let (mut now, release, env) = matching();
        now.health.insert("engine".into(), Health::StoreCorrupt("noise".into()));
        let found = drift(&now, &release, &env);
        let p = make(&now, &found, &release, Purpose::Deploy, &[], "gateway");
        assert!(!p.steps.iter().any(|s| matches!(s, Step::RemoveData { .. })), "{:?}", p.steps);
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
