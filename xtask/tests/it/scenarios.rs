//! The runbook's scenarios from end to end, each beside another project that must not feel it.

use crate::canary::Canary;
use crate::pilot::Engine::{Compose1, Compose2, Process};
use crate::pilot::{Folder, Pilot, docker, on, ran, workspace};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A rollback that restores, with a canary beside it where there is Docker. Its last event.
#[track_caller]
fn restores(pilot: &Pilot, args: &[&str]) -> Value {
    let canary = (pilot.engine != Process).then(|| Canary::beside(pilot));
    let finished = pilot.json(args).expect(0).finished();
    canary.into_iter().for_each(Canary::assert_untouched);
    assert_eq!(finished["outcome"], "restored", "{finished}");
    assert_eq!(finished["smoke"]["passed"], true, "{finished}");
    assert_eq!(finished["escalation"]["level"], 1, "{finished}");
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    finished
}

fn backup_of(finished: &Value) -> PathBuf {
    Path::new(finished["report"].as_str().unwrap()).with_file_name("backup")
}

/// Names in the archive that a backup has of a service's data.
fn archived(backup: &Path, service: &str) -> String {
    let archive = backup.join(format!("{service}.data.tar"));
    ran(Command::new("tar").arg("--list").arg("--file").arg(archive).output().unwrap()).out
}

#[test]
fn a_config() {
    on(&[Compose2, Compose1, Process], "sc-a", |pilot| {
        let pilot = pilot.up();
        let good = pilot.env_text();
        pilot.edit_env("USE_SIMULATION", "false");
        if pilot.engine == Process {
            pilot.xtask(&["up"]).expect(1);
        } else {
            pilot.compose_by_hand(&["up", "--detach"]).expect(0);
        }
        assert_eq!(restores(&pilot, &["rollback"])["scenarios"], json!(["config"]));
        assert_eq!(pilot.env_text(), good);
        assert_eq!(pilot.running_values("engine")["USE_SIMULATION"], true);
        // And with the file emptied under running services.
        std::fs::write(pilot.env_path(), "").unwrap();
        let finished = restores(&pilot, &["rollback"]);
        assert_eq!(finished["scenarios"], json!(["config"]));
        assert_eq!(std::fs::read_to_string(backup_of(&finished).join(".env.poc")).unwrap(), "");
        assert_eq!(pilot.env_text(), good);
    });
}

#[test]
fn b_version() {
    on(&[Compose2, Compose1], "sc-b", |pilot| {
        let pilot = pilot.up();
        pilot.build_bad_version("SCENARIO_FAULT=error-5xx");
        pilot.compose_by_hand(&["up", "--detach"]).expect(0);
        assert_eq!(restores(&pilot, &["rollback"])["scenarios"], json!(["version"]));
        assert_eq!(pilot.running_images(), pilot.release_images("r1"));
    });
}

#[test]
fn c_reset_asks_backs_up_and_starts_clean() {
    on(&[Compose2, Process], "sc-c", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        let env = pilot.env_text();
        // Nobody to ask: nothing happens, and what would go is named.
        let refused = pilot.xtask(&["reset"]).expect(2);
        let data = if pilot.engine == Process { "data " } else { "volume " };
        assert!(refused.err.contains("--yes") && refused.err.contains(data), "{}", refused.err);
        assert!(pilot.has_scenario());
        let before = (pilot.engine != Process).then(|| pilot.containers("{{.Id}}"));

        let finished = restores(&pilot, &["reset", "--yes"]);
        assert_eq!(finished["scenarios"], json!(["reset"]));
        assert!(!pilot.has_scenario());
        assert_eq!(pilot.public("GET", "/report?scenarioId=demo-scenario", None).status, 200);
        let backup = backup_of(&finished);
        assert_eq!(std::fs::read_to_string(backup.join(".env.poc")).unwrap(), env);
        for file in ["docker-compose.poc.yml", "demo-scenario.json", "gateway.log", "engine.log", "jobs.log"]
        {
            assert!(backup.join(file).metadata().unwrap().len() > 0, "{file}");
        }
        assert!(archived(&backup, "engine").contains("engine.db"));
        // Every container is a new one.
        if let Some(before) = before {
            let after = pilot.containers("{{.Id}}");
            assert!(after.iter().all(|now| !before.contains(now)), "{before:?} {after:?}");
        }

        // What went is not lost.
        let id = backup.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        restores(&pilot, &["backup", "restore", &id, "--yes"]);
        assert!(pilot.has_scenario());
        let finished = restores(&pilot, &["reset", "--yes", "--keep-data"]);
        assert_eq!(finished["scenarios"], json!(["reset"]));
        assert!(pilot.has_scenario());
    });
}

