//! Which runs are removed, with their journal, evidence and report: old ones. The decision is a value; nothing of it is
//! made while removing. Called by `converge` after a run, and by `cleanup`. The caller must hold the lock.

use crate::base::files::{self, Freed};
use crate::deploy::backup;
use crate::deploy::event::Finished;
use crate::stack::hold;
use crate::stack::ledger::Ledger;
use crate::stack::manifest::Limits;
use crate::stack::state_dir::{RunDir, StateDir};
use anyhow::{Context, Result};
use std::collections::BTreeSet;

/// What retention must know of a run.
#[derive(Clone, Debug)]
struct Known {
    dir: RunDir,
    /// It has ended, or was given up, and no data is known to be in its backups alone.
    is_over: bool,
    /// It ended under a hold.
    held: bool,
    /// It has a backup that is kept: the newest one of data, or a snapshot of a release that is kept.
    has_backup: bool,
}

/// Removes the runs past the newest `keep_runs` that nothing needs. `releases` are those that are kept.
pub fn retain(state: &StateDir, limits: &Limits, releases: &BTreeSet<String>) -> Result<Vec<Freed>> {
    let mut freed = Vec::new();
    // A removal that was cut off.
    for name in files::names(&state.runs())?.iter().filter(|name| name.starts_with(REMOVED)) {
        files::remove(&state.runs().join(name))?;
    }
    let runs = known(state, limits, releases)?;
    // A hold that cannot be read stands.
    let held = hold::standing(&Ledger::new(state)).map_or(true, |holds| !holds.is_empty());
    for dir in surplus(&runs, limits.keep_runs, held) {
        // Rename it first: then a removal that is cut off leaves no incomplete run in the list.
        let staging = dir.path().with_file_name(format!("{REMOVED}{}", dir.id()));
        files::rename(dir.path(), &staging)
            .with_context(|| format!("cannot remove {}", dir.path().display()))?;
        freed.push(Freed { what: format!("run {}", dir.id()), bytes: files::remove(&staging)? });
    }
    Ok(freed)
}

/// A folder with this name is being removed.
const REMOVED: &str = ".old-";

fn known(state: &StateDir, limits: &Limits, releases: &BTreeSet<String>) -> Result<Vec<Known>> {
    let not_kept = backup::not_kept(state, limits.keep_backups, releases)?;
    let mut all = Vec::new();
    for (_, dir) in state.every_run()? {
        let finished = files::read_json::<Finished>(&dir.report()).ok();
        let backups = dir.backups()?;
        all.push(Known {
            is_over: (dir.report().exists() || dir.given_up().exists()) && !dir.owes().exists(),
            held: finished.is_some_and(|finished| finished.held),
            has_backup: backups.iter().any(|(_, backup)| !not_kept.contains(backup)),
            dir,
        });
    }
    Ok(all)
}

/// The runs past the newest `keep` (at least one), but for those that something needs. The list is oldest first.
fn surplus(runs: &[Known], keep: usize, a_hold_stands: bool) -> Vec<&RunDir> {
    let old = &runs[..runs.len().saturating_sub(keep.max(1))];
    let gone = |run: &&Known| run.is_over && !run.has_backup && !(run.held && a_hold_stands);
    old.iter().filter(gone).map(|run| &run.dir).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: usize) -> Known {
        let dir = RunDir::new(format!("/runs/{n:04}-x"));
        Known { dir, is_over: true, held: false, has_backup: false }
    }

    #[test]
    fn the_newest_runs_stay_and_every_one_that_something_needs() {
        let mut runs: Vec<Known> = (1..=6).map(run).collect();
        runs[1].is_over = false;
        runs[2].has_backup = true;
        runs[3].held = true;
        let ids =
            |keep, held| -> Vec<String> { surplus(&runs, keep, held).into_iter().map(RunDir::id).collect() };
        assert_eq!(ids(1, true), ["0001-x", "0005-x"]);
        assert_eq!(ids(1, false), ["0001-x", "0004-x", "0005-x"]);
        assert_eq!(ids(0, true), ids(1, true));
        assert_eq!(ids(5, true), ["0001-x"]);
        assert_eq!(ids(50, true), [""; 0]);
    }

    #[test]
    fn a_run_without_an_end_or_with_an_unreadable_backup_is_not_removed() {
        let scratch = files::Scratch::new("old-runs-test").unwrap();
        let state = StateDir::new(scratch.path());
        let limits = Limits { keep_runs: 1, keep_backups: 1, ..Limits::default() };
        for name in ["0001-a", "0002-b", "0003-c", "0004-d"] {
            files::write(&state.runs().join(name).join("report.json"), b"{}", files::Mode::Plain).unwrap();
        }
        std::fs::remove_file(state.runs().join("0002-b/report.json")).unwrap();
        files::write(&state.runs().join("0003-c/backup/backup.json"), b"noise", files::Mode::Plain).unwrap();
        files::write(&state.runs().join(".old-0000-z/report.json"), b"{}", files::Mode::Plain).unwrap();
        let freed = retain(&state, &limits, &BTreeSet::new()).unwrap();
        assert_eq!(freed.iter().map(|f| f.what.as_str()).collect::<Vec<_>>(), ["run 0001-a"]);
        assert_eq!(files::names(&state.runs()).unwrap(), ["0002-b", "0003-c", "0004-d"]);
    }
}
