//! What an attacker of the holds, the runs and their ends has found, each seen to fail before it was repaired.

use crate::holds::shut_out;
use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, on};
use crate::resume::{kill_when, step};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[track_caller]
fn served(pilot: &Pilot) {
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
}

/// Closes the gate as the old runbook does, without this tool.
#[track_caller]
fn close_by_hand(pilot: &Pilot, reason: &str) {
    let body = json!({"enabled": true, "reason": reason}).to_string();
    assert_eq!(pilot.request("POST", "gateway", "/admin/kill-switch", Some(&body)).status, 200);
}

/// Stops a command in its tracks at an event, does something, and lets it go on; what it came to.
fn meanwhile(
    pilot: &Pilot,
    words: &[&str],
    fits: impl Fn(&Value) -> bool,
    act: impl Fn(),
) -> (i32, Vec<Value>) {
    let mut command = pilot.command(&[&["--format", "json"], words].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (out, pid) = (child.stdout.take().unwrap(), child.id().to_string());
    let signal = |name: &str| {
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    };
    let mut events = Vec::new();
    for line in BufReader::new(out).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if fits(&event) {
            signal("STOP");
            act();
            signal("CONT");
        }
        events.push(event);
    }
    (child.wait().unwrap().code().unwrap(), events)
}

/// Stops all processes of a service, or lets them go on.
fn freeze(pilot: &Pilot, service: &str, signal: &str) {
    let folder = pilot.state().join("process/services").join(service);
    let group = std::fs::read_to_string(folder.join("alive")).unwrap();
    let group = format!("-{}", group.trim());
    assert!(Command::new("kill").args([signal, "--", &group]).status().unwrap().success());
}

#[test]
fn an_image_that_cannot_be_had_ends_a_reset_before_anything_is_removed() {
    on(&[Process], "no-image", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        let (_, id) = pilot.release_images("r1").into_iter().find(|(service, _)| service == "jobs").unwrap();
        let name = id.trim_start_matches("sha256:").to_owned();
        for file in [name.clone(), format!("{name}.head")] {
            std::fs::remove_file(pilot.state().join("process/images").join(file)).unwrap();
        }
        let release = std::fs::read(pilot.state().join("releases/r1/release.json")).unwrap();
        let release: Value = serde_json::from_slice(&release).unwrap();
        let index = release["images"]["jobs"]["index"].as_str().unwrap();
        let blob = pilot.state().join("blobs").join(index);
        let good = std::fs::read(&blob).unwrap();
        std::fs::write(&blob, [good.as_slice(), b"x"].concat()).unwrap();
        let failed = pilot.json(&["reset", "--yes", "--keep-data"]).expect(1).finished();
        let error = failed["error"].as_str().unwrap();
        assert!(error.contains("was altered") && error.contains(&blob.display().to_string()), "{failed}");
        // What runs passes its checks, and it was loaded before the gate is closed: nothing was changed.
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
        std::fs::write(&blob, good).unwrap();
        pilot.xtask(&["reset", "--yes", "--keep-data"]).expect(0);
        assert!(pilot.has_scenario());
    });
}

#[test]
fn data_that_a_failed_reset_has_removed_is_named_until_it_is_back() {
    on(&[Process], "owes", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        // Its port is taken once the services are down, so it fails behind the teardown.
        let port = pilot.port("jobs");
        let taken = std::cell::RefCell::new(None);
        let (code, events) = meanwhile(&pilot, &["reset", "--yes"], step("tear-down", "done"), || {
            *taken.borrow_mut() = Some(std::net::TcpListener::bind(("127.0.0.1", port)).unwrap());
        });
        // It is seen before the services start, or on a busy machine only when one of them does not answer.
        assert!(matches!(code, 1 | 4), "{events:?}");
        let said = |events: &[Value]| events.iter().map(ToString::to_string).collect::<String>();
        let id = pilot.runs().pop().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let restore = format!("backup restore {id} --only data --yes");
        assert!(said(&events).contains(&restore), "{events:?}");
        taken.replace(None);
        let next = pilot.json(&["rollback"]).expect(0);
        assert!(next.out.contains(&restore), "{}", next.out);
        // However many backups come after it, it is not cleared away.
        for _ in 0..7 {
            pilot.xtask(&["rollback", "--scenario", "config"]).expect(0);
        }
        pilot.xtask(&["backup", "create"]).expect(0);
        pilot.xtask(&restore.split(' ').collect::<Vec<_>>()).expect(0);
        assert!(pilot.has_scenario());
        assert!(!pilot.xtask(&["rollback", "--to", "r1"]).expect(0).out.contains(&restore));
    });
}

#[test]
fn backups_of_settings_push_none_of_data_out() {
    on(&[Process], "pushed", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        pilot.xtask(&["reset", "--yes"]).expect(0);
        let id = pilot.runs().pop().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        for _ in 0..6 {
            pilot.xtask(&["rollback", "--scenario", "config"]).expect(0);
        }
        pilot.xtask(&["backup", "create"]).expect(0);
        pilot.xtask(&["backup", "restore", &id, "--only", "data", "--yes"]).expect(0);
        assert!(pilot.has_scenario());
    });
}

