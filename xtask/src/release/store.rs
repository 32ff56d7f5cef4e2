//! The releases of one pilot on disk: lists, makes, checks and promotes them. `retention` removes old ones.

use crate::base::deadline::now_ms;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode};
use crate::base::machine;
use crate::base::next::Next;
use crate::release::description::{ENVIRONMENT_FILE, Image, Note, Parts, Release, State, mode_of};
use crate::release::form::{DESCRIPTION, is_release_id};
use crate::stack::definition::{Definition, Environment, Resolved};
use crate::stack::envfile::EnvFile;
use crate::stack::layout::Layout;
use crate::stack::ledger::{Ledger, Record};
use crate::stack::pilot::MODEL_FILE;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The releases of one pilot.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) state: StateDir,
    pub(super) ledger: Ledger,
}

impl Store {
    /// The store in a state folder alone. The folder need not exist yet.
    pub fn new(state: &StateDir) -> Self {
        Self::of(state, Ledger::new(state))
    }

    /// The store of a stack, with its records.
    pub fn of(state: &StateDir, ledger: Ledger) -> Self {
        Self { state: state.clone(), ledger }
    }

    /// The state folder.
    pub fn folder(&self) -> &Path {
        self.state.path()
    }

    /// Folder of a release.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.state.release(id)
    }

    /// One file of a release.
    pub fn file(&self, id: &str, name: &str) -> PathBuf {
        self.dir(id).join(name)
    }

    /// Path of the xtask of a release, by its SHA-256.
    pub fn xtask(&self, sum: &str) -> PathBuf {
        self.state.program(sum)
    }

    /// All releases that can be read, oldest first, and an error for each of the others.
    pub fn list(&self) -> Result<(Vec<Release>, Vec<String>)> {
        let (mut releases, mut broken) = (Vec::new(), Vec::new());
        for name in self.ids()? {
            match self.read(&name) {
                Ok(release) => releases.push(release),
                Err(error) => broken.push(format!("{error:#}")),
            }
        }
        releases.sort_by_key(|r| number(&r.id));
        Ok((releases, broken))
    }

    /// The ids of all releases, also of those that cannot be read: of every client.
    pub fn ids(&self) -> Result<BTreeSet<String>> {
        let mut all = self.ids_here()?;
        all.extend(self.shared_ids()?);
        Ok(all)
    }

    /// What every client knows of a release counts, else what is in the folder.
    pub(super) fn read(&self, id: &str) -> Result<Release> {
        if !is_release_id(id) {
            bail!("{id:?} in {} is not a release", self.state.releases().display());
        }
        match self.shared(id) {
            Some(shared) => shared.with_context(|| format!("cannot use release {id} at the engine")),
            None => self.read_here(id),
        }
    }

    /// A release as the folder has it.
    pub(super) fn read_here(&self, id: &str) -> Result<Release> {
        let path = self.file(id, DESCRIPTION);
        let bytes = files::read(&path)?;
        let release = Release::parse(&bytes).with_context(|| format!("cannot use {}", path.display()))?;
        if release.id != id {
            bail!("{} has the id {}, which is not the name of its folder", path.display(), release.id);
        }
        Ok(release)
    }

    /// What the stack of a release is; none if it was made by an older version.
    pub fn definition(&self, release: &Release) -> Result<Option<Definition>> {
        if !release.files.contains_key(MODEL_FILE) {
            return Ok(None);
        }
        let path = self.file(&release.id, MODEL_FILE);
        let definition = Definition::parse(&files::read(&path)?);
        definition.with_context(|| format!("cannot use {}", path.display())).map(Some)
    }

    /// The environment of each service of a release; none if it is not known.
    pub fn environment(&self, release: &Release) -> Result<Option<Environment>> {
        if !release.files.contains_key(ENVIRONMENT_FILE) {
            return Ok(None);
        }
        files::read_json(&self.file(&release.id, ENVIRONMENT_FILE)).map(Some)
    }

    /// The settings in the env file of a release.
    pub fn settings(&self, release: &Release) -> Result<EnvFile> {
        settings_in(&self.dir(&release.id), &release.layout)
    }

    /// The release that runs, or that was being deployed when a run was cut off.
    pub fn current(&self) -> Result<Option<Release>> {
        let Some(id) = self.ledger().read(Record::Running)? else { return Ok(None) };
        self.read(String::from_utf8_lossy(&id).trim()).map(Some)
    }

    /// Records which release is deployed from now on.
    pub fn set_current(&self, id: &str) -> Result<()> {
        // Nothing to write if it is recorded already; so a full disk does not matter then.
        if self.current().ok().flatten().is_some_and(|r| r.id == id) {
            return Ok(());
        }
        self.ledger().replace(Record::Running, format!("{id}\n").as_bytes())
    }

    /// The records beside the releases.
    pub fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// The release that the user named. An error (exit 2) lists the releases that exist.
    pub fn named(&self, name: &str) -> Result<Release> {
        let (releases, broken) = self.list()?;
        if let Some(found) = releases.iter().find(|r| r.id == name) {
            return Ok(found.clone());
        }
        let path = format!("{}: ", self.file(name, DESCRIPTION).display());
        if let Some(error) = broken.iter().find(|e| e.contains(path.trim_end_matches(": "))) {
            return Err(fail(Exit::Usage, error.clone(), Next::xtask("releases list")));
        }
        let ids: Vec<&str> = releases.iter().map(|r| r.id.as_str()).collect();
        let there =
            if ids.is_empty() { "there are none".into() } else { format!("there are {}", ids.join(", ")) };
        let nearest = nearest(name, &ids).map(|id| format!("; did you mean {id}?")).unwrap_or_default();
        let what = format!("there is no release {name}; {there}{nearest}");
        Err(fail(Exit::Usage, what, Next::xtask("releases list")))
    }

    /// Every known-good release; the one that was verified last comes first.
    pub fn known_good(&self) -> Result<Vec<Release>> {
        let (mut releases, _) = self.list()?;
        releases.retain(Release::is_known_good);
        releases.sort_by_key(|r| std::cmp::Reverse((r.verified(), number(&r.id))));
        Ok(releases)
    }

    /// Do all files of a release exist unchanged? The error names the first that does not.
    pub fn check_files(&self, release: &Release) -> Result<()> {
        for (name, sum) in &release.files {
            let path = self.file(&release.id, name);
            let found = files::sha256(&path)?;
            if &found != sum {
                bail!(
                    "{} was altered: its checksum is not the one in release {}",
                    path.display(),
                    release.id
                );
            }
        }
        Ok(())
    }

    /// The same for everything of a release: also its images, and the xtask that made it.
    pub fn check(&self, release: &Release) -> Result<()> {
        self.check_all(std::slice::from_ref(release)).into_iter().collect()
    }

    /// An id that no release has yet.
    pub fn free_id(&self) -> Result<String> {
        let taken = self.ids()?;
        let highest = taken.iter().map(|id| number(id)).max().unwrap_or(0);
        // A client that has the files of a release that was removed must not take another one for it.
        let next = highest.max(self.ledger.gone()?.highest()) + 1;
        let id = (next..).map(|n| format!("r{n}")).find(|id| !self.dir(id).exists());
        id.context("there is no free release id")
    }

    /// Makes a release, as a candidate. Everything is copied into a hidden folder, which is then renamed.
    /// `resolved` is what the engine made of the files. Its images are not saved yet.
    pub fn create(&self, parts: Parts<'_>, resolved: &Resolved) -> Result<Release> {
        let id = self.free_id()?;
        let staging = self.dir(&format!(".{id}"));
        files::remove(&staging)?;
        let mut sums = BTreeMap::new();
        for (name, from) in &parts.files {
            sums.insert(name.clone(), files::copy(from, &staging.join(name), mode_of(name, &parts.layout))?);
        }
        for folder in &parts.layout.build_folders {
            files::make_folder(&staging.join(folder))?;
        }
        files::write_json(&staging.join(MODEL_FILE), &resolved.definition, Mode::Plain)?;
        sums.insert(MODEL_FILE.to_owned(), files::sha256(&staging.join(MODEL_FILE))?);
        if let Some(environment) = &resolved.environment {
            let path = staging.join(ENVIRONMENT_FILE);
            files::write_json(&path, environment, Mode::Private)?;
            sums.insert(ENVIRONMENT_FILE.to_owned(), files::sha256(&path)?);
        }
        let unsaved = |(service, image): (String, Image)| (service, Image::new(image.id, image.tag));
        let images = parts.images.into_iter().map(unsaved).collect();
        let release = Release {
            commit: parts.commit,
            inputs: parts.inputs,
            layout: parts.layout,
            files: sums,
            xtask: self.keep_xtask()?,
            ..Release::unrecorded(&parts.label, parts.engine, images)
        };
        let release = Release { id: id.clone(), ..release };
        files::write_json(&staging.join(DESCRIPTION), &release, Mode::Plain)?;
        self.share(&release, &staging)?;
        files::rename(&staging, &self.dir(&id)).with_context(|| format!("cannot publish release {id}"))?;
        Ok(release)
    }

    /// The folder in which an import unpacks an archive.
    pub fn import_folder(&self) -> PathBuf {
        self.state.import()
    }

    /// Keeps a copy of this program, so that a rollback needs no compiler. `.pilot/xtask`
    /// links to the newest copy.
    fn keep_xtask(&self) -> Result<String> {
        let me = machine::this_program()?;
        let sum = files::sha256(&me)?;
        let path = self.xtask(&sum);
        if !path.exists() {
            files::copy(&me, &path, Mode::Program)?;
        }
        let link = self.state.newest_program();
        let staging = link.with_file_name(".xtask.new");
        std::fs::remove_file(&staging).ok();
        std::os::unix::fs::symlink(Path::new("bin").join(&sum), &staging)
            .and_then(|()| files::rename(&staging, &link))
            .with_context(|| format!("cannot make {}", link.display()))?;
        Ok(sum)
    }

    /// Makes it known-good: its smoke checks have passed in the run with this number, with these settings, and its
    /// images are saved.
    pub fn promote(
        &self,
        id: &str,
        engine: &str,
        settings: BTreeMap<String, String>,
        run: u64,
    ) -> Result<()> {
        let release = self.read(id)?;
        let open = release.images.iter().find(|(_, image)| !image.is_saved());
        ensure!(open.is_none(), "the image of {} is not saved", open.map_or("", |(service, _)| service));
        // The numbers of runs belong to one folder. What another client has verified was verified before this.
        let before = self.list()?.0.into_iter().filter_map(|release| release.verified_run).max();
        let run = before.map_or(run, |before| run.max(before + 1));
        self.change(id, |release| {
            release.state = State::KnownGood;
            release.reason = None;
            release.verified_ms = Some(now_ms());
            release.verified_run = Some(run);
            (release.engine, release.settings) = (engine.to_owned(), settings);
        })
    }

    /// Notes that this commit gives exactly the same release.
    pub fn same_commit(&self, id: &str, commit: &str) -> Result<()> {
        self.change(id, |release| release.same_commits.push(commit.to_owned()))
    }

    /// Replaces the note about it; an empty text removes the note.
    pub fn annotate(&self, id: &str, note: Note) -> Result<()> {
        self.change(id, |release| release.note = Some(note).filter(|note| !note.text.is_empty()))
    }

    /// From now on retention never removes it, or may remove it again.
    pub fn pin(&self, id: &str, pinned: bool) -> Result<()> {
        self.change(id, |release| release.pinned = pinned)
    }

    /// Marks it as failed. Only a candidate can fail; a release that was known-good may be tried again.
    pub fn mark_failed(&self, id: &str, reason: &str) -> Result<()> {
        self.change(id, |release| {
            if release.state == State::Candidate {
                release.state = State::Failed;
                release.reason = Some(crate::base::secrets::mask(reason));
            }
        })
    }

    pub(super) fn change(&self, id: &str, how: impl FnOnce(&mut Release)) -> Result<()> {
        let mut release = self.read(id)?;
        how(&mut release);
        self.share_change(&release)?;
        files::write_json(&self.file(id, DESCRIPTION), &release, Mode::Plain)
    }
}

