//! Tests of the plan: every case of which the order of the steps is a promise.

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

fn rules<'a>(running: Option<&'a Cover>, release: &'a Cover) -> Rules<'a> {
    Rules { running, release, snapshots: &[], watch: Duration::ZERO }
}

fn is_backup(step: &Step, of: &[String]) -> bool {
    matches!(step, Step::Preserve { data, .. } if data == of)
}

fn same() -> Rules<'static> {
    rules(Some(&HTTP), &HTTP)
}

/// Makes a plan and checks it against the invariants.
fn make(now: &Observation, drift: &[Difference], goal: &Goal<'_>, with: Rules<'_>) -> Plan {
    let plan = super::make(now, drift, goal, with);
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
    let backup = position(&p, |s| is_backup(s, &engine));
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
    let backup = position(&p, |s| is_backup(s, &all));
    let down = position(&p, |s| *s == Step::TearDown);
    assert!(backup < down && down < position(&p, |s| *s == Step::CloseGateOnDisk), "{:?}", p.steps);
    assert!(!p.steps.iter().any(|s| matches!(s, Step::RemoveData { .. } | Step::ReturnData { .. })));
}

#[test]
fn data_from_a_backup_takes_the_place_of_what_was_preserved() {
    let (now, release, _) = matching();
    let data = Data::From("/b".into(), vec!["engine".into(), "jobs".into()]);
    let p = make(&now, &[], &Goal { data, ..back(&release) }, same());
    // `jobs` has no data, so nothing is kept of it.
    let engine = vec!["engine".to_owned()];
    let kept = position(&p, |s| is_backup(s, &engine));
    let restored = position(&p, |s| matches!(s, Step::RestoreData { .. }));
    assert!(kept < restored && restored < position(&p, |s| matches!(s, Step::Apply { .. })));
    assert!(p.steps.iter().all(|s| !matches!(s, Step::RemoveData { .. })));
    // Whatever could write to it is stopped before it is copied, and started again; a database too, so that its volume is
    // copied and comes back whatever the command does that restores a dump.
    let stopped =
        p.steps.iter().find_map(|s| if let Step::Preserve { stop, .. } = s { Some(stop) } else { None });
    assert_eq!(stopped.unwrap(), &["engine", "gateway"]);
}

#[test]
fn a_snapshot_is_taken_before_a_deployment_changes_anything() {
    let (now, release, _) = matching();
    let mut new = release.clone();
    new.state = State::Candidate;
    let snapshots = ["engine".to_owned()];
    let with = Rules { snapshots: &snapshots, ..same() };
    let p = make(&now, &[], &Goal::plain(&new, Purpose::Deploy), with);
    let taken = position(&p, |s| *s == Step::Snapshot { data: snapshots.to_vec() });
    assert!(position(&p, |s| *s == Step::CloseGate) < taken);
    assert!(taken < position(&p, |s| *s == Step::RecordRelease), "{:?}", p.steps);
    let p = make(&now, &[], &back(&release), with);
    assert!(p.steps.iter().all(|s| !matches!(s, Step::Snapshot { .. })));
}

#[test]
fn with_the_engine_gone_the_gate_is_closed_only_where_something_is_wrong() {
    let gone = |n: &mut Observation| n.stack = Observed::Unknown("hung".into());
    let well = plan(gone, &[]);
    assert_eq!(well.steps, [Step::Preserve { data: Vec::new(), stop: Vec::new() }, Step::AskEngine]);
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
    let full = HostCheck { name: "disk".into(), ok: Some(false), detail: "0 free".into(), fix: "x".into() };
    let p = plan(|n| n.shortages.push(full), &[]);
    assert!(position(&p, |s| *s == Step::FreeSpace) < position(&p, |s| matches!(s, Step::Preserve { .. })));
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
    let p = make(&now, &[], &back(&release), rules(None, &HTTP));
    // No difference, but it is unknown which release runs.
    assert_eq!(p.steps, []);
    let named = Goal { named: &[Scenario::Version], ..back(&release) };
    let p = make(&now, &[], &named, rules(None, &HTTP));
    assert_eq!(p.steps[0], Step::StopPublished { services: vec!["gateway".into()] });
    position(&p, |s| *s == Step::CloseGateOnDisk);
}

#[test]
fn a_gate_that_stops_closes_what_is_there_and_starts_it_last() {
    let beside = vec![Beside { service: "engine".into(), at: vec!["0.0.0.0:2".into()], always: true }];
    let stop = Cover { services: ["gateway".to_owned()].into(), beside, ..Cover::stop() };
    let (now, release, _) = matching();
    let named = Goal { named: &[Scenario::Version], ..back(&release) };
    let steps = |running, release| make(&now, &[], &named, rules(running, release)).steps;
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
fn a_hold_over_an_open_gate_is_lifted_by_a_run_with_all_its_checks() {
    let (mut now, release, _) = matching();
    let hold = Hold::mine("bad answers");
    let lift = [hold.id.clone()];
    let steps = |now: &Observation, lift: &[String]| {
        let goal = Goal { lift, ..back(&release) };
        make(now, &[], &goal, same()).steps
    };
    assert_eq!(steps(&now, &lift), []);
    now.holds = Observed::Known(vec![hold]);
    assert!(matches!(end_of(&steps(&now, &lift)), Some(Step::OpenGate)));
    assert!(matches!(end_of(&steps(&now, &[])), Some(Step::KeepClosed { .. })));
}

#[test]
fn what_a_hold_keeps_down_and_the_engine_may_start_is_stopped_once_more() {
    let stop = Cover { services: ["gateway".to_owned()].into(), ..Cover::stop() };
    let (mut now, release, _) = matching();
    now.gate = Gate::Closed("bad answers".into());
    now.holds = Observed::Known(vec![Hold::mine("bad answers")]);
    let steps = |now: &Observation| make(now, &[], &back(&release), rules(Some(&stop), &stop)).steps;
    for (policy, is_enough) in [(Some("no"), true), (None, true), (Some("always"), false)] {
        change(&mut now, "gateway", |gateway| {
            (gateway.state, gateway.restart) = ("exited".into(), policy.map(str::to_owned));
        });
        assert_eq!(steps(&now).is_empty(), is_enough, "{policy:?}");
    }
    assert!(matches!(steps(&now)[0], Step::StopGate { .. }));
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
    let full = HostCheck { name: "disk".into(), ok: Some(false), detail: "0 free".into(), fix: "x".into() };
    let fails: &dyn Fn(&mut Observation) = &|n| n.passes = false;
    let closed: &dyn Fn(&mut Observation) = &|n| n.gate = Gate::Closed("rollback".into());
    for how in [fails, closed, &|n| n.shortages.push(full.clone())] {
        let p = lost(how);
        assert!(0 < loads(&p) && p.steps[0] == Step::CloseGate, "{:?}", p.steps);
        assert!(matches!(p.steps[loads(&p)], Step::LoadImages { served: false, .. }), "{:?}", p.steps);
    }
}
