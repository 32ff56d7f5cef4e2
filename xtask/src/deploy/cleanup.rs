//! Frees disk space: removes what the pilot made and no longer needs, in the state folder and in the engine.
//! It touches nothing else. Called by `execute` if the disk is full, and by `host --free`.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Freed};
use crate::deploy::backup;
use crate::deploy::old_runs;
use crate::engine::roles::Images;
use crate::release::source;
use crate::release::store::Store;
use crate::stack::pilot::Pilot;
use anyhow::Result;

/// Removes images and builds that no release names, one-off containers that have ended, old backups and runs, and
/// files that an interrupted command left incomplete.
pub fn free(pilot: &Pilot, images: &dyn Images, store: &Store, deadline: Deadline) -> Result<Vec<Freed>> {
    let mut freed = store.remove_unfinished()?;
    let (limits, releases) = (&pilot.manifest.limits, store.ids()?);
    freed.extend(backup::retain(&pilot.state, limits.keep_backups, &releases)?);
    freed.extend(old_runs::retain(&pilot.state, limits, &releases)?);
    freed.extend(source::remove_worktrees(pilot)?);
    let other_commits = source::target_dir(pilot).join(source::OTHER_COMMITS);
    if pilot.is_default() && other_commits.exists() {
        let bytes = files::remove(&other_commits)?;
        freed.push(Freed { what: format!("builds of other commits, {}", other_commits.display()), bytes });
    }
    let (releases, broken) = store.list()?;
    // If a release cannot be read, its images are unknown: then no image is removed.
    if broken.is_empty() {
        let keep: Vec<String> =
            releases.iter().flat_map(|r| r.images.values()).map(|image| image.id.clone()).collect();
        freed.extend(images.forget(&keep, deadline)?);
    }
    Ok(freed)
}
