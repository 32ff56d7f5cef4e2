//! Promises that were broken once: nowhere to go, a manifest that changed, what runs against what was meant, a gate
//! that fails once it is open, runs that were cut off.

use crate::holds::shut_out;
use crate::host::SmallDisk;
use crate::http::try_http;
use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Folder, Pilot, copy_of_the_tree, docker, docker_client, lose_records, on, skip};
use crate::resume::{kill_when, step};
use serde_json::json;

#[track_caller]
fn served(pilot: &Pilot) {
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    assert_eq!(pilot.public("GET", "/stream?route=critique&seed=42&budget=1", None).status, 200);
}

/// Every file of a release is there but one, which was altered.
fn alter(pilot: &Pilot, release: &str) {
    std::fs::write(pilot.state().join("releases").join(release).join(".env.poc"), "ENABLE_CACHE=true\n")
        .unwrap();
}

/// Noise over the engine's database: it runs and is not well.
fn break_the_store(pilot: &Pilot) {
    pilot.overwrite("engine", "engine.db", &[0x5a; 9000]);
}

#[test]
fn with_nowhere_to_go_a_broken_stack_is_shut_out_and_kept_as_evidence() {
    on(&[Process, Compose2], "nowhere", |pilot| {
        let pilot = pilot.up();
        alter(&pilot, "r1");
        // Well: refused, untouched, served.
        for words in [&["rollback"][..], &["reset", "--yes"], &["rollback", "--to", "r1"]] {
            let refused = pilot.xtask(words).expect(6);
            assert!(
                refused.err.contains("altered") && refused.err.contains("still served"),
                "{}",
                refused.err
            );
            served(&pilot);
        }
        break_the_store(&pilot);
        let finished = pilot.json(&["rollback"]).expect(6).finished();
        shut_out(&pilot, "with its only release altered");
        let evidence = finished["evidence"].as_str().unwrap();
        assert!(std::path::Path::new(evidence).join("engine.log").exists(), "{finished}");
        assert!(finished["public"]["shut-out"].is_string(), "{finished}");
        // No release at all: neither here nor at the engine.
        if pilot.engine != Process {
            lose_records(&pilot.project);
        }
        std::fs::remove_dir_all(pilot.state().join("releases")).unwrap();
        std::fs::remove_file(pilot.state().join("current")).unwrap();
        let finished = pilot.json(&["rollback"]).expect(6).finished();
        assert!(finished["error"].as_str().unwrap().contains("no known-good release"), "{finished}");
        assert!(finished["public"]["shut-out"].is_string() && finished["evidence"].is_string(), "{finished}");
    });
}

#[test]
fn with_no_release_and_no_configuration_a_broken_stack_is_shut_out() {
    on(&[Process], "no-config", |mut pilot| {
        let tree = copy_of_the_tree("no-config-tree");
        pilot.xtask(&["up"]).expect(0);
        pilot.root = tree.0.clone();
        std::fs::remove_dir_all(pilot.state().join("releases")).unwrap();
        std::fs::remove_file(pilot.state().join("current")).unwrap();
        std::fs::write(tree.0.join("pilot-deploy/pilot.toml"), "version = ").unwrap();
        // It passes its checks: left as it is.
        let refused = pilot.xtask(&["rollback"]).expect(6);
        assert!(
            refused.err.contains("still served") && refused.err.contains("pilot.toml:1:"),
            "{}",
            refused.err
        );
        served(&pilot);
        break_the_store(&pilot);
        pilot.xtask(&["rollback"]).expect(6);
        shut_out(&pilot, "with no configuration");
        let evidence = pilot.runs().pop().unwrap().join("evidence/engine.log");
        assert!(evidence.exists());
    });
}

