//! `docs/rollback.md`: the replacement of every command of the old plan, and every command of its code
//! blocks, runs on a healthy pilot; and the shims pass arguments and exit codes on.

use crate::docs::{commands, words};
use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Folder, Pilot, on, program, ran, workspace};
use std::collections::BTreeSet;
use std::process::Command;

fn page() -> String {
    std::fs::read_to_string(workspace().join("docs/rollback.md")).unwrap()
}

/// The rows of the table, as the old command and its replacement.
fn rows() -> Vec<(String, String)> {
    let page = page();
    let table = page.split("and its replacement\n").nth(1).unwrap();
    let cells = |line: &str| {
        // A pipe within code is written `\|`.
        let line = line.replace("\\|", "\u{1}");
        let cells: Vec<String> =
            line.split('|').map(|cell| cell.replace('\u{1}', "|").trim().to_owned()).collect();
        (cells.len() == 4).then(|| (cells[1].clone(), cells[2].clone()))
    };
    let rows = table.lines().filter_map(cells);
    rows.filter(|(old, heir)| !old.starts_with("**") && !old.starts_with("---") && heir != "replacement")
        .collect()
}

/// A pilot with two known-good releases and a backup.
fn ready(pilot: Pilot) -> Pilot {
    let pilot = pilot.up();
    pilot.edit_env("DEFAULT_SEED", "7");
    pilot.xtask(&["up"]).expect(0);
    pilot.xtask(&["backup", "create"]).expect(0);
    pilot
}

/// How a command has to end on a pilot that is well. Restarting Docker is asked for, and nobody answers; no snapshot was
/// taken.
fn expected(args: &[String]) -> i32 {
    // Nobody to call is named in the manifest that is shipped.
    if args[0] == "preflight" {
        return 1;
    }
    if args.iter().any(|arg| ["--restart-engine", "--with-data"].contains(&arg.as_str())) { 2 } else { 0 }
}

/// Commands that leave everything as it was.
const LOOKS: [&str; 8] =
    ["assess", "diagnose", "evidence", "flags", "preflight", "smoke", "snapshot", "status"];

fn run_each(pilot: &Pilot, all: &BTreeSet<Vec<String>>) {
    let mut touched = true;
    for args in all {
        // Prometheus needs an image; `observability.rs` runs it with one.
        if args[0] == "observe" {
            continue;
        }
        // Whatever the one before did to it.
        if touched {
            pilot.xtask(&["rollback", "--open"]).expect(0);
        }
        let ran = pilot.xtask(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, expected(args), "{args:?}\n{}", ran.all());
        touched = !LOOKS.contains(&args[0].as_str());
    }
}

fn heirs() -> BTreeSet<Vec<String>> {
    let rows = rows();
    // Fewer would mean that a section of the plan was forgotten.
    assert!(rows.len() >= 60, "only {} rows", rows.len());
    let heirs: BTreeSet<Vec<String>> = rows
        .iter()
        .map(|(old, heir)| {
            let heir = heir.strip_prefix('`').and_then(|h| h.strip_suffix('`'));
            let heir = heir.unwrap_or_else(|| panic!("{old} has no heir in code"));
            assert!(heir.starts_with("cargo xtask "), "{old}: {heir}");
            words(heir)
        })
        .collect();
    assert!(heirs.len() >= 20, "only {} heirs", heirs.len());
    heirs
}

#[test]
fn every_heir_of_the_old_plan_runs_on_docker() {
    on(&[Compose2], "heirs", |pilot| run_each(&ready(pilot), &heirs()));
}

#[test]
fn every_heir_and_every_command_of_the_page_runs() {
    let page: BTreeSet<Vec<String>> = commands(&page(), false).into_iter().collect();
    assert!(page.len() >= 25, "only {} commands", page.len());
    // Many are both; each is run once.
    let all = page.union(&heirs()).cloned().collect();
    on(&[Process], "page", |pilot| run_each(&ready(pilot), &all));
}

#[test]
fn the_shims_pass_arguments_and_exit_codes_on() {
    // Cargo itself knows the command that they call.
    let known = Command::new("cargo").arg("--list").current_dir(workspace()).output().unwrap();
    assert!(ran(known).out.contains("alias: run --package xtask --"));
    let tools = Folder::new("shims");
    program(&tools.0.join("cargo"), "#!/bin/sh\nprintf '%s|' \"$PWD\" \"$@\"\nexit 7\n");
    let path = format!("{}:{}", tools.0.display(), std::env::var("PATH").unwrap());
    for (shim, command) in [
        ("pilot-deploy/scripts/pilot-up.sh", "up"),
        ("pilot-deploy/scripts/pilot-down.sh", "down"),
        ("pilot-deploy/scripts/pilot-reset.sh", "reset"),
        ("pilot-deploy/scripts/pilot-observe.sh", "observe"),
        ("scripts/pilot-smoke.sh", "smoke"),
        ("scripts/pilot-snapshot.sh", "snapshot"),
    ] {
        let file = workspace().join(shim);
        assert!(std::fs::read_to_string(&file).unwrap().lines().count() <= 3, "{shim} is more than a shim");
        // From anywhere.
        let mut called = Command::new(&file);
        called.args(["--a", "b c"]).current_dir(std::env::temp_dir()).env("PATH", &path);
        let called = ran(called.output().unwrap()).expect(7);
        assert_eq!(called.out, format!("{}|xtask|{command}|--a|b c|", workspace().display()), "{shim}");
    }
}
