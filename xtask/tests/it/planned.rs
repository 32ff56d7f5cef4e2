//! Plans: what is shown, what the exit code says, and a plan that is saved and executed later; and what is said of mistakes.

use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, on, ran};
use std::fs::File;
use std::process::{Command, Stdio};

#[test]
fn a_saved_plan_is_executed_as_it_stands_and_refused_when_the_world_has_changed() {
    on(&[Process], "planned", |pilot| {
        let pilot = pilot.up();
        let file = pilot.folder.0.join("plan.json").display().to_string();
        let plan = |more: &[&str]| pilot.xtask(&[&["rollback", "--plan"], more].concat());
        assert!(plan(&["--detailed-exitcode"]).expect(0).out.contains("nothing to do"));
        pilot.edit_env("ENABLE_CACHE", "true");
        pilot.edit_env("ADMIN_TOKEN", "s3cr3t-of-the-attacker");
        let shown = plan(&["--detailed-exitcode", "--out", &file]).expect(8);
        for words in [
            "~ ENABLE_CACHE  true → false",
            "~ ADMIN_TOKEN",
            "if it fails: the gateway is stopped",
            "--plan-file",
        ] {
            assert!(shown.all().contains(words), "no {words} in {}", shown.all());
        }
        let saved = std::fs::read_to_string(&file).unwrap();
        assert!(!shown.all().contains("s3cr3t") && !saved.contains("s3cr3t"), "{saved}");
        // It is not overwritten, and nothing was changed.
        assert!(plan(&["--out", &file]).expect(2).err.contains("exists already"));
        assert_eq!(pilot.setting("ENABLE_CACHE"), "true");
        // The world changes by one setting.
        pilot.edit_env("DEFAULT_SEED", "7");
        let refused = pilot.xtask(&["rollback", "--plan-file", &file]).expect(2);
        assert!(refused.err.contains("this has changed since: the env file"), "{}", refused.err);
        assert_eq!((pilot.setting("ENABLE_CACHE"), pilot.runs().len()), ("true".to_owned(), 1));
        pilot.edit_env("DEFAULT_SEED", "42");
        pilot.xtask(&["kill-switch", "on", "--reason", "meanwhile"]).expect(0);
        let refused = pilot.xtask(&["rollback", "--plan-file", &file]).expect(2);
        assert!(refused.err.contains("the gate") && refused.err.contains("who holds"), "{}", refused.err);
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        // As it was: it runs as it stands.
        let done = pilot.json(&["rollback", "--plan-file", &file]).expect(0).finished();
        assert_eq!(done["outcome"], "restored");
        assert_eq!(pilot.setting("ENABLE_CACHE"), "false");
        pilot.xtask(&["rollback", "--plan-file", &file]).expect(2);
        // What is no plan, and another project's.
        let other = pilot.folder.0.join("other.json").display().to_string();
        std::fs::write(&other, saved.replace(&pilot.project, "another")).unwrap();
        assert!(
            pilot.xtask(&["rollback", "--plan-file", &other]).expect(2).err.contains("project \"another\"")
        );
        std::fs::write(&other, "{}").unwrap();
        assert!(pilot.xtask(&["rollback", "--plan-file", &other]).expect(2).err.contains("it is no plan"));
        // How long the public is out is known from the rollback before.
        pilot.edit_env("ENABLE_CACHE", "true");
        assert!(plan(&[]).expect(0).out.contains("in the rollback before"));
    });
}

