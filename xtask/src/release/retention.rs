//! Which releases are removed: old ones, and unfinished ones. The running release and the last known-good one
//! always stay. Called after a deployment, by `releases prune` and by `host --free`.

use crate::base::files;
use crate::base::files::Freed;
use crate::release::description::Release;
use crate::release::store::{Store, number};
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result};

impl Store {
    /// Removes what cut-off imports have left: their folders, and the archives that they had moved already,
    /// unless a release names them. The caller must hold the lock, so that no other import runs.
    pub fn remove_cut_off_imports(&self) -> Result<Vec<Freed>> {
        let mut freed = Vec::new();
        for path in self.state.imports()? {
            let (known, broken) = self.list()?;
            let named = |id: &str| known.iter().any(|r| r.images.values().any(|image| image.id == id));
            let staging = Self::new(&StateDir::new(&path)).list()?.0;
            for image in staging.iter().flat_map(|r| r.images.values()).filter(|_| broken.is_empty()) {
                if !named(&image.id) {
                    files::remove(&self.archive(&image.id))?;
                }
            }
            freed.push(Freed {
                what: format!("unfinished import {}", path.display()),
                bytes: files::remove(&path)?,
            });
        }
        Ok(freed)
    }

    /// Removes what was cut off while it was made: unpublished releases, and incomplete image archives.
    pub fn remove_unfinished(&self) -> Result<Vec<Freed>> {
        let mut freed = self.remove_cut_off_imports()?;
        for (folder, is_staged) in [
            (self.state.releases(), is_staged_release as fn(&str) -> bool),
            (self.state.images(), is_staged_archive),
        ] {
            for name in files::names(&folder)?.iter().filter(|name| is_staged(name)) {
                let path = folder.join(name);
                freed.push(Freed {
                    what: format!("unfinished {}", path.display()),
                    bytes: files::remove(&path)?,
                });
            }
        }
        Ok(freed)
    }

    /// Keeps the `keep` known-good releases that were verified last, and as many other ones.
    /// Releases with the same content count once. The running release always stays. Then removes
    /// archives that no release names any more. If a release cannot be read, it is unknown which
    /// archives it names, so nothing is removed.
    pub fn retain(&self, keep: usize) -> Result<Vec<Freed>> {
        let (mut releases, broken) = self.list()?;
        if !broken.is_empty() {
            return Ok(Vec::new());
        }
        let current = self.current()?.map(|r| r.id);
        releases.sort_by_key(|r| std::cmp::Reverse((r.verified(), number(&r.id))));
        let (good, other): (Vec<_>, Vec<_>) = releases.into_iter().partition(Release::is_known_good);
        let gone: Vec<Release> = [surplus(&good, keep), surplus(&other, keep)]
            .concat()
            .into_iter()
            .filter(|r| current.as_ref() != Some(&r.id))
            .collect();
        let mut freed = Vec::new();
        for release in &gone {
            let path = self.dir(&release.id);
            // Rename it first: then a removal that is cut off leaves no incomplete release in the list.
            let staging = self.dir(&format!(".{}-old", release.id));
            std::fs::rename(&path, &staging).with_context(|| format!("cannot remove {}", path.display()))?;
            freed.push(Freed { what: format!("release {}", release.id), bytes: files::remove(&staging)? });
        }
        let left: Vec<&Release> =
            good.iter().chain(&other).filter(|r| !gone.iter().any(|g| g.id == r.id)).collect();
        for release in &gone {
            for image in release.images.values() {
                if !left.iter().any(|r| r.images.values().any(|i| i.id == image.id)) {
                    let bytes = files::remove(&self.archive(&image.id))?;
                    let what = format!("archive of image {}", image.id);
                    freed.extend((bytes > 0).then_some(Freed { what, bytes }));
                }
            }
            if !left.iter().any(|r| r.xtask == release.xtask) {
                files::remove(&self.xtask(&release.xtask))?;
            }
        }
        Ok(freed)
    }
}

/// The releases after the first `keep` (at least one) with different content.
fn surplus(releases: &[Release], keep: usize) -> Vec<Release> {
    let mut kept: Vec<&Release> = Vec::new();
    let mut gone = Vec::new();
    for release in releases {
        if kept.len() >= keep.max(1) || kept.iter().any(|other| other.same_content(release)) {
            gone.push(release.clone());
        } else {
            kept.push(release);
        }
    }
    gone
}

fn is_staged_release(name: &str) -> bool {
    name.starts_with('.')
}

fn is_staged_archive(name: &str) -> bool {
    name.ends_with(".new")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::store::tests::{fixture, make_of};
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn ids(releases: &[Release]) -> Vec<&str> {
        releases.iter().map(|release| release.id.as_str()).collect()
    }

    #[test]
    fn retention_leaves_the_running_and_the_last_known_good() {
        let f = fixture();
        for word in ["one", "two", "three", "four", "five"] {
            make_of(&f, word);
        }
        for id in ["r1", "r2", "r3", "r4"] {
            f.store.promote(id, BTreeMap::new(), number(id)).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        f.store.set_current("r1").unwrap();
        f.store.retain(2).unwrap();
        let left: Vec<String> = f.store.list().unwrap().0.into_iter().map(|r| r.id).collect();
        assert_eq!(left, ["r1", "r3", "r4", "r5"]);
        let release = f.store.named("r4").unwrap();
        f.store.check_archive(&release.images["gateway"]).unwrap();
        // One that cannot be read stops it: what it names is not known.
        std::fs::write(f.store.file("r3", "release.json"), "noise").unwrap();
        f.store.retain(1).unwrap();
        assert!(f.store.dir("r1").exists() && f.store.dir("r3").exists());
    }

    #[test]
    fn retention_counts_releases_that_differ() {
        let f = fixture();
        // The way back, then one release deployed again and again, then one that fails again and again.
        for (word, good) in [("old", true), ("new", true), ("new", true), ("new", true), ("bad", false)] {
            let release = make_of(&f, word);
            if good {
                f.store.promote(&release.id, BTreeMap::new(), number(&release.id)).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            } else {
                f.store.mark_failed(&release.id, "smoke").unwrap();
                f.store.mark_failed(&make_of(&f, "worse").id, "smoke").unwrap();
                f.store.mark_failed(&make_of(&f, word).id, "smoke").unwrap();
            }
        }
        f.store.set_current("r2").unwrap();
        f.store.retain(2).unwrap();
        // Of what is the same the newest stays, and what runs.
        assert_eq!(ids(&f.store.list().unwrap().0), ["r1", "r2", "r4", "r6", "r7"]);
        f.store.check_archive(&f.store.named("r1").unwrap().images["gateway"]).unwrap();
    }
}
