//! The runbook's scenarios from end to end, each beside another project that must not feel it.

use crate::canary::Canary;
use crate::pilot::Engine::{Compose1, Compose2, Process};
use crate::pilot::{Folder, Pilot, docker, on, ran, workspace};
use crate::rollback::{is_still_there, store_something};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pilot with another project beside it, where there is Docker.
struct Beside {
    // Dropped first: it is built on the pilot's images.
    canary: Option<Canary>,
    pilot: Pilot,
}

impl Beside {
    fn of(pilot: Pilot) -> Self {
        let canary = (pilot.engine != Process).then(|| Canary::beside(&pilot));
        Self { canary, pilot }
    }

    /// A command that restores, and that the other project does not feel. Its last event.
    #[track_caller]
    fn restores(&self, args: &[&str]) -> Value {
        let finished = self.pilot.json(args).expect(0).finished();
        self.canary.iter().for_each(Canary::assert_untouched);
        assert_eq!(finished["outcome"], "restored", "{finished}");
        assert_eq!(finished["smoke"]["passed"], true, "{finished}");
        assert_eq!(finished["escalation"]["level"], 1, "{finished}");
        assert_eq!(self.pilot.public("GET", "/healthz", None).json()["status"], "healthy");
        finished
    }
}

impl std::ops::Deref for Beside {
    type Target = Pilot;

    fn deref(&self) -> &Pilot {
        &self.pilot
    }
}

fn backup_of(finished: &Value) -> PathBuf {
    Path::new(finished["report"].as_str().unwrap()).with_file_name("backup")
}

/// Names in the archive that a backup has of a service's data.
fn archived(backup: &Path, service: &str) -> String {
    let tar = backup.join(format!("{service}.data.tar"));
    unpack(&backup.join(format!("{service}.data.tar.lz4")), &tar);
    let listed = ran(Command::new("tar").arg("--list").arg("--file").arg(&tar).output().unwrap()).out;
    std::fs::remove_file(tar).unwrap();
    listed
}

/// What is in a compressed archive, as a file.
fn unpack(archive: &Path, to: &Path) {
    let mut content = lz4::Reader::new(std::fs::File::open(archive).unwrap());
    std::io::copy(&mut content, &mut std::fs::File::create(to).unwrap()).unwrap();
}

/// There is nothing to be done, and plain Compose starts the images that were restored.
fn nothing_differs(pilot: &Pilot) {
    assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["outcome"], "nothing-to-do");
    if pilot.engine != Process {
        let before = pilot.running_images();
        pilot.compose_by_hand(&["up", "--detach"]).expect(0);
        assert_eq!(pilot.running_images(), before);
    }
}

#[test]
fn a_config() {
    on(&[Process], "sc-a", |pilot| drop(config(pilot)));
}

#[test]
fn a_config_and_b_version() {
    on(&[Compose2], "sc-ab", |pilot| version(&config(pilot)));
}

#[test]
fn a_config_and_b_version_on_compose_1() {
    on(&[Compose1], "sc-ab-1", |pilot| version(&config(pilot)));
}

#[test]
fn c_reset_and_d_host() {
    on(&[Compose2], "sc-cd", |pilot| {
        let pilot = Beside::of(pilot.up());
        reset(&pilot);
        bad_store(&pilot);
        host(&pilot);
    });
}

fn config(mut pilot: Pilot) -> Beside {
    if pilot.engine != Process {
        // What the shell exports does not win over the env file, nor over the release.
        pilot.set("MAX_TOKENS_PER_RUN", "3");
        pilot.set("GATEWAY_PORT", "1");
        pilot.set("COMPOSE_PROJECT_NAME", "somebody-else");
        pilot.set("PILOT_IMAGES", "somebody-else");
    }
    let pilot = Beside::of(pilot.up());
    store_something(&pilot);
    let good = pilot.env_text();
    assert_eq!(pilot.running_values("gateway")["MAX_TOKENS_PER_RUN"], 4000);
    pilot.edit_env("MAX_TOKENS_PER_RUN", "7");
    pilot.edit_env("USE_SIMULATION", "false");
    let broken = pilot.env_text();
    if pilot.engine == Process {
        pilot.xtask(&["up", "--stay"]).expect(1);
    } else {
        pilot.compose_by_hand(&["up", "--detach"]).expect(0);
    }
    assert_eq!(pilot.running_values("gateway")["MAX_TOKENS_PER_RUN"], 7);
    let finished = pilot.restores(&["rollback"]);
    assert_eq!(finished["scenarios"], json!(["config"]));
    for service in ["gateway", "engine", "jobs"] {
        let values = pilot.running_values(service);
        assert_eq!(values["MAX_TOKENS_PER_RUN"], 4000, "{service}");
        assert_eq!(values["USE_SIMULATION"], true, "{service}");
    }
    assert_eq!(pilot.env_text(), good);
    assert_eq!(std::fs::read_to_string(backup_of(&finished).join(".env.poc")).unwrap(), broken);
    is_still_there(&pilot);
    nothing_differs(&pilot);
    // And with the file emptied under running services.
    std::fs::write(pilot.env_path(), "").unwrap();
    let finished = pilot.restores(&["rollback"]);
    assert_eq!(finished["scenarios"], json!(["config"]));
    assert_eq!(std::fs::read_to_string(backup_of(&finished).join(".env.poc")).unwrap(), "");
    assert_eq!(pilot.env_text(), good);
    pilot
}

