//! Planted faults: each patch in `scripts/mutations` breaks one promise in a copy of the source. Its first lines name what
//! must find it: tests, or the search. Applied, searched and reverted one after another, in a worktree of its own.

use super::row::Row;
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Scratch};
use crate::base::next::Next;
use crate::base::output::Output;
use crate::base::proc::{RunError, cmd};
use crate::base::screen;
use crate::release::source;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the patches are.
pub const FOLDER: &str = "scripts/mutations";

/// How long one build with its tests may take.
const LIMIT: Duration = Duration::from_secs(900);

/// One planted fault.
struct Mutation {
    name: String,
    breaks: String,
    /// The filter of the tests that must fail.
    found_by: Vec<String>,
}

impl Mutation {
    /// The first lines of a patch are `# breaks: …` and `# found by: …`.
    fn read(name: &str, text: &str) -> Result<Self> {
        let line = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(&format!("# {key}: ")));
            found.map(str::to_owned).with_context(|| format!("{FOLDER}/{name} has no line `# {key}: …`"))
        };
        let found_by = line("found by")?.split_whitespace().map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), breaks: line("breaks")?, found_by })
    }
}

/// Plants all of them. One row for each.
pub fn run(pilot: &Pilot, out: &Output) -> Result<Vec<Row>> {
    let folder = pilot.root.join(FOLDER);
    let names: Vec<String> =
        files::names(&folder)?.into_iter().filter(|name| name.ends_with(".patch")).collect();
    if names.is_empty() {
        let what = format!("there is no patch in {}", folder.display());
        return Err(fail(Exit::Usage, what, Next::xtask("torture --help")));
    }
    let scratch = Scratch::new("mutations")?;
    let copy = scratch.path().join("source");
    let git = |args: &[&str], dir: &Path| cmd("git", args).dir(dir).run(Deadline::after(LIMIT));
    git(
        &["clone", "--quiet", "--shared", &pilot.root.display().to_string(), &copy.display().to_string()],
        &pilot.root,
    )?;
    let mut rows = Vec::new();
    for name in names {
        let path = folder.join(&name);
        let mutation = Mutation::read(&name, &files::read_text(&path)?)?;
        let _shown = screen::doing(format!("plant {name}"));
        let begun = Instant::now();
        git(&["apply", &path.display().to_string()], &copy)
            .with_context(|| format!("{name} does not apply"))?;
        let found = is_found(&mutation, &copy, &source::target_dir(pilot));
        git(&["checkout", "--quiet", "--", "."], &copy)?;
        let seconds = begun.elapsed().as_secs();
        let (held, word) = match &found {
            Ok(Some(_)) => (1, "found".to_owned()),
            Ok(None) => (0, "NOT FOUND".to_owned()),
            Err(error) => (0, format!("NOT TRIED ({error:#})")),
        };
        out.say(format!("  {word} after {seconds} s, with its build: {name}"));
        rows.push(Row {
            claim: format!("{} is found", mutation.breaks),
            attack: format!("planted by {name}, searched by {}", mutation.found_by.join(", ")),
            tried: 1,
            held,
            found: Vec::new(),
        });
    }
    Ok(rows)
}

/// Does a test fail? What it says; none if all pass. Errors: it does not build, or no test has that name.
fn is_found(mutation: &Mutation, copy: &Path, target: &Path) -> Result<Option<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let test = |more: &[&str]| {
        cmd(&cargo, &["test", "--quiet", "--locked", "--package", "xtask", "--bin", "xtask"])
            .args(more)
            .dir(copy)
            .env("CARGO_TARGET_DIR", &target.display().to_string())
            .env("CARGO_INCREMENTAL", "1")
            .run(Deadline::after(LIMIT))
    };
    test(&["--no-run"]).with_context(|| format!("{} does not build", mutation.name))?;
    let filters: Vec<&str> = mutation.found_by.iter().map(String::as_str).collect();
    let listed = test(&[&["--", "--list"], filters.as_slice()].concat())?;
    if !listed.contains(": test") {
        let what = format!("{} names tests that there are not: {}", mutation.name, filters.join(" "));
        return Err(fail(Exit::Usage, what, "correct the line `# found by: …`"));
    }
    match test(&[&["--"], filters.as_slice()].concat()) {
        Ok(_) => Ok(None),
        Err(error) => match error.downcast_ref() {
            Some(RunError::Status(text, _)) => Ok(Some(text.clone())),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_says_what_it_breaks_and_what_finds_it() {
        let read = Mutation::read("a.patch", "# breaks: a promise\n# found by: one two\n--- a\n").unwrap();
        assert_eq!((read.breaks.as_str(), read.found_by.len()), ("a promise", 2));
        assert!(Mutation::read("a.patch", "# breaks: a promise\n").is_err());
    }
}
