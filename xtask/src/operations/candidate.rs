//! Makes candidates for a release: from the source, from existing images, from a commit, or from parts of a
//! backup; and the env file that they need. Nothing is deployed here. Called by `up`, by `rollback` for a
//! commit, and by `backup restore`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::base::secrets;
use crate::deploy::session::Session;
use crate::engine::roles::Build;
use crate::release::description::{COMPOSE_FILE, ENV_FILE, Image, MANIFEST_FILE, Parts, Release, SEED_FILE};
use crate::release::source;
use crate::stack::contract::env;
use crate::stack::definition::Definition;
use crate::stack::envfile::{EnvFile, with_value};
use crate::stack::judge;
use crate::stack::manifest::Manifest;
use crate::stack::pilot::{DEFAULT_PROJECT, Pilot, network_name};
use crate::stack::ports;
use anyhow::Result;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The time limit for building and saving images.
const IMAGES: Duration = Duration::from_secs(300);

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

/// Makes the candidate, or finds the known-good release with the same content. `env` is its env file.
pub fn make(source: Source<'_>, env: &Path, session: &Session) -> Result<Release> {
    let pilot = &session.pilot;
    let deadline = Deadline::after(IMAGES);
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
            Some((source::Worktree::new(pilot, &commit)?, commit))
        }
        Source::Tree | Source::Tag(_) => None,
    };
    let root = worktree.as_ref().map_or(pilot.root.as_path(), |(tree, _)| tree.path());
    has_compose_file(&root.join("pilot-deploy"))?;
    let commit = worktree.as_ref().map_or_else(|| source::head(pilot), |(_, commit)| Some(commit.clone()));
    // A label can name images. If they no longer exist, its commit is built.
    let point = match source {
        Source::Commit(rev) => source::restore_point(pilot, rev)?.and_then(|point| point.tag),
        Source::Tree | Source::Tag(_) => None,
    };
    let kept = match (source, point) {
        (Source::Tag(tag), _) => Some((tag.to_owned(), session.engine.tagged(tag, deadline)?)),
        (_, Some(tag)) => match session.engine.tagged(&tag, deadline) {
            Ok(images) => Some((tag, images)),
            Err(error) if exit_of(&error) == Exit::Usage => None,
            Err(error) => return Err(error),
        },
        (_, None) => None,
    };
    let (label, images, inputs) = match kept {
        Some((label, images)) => (label, images, None),
        None => {
            let binary = source::build(pilot, root, &|text| session.out.note(text))?;
            let label = source::label(pilot, root)?;
            let build = Build { binary: &binary, label: &label, fault: "" };
            let inputs = inputs(pilot, &build)?;
            let deadline = Deadline::after(IMAGES);
            let images = match made_before(session, &inputs, &label, deadline)? {
                Some(images) => images,
                None => session.engine.build(&build, deadline)?,
            };
            (label, images, Some(inputs))
        }
    };
    let files = pack_files(&root.join("pilot-deploy"), env)?;
    record(session, Parts { label, commit, engine: session.engine.kind().as_str(), images, inputs, files })
}