#[test]
fn a_manifest_that_changed_in_the_tree_is_no_matter_for_a_rollback() {
    on(&[Process], "manifest", |mut pilot| {
        let tree = copy_of_the_tree("manifest-tree");
        let path = tree.0.join("pilot-deploy/pilot.toml");
        let good = std::fs::read_to_string(&path).unwrap();
        pilot.xtask(&["up"]).expect(0);
        pilot.root = tree.0.clone();
        let service =
            "[[services]]\nname = \"search\"\nport = \"SEARCH_PORT\"\nvolume = \"search_data\"\n\n[secrets]";
        for (what, old, new) in [
            ("a service added", "[secrets]", service),
            ("a port renamed", "port = \"ENGINE_PORT\"", "port = \"MOTOR_PORT\""),
            ("a flag added", "on = [", "on = [\"USE_THE_FORCE\", "),
            ("another gateway", "name = \"gateway\"", "name = \"front\""),
        ] {
            std::fs::write(&path, good.replacen(old, new, 1)).unwrap();
            pilot.edit_env("ENABLE_CACHE", "true");
            let finished = pilot.json(&["rollback"]).expect(0).finished();
            assert_eq!(finished["outcome"], "restored", "{what}: {finished}");
            served(&pilot);
            for looking in ["status", "smoke", "flags", "assess"] {
                pilot.xtask(&[looking]).expect(0);
            }
        }
    });
}

/// One of those in `all_on_one.rs`.
pub fn service_too_many(pilot: &mut Pilot) {
    // The next release has one service more.
    let tree = copy_of_the_tree("extra-tree");
    let pack = tree.0.join("pilot-deploy");
    let manifest = std::fs::read_to_string(pack.join("pilot.toml")).unwrap();
    let service =
        "[[services]]\nname = \"extra\"\nport = \"EXTRA_PORT\"\nvolume = \"extra_data\"\n\n[secrets]";
    std::fs::write(pack.join("pilot.toml"), manifest.replacen("[secrets]", service, 1)).unwrap();
    let compose = std::fs::read_to_string(pack.join("docker-compose.poc.yml")).unwrap();
    let more = "  extra:\n    <<: *service\n    image: ${PILOT_IMAGES:-scenario}-extra:latest\n    environment:\n      SCENARIO_ROLE: jobs\n      SCENARIO_PROJECT: ${PILOT_PROJECT:-pilot-deploy}\n      SCENARIO_LISTEN: 0.0.0.0:3004\n    ports: [\"127.0.0.1:${EXTRA_PORT}:3004\"]\n    volumes: [\"extra_data:/data\"]\n\n  # `cargo xtask observe` starts";
    let compose = compose.replacen("  # `cargo xtask observe` starts", more, 1);
    let compose = compose.replacen("\nvolumes:\n", "\nvolumes:\n  extra_data:\n", 1);
    std::fs::write(pack.join("docker-compose.poc.yml"), compose).unwrap();
    for service in ["gateway", "engine", "jobs", "extra"] {
        let from = if service == "extra" { "jobs" } else { service };
        let name = |service: &str| format!("{}-{service}", pilot.project);
        docker(&["tag", &format!("{}:latest", name(from)), &format!("{}:more", name(service))]);
        docker(&["tag", &format!("{}:latest", name(from)), &format!("{}:latest", name(service))]);
    }
    pilot.root = tree.0.clone();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let env = pilot.env_text();
    std::fs::write(pilot.env_path(), format!("{env}EXTRA_PORT={port}\n")).unwrap();
    pilot.xtask(&["up", "--tag", "more"]).expect(0);
    assert!(pilot.running_images().iter().any(|(service, _)| service == "extra"));
    let finished = pilot.json(&["rollback", "--to", "r1"]).expect(0).finished();
    assert_eq!(finished["outcome"], "restored", "{finished}");
    assert!(pilot.running_images().iter().all(|(service, _)| service != "extra"));
    assert!(docker(&["volume", "ls"]).contains(&format!("{}_extra_data", pilot.project)));
    docker(&["rmi", &format!("{}-extra:more", pilot.project), &format!("{}-extra:latest", pilot.project)]);
    let tags =
        docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", &format!("{}-extra", pilot.project)]);
    tags.lines().filter(|tag| !tag.ends_with("<none>")).for_each(|tag| drop(docker(&["rmi", tag])));
}

/// Images of another project, which no pilot of a test runs; gone when dropped.
struct Foreign(String);