#[test]
fn c_a_store_overwritten_with_noise_is_found_and_kept() {
    on(&[Compose2, Process], "sc-noise", |pilot| {
        let pilot = pilot.up();
        let noise = vec![0x5a; 9000];
        pilot.overwrite("engine", "engine.db", &noise);
        let shown = pilot.json(&["assess"]).expect(1);
        assert!(shown.out.contains("store corrupt"), "{}", shown.out);
        let finished = restores(&pilot, &["rollback"]);
        assert_eq!(finished["scenarios"], json!(["reset"]));
        assert_ne!(pilot.stored("engine", "engine.db")[..16], noise[..16]);
        let backup = backup_of(&finished);
        let to = pilot.folder.0.join("unpacked");
        std::fs::create_dir_all(&to).unwrap();
        let archive = backup.join("engine.data.tar");
        let tar = Command::new("tar").arg("xf").arg(archive).arg("-C").arg(&to).status();
        assert!(tar.unwrap().success());
        assert_eq!(std::fs::read(to.join("engine.db")).unwrap(), noise);
        // Only what was corrupt went.
        assert!(!backup.join("jobs.data.tar").exists());
    });
}

#[test]
fn c_a_deleted_volume_is_found_and_made_again() {
    on(&[Compose2, Process], "sc-gone", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        pilot.xtask(&["backup", "create"]).expect(0);
        if pilot.engine == Process {
            pilot.xtask(&["down"]).expect(0);
            std::fs::remove_dir_all(pilot.state().join("process/volumes/engine")).unwrap();
        } else {
            let id = pilot.containers("{{.Id}}").into_iter().find(|(name, _)| name == "engine").unwrap().1;
            docker(&["rm", "--force", &id]);
            docker(&["volume", "rm", &format!("{}_engine_data", pilot.project)]);
        }
        assert_eq!(restores(&pilot, &["rollback"])["scenarios"], json!(["reset"]));
        assert!(!pilot.has_scenario());
        restores(&pilot, &["backup", "restore", "latest", "--only", "data", "--yes"]);
        assert!(pilot.has_scenario());
    });
}

#[test]
fn d_host_frees_its_own_redeploys_and_watches() {
    on(&[Compose2, Process], "sc-d", |pilot| {
        let pilot = pilot.up();
        // Old images of this pilot that no release names.
        if pilot.engine != Process {
            pilot.build_bad_version("SCENARIO_OLD=1");
        }
        pilot.xtask(&["down"]).expect(0);
        let half = pilot.state().join("images/cut-off.tar.1.new");
        std::fs::write(&half, vec![0; 100_000]).unwrap();
        let finished = restores(&pilot, &["rollback", "--scenario", "host"]);
        assert_eq!(finished["scenarios"], json!(["host"]));
        assert!(!half.exists());
        let journal = Path::new(finished["report"].as_str().unwrap()).with_file_name("journal.jsonl");
        let journal = std::fs::read_to_string(journal).unwrap();
        assert!(journal.contains("steady: ") && journal.contains("freed "), "{journal}");
        if pilot.engine != Process {
            let images = docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
            assert!(!images.contains(&format!("{}-gateway:bad-", pilot.project)), "{images}");
            assert_eq!(pilot.running_images(), pilot.release_images("r1"));
        }
        // By itself, with an image and a backup too many.
        let canary = (pilot.engine != Process).then(|| {
            pilot.build_bad_version("SCENARIO_OLD=2");
            pilot.xtask(&["rollback"]).expect(0);
            Canary::beside(&pilot)
        });
        for _ in 0..2 {
            std::fs::create_dir_all(pilot.state().join("backups/.cut-off")).unwrap();
            let shown = pilot.json(&["host", "--free"]).expect(0);
            assert!(shown.out.contains("freed_bytes") && shown.out.contains(".cut-off"), "{}", shown.out);
        }
        canary.into_iter().for_each(Canary::assert_untouched);
    });
}

