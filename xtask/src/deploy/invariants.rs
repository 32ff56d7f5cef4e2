//! Tests: what must hold of every plan and of every run. Each has one helper, and every test that makes a
//! plan or a run calls it. See "Invariants" in `docs/architecture.md`.

// If a helper panics, the test has failed, which is the purpose of the helper.
#![allow(clippy::unwrap_used)]

use crate::base::files;
use crate::base::observed::Observed;
use crate::base::packed;
use crate::deploy::backup;
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::gate::Gate;
use crate::deploy::lockout::Public;
use crate::deploy::observe::Observation;
use crate::deploy::paused;
use crate::deploy::plan::{Plan, Purpose};
use crate::deploy::step::Step;
use crate::engine::fake::world::{ALWAYS, Things};
use crate::release::store::Store;
use crate::stack::ledger::Ledger;
use crate::stack::state_dir::{self, StateDir};

/// Checks a plan, which was made from `now`.
#[track_caller]
pub fn of_plan(plan: &Plan, now: &Observation, purpose: Purpose) {
    let steps = &plan.steps;
    let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted);
    let asks = at(&|s| *s == Step::AskEngine);
    if let Some(asks) = asks {
        // If the engine does not answer, nothing is changed, and the last step asks it again.
        assert_eq!(asks, steps.len() - 1, "{steps:?}");
        let only = |s: &Step| matches!(s, Step::CloseGate | Step::Preserve { .. } | Step::AskEngine);
        assert!(steps.iter().all(only), "{steps:?}");
        return;
    }
    // The gate opens once, at the end, right after the verification. Under a hold it stays closed. No tag
    // moves before that.
    // What was opened is watched last, if it is watched at all. A run that was cut off there does only that.
    let watch = at(&|s| matches!(s, Step::KeepWatch { .. }));
    assert!(watch.is_none_or(|watch| watch == steps.len() - 1), "{steps:?}");
    if let [Step::Retag, Step::KeepWatch { .. }] = steps.as_slice() {
        let held = now.holds.held(&[]).is_some();
        return assert!(matches!(now.gate, Gate::Open) != held, "{steps:?}: {:?}", now.gate);
    }
    let steps = &steps[..watch.unwrap_or(steps.len())];
    let Some(end) = steps.len().checked_sub(2) else { return assert!(steps.is_empty(), "{steps:?}") };
    assert_eq!(at(&|s| *s == Step::Retag), Some(end + 1), "{steps:?}");
    let ends = |s: &Step| matches!(s, Step::OpenGate | Step::StartGate { .. } | Step::KeepClosed { .. });
    let all: Vec<usize> = (0..=end).filter(|n| ends(&steps[*n])).collect();
    assert_eq!(all, [end], "{steps:?}");
    assert_eq!(steps[end - 1], Step::Verify, "{steps:?}");
    let changes = |s: &Step| {
        use Step::{Apply, RemoveData, RemoveServices, RestoreEnvFile, TearDown};
        matches!(s, RestoreEnvFile | RemoveData { .. } | RemoveServices { .. } | Apply { .. } | TearDown)
    };
    let changed = at(&changes);
    // Nothing is overwritten or removed before it is preserved. A deployment removes no data.
    let removes = |s: &Step| matches!(s, Step::RemoveData { .. } | Step::TearDown);
    match purpose {
        Purpose::Rollback => {
            assert!(at(&|s| matches!(s, Step::Preserve { .. })) < changed, "{steps:?}");
        }
        Purpose::Deploy => assert_eq!(at(&removes), None, "{steps:?}"),
    }
    // Images are loaded before anything is removed. If the gateway may have lost its position, it comes up
    // closed.
    let loads = at(&|s| matches!(s, Step::LoadImages { .. }));
    assert!(loads.is_none_or(|loads| Some(loads) < changed), "{steps:?}");
    let ahead = matches!(steps[0], Step::LoadImages { served: true, .. });
    assert!(!ahead || now.passes && now.gate == Gate::Open, "{steps:?}");
    let closes_first = matches!(
        steps[usize::from(ahead)],
        Step::CloseGate | Step::StopGate { .. } | Step::StopGateway | Step::StopPublished { .. }
    );
    // What was stopped to close the gate is not started again if a backup fails.
    if let (
        Step::StopGate { services: down, .. } | Step::StopPublished { services: down },
        Some(Step::Preserve { stop, .. }),
    ) = (&steps[usize::from(ahead)], steps.iter().find(|s| matches!(s, Step::Preserve { .. })))
    {
        assert!(stop.iter().all(|name| !down.contains(name)), "{steps:?}");
    }
    // What lets the public in is started last, or not at all: a gate of the kind `stop`.
    let held_back = steps.iter().find_map(|s| match s {
        Step::Apply { held_back, .. } => Some(held_back.clone()),
        _ => None,
    });
    let last = match &steps[end] {
        Step::StartGate { services } => services.clone(),
        Step::KeepClosed { stopped, .. } => stopped.clone(),
        _ => Vec::new(),
    };
    assert_eq!(held_back, Some(last.clone()), "{steps:?}");
    let on_disk = at(&|s| *s == Step::CloseGateOnDisk);
    let serves =
        matches!(&now.stack, Observed::Known(stack) if stack.services.values().any(|s| s.is_published()));
    assert!(closes_first || on_disk.is_some() || !last.is_empty() || !serves, "{steps:?}");
    let applies = at(&|s| matches!(s, Step::Apply { .. }));
    assert!(on_disk.is_none_or(|on_disk| Some(on_disk) < applies), "{steps:?}");
}