impl Foreign {
    fn built_on(pilot: &Pilot) -> Self {
        let foreign = Self(format!("{}-foreign", pilot.project));
        let path = pilot.folder.0.join("Dockerfile.foreign");
        for service in ["gateway", "engine", "jobs"] {
            let text = format!("FROM {}-{service}:latest\nENV SCENARIO_VERSION=v6.6.6\n", pilot.project);
            std::fs::write(&path, text).unwrap();
            let (file, context) = (path.display().to_string(), Folder::new("foreign-context"));
            let (tag, context) = (format!("{}-{service}:latest", foreign.0), context.0.display().to_string());
            docker(&["build", "--quiet", "--file", &file, "--tag", &tag, &context]);
        }
        foreign
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        for service in ["gateway", "engine", "jobs"] {
            // One that was not built is none to remove.
            let tag = format!("{}-{service}:latest", self.0);
            docker_client().args(["rmi", &tag]).output().unwrap();
        }
    }
}

/// One of those in `all_on_one.rs`.
pub fn what_runs_is_compared(pilot: &mut Pilot) {
    let foreign = Foreign::built_on(pilot);
    // Images of other names, by the variable that the compose file reads: they are what the release has.
    pilot.edit_env("PILOT_IMAGES", &foreign.0);
    let deployed = pilot.json(&["up"]).expect(0).finished();
    let release = deployed["release"].as_str().unwrap().to_owned();
    assert_eq!(pilot.running_images(), pilot.release_images(&release));
    assert_ne!(pilot.running_images(), pilot.release_images("r1"));
    // Started by hand instead of those of the release, they are not.
    pilot.xtask(&["rollback", "--to", "r1"]).expect(0);
    assert_eq!(pilot.running_images(), pilot.release_images("r1"));
    pilot.build_bad_version("SCENARIO_FAULT=");
    pilot.compose_by_hand(&["up", "--detach"]).expect(0);
    assert_ne!(pilot.running_images(), pilot.release_images("r1"));
    pilot.xtask(&["kill-switch", "on", "--reason", "look"]).expect(0);
    let failed = pilot.xtask(&["kill-switch", "off"]).expect(1);
    assert!(failed.all().contains("runs v"), "{}", failed.all());
    shut_out(pilot, "while other images run than those of the release");
    pilot.xtask(&["rollback", "--to", "r1", "--open"]).expect(0);
    assert_eq!(pilot.running_images(), pilot.release_images("r1"));
}

/// A bad version of all services as the release of a tag.
pub fn tagged_bad_version(pilot: &Pilot, fault: &str, tag: &str) {
    pilot.build_bad_version(&format!("SCENARIO_FAULT={fault}"));
    for service in ["gateway", "engine", "jobs"] {
        let name = format!("{}-{service}", pilot.project);
        docker(&["tag", &format!("{name}:latest"), &format!("{name}:{tag}")]);
    }
}

/// One of those in `all_on_one.rs`.
pub fn gates_that_lie(pilot: &mut Pilot) {
    tagged_bad_version(pilot, "lying-gate", "liar");
    let failed = pilot.json(&["up", "--tag", "liar", "--stay"]).expect(1);
    assert!(failed.out.contains("does not prove that it refuses the public"), "{}", failed.out);
    let finished = failed.finished();
    assert_eq!(finished["public"], json!({"shut-out": "the gateway does not run"}), "{finished}");
    assert!(try_http("GET", pilot.port("gateway"), "/healthz", &[], None).is_err());
    pilot.xtask(&["rollback"]).expect(0);
    served(pilot);

    tagged_bad_version(pilot, "fails-when-open", "sly");
    // It passes every check behind the gate, so only the public's own request shows it.
    let failed = pilot.json(&["up", "--tag", "sly", "--stay"]).expect(1);
    assert!(failed.out.contains("11 of 11") || failed.out.contains("\"passed\":true"), "{}", failed.out);
    let finished = failed.finished();
    assert!(finished["error"].as_str().unwrap().contains("let in and shut out again"), "{finished}");
    assert!(finished["public"]["shut-out"].is_string(), "{finished}");
    shut_out(pilot, "after an opening that failed");
    // The sentence is an observation.
    let said = pilot.xtask(&["kill-switch", "status"]).expect(0).out;
    assert!(said.contains("the gate is closed"), "{said}");
    pilot.xtask(&["rollback"]).expect(0);
    served(pilot);
}

