//! Backups off the host: a real restic, repositories in a folder of the test and behind an SFTP server of the test.
//! Where restic or sshd is missing these tests are skipped, and say so; with `CI=true` they fail instead.

use crate::docs::commands;
use crate::pilot::Engine::Process;
use crate::pilot::{Folder, Pilot, Ran, copy_of_the_tree, program, ran, skip, workspace};
use crate::sshd::{self, Server};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PASSWORD: &str = "correct-horse-battery";

/// A stack with a `[remote]`, and a repository of its own.
struct Scene {
    pilot: Pilot,
    tree: Folder,
}

/// Is this program here?
fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    found.status.success()
}

/// Runs a test, if restic is here.
fn on(name: &str, test: impl Fn(Scene)) {
    if !has("restic") {
        return skip(name, "restic is not on the PATH");
    }
    test(Scene::new(name));
}

impl Scene {
    fn new(name: &str) -> Self {
        let mut pilot = Pilot::new(name, Process);
        let tree = copy_of_the_tree(name);
        pilot.root = tree.0.clone();
        // A cache of the user's own stays as it is.
        pilot.set("RESTIC_CACHE_DIR", &pilot.folder.0.join("cache").display().to_string());
        let scene = Self { pilot, tree };
        scene.write_password(PASSWORD);
        scene.configure(&scene.repository().display().to_string(), "");
        scene
    }

    fn repository(&self) -> PathBuf {
        self.pilot.folder.0.join("repository")
    }

    fn password(&self) -> PathBuf {
        self.tree.0.join("pilot-deploy/password")
    }

    fn write_password(&self, text: &str) {
        std::fs::write(self.password(), text).unwrap();
        std::fs::set_permissions(self.password(), PermissionsExt::from_mode(0o600)).unwrap();
    }

    /// Writes `[remote]` into the manifest.
    fn configure(&self, repository: &str, more: &str) {
        let path = self.tree.0.join("pilot-deploy/pilot.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("\n[remote]\n").next().unwrap();
        let remote = format!("[remote]\nrepository = \"{repository}\"\npassword_file = \"password\"\n{more}");
        std::fs::write(&path, format!("{text}\n{remote}")).unwrap();
    }

    fn xtask(&self, args: &[&str]) -> Ran {
        let ran = self.pilot.xtask(args);
        assert!(!ran.all().contains(PASSWORD), "{}", ran.all());
        ran
    }

    /// The last event of a command that has to fail like this.
    #[track_caller]
    fn refused(&self, args: &[&str], code: i32) -> (String, String) {
        let ran = self.pilot.json(args).expect(code);
        assert!(!ran.all().contains(PASSWORD), "{}", ran.all());
        let finished = ran.finished();
        let text = |key: &str| finished[key].as_str().unwrap_or_default().to_owned();
        (text("error"), [text("next"), text("advice")].join(" # "))
    }

    /// Writes a backup as it is after `backup create`.
    fn backup(&self, id: &str, made_ms: u64, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.pilot.state().join("backups").join(id);
        std::fs::create_dir_all(&folder).unwrap();
        let mut sums = json!({});
        for (name, text) in files {
            std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.join(name), text).unwrap();
            sums[*name] = json!(sum(&folder.join(name)));
        }
        let index = json!({"version": 2, "project": self.pilot.project, "made_ms": made_ms, "files": sums});
        std::fs::write(folder.join("backup.json"), index.to_string()).unwrap();
        folder
    }

    /// restic, as an administrator calls it.
    fn restic(&self, args: &[&str]) -> Command {
        let mut command = Command::new("restic");
        command.args(["--quiet", "--no-cache"]).args(args).stdin(Stdio::null());
        command.env("RESTIC_REPOSITORY", self.repository()).env("RESTIC_PASSWORD", PASSWORD);
        command
    }

