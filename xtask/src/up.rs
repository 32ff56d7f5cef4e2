//! `up`: makes a release of the tree (or of existing images, or of another commit), starts it behind
//! the closed gate, verifies it, and promotes it to known-good or reports it failed.

use crate::deadline::Deadline;
use crate::deploy::{Goal, Session};
use crate::engine::Build;
use crate::envfile::{EnvFile, with_value};
use crate::execute::Measured;
use crate::failure::{Exit, exit_of, fail, next_of};
use crate::files::{self, Mode};
use crate::journal::{Event, Finished, Outcome};
use crate::pilot::{DEFAULT_PROJECT, Pilot};
use crate::plan::Purpose;
use crate::release::{COMPOSE_FILE, ENV_FILE, Image, MANIFEST_FILE, Parts, Release, SEED_FILE, now_ms};
use crate::{engine, lock, rollback, tree};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Longest that wrapping and saving images takes.
const IMAGES: Duration = Duration::from_secs(300);

/// `cargo xtask up`.
#[derive(clap::Args, Debug, Default)]
#[command(
    after_help = "Examples:\n  cargo xtask up\n  cargo xtask up --tag v1.1.0\n  cargo xtask up --from main~1 --rollback-on-failure"
)]
pub struct Args {
    /// Use existing images with this tag instead of building the tree
    #[arg(long, conflicts_with = "from")]
    pub tag: Option<String>,
    /// Build this commit (or label of known-good.toml) in a worktree of its own
    #[arg(long, value_name = "REV")]
    pub from: Option<String>,
    /// Go back to the last known-good release when this one fails its checks
    #[arg(long)]
    pub rollback_on_failure: bool,
}

/// From the command line.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let _lock = lock::take(&session.pilot.state, "up")?;
    let pilot = &session.pilot;
    ensure_env(pilot)?;
    check_ports(session)?;
    session.out.event(&Event::Started {
        version: 1,
        command: "up",
        rollback: None,
        project: &pilot.project,
        engine: &session.engine.describe(Deadline::after(pilot.manifest.limits.engine)),
        at_ms: now_ms(),
        resumed: false,
    });
    let release = make(args, session)?;
    session.out.say(format!("  release {} ({})", release.id, release.label));
    deploy(&release, args, session)
}

/// Starts a release and judges it.
fn deploy(release: &Release, args: &Args, session: &Session) -> Result<Finished> {
    let deadline = Deadline::after(session.pilot.manifest.limits.budget);
    let mut measured = Measured::default();
    let goal = Goal { release, purpose: Purpose::Deploy, named: &[], known: Vec::new(), place: None };
    let mut finished = Finished { release: Some(release.id.clone()), ..Finished::plain(Exit::Ok) };
    let Err(error) = session.bring_to(&goal, deadline, &mut measured) else {
        finished.restored_ms = measured.restored_ms;
        finished.smoke = measured.smoke.as_ref().map(serde_json::to_value).transpose()?;
        return Ok(finished);
    };
    session.store.mark_failed(&release.id, &format!("{error:#}"))?;
    if args.rollback_on_failure {
        session.out.note(format!("release {} failed; rolling back: {error:#}", release.id));
        let mut back = rollback::locked(None, Vec::new(), session, deadline)?;
        if back.exit_code == 0 {
            // Service is back, and still the release that was asked for does not run.
            back.exit_code = Exit::NotRestored as u8;
            back.error = Some(format!("release {} failed and was rolled back: {error:#}", release.id));
            back.next = Some(format!("cargo xtask releases show {}", release.id));
        }
        return Ok(back);
    }
    finished.outcome = Some(Outcome::NotRestored);
    finished.exit_code = exit_of(&error) as u8;
    finished.error = Some(format!("release {} failed: {error:#}", release.id));
    finished.next = Some(match session.store.known_good()?.first() {
        Some(_) => "cargo xtask rollback".to_owned(),
        None => next_of(&error).unwrap_or("mend it and run cargo xtask up again").to_owned(),
    });
    Ok(finished)
}

/// The release to deploy: a new one, or the known-good one that has the very same content.
fn make(args: &Args, session: &Session) -> Result<Release> {
    let pilot = &session.pilot;
    let worktree = match &args.from {
        None => None,
        Some(rev) => {
            let commit = tree::commit_of(pilot, rev)?.ok_or_else(|| {
                fail(Exit::Usage, format!("git knows no commit {rev}"), "git log --oneline; git fetch")
            })?;
            Some((tree::Worktree::new(pilot, &commit)?, commit))
        }
    };
    let root = worktree.as_ref().map_or(pilot.root.as_path(), |(tree, _)| tree.path());
    let commit = worktree.as_ref().map_or_else(|| tree::head(pilot), |(_, commit)| Some(commit.clone()));
    let deadline = Deadline::after(IMAGES);
    // A restore point may name images; where they are gone, its commit is built.
    let point = args.from.as_ref().map(|rev| tree::restore_point(pilot, rev)).transpose()?.flatten();
    let kept = match point.and_then(|point| point.tag) {
        Some(tag) => match session.engine.tagged(&tag, deadline) {
            Ok(images) => Some((tag, images)),
            Err(error) if exit_of(&error) == Exit::Usage => None,
            Err(error) => return Err(error),
        },
        None => None,
    };
    let (label, images) = match (&args.tag, kept) {
        (Some(tag), _) => (tag.clone(), session.engine.tagged(tag, deadline)?),
        (None, Some(kept)) => kept,
        (None, None) => {
            let binary = tree::build(pilot, root, &session.out)?;
            let label = label(root, pilot)?;
            let dockerfile = root.join("pilot-deploy").join(&pilot.manifest.build.dockerfile);
            let build = Build { binary: &binary, dockerfile: &dockerfile, label: &label, fault: "" };
            let images = session.engine.build(&build, Deadline::after(IMAGES))?;
            (label, images)
        }
    };
    record(session, root, label, commit, images)
}

