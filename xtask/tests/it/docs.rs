//! Every command that `README.md` and `docs/` show is one that there is, also in the jobs of pipelines: each is taken
//! apart by the real program, and those of daily use, of the tutorial and of the jobs are run. Links and the exit table
//! are checked too.

use crate::pilot::Engine::Process;
use crate::pilot::{on, workspace};
use std::process::Command;
use yaml_rust2::{Yaml, YamlLoader};

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

/// The commands in the YAML blocks of a page: those under `run`, `script` and `before_script`, as they are written.
fn jobs(page: &str) -> Vec<String> {
    fn walk(value: &Yaml, within: bool, all: &mut Vec<String>) {
        match value {
            Yaml::String(text) if within => all.extend(text.lines().map(str::to_owned)),
            Yaml::Array(list) => list.iter().for_each(|one| walk(one, within, all)),
            Yaml::Hash(map) => map.iter().for_each(|(key, value)| {
                let runs = matches!(key.as_str(), Some("run" | "script" | "before_script"));
                walk(value, runs, all);
            }),
            _ => {}
        }
    }
    let mut all = Vec::new();
    for block in page.split("```yaml\n").skip(1) {
        let text = block.split("\n```").next().unwrap();
        let read = YamlLoader::load_from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
        read.iter().for_each(|document| walk(document, false, &mut all));
    }
    all
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
        let in_jobs = jobs(&text).into_iter().filter(|line| line.contains("xtask "));
        for words in commands(&text, true).into_iter().chain(in_jobs.map(|line| words(&line))) {
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
            let elsewhere = ["push", "--remote", "--with-data"];
            let refused =
                elsewhere.iter().any(|word| args.contains(word)) || args.starts_with(&["backup", "pull"]);
            // Nobody to call is named in the manifest that is shipped.
            let refused_look = i32::from(args[0] == "preflight");
            let expected = if args.contains(&"previous") { 6 } else { i32::from(refused) * 2 + refused_look };
            pilot.xtask(&args).expect(expected);
        }
    });
}

/// The tutorial, from its first `up` to its `down`: each command ends as the page says.
#[test]
fn the_tutorial_runs() {
    let page = std::fs::read_to_string(workspace().join("docs/tutorial.md")).unwrap();
    on(&[Process], "docs-tutorial", |pilot| {
        let (mut count, mut sh) = (0, false);
        for line in page.lines() {
            if line.starts_with("```") {
                sh = line == "```sh";
            } else if sh && line.starts_with("sed ") {
                // The setting that the reader breaks.
                assert_eq!(
                    line,
                    "sed -i 's/^USE_SIMULATION=true/USE_SIMULATION=false/' pilot-deploy/.env.poc"
                );
                pilot.edit_env("USE_SIMULATION", "false");
            } else if sh && line.starts_with("cargo xtask ") && !line.starts_with("cargo xtask completions") {
                let words = words(line.split(" #").next().unwrap());
                let args: Vec<&str> = words.iter().map(String::as_str).collect();
                // Where the page says so in a comment, another code than 0.
                let code = line.split("exit code ").nth(1).map_or(0, |code| code.trim().parse().unwrap());
                let ran = pilot.xtask(&args).expect(code);
                count += 1;
                if args == ["status"] && pilot.setting("USE_SIMULATION") == "false" {
                    assert!(ran.out.contains("USE_SIMULATION is false, release r1 has true"), "{}", ran.out);
                }
            }
        }
        assert!(count >= 14, "only {count} commands: is this still reading the tutorial?");
    });
}

/// The jobs of `ci.md` on a pilot, each in a folder that has nothing but what the job itself makes.
#[test]
fn the_jobs_of_the_pipelines_run() {
    let page = std::fs::read_to_string(workspace().join("docs/ci.md")).unwrap();
    let all: Vec<String> = jobs(&page).into_iter().filter(|line| line.contains("xtask ")).collect();
    assert_eq!(all.len(), 6, "deploy, plan and drill, of two services: {all:?}");
    assert_eq!(all[..3], all[3..], "the two services do not run the same commands");
    on(&[Process], "docs-ci", |mut pilot| {
        pilot.set("PILOT_REPORTS", "reports");
        pilot.root = pilot.folder.0.clone();
        let stack = workspace().join("pilot-deploy").display().to_string();
        let run = |line: &str| {
            let words = words(line);
            let args: Vec<&str> = words
                .iter()
                .map(|word| match word.as_str() {
                    "." => stack.as_str(),
                    // A service of the pilot.
                    "api" => "engine",
                    word => word,
                })
                .collect();
            pilot.xtask(&args)
        };
        let [deploy, plan, drill] = [&all[0], &all[1], &all[2]];
        run(deploy).expect(0);
        assert!(run(plan).expect(0).out.contains("nothing to do"));
        run(drill).expect(0);
        let reports = std::fs::read_dir(pilot.root.join("reports")).unwrap().flatten();
        let junit = reports.filter(|run| run.path().join("report.xml").exists()).count();
        assert_eq!(junit, 2, "of the deployment and of the drill");

        // The next night: a checkout removes what git does not track. Somebody has changed a setting by hand, and the plan
        // is there to be executed.
        std::fs::remove_file(pilot.root.join("plan.json")).unwrap();
        pilot.edit_env("QUOTA_PER_RUN", "25");
        run(plan).expect(8);
        let agreed =
            commands(&page, true).into_iter().find(|words| words.contains(&"--plan-file".to_owned()));
        run(&format!("xtask {}", agreed.unwrap().join(" "))).expect(0);
        assert_eq!(pilot.setting("QUOTA_PER_RUN"), "24");
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

/// Every test that a page names as `file.rs::name` is one that there is.
#[test]
fn every_test_that_the_docs_name_exists() {
    let (mut count, mut missing) = (0, Vec::new());
    for (page, text) in pages() {
        let named = text.split('`').skip(1).step_by(2).filter_map(|span| span.split_once(".rs::"));
        for (file, name) in named {
            let path = match file.strip_prefix("it/") {
                Some(file) => format!("xtask/tests/it/{file}.rs"),
                None => format!("xtask/src/{file}.rs"),
            };
            let code = std::fs::read_to_string(workspace().join(path)).unwrap_or_default();
            let is_there = code.contains("#[test]\n") && code.contains(&format!("fn {name}("));
            count += 1;
            if !is_there {
                missing.push(format!("{page}: {file}.rs::{name}"));
            }
        }
    }
    assert_eq!(missing, [""; 0]);
    assert!(count > 20, "only {count} tests are named");
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
