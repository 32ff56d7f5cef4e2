//! Random sequences in memory: builds the unit tests, and runs the search in them (`operations/in_memory/torture`) in two
//! processes for each processor.

use super::row::Row;
use crate::base::deadline::Deadline;
use crate::base::output::Output;
use crate::base::proc::cmd;
use crate::base::screen;
use crate::base::threads::joined;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// The test that is the search.
const SEARCH: &str = "operations::in_memory::torture::search";

/// From how many sequences on an optimised build is quicker overall: it takes minutes, and plays four times as many.
const OPTIMISED: u64 = 4000;

/// How long the build may take, and how long a sequence, made shorter if it fails.
const BUILD: Duration = Duration::from_secs(1800);
const SEQUENCE: Duration = Duration::from_secs(5);

/// Plays `count` sequences from this seed on.
pub fn run(seed: u64, count: u64, pilot: &Pilot, out: &Output) -> Result<Row> {
    out.say(format!("{count} random sequences in memory, from seed {seed}"));
    let program = built(&pilot.root, count >= OPTIMISED)?;
    // A sequence often waits for a thread of its own: with one process for each processor a quarter fewer are played.
    let processes = available_parallelism().map_or(2, |cores| 2 * cores.get() as u64).min(count);
    let begun = Instant::now();
    let shown = screen::doing("play them");
    let limit = Deadline::after(BUILD + SEQUENCE * u32::try_from(count).unwrap_or(u32::MAX / 8));
    let said: Vec<Result<String>> = std::thread::scope(|scope| {
        let share = |at| count / processes + u64::from(at < count % processes);
        let jobs: Vec<_> = (0..processes)
            .map(|at| (seed.wrapping_add(at), share(at)))
            .map(|(seed, share)| (&program, format!("{seed} {share} {processes}")))
            .map(|(program, numbers)| scope.spawn(move || part(program, &pilot.root, &numbers, limit)))
            .collect();
        jobs.into_iter().map(joined).collect()
    });
    drop(shown);
    let (mut tried, mut found) = (0, Vec::new());
    for said in said {
        let said = said?;
        tried += told(&said)?;
        found.extend(failures(&said, out));
    }
    let seconds = begun.elapsed().as_secs_f64();
    out.say(format!("{tried} played in {seconds:.0} s, {:.1} a second", tried as f64 / seconds));
    Ok(Row {
        claim:
            "the invariants of docs/architecture.md hold, and a rollback ends well when the faults are over"
                .into(),
        attack: "random commands, faults and events in memory, one or two clients".into(),
        tried,
        held: tried.saturating_sub(found.len() as u64),
        found,
    })
}

/// The program that cargo has built with the unit tests in it.
fn built(root: &Path, optimised: bool) -> Result<PathBuf> {
    let _shown = screen::doing("build the tests");
    let words =
        ["test", "--locked", "--package", "xtask", "--bin", "xtask", "--no-run", "--message-format", "json"];
    let release = optimised.then_some("--release");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let said = cmd(cargo, &words).args(release).dir(root).run(Deadline::after(BUILD))?;
    let is_test = |message: &Value| message["profile"]["test"] == true && message["executable"].is_string();
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found =
        messages.filter(is_test).find_map(|message| message["executable"].as_str().map(PathBuf::from));
    found.context("cargo does not say where it has put the tests")
}

/// One process. What it prints is the same whether a sequence failed or not.
fn part(program: &Path, root: &Path, numbers: &str, limit: Deadline) -> Result<String> {
    let words = ["--exact", SEARCH, "--ignored", "--nocapture"];
    cmd(program, &words).dir(&root.join("xtask")).env("TORTURE_NUMBERS", numbers).run(limit)
}

/// How many sequences it has played; those that were found before are not counted.
fn told(said: &str) -> Result<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix("SEARCHED "));
    let Some(count) = line.and_then(|line| line.split(' ').next()?.parse().ok()) else {
        bail!("the search does not say how many sequences it has played");
    };
    Ok(count)
}

/// The sequences that failed, each with the command that repeats it.
fn failures(said: &str, out: &Output) -> Vec<String> {
    let parts = said.split("FAILED ").skip(1).map(|part| part.split("\n\n").next().unwrap_or(part));
    let again = |part: &str| {
        let seed = part.strip_prefix("seed ").and_then(|rest| rest.split(':').next()).unwrap_or("?");
        format!("{part}\n  to repeat it: {}", out.xtask(&format!("torture --sequences 1 --seed {seed}")))
    };
    parts.map(again).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::next::Context as Whose;
    use crate::base::output::Style;

    #[test]
    fn what_a_search_prints_is_read() {
        let said = "DONE 50\nFAILED seed 7: Stack\n  1. Happens\n  step 1: lost\n\nSEARCHED 64 sequences in 2.0 s, 1 failed\n";
        let out = Output::new(Style::PLAIN, Instant::now(), Whose::default());
        assert_eq!(told(said).unwrap(), 64);
        let found = failures(said, &out);
        assert!(
            found.len() == 1 && found[0].contains("step 1: lost") && found[0].contains("--seed 7"),
            "{found:?}"
        );
        assert!(told("nothing").is_err());
    }
}
