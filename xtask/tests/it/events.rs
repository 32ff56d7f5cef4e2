//! Every line that real commands write is one of `docs/events.schema.json`, and `docs/events.md` shows such lines.

use crate::pilot::Engine::Process;
use crate::pilot::{Folder, Pilot, on, ran, skip, workspace};
use crate::schema::{Schema, spoiled};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;

/// Checks lines, and keeps them.
struct Lines {
    schema: Schema,
    all: Vec<Value>,
}

impl Lines {
    fn new() -> Self {
        Self { schema: Schema::shipped(), all: Vec::new() }
    }

    /// Each of these lines is a complete event.
    #[track_caller]
    fn check(&mut self, lines: &str) {
        assert!(!lines.trim().is_empty(), "nothing was written");
        for line in lines.lines() {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"));
            assert_eq!(self.schema.line(&event), Ok(()), "{line}");
            self.all.push(event);
        }
    }

    /// The output of a command, whatever its exit code.
    #[track_caller]
    fn ran(&mut self, pilot: &Pilot, args: &[&str], code: i32) {
        let ran = pilot.json(args).expect(code);
        self.check(&ran.out);
        assert_eq!(ran.finished()["exit_code"], code);
    }

    /// There was one of each kind.
    #[track_caller]
    fn has_every_kind(&self) {
        let seen: BTreeSet<&str> = self.all.iter().filter_map(|event| event["event"].as_str()).collect();
        let kinds = self.schema.kinds();
        assert_eq!(seen, kinds.iter().map(String::as_str).collect());
    }
}

#[test]
fn every_line_of_every_kind_of_run_is_in_the_schema() {
    on(&[Process], "events", |pilot| {
        let mut lines = Lines::new();
        lines.ran(&pilot, &["rollback"], 6);
        lines.ran(&pilot, &["up"], 0);
        lines.ran(&pilot, &["rolback"], 2);
        pilot.edit_env("ENABLE_CACHE", "true");
        lines.ran(&pilot, &["rollback", "--plan"], 0);
        lines.ran(&pilot, &["rollback"], 0);
        lines.ran(&pilot, &["backup", "create"], 0);
        lines.ran(&pilot, &["reset", "--yes"], 0);
        lines.ran(&pilot, &["kill-switch", "on", "--reason", "a test"], 0);
        pilot.edit_env("ENABLE_CACHE", "true");
        lines.ran(&pilot, &["rollback"], 9);
        lines.ran(&pilot, &["kill-switch", "off"], 0);
        for look in ["status", "assess", "smoke", "flags", "host"] {
            lines.ran(&pilot, &[look], 0);
        }
        // A deployment that fails its checks, and a rollback whose time is over at once.
        pilot.edit_env("ENABLE_CACHE", "true");
        lines.ran(&pilot, &["up", "--stay"], 1);
        lines.ran(&pilot, &["rollback", "--budget", "1ms"], 3);
        for run in pilot.runs() {
            lines.check(&std::fs::read_to_string(run.join("journal.jsonl")).unwrap());
        }
        lines.has_every_kind();
        an_implementation_of_the_whole_standard_agrees(&lines);
    });
}

/// Python's jsonschema takes each line, and none that has a key more.
fn an_implementation_of_the_whole_standard_agrees(lines: &Lines) {
    let has = Command::new("python3").args(["-c", "import jsonschema"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        return skip("jsonschema", "python3-jsonschema is not installed");
    }
    let good: Vec<&Value> = lines.all.iter().collect();
    let bad: Vec<Value> = good.iter().filter(|e| e["event"] != "result").flat_map(|e| spoiled(e)).collect();
    assert!(bad.len() > 100);
    // Not all: they take a second for each thousand.
    let bad: Vec<&Value> = bad.iter().step_by(bad.len() / 500 + 1).collect();
    let folder = Folder::new("jsonschema");
    let path = folder.0.join("lines.json");
    std::fs::write(&path, json!({"schema": lines.schema.0, "good": good, "bad": bad}).to_string()).unwrap();
    let script = "import json, sys\n\
                  from jsonschema import Draft202012Validator as Standard\n\
                  read = json.load(open(sys.argv[1]))\n\
                  Standard.check_schema(read['schema'])\n\
                  standard = Standard(read['schema'])\n\
                  for line in read['good']: standard.validate(line)\n\
                  for line in read['bad']: assert not standard.is_valid(line), line\n";
    let checked = Command::new("python3").args(["-c", script]).arg(&path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn every_line_of_a_drill_is_in_the_schema() {
    on(&[Process], "events-drill", |pilot| {
        let mut lines = Lines::new();
        lines.ran(&pilot, &["drill"], 0);
        lines.ran(&pilot, &["drill", "--fault", "corrupt-store"], 0);
    });
}

#[test]
fn the_page_shows_lines_that_are_in_the_schema() {
    let mut lines = Lines::new();
    let page = std::fs::read_to_string(workspace().join("docs/events.md")).unwrap();
    let blocks: Vec<&str> =
        page.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    for block in blocks {
        lines.check(block);
    }
    lines.has_every_kind();
}

#[test]
fn a_command_that_is_mistyped_outside_of_any_stack_still_ends_with_an_event() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["--format", "json", "--wrong"]).output();
    Lines::new().check(&ran(output.unwrap()).expect(2).out);
}
