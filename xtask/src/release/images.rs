//! The images of releases in the store: saves, checks and opens them. What they consist of is in `blobs`. An image
//! that an older version has saved is one archive in `.pilot/images/`; it is read as it is, and not converted.

use crate::base::files::{self, Mode};
use crate::base::screen;
use crate::base::threads::side_by_side;
use crate::release::blobs::{self, Joined, Part};
use crate::release::description::{Image, Release};
use crate::release::store::Store;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// How many files are read at a time to check them.
const READERS: usize = 4;

/// A file that a release needs, and its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Needed {
    /// Where it is.
    pub path: PathBuf,
    /// What it must be.
    pub sum: String,
}

/// Saves an image: the engine gives its stream to be taken.
pub type Save<'a> = dyn Fn(&Image, &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> + Sync + 'a;

/// The stream of an image, for an engine to load.
pub struct Saved {
    from: Box<dyn Read + Send>,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Read for Saved {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.from.read(into)
    }
}

impl Store {
    /// The index of an image, or none if it is an archive. `read` reads a file of the store.
    fn index(&self, image: &Image, read: impl Fn(&Path) -> Result<Vec<u8>>) -> Result<Option<Vec<u8>>> {
        let Some(sum) = &image.index else {
            ensure!(image.archive.is_some(), "image {} was never saved", image.id);
            return Ok(None);
        };
        let path = self.state.blob(sum);
        let index = read(&path).with_context(|| format!("image {} is not saved in this folder", image.id))?;
        ensure!(
            files::sha256_bytes(&index) == *sum,
            "{} was altered: its checksum is not its name",
            path.display()
        );
        Ok(Some(index))
    }

    /// The files that an image consists of. `read` reads a file of the store; only the index is read.
    pub fn needed_by(&self, image: &Image, read: impl Fn(&Path) -> Result<Vec<u8>>) -> Result<Vec<Needed>> {
        let blob = |sum: &str| Needed { path: self.state.blob(sum), sum: sum.to_owned() };
        match (self.index(image, read)?, &image.index, &image.archive) {
            (Some(index), Some(sum), _) => {
                let parts = blobs::parts(&index)
                    .with_context(|| format!("cannot use {}", self.state.blob(sum).display()))?;
                let large = parts.into_iter().filter_map(|part| match part {
                    Part::Blob(sum, _) => Some(blob(&sum)),
                    Part::Inside(_) => None,
                });
                Ok(std::iter::once(blob(sum)).chain(large).collect())
            }
            (_, _, Some(sum)) => Ok(vec![Needed { path: self.state.image(&image.id), sum: sum.clone() }]),
            _ => bail!("image {} was never saved", image.id),
        }
    }

    /// Opens an image to be loaded. An archive is checked first, a blob before its last byte is given out. So no
    /// engine gets a whole image that was altered.
    pub fn open(&self, image: &Image) -> Result<Saved> {
        self.open_without(image, &BTreeSet::new())
    }

    /// The same without the layers with these checksums. An archive is opened as it is.
    pub fn open_without(&self, image: &Image, layers: &BTreeSet<String>) -> Result<Saved> {
        let Some(index) = self.index(image, files::read)? else {
            for needed in self.needed_by(image, files::read)? {
                needed.check()?;
            }
            let file = files::open_regular(&self.state.image(&image.id))?;
            let bytes = file.metadata().context("cannot read the size of an archive")?.len();
            return Ok(Saved { from: Box::new(file), bytes });
        };
        let length = |part: &Part| match part {
            Part::Inside(range) => range.len() as u64,
            Part::Blob(_, bytes) => *bytes,
        };
        let parts = blobs::without(blobs::parts(&index)?, layers);
        let bytes = parts.iter().map(length).fold(0, u64::saturating_add);
        Ok(Saved { from: Box::new(Joined::new(&self.state, index, parts)), bytes })
    }