#[test]
fn a_reset_copies_all_that_it_removes() {
    on(&[Process], "notes", |pilot| {
        let pilot = pilot.up();
        let notes = pilot.state().join("process/volumes/notes");
        std::fs::create_dir(&notes).unwrap();
        std::fs::write(notes.join("f"), "x").unwrap();
        pilot.xtask(&["reset", "--yes"]).expect(0);
        assert!(pilot.runs().pop().unwrap().join("backup/notes.data.tar.lz4").exists());
    });
}

#[test]
fn whatever_words_a_person_chose_the_gate_stays_closed() {
    on(&[Process], "words", |pilot| {
        let pilot = pilot.up();
        for reason in ["run away costs, Ann", "rollback: Ann", "GLOBAL_KILL_SWITCH, Ann"] {
            close_by_hand(&pilot, reason);
            pilot.edit_env("ENABLE_CACHE", "true");
            let finished = pilot.json(&["rollback"]).expect(9).finished();
            assert!(finished["hold"].as_str().unwrap().contains("Ann"), "{finished}");
            shut_out(&pilot, reason);
            pilot.xtask(&["rollback", "--open"]).expect(0);
            served(&pilot);
        }
        // An unchanged tree under such a gate: checked, and not said to be deployed.
        close_by_hand(&pilot, "Ann");
        let finished = pilot.json(&["up"]).expect(9).finished();
        assert_eq!(
            (&finished["outcome"], &finished["smoke"]["passed"]),
            (&json!("nothing-to-do"), &json!(true))
        );
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        // Closed by hand while a run verifies.
        pilot.edit_env("ENABLE_CACHE", "true");
        let (code, events) =
            meanwhile(&pilot, &["rollback"], step("verify", "started"), || close_by_hand(&pilot, "Ann: bad"));
        assert_eq!(code, 9, "{events:?}");
        shut_out(&pilot, "closed by hand while a run verified");
        pilot.xtask(&["rollback", "--open"]).expect(0);
    });
}

#[test]
fn a_gate_that_was_closed_by_hand_stays_closed_while_a_commit_is_built() {
    on(&[Process], "commit-hold", |pilot| {
        let pilot = pilot.up();
        close_by_hand(&pilot, "Emergency, Ann");
        let note =
            |event: &Value| event["text"].as_str().is_some_and(|text| text.contains("while the commit"));
        // A commit that no release was made from.
        let commit =
            Command::new("git").args(["rev-parse", "HEAD~1"]).current_dir(&pilot.root).output().unwrap();
        let commit = String::from_utf8(commit.stdout).unwrap();
        kill_when(&pilot, &["rollback", "--to", commit.trim()], note);
        assert!(pilot.xtask(&["kill-switch", "status"]).all().contains("Emergency, Ann"));
        let finished = pilot.json(&["rollback"]).expect(9).finished();
        assert!(finished["hold"].as_str().unwrap().contains("Emergency, Ann"), "{finished}");
        shut_out(&pilot, "after a rollback to a commit was killed");
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        let git = Command::new("git").args(["worktree", "prune"]).current_dir(&pilot.root).status();
        assert!(git.unwrap().success());
    });
}

#[test]
fn what_is_said_of_a_gate_that_is_not_opened_was_seen() {
    on(&[Process], "seen", |pilot| {
        let pilot = pilot.up();
        freeze(&pilot, "jobs", "-STOP");
        let refused = pilot.xtask(&["kill-switch", "off"]).expect(1);
        assert!(
            refused.err.contains("was not opened") && refused.err.contains("the public is served"),
            "{}",
            refused.err
        );
        freeze(&pilot, "jobs", "-CONT");
        // Cut off at its opening, nobody knows how that ended; nothing is said to be restored.
        pilot.edit_env("ENABLE_CACHE", "true");
        kill_when(&pilot, &["rollback"], step("open-gate", "started"));
        let cut = pilot.runs().pop().unwrap();
        pilot.xtask(&["rollback"]).expect(0);
        let report: Value = serde_json::from_slice(&std::fs::read(cut.join("report.json")).unwrap()).unwrap();
        let seen_to_end = report["outcome"] == "restored" && report["exit_code"] == 0;
        let journal = std::fs::read_to_string(cut.join("journal.jsonl")).unwrap();
        let done = journal
            .lines()
            .any(|line| serde_json::from_str(line).is_ok_and(|event| step("open-gate", "done")(&event)));
        assert_eq!(seen_to_end, done, "{report}");
    });
}