fn version(pilot: &Beside) {
    pilot.build_bad_version("SCENARIO_FAULT=error-5xx");
    pilot.compose_by_hand(&["up", "--detach"]).expect(0);
    assert_ne!(pilot.running_images(), pilot.release_images("r1"));
    let finished = pilot.restores(&["rollback"]);
    assert_eq!(finished["scenarios"], json!(["version"]));
    assert_eq!(finished["release"], "r1");
    assert!(finished["restored_ms"].as_u64() > finished["gate_closed_ms"].as_u64());
    assert_eq!(pilot.running_images(), pilot.release_images("r1"));
    is_still_there(pilot);
    // The tags moved with it: a later plain `docker compose up` starts what was restored.
    nothing_differs(pilot);
}

#[test]
fn c_reset_asks_backs_up_and_starts_clean() {
    on(&[Process], "sc-c", |pilot| reset(&Beside::of(pilot.up())));
}

fn reset(pilot: &Beside) {
    pilot.store_scenario();
    let env = pilot.env_text();
    // Nobody to ask: nothing happens, and what would go is named.
    let refused = pilot.xtask(&["reset"]).expect(2);
    let data = if pilot.engine == Process { "data " } else { "volume " };
    assert!(refused.err.contains("--yes") && refused.err.contains(data), "{}", refused.err);
    assert!(pilot.has_scenario());
    let before = (pilot.engine != Process).then(|| pilot.containers("{{.Id}}"));

    let finished = pilot.restores(&["reset", "--yes"]);
    assert_eq!(finished["scenarios"], json!(["reset"]));
    assert!(!pilot.has_scenario());
    assert_eq!(pilot.public("GET", "/report?scenarioId=demo-scenario", None).status, 200);
    let backup = backup_of(&finished);
    assert_eq!(std::fs::read_to_string(backup.join(".env.poc")).unwrap(), env);
    for file in ["docker-compose.poc.yml", "seed/demo-scenario.json", "gateway.log", "engine.log", "jobs.log"]
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
    pilot.restores(&["backup", "restore", &id, "--yes"]);
    assert!(pilot.has_scenario());
    let finished = pilot.restores(&["reset", "--yes", "--keep-data"]);
    assert_eq!(finished["scenarios"], json!(["reset"]));
    assert!(pilot.has_scenario());
}

#[test]
fn c_a_store_that_is_noise_or_gone_is_found_and_made_again() {
    on(&[Process], "sc-noise", |pilot| bad_store(&Beside::of(pilot.up())));
}

fn bad_store(pilot: &Beside) {
    let noise = vec![0x5a; 9000];
    pilot.overwrite("engine", "engine.db", &noise);
    let shown = pilot.json(&["assess"]).expect(1);
    assert!(shown.out.contains("store corrupt"), "{}", shown.out);
    let finished = pilot.restores(&["rollback"]);
    assert_eq!(finished["scenarios"], json!(["reset"]));
    assert_ne!(pilot.stored("engine", "engine.db")[..16], noise[..16]);
    let backup = backup_of(&finished);
    let to = pilot.folder.0.join("unpacked");
    std::fs::create_dir_all(&to).unwrap();
    let archive = pilot.folder.0.join("engine.tar");
    unpack(&backup.join("engine.data.tar.lz4"), &archive);
    let tar = Command::new("tar").arg("xf").arg(archive).arg("-C").arg(&to).status();
    assert!(tar.unwrap().success());
    assert_eq!(std::fs::read(to.join("engine.db")).unwrap(), noise);
    // Only what was corrupt went.
    assert!(!backup.join("jobs.data.tar.lz4").exists());
    // And a volume that somebody deleted.
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
    assert_eq!(pilot.restores(&["rollback"])["scenarios"], json!(["reset"]));
    assert!(!pilot.has_scenario());
    pilot.restores(&["backup", "restore", "latest", "--only", "data", "--yes"]);
    assert!(pilot.has_scenario());
}