/// A clone of this repository with two commits of its own.
fn clone(folder: &Folder) -> PathBuf {
    let root = folder.0.join("clone");
    let git = |dir: &Path, args: &[&str]| {
        let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"];
        let output = Command::new("git").args(identity).args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let source = workspace();
    git(&source, &["clone", "--quiet", "--no-hardlinks", ".", &root.display().to_string()]);
    // What is being worked on counts, committed or not.
    let changed = git(&source, &["ls-files", "--modified", "--others", "--exclude-standard", "--deleted"]);
    for name in changed.lines() {
        let (from, to) = (source.join(name), root.join(name));
        if from.is_file() {
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        } else {
            std::fs::remove_file(to).ok();
        }
    }
    let seed = root.join("pilot-deploy/seed/demo-scenario.json");
    for title in ["First title", "Second title"] {
        let mut scenario: Value = serde_json::from_str(&std::fs::read_to_string(&seed).unwrap()).unwrap();
        scenario["title"] = json!(title);
        std::fs::write(&seed, scenario.to_string()).unwrap();
        git(&root, &["add", "--all"]);
        git(&root, &["commit", "--quiet", "--message", title]);
    }
    git(&root, &["tag", "second"]);
    root
}

fn title(pilot: &Pilot) -> String {
    let report = pilot.public("GET", "/report?scenarioId=demo-scenario", None).json();
    report["decision"]["title"].as_str().unwrap().to_owned()
}

#[test]
fn commit_is_built_verified_and_leaves_the_checkout_alone() {
    // One for both engines: its services are built once.
    let folder = Folder::new("sc-clone");
    let root = clone(&folder);
    on(&[Process, Compose2], "sc-commit", |mut pilot| {
        pilot.root = root.clone();
        pilot.set("CARGO_TARGET_DIR", &workspace().join("target").display().to_string());
        let git = |args: &[&str]| {
            let output = Command::new("git").args(args).current_dir(&root).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // As it was before the other engine's turn.
        git(&["stash", "clear"]);
        git(&["checkout", "--quiet", "--force", "-B", "work", "second"]);
        git(&["branch", "--quiet", "-D", "saved"]);
        let first = git(&["rev-parse", "HEAD~1"]).trim().to_owned();
        let known = root.join("pilot-deploy/known-good.toml");
        std::fs::write(
            &known,
            format!("version = 1\n[[restore_point]]\nlabel = \"first\"\ncommit = \"{first}\"\n"),
        )
        .unwrap();
        let pilot = pilot.up();
        assert_eq!(title(&pilot), "Second title");
        // Work that is not committed, some of it staged, and a stash.
        std::fs::write(root.join("README.md"), "stashed\n").unwrap();
        git(&["-c", "user.name=T", "-c", "user.email=t@example.invalid", "stash", "push", "--", "README.md"]);
        std::fs::write(root.join("README.md"), "staged\n").unwrap();
        git(&["add", "README.md"]);
        std::fs::write(root.join("README.md"), "not staged\n").unwrap();
        std::fs::write(root.join("new-file"), "untracked\n").unwrap();
        let state = || {
            [
                "status --porcelain",
                "stash list",
                "rev-parse HEAD",
                "diff",
                "diff --cached",
                "branch",
                "worktree list",
            ]
            .map(|args| git(&args.split(' ').collect::<Vec<_>>()))
        };
        let before = state();

        // A bad setting in the tree's file must not get into what is built.
        pilot.edit_env("USE_SIMULATION", "false");
        let finished = restores(&pilot, &["rollback", "--to", &first]);
        assert!(finished["scenarios"].as_array().unwrap().contains(&json!("commit")), "{finished}");
        assert_eq!(finished["release"], "r2");
        assert_eq!(title(&pilot), "First title");
        assert_eq!(pilot.setting("USE_SIMULATION"), "true");
        assert_eq!(state(), before);

        // By its label, and built already: the recorded release is used.
        restores(&pilot, &["rollback", "--to", "r1"]);
        let again = restores(&pilot, &["rollback", "--to", "first"]);
        assert_eq!(again["release"], "r2");

        // Another commit with the same tree makes the same release, and is known by it from then on.
        if pilot.engine == Process {
            let identity = ["-c", "user.name=T", "-c", "user.email=t@example.invalid"];
            let tree = format!("{first}^{{tree}}");
            let same = git(&[identity.as_slice(), &["commit-tree", &tree, "-m", "same"]].concat());
            restores(&pilot, &["rollback", "--to", "r1"]);
            assert_eq!(restores(&pilot, &["rollback", "--to", same.trim()])["release"], "r2");
            restores(&pilot, &["rollback", "--to", "r1"]);
            let again = pilot.xtask(&["rollback", "--to", same.trim()]).expect(0);
            assert!(!again.out.contains("while the commit is built"), "{}", again.out);
        }

        let refused = pilot.xtask(&["rollback", "--to", "first", "--checkout"]).expect(2);
        assert!(
            refused.err.contains("uncommitted work") && refused.err.contains("git switch --create"),
            "{}",
            refused.err
        );
        assert_eq!(state(), before);
        let identity = ["-c", "user.name=T", "-c", "user.email=t@example.invalid"];
        git(&["switch", "--create", "saved"]);
        git(&["add", "--all"]);
        git(&[identity.as_slice(), &["commit", "--quiet", "--message", "saved"]].concat());
        // The label goes with the checkout, the commit stays.
        pilot.xtask(&["rollback", "--to", &first, "--checkout"]).expect(0);
        assert_eq!(git(&["rev-parse", "HEAD"]).trim(), first);
        assert_eq!(git(&["log", "--format=%s", "-1", "saved"]).trim(), "saved");
    });
}
