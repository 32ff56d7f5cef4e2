//! What a command says is what was seen: whose fault a failure is, that it was interrupted, how it ended.

use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Folder, Pilot, Ran, lose_records, on, program, ran, workspace};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn an_engine_is_not_blamed_for_a_budget_that_ended(pilot: &Pilot) {
    let cases = [
        &["rollback", "--budget", "1ms"][..],
        &["rollback", "--budget", "1ms", "--plan"],
        &["rollback", "--budget", "1ms", "--scenario", "reset"],
    ];
    for args in cases {
        let told = pilot.xtask(args).expect(3);
        assert!(told.err.contains("budget"), "{args:?}: {}", told.all());
        assert!(!told.all().contains("does not answer"), "{args:?}: {}", told.all());
        assert!(!told.all().contains("restart-engine"), "{args:?}: {}", told.all());
    }
    pilot.xtask(&["rollback"]).expect(0);
}

fn a_fresh_clone_is_told_where_the_running_pilots_state_is(pilot: &Pilot) {
    // If the engine has lost what it keeps for every client, or an older version has deployed.
    lose_records(&pilot.project);
    let other = Folder::new("other-state");
    let mut command = pilot.command(&["rollback"]);
    let refused = ran(command.env("PILOT_STATE_DIR", &other.0).output().unwrap()).expect(6);
    let next = pilot.suggested("rollback");
    assert!(refused.err.contains(&next), "{}", refused.err);
}

/// One of those in `all_on_one.rs`.
pub fn what_is_said_of_docker(pilot: &mut Pilot) {
    a_fresh_clone_is_told_where_the_running_pilots_state_is(pilot);
    an_engine_is_not_blamed_for_a_budget_that_ended(pilot);
}

#[test]
fn diagnose_claims_nothing_about_releases_that_nobody_tried() {
    on(&[Process], "untried", |pilot| {
        let pilot = pilot.up();
        pilot.xtask(&["down"]).expect(0);
        let told = pilot.xtask(&["diagnose"]).expect(1);
        assert!(!told.all().contains("verified"), "{}", told.all());
        assert!(told.err.contains("Level 1") && told.err.contains("try a rollback first"), "{}", told.err);
    });
}

