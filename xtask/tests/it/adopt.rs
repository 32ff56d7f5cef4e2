//! A stack that shares nothing with the pilot: the whole way of a team that adopts the tool, on Docker. Nothing in
//! `xtask/src` was made for this stack.

use crate::notes::{Notes, bad_release, check_out, crash_loop, on, within};
use crate::pilot::Engine::{Compose1, Compose2};
use crate::pilot::{docker, workspace};
use serde_json::json;
use std::time::Duration;

/// How long a busy machine may take to start the stack.
const START: Duration = Duration::from_secs(30);

impl Notes {
    /// The public gets the good release, with its two workers, and with this note, written before.
    #[track_caller]
    fn serves(&self, note: &str) {
        assert_eq!((self.version().as_str(), self.containers("worker").len()), ("1.0", 2));
        assert!(self.has(note), "{note:?} is lost: {:?}", self.ask("GET", "/notes", None));
        assert_eq!(self.write("one more"), 201);
        self.xtask(&["status"]).expect(0);
    }

    /// A colleague breaks it by hand, and an operator rolls it back.
    #[track_caller]
    fn is_brought_back(&self, note: &str) {
        let finished = self.json(&["rollback"]).expect(0).finished();
        assert_eq!((&finished["outcome"], &finished["release"]), (&json!("restored"), &json!("r1")));
        check_out(self);
        self.serves(note);
    }
}

#[test]
fn a_team_goes_its_whole_way() {
    on(&[Compose2], "adopt", |notes| {
        deployments_and_what_a_colleague_breaks(&notes, &[BAD, ("api", crash_loop)]);
        what_compose_has_no_part_in(&notes);
    });
}

#[test]
fn a_team_goes_its_way_on_compose_1() {
    on(&[Compose1], "adopt-1", |notes| deployments_and_what_a_colleague_breaks(&notes, &[BAD]));
}

