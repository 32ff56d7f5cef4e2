//! Commands that look: what they say of a pilot that is well, of one that is not, and of one that is gone.

use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Pilot, on};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn a_pilot_that_is_well_is_told_to_be() {
    on(&[Process], "well", |pilot| well(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn well(pilot: &mut Pilot) {
    assert!(pilot.xtask(&["assess"]).expect(0).out.contains("all is well"));
    pilot.xtask(&["preflight"]).expect(1);
    pilot.xtask(&["backup", "create"]).expect(0);
    // The manifest that is shipped names nobody to call yet. On a busy machine more is in the way, for a while.
    let limit = Instant::now() + Duration::from_secs(120);
    loop {
        let told = pilot.told(&["preflight"], 1);
        let no: Vec<&Value> =
            told["rows"].as_array().unwrap().iter().filter(|row| row["go"] != true).collect();
        if no.iter().map(|row| &row["name"]).eq([&json!("it is known who to call")]) {
            break;
        }
        assert!(Instant::now() < limit, "{no:?}");
    }
    assert_eq!(pilot.told(&["diagnose"], 0)["findings"], json!([]));
    let smoke = pilot.xtask(&["smoke"]).expect(0).out;
    for row in
        ["core services Up", "smoke tests passing", "First token < 500 ms", "security violations", "Demo"]
    {
        let line =
            smoke.lines().find(|line| line.contains(row)).unwrap_or_else(|| panic!("no {row} in {smoke}"));
        assert!(line.starts_with("- [x] "), "{line}");
    }
    let flags = pilot.told(&["flags"], 0);
    assert_eq!(flags["flags"].as_array().unwrap().len(), 36);
    assert_eq!(flags["violations"], 0);
    let shown = pilot.xtask(&["diagnose"]).expect(0);
    let usage = if pilot.engine == Process { "processes" } else { "MiB / 256MiB" };
    for words in [usage, "networks and volumes", "prometheus targets", "disk, state folder", "0 findings"] {
        assert!(shown.all().contains(words), "no {words} in {}", shown.all());
    }
}

#[test]
fn flags_come_from_the_running_services_and_not_from_the_file() {
    on(&[Process], "flags", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("ENABLE_CACHE", "true");
        pilot.xtask(&["flags"]).expect(0);
        pilot.xtask(&["up", "--stay"]).expect(1);
        pilot.edit_env("ENABLE_CACHE", "false");
        let wrong = pilot.xtask(&["flags"]).expect(1);
        assert!(wrong.out.contains("ENABLE_CACHE") && wrong.out.contains("3 violations"), "{}", wrong.out);
        let smoke = pilot.xtask(&["smoke"]).expect(1).out;
        assert!(smoke.contains("- [ ] No security violations"), "{smoke}");
        assert!(smoke.contains("- [x] Demo scenarios functional"), "{smoke}");
        // With the services gone nothing is told, and nothing told is no flag that holds.
        pilot.xtask(&["down"]).expect(0);
        assert!(pilot.xtask(&["flags"]).expect(1).out.contains("not reported"));
        assert_eq!(pilot.xtask(&["smoke"]).expect(1).out.matches("- [x]").count(), 0);
    });
}

#[test]
fn a_snapshot_holds_measured_values_alone() {
    on(&[Process], "snapshot", |pilot| {
        let pilot = pilot.up();
        let file = pilot.folder.0.join("metrics.json");
        let words = ["snapshot", "--output", &file.display().to_string()];
        pilot.xtask(&words).expect(0);
        let read = || -> Value { serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap() };
        let good = read();
        assert_eq!((&good["passed"], &good["deterministic"]), (&json!(true), &json!(true)));
        let worst = good["timeToFirstToken"]["worst_ms"].as_f64().unwrap();
        assert!(worst > 0.0 && worst < 500.0);
        assert!(good["cancelLatency"]["worst_ms"].as_f64().unwrap() > 0.0);
        // Six steps of 30 ms at least: a job that was really run.
        assert!(good["timeToComparisonSeconds"].as_f64().unwrap() > 0.05, "{good}");
        assert_eq!(good["thresholds"]["timeToFirstTokenMs"], 500.0);
        assert!(good["commit"].as_str().is_some_and(|commit| commit.len() >= 40), "{good}");
        pilot.xtask(&["down"]).expect(0);
        pilot.xtask(&words).expect(1);
        let bad = read();
        assert_eq!(bad["passed"], false);
        for field in ["timeToFirstToken", "cancelLatency", "timeToComparisonSeconds", "deterministic"] {
            assert_eq!(bad[field], Value::Null, "{field}");
        }
    });
}

#[test]
fn a_seed_that_does_not_fit_is_refused_with_its_reason() {
    on(&[Process], "seed", |pilot| {
        let pilot = pilot.up();
        let file = pilot.folder.0.join("seed.json");
        let path = file.display().to_string();
        pilot.xtask(&["seed"]).expect(0);
        std::fs::write(&file, r#"{"scenarioId":"mine","title":"Mine","options":[]}"#).unwrap();
        let refused = pilot.xtask(&["seed", &path]).expect(2);
        assert!(refused.err.contains("options: at least 2"), "{}", refused.err);
        let option = |id: &str| json!({"id": id, "name": id});
        let scenario = json!({"scenarioId": "mine", "title": "Mine", "options": [option("a"), option("b")]});
        std::fs::write(&file, scenario.to_string()).unwrap();
        pilot.xtask(&["seed", &path]).expect(0);
        assert_eq!(pilot.public("GET", "/report?scenarioId=mine", None).status, 200);
        let refused = pilot.xtask(&["seed", "no-such-file.json"]).expect(2);
        assert!(refused.err.contains("no-such-file.json"), "{}", refused.err);
    });
}

#[test]
fn every_service_down_is_told_service_by_service_and_kept() {
    on(&[Process], "down", |pilot| every_service_down(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn every_service_down(pilot: &mut Pilot) {
    let token = pilot.setting("ADMIN_TOKEN");
    if pilot.engine == Process {
        pilot.xtask(&["down"]).expect(0);
    } else {
        for (_, id) in pilot.containers("{{.Id}}") {
            pilot.docker(&["kill", &id]);
        }
    }
    let look = pilot.told(&["assess"], 1);
    assert_eq!(look["scenarios"][0][0], "host", "{look}");
    assert!(look["sessions"]["unknown"].is_string(), "{look}");
    let deep = pilot.told(&["diagnose"], 1);
    let findings = deep["findings"].as_array().unwrap();
    for service in ["gateway", "engine", "jobs"] {
        let own = findings
            .iter()
            .find(|f| f["what"].as_str().unwrap().starts_with(&format!("{service} does not run")));
        assert!(own.unwrap()["fix"].as_str().unwrap().ends_with("rollback"));
    }
    let bundle = pilot.told(&["evidence"], 0);
    let folder = Path::new(bundle["folder"].as_str().unwrap());
    let manifest: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("manifest.json")).unwrap()).unwrap();
    assert!(
        manifest["missed"]["sessions.json"].as_str().unwrap().contains("gateway does not run"),
        "{manifest}"
    );
    let files = manifest["files"].as_object().unwrap();
    for name in ["observation.json", "env.masked", "drift.json", "plan.json", "host.json", "release.json"] {
        assert!(files.contains_key(name), "no {name} in {manifest}");
    }
    // What killed containers leave can still be read.
    if pilot.engine == Compose2 {
        assert!(files.contains_key("gateway.log") && files.contains_key("engine.inspect.json"), "{manifest}");
    }
    // The archive is the folder, the checksums are the files', and no secret is in either.
    let to = pilot.folder.0.join("unpacked");
    std::fs::create_dir_all(&to).unwrap();
    let archive = bundle["archive"].as_str().unwrap();
    assert!(Command::new("tar").args(["xf", archive, "-C"]).arg(&to).status().unwrap().success());
    let unpacked = to.join(folder.file_name().unwrap());
    for (name, sum) in files {
        let found = Command::new("sha256sum").arg(unpacked.join(name)).output().unwrap();
        assert!(String::from_utf8_lossy(&found.stdout).starts_with(sum.as_str().unwrap()), "{name}");
        assert!(!std::fs::read_to_string(unpacked.join(name)).unwrap().contains(&token), "{name}");
    }
}

#[test]
fn errors_in_the_logs_are_shown() {
    on(&[Process], "logs", |pilot| {
        let pilot = pilot.up();
        // The services say so when they start, and end.
        pilot.edit_env("LOG_LEVEL", "loud");
        pilot.xtask(&["up", "--stay"]).expect(1);
        let shown = pilot.xtask(&["assess"]).expect(1).out;
        assert!(
            shown.contains("LOG_LEVEL=loud") && shown.contains("to release r1 (scenario config)"),
            "{shown}"
        );
        let deep = pilot.told(&["diagnose"], 1);
        let findings = deep["findings"].to_string();
        assert!(findings.contains("engine logged an error"), "{findings}");
        assert!(deep["logs"]["engine"]["known"].as_array().is_some_and(|lines| !lines.is_empty()));
    });
}
