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

/// A file without its tests.
fn product(text: &str) -> &str {
    text.split("mod tests {").next().unwrap_or_default()
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
            let code = product(&text).lines().count();
            assert!(code <= 480, "{folder}/{name} has {code} lines before its tests");
        }
    }
}

/// The floors of the house, from the top down; an import goes down this list, never up.
const FLOORS: [&str; 11] = [
    "main.rs",
    "cli.rs",
    "commands",
    "rehearsal",
    "operations",
    "deploy",
    "checks",
    "host",
    "engine",
    "release",
    "stack",
];
const GROUND: &str = "base";

/// On which floor a file is; none where its folder is not in the list.
fn floor(file: &str) -> Option<usize> {
    let folder = file.split('/').next()?;
    if folder == GROUND { Some(FLOORS.len()) } else { FLOORS.iter().position(|floor| *floor == folder) }
}

/// What is wrong with the imports of these files.
fn ups(files: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files {
        let Some(own) = floor(name) else {
            found.push(format!("{name} is in no folder of the house"));
            continue;
        };
        for import in imports(text, name) {
            let to = floor(&import).or_else(|| floor(&format!("{}.rs", import.split('/').next()?)));
            match to {
                None => found.push(format!("{name} imports {import}, which is in no folder of the house")),
                Some(to) if to < own => found.push(format!("{name} imports {import}, which is above it")),
                Some(_) => {}
            }
        }
    }
    found
}

#[test]
fn imports_go_down_the_house() {
    assert_eq!(ups(&sources("xtask/src")), [""; 0]);
}

#[test]
fn an_import_that_goes_up_is_found_in_every_form() {
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let up = |text: &str| ups(&[file("stack/a.rs", text)]).len();
    assert_eq!(up("use crate::base::files;\nuse crate::stack::b::C;\nuse super::b;"), 0);
    assert_eq!(up("use crate::engine::roles::Data;"), 1);
    assert_eq!(up("use crate::{base::files, deploy::{plan::Plan, run}};"), 2);
    assert_eq!(up("pub use super::super::engine::roles;"), 1);
    assert_eq!(up("fn f() { crate::operations::up::run() }"), 1);
    assert_eq!(ups(&[file("elsewhere/a.rs", "")]), ["elsewhere/a.rs is in no folder of the house"]);
    assert_eq!(ups(&[file("new.rs", "")]), ["new.rs is in no folder of the house"]);
}

/// The paths that a file imports of its own crate, as `folder/module/Item`; grouped ones, `super` and those in
/// the middle of the code too.
fn imports(text: &str, file: &str) -> Vec<String> {
    let code = product(text);
    let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let module = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let parent = |path: &str| path.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_owned());
    let mut all = Vec::new();
    let children = code.lines().filter_map(|line| line.split_once("mod ")?.1.strip_suffix(';'));
    let children: Vec<(String, String)> =
        children.map(|child| (format!("{child}::"), format!("{module}/{child}"))).collect();
    let own = [("crate::".to_owned(), String::new()), ("super::".to_owned(), parent(module))];
    for (root, base) in own.into_iter().chain(children) {
        for (at, _) in code.match_indices(root.as_str()) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut rest = &code[at + root.len()..];
            let mut base = base.clone();
            while let Some(further) = rest.strip_prefix("super::") {
                (rest, base) = (further, parent(&base));
            }
            paths(rest, &base, &mut all);
        }
    }
    all
}

/// The paths that a use tree begins with, one for each leaf.
fn paths(rest: &str, base: &str, all: &mut Vec<String>) {
    let join = |word: &str| if base.is_empty() { word.to_owned() } else { format!("{base}/{word}") };
    if let Some(group) = rest.strip_prefix('{') {
        let mut depth = 0;
        let closes = |c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth < 0
        };
        let inner = &group[..group.find(closes).unwrap_or(0)];
        let mut level = 0;
        let parts = inner.split(|c| {
            level += i32::from(c == '{') - i32::from(c == '}');
            level == 0 && c == ','
        });
        parts.map(str::trim).filter(|part| !part.is_empty()).for_each(|part| paths(part, base, all));
        return;
    }
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    match rest[word.len()..].strip_prefix("::") {
        _ if word.is_empty() || word == "self" => all.push(base.to_owned()),
        Some(more) => paths(more, &join(&word), all),
        None => all.push(join(&word)),
    }
}

#[test]
fn grouped_imports_are_read_too() {
    let text = "use crate::{a, b::{c, d::{self, E}}, f};\nuse super::g::H;\nfn x() { crate::i::j(); }\n// crate::k\n#[cfg(test)]\nmod tests {\nuse crate::l;";
    let want = ["a", "b/c", "b/d", "b/d/E", "f", "i/j", "m/g/H"];
    assert_eq!(imports(text, "m/n.rs"), want);
    assert_eq!(imports("use super::a;", "m/n/mod.rs"), ["m/a"]);
    assert_eq!(imports("pub mod a;\nuse a::{b, c};", "m/n/mod.rs"), ["m/n/a/b", "m/n/a/c"]);
}