/// An error if there is no compose file: before a build, which takes a minute.
fn has_compose_file(pack: &Path) -> Result<()> {
    let path = pack.join(Manifest::load(&pack.join(MANIFEST_FILE))?.compose_file);
    if path.is_file() {
        return Ok(());
    }
    let what = format!("there is no compose file {}; nothing was begun", path.display());
    let next = Next::shell(format!("git checkout {}", path.display()));
    Err(fail(Exit::Usage, what, next.so("or name the file that there is as compose_file in pilot.toml")))
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
    inputs: &str,
    label: &str,
    deadline: Deadline,
) -> Result<Option<BTreeMap<String, Image>>> {
    let Session { engine, store, .. } = session;
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
        let mut lost = release.images.values().filter(|image| !there.contains(&image.id));
        match lost.try_for_each(|image| engine.load(image, &store.check_archive(image)?, deadline)) {
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

/// The files of a pack, by their names in a release.
fn pack_files(pack: &Path, env: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let manifest = Manifest::load(&pack.join(MANIFEST_FILE))?;
    let mut files = BTreeMap::from([
        (COMPOSE_FILE.to_owned(), pack.join(&manifest.compose_file)),
        (ENV_FILE.to_owned(), env.to_owned()),
        (SEED_FILE.to_owned(), pack.join(&manifest.seed_file)),
        (MANIFEST_FILE.to_owned(), pack.join(MANIFEST_FILE)),
    ]);
    files.extend(manifest.extra_files.iter().map(|name| (name.clone(), pack.join(name))));
    Ok(files)
}

/// A candidate with the images and files of `base`; some of the files are replaced.
pub fn variant(session: &Session, base: &Release, replaced: BTreeMap<String, PathBuf>) -> Result<Release> {
    let mut files: BTreeMap<String, PathBuf> =
        base.files.keys().map(|name| (name.clone(), session.store.file(&base.id, name))).collect();
    files.extend(replaced);
    let base = base.clone();
    let engine = session.engine.kind().as_str();
    let Release { label, commit, images, inputs, .. } = base;
    record(session, Parts { label, commit, engine, images, inputs, files })
}

/// Records a candidate, unless a known-good release has the same content.
fn record(session: &Session, parts: Parts<'_>) -> Result<Release> {
    let sum = |(name, path): (&String, &PathBuf)| Ok((name.clone(), files::sha256(path)?));
    let files: BTreeMap<String, String> = parts.files.iter().map(sum).collect::<Result<_>>()?;
    let mut new = Release::unrecorded(&parts.label, parts.engine, parts.images.clone());
    new.files = files;
    let same = session.store.known_good()?.into_iter().find(|known| known.same_content(&new));
    if let Some(known) = same
        && session.store.check_files(&known).is_ok()
    {
        // Record the commit, so that the next search for it finds this release.
        if let Some(commit) = parts.commit.filter(|commit| !known.is_of(commit)) {
            session.store.same_commit(&known.id, &commit)?;
        }
        return Ok(known);
    }
    let limit = Deadline::after(IMAGES);
    let define = |dir: &Path| define(session, dir);
    session.store.create(parts, define, |image, path| session.engine.save(image, path, limit))
}

/// Asks the engine what the stack of a candidate is, and whether it can work here. A stack that the engine does not
/// understand could not be started either.
fn define(session: &Session, dir: &Path) -> Result<Definition> {
    let deadline = Deadline::after(session.pilot.manifest.limits.engine);
    // The files may be those of another commit, with a manifest of their own.
    let manifest = Manifest::load(&dir.join(MANIFEST_FILE))?;
    let engine = session.engine.for_stack(&Pilot { manifest, ..session.pilot.clone() }, None)?;
    let file = session.pilot.pack.join(&session.pilot.manifest.compose_file);
    let definition = engine.definition(dir, deadline).map_err(|error| match exit_of(&error) {
        Exit::NotRestored => {
            let by = session.engine.describe(deadline);
            let what = format!("{by} does not understand the stack: {error:#}");
            let next = format!("fix {}, or install the Compose that it is written for", file.display());
            fail(Exit::Usage, what, format!("{next}; nothing was begun"))
        }
        _ => error,
    })?;
    let refusals = engine.refusals(&definition, deadline)?;
    if refusals.is_empty() {
        let outside = judge::not_in_a_release(&definition);
        if !outside.is_empty() {
            session
                .out
                .note(format!("not part of the release, so no rollback restores it: {}", outside.join(", ")));
        }
        return Ok(definition);
    }
    let what = format!("the stack cannot be deployed:\n  - {}", refusals.join("\n  - "));
    Err(fail(Exit::Usage, what, format!("fix {}; nothing was begun", file.display())))
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
        None => {
            let path = pilot.pack.join(&pilot.manifest.env_example);
            files::read_text(&path)?
        }
    };
    let mut chosen = Vec::new();
    if existing.is_none() && pilot.project != DEFAULT_PROJECT {
        text = with_value(&text, env::PROJECT, &pilot.project)?;
        text = with_value(&text, env::IMAGES, &pilot.project)?;
        text = with_value(&text, env::NETWORK, &network_name(&pilot.project))?;
        chosen = ports::free_ports(pilot.every_service().count(), &pilot.project)?;
        for (service, held) in pilot.every_service().zip(&chosen) {
            text = with_value(&text, &service.port, &held.local_addr()?.port().to_string())?;
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