#[test]
fn records_that_nobody_can_read_stop_no_rollback() {
    on(&[Process], "strange", |pilot| {
        let pilot = pilot.up();
        let run = pilot.state().join("rollbacks/0007-29991231T000000000");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("request.json"), r#"{"version":99,"to":null,"scenarios":[]}"#).unwrap();
        pilot.edit_env("ENABLE_CACHE", "true");
        pilot.xtask(&["rollback"]).expect(0);
        assert!(run.join("request.json").exists() && !run.join("report.json").exists());
        // A hold from a time that no calendar has.
        pilot.xtask(&["kill-switch", "on"]).expect(0);
        let hold = std::fs::read_dir(pilot.state().join("holds")).unwrap().flatten().next().unwrap().path();
        let mut text: Value = serde_json::from_slice(&std::fs::read(&hold).unwrap()).unwrap();
        text["at_ms"] = json!(u64::MAX);
        std::fs::write(&hold, text.to_string()).unwrap();
        assert!(pilot.xtask(&["status"]).expect(1).out.contains("an unknown time"));
        pilot.xtask(&["rollback"]).expect(9);
        pilot.xtask(&["rollback", "--plan", "--budget", "500000000000years"]).expect(0);
        pilot.xtask(&["kill-switch", "off"]).expect(0);
    });
}

#[test]
fn holds_that_nobody_can_list_are_not_taken_for_none() {
    on(&[Process], "no-list", |pilot| {
        let pilot = pilot.up();
        pilot.xtask(&["kill-switch", "on"]).expect(0);
        let (holds, aside) = (pilot.state().join("holds"), pilot.folder.0.join("holds"));
        std::fs::rename(&holds, &aside).unwrap();
        std::fs::write(&holds, "").unwrap();
        // The gate is closed and nothing differs: nothing to do, but not served either.
        for words in [["rollback"], ["up"]] {
            let finished = pilot.json(&words).expect(9).finished();
            assert!(
                finished["hold"].as_str().unwrap().contains("it is unknown whether somebody holds it"),
                "{finished}"
            );
            shut_out(&pilot, "under holds that nobody can list");
        }
        std::fs::remove_file(&holds).unwrap();
        std::fs::rename(&aside, &holds).unwrap();
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        served(&pilot);
    });
}

#[test]
fn a_run_that_is_taken_up_goes_elsewhere_when_its_target_was_altered() {
    on(&[Process], "stuck", |pilot| {
        let pilot = pilot.up();
        for seed in ["7", "8"] {
            pilot.edit_env("DEFAULT_SEED", seed);
            pilot.xtask(&["up"]).expect(0);
        }
        kill_when(&pilot, &["rollback", "--to", "r1"], step("record-release", "done"));
        std::fs::write(pilot.state().join("releases/r1/pilot.toml"), "altered").unwrap();
        // The very same is refused, because it is altered; without a target it goes to another.
        pilot.xtask(&["rollback", "--to", "r1"]).expect(6);
        let finished = pilot.json(&["rollback"]).expect(0).finished();
        assert!(["r2", "r3"].contains(&finished["release"].as_str().unwrap()), "{finished}");
    });
}

#[test]
fn a_reset_that_is_only_asked_for_looks_at_the_stack_too() {
    on(&[Process], "asked", |pilot| {
        let pilot = pilot.up();
        std::fs::rename(pilot.state().join("releases"), pilot.folder.0.join("off")).unwrap();
        freeze(&pilot, "jobs", "-STOP");
        let finished = pilot.json(&["reset"]).expect(6).finished();
        assert!(finished["evidence"].is_string(), "{finished}");
        shut_out(&pilot, "after a reset with nowhere to go");
        freeze(&pilot, "jobs", "-CONT");
        std::fs::rename(pilot.folder.0.join("off"), pilot.state().join("releases")).unwrap();
        pilot.xtask(&["rollback"]).expect(0);
    });
}

#[test]
fn data_alone_comes_back_under_what_runs() {
    on(&[Process], "data-alone", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        pilot.xtask(&["backup", "create"]).expect(0);
        pilot.edit_env("DEFAULT_SEED", "7");
        pilot.xtask(&["up"]).expect(0);
        let finished =
            pilot.json(&["backup", "restore", "latest", "--only", "data", "--yes"]).expect(0).finished();
        assert_eq!(finished["release"], "r2", "{finished}");
        assert_eq!(pilot.running_values("gateway")["DEFAULT_SEED"], 7);
        assert_eq!(pilot.setting("DEFAULT_SEED"), "7");
        assert!(pilot.has_scenario());
    });
}

#[test]
fn an_env_file_that_is_edited_during_a_rollback_is_kept() {
    on(&[Process], "edited", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("ENABLE_CACHE", "true");
        let add = || {
            let text = pilot.env_text();
            std::fs::write(pilot.env_path(), text + "NOTES_OF_ANN=1\n").unwrap();
        };
        let (code, events) = meanwhile(&pilot, &["rollback"], step("preserve", "done"), add);
        assert_eq!(code, 0, "{events:?}");
        let run = pilot.runs().pop().unwrap();
        let backup = std::fs::read_to_string(run.join("backup/.env.poc")).unwrap();
        let kept = std::fs::read_to_string(run.join("env-file-edited-meanwhile")).unwrap_or_default();
        assert!((backup + &kept + &pilot.env_text()).contains("NOTES_OF_ANN"), "{events:?}");
    });
}
