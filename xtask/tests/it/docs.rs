//! Every command that `README.md` and `docs/` show is one that there is: each is taken apart by the
//! real program, and those that only look are run. Links and the exit table are checked too.

use crate::pilot::Engine::Process;
use crate::pilot::{on, workspace};
use std::process::Command;

fn pages() -> Vec<(String, String)> {
    let root = workspace();
    let mut paths = vec![root.join("README.md")];
    paths.extend(std::fs::read_dir(root.join("docs")).unwrap().flatten().map(|e| e.path()));
    paths.retain(|p| p.extension().is_some_and(|e| e == "md"));
    let name = |p: &std::path::Path| p.strip_prefix(&root).unwrap().display().to_string();
    paths.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

/// The `cargo xtask …` lines of code blocks, and with `spans` of code in sentences, as words; also those of an installed
/// `xtask`.
pub fn commands(page: &str, spans: bool) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        if line.starts_with("```") {
            fenced = line.trim() == "```sh";
        } else if fenced {
            found.push(line.split(" #").next().unwrap_or_default().trim());
        } else if spans {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found.retain(|c| c.starts_with("cargo xtask ") || c.starts_with("xtask --"));
    found.into_iter().map(words).collect()
}

/// As the shell takes it apart, quotes included, without the program. Placeholders become an example.
pub fn words(command: &str) -> Vec<String> {
    let command = command.strip_prefix("cargo ").unwrap_or(command);
    let mut all: Vec<String> = Vec::new();
    for (n, part) in command.split('"').enumerate() {
        if n % 2 == 1 {
            all.push(part.to_owned());
        } else {
            all.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    let example = |word: String| match word.as_str() {
        "RELEASE" => "r1".to_owned(),
        "REV" => "HEAD".to_owned(),
        "NAME" => "other".to_owned(),
        "FILE" => "r1.release.tar".to_owned(),
        _ => word,
    };
    all.into_iter().skip(1).map(example).collect()
}

#[test]
fn every_command_in_the_docs_is_one_that_there_is() {
    let mut count = 0;
    for (name, text) in pages() {
        for words in commands(&text, true) {
            count += 1;
            // `--help` behind the rest: clap takes everything before it apart and does nothing.
            let output =
                Command::new(env!("CARGO_BIN_EXE_xtask")).args(&words).arg("--help").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {words:?}: {said}");
        }
    }
    assert!(count > 20, "only {count} commands found: is this still reading the docs?");
}

#[test]
fn the_daily_commands_of_the_readme_run() {
    on(&[Process], "docs", |pilot| {
        let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
        let daily = readme.split("## Daily use").nth(1).unwrap().split("\n## ").next().unwrap();
        let all = commands(daily, false);
        assert!(all.len() >= 10, "only {} commands", all.len());
        for words in all {
            let args: Vec<&str> = words.iter().map(String::as_str).collect();
            // There is one release, so there is nothing before it. `remote.rs` has a repository, `migration.rs` a snapshot.
            let elsewhere = ["push", "pull", "--remote", "--with-data"];
            let refused = elsewhere.iter().any(|word| args.contains(word));
            // Nobody to call is named in the manifest that is shipped.
            let refused_look = i32::from(args[0] == "preflight");
            let expected = if args.contains(&"previous") { 6 } else { i32::from(refused) * 2 + refused_look };
            pilot.xtask(&args).expect(expected);
        }
    });
}

#[test]
fn the_exit_table_is_the_same_everywhere_and_links_lead_somewhere() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let table: Vec<&str> =
        help.split("Exit codes:").nth(1).unwrap().lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(table.len(), 11);
    let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
    for line in table {
        let (code, meaning) = line.split_once(' ').unwrap();
        assert!(readme.contains(&format!("| {code} | {} |", meaning.trim())), "README lacks {line}");
    }
    for (name, text) in pages() {
        let folder = workspace().join(&name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            assert!(path.is_empty() || folder.join(path).exists(), "{name} links to {link}");
        }
    }
}

#[test]
fn every_command_has_an_example_in_its_help() {
    let help = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(args).arg("--help").output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let commands = help(&[]);
    let list = commands.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<&str> =
        list.lines().filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").collect();
    assert!(names.contains(&"rollback") && !names.contains(&"supervise"), "{names:?}");
    for name in names {
        assert!(help(&[name]).contains(&format!("cargo xtask {name}")), "{name} has no example");
    }
}
