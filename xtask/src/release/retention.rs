//! Which releases are removed: old ones, and unfinished ones. The running release, the last known-good one and those
//! that a person has pinned always stay. Called after a deployment, by `releases prune` and by `host --free`.

use crate::base::files::{self, Freed};
use crate::release::description::Release;
use crate::release::store::{Store, number};
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result};
use std::collections::BTreeSet;

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
                    files::remove(&self.state.image(&image.id))?;
                }
            }
            freed.extend(self.remove_unnamed_blobs()?);
            freed.push(Freed {
                what: format!("unfinished import {}", path.display()),
                bytes: files::remove(&path)?,
            });
        }
        Ok(freed)
    }

    /// Removes blobs that no release names. If what a release names is not known, none is removed.
    fn remove_unnamed_blobs(&self) -> Result<Vec<Freed>> {
        let remove = |name: String| {
            let path = self.state.blob(&name);
            Ok(Freed { what: format!("part of an image, {}", path.display()), bytes: files::remove(&path)? })
        };
        self.unnamed_blobs().unwrap_or_default().into_iter().map(remove).collect()
    }

    /// Removes what was cut off while it was made: unpublished releases, and images that were not saved completely.
    pub fn remove_unfinished(&self) -> Result<Vec<Freed>> {
        let mut freed = self.remove_cut_off_imports()?;
        for (folder, is_staged) in [
            (self.state.releases(), is_staged_release as fn(&str) -> bool),
            (self.state.images(), is_staged_image),
            (self.state.blobs(), is_staged_image),
        ] {
            for name in files::names(&folder)?.iter().filter(|name| is_staged(name)) {
                let path = folder.join(name);
                freed.push(Freed {
                    what: format!("unfinished {}", path.display()),
                    bytes: files::remove(&path)?,
                });
            }
        }
        freed.extend(self.remove_unnamed_blobs()?);
        Ok(freed)
    }

    /// Removes what `prune` says. If a release cannot be read, it is unknown which archives it names, so nothing is
    /// removed.
    pub fn retain(&self, keep: usize) -> Result<Vec<Freed>> {
        let (releases, broken) = self.list()?;
        if !broken.is_empty() {
            return Ok(Vec::new());
        }
        let current = self.current()?.map(|r| r.id);
        let Prune { releases, images, programs } = prune(&releases, current.as_deref(), keep);
        let mut freed = Vec::new();
        for id in releases {
            self.unshare(&id)?;
            let path = self.dir(&id);
            if !path.exists() {
                continue;
            }
            // Rename it first: then a removal that is cut off leaves no incomplete release in the list.
            let staging = self.dir(&format!(".{id}-old"));
            files::rename(&path, &staging).with_context(|| format!("cannot remove {}", path.display()))?;
            freed.push(Freed { what: format!("release {id}"), bytes: files::remove(&staging)? });
        }
        if !images.is_empty() {
            freed.extend(self.remove_unnamed_blobs()?);
        }
        for id in images {
            let bytes = files::remove(&self.state.image(&id))?;
            freed.extend((bytes > 0).then_some(Freed { what: format!("archive of image {id}"), bytes }));
        }
        for sum in programs {
            files::remove(&self.xtask(&sum))?;
        }
        freed.extend(self.remove_pins()?);
        Ok(freed)
    }

    /// Removes the pins of releases that are gone, and mounted files that no pin names.
    fn remove_pins(&self) -> Result<Vec<Freed>> {
        let (pins, mounted) = (self.state.pins(), self.state.mounted());
        let mut named = String::new();
        for name in files::names(&pins)? {
            let path = pins.join(&name);
            match name.strip_suffix(".json").filter(|id| self.dir(id).exists()) {
                Some(_) => named.push_str(&files::read_text(&path)?),
                None => drop(files::remove(&path)?),
            }
        }
        let mut freed = Vec::new();
        for sum in files::names(&mounted)?.iter().filter(|sum| !named.contains(*sum)) {
            let path = mounted.join(sum);
            freed.push(Freed { what: format!("mounted {}", path.display()), bytes: files::remove(&path)? });
        }
        Ok(freed)
    }
}

/// What retention removes.
#[derive(Debug, PartialEq, Eq)]
struct Prune {
    /// Releases, by id.
    releases: Vec<String>,
    /// Images that no other release names, by content id.
    images: BTreeSet<String>,
    /// Copies of this program that made no other release, by checksum.
    programs: BTreeSet<String>,
}

