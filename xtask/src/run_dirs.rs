//! Where runs are, and their order. Each has a folder `SEQ-TIME` under `rollbacks/`, or where the state folder has no
//! room for it in a fallback folder; the order is the number in front, never the clock. Backups by hand
//! take their numbers from the same sequence. Knows nothing of what is in those folders.

use crate::files::{self, Mode};
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Marks a run that failed with data that may exist in its backups alone.
pub const OWES: &str = "owes-data";

/// Makes the folder of a new run with what was asked for in it, and gives its id.
pub fn make(state: &Path, request: &impl Serialize) -> Result<(String, PathBuf)> {
    let id = next_id(state)?;
    let fill = |dir: PathBuf| {
        files::make_private_folder(&dir)?;
        files::write_json(&dir.join("request.json"), request, Mode::Plain)?;
        Ok::<_, anyhow::Error>(dir)
    };
    let own = state.join("rollbacks").join(&id);
    let dir = fill(own.clone()).or_else(|error| {
        files::remove(&own).ok();
        let folder = files::own_temporary(&fallback_purpose(state)).with_context(|| format!("{error:#}"))?;
        fill(folder.join(&id)).with_context(|| format!("{error:#}"))
    })?;
    Ok((id, dir))
}

/// The next number, with the time: one more than the highest of any run and of any backup.
pub fn next_id(state: &Path) -> Result<String> {
    let runs = folders(state)?.last().map_or(0, |(number, _)| *number);
    let backups = files::names(&state.join("backups"))?;
    let backups = backups.iter().map(|name| number(name.trim_start_matches('.'))).max().unwrap_or(0);
    Ok(format!("{:04}-{}", runs.max(backups) + 1, files::stamp()))
}

/// The newest run's folder; runs without a number, made by older versions, come before all.
pub fn newest(state: &Path) -> Result<Option<PathBuf>> {
    Ok(folders(state)?.pop().map(|(_, dir)| dir))
}

/// Folders of all runs, in order, those in the fallback folder too.
pub fn folders(state: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut all = Vec::new();
    for folder in
        std::iter::once(state.join("rollbacks")).chain(files::own_temporaries(&fallback_purpose(state)))
    {
        let names = files::names(&folder)?;
        let own = names.iter().filter(|name| !name.starts_with('.'));
        all.extend(own.map(|name| (number(name), folder.join(name))));
    }
    all.sort();
    Ok(all)
}

/// The number in front; 0 for a run of an older version, whose name is its time.
pub fn number(id: &str) -> u64 {
    id.split_once('-').and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}

/// What the fallback folders of a state folder are made for.
fn fallback_purpose(state: &Path) -> String {
    format!("pilot-runs-{}", &files::sha256_bytes(state.display().to_string().as_bytes())[..12])
}

/// What a user calls a backup of a run: the run's id for its first (`backup`), `ID.2` for `backup-2`. Nothing for
/// another folder.
pub fn backup_id(run: &str, folder: &Path) -> Option<String> {
    let name = folder.file_name()?.to_str()?;
    let n = match name.strip_prefix("backup-") {
        None if name == "backup" => String::new(),
        None => return None,
        Some(n) => format!(".{}", n.parse::<u32>().ok()?),
    };
    Some(format!("{run}{n}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_number_and_runs_without_one_come_first() {
        assert_eq!(number("0012-20261124T084736659"), 12);
        assert_eq!(number("20261124T084736659"), 0);
        assert_eq!(backup_id("0012-x", Path::new("/a/backup")).as_deref(), Some("0012-x"));
        assert_eq!(backup_id("0012-x", Path::new("/a/backup-2")).as_deref(), Some("0012-x.2"));
        assert_eq!(backup_id("0012-x", Path::new("/a/evidence")), None);
    }
}
