//! Makes candidates for a release: from the source, from existing images, from a commit, or from parts of a
//! backup; and the env file that they need. Nothing is deployed here. Called by `up`, by `rollback` for a
//! commit, and by `backup restore`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::base::screen;
use crate::base::secrets;
use crate::base::threads::joined;
use crate::deploy::run::{self, Request};
use crate::deploy::session::Session;
use crate::engine::carry;
use crate::engine::roles::{Build, Engine};
use crate::engine::tree;
use crate::release::description::{Image, Parts, Release, State};
use crate::release::source::{self, Worktree};
use crate::stack::definition::{self, Definition, Mount, Resolved};
use crate::stack::envfile::{EnvFile, with_value};
use crate::stack::judge;
use crate::stack::layout::Layout;
use crate::stack::manifest::{MANIFEST_FILE, Manifest};
use crate::stack::pilot::Pilot;
use crate::stack::ports;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The time limit for building images, and for loading those that were built before.
const IMAGES: Duration = Duration::from_secs(300);

/// The largest number of files in a folder that a service mounts. More are data, which belongs into a volume.
const MOST_MOUNTED: usize = 1000;

/// How many digits of a commit name a version.
const SHORT: usize = 9;

/// What to make a release from.
#[derive(Clone, Copy, Debug, Default)]
pub enum Source<'a> {
    /// The source as it is.
    #[default]
    Tree,
    /// Existing images with this tag, and the files of the source.
    Tag(&'a str),
    /// A commit, or a label of `known-good.toml`.
    Commit(&'a str),
}

/// The stack that a release is made of, before its images are there.
pub struct Candidate<'a> {
    session: &'a Session,
    source: Source<'a>,
    /// The env file.
    env: &'a Path,
    /// The commit in a worktree of its own.
    worktree: Option<Worktree>,
    commit: Option<String>,
    /// The stack by the manifest of the source.
    pub pilot: Pilot,
    /// The engine, by that manifest.
    pub engine: Box<dyn Engine>,
    resolved: Resolved,
}

/// Finds out what the stack of the source is, with this env file. Errors (exit 2): the source cannot be understood.
pub fn stack<'a>(source: Source<'a>, env: &'a Path, session: &'a Session) -> Result<Candidate<'a>> {
    let pilot = &session.pilot;
    let _shown = screen::doing("read the stack");
    let worktree = match source {
        Source::Commit(rev) => {
            let commit = source::commit_of(pilot, rev)?.ok_or_else(|| {
                fail(
                    Exit::Usage,
                    format!("git knows no commit {rev}"),
                    Next::shell("git log --oneline").so("lists the commits; git fetch gets more"),
                )
            })?;
            // Git still lists the worktrees of commands that were interrupted.
            if let Err(error) = source::remove_worktrees(pilot) {
                session.out.note(format!("an old worktree could not be removed: {error:#}"));
            }
            Some((Worktree::new(pilot, &commit)?, commit))
        }
        Source::Tree | Source::Tag(_) => None,
    };
    let (worktree, commit) = match worktree {
        Some((worktree, commit)) => (Some(worktree), Some(commit)),
        None => (None, source::head(pilot)),
    };
    let root = worktree.as_ref().map_or(pilot.root.as_path(), Worktree::path);
    // Without the slash that `join` puts after the root if the stack is there.
    let pack: PathBuf = root.join(pilot.pack.strip_prefix(&pilot.root)?).components().collect();
    let manifest = Manifest::in_folder(&pack)?;
    let layout = Layout::of(&pack, &manifest)?;
    let mut pilot =
        Pilot { root: root.to_owned(), pack, manifest, layout, definition: None, ..pilot.clone() };
    // Compose reads the files and asks no engine. On a busy machine that alone takes seconds.
    let deadline = Deadline::after(pilot.manifest.limits.deploy);
    let place = |name: &str| pilot.source(name, env);
    let resolved = tree::resolve(&pilot, &place, session.engine.as_ref(), deadline)?;
    pilot.definition = Some(resolved.definition.clone());
    let engine = session.engine.for_stack(&pilot)?;
    let candidate = Candidate { session, source, env, worktree, commit, pilot, engine, resolved };
    candidate.check()?;
    Ok(candidate)
}