/// The file that a path leads to: the longest part of it that is one.
fn file_of<'a>(path: &str, files: &BTreeSet<&'a str>) -> Option<&'a str> {
    let mut path = path.to_owned();
    loop {
        for name in [format!("{path}.rs"), format!("{path}/mod.rs")] {
            if let Some(file) = files.get(name.as_str()) {
                return Some(file);
            }
        }
        path.truncate(path.rfind('/')?);
    }
}

/// The files that are left when whatever imports none of the others, or is imported by none of them, is gone:
/// those of a circle, and those between two.
fn circle(sources: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let files: BTreeSet<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
    let wanted = |name: &str, text: &str| -> BTreeSet<String> {
        let all = imports(text, name);
        let found = all.iter().filter_map(|path| file_of(path, &files)).filter(|file| *file != name);
        found.map(str::to_owned).collect()
    };
    let mut left: BTreeMap<String, BTreeSet<String>> =
        sources.iter().map(|(name, text)| (name.clone(), wanted(name, text))).collect();
    loop {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        let needed: BTreeSet<String> = left.values().flatten().cloned().collect();
        left.retain(|name, wanted| {
            wanted.retain(|file| names.contains(file));
            !wanted.is_empty() && needed.contains(name)
        });
        if left.len() == names.len() {
            return left;
        }
    }
}

#[test]
fn no_file_is_in_a_circle() {
    for folder in ["xtask/src", "pilot-deploy/services/src"] {
        let left = circle(&sources(folder));
        assert!(left.is_empty(), "{folder}: a circle among {left:#?}");
    }
}

#[test]
fn a_circle_is_found() {
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let one = file("a/mod.rs", "use crate::a::b::B;");
    assert!(circle(&[one.clone(), file("a/b.rs", "use crate::c::C;"), file("c.rs", "")]).is_empty());
    assert_eq!(circle(&[one, file("a/b.rs", "use super::A;"), file("c.rs", "use crate::a;")]).len(), 2);
}

/// Lines of each function, from its name to its closing brace; rustfmt puts both in the same column.
fn functions(text: &str) -> Vec<(String, usize)> {
    let mut all = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (n, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.trim_start().split(' ').collect();
        let Some(at) = words.iter().position(|word| *word == "fn") else { continue };
        let modifier = |word: &&str| word.starts_with("pub") || ["const", "async", "unsafe"].contains(word);
        if !words[..at].iter().all(modifier) || line.trim_end().ends_with(['}', ';']) {
            continue;
        }
        // In a trait, a function can end without a body.
        let (end, none) = (format!("{}}}", " ".repeat(indent)), format!("{})", " ".repeat(indent)));
        let without = |line: &&str| line.starts_with(&none) && line.ends_with(';');
        let body = lines[n..].iter().take_while(|line| **line != end);
        if body.clone().any(without) {
            continue;
        }
        let length = lines[n..].iter().position(|line| *line == end).map_or(0, |length| length + 1);
        all.push((words.get(at + 1).map_or(String::new(), |name| (*name).to_owned()), length));
    }
    all
}

#[test]
fn functions_fit_a_screen() {
    for folder in ["xtask/src", "pilot-deploy/services/src"] {
        for (name, text) in sources(folder) {
            let long: Vec<_> = functions(&text).into_iter().filter(|(_, lines)| *lines > 80).collect();
            assert!(long.is_empty(), "{folder}/{name} has functions of over 80 lines: {long:?}");
        }
    }
}

#[test]
fn a_long_function_is_found() {
    let text =
        format!("    pub fn long(\n        a: u8,\n    ) {{\n{}    }}\n}}\n", "        x();\n".repeat(90));
    assert_eq!(functions(&text), [("long(".to_owned(), 94)]);
}

/// Nothing that reaches beyond the pilot's own project.
#[test]
fn no_command_reaches_beyond_the_project() {
    for (name, text) in sources("xtask/src") {
        // `docker system df` only looks, and `docker system dial-stdio` passes on what is said to the engine.
        let text = text.replace("\"system\", \"df\"", "").replace("\"system\", \"dial-stdio\"", "");
        for word in ["\"prune\"", "\"system\"", "--volumes"] {
            assert!(!text.contains(word), "{name} has {word}");
        }
    }
}

/// A suggested command is a `Next`, which carries whose stack it is for; a literal would act on another.
#[test]
fn no_command_is_suggested_as_text() {
    for (name, text) in sources("xtask/src") {
        let code = product(&text);
        let lines = code.lines().filter(|line| {
            let comment = line.trim_start().starts_with("//");
            let help = line.contains("after_help") || line.contains("Examples:") || line.contains("bin_name");
            !comment && !help && line.contains("cargo xtask")
        });
        // The module itself, who holds the lock (in a folder, at the engine), and the benchmark's row of that name.
        if !matches!(
            name.as_str(),
            "base/next.rs" | "base/lock.rs" | "stack/lease.rs" | "rehearsal/bench/mod.rs"
        ) {
            assert_eq!(lines.collect::<Vec<_>>(), [""; 0], "{name}");
        }
    }
}