    /// Does everything of each release exist unchanged: its files, its images, and the xtask that made it? What
    /// several releases need is read once, and several files are read at a time.
    pub fn check_all(&self, releases: &[Release]) -> Vec<Result<()>> {
        let _shown = screen::doing("read every file and every image");
        let all: Vec<Result<Vec<Needed>>> = releases.iter().map(|release| self.needed(release)).collect();
        let each: BTreeSet<&PathBuf> = all.iter().flatten().flatten().map(|needed| &needed.path).collect();
        let each: Vec<&PathBuf> = each.into_iter().collect();
        let sums = side_by_side(READERS, each.clone(), |path| files::sha256(path));
        let sums: BTreeMap<&PathBuf, Result<String, String>> = each
            .into_iter()
            .zip(sums.into_iter().map(|sum| sum.map_err(|error| format!("{error:#}"))))
            .collect();
        let judge = |needed: &Needed| match sums.get(&needed.path) {
            Some(Ok(sum)) => needed.judge(sum),
            Some(Err(error)) => bail!("{error}"),
            None => bail!("{} was not read", needed.path.display()),
        };
        all.iter()
            .map(|needed| match needed {
                Ok(needed) => needed.iter().try_for_each(judge),
                Err(error) => bail!("{error:#}"),
            })
            .collect()
    }

    /// Every file of a release but its description.
    fn needed(&self, release: &Release) -> Result<Vec<Needed>> {
        let own = release.files.iter();
        let own = own.map(|(name, sum)| Needed { path: self.file(&release.id, name), sum: sum.clone() });
        let mut all: Vec<Needed> = own.collect();
        // Only what a rollback can go to needs its images.
        let unneeded = |image: &&Image| !release.is_known_good() && !image.is_saved();
        let fetched = self.is_fetched(&release.id);
        for image in release.images.values().filter(|image| !unneeded(image)) {
            ensure!(
                !fetched || self.has(image),
                "image {} was saved by another client and not here: `releases pull` does it",
                image.id
            );
            all.extend(self.needed_by(image, files::read)?);
        }
        // That of a release of another client is with that client.
        if !fetched {
            all.push(Needed { path: self.xtask(&release.xtask), sum: release.xtask.clone() });
        }
        Ok(all)
    }

    /// Saves the images of a release that another client has saved and that are not here, while the engine has them.
    /// Returns how many there were.
    pub fn pull_images(&self, release: &Release, most: usize, save: &Save<'_>) -> Result<usize> {
        let missing = release.images.values().filter(|image| image.is_saved() && !self.has(image));
        let missing: BTreeMap<&String, &Image> = missing.map(|image| (&image.id, image)).collect();
        let missing: Vec<&Image> = missing.into_values().collect();
        let saved = side_by_side(most, missing, |image| {
            let saved = self.save_image(image, save)?;
            ensure!(
                saved.index == image.index,
                "the engine gives image {} in another form than the one that it was saved in",
                image.id
            );
            Ok(())
        });
        let saved = saved.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(saved.len())
    }

    /// Saves the images of a release that are not saved yet, `most` at a time, each once even if services share it.
    /// What is written is read back. An image that another release has saved is checked, and saved anew if it was
    /// altered.
    pub fn save_images(&self, id: &str, most: usize, save: &Save<'_>) -> Result<()> {
        let release = self.named(id)?;
        let open = release.images.values().filter(|image| !image.is_saved());
        let open: BTreeMap<&String, &Image> = open.map(|image| (&image.id, image)).collect();
        if open.is_empty() {
            return Ok(());
        }
        let open: Vec<&Image> = open.into_values().collect();
        let (releases, _) = self.list()?;
        let saved = side_by_side(most, open, |image| {
            let all = releases.iter().flat_map(|release| release.images.values());
            let known = all.filter(|known| known.id == image.id && known.is_saved());
            match known.into_iter().find(|known| self.is_whole(known)) {
                Some(known) => Ok(known.clone()),
                None => self.save_image(image, save),
            }
        });
        let saved = saved.into_iter().collect::<Result<Vec<Image>>>()?;
        self.change(id, |release| {
            for image in release.images.values_mut() {
                if let Some(saved) = saved.iter().find(|saved| saved.id == image.id) {
                    (image.index, image.archive) = (saved.index.clone(), saved.archive.clone());
                }
            }
        })
    }

