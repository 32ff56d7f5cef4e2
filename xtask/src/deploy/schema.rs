//! Tests: `docs/events.schema.json` says what a line of a journal is. There is a value of every kind of event here, and of
//! every kind of step and difference; the compiler asks for one of a new kind. What real commands write is held against
//! the schema by `xtask/tests/it/events.rs`.

#![allow(clippy::unwrap_used)]

use crate::base::failure::Exit;
use crate::base::next::Next;
use crate::checks::run::Latency;
use crate::checks::smoke::{Checked, Smoke};
use crate::deploy::difference::{Change, Difference, Scenario};
use crate::deploy::event::{Brief, Event, Finished, GoOn, Outcome, Progress};
use crate::deploy::lockout::Public;
use crate::deploy::plan::Plan;
use crate::deploy::step::Step;
use crate::stack::escalation::Escalation;
use serde_json::{Value, json};
use std::path::Path;

#[path = "../../tests/it/schema.rs"]
mod checker;

use checker::{Schema, spoiled};

fn names() -> Vec<String> {
    vec!["db".into(), "web".into()]
}

/// One of each; a new kind needs a line below, and one here.
fn steps() -> Vec<Step> {
    match Step::Seed {
        Step::CloseGate
        | Step::StopGate { .. }
        | Step::StopGateway
        | Step::StopPublished { .. }
        | Step::FreeSpace
        | Step::Preserve { .. }
        | Step::Snapshot { .. }
        | Step::TearDown
        | Step::LoadImages { .. }
        | Step::RecordRelease
        | Step::RestoreEnvFile
        | Step::RemoveData { .. }
        | Step::ReturnData { .. }
        | Step::RestoreData { .. }
        | Step::AskEngine
        | Step::CloseGateOnDisk
        | Step::RemoveServices { .. }
        | Step::Apply { .. }
        | Step::Settle
        | Step::Seed
        | Step::Steady
        | Step::Verify
        | Step::OpenGate
        | Step::StartGate { .. }
        | Step::KeepClosed { .. }
        | Step::Retag
        | Step::KeepWatch { .. } => {}
    }
    vec![
        Step::CloseGate,
        Step::StopGate { services: names(), not_closed: names() },
        Step::StopGateway,
        Step::StopPublished { services: names() },
        Step::FreeSpace,
        Step::Preserve { data: names(), stop: Vec::new() },
        Step::Preserve { data: names(), stop: names() },
        Step::Snapshot { data: names() },
        Step::TearDown,
        Step::LoadImages { services: names(), served: true },
        Step::RecordRelease,
        Step::RestoreEnvFile,
        Step::RemoveData { services: names() },
        Step::ReturnData { except: names() },
        Step::RestoreData { from: "/srv/backup".into(), services: names() },
        Step::AskEngine,
        Step::CloseGateOnDisk,
        Step::RemoveServices { services: names() },
        Step::Apply { services: names(), force: names(), held_back: Vec::new() },
        Step::Apply { services: names(), force: names(), held_back: names() },
        Step::Settle,
        Step::Seed,
        Step::Steady,
        Step::Verify,
        Step::OpenGate,
        Step::StartGate { services: names() },
        Step::KeepClosed { hold: "held".into(), stopped: Vec::new(), not_closed: Vec::new() },
        Step::KeepClosed { hold: "held".into(), stopped: names(), not_closed: names() },
        Step::Retag,
        Step::KeepWatch { for_ms: 10_000 },
    ]
}

/// One of each, as above.
fn differences() -> Vec<Difference> {
    match Difference::ComposeFile {
        Difference::Image { .. }
        | Difference::Env { .. }
        | Difference::Settings { .. }
        | Difference::EnvFile { .. }
        | Difference::Down { .. }
        | Difference::Paused { .. }
        | Difference::Extra { .. }
        | Difference::Unhealthy { .. }
        | Difference::StoreCorrupt { .. }
        | Difference::DataMissing { .. }
        | Difference::ImageLost { .. }
        | Difference::Shortage { .. }
        | Difference::Release { .. }
        | Difference::ComposeFile
        | Difference::Unknown { .. } => {}
    }
    let text = || "text".to_owned();
    let change = |now, release| Change { name: text(), now, release };
    let changes = || vec![change(Some(text()), None), change(None, Some(text()))];
    let shortage = |fix| Difference::Shortage { what: text(), fix };
    vec![
        Difference::Image {
            service: text(),
            running: text(),
            running_version: None,
            release: text(),
            image: text(),
            version: text(),
        },
        Difference::Env { service: text(), release: text(), changes: changes() },
        Difference::Settings { service: text() },
        Difference::EnvFile { release: text(), changes: changes(), trouble: Some(text()) },
        Difference::Down { service: text(), state: text() },
        Difference::Paused { service: text() },
        Difference::Extra { service: text() },
        Difference::Unhealthy { service: text(), reason: text() },
        Difference::StoreCorrupt { service: text(), reason: text() },
        Difference::DataMissing { service: text() },
        Difference::ImageLost { service: text() },
        shortage(Next::xtask("host --free")),
        shortage(Next::shell("df -h").so("shows it")),
        shortage("wait".into()),
        Difference::Release { deployed: None },
        Difference::ComposeFile,
        Difference::Unknown { what: text(), why: text() },
    ]
}

fn smoke() -> Smoke {
    let check = |measured: Option<Latency>| Checked {
        name: "first token in time".into(),
        ok: measured.is_some(),
        detail: "23 ms".into(),
        measured,
        limit_ms: measured.map(|_| 500.0),
        took_ms: measured.map(|_| 30.5),
        made: true,
    };
    Smoke {
        passed: false,
        checks: vec![check(None), check(Some(Latency { median_ms: 20.5, worst_ms: 23.0 }))],
    }
}

