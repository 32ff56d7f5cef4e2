//! Rules of the repository: module docs, lengths, and the one direction in which modules import.

use crate::pilot::workspace;
use std::path::{Path, PathBuf};

fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, all: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                all.push(path);
            }
        }
    }
    let root = workspace().join(folder);
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    assert!(paths.len() > 5, "{folder} has only {} files", paths.len());
    let name = |p: &Path| p.strip_prefix(&root).unwrap().display().to_string();
    paths.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

#[test]
fn every_module_says_what_it_is() {
    for folder in ["xtask/src", "xtask/tests", "pilot-deploy/services/src"] {
        for (name, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{folder}/{name} does not open with //!");
        }
    }
}

#[test]
fn files_fit_a_sitting() {
    for folder in ["xtask/src", "pilot-deploy/services/src"] {
        for (name, text) in sources(folder) {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
            assert!(code <= 480, "{folder}/{name} has {code} lines before its tests");
        }
    }
}

/// Data goes one way: a module imports no later stage.
#[test]
fn no_module_imports_a_later_stage() {
    let stages = [
        "ledger", "pilot", "hold", "run_dirs", "release", "engine", "backup", "host", "observe", "drift",
        "plan", "run", "view", "lockout", "execute", "deploy", "ending", "rollback",
    ];
    let all = sources("xtask/src");
    for (n, stage) in stages.iter().enumerate() {
        let files = all
            .iter()
            .filter(|(name, _)| name == &format!("{stage}.rs") || name.starts_with(&format!("{stage}/")));
        for (name, text) in files {
            for later in &stages[n + 1..] {
                let imports = [format!("crate::{later}::"), format!("crate::{later};")];
                assert!(imports.iter().all(|i| !text.contains(i)), "{name} imports {later}");
            }
        }
    }
}

/// Nothing that reaches beyond the pilot's own project.
#[test]
fn no_command_reaches_beyond_the_project() {
    for (name, text) in sources("xtask/src") {
        // `docker system df` only looks.
        let text = text.replace("\"system\", \"df\"", "");
        for word in ["\"prune\"", "\"system\"", "--volumes"] {
            assert!(!text.contains(word), "{name} has {word}");
        }
    }
}

/// A suggested command is a `Next`, which carries whose stack it is for; a literal would act on another.
#[test]
fn no_command_is_suggested_as_text() {
    for (name, text) in sources("xtask/src") {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().filter(|line| {
            let comment = line.trim_start().starts_with("//");
            let help = line.contains("after_help") || line.contains("Examples:") || line.contains("bin_name");
            !comment && !help && line.contains("cargo xtask")
        });
        // The module itself, who holds the lock, and the benchmark's row of that name.
        if !matches!(name.as_str(), "next.rs" | "lock.rs" | "bench/mod.rs") {
            assert_eq!(lines.collect::<Vec<_>>(), [""; 0], "{name}");
        }
    }
}