/// The settings in the env file of the stack whose files are in `dir`; none if it has no env file.
pub fn settings_in(dir: &Path, layout: &Layout) -> Result<EnvFile> {
    let Some(name) = &layout.env else { return Ok(EnvFile::default()) };
    let path = dir.join(name);
    EnvFile::parse(&path.display().to_string(), &files::read(&path)?)
}

/// The number in `r12`; 0 for any other form.
pub(super) fn number(id: &str) -> u64 {
    id.strip_prefix('r').and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The name that is most similar to `name`: one character is wrong, missing or too many. The names are short, so with
/// two almost every name would be similar.
fn nearest<'a>(name: &str, all: &[&'a str]) -> Option<&'a str> {
    let near = all.iter().rev().map(|other| (strsim::levenshtein(name, other), *other));
    near.min_by_key(|(distance, _)| *distance).filter(|(distance, _)| *distance <= 1).map(|(_, other)| other)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::stack::manifest::MANIFEST_FILE;
    use std::os::unix::fs::PermissionsExt;

    const COMPOSE_FILE: &str = "docker-compose.poc.yml";
    const ENV_FILE: &str = ".env.poc";
    const SEED_FILE: &str = "demo-scenario.json";

    /// A store, and files to make releases of.
    pub struct Fixture {
        scratch: files::Scratch,
        /// The store.
        pub store: Store,
    }

    /// An empty one.
    pub fn fixture() -> Fixture {
        let scratch = files::Scratch::new("release-test").unwrap();
        for name in [COMPOSE_FILE, ENV_FILE, SEED_FILE, MANIFEST_FILE] {
            std::fs::write(scratch.path().join(name), name).unwrap();
        }
        let store = Store::new(&StateDir::new(scratch.path().join("state")));
        Fixture { scratch, store }
    }

    /// One that differs from all that have another word.
    pub fn make_of(f: &Fixture, word: &str) -> Release {
        std::fs::write(f.scratch.path().join(SEED_FILE), word).unwrap();
        make(f)
    }

    fn nothing() -> Resolved {
        let definition = Definition::new(BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let environment =
            BTreeMap::from([("db".to_owned(), BTreeMap::from([("A".to_owned(), "1".to_owned())]))]);
        Resolved { definition, environment: Some(environment) }
    }

    fn make(f: &Fixture) -> Release {
        let image = Image::new(format!("sha256:{:064}", 7), "x:latest".into());
        let parts = Parts {
            label: "v1".into(),
            commit: None,
            engine: "process",
            images: BTreeMap::from([("gateway".to_owned(), image)]),
            inputs: None,
            layout: Layout::default(),
            files: [COMPOSE_FILE, ENV_FILE, SEED_FILE, MANIFEST_FILE]
                .map(|name| (name.to_owned(), f.scratch.path().join(name)))
                .into(),
        };
        let release = f.store.create(parts, &nothing()).unwrap();
        f.store.save_images(&release.id, 1, &|_, take| take(&mut "image".as_bytes())).unwrap();
        f.store.named(&release.id).unwrap()
    }

    #[test]
    fn the_last_known_good_is_the_one_verified_last_and_never_a_failed_one() {
        let f = fixture();
        for _ in 0..3 {
            make(&f);
        }
        f.store.promote("r1", "compose", BTreeMap::new(), 1).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        f.store.promote("r2", "compose", BTreeMap::new(), 2).unwrap();
        f.store.mark_failed("r3", "smoke").unwrap();
        let ids = |f: &Fixture| f.store.known_good().unwrap().into_iter().map(|r| r.id).collect::<Vec<_>>();
        assert_eq!(ids(&f), ["r2", "r1"]);
        std::thread::sleep(std::time::Duration::from_millis(2));
        f.store.promote("r1", "compose", BTreeMap::new(), 3).unwrap();
        assert_eq!(ids(&f), ["r1", "r2"]);
        f.store.mark_failed("r1", "smoke").unwrap();
        assert_eq!(ids(&f), ["r1", "r2"]);
    }

    #[test]
    fn a_release_of_an_older_version_has_no_model_and_is_the_same_as_with_one() {
        let f = fixture();
        let new = make(&f);
        assert_eq!(f.store.definition(&new).unwrap(), Some(nothing().definition));
        assert_eq!(f.store.environment(&new).unwrap(), nothing().environment);
        let mode = std::fs::metadata(f.store.file("r1", ENVIRONMENT_FILE)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let mut old = new.clone();
        old.files.remove(MODEL_FILE).unwrap();
        old.files.remove(ENVIRONMENT_FILE).unwrap();
        assert_eq!(f.store.definition(&old).unwrap(), None);
        assert_eq!(f.store.environment(&old).unwrap(), None);
        assert!(old.same_content(&new) && new.same_content(&old));
        old.files.remove(SEED_FILE).unwrap();
        assert!(!old.same_content(&new));
        std::fs::write(f.store.file("r1", MODEL_FILE), "{}").unwrap();
        assert!(f.store.definition(&new).unwrap_err().to_string().contains(MODEL_FILE));
    }

    #[test]
    fn an_altered_or_missing_file_is_refused_by_name() {
        let f = fixture();
        let release = make(&f);
        f.store.check_files(&release).unwrap();
        std::fs::write(f.store.file("r1", ENV_FILE), "other").unwrap();
        assert!(f.store.check_files(&release).unwrap_err().to_string().contains(ENV_FILE));
        std::fs::remove_file(f.store.file("r1", ENV_FILE)).unwrap();
        assert!(f.store.check_files(&release).unwrap_err().to_string().contains(ENV_FILE));
    }

    #[test]
    fn a_newer_format_is_refused_and_an_unknown_name_lists_the_nearest() {
        let f = fixture();
        make(&f);
        let error = f.store.named("r11").unwrap_err().to_string();
        assert!(error.contains("there are r1") && error.contains("did you mean r1"), "{error}");
        let error = f.store.named("r99").unwrap_err().to_string();
        assert!(error.contains("there are r1") && !error.contains("did you mean"), "{error}");
        let path = f.store.file("r1", "release.json");
        let text = std::fs::read_to_string(&path).unwrap().replace("\"version\": 3", "\"version\": 4");
        std::fs::write(&path, text).unwrap();
        assert!(f.store.named("r1").unwrap_err().to_string().contains("newer format"));
        assert_eq!(f.store.list().unwrap().0.len(), 0);
    }
}