    /// Are the files of an image there? Only the index is read.
    pub fn has(&self, image: &Image) -> bool {
        let needed = self.needed_by(image, files::read);
        needed.is_ok_and(|needed| needed.iter().all(|needed| needed.path.is_file()))
    }

    /// Does an image exist unchanged? It is read completely.
    pub fn is_whole(&self, image: &Image) -> bool {
        let needed = self.needed_by(image, files::read);
        needed.is_ok_and(|needed| needed.iter().all(|needed| needed.check().is_ok()))
    }

    /// Saves an image, and returns it with its index, which the caller records.
    pub fn save_image(&self, image: &Image, save: &Save<'_>) -> Result<Image> {
        let mut index = None;
        save(image, &mut |from| {
            index = Some(blobs::cut(from, &self.state)?);
            Ok(())
        })
        .with_context(|| format!("cannot save image {}", image.id))?;
        let index = index.with_context(|| format!("the engine gave nothing of image {}", image.id))?;
        let sum = files::sha256_bytes(&index);
        files::write(&self.state.blob(&sum), &index, Mode::Plain)?;
        Ok(Image { index: Some(sum), ..image.clone() })
    }

    /// The blobs that no release names. It is an error if that is not known.
    pub(super) fn unnamed_blobs(&self) -> Result<Vec<String>> {
        let (releases, broken) = self.list()?;
        ensure!(broken.is_empty(), "{}", broken.join("; "));
        let indexed =
            releases.iter().flat_map(|release| release.images.values()).filter(|image| image.index.is_some());
        let mut named = BTreeSet::new();
        for image in indexed {
            // What another client has saved is not here.
            if !image.index.as_ref().is_some_and(|sum| self.state.blob(sum).exists()) {
                continue;
            }
            named.extend(self.needed_by(image, files::read)?.into_iter().map(|needed| needed.sum));
        }
        let mut all = files::names(&self.state.blobs())?;
        all.retain(|name| !named.contains(name));
        Ok(all)
    }
}

impl Needed {
    /// Reads the file.
    fn check(&self) -> Result<()> {
        self.judge(&files::sha256(&self.path)?)
    }