#[test]
fn the_exit_code_is_the_same_if_nobody_reads_the_messages() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["--stack", "/nonexistent", "status"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

/// Sends a signal to a command and waits for its end.
fn signalled(mut child: std::process::Child, signal: &str) -> Ran {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    Ran { code: child.wait().unwrap().code().unwrap_or(-1), out, err }
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while std::fs::read_to_string(path).map_or(true, |text| text.trim().is_empty()) {
        assert!(start.elapsed() < Duration::from_secs(60), "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn an_interrupted_build_is_told_as_interrupted() {
    on(&[Process], "ctrl-c", |mut pilot| {
        let cargo = pilot.folder.0.join("bin/cargo");
        let pid = pilot.folder.0.join("pid");
        program(&cargo, &format!("#!/bin/sh\nsleep 600 &\necho $! > {}\nwait\n", pid.display()));
        pilot.set("CARGO", &cargo.display().to_string());
        for (signal, format) in [("-INT", "text"), ("-TERM", "json"), ("-INT", "json"), ("-TERM", "text")] {
            std::fs::remove_file(&pid).ok();
            let mut command = pilot.command(&["--format", format, "up"]);
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            wait_for(&pid);
            let ended = signalled(child, signal).expect(130);
            assert!(ended.all().contains("the same command continues it"), "{}", ended.all());
            assert!(
                !ended.all().contains("correct the source") && !ended.all().contains("cannot build"),
                "{ended:?}"
            );
            if format == "json" {
                let finished = ended.finished();
                assert_eq!((&finished["exit_code"], &finished["outcome"]), (&json!(130), &Value::Null));
            } else {
                assert_eq!(ended.all().matches("interrupted").count(), 1, "{}", ended.all());
            }
            // The kernel may take a moment to collect it.
            let child = std::fs::read_to_string(&pid).unwrap();
            assert!(crate::notes::within(Duration::from_secs(5), || !lives(&child)));
            assert_eq!(pilot.told(&["releases", "list"], 0)["releases"], json!([]));
        }
        // A worktree that was left is gone with the next.
        std::fs::remove_file(&pid).ok();
        let mut command = pilot.command(&["up", "--from", "HEAD"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(&pid);
        signalled(child, "-INT").expect(130);
        pilot.set("CARGO", "false");
        pilot.xtask(&["up", "--from", "HEAD"]).expect(1);
        let trees = Command::new("git").args(["worktree", "list"]).current_dir(workspace()).output().unwrap();
        let trees = String::from_utf8(trees.stdout).unwrap();
        assert!(!trees.contains(&pilot.state().display().to_string()), "{trees}");
        pilot.set("CARGO", "cargo");
        pilot.xtask(&["up"]).expect(0);
    });
}

#[test]
fn a_signal_at_any_event_leaves_one_last_word_and_a_pilot_to_take_up() {
    on(&[Process], "signalled", |pilot| {
        let pilot = pilot.up();
        let mut interrupted = 0;
        for events in (1..60).step_by(2) {
            pilot.edit_env("USE_SIMULATION", "false");
            let mut command = pilot.command(&["--format", "json", "rollback"]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let first: Vec<String> = lines.by_ref().take(events).map(Result::unwrap).collect();
            Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
            let rest = lines.map(Result::unwrap);
            let last: Value = serde_json::from_str(&first.into_iter().chain(rest).last().unwrap()).unwrap();
            let code = child.wait().unwrap().code();
            assert_eq!(last["event"], "finished", "after {events} events: {last}");
            assert_eq!(last["exit_code"].as_i64().map(|n| n as i32), code, "after {events} events: {last}");
            assert!([Some(0), Some(130)].contains(&code), "after {events} events: {last}");
            let finished = pilot.json(&["rollback"]).expect(0).finished();
            assert_eq!(finished["release"], "r1", "after {events} events");
            assert_eq!(pilot.running_values("engine")["USE_SIMULATION"], true, "after {events} events");
            if code == Some(0) {
                break;
            }
            interrupted += 1;
        }
        assert!(interrupted > 2, "only {interrupted}");
    });
}

#[test]
fn an_interrupted_drill_takes_its_pilot_down() {
    on(&[Process, Compose2], "drill-c", |pilot| {
        let mut command = pilot.command(&["--format", "json", "drill"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("\"step\":\"verify")), "the drill came to no verification");
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        let last: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
        assert_eq!((&last["event"], &last["exit_code"]), (&json!("finished"), &json!(130)), "{last}");
        let ended = ran(child.wait_with_output().unwrap()).expect(130);
        for drill in std::fs::read_dir(pilot.state().join("drills")).unwrap().flatten() {
            let names = std::fs::read_dir(drill.path()).unwrap().flatten().map(|entry| entry.file_name());
            let left: Vec<_> = names.filter(|name| name != "rollbacks").collect();
            assert!(left.is_empty(), "{left:?} {}", ended.err);
            if pilot.engine != Process {
                let project = drill.file_name().to_string_lossy().into_owned();
                let label = format!("label=com.docker.compose.project={project}");
                assert_eq!(pilot.docker(&["ps", "-a", "--quiet", "--filter", &label]), "");
                assert_eq!(pilot.docker(&["images", "--quiet", &format!("{project}-*")]), "");
            }
        }
    });
}

/// Waits for a prompt at a terminal, lets the question wait, and says yes.
fn answered_late(pilot: &Pilot, words: &[&str], late: Duration) -> Ran {
    let command = pilot.command(words);
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> = all.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    // script(1) of util-linux gives the command a terminal and hands on what it is told.
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &quoted.join(" "), "/dev/null"]);
    terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.current_dir(&pilot.root);
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("go on?") {
        let mut more = [0; 512];
        let read = output.read(&mut more).unwrap();
        assert!(read > 0, "nothing was asked: {}", String::from_utf8_lossy(&said));
        said.extend(&more[..read]);
    }
    std::thread::sleep(late);
    input.write_all(b"y\n").unwrap();
    output.read_to_end(&mut said).unwrap();
    let code = child.wait().unwrap().code().unwrap_or(-1);
    Ran { code, out: String::from_utf8_lossy(&said).into_owned(), err: String::new() }
}

#[test]
fn the_time_that_a_person_takes_to_answer_is_not_the_runs() {
    on(&[Process], "prompt", |pilot| {
        let pilot = pilot.up();
        let (late, start) = (Duration::from_secs(3), Instant::now());
        answered_late(&pilot, &["reset"], late).expect(0);
        let whole = start.elapsed();
        let report = std::fs::read_to_string(pilot.runs().last().unwrap().join("report.json")).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let restored = Duration::from_millis(report["restored_ms"].as_u64().unwrap());
        assert!(restored + late <= whole, "restored after {restored:?} of {whole:?}");
        // The budget is the run's too.
        pilot.xtask(&["rollback", "--scenario", "reset", "--budget", "1ms", "--yes"]).expect(3);
    });
}

#[test]
fn a_mistyped_command_ends_with_the_last_event_too() {
    on(&[Process], "mistyped", |pilot| {
        let cases = [
            &["--format", "json", "rolback"][..],
            &["--format=json", "rollback", "--no-such-flag"],
            &["rollback", "--format=json", "--to"],
            &["rollback", "--budget", "soon", "--format", "json"],
            &["--format", "json"],
            &["releases", "--format", "json"],
            &["up", "--tag", "a", "--from", "b", "--format", "json"],
            &["--format", "json", "--format", "json", "status"],
        ];
        for args in cases {
            let finished = pilot.xtask(args).expect(2).finished();
            assert_eq!(
                (&finished["exit_code"], &finished["outcome"]),
                (&json!(2), &json!("refused")),
                "{args:?}"
            );
            assert!(finished["error"].as_str().is_some_and(|error| !error.is_empty()), "{args:?}");
        }
        for args in [&["--format", "json", "--help"][..], &["help", "rollback"], &["rollback", "--help"]] {
            assert!(pilot.xtask(args).expect(0).out.contains("Usage"), "{args:?}");
        }
        let text = pilot.xtask(&["rolback"]).expect(2);
        assert!(text.out.is_empty() && text.err.contains("rollback"), "{text:?}");
    });
}

#[test]
fn the_shim_finds_the_kept_program_of_every_project() {
    let tree = Folder::new("shim");
    let scripts = tree.0.join("scripts");
    std::fs::create_dir_all(&scripts).unwrap();
    let shim = scripts.join("pilot-rollback.sh");
    std::fs::copy(workspace().join("scripts/pilot-rollback.sh"), &shim).unwrap();
    let kept = |folder: &str, name: &str| {
        let path = tree.0.join(folder).join("xtask");
        program(&path, &format!("#!/bin/sh\necho {name} \"$@\"\nexit 3\n"));
    };
    kept(".pilot", "default");
    kept(".pilot/projects/other", "other");
    kept("elsewhere", "elsewhere");
    program(&tree.0.join("bin/cargo"), "#!/bin/sh\necho cargo \"$@\"\n");
    let path = format!("{}:{}", tree.0.join("bin").display(), std::env::var("PATH").unwrap());
    let run = |args: &[&str], state: Option<&str>| {
        let mut command = Command::new("sh");
        command.arg(&shim).args(args).current_dir(&tree.0).env("PATH", &path).env_remove("PILOT_STATE_DIR");
        command.envs(state.map(|dir| ("PILOT_STATE_DIR", dir)));
        ran(command.output().unwrap())
    };
    let elsewhere: PathBuf = tree.0.join("elsewhere");
    let elsewhere = elsewhere.display().to_string();
    let cases: [(&[&str], Option<&str>, &str); 9] = [
        (&["--plan"], None, "default rollback --plan"),
        (&["--project", "pilot-deploy"], None, "default rollback --project pilot-deploy"),
        (&["--project", "other", "--plan"], None, "other rollback --project other --plan"),
        (&["--plan", "--project=other"], None, "other rollback --plan --project=other"),
        (&["--to", "a b", "--project", "other"], None, "other rollback --to a b --project other"),
        (&["--project", "third"], None, "cargo xtask rollback --project third"),
        (&["--project", "other"], Some(&elsewhere), "elsewhere rollback --project other"),
        (&["--project", "other"], Some("elsewhere"), "elsewhere rollback --project other"),
        (&["--project", "other"], Some(""), "other rollback --project other"),
    ];
    for (args, state, said) in cases {
        let told = run(args, state);
        assert_eq!(told.out.trim(), said, "{args:?} {state:?}: {}", told.err);
        assert_eq!(told.code, if said.starts_with("cargo") { 0 } else { 3 });
    }
}

#[test]
fn status_and_assess_look_with_the_same_eyes() {
    on(&[Process], "eyes", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("LOG_LEVEL", "loud");
        pilot.xtask(&["up", "--stay"]).expect(1);
        let (status, assess) = (pilot.told(&["status"], 1), pilot.told(&["assess"], 1));
        for what in ["release", "target", "drift"] {
            assert_eq!(status[what], assess[what], "{what}");
        }
        assert_eq!((&status["release"], &status["target"]), (&json!("r2"), &json!("r1")));
        assert!(!status["drift"].as_array().unwrap().is_empty());
        for command in ["status", "assess", "diagnose"] {
            let shown = pilot.xtask(&[command]).expect(1).out;
            assert!(shown.contains("drift from r1") && shown.contains("release r2"), "{command}: {shown}");
        }
        pilot.xtask(&["rollback"]).expect(0);
        assert!(pilot.xtask(&["status"]).expect(0).out.contains("drift from r1"));
    });
}

#[test]
fn a_look_sends_nobody_to_a_release_that_is_not_there() {
    on(&[Process], "nowhere", |pilot| {
        pilot.xtask(&["up"]).expect(0);
        std::fs::remove_dir_all(pilot.state().join("releases")).unwrap();
        // Which release runs can't be told, and that is said.
        let told = pilot.xtask(&["status"]).expect(1);
        assert!(told.out.contains("cannot tell which release is deployed"), "{}", told.out);
        std::fs::remove_file(pilot.state().join("current")).unwrap();
        pilot.edit_env("LOG_LEVEL", "loud");
        pilot.xtask(&["up"]).expect(1);
        let told = pilot.told(&["assess"], 1);
        assert_eq!((&told["target"], &told["drift_from"]), (&Value::Null, &json!("r1")), "{told}");
        for command in ["status", "assess", "diagnose"] {
            let told = pilot.xtask(&[command]).expect(1);
            assert!(
                told.err.contains(&format!("next: {}", pilot.suggested("up"))),
                "{command}: {}",
                told.all()
            );
            assert!(!told.all().contains(&pilot.suggested("rollback")), "{command}: {}", told.all());
        }
    });
}