#[test]
fn mistakes_are_told_with_what_there_is() {
    on(&[Process], "mistakes", |pilot| {
        let pilot = pilot.up();
        mistyped_project(&pilot);
        // Standard output that takes nothing.
        let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
        let code = |args: &[&str]| pilot.command(args).stdout(full()).output().unwrap().status.code();
        assert_eq!(code(&["status"]), Some(4));
        pilot.edit_env("ENABLE_CACHE", "true");
        // The work was done all the same.
        assert_eq!(code(&["rollback"]), Some(0));
        assert_eq!(pilot.setting("ENABLE_CACHE"), "false");
        // All settings are gone.
        let good = pilot.env_text();
        std::fs::write(pilot.env_path(), "").unwrap();
        let plan = pilot.xtask(&["status"]).expect(1).out;
        let settings = good.lines().filter(|line| line.contains('=') && !line.starts_with('#')).count();
        assert!(plan.contains(&format!("it is empty: {settings} settings are missing")), "{plan}");
        // A version is a target too; nobody is called for what went well.
        let back = pilot.xtask(&["rollback", "--to", "v1.0.0"]).expect(0);
        assert!(
            back.out.contains("release r1 serves again") && !back.all().contains("Level"),
            "{}",
            back.all()
        );
        let table = pilot.xtask(&["backup", "list"]).expect(0).out;
        assert!(table.lines().next().unwrap().contains("size") && table.contains(" KiB "), "{table}");
        // The kill switch with nothing running: what it says and what it is asked later are the same.
        pilot.xtask(&["down"]).expect(0);
        pilot.xtask(&["kill-switch", "on", "--reason", "nothing runs"]).expect(0);
        let asked = pilot.xtask(&["kill-switch", "status"]).expect(0);
        assert!(asked.out.contains("shut out") && asked.out.contains("nothing runs"), "{}", asked.out);
    });
}

fn mistyped_project(pilot: &Pilot) {
    let state = pilot.folder.0.join("none");
    let mistyped = format!("{}x", pilot.project);
    let status = |project: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["--project", project, "--engine", "process", "status"]).current_dir(&pilot.root);
        ran(command.env("PILOT_STATE_DIR", &state).output().unwrap())
    };
    let said = status(&mistyped).expect(2).err;
    assert!(
        said.contains(&format!("there is no project {mistyped}")) && said.contains("pilot-deploy"),
        "{said}"
    );
    assert!(!state.exists());
}

#[test]
fn looks_go_on_and_say_why_and_what_to_do() {
    on(&[Process], "watch", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("ENABLE_CACHE", "true");
        // Each look is an event, and the last one ends the command.
        let watched = pilot.json(&["status", "--watch", "100ms", "--times", "3"]).expect(1);
        let looks: Vec<_> = watched.events().into_iter().filter(|event| event["event"] == "result").collect();
        assert_eq!(looks.len(), 3);
        assert!(
            looks.iter().all(|look| look["value"]["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0)),
            "{looks:?}"
        );
        let shown = pilot.xtask(&["status", "--watch", "100ms", "--times", "2"]).expect(1).out;
        for words in
            ["answers in", "uses", "last runs", "up  deployed", "at work: nobody", "1 difference from"]
        {
            assert!(shown.contains(words), "no {words} in {shown}");
        }
        pilot.xtask(&["status", "--times", "2"]).expect(2);
        pilot.xtask(&["status", "--watch", "1s", "--times", "0"]).expect(2);
        let said = pilot.xtask(&["assess"]).expect(1).out;
        for words in
            ["✗ env file: ENABLE_CACHE is true", "why: the env file was edited", "do:  PILOT_STATE_DIR="]
        {
            assert!(said.contains(words), "no {words} in {said}");
        }
        // Newest last, and the logs of one service alone.
        let logs = pilot.xtask(&["logs", "engine", "--lines", "3"]).expect(0).out;
        assert_eq!(logs.lines().filter(|line| line.starts_with("engine  ")).count(), 3, "{logs}");
        assert!(pilot.xtask(&["logs"]).expect(0).out.contains("\njobs  "));
        let none = pilot.xtask(&["logs", "nothing"]).expect(2);
        assert!(none.err.contains("there are engine, gateway, jobs"), "{}", none.err);
        pilot.xtask(&["logs", "--lines", "0"]).expect(2);
    });
}