/// What fails, as the report of the deployment names it, and what makes it fail.
type Fault = (&'static str, fn(&Notes));

const BAD: Fault = ("notes can be written", bad_release);

/// Each fault is deployed, and gone back from.
fn deployments_and_what_a_colleague_breaks(notes: &Notes, faults: &[Fault]) {
    notes.xtask(&["up"]).expect(0);
    assert_eq!(notes.write("the first note"), 201);
    notes.xtask(&["smoke"]).expect(0);
    notes.serves("the first note");
    let database = notes.containers("db");
    let again = notes.json(&["up"]).expect(0).finished();
    assert_eq!(again["outcome"], "nothing-to-do");
    for (what, fault) in faults {
        fault(notes);
        let ran = notes.xtask(&["up"]).expect(7);
        assert!(ran.all().contains(what), "{}", ran.all());
        check_out(notes);
        notes.serves("the first note");
    }
    assert_eq!(notes.containers("db"), database, "the database was replaced");
    bad_release(notes);
    notes.deploy_by_hand();
    assert!(within(START, || notes.write("lost") == 500));
    notes.is_brought_back("the first note");
}

fn what_compose_has_no_part_in(notes: &Notes) {
    faults_by_hand_are_brought_back(notes);
    a_bad_setting_is_brought_back(notes);
    the_evidence_has_the_logs_and_no_secret(notes);
    a_corrupted_volume_is_seen_and_restored(notes);
    notes.xtask(&["--yes", "reset"]).expect(0);
    assert!(!notes.has("the first note"));
    reports_name_the_check(notes);
}

fn faults_by_hand_are_brought_back(notes: &Notes) {
    crash_loop(notes);
    notes.deploy_by_hand();
    assert!(within(START, || notes.write("lost") == 502));
    notes.is_brought_back("the first note");

    docker(&["stop", "--time", "0", &notes.containers("worker")[0]]);
    notes.xtask(&["status"]).expect(1);
    notes.is_brought_back("the first note");

    notes.edit("proxy/nginx.conf", "http://api:8000", "http://nobody:8000");
    notes.compose(&["up", "--detach", "--force-recreate", "--timeout", "0", "--no-deps", "proxy"]).expect(0);
    assert!(within(START, || notes.write("lost") == 502));
    notes.is_brought_back("the first note");
}

fn a_bad_setting_is_brought_back(notes: &Notes) {
    notes.edit(".env", "DB_PASSWORD='p$ss w#rd'", "DB_PASSWORD=wrong");
    // The database's own health check fails with it.
    notes.compose(&["up", "--detach", "--timeout", "0"]);
    notes.is_brought_back("the first note");
}

fn the_evidence_has_the_logs_and_no_secret(notes: &Notes) {
    notes.xtask(&["evidence"]).expect(0);
    let found = std::process::Command::new("grep")
        .args(["--recursive", "--text", "--files-with-matches", "--exclude-dir=backup*", "p$ss w#rd"])
        .args([notes.dir().join(".pilot/evidence"), notes.dir().join(".pilot/rollbacks")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

fn a_corrupted_volume_is_seen_and_restored(notes: &Notes) {
    notes.xtask(&["backup", "create"]).expect(0);
    let db = &notes.containers("db")[0];
    docker(&["exec", db, "dd", "if=/dev/urandom", "of=/var/lib/mysql/ibdata1", "bs=1k", "count=12000"]);
    docker(&["restart", "--time", "0", db]);
    assert!(within(START, || notes.write("lost") != 201));
    notes.xtask(&["rollback"]).expect(1);
    assert_eq!(notes.write("lost"), 0, "the public reaches a stack that failed its checks");
    notes.xtask(&["--yes", "backup", "restore", "latest", "--only", "data"]).expect(0);
    notes.serves("the first note");
}

fn reports_name_the_check(notes: &Notes) {
    let runs = std::fs::read_dir(notes.dir().join(".pilot/rollbacks")).unwrap().flatten();
    let reports: Vec<_> =
        runs.map(|run| run.path().join("report.html")).filter(|path| path.is_file()).collect();
    assert!(reports.len() >= 6, "{reports:?}");
    // Those that came so far as to check it.
    let names =
        |path: &std::path::PathBuf| std::fs::read_to_string(path).unwrap().contains("notes can be written");
    assert!(reports.iter().filter(|path| names(path)).count() >= 4, "{reports:?}");
}

#[test]
fn a_compose_file_is_enough() {
    on(&[Compose2], "bare", |notes| {
        let notes = notes.without_a_manifest();
        let said = notes.xtask(&["up"]).expect(0).all();
        assert!(
            said.contains(
                "there is no pilot.toml, so this is assumed: the gate is closed by stopping proxy;"
            ),
            "{said}"
        );
        assert_eq!(notes.write("the first note"), 201);
        notes.xtask(&["smoke"]).expect(0);
        notes.serves("the first note");
        crash_loop(&notes);
        notes.deploy_by_hand();
        assert!(within(START, || notes.write("lost") == 502));
        notes.is_brought_back("the first note");
    });
}

#[test]
fn what_compose_does_not_understand_is_no_stack_that_is_well_and_is_shut_out_all_the_same() {
    on(&[Compose2], "unknown", |notes| {
        let notes = notes.without_a_manifest();
        notes.compose(&["up", "--detach", "--no-deps", "proxy"]).expect(0);
        assert_eq!(notes.containers("proxy").len(), 1);
        notes.edit("docker-compose.yml", "services:\n", "services:\n  more: { imag: x }\n");
        for command in ["smoke", "status", "init", "up"] {
            let said = notes.xtask(&[command]).expect(2).all();
            let file = notes.dir().join("docker-compose.yml").display().to_string();
            assert!(said.contains("does not understand the stack") && said.contains(&file), "{said}");
            assert!(!said.contains("pilot-stack-"), "it names a temporary folder: {said}");
        }
        let said = notes.xtask(&["kill-switch", "on"]).expect(0).all();
        assert!(said.contains("so proxy was stopped"), "{said}");
        assert_eq!(notes.containers("proxy"), [""; 0]);
        let said = notes.xtask(&["kill-switch", "status"]).expect(0).all();
        assert!(said.contains("the public is shut out: no published service runs"), "{said}");
    });
}

/// The proxy's maintenance mode: a file.
const MAINTENANCE: &str = "kind = \"exec\"
service = \"proxy\"
close = [\"sh\", \"-c\", \"echo > /tmp/closed\"]
open = [\"rm\", \"-f\", \"/tmp/closed\"]
closed = [\"test\", \"-f\", \"/tmp/closed\"]
refused = { request = \"GET proxy/notes\", public = true, status = 503 }
served = { request = \"GET proxy/notes\", public = true }";

#[test]
fn a_maintenance_mode_is_a_gate_of_commands() {
    on(&[Compose2], "exec", |notes| {
        let closed = "location / {\n      if (-f /tmp/closed) { return 503; }\n";
        notes.edit("proxy/nginx.conf", "location / {\n", closed);
        // The checks run behind the closed gate, so none may go through it.
        notes.edit("pilot.toml", "GET proxy/notes", "GET proxy/proxy");
        notes.edit("pilot.toml", "kind = \"stop\"", MAINTENANCE);
        notes.xtask(&["up"]).expect(0);
        assert_eq!(notes.write("the first note"), 201);
        notes.xtask(&["kill-switch", "on", "--reason", "maintenance"]).expect(0);
        assert_eq!(notes.write("lost"), 503);
        let said = notes.xtask(&["status"]).expect(1).all();
        assert!(said.contains("closed: maintenance"), "{said}");
        notes.xtask(&["kill-switch", "off"]).expect(0);
        assert_eq!(notes.write("the second note"), 201);
        bad_release(&notes);
        notes.deploy_by_hand();
        assert!(within(START, || notes.write("lost") == 500));
        let finished = notes.json(&["rollback"]).expect(0).finished();
        assert_eq!((&finished["outcome"], &finished["release"]), (&json!("restored"), &json!("r1")));
        assert_eq!((notes.version().as_str(), notes.write("the third note")), ("1.0", 201));
    });
}

#[track_caller]
fn runs(notes: &Notes, line: &str) {
    println!("{line}");
    notes.shell(line).expect(0);
}

#[test]
fn every_command_of_the_first_hour_runs() {
    on(&[Compose2], "first-hour", |notes| {
        let notes = notes.without_a_manifest();
        // The bad image that a drill names.
        bad_release(&notes);
        notes.compose(&["build", "api"]).expect(0);
        check_out(&notes);
        notes.edit(".env", "NOTES_VERSION=2.0", "NOTES_VERSION=1.0");
        // The stack runs already.
        notes.deploy_by_hand();
        let page = std::fs::read_to_string(workspace().join("docs/adopting.md")).unwrap();
        // `migration.rs` runs the last chapter.
        let (hour, _) = page.split_once("\n## 6.").unwrap();
        let blocks: Vec<(&str, &str)> =
            hour.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n')).collect();
        assert!(blocks.len() >= 8, "only {} blocks", blocks.len());
        for (language, text) in blocks {
            match language {
                "toml" => notes.append("pilot.toml", text),
                "sh" => {
                    let lines = text.lines().filter(|line| line.starts_with("xtask"));
                    // Each drill has a stack of its own, so they may run side by side.
                    let (drills, others): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains(" drill "));
                    others.into_iter().for_each(|line| runs(&notes, line));
                    std::thread::scope(|scope| {
                        drills.into_iter().for_each(|line| drop(scope.spawn(|| runs(&notes, line))));
                    });
                }
                other => panic!("a block of {other:?}"),
            }
        }
        assert_eq!(notes.write("the drills touched nothing"), 201);
    });
}

#[test]
fn a_drill_says_what_the_stack_does_not_have_and_init_what_it_has() {
    on(&[Compose2, Compose1], "asked", |notes: Notes| {
        let notes = notes.without_a_manifest();
        let no_such = |args: &[&str], told: &str, code| {
            let said = notes.xtask(&[&["drill"], args].concat()).expect(code).all();
            assert!(said.contains(told), "{said}");
        };
        no_such(&[], "--stop SERVICE or --image SERVICE=IMAGE (api, db, proxy, worker)", 2);
        no_such(&["--stop", "nobody"], "no service nobody; it has api, db, proxy, worker", 2);
        no_such(&["--image", "api=nothing:9"], "there is no image nothing:9", 2);
        no_such(&["--set", "NOBODY=1"], ".env has no NOBODY", 2);
        no_such(&["--corrupt", "tape"], "no data tape; it has db, exports", 2);
        no_such(&["--stop", "api"], "a known-good release, and there is none", 6);
        notes.xtask(&["init"]).expect(0);
        let written = std::fs::read_to_string(notes.dir().join("pilot.toml")).unwrap();
        let project = &notes.project;
        for line in [
            format!("#   service worker: image {project}-app:1.0, 2 containers, no health check"),
            format!("#   service api: built by Compose as {project}-app:1.0, health check"),
            format!(
                "#   service proxy: image {project}-nginx:1.22, published at 127.0.0.1:{}, no health check",
                notes.port
            ),
            format!("#   data db: volume {project}_notes_data"),
            format!("#   data exports: volume {project}-exports"),
        ] {
            assert!(written.contains(&line), "{line}\n{written}");
        }
        assert_eq!(notes.containers("db"), [""; 0]);
    });
}