/// Other code speaks of nodes and instances, and not of what a Swarm is made of.
#[test]
fn no_other_code_knows_a_swarm() {
    for (name, text) in sources("xtask/src") {
        let code = product(&text);
        let lines: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for word in
            ["\"/services", "\"/tasks", "docker service", "docker node", "docker stack", "stack.namespace"]
        {
            let found = lines.iter().any(|line| line.contains(word));
            assert!(name.starts_with("engine/swarm/") || !found, "{name} has {word}");
        }
    }
}

/// Which release runs, the holds and the lock are reached through the ledger alone: it will have a second place.
#[test]
fn no_other_code_opens_the_records() {
    for (name, text) in sources("xtask/src") {
        let code = product(&text);
        for word in ["state.current()", "state.holds()", "state.opening()", "lock::take"] {
            assert!(
                name == "stack/ledger.rs" || name == "stack/state_dir.rs" || !code.contains(word),
                "{name} has {word}"
            );
        }
    }
}

/// What the operating system tells about the machine is asked in one module, which also knows what other systems do
/// not tell.
#[test]
fn no_other_code_asks_the_machine() {
    for (name, text) in sources("xtask/src") {
        let code = product(&text);
        let lines: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for word in ["\"/proc", "statvfs", "uname()", "sysinfo", "target_os"] {
            let found = lines.iter().any(|line| line.contains(word));
            // Two files can change names in one step on some systems, and some paths are only there on this one.
            let other =
                word == "target_os" && matches!(name.as_str(), "base/files.rs" | "engine/compose/inspect.rs");
            assert!(name.starts_with("base/machine/") || other || !found, "{name} has {word}");
        }
    }
}

/// The words in quotes that stand after `before` in the sources of the pilot's services.
fn quoted(before: &str) -> BTreeSet<String> {
    let all = sources("pilot-deploy/services/src");
    let words = all.iter().flat_map(|(_, text)| text.split(before).skip(1));
    words.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

/// What only the pilot has: its routes, variables, metrics and files, as its services and its folder name them.
fn of_the_pilot() -> BTreeSet<String> {
    let read = |name: &str| std::fs::read_to_string(workspace().join("pilot-deploy").join(name)).unwrap();
    let mut words = quoted(".route(\"");
    words.extend(quoted("\"SCENARIO_").into_iter().map(|name| format!("SCENARIO_{name}")));
    words.extend(["scenario_resident".to_owned(), "SCENARIO_".to_owned()]);
    let env = read(".env.poc.example");
    words.extend(env.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.trim().to_owned()));
    let manifest = read("pilot.toml");
    let files = manifest.split('"').filter(|word| word.contains('.') && !word.contains(['/', ' ', '$', '{']));
    words.extend(files.map(str::to_owned));
    words.extend(["docker-compose.poc.yml", "demo-scenario.json", "x-pilot-project"].map(str::to_owned));
    // A comment is no name; every service may have these.
    words.retain(|word| {
        !word.starts_with('#') && !matches!(word.as_str(), "{*rest}" | "LOG_LEVEL" | "NODE_ENV")
    });
    words
}

/// Does the word stand in a text of this line, and not as the end of another word?
fn stands_in(line: &str, word: &str) -> bool {
    line.contains('"')
        && line.match_indices(word).any(|(at, _)| {
            let part = |c: char| c.is_alphanumeric() || "-_.".contains(c);
            !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(|c: char| c.is_alphanumeric())
        })
}

/// No route, variable, metric or file name of the pilot is in the code, but in one file of its own.
#[test]
fn no_code_knows_the_pilot() {
    let words = of_the_pilot();
    for word in
        ["/admin/kill-switch", "/stream", "SCENARIO_ROLE", "TTFF_TARGET_MS", "ADMIN_TOKEN", ".env.poc"]
    {
        assert!(words.contains(word), "{word} is not in {words:?}");
    }
    let mut found = Vec::new();
    for (name, text) in sources("xtask/src") {
        let tests =
            name.starts_with("engine/fake/") || name.ends_with("/tests.rs") || name.contains("/in_memory/");
        // It has the names of files in releases of before.
        let of_before = name == "stack/layout.rs";
        if name == "stack/names.rs" || tests || of_before {
            continue;
        }
        let lines = product(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            let own = words.iter().find(|word| stands_in(line, word));
            found.extend(own.map(|word| format!("{name} names {word}: {}", line.trim())));
        }
    }
    assert_eq!(found, [""; 0], "{found:#?}");
}