    fn judge(&self, found: &str) -> Result<()> {
        ensure!(
            found == self.sum,
            "{} was altered: its checksum is not the one in the release",
            self.path.display()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::store::tests::{fixture, make_of};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Forgets that the images of a release are saved.
    fn forget(store: &Store, id: &str, more: &[&str]) {
        store
            .change(id, |release| {
                let image = release.images["gateway"].clone();
                let services =
                    more.iter().map(|name| (*name).to_owned()).chain(release.images.keys().cloned());
                let unsaved = Image::new(image.id, image.tag);
                release.images = services.map(|name| (name, unsaved.clone())).collect();
            })
            .unwrap();
    }

    #[test]
    fn an_image_is_saved_once_and_a_damaged_one_anew_and_all_releases_have_it_again() {
        let f = fixture();
        let saved = AtomicU32::new(0);
        let save = |id: &str| {
            f.store.save_images(id, 3, &|_, take| {
                saved.fetch_add(1, Ordering::SeqCst);
                take(&mut "image".as_bytes())
            })
        };
        make_of(&f, "first");
        make_of(&f, "second");
        let image = |id: &str| f.store.named(id).unwrap().images["jobs"].clone();
        for id in ["r1", "r2"] {
            forget(&f.store, id, &["jobs", "engine"]);
        }
        assert!(
            f.store
                .promote("r1", "compose", BTreeMap::new(), 1)
                .unwrap_err()
                .to_string()
                .contains("not saved")
        );
        save("r1").unwrap();
        f.store.promote("r1", "compose", BTreeMap::new(), 1).unwrap();
        save("r2").unwrap();
        assert_eq!(saved.load(Ordering::SeqCst), 1);
        assert!(f.store.is_whole(&image("r2")) && image("r1") == image("r2"));
        let mut text = String::new();
        f.store.open(&image("r1")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "image");
        let blob = f.store.needed_by(&image("r1"), files::read).unwrap().remove(0).path;
        std::fs::write(&blob, "noise").unwrap();
        assert!(f.store.open(&image("r1")).is_err() && !f.store.is_whole(&image("r1")));
        forget(&f.store, "r2", &["jobs"]);
        save("r2").unwrap();
        assert_eq!(saved.load(Ordering::SeqCst), 2);
        assert!(f.store.is_whole(&image("r1")) && f.store.is_whole(&image("r2")));
        // A release whose images cannot be saved is as before.
        forget(&f.store, "r2", &[]);
        std::fs::remove_file(&blob).unwrap();
        assert!(f.store.save_images("r2", 3, &|_, _| bail!("no room")).is_err());
        assert!(!f.store.named("r2").unwrap().images["gateway"].is_saved());
    }

    #[test]
    fn an_archive_of_an_older_version_is_read_as_it_is() {
        let f = fixture();
        let release = make_of(&f, "old");
        let id = release.images["gateway"].id.clone();
        let path = f.store.folder().join(format!("images/{}.tar", id.trim_start_matches("sha256:")));
        files::write(&path, b"archive", Mode::Plain).unwrap();
        let archive = Some(files::sha256_bytes(b"archive"));
        let old = Image { archive, ..Image::new(id, "x:latest".into()) };
        f.store.change("r1", |release| drop(release.images.insert("gateway".into(), old.clone()))).unwrap();
        f.store.check(&f.store.named("r1").unwrap()).unwrap();
        let mut text = String::new();
        f.store.open(&old).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "archive");
        // Another release of the same image names it too.
        make_of(&f, "new");
        forget(&f.store, "r2", &[]);
        f.store.save_images("r2", 1, &|_, _| bail!("it is saved already")).unwrap();
        assert_eq!(f.store.named("r2").unwrap().images["gateway"], old);
        std::fs::write(&path, "archivex").unwrap();
        let error = f.store.check(&f.store.named("r1").unwrap()).unwrap_err().to_string();
        assert!(error.contains(".tar was altered"), "{error}");
        assert!(f.store.open(&old).is_err());
    }

    #[test]
    fn each_release_is_judged_and_only_what_no_release_names_is_removed() {
        let f = fixture();
        for word in ["one", "two"] {
            make_of(&f, word);
        }
        let all = |f: &crate::release::store::tests::Fixture| f.store.list().unwrap().0;
        let image = all(&f)[0].images["gateway"].clone();
        let blob = f.store.needed_by(&image, files::read).unwrap().remove(0).path;
        let stray = blob.with_file_name("0".repeat(64));
        let half = blob.with_file_name("half.new");
        for path in [&stray, &half] {
            std::fs::write(path, "left by a save that was cut off").unwrap();
        }
        std::fs::write(f.store.file("r1", "demo-scenario.json"), "altered").unwrap();
        let checked = f.store.check_all(&all(&f));
        assert!(checked[0].as_ref().unwrap_err().to_string().contains("demo-scenario.json"));
        assert!(checked[1].is_ok());
        f.store.remove_unfinished().unwrap();
        assert!(!stray.exists() && !half.exists() && blob.exists());
        // What an index names is not known if it cannot be read: then nothing is removed.
        std::fs::write(&stray, "stray").unwrap();
        let whole = std::fs::read(&blob).unwrap();
        std::fs::write(&blob, "noise").unwrap();
        f.store.remove_unfinished().unwrap();
        assert!(stray.exists());
        std::fs::write(&blob, whole).unwrap();
        f.store.remove_unfinished().unwrap();
        assert!(!stray.exists() && f.store.check_all(&all(&f))[1].is_ok());
    }
}