#[test]
fn a_run_that_was_cut_off_after_opening_is_over() {
    on(&[Process], "over", |pilot| {
        let pilot = pilot.up();
        for progress in ["started", "done"] {
            kill_when(&pilot, &["reset", "--yes"], step("open-gate", progress));
            pilot.xtask(&["rollback"]).expect(0);
            // Days later: new data is there, and a reset is a new reset, with a copy of it.
            pilot.store_scenario();
            pilot.edit_env("DEFAULT_SEED", "9");
            let edited = pilot.env_text();
            let ran = pilot.json(&["reset", "--yes"]).expect(0);
            assert_eq!(ran.events()[0]["resumed"], false);
            assert!(!pilot.has_scenario());
            let run = pilot.runs().pop().unwrap();
            assert_eq!(std::fs::read_to_string(run.join("backup/.env.poc")).unwrap(), edited);
            let id = run.file_name().unwrap().to_string_lossy().into_owned();
            pilot.xtask(&["backup", "restore", &id, "--only", "data", "--yes"]).expect(0);
            assert!(pilot.has_scenario());
            pilot.xtask(&["rollback", "--to", "r1"]).expect(0);
        }
    });
}

#[test]
fn a_reset_that_is_taken_up_copies_anew_what_is_still_there() {
    on(&[Process], "anew", |pilot| {
        let pilot = pilot.up();
        let words = ["reset", "--yes", "--keep-data"];
        // Cut off after its backup, where the kill came before anything was removed; then somebody writes there.
        let since = pilot.state().join("process/volumes/jobs/since");
        let cut_off = || {
            kill_when(&pilot, &words, step("preserve", "done"));
            let there = since.parent().unwrap().is_dir();
            if !there {
                pilot.xtask(&words).expect(0);
            }
            there
        };
        assert!((0..20).any(|_| cut_off()), "it was never killed before the data was removed");
        std::fs::write(&since, "written since").unwrap();
        let ran = pilot.json(&words).expect(0);
        assert_eq!(ran.events()[0]["resumed"], true);
        assert_eq!(std::fs::read_to_string(&since).unwrap(), "written since");
    });
}

/// One of those in `all_on_one.rs`.
pub fn read_only_state(pilot: &mut Pilot) {
    pilot.build_bad_version("SCENARIO_FAULT=error-5xx");
    pilot.compose_by_hand(&["up", "--detach"]).expect(0);
    let disk = match SmallDisk::read_only(&pilot.state()) {
        Ok(disk) => disk,
        Err(why) => return skip("read-only", &why),
    };
    let ran = pilot.json(&["rollback"]).expect(0);
    assert_eq!(ran.finished()["outcome"], "restored");
    assert!(
        ran.out.contains("not recorded") && ran.out.contains("no room in the state folder"),
        "{}",
        ran.out
    );
    assert_eq!(pilot.running_images(), pilot.release_images("r1"));
    // No hold can be written there: the gate is closed, and that is said.
    let refused = pilot.xtask(&["kill-switch", "on"]).expect(4);
    assert!(refused.err.contains("the hold could not be written"), "{}", refused.err);
    shut_out(pilot, "with a state folder that can only be read");
    drop(disk);
    pilot.xtask(&["rollback", "--open"]).expect(0);
    served(pilot);
}

#[test]
fn a_clock_that_jumped_and_a_command_in_between_lose_nothing() {
    on(&[Process], "jumped", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        let words = ["reset", "--yes", "--keep-data"];
        kill_when(&pilot, &words, step("tear-down", "done"));
        // The clock was an hour ahead then.
        let run = pilot.runs().pop().unwrap();
        let id = run.file_name().unwrap().to_string_lossy().into_owned();
        let ahead = format!("{}-29991231T000000000", id.split('-').next().unwrap());
        std::fs::rename(&run, run.with_file_name(&ahead)).unwrap();
        // Another command in between: it says where the data is, and how it comes back.
        let said = pilot.xtask(&["rollback"]).expect(0).out;
        let restore = format!("backup restore {ahead} --only data --yes");
        assert!(said.contains(&restore) && said.contains("was cut off at"), "{said}");
        // The same reset again is a new one, and says so too.
        let said = pilot.xtask(&words).expect(0).out;
        assert!(said.contains(&restore), "{said}");
        assert!(!pilot.has_scenario());
        let args: Vec<&str> = restore.split(' ').collect();
        pilot.xtask(&args).expect(0);
        assert!(pilot.has_scenario());
        // Brought back: nobody needs to be told any more.
        let said = pilot.xtask(&["rollback", "--to", "r1"]).expect(0).out;
        assert!(!said.contains("was cut off at"), "{said}");
    });
}

