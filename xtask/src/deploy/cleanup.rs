//! Freeing what is the pilot's own and no longer needed, in the state folder and at the engine. Nothing else is
//! touched. Called by `execute` where the disk is full, and by `host --free`.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::files::Freed;
use crate::deploy::backup;
use crate::engine::roles::Images;
use crate::release::source;
use crate::release::store::Store;
use crate::stack::pilot::{DEFAULT_PROJECT, Pilot};
use anyhow::Result;

/// Frees what is the pilot's own: images and builds that no release names, one-off containers that have
/// ended, backups beyond retention, and what was cut off while it was made.
pub fn free(pilot: &Pilot, images: &dyn Images, store: &Store, deadline: Deadline) -> Result<Vec<Freed>> {
    let mut freed = store.remove_unfinished()?;
    freed.extend(backup::retain(&pilot.state, pilot.manifest.limits.keep_backups)?);
    freed.extend(source::remove_worktrees(pilot)?);
    let other_commits = source::target_dir(pilot, Some(source::OTHER_COMMITS));
    if pilot.project == DEFAULT_PROJECT && other_commits.exists() {
        let bytes = files::remove(&other_commits)?;
        freed.push(Freed { what: format!("builds of other commits, {}", other_commits.display()), bytes });
    }
    let (releases, broken) = store.list()?;
    // What a release names that cannot be read is not known: no image goes.
    if broken.is_empty() {
        let keep: Vec<String> =
            releases.iter().flat_map(|r| r.images.values()).map(|image| image.id.clone()).collect();
        freed.extend(images.forget(&keep, deadline)?);
    }
    Ok(freed)
}