/// A last event for each way to end, and with everything that it may say.
fn ends() -> Vec<Finished> {
    let exits = (0..=u8::MAX).filter_map(|code| Exit::try_from(code).ok());
    let outcomes = [
        Outcome::Restored,
        Outcome::NotRestored,
        Outcome::NothingToDo,
        Outcome::Refused,
        Outcome::Deployed,
        Outcome::RolledBack,
    ];
    let publics = [
        Public::Served,
        Public::ShutOut("503".into()),
        Public::Partly("503".into()),
        Public::Unknown("no answer".into()),
    ];
    let escalation =
        Escalation { level: 3, name: "infrastructure".into(), contact: None, why: "disk".into() };
    let full = Finished {
        scenarios: vec![
            Scenario::Config,
            Scenario::Version,
            Scenario::Reset,
            Scenario::Host,
            Scenario::Commit,
        ],
        stopped: names(),
        not_closed: names(),
        smoke: serde_json::to_value(smoke()).ok(),
        downtime_ms: Some(1),
        address: Some("http://127.0.0.1:1".into()),
        escalation: Some(escalation),
        ..Finished::plain(Exit::Host)
    };
    let mut all: Vec<Finished> = exits.map(Finished::plain).collect();
    all.extend(outcomes.map(|outcome| Finished { outcome: Some(outcome), ..full.clone() }));
    all.extend(publics.map(|public| Finished { public: Some(public), ..full.clone() }));
    all
}

/// One of each kind of event, as the lines that are written.
fn lines() -> Vec<Value> {
    let one = Event::Targets { releases: &[] };
    match one {
        Event::Started { .. }
        | Event::Targets { .. }
        | Event::Drift { .. }
        | Event::Planned { .. }
        | Event::Step { .. }
        | Event::Bytes { .. }
        | Event::Smoke { .. }
        | Event::Result { .. }
        | Event::Ended { .. }
        | Event::Finished(_) => {}
    }
    let (steps, differences, smoke, value) = (steps(), differences(), smoke(), json!({"any": ["thing"]}));
    let line = |event: &Event<'_>| serde_json::to_value(event).unwrap();
    let plan = Plan {
        release: "r1".into(),
        scenarios: vec![Scenario::Config, Scenario::Reset],
        steps: steps.clone(),
    };
    let brief = || Brief { id: "r1".into(), label: "v1".into(), commit: None };
    let started = |rollback, resumed| Event::Started {
        version: 1,
        command: "rollback",
        rollback,
        project: "shop",
        engine: "compose",
        at_ms: 1,
        resumed,
        since_ms: 1,
        who: "me".into(),
        host: "here".into(),
        xtask: "0.1.0",
        running: resumed.then(brief),
    };
    let go_on = || vec![GoOn { command: "text".into(), why: "text".into() }];
    let ended =
        |release| Event::Ended { at_ms: 1, since_ms: 1, engine: "compose".into(), release, go_on: go_on() };
    let step = |action, progress, folder: Option<&'static str>| Event::Step {
        action,
        step: "words".into(),
        progress,
        at_ms: 1,
        took_ms: 0,
        limit_ms: folder.map(|_| 1),
        detail: folder.map(str::to_owned),
        folder: folder.map(Path::new),
    };
    let mut all = vec![
        line(&started(Some("0001-x"), false)),
        line(&started(None, true)),
        line(&Event::Targets { releases: &names() }),
        line(&Event::Drift { release: "r1", differences: &differences }),
        line(&Event::Planned { plan: &plan, left_ms: 1 }),
        line(&step(&Step::Seed, Progress::Started, None)),
        line(&step(&Step::Seed, Progress::Done, Some("backup"))),
        line(&step(&Step::Seed, Progress::Failed, None)),
        line(&step(&Step::Seed, Progress::Warned, None)),
        line(&step(&Step::Seed, Progress::Skipped, None)),
        line(&Event::Bytes { what: "copy db", bytes: 1, at_ms: 1 }),
        line(&Event::Smoke { smoke: &smoke }),
        line(&Event::Result { value: &value }),
        line(&ended(None)),
        line(&ended(Some(brief()))),
    ];
    all.extend(ends().iter().map(|finished| line(&Event::Finished(finished))));
    all
}

#[test]
fn every_kind_of_event_is_in_the_schema() {
    let schema = Schema::shipped();
    for line in lines() {
        assert_eq!(schema.line(&line), Ok(()), "{line:#}");
    }
    for finished in ends() {
        assert_eq!(schema.part("report", &json!(finished)), Ok(()));
    }
}

#[test]
fn the_schema_has_no_kind_that_there_is_not() {
    let written: Vec<Value> = lines().into_iter().map(|line| line["event"].clone()).collect();
    for kind in Schema::shipped().kinds() {
        // `base/output` writes it.
        assert!(kind == "note" || written.contains(&json!(kind)), "nothing writes {kind}");
    }
}

#[test]
fn what_the_schema_does_not_know_is_a_mistake_at_every_depth() {
    let (schema, mut count) = (Schema::shipped(), 0);
    // What a command that only looks tells has a form of its own.
    for line in lines().iter().filter(|line| line["event"] != "result") {
        for wrong in spoiled(line) {
            assert!(schema.line(&wrong).is_err(), "{wrong:#}");
            count += 1;
        }
    }
    assert!(count > 100, "only {count}");
}