/// The compose files of the source, for a message.
fn files(pilot: &Pilot) -> String {
    let all = pilot.layout.compose.iter().map(|name| pilot.pack.join(name).display().to_string());
    all.collect::<Vec<_>>().join(" or ")
}

impl Candidate<'_> {
    /// Refuses what cannot work here, all of it at once.
    fn check(&self) -> Result<()> {
        let Self { session, pilot, engine, resolved: Resolved { definition, .. }, .. } = self;
        let deadline = Deadline::after(pilot.manifest.limits.engine);
        let refusals = engine.refusals(definition, &self.files()?.into_keys().collect(), deadline)?;
        if !refusals.is_empty() {
            let what = format!("the stack cannot be deployed:\n  - {}", refusals.join("\n  - "));
            return Err(fail(Exit::Usage, what, format!("fix {}; nothing was begun", files(pilot))));
        }
        engine.remarks().into_iter().for_each(|remark| session.out.note(remark));
        let elsewhere = engine.elsewhere();
        if let (Some(host), Some(_)) = (&elsewhere, &pilot.manifest.build) {
            source::builds_with(host)?;
        }
        let outside = judge::not_in_a_release(definition);
        if !outside.is_empty() {
            let what = "not part of the release, so no rollback restores it";
            let of = elsewhere.map(|host| format!(" (of {host})")).unwrap_or_default();
            session.out.note(format!("{what}: {}{of}", outside.join(", ")));
        }
        Ok(())
    }

    /// What the stack is.
    pub fn definition(&self) -> &Definition {
        &self.resolved.definition
    }

    /// Makes the release, or finds the known-good release with the same content.
    pub fn release(self) -> Result<Release> {
        let (session, deadline) = (self.session, Deadline::after(IMAGES));
        let _shown = screen::doing("build what is new, and look for the images");
        // A label can name images. If they no longer exist, its commit is built.
        let point = match self.source {
            Source::Commit(rev) => source::restore_point(&session.pilot, rev)?.and_then(|point| point.tag),
            Source::Tree | Source::Tag(_) => None,
        };
        let kept = match (self.source, point) {
            _ if self.pilot.manifest.build.is_none() => None,
            (Source::Tag(tag), _) => Some((tag.to_owned(), self.engine.tagged(tag, deadline)?)),
            (_, Some(tag)) => match self.engine.tagged(&tag, deadline) {
                Ok(images) => Some((tag, images)),
                Err(error) if exit_of(&error) == Exit::Usage => None,
                Err(error) => return Err(error),
            },
            (_, None) => None,
        };
        let (label, mut images, inputs) = match kept {
            Some((label, images)) => (label, images, None),
            None if self.pilot.manifest.build.is_none() => (self.label(), BTreeMap::new(), None),
            None => self.build()?,
        };
        let env = self.env;
        let copy = tree::copied(&self.pilot, &|name| self.pilot.source(name, env))?;
        let tag = if let Source::Tag(tag) = self.source { Some(tag) } else { None };
        images.extend(self.engine.provide(
            &self.resolved.definition,
            copy.path(),
            tag,
            Deadline::after(IMAGES),
        )?);
        let (layout, commit) = (self.pilot.layout.clone(), self.commit.clone());
        let (engine, files) = (self.engine.kind().as_str(), self.files()?);
        let release =
            record(session, Parts { label, commit, engine, images, inputs, layout, files }, &self.resolved);
        drop(self.worktree);
        release
    }

    /// What a release is called whose images have no version: their tag, or the first digits of the commit.
    fn label(&self) -> String {
        let commit = || {
            let commit = self.commit.as_deref()?;
            let end = if commit.ends_with("-dirty") { "-dirty" } else { "" };
            Some(format!("{}{end}", commit.get(..SHORT)?))
        };
        match self.source {
            Source::Tag(tag) => tag.to_owned(),
            Source::Tree | Source::Commit(_) => commit().unwrap_or_else(|| "unversioned".to_owned()),
        }
    }

    /// Builds the images: their label, the images, and the checksum of what they were built from.
    fn build(&self) -> Result<(String, BTreeMap<String, Image>, Option<String>)> {
        let Self { session, pilot, engine, .. } = self;
        // To ask cargo for the version takes as long as to ask it whether anything must be built.
        let (binary, label) = std::thread::scope(|scope| {
            let label = scope.spawn(|| source::label(pilot, &pilot.root));
            (source::build(&session.pilot, &pilot.root, &|text| session.out.note(text)), joined(label))
        });
        let (binary, label) = (binary?, label?);
        let build = Build { binary: &binary, label: &label, fault: "" };
        let inputs = inputs(pilot, &build)?;
        let deadline = Deadline::after(IMAGES);
        let images = match made_before(session, engine.as_ref(), &inputs, &label, deadline)? {
            Some(images) => images,
            None => engine.build(&build, deadline)?,
        };
        Ok((label, images, Some(inputs)))
    }

    /// The files of the release, by their names in it. A folder that a service may only read is one of them.
    fn files(&self) -> Result<BTreeMap<String, PathBuf>> {
        let Pilot { pack, layout, manifest, .. } = &self.pilot;
        let services = || self.resolved.definition.services.values();
        let mounted = services().flat_map(|service| &service.files);
        let manifest_file = Some(MANIFEST_FILE.to_owned()).filter(|name| pack.join(name).is_file());
        let names = layout.files().chain(&layout.seed).chain(mounted).chain(&manifest_file);
        let mut names: BTreeSet<String> =
            names.chain(&manifest.extra_files).chain(manifest.scripts()).cloned().collect();
        for mount in services().flat_map(|service| &service.mounts).filter(|mount| mount.read_only) {
            if let Mount { source: definition::Source::Bind(path), .. } = mount
                && !path.starts_with('/')
                && pack.join(path).is_dir()
            {
                names.extend(files::below(pack, path, MOST_MOUNTED)?);
            }
        }
        let place = |name: String| {
            let path = self.pilot.source(&name, self.env);
            (name, path)
        };
        Ok(names.into_iter().map(place).collect())
    }
}