/// What a run started with.
pub struct Before<'a> {
    /// The folder with releases, runs and backups.
    pub state: &'a StateDir,
    /// Stored data that must not be lost, by service.
    pub data: &'a [(&'a str, &'a str)],
    /// A secret that may be written only in env files.
    pub secret: &'a str,
}

/// Checks what a run has left; `finished` is none if the run was interrupted.
#[track_caller]
pub fn of_run(before: &Before<'_>, things: &Things, finished: Option<&Finished>) {
    assert_eq!(things.let_in_to_bad, 0, "the public was let in to what is not well: {:?}", things.done);
    for (service, data) in before.data {
        let live = things.volumes.get(*service).is_some_and(|live| live == data);
        assert!(
            live || is_backed_up(before.state, service, data),
            "data of {service} is lost: {:?}",
            things.done
        );
    }
    let holds = Ledger::new(before.state).holds().unwrap();
    assert!(holds.is_empty() || !things.is_open(), "open under a hold: {:?}", things.done);
    no_secret_is_written(before.state, before.secret);
    watched_before_known_good(before.state);
    // Nothing is paused that the next command would not find.
    let recorded = paused::services(before.state);
    assert!(things.paused.is_subset(&recorded), "paused without a record: {:?}", things.done);
    if finished.is_some_and(|finished| finished.exit.is_good()) {
        assert!(things.paused.is_empty() && recorded.is_empty(), "left paused: {:?}", things.done);
    }
    if let Some(finished) = finished {
        what_is_said_is_so(before, things, finished);
    }
}

/// No journal and no report has the secret.
#[track_caller]
pub fn no_secret_is_written(state: &StateDir, secret: &str) {
    for (_, run) in state.every_run().unwrap() {
        for path in [run.journal(), run.report(), run.page(), run.markdown(), run.junit()] {
            let text = files::read_if_there(&path).unwrap().unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains(secret), "{} has a secret", path.display());
        }
    }
}

/// A run whose plan has a watch makes a release known-good only after that.
#[track_caller]
pub fn watched_before_known_good(state: &StateDir) {
    for release in Store::new(state).list().unwrap().0 {
        let runs = state.every_run().unwrap();
        let verified =
            runs.iter().find(|(_, run)| Some(state_dir::number(&run.id())) == release.verified_run);
        let Some((_, run)) = verified else { continue };
        let text = files::read_text(&run.journal()).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("\"keep-watch\"")).collect();
        let over = |line: &&str| line.contains("\"progress\":\"done\"") || line.contains("\"warned\"");
        assert!(lines.is_empty() || lines.iter().any(over), "{} is known-good unwatched: {text}", release.id);
    }
}

/// What the last event says about the public and the release must be true.
#[track_caller]
pub fn what_is_said_is_so(before: &Before<'_>, things: &Things, finished: &Finished) {
    let good = matches!(finished.outcome, Some(Outcome::Restored | Outcome::Deployed | Outcome::NothingToDo));
    assert_eq!(good, finished.exit.is_good(), "{finished:?}");
    if good {
        assert_eq!(things.is_open(), !finished.held, "{finished:?}");
        // Under a hold nobody sees what only shows to the public.
        assert!(if finished.held { !things.is_seen_bad() } else { things.is_well() }, "{finished:?}");
        // What a gate has stopped is started again by the engine exactly while the gate is open.
        for (name, started) in &things.services {
            let kept_down = finished.held && things.edge.contains(name);
            assert_eq!(started.restart, if kept_down { "no" } else { ALWAYS }, "{name}: {finished:?}");
        }
        let id = finished.release.as_ref().unwrap();
        let release = Store::new(before.state).named(id).unwrap();
        for (service, image) in &release.images {
            assert_eq!(things.services[service].image, image.id, "{finished:?}");
        }
    } else {
        assert!(finished.error.is_some() && finished.next.is_some(), "{finished:?}");
    }
    match &finished.public {
        Some(Public::ShutOut(_) | Public::Partly(_)) => assert!(!things.is_open(), "{finished:?}"),
        Some(Public::Served) => assert!(things.is_open(), "{finished:?}"),
        Some(Public::Unknown(_)) | None => {}
    }
}

/// Is this data of a service in a backup?
pub fn is_backed_up(state: &StateDir, service: &str, data: &str) -> bool {
    let (backups, _) = backup::list(state).unwrap();
    backups.iter().any(|kept| {
        let Ok(archive) = kept.backup.archive(&kept.dir, service) else { return false };
        let mut bytes = Vec::new();
        packed::open(&archive).unwrap().read_to_end(&mut bytes).unwrap();
        bytes.windows(data.len()).any(|window| window == data.as_bytes())
    })
}