#[test]
fn d_host_frees_its_own_redeploys_and_watches() {
    on(&[Process], "sc-d", |pilot| host(&Beside::of(pilot.up())));
}

fn host(pilot: &Beside) {
    // Old images of this pilot that no release names.
    if pilot.engine != Process {
        pilot.build_bad_version("SCENARIO_OLD=1");
    }
    pilot.xtask(&["down"]).expect(0);
    let half = pilot.state().join("blobs/cut-off.new");
    std::fs::write(&half, vec![0; 100_000]).unwrap();
    let finished = pilot.restores(&["rollback", "--scenario", "host"]);
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
    if pilot.engine != Process {
        pilot.build_bad_version("SCENARIO_OLD=2");
        pilot.xtask(&["rollback"]).expect(0);
    }
    for _ in 0..2 {
        std::fs::create_dir_all(pilot.state().join("backups/.cut-off")).unwrap();
        let shown = pilot.json(&["host", "--free"]).expect(0);
        assert!(shown.out.contains("freed_bytes") && shown.out.contains(".cut-off"), "{}", shown.out);
    }
    pilot.canary.iter().for_each(Canary::assert_untouched);
}

/// Git in a folder, as somebody. Returns what it says.
pub fn git(dir: &Path, args: &[&str]) -> String {
    let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"];
    let output = Command::new("git").args(identity).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A clone of this repository with two commits of its own, both with this change.
pub fn clone(folder: &Folder, change: impl Fn(&Path)) -> PathBuf {
    let root = folder.0.join("clone");
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
    // Both commits are built, and nobody waits for the services that come of it: a quarter of the time.
    let mut cargo = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    cargo += "\n[profile.image.package.scenario]\nopt-level = 0\n";
    std::fs::write(root.join("Cargo.toml"), cargo).unwrap();
    change(&root);
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
    let folder = Folder::new("sc-clone");
    let root = clone(&folder, |_| ());
    on(&[Process], "sc-commit", |mut pilot| {
        pilot.root = root.clone();
        pilot.set("CARGO_TARGET_DIR", &workspace().join("target").display().to_string());
        let git = |args: &[&str]| {
            let output = Command::new("git").args(args).current_dir(&root).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let first = git(&["rev-parse", "HEAD~1"]).trim().to_owned();
        let known = root.join("pilot-deploy/known-good.toml");
        std::fs::write(
            &known,
            format!("version = 1\n[[restore_point]]\nlabel = \"first\"\ncommit = \"{first}\"\n"),
        )
        .unwrap();
        let pilot = Beside::of(pilot.up());
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
        let finished = pilot.restores(&["rollback", "--to", &first]);
        assert!(finished["scenarios"].as_array().unwrap().contains(&json!("commit")), "{finished}");
        assert_eq!(finished["release"], "r2");
        assert_eq!(pilot.setting("USE_SIMULATION"), "true");
        assert!(pilot.xtask(&["releases", "show", "r2"]).expect(0).out.contains(&first));
        assert_eq!(title(&pilot), "First title");
        assert_eq!(state(), before);

        // By its label, and built already: the recorded release is used.
        pilot.restores(&["rollback", "--to", "r1"]);
        let again = pilot.restores(&["rollback", "--to", "first"]);
        assert_eq!(again["release"], "r2");

        // Another commit with the same tree makes the same release, and is known by it from then on. Here it is
        // deployed.
        let identity = ["-c", "user.name=T", "-c", "user.email=t@example.invalid"];
        let tree = format!("{first}^{{tree}}");
        let same = git(&[identity.as_slice(), &["commit-tree", &tree, "-m", "same"]].concat());
        pilot.restores(&["rollback", "--to", "r1"]);
        assert_eq!(pilot.json(&["up", "--from", same.trim()]).expect(0).finished()["release"], "r2");
        assert_eq!(title(&pilot), "First title");
        pilot.restores(&["rollback", "--to", "r1"]);
        let again = pilot.xtask(&["rollback", "--to", same.trim()]).expect(0);
        assert!(!again.out.contains("while the commit is built"), "{}", again.out);

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