/// The checksum of everything that goes into the images. Its first part is the version of how they are made.
fn inputs(pilot: &Pilot, build: &Build<'_>) -> Result<String> {
    let Build { binary, label, fault } = *build;
    let program = files::sha256(binary)?;
    let services: Vec<&str> = pilot.services().collect();
    let all = serde_json::to_string(&(2, program, label, fault, &pilot.project, services))?;
    Ok(files::sha256_bytes(all.as_bytes()))
}

/// Images that an earlier release built from the same input. Building again would give different images,
/// because a build puts dates into them. Labels of an image are no proof, because images that are based on
/// ours inherit them. So a release records what its images, which are named by content, were built from. If
/// the engine lost some of them, they are loaded.
fn made_before(
    session: &Session,
    engine: &dyn Engine,
    inputs: &str,
    label: &str,
    deadline: Deadline,
) -> Result<Option<BTreeMap<String, Image>>> {
    let store = &session.store;
    let (mut made, _) = store.list()?;
    made.retain(|release| {
        release.engine == engine.kind().as_str() && release.inputs.as_deref() == Some(inputs)
    });
    if made.is_empty() {
        return Ok(None);
    }
    made.sort_by_key(|release| std::cmp::Reverse((release.verified_ms, release.created_ms)));
    let there = engine.images(deadline.within(session.pilot.manifest.limits.engine))?;
    for release in made {
        let lost = release.images.values().filter(|image| !there.contains(&image.id));
        let limit = session.pilot.manifest.limits.deploy;
        match carry::load(lost, engine, store, limit, Deadline::after(Duration::MAX)) {
            Ok(()) => {
                engine.tag(&release.images, label, deadline)?;
                return Ok(Some(release.images));
            }
            Err(error) => session
                .out
                .note(format!("the images of release {} cannot be used again: {error:#}", release.id)),
        }
    }
    Ok(None)
}

/// A candidate with the images and files of `base`; some of the files are replaced.
pub fn variant(session: &Session, base: &Release, replaced: BTreeMap<String, PathBuf>) -> Result<Release> {
    let mut files: BTreeMap<String, PathBuf> =
        base.files.keys().map(|name| (name.clone(), session.store.file(&base.id, name))).collect();
    files.extend(replaced);
    let view = session.by(base)?;
    let place = |name: &str| files.get(name).cloned().unwrap_or_else(|| view.pilot.pack.join(name));
    let deadline = Deadline::after(view.pilot.manifest.limits.engine);
    let resolved = tree::resolve(&view.pilot, &place, view.engine.as_ref(), deadline)?;
    let base = base.clone();
    let engine = session.engine.kind().as_str();
    let Release { label, commit, images, inputs, layout, .. } = base;
    record(session, Parts { label, commit, engine, images, inputs, layout, files }, &resolved)
}

