//! Rules of the repository: module docs, lengths, and the one direction in which modules import.

use crate::pilot::workspace;
use std::collections::{BTreeMap, BTreeSet};
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
        "state_dir", "ledger", "pilot", "hold", "release", "engine", "backup", "host", "observe", "drift",
        "plan", "run", "view", "lockout", "execute", "deploy", "ending", "rollback",
    ];
    let all = sources("xtask/src");
    for (n, stage) in stages.iter().enumerate() {
        let files = all
            .iter()
            .filter(|(name, _)| name == &format!("{stage}.rs") || name.starts_with(&format!("{stage}/")));
        for (name, text) in files {
            for later in &stages[n + 1..] {
                assert!(imports(text).iter().all(|import| import != later), "{name} imports {later}");
            }
        }
    }
}

/// What a text imports of its own crate, by the first name of each path; `use crate::{a, b::c}` too.
fn imports(text: &str) -> Vec<String> {
    let word = |rest: &str| -> String {
        rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let paths = code.split("crate::").skip(1);
    let names = paths.flat_map(|rest| match rest.strip_prefix('{') {
        None => vec![word(rest)],
        Some(group) => {
            let mut depth = 0;
            let end = group.find(|c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                depth < 0
            });
            let mut level = 0;
            let parts = group[..end.unwrap_or(0)].split(|c| {
                level += i32::from(c == '{') - i32::from(c == '}');
                level == 0 && c == ','
            });
            parts.map(word).collect()
        }
    });
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn grouped_imports_are_read_too() {
    let text = "use crate::{a, b::{c, d}, e};\nuse crate::f::G;\nfn x() { crate::h::i(); }\n#[cfg(test)] use crate::j;";
    assert_eq!(imports(text), ["a", "b", "e", "f", "h"]);
}

/// Modules import in one direction: no two of them need each other. The files of a folder are one module.
#[test]
fn no_module_is_in_a_circle() {
    for folder in ["xtask/src", "pilot-deploy/services/src"] {
        let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, text) in sources(folder) {
            let module = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
            let wanted = imports(&text).into_iter().filter(|other| *other != module);
            modules.entry(module.clone()).or_default().extend(wanted);
        }
        // Whatever imports only modules that are gone already goes too; a circle stays.
        while !modules.is_empty() {
            let left: BTreeSet<String> = modules.keys().cloned().collect();
            modules.retain(|_, wanted| wanted.iter().any(|name| left.contains(name)));
            assert!(modules.len() < left.len(), "{folder}: a circle among {left:?}");
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

/// Which release runs, the holds and the lock are reached through the ledger alone: it will have a second place.
#[test]
fn no_other_code_opens_the_records() {
    for (name, text) in sources("xtask/src") {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in ["state.current()", "state.holds()", "state.opening()", "lock::take"] {
            assert!(name == "ledger.rs" || !code.contains(word), "{name} has {word}");
        }
    }
}