/// Keeps the `keep` known-good releases that were verified last and as many others, those of the same content
/// counted once; never removes the one that runs, a pinned one (these are not counted), nor what a release that stays
/// needs.
fn prune(all: &[Release], current: Option<&str>, keep: usize) -> Prune {
    let mut newest_first: Vec<&Release> = all.iter().filter(|r| !r.pinned).collect();
    newest_first.sort_by_key(|r| std::cmp::Reverse((r.verified(), number(&r.id))));
    let (good, other): (Vec<_>, Vec<_>) = newest_first.into_iter().partition(|r| r.is_known_good());
    let surplus = [surplus(&good, keep), surplus(&other, keep)].concat();
    let gone: Vec<&Release> = surplus.into_iter().filter(|r| current != Some(r.id.as_str())).collect();
    let stays = |release: &&Release| gone.iter().all(|other| other.id != release.id);
    let left: Vec<&Release> = all.iter().filter(stays).collect();
    let images = |release: &Release| release.images.values().map(|i| i.id.clone()).collect::<Vec<_>>();
    let needed: BTreeSet<String> = left.iter().flat_map(|r| images(r)).collect();
    let programs: BTreeSet<&String> = left.iter().map(|r| &r.xtask).collect();
    Prune {
        releases: gone.iter().map(|r| r.id.clone()).collect(),
        images: gone.iter().flat_map(|r| images(r)).filter(|id| !needed.contains(id)).collect(),
        programs: gone.iter().map(|r| &r.xtask).filter(|sum| !programs.contains(sum)).cloned().collect(),
    }
}

/// The releases after the first `keep` (at least one) with different content.
fn surplus<'a>(releases: &[&'a Release], keep: usize) -> Vec<&'a Release> {
    let mut kept: Vec<&Release> = Vec::new();
    let mut gone = Vec::new();
    for release in releases {
        if kept.len() >= keep.max(1) || kept.iter().any(|other| other.same_content(release)) {
            gone.push(*release);
        } else {
            kept.push(release);
        }
    }
    gone
}

fn is_staged_release(name: &str) -> bool {
    name.starts_with('.')
}

fn is_staged_image(name: &str) -> bool {
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
            f.store.promote(id, "compose", BTreeMap::new(), number(id)).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        f.store.set_current("r1").unwrap();
        f.store.retain(2).unwrap();
        let left: Vec<String> = f.store.list().unwrap().0.into_iter().map(|r| r.id).collect();
        assert_eq!(left, ["r1", "r3", "r4", "r5"]);
        let release = f.store.named("r4").unwrap();
        assert!(f.store.is_whole(&release.images["gateway"]));
        // One that cannot be read stops it: what it names is not known.
        std::fs::write(f.store.file("r3", "release.json"), "noise").unwrap();
        f.store.retain(1).unwrap();
        assert!(f.store.dir("r1").exists() && f.store.dir("r3").exists());
    }

    #[test]
    fn a_pinned_release_stays_beside_those_that_are_counted() {
        let f = fixture();
        for word in ["one", "two", "three", "four"] {
            let release = make_of(&f, word);
            f.store.promote(&release.id, "compose", BTreeMap::new(), number(&release.id)).unwrap();
        }
        f.store.pin("r1", true).unwrap();
        f.store.set_current("r4").unwrap();
        f.store.retain(2).unwrap();
        assert_eq!(ids(&f.store.list().unwrap().0), ["r1", "r3", "r4"]);
        assert!(f.store.is_whole(&f.store.named("r1").unwrap().images["gateway"]));
        f.store.pin("r1", false).unwrap();
        f.store.retain(2).unwrap();
        assert_eq!(ids(&f.store.list().unwrap().0), ["r3", "r4"]);
    }

    #[test]
    fn retention_counts_releases_that_differ() {
        let f = fixture();
        // The way back, then one release deployed again and again, then one that fails again and again.
        for (word, good) in [("old", true), ("new", true), ("new", true), ("new", true), ("bad", false)] {
            let release = make_of(&f, word);
            if good {
                f.store.promote(&release.id, "compose", BTreeMap::new(), number(&release.id)).unwrap();
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
        assert!(f.store.is_whole(&f.store.named("r1").unwrap().images["gateway"]));
    }
}