#[test]
fn a_rollback_to_previous_that_is_taken_up_goes_where_it_meant_to() {
    on(&[Process], "meant", |pilot| {
        let pilot = pilot.up();
        for seed in ["7", "8"] {
            pilot.edit_env("DEFAULT_SEED", seed);
            pilot.xtask(&["up"]).expect(0);
        }
        // By now r2 is recorded as the one that runs, and what is previous to it is r3.
        kill_when(&pilot, &["rollback", "--to", "previous"], step("record-release", "done"));
        let ran = pilot.json(&["rollback", "--to", "previous"]).expect(0);
        assert_eq!(ran.events()[0]["resumed"], true);
        assert_eq!(ran.finished()["release"], "r2");
        // Times count from the first process.
        assert!(ran.finished()["restored_ms"].as_u64().unwrap() > 0);
    });
}

#[test]
fn a_deployment_that_fails_and_goes_back_has_one_verdict() {
    on(&[Process], "verdict", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("USE_SIMULATION", "false");
        let ran = pilot.xtask(&["up"]).expect(7);
        assert!(!ran.all().contains("RESTORED"), "{}", ran.all());
        assert!(
            ran.err.contains("release r2 failed") && ran.err.contains("release r1 serves again"),
            "{}",
            ran.err
        );
        assert!(ran.err.contains("Level 1"), "{}", ran.err);
        served(&pilot);
        // Under a hold it would serve.
        pilot.xtask(&["kill-switch", "on"]).expect(0);
        pilot.edit_env("USE_SIMULATION", "false");
        let finished = pilot.json(&["up"]).expect(7).finished();
        assert_eq!((&finished["outcome"], &finished["held"]), (&json!("rolled-back"), &json!(true)));
        shut_out(&pilot, "under a hold");
    });
}

#[test]
fn the_fallback_folder_is_never_somebody_elses() {
    on(&[Process], "fallback", |pilot| {
        let pilot = pilot.up();
        // No run can begin in the state folder.
        let _disk = match SmallDisk::mount(&pilot.state().join("rollbacks"), "1M,ro") {
            Ok(disk) => disk,
            Err(why) => return skip("fallback", &why),
        };
        pilot.edit_env("ENABLE_CACHE", "true");
        let finished = pilot.json(&["rollback"]).expect(0).finished();
        let report = std::path::PathBuf::from(finished["report"].as_str().unwrap());
        let folder = report.parent().unwrap().parent().unwrap();
        assert!(report.exists() && !report.starts_with(pilot.state()), "{finished}");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        // Open to others, it is not used again.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        pilot.edit_env("ENABLE_CACHE", "true");
        let finished = pilot.json(&["rollback"]).expect(0).finished();
        assert!(!finished["report"].as_str().unwrap().starts_with(folder.to_str().unwrap()), "{finished}");
    });
}

/// Runs a suggested command as a user would: pasted into a shell that knows nothing of the pilot.
fn paste(pilot: &Pilot, line: &str) -> crate::pilot::Ran {
    let line = line.replacen("cargo xtask", env!("CARGO_BIN_EXE_xtask"), 1);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &line]).current_dir(&pilot.root).env_remove("PILOT_STATE_DIR");
    shell.env("PILOT_WATCH", "0s");
    crate::pilot::ran(shell.output().unwrap())
}

#[test]
fn a_suggested_command_can_be_pasted_and_acts_on_the_same_pilot() {
    on(&[Process], "pasted", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("USE_SIMULATION", "false");
        let failed = pilot.json(&["up", "--stay"]).expect(1).finished();
        paste(&pilot, failed["next"].as_str().unwrap()).expect(0);
        served(&pilot);
        // What people read is the same, and what stands behind it is a comment to the shell.
        pilot.edit_env("ENABLE_CACHE", "true");
        let said = pilot.xtask(&["rollback", "--budget", "1ms"]).expect(3).err;
        let next = said.lines().find_map(|line| line.trim().strip_prefix("next: ")).unwrap().to_owned();
        assert!(next.starts_with("PILOT_STATE_DIR=") && next.contains(" --budget 15m   # "), "{next}");
        paste(&pilot, &next).expect(0);
        served(&pilot);
    });
}