    /// A restic that has locked the repository and waits.
    fn locked(&self) -> Child {
        let mut command = self.restic(&["backup", "--stdin", "--host", "somebody"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let start = Instant::now();
        while std::fs::read_dir(self.repository().join("locks")).unwrap().count() == 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "it never locked");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    /// What `list --remote` tells.
    #[track_caller]
    fn listed(&self) -> Vec<Value> {
        self.pilot.told(&["backup", "list", "--remote"], 0)["backups"].as_array().unwrap().clone()
    }

    /// What was fetched and is not verified.
    fn fetched(&self) -> Vec<String> {
        let all = std::fs::read_dir(self.pilot.state().join("remote")).unwrap().flatten();
        let names = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("fetched")).collect()
    }

    #[track_caller]
    fn names(&self) -> Vec<String> {
        self.listed().iter().map(|row| row["backup"].as_str().unwrap().to_owned()).collect()
    }
}

fn sum(path: &Path) -> String {
    let told = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(told.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// Ends a child and waits until it is gone.
fn ended(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_backup_comes_back_on_a_new_clone_and_its_data_is_restored() {
    on("remote-there", |mut scene| {
        let (tree, root) = (scene.tree.0.clone(), workspace());
        scene.pilot.root = root.clone();
        scene.pilot.xtask(&["up"]).expect(0);
        scene.pilot.store_scenario();
        let made = scene.pilot.told(&["backup", "create"], 0)["backup"].as_str().unwrap().to_owned();
        scene.pilot.root = tree.clone();
        // What restic is called with has no password.
        let (log, bin) = (scene.pilot.folder.0.join("calls"), scene.pilot.folder.0.join("bin"));
        let real = Command::new("sh").args(["-c", "command -v restic"]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        let script = format!("#!/bin/sh\necho \"$@\" >>{}\nexec {} \"$@\"\n", log.display(), real.trim());
        program(&bin.join("restic"), &script);
        scene.pilot.set("PATH", &format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
        let pushed = scene.xtask(&["backup", "push"]).expect(0).out;
        for said in ["made a new repository", &format!("✓ pushed {made}"), "✓ checked the repository"] {
            assert!(pushed.contains(said), "{said}: {pushed}");
        }
        let again = scene.xtask(&["backup", "push"]).expect(0).out;
        assert!(again.contains("there before: 1") && !again.contains("✓ pushed"), "{again}");
        let row = scene.listed().remove(0);
        assert_eq!(
            (&row["backup"], &row["release"], &row["here"]),
            (&json!(made), &json!("r1"), &json!(true))
        );
        assert!(std::fs::read_to_string(&log).unwrap().contains("--read-data-subset=5%"));
        assert!(!std::fs::read_to_string(&log).unwrap().contains(PASSWORD));
        // The machine is lost; another one has the same project.
        scene.pilot.root = root.clone();
        scene.pilot.xtask(&["down"]).expect(0);
        std::fs::remove_dir_all(scene.pilot.state()).unwrap();
        scene.pilot.root = tree.clone();
        let shown = scene.xtask(&["backup", "list", "--remote"]).expect(0).out;
        assert!(shown.contains(&made) && !shown.contains("here too"), "{shown}");
        scene.xtask(&["backup", "pull", "latest"]).expect(0);
        let folder = scene.pilot.state().join("backups").join(&made);
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let again = scene.xtask(&["backup", "pull", &made]).expect(0).out;
        assert!(again.contains("is here already, whole"), "{again}");
        scene.pilot.root = root;
        scene.pilot.xtask(&["up"]).expect(0);
        assert!(!scene.pilot.has_scenario());
        scene.pilot.xtask(&["--yes", "backup", "restore", &made, "--only", "data"]).expect(0);
        assert!(scene.pilot.has_scenario());
    });
}

#[test]
fn retention_counts_each_kind_and_leaves_other_projects_alone() {
    on("remote-keep", |scene| {
        scene.configure(&scene.repository().display().to_string(), "keep = 2\n");
        for n in 1..=4 {
            scene.backup(&format!("000{n}-x"), n, &[(".env", &format!("A={n}\n"))]);
        }
        scene.backup("0000-d", 0, &[("jobs.data.tar", "data")]);
        let pushed = scene.xtask(&["backup", "push"]).expect(0).out;
        assert!(pushed.contains("newer ones fill the repository: 0001-x, 0002-x"), "{pushed}");
        assert_eq!(scene.names(), ["0000-d", "0003-x", "0004-x"]);
        // Of another project, in another clone, which keeps one.
        let other = Scene::new("remote-other");
        std::fs::copy(scene.password(), other.password()).unwrap();
        other.configure(&scene.repository().display().to_string(), "keep = 1\n");
        other.backup("0001-x", 9, &[(".env", "B=1\n")]);
        other.xtask(&["backup", "push"]).expect(0);
        other.backup("0002-x", 10, &[(".env", "B=2\n")]);
        // And what somebody else keeps there under the name of the project.
        let by_hand = ["backup", "--host", &other.pilot.project, "--tag", "mine", "."];
        assert!(scene.restic(&by_hand).current_dir(&other.tree.0).status().unwrap().success());
        let pushed = other.xtask(&["backup", "push", "latest"]).expect(0).out;
        assert!(pushed.contains("removed backup 0001-x there"), "{pushed}");
        assert_eq!(other.names(), ["0002-x"]);
        assert_eq!(scene.names(), ["0000-d", "0003-x", "0004-x"]);
        let all = scene.restic(&["snapshots", "--json"]).output().unwrap().stdout;
        let all: Value = serde_json::from_slice(&all).unwrap();
        assert_eq!(all.as_array().unwrap().len(), 5, "{all}");
        let (error, next) = other.refused(&["backup", "push", "0001-x"], 2);
        assert!(
            error.contains("is older than the newest 1") && next.contains("raise `keep`"),
            "{error} {next}"
        );
        let (error, next) = other.refused(&["backup", "pull", "0003-x"], 2);
        assert!(error.contains("there is no backup 0003-x"), "{error}");
        assert!(next.contains("backup list --remote"), "{next}");
    });
}

#[test]
fn two_clones_that_gave_the_same_id_keep_both_backups() {
    on("remote-same", |scene| {
        let id = "0001-20261125T000000000";
        let place = scene.backup(id, 1, &[(".env", "A=here\n"), ("sub/seed.json", "{}")]);
        scene.xtask(&["backup", "push", id]).expect(0);
        std::fs::remove_dir_all(scene.pilot.state()).unwrap();
        scene.backup(id, 2, &[(".env", "A=there\n")]);
        scene.xtask(&["backup", "push"]).expect(0);
        let names = scene.names();
        assert!(
            names.len() == 2 && names.iter().all(|name| name.starts_with(&format!("{id}-"))),
            "{names:?}"
        );
        let (error, _) = scene.refused(&["backup", "pull", id], 2);
        assert!(error.contains(&names[0]) && error.contains(&names[1]), "{error}");
        scene.xtask(&["backup", "pull", &names[0]]).expect(0);
        let read = |folder: &Path| std::fs::read_to_string(folder.join(".env")).unwrap();
        assert_eq!(read(&place), "A=there\n");
        assert_eq!(read(&place.with_file_name(&names[0])), "A=here\n");
        assert!(place.with_file_name(&names[0]).join("sub/seed.json").exists());
        // A backup that was altered here is not sent; the sound one comes back beside it.
        std::fs::write(place.with_file_name(&names[0]).join(".env"), "A=altered\n").unwrap();
        let again = scene.xtask(&["backup", "pull", &names[0]]).expect(0).out;
        assert!(again.contains("not whole") && again.contains(&format!("{}-2", names[0])), "{again}");
        scene.backup("0005-x", 5, &[(".env", "A=5\n")]);
        std::fs::write(scene.pilot.state().join("backups/0005-x/.env"), "A=6\n").unwrap();
        scene.backup("0006-x", 6, &[(".env", "A=6\n")]);
        let (error, next) = scene.refused(&["backup", "push"], 1);
        assert!(error.contains("pushed 0006-x; but") && error.contains("was altered"), "{error}");
        assert!(next.contains("backup create"), "{next}");
        assert_eq!(scene.names(), [names, vec!["0006-x".to_owned()]].concat());
    });
}

#[test]
fn what_is_missing_is_told_before_anything_is_done() {
    on("remote-missing", |mut scene| {
        scene.backup("0001-x", 1, &[(".env", "A=1\n")]);
        for args in [&["backup", "push"][..], &["backup", "pull", "latest"], &["backup", "list", "--remote"]]
        {
            std::fs::set_permissions(scene.password(), PermissionsExt::from_mode(0o640)).unwrap();
            let (error, next) = scene.refused(args, 2);
            assert!(error.contains("others can read the password file"), "{error}");
            let line = next.split(" # ").next().unwrap();
            assert!(Command::new("sh").args(["-c", line]).status().unwrap().success(), "{line}");
            assert_eq!(scene.password().metadata().unwrap().permissions().mode() & 0o777, 0o600);
            let hidden = scene.password().with_file_name("hidden");
            std::fs::rename(scene.password(), &hidden).unwrap();
            assert!(scene.refused(args, 2).0.contains("there is no password file"));
            std::fs::rename(&hidden, scene.password()).unwrap();
        }
        assert!(!scene.repository().exists());
        let (error, next) = scene.refused(&["backup", "list", "--remote"], 4);
        assert!(
            error.contains("there is no repository") && next.contains("backup push # "),
            "{error} {next}"
        );
        let bin = scene.pilot.folder.0.join("bin");
        let path = std::env::var("PATH").unwrap();
        scene.pilot.set("PATH", &bin.display().to_string());
        let (error, next) = scene.refused(&["backup", "push"], 4);
        assert!(
            error.contains("restic is not on the PATH") && next.contains("apt-get install restic"),
            "{next}"
        );
        program(&bin.join("restic"), "#!/bin/sh\necho restic 0.12.1 compiled with go\n");
        scene.pilot.set("PATH", &format!("{}:{path}", bin.display()));
        let (error, _) = scene.refused(&["backup", "push"], 4);
        assert!(error.contains("too old: at least 0.14"), "{error}");
        scene.pilot.root = workspace();
        let (error, next) = scene.refused(&["backup", "push"], 2);
        assert!(error.contains("has no [remote]") && next.contains("password_file = "), "{error} {next}");
    });
}

#[test]
fn each_trouble_with_a_repository_is_told_as_what_it_is() {
    on("remote-trouble", |scene| {
        scene.backup("0001-x", 1, &[(".env", "A=1\n")]);
        scene.xtask(&["backup", "push"]).expect(0);
        scene.write_password("wrong");
        for args in [&["backup", "push"][..], &["backup", "pull", "latest"], &["backup", "list", "--remote"]]
        {
            let (error, next) = scene.refused(args, 2);
            assert!(error.contains("does not open the repository"), "{error}");
            assert!(next.contains("restic --repo") && !next.contains("wrong"), "{next}");
        }
        scene.write_password(PASSWORD);
        // Another restic is at work: what is sent is sent, and said; the rest is for later.
        let live = scene.locked();
        scene.backup("0002-x", 2, &[(".env", "A=2\n")]);
        assert_eq!(scene.names(), ["0001-x"]);
        let (error, next) = scene.refused(&["backup", "push"], 5);
        assert!(error.contains("pushed 0002-x; but then: another restic has locked"), "{error}");
        assert!(next.contains(" unlock # "), "{next}");
        // It is killed: the next push removes its lock, and says so.
        ended(live);
        let pushed = scene.xtask(&["backup", "push"]).expect(0).out;
        assert!(
            pushed.contains("an interrupted restic had left: 1") && pushed.contains("✓ checked"),
            "{pushed}"
        );
        // A disk that is not mounted is no reason to begin anew.
        let away = scene.pilot.folder.0.join("away");
        std::fs::rename(scene.repository(), &away).unwrap();
        for empty in [false, true] {
            if empty {
                std::fs::create_dir(scene.repository()).unwrap();
            }
            let (error, next) = scene.refused(&["backup", "push"], 4);
            assert!(error.contains("no new one was made") && next.contains("mounted?"), "{error} {next}");
        }
        std::fs::remove_dir(scene.repository()).unwrap();
        std::fs::rename(&away, scene.repository()).unwrap();
        // On a clone that never sent anything, a folder that has something is not begun anew either.
        std::fs::remove_dir_all(scene.pilot.state().join("remote")).unwrap();
        let config = scene.repository().join("config");
        std::fs::rename(&config, scene.pilot.folder.0.join("config")).unwrap();
        let (error, _) = scene.refused(&["backup", "push"], 4);
        assert!(error.contains("other files are in that folder"), "{error}");
        std::fs::rename(scene.pilot.folder.0.join("config"), &config).unwrap();
        scene.xtask(&["backup", "push"]).expect(0);
    });
}

#[test]
fn what_was_changed_in_the_repository_is_not_taken_for_a_backup() {
    on("remote-forged", |scene| {
        let place = scene.backup("0001-x", 1, &[(".env", "A=1\n"), ("sub/b", "b")]);
        scene.xtask(&["backup", "push"]).expect(0);
        let sum = sum(&place.join("backup.json"));
        let project = scene.pilot.project.clone();
        // The same backup under other ids, each with another change.
        let store = |id: &str, made: u32| {
            let mut words = vec!["backup".to_owned(), "--host".into(), project.clone(), ".".into()];
            let made = format!("made:{made}");
            for tag in [&format!("project:{project}"), &format!("backup:{id}"), &format!("sum:{sum}"), &made]
            {
                words.extend(["--tag".to_owned(), tag.to_string()]);
            }
            words.extend(["--tag", "bytes:9", "--tag", "data:false"].map(str::to_owned));
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            assert!(scene.restic(&words).current_dir(&place).status().unwrap().success());
        };
        std::fs::write(place.join("more"), "more").unwrap();
        store("0002-more", 2);
        std::fs::remove_file(place.join("more")).unwrap();
        std::fs::write(place.join(".env"), "A=2\n").unwrap();
        store("0003-altered", 3);
        std::fs::remove_file(place.join(".env")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", place.join(".env")).unwrap();
        store("0004-link", 4);
        std::fs::remove_file(place.join(".env")).unwrap();
        store("0005-less", 5);
        std::fs::write(place.join(".env"), "A=1\n").unwrap();
        std::fs::remove_file(place.join("backup.json")).unwrap();
        store("0006-none", 6);
        store("../../0007-out", 7);
        std::fs::remove_dir_all(scene.pilot.state()).unwrap();
        assert_eq!(scene.names().len(), 6);
        for (id, why) in [
            ("0002-more", "more is not one of its files"),
            ("0003-altered", ".env was altered"),
            ("0004-link", ".env is no file"),
            ("0005-less", "cannot read"),
            ("0006-none", "it has no backup.json"),
        ] {
            let (error, next) = scene.refused(&["backup", "pull", id], 4);
            assert!(error.contains("is not what was sent") && error.contains(why), "{id}: {error}");
            assert!(next.contains("backup list --remote"), "{next}");
            assert_eq!(scene.fetched(), [""; 0]);
            let own = std::fs::read_dir(scene.pilot.state().join("backups"));
            assert_eq!(own.map_or(0, Iterator::count), 0, "{id}");
        }
        // What a killed pull had fetched goes with the next one.
        std::fs::create_dir(scene.pilot.state().join("remote/fetched.7")).unwrap();
        scene.xtask(&["backup", "pull", "0001-x"]).expect(0);
        assert_eq!(std::fs::read_to_string(place.join(".env")).unwrap(), "A=1\n");
        assert_eq!(scene.fetched(), [""; 0]);
    });
}

#[test]
fn a_rollback_does_not_wait_for_a_push_and_a_second_push_is_refused() {
    on("remote-slow", |mut scene| {
        let real = Command::new("sh").args(["-c", "command -v restic"]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        let bin = scene.pilot.folder.0.join("bin");
        let (begun, go) = (bin.join("begun"), bin.join("go"));
        let waits =
            format!("touch {}; while ! test -e {}; do sleep 0.05; done", begun.display(), go.display());
        program(
            &bin.join("restic"),
            &format!("#!/bin/sh\n[ \"$1\" = backup ] && {{ {waits}; }}\nexec {} \"$@\"\n", real.trim()),
        );
        scene.pilot.root = workspace();
        scene.pilot.xtask(&["up"]).expect(0);
        scene.pilot.xtask(&["backup", "create"]).expect(0);
        scene.pilot.set("PATH", &format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
        let mut push = scene.pilot.command(&["backup", "push"]);
        push.current_dir(&scene.tree.0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let push = push.spawn().unwrap();
        let start = Instant::now();
        while !begun.exists() {
            assert!(start.elapsed() < Duration::from_secs(60), "the push never began");
            std::thread::sleep(Duration::from_millis(20));
        }
        scene.pilot.edit_env("USE_SIMULATION", "false");
        scene.pilot.xtask(&["rollback"]).expect(0);
        scene.pilot.xtask(&["backup", "create"]).expect(0);
        scene.pilot.root = scene.tree.0.clone();
        let (error, _) = scene.refused(&["backup", "push"], 5);
        assert!(error.contains("backup push"), "{error}");
        scene.refused(&["backup", "pull", "latest"], 5);
        std::fs::write(&go, "").unwrap();
        ran(push.wait_with_output().unwrap()).expect(0);
        // Those that were made meanwhile are for the next push.
        assert_eq!(scene.names().len(), 1);
        scene.xtask(&["backup", "push"]).expect(0);
        assert!(scene.names().len() >= 3, "{:?}", scene.names());
    });
}

#[test]
fn the_commands_of_the_page_run_in_their_order() {
    on("remote-page", |mut scene| {
        let page = std::fs::read_to_string(workspace().join("docs/off-host.md")).unwrap();
        let all = commands(&page, false);
        assert!(all.len() >= 9, "only {} commands", all.len());
        // The page begins on a stack that runs and has a backup.
        scene.pilot.root = workspace();
        scene.pilot.xtask(&["up"]).expect(0);
        scene.pilot.xtask(&["backup", "create"]).expect(0);
        for words in all {
            let args: Vec<&str> = words.iter().map(String::as_str).collect();
            // `up` needs the source, the others the manifest that has a repository.
            scene.pilot.root = if args == ["up"] { workspace() } else { scene.tree.0.clone() };
            scene.xtask(&args).expect(0);
        }
    });
}

/// Changes some bytes in the middle of each pack.
fn damage(repository: &Path) {
    for folder in std::fs::read_dir(repository.join("data")).unwrap().flatten() {
        for pack in std::fs::read_dir(folder.path()).unwrap().flatten() {
            let mut bytes = std::fs::read(pack.path()).unwrap();
            bytes.iter_mut().skip(20).take(40).for_each(|byte| *byte ^= 0xff);
            std::fs::set_permissions(pack.path(), PermissionsExt::from_mode(0o600)).unwrap();
            std::fs::write(pack.path(), bytes).unwrap();
        }
    }
}

#[test]
fn a_damaged_repository_is_told_and_nothing_of_it_is_taken_for_a_backup() {
    on("remote-damaged", |mut scene| {
        scene.configure(&scene.repository().display().to_string(), "check = \"100%\"\n");
        scene.backup("0001-x", 1, &[(".env", "A=1\n"), ("jobs.data.tar", &"data\n".repeat(10_000))]);
        scene.xtask(&["backup", "push"]).expect(0);
        damage(&scene.repository());
        let (error, next) = scene.refused(&["backup", "push"], 4);
        assert!(error.contains("is damaged; the backups on this machine are not"), "{error}");
        assert!(next.contains("check --read-data"), "{next}");
        std::fs::remove_dir_all(scene.pilot.state()).unwrap();
        scene.pilot.set("RESTIC_CACHE_DIR", &scene.pilot.folder.0.join("other-cache").display().to_string());
        let (error, _) = scene.refused(&["backup", "pull", "latest"], 4);
        assert!(error.contains("is damaged"), "{error}");
        assert!(!scene.pilot.state().join("backups").join("0001-x").exists());
        assert_eq!(scene.fetched(), [""; 0]);
    });
}

#[test]
fn what_restic_stores_only_in_part_is_not_said_to_be_there() {
    on("remote-part", |mut scene| {
        let bin = scene.pilot.folder.0.join("bin");
        let real = Command::new("sh").args(["-c", "command -v restic"]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        let path = std::env::var("PATH").unwrap();
        // As if retention removed a file while it was read; once restic sees it and ends with 3, once it does not.
        for (more, said) in [("; exit 3", "3"), ("", "restic stored 1 files")] {
            let place = scene.backup("0001-x", 1, &[(".env", "A=1\n"), ("b", "b")]);
            let script = format!(
                "#!/bin/sh\n[ \"$1\" = backup ] || exec {0} \"$@\"\nrm -f b .env\n{0} \"$@\"{more}\n",
                real.trim()
            );
            program(&bin.join("restic"), &script);
            scene.pilot.set("PATH", &format!("{}:{path}", bin.display()));
            let (error, _) = scene.refused(&["backup", "push"], if more.is_empty() { 1 } else { 4 });
            assert!(error.contains(said), "{error}");
            assert!(scene.names().is_empty());
            std::fs::remove_dir_all(&place).unwrap();
        }
        // If the whole backup is gone, that is no error.
        let place = scene.backup("0001-x", 1, &[(".env", "A=1\n")]);
        let gone = format!("rm -rf {}", place.display());
        let script = format!("#!/bin/sh\n[ \"$1\" = backup ] && {gone}\nexec {} \"$@\"\n", real.trim());
        program(&bin.join("restic"), &script);
        let pushed = scene.xtask(&["backup", "push"]).expect(0).out;
        assert!(pushed.contains("was removed here before it was sent"), "{pushed}");
        assert!(scene.names().is_empty());
    });
}

#[test]
fn a_backup_goes_over_sftp_and_comes_back() {
    if let Some(why) = sshd::missing() {
        return skip("remote-sftp", &why);
    }
    on("remote-sftp", |mut scene| {
        let server = Server::start(&scene.pilot.folder.0.join("ssh"), "backups", "127.0.0.1", &[], "");
        scene.pilot.set("PATH", &server.path());
        scene.configure(&format!("sftp:backups:{}", scene.repository().display()), "");
        let place =
            scene.backup("0001-x", 1, &[(".env", "A=1\n"), ("jobs.data.tar", &"data\n".repeat(1000))]);
        let pushed = scene.xtask(&["backup", "push"]).expect(0).out;
        assert!(
            pushed.contains("made a new repository: sftp:backups:") && pushed.contains("✓ pushed 0001-x")
        );
        std::fs::remove_dir_all(scene.pilot.state()).unwrap();
        scene.xtask(&["backup", "pull", "0001-x"]).expect(0);
        assert_eq!(std::fs::read_to_string(place.join(".env")).unwrap(), "A=1\n");
        // A new repository is not made where the server says that it is gone.
        scene.xtask(&["backup", "push"]).expect(0);
        std::fs::rename(scene.repository(), scene.pilot.folder.0.join("away")).unwrap();
        let (error, _) = scene.refused(&["backup", "push"], 4);
        assert!(error.contains("no new one was made"), "{error}");
        drop(server);
        let (error, next) = scene.refused(&["backup", "list", "--remote"], 4);
        // restic does not always wait for what ssh says.
        assert!(
            error.contains("cannot list what is in the repository")
                && next.contains("shows whether it answers"),
            "{error}"
        );
        let (error, _) = scene.refused(&["backup", "push"], 4);
        assert!(error.contains("cannot open the repository"), "{error}");
    });
}
