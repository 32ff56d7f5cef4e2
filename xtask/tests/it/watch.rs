//! What runs is watched after its gate was opened: what turns bad goes back once, what is only slow stays, and a run that is
//! killed meanwhile is taken up. The same with `guard`, for as long as it is told.

use crate::http::try_http;
use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Folder, Pilot, copy_of_the_tree, on, ran};
use crate::pins::watched;
use crate::promises::tagged_bad_version;
use crate::resume::{kill_when, step};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A source whose watched check passes as long as a file is there.
struct Watched {
    tree: Folder,
    well: PathBuf,
}

impl Watched {
    /// Changes the source of a pilot to it.
    fn of(pilot: &mut Pilot, time: &str) -> Self {
        let tree = copy_of_the_tree("watch-tree");
        let (pack, well) = (tree.0.join("pilot-deploy"), tree.0.join("well"));
        std::fs::write(&well, "").unwrap();
        std::fs::create_dir_all(pack.join("checks")).unwrap();
        let script =
            format!("#!/bin/sh\ntest -e {} || {{ echo it was taken away >&2; exit 1; }}\n", well.display());
        std::fs::write(pack.join("checks/well"), script).unwrap();
        let path = pack.join("pilot.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let changed = text
            .replace(
                "checks = [\"stream starts and gives tokens\"]\nrestarts",
                "checks = [\"all is there\"]\nrestarts",
            )
            .replace("for = \"10s\"", &format!("for = \"{time}\""))
            .replace("every = \"1s\"", "every = \"200ms\"");
        assert!(changed.contains("checks = [\"all is there\"]"));
        let check = "\n[[check]]\nname = \"all is there\"\nscript = \"checks/well\"\n";
        std::fs::write(&path, changed + check).unwrap();
        pilot.root = tree.0.clone();
        pilot.set("PILOT_WATCH", "");
        Self { tree, well }
    }

    /// From now on the watched check fails.
    fn turns_bad(&self) {
        std::fs::remove_file(&self.well).unwrap();
    }
}

const UP: [&str; 3] = ["up", "--tag", "v1.0.0"];

fn state_of(pilot: &Pilot, release: &str) -> String {
    let told = pilot.told(&["releases", "list"], 0);
    let all = told["releases"].as_array().unwrap();
    let one = all.iter().find(|one| one["id"] == release).unwrap_or_else(|| panic!("no {release} in {told}"));
    one["state"].as_str().unwrap().to_owned()
}

/// The commands of all runs, oldest first.
fn commands(pilot: &Pilot) -> Vec<String> {
    let request = |run: PathBuf| {
        let text = std::fs::read_to_string(run.join("request.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["command"].as_str().unwrap().to_owned()
    };
    pilot.runs().into_iter().map(request).collect()
}

#[track_caller]
fn serves(pilot: &Pilot) {
    assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
}

fn newest_journal(pilot: &Pilot) -> String {
    std::fs::read_to_string(pilot.runs().pop().unwrap().join("journal.jsonl")).unwrap()
}

/// The steps that the newest run has begun.
fn begun(pilot: &Pilot) -> Vec<String> {
    let lines =
        newest_journal(pilot).lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let begun = lines.iter().filter(|event| event["event"] == "step" && event["progress"] == "started");
    begun.map(|event| event["action"]["step"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_release_that_turns_bad_five_seconds_after_its_opening_goes_back_once() {
    on(&[Process], "turns-bad", |pilot| {
        let mut pilot = pilot.up();
        let source = Watched::of(&mut pilot, "30s");
        let (mut opened, mut last) = (false, Value::Null);
        let code = std::thread::scope(|scope| {
            watched(&pilot, &UP, |event| {
                if step("keep-watch", "started")(event) && !opened {
                    opened = true;
                    serves(&pilot);
                    assert_eq!(state_of(&pilot, "r2"), "candidate");
                    scope.spawn(|| {
                        std::thread::sleep(Duration::from_secs(5));
                        source.turns_bad();
                    });
                }
                last = event.clone();
            })
        });
        assert_eq!(
            (code, &last["outcome"], &last["release"]),
            (7, &json!("rolled-back"), &json!("r1")),
            "{last}"
        );
        let error = last["error"].as_str().unwrap();
        for words in
            ["release r2 did not stay well: all is there: ", "3 looks in a row", "release r1 serves again"]
        {
            assert!(error.contains(words), "no {words} in {error}");
        }
        assert_eq!(commands(&pilot), ["up", "up", "rollback"]);
        assert_eq!((state_of(&pilot, "r1"), state_of(&pilot, "r2")), ("known-good".into(), "failed".into()));
        serves(&pilot);
        // The report of the deployment tells it.
        let deployment = std::fs::read_to_string(pilot.runs()[1].join("report.md")).unwrap();
        assert!(deployment.contains("watch for 30s whether it stays well"), "{deployment}");
        drop(source.tree);
    });
}

#[test]
fn a_release_that_turns_bad_goes_back_and_one_that_is_only_slow_to_start_does_not_on_docker() {
    on(&[Compose2], "turns-bad", |pilot| {
        let mut pilot = pilot.up();
        pilot.set("PILOT_WATCH", "");
        tagged_bad_version(&pilot, "turns-bad", "bad");
        let failed = pilot.json(&["up", "--tag", "bad"]).expect(7);
        let error = failed.finished()["error"].as_str().unwrap().to_owned();
        assert!(error.contains("did not stay well: gateway: out of sorts, 3 looks in a row"), "{error}");
        assert_eq!(commands(&pilot), ["up", "up", "rollback"]);
        assert_eq!(pilot.running_images(), pilot.release_images("r1"));
        assert_eq!(state_of(&pilot, "r2"), "failed");
        serves(&pilot);
        // It takes seconds to start, and then it is well.
        tagged_bad_version(&pilot, "slow-start", "slow");
        let slow = pilot.json(&["up", "--tag", "slow"]).expect(0);
        assert!(slow.out.contains("watched for 10s: steady"), "{}", slow.out);
        assert_eq!(state_of(&pilot, "r3"), "known-good");
        serves(&pilot);
    });
}

#[test]
fn a_deployment_that_is_killed_on_its_watch_is_taken_up_by_the_same_command() {
    on(&[Process], "killed-watch", |pilot| {
        let mut pilot = pilot.up();
        let source = Watched::of(&mut pilot, "2s");
        kill_when(&pilot, &UP, step("keep-watch", "started"));
        assert_eq!(state_of(&pilot, "r2"), "candidate");
        serves(&pilot);
        let finished = pilot.json(&UP).expect(0).finished();
        assert_eq!(
            (&finished["outcome"], &finished["release"]),
            (&json!("deployed"), &json!("r2")),
            "{finished}"
        );
        assert_eq!(begun(&pilot), ["retag", "keep-watch"]);
        assert_eq!(state_of(&pilot, "r2"), "known-good");
        // A candidate that served when its deployment was killed is nothing to go back to.
        pilot.edit_env("DEFAULT_SEED", "8");
        kill_when(&pilot, &UP, step("keep-watch", "started"));
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["release"], "r2");
        assert_eq!(state_of(&pilot, "r3"), "candidate");
        // A rollback that is killed on its watch is taken up too.
        pilot.edit_env("DEFAULT_SEED", "9");
        kill_when(&pilot, &["rollback"], step("keep-watch", "started"));
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["outcome"], "restored");
        assert_eq!(begun(&pilot), ["retag", "keep-watch"]);
        // One that turns bad is closed, and goes nowhere.
        pilot.edit_env("DEFAULT_SEED", "10");
        let code = watched(&pilot, &["rollback"], |event| {
            if step("keep-watch", "started")(event) {
                source.turns_bad();
            }
        });
        assert_eq!(code, 1);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "disabled");
        assert_eq!(state_of(&pilot, "r2"), "known-good");
    });
}

#[test]
fn under_a_hold_health_is_watched_behind_the_gate() {
    on(&[Process], "held-watch", |pilot| {
        let mut pilot = pilot.up();
        let _source = Watched::of(&mut pilot, "1s");
        pilot.xtask(&["kill-switch", "on", "--reason", "maintenance"]).expect(0);
        let up = pilot.json(&UP).expect(9);
        assert!(up.out.contains("watched for 1s behind the closed gate: steady"), "{}", up.out);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "disabled");
        assert_eq!(state_of(&pilot, "r2"), "known-good");
        pilot.set("PILOT_WATCH", "soon");
        let refused = pilot.xtask(&["status"]).expect(2);
        assert!(refused.err.contains("PILOT_WATCH=soon is no time"), "{}", refused.err);
        pilot.set("PILOT_WATCH", "");
    });
}

/// A guard at work, and the file with what it says.
fn guard(pilot: &Pilot, words: &[&str]) -> Child {
    let mut command = pilot.command(&[&["--format", "json", "guard"], words].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Something is asked for until it is so.
fn until(what: &str, is: impl Fn() -> bool) {
    assert!(crate::notes::within(Duration::from_secs(60), is), "never {what}");
}

/// Does the kernel say that this process waits for its next look?
fn listens(child: &Child) -> bool {
    // The signals that it catches: SIGINT is the second.
    let status = std::fs::read_to_string(Path::new("/proc").join(child.id().to_string()).join("status"));
    let caught = status
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:").map(str::trim).map(str::to_owned));
    u64::from_str_radix(&caught.unwrap(), 16).unwrap() & 0b10 != 0
}

#[test]
fn a_guard_leaves_alone_what_is_well_and_goes_back_once_from_what_is_not() {
    on(&[Process], "guard", |pilot| {
        let mut pilot = pilot.up();
        let source = Watched::of(&mut pilot, "1s");
        pilot.xtask(&UP).expect(0);
        let runs = pilot.runs().len();
        let all_well = pilot.xtask(&["guard", "--for", "2s"]).expect(0);
        assert!(all_well.out.contains("guarded to the end: all is well"), "{}", all_well.out);
        // Whoever ends it has seen enough.
        let child = guard(&pilot, &[]);
        until("listening", || listens(&child));
        signal(&child, "-INT");
        let ended = ran(child.wait_with_output().unwrap()).expect(0);
        assert_eq!(ended.finished()["exit_code"], 0);
        assert_eq!(pilot.runs().len(), runs);
        // While it looks, others work; and what they do is no fault.
        let child = guard(&pilot, &["--for", "10m"]);
        until("listening", || listens(&child));
        pilot.xtask(&["reset", "--yes", "--keep-data"]).expect(0);
        source.turns_bad();
        let ended = ran(child.wait_with_output().unwrap()).expect(0);
        let finished = ended.finished();
        assert_eq!(
            (&finished["outcome"], &finished["release"]),
            (&json!("restored"), &json!("r1")),
            "{finished}"
        );
        assert!(ended.out.contains("release r2 did not stay well: all is there"), "{}", ended.out);
        // Times count from the beginning of the rollback.
        assert!(finished["downtime_ms"].is_u64() && finished["gate_closed_ms"].is_u64(), "{finished}");
        assert_eq!(commands(&pilot)[runs..], ["reset", "rollback"]);
        serves(&pilot);
        assert!(try_http("GET", pilot.port("engine"), "/healthz", &[], None).is_ok());
    });
}