/// Records a candidate, unless a known-good release has the same content, or the one whose watch was cut off: that is taken
/// up.
fn record(session: &Session, parts: Parts<'_>, resolved: &Resolved) -> Result<Release> {
    let sum = |(name, path): (&String, &PathBuf)| Ok((name.clone(), files::sha256(path)?));
    let files: BTreeMap<String, String> = parts.files.iter().map(sum).collect::<Result<_>>()?;
    let mut new = Release::unrecorded(&parts.label, parts.engine, parts.images.clone());
    new.files = files;
    let state = &session.pilot.state;
    let is_on_watch = |release: &Release| {
        release.state == State::Candidate
            && release.same_content(&new)
            && run::is_on_watch(state, &Request::to_deploy(&release.id)).unwrap_or(false)
    };
    if let Some(watched) = session.store.current().ok().flatten().filter(is_on_watch)
        && session.store.check_files(&watched).is_ok()
    {
        return Ok(watched);
    }
    let same = session.store.known_good()?.into_iter().find(|known| known.same_content(&new));
    if let Some(known) = same
        && session.store.check_files(&known).is_ok()
        && known.images.values().all(|image| session.store.has(image))
    {
        // Record the commit, so that the next search for it finds this release.
        if let Some(commit) = parts.commit.filter(|commit| !known.is_of(commit)) {
            session.store.same_commit(&known.id, &commit)?;
        }
        return Ok(known);
    }
    session.store.create(parts, resolved)
}

/// Makes the env file if it does not exist, and fills in empty secrets. A project other than the default one
/// gets its own images, network and free ports. Returns the ports that were chosen now, held for the caller until the
/// services may start.
pub fn ensure_env(session: &Session) -> Result<Vec<TcpListener>> {
    let Session { pilot, engine, .. } = session;
    let name = pilot.env_path.display().to_string();
    let existing = files::read_if_there(&pilot.env_path)?;
    let mut text = match &existing {
        Some(_) => {
            pilot.env()?;
            files::read_text(&pilot.env_path)?
        }
        None => match (&pilot.manifest.env_example, &pilot.layout.env) {
            (Some(example), _) => files::read_text(&pilot.pack.join(example))?,
            // A private copy begins with the settings of the stack.
            (None, Some(name)) if !pilot.is_default() => files::read_text(&pilot.pack.join(name))?,
            (None, Some(_)) => {
                let what = format!("{} is missing", pilot.env_path.display());
                return Err(fail(
                    Exit::Usage,
                    what,
                    "write that file, or name an `env_example` in pilot.toml",
                ));
            }
            (None, None) => return Ok(Vec::new()),
        },
    };
    let mut chosen = Vec::new();
    if existing.is_none() && !pilot.is_default() {
        for (name, value) in pilot.own_variables()? {
            text = with_value(&text, &name, &value)?;
        }
        let Manifest { services, observability, .. } = &pilot.manifest;
        let variables: Vec<&String> =
            services.iter().chain(observability).map(|service| &service.port).collect();
        chosen = ports::free_ports(variables.len(), &pilot.project)?;
        for (variable, held) in variables.into_iter().zip(&chosen) {
            text = with_value(&text, variable, &held.local_addr()?.port().to_string())?;
        }
    }
    let env = EnvFile::parse(&name, text.as_bytes())?;
    // If the file has another error, nothing is added to it.
    engine.can_read(&env, Deadline::after(pilot.manifest.limits.engine))?;
    pilot.services().try_for_each(|service| pilot.port(service, &env).map(drop))?;
    for secret in &pilot.manifest.secrets.variables {
        if env.get(secret).is_none_or(str::is_empty) {
            text = with_value(&text, secret, &files::random()?)?;
        }
    }
    let env = EnvFile::parse(&name, text.as_bytes())?;
    secrets::learn(&env.map());
    if existing.as_deref() != Some(text.as_bytes()) {
        files::write(&pilot.env_path, text.as_bytes(), Mode::Private)?;
    }
    Ok(chosen)
}