/// Records a candidate of these images and the pack at `root`.
fn record(
    session: &Session,
    root: &Path,
    label: String,
    commit: Option<String>,
    images: BTreeMap<String, Image>,
) -> Result<Release> {
    let pilot = &session.pilot;
    let pack = root.join("pilot-deploy");
    let files = [
        (COMPOSE_FILE, pack.join(&pilot.manifest.compose_file)),
        (ENV_FILE, pilot.env_path.clone()),
        (SEED_FILE, pack.join(&pilot.manifest.seed_file)),
        (MANIFEST_FILE, pack.join("pilot.toml")),
    ];
    let sums: Vec<(String, String)> = files
        .iter()
        .map(|(name, path)| Ok(((*name).to_owned(), files::sha256(path)?)))
        .collect::<Result<_>>()?;
    let ids = |images: &BTreeMap<String, Image>| -> Vec<(String, String)> {
        images.iter().map(|(s, i)| (s.clone(), i.id.clone())).collect()
    };
    let same = |r: &Release| {
        r.engine == session.engine.kind().word()
            && ids(&r.images) == ids(&images)
            && sums.iter().all(|(name, sum)| r.files.get(name) == Some(sum))
    };
    if let Some(known) = session.store.known_good()?.into_iter().find(same)
        && session.store.check_files(&known).is_ok()
    {
        return Ok(known);
    }
    let limit = Deadline::after(IMAGES);
    let engine = session.engine.kind().word();
    let parts = Parts { label, commit, engine, images, files };
    session.store.create(parts, |image, path| session.engine.save(image, path, limit))
}

/// `v1.0.0`, from the manifest of the services' package.
fn label(root: &Path, pilot: &Pilot) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Cargo {
        package: Package,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        version: String,
    }
    let folder = Path::new(&pilot.manifest.build.dockerfile).parent().unwrap_or(Path::new(""));
    let path = root.join("pilot-deploy").join(folder).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let cargo: Cargo =
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
    Ok(format!("v{}", cargo.package.version))
}

/// Makes the env file where there is none, and fills in secrets that are empty. A project other than
/// the default gets images, a network and free ports of its own.
pub fn ensure_env(pilot: &Pilot) -> Result<EnvFile> {
    let name = pilot.env_path.display().to_string();
    let existing = files::read_if_there(&pilot.env_path)?;
    let mut text = match &existing {
        Some(_) => {
            pilot.env()?;
            std::fs::read_to_string(&pilot.env_path).with_context(|| format!("cannot read {name}"))?
        }
        None => {
            let path = pilot.pack.join(&pilot.manifest.env_example);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?
        }
    };
    if existing.is_none() && pilot.project != DEFAULT_PROJECT {
        text = with_value(&text, "PILOT_PROJECT", &pilot.project);
        text = with_value(&text, "PILOT_IMAGES", &pilot.project);
        text = with_value(&text, "PILOT_NETWORK", &format!("{}-network", pilot.project));
        let ports = engine::free_ports(pilot.manifest.services.len(), &pilot.project)?;
        for (service, port) in pilot.manifest.services.iter().zip(ports) {
            text = with_value(&text, &service.port, &port.to_string());
        }
    }
    let env = EnvFile::parse(&name, text.as_bytes())?;
    // Nothing is added to a file that is wrong in another way.
    pilot.services().try_for_each(|service| pilot.port(service, &env).map(drop))?;
    for secret in &pilot.manifest.secrets.variables {
        if env.get(secret).is_none_or(str::is_empty) {
            text = with_value(&text, secret, &random()?);
        }
    }
    let env = EnvFile::parse(&name, text.as_bytes())?;
    if existing.as_deref() != Some(text.as_bytes()) {
        files::write(&pilot.env_path, text.as_bytes(), Mode::Private)?;
    }
    Ok(env)
}

/// 128 bits of the system's randomness, in hex.
fn random() -> Result<String> {
    let mut bytes = [0u8; 16];
    let mut source = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    source.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// A port that somebody else has is told before anything is built.
fn check_ports(session: &Session) -> Result<()> {
    let pilot = &session.pilot;
    let env = pilot.env()?;
    let stack = session.engine.observe(Deadline::after(pilot.manifest.limits.engine))?;
    let ours: Vec<u16> = stack.services.values().filter(|s| s.is_live()).filter_map(|s| s.port).collect();
    for service in pilot.services() {
        let port = pilot.port(service, &env)?;
        if ours.contains(&port) {
            continue;
        }
        if let Some(owner) = engine::owner_of(port) {
            let variable = pilot.manifest.services.iter().find(|s| s.name == service).map(|s| &s.port);
            let what = format!("port {port} of {service} is taken by {owner}");
            let variable = variable.map(String::as_str).unwrap_or_default();
            let next = format!("end that process, or change {variable} in {}", pilot.env_path.display());
            return Err(fail(Exit::Host, what, next));
        }
    }
    Ok(())
}
