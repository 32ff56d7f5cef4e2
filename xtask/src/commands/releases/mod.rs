//! `releases`: lists, shows, compares, checks, exports, imports and removes the releases that a rollback can
//! go to.

mod diff;

use crate::base::failure::Exit;
use crate::base::files;
use crate::base::next::Next;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use crate::operations::with_data;
use crate::release::{export, source};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// `cargo xtask releases`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask releases list\n  cargo xtask releases diff r1 running\n  cargo xtask releases verify\n  cargo xtask releases export r1"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

impl Args {
    /// What it is called if it changes something.
    pub fn changes(&self) -> Option<&'static str> {
        match self.command {
            Command::Import { .. } => Some("releases import"),
            Command::Prune { .. } => Some("releases prune"),
            _ => None,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List every release, oldest first
    List,
    /// Show one release: images, files, when it was made and verified
    Show {
        /// Its id, as `releases list` shows it
        release: String,
    },
    /// Compare two: settings (secrets masked), images, compose file, seed
    Diff {
        /// A release, or `running` (what runs), or `tree` (your source code)
        a: String,
        /// The other one, in the same form
        b: String,
    },
    /// Check that every file and every image exists unchanged
    Verify {
        /// Only this release [default: all]
        release: Option<String>,
    },
    /// Write one archive that can start the pilot on another host; it contains the secrets of the env file
    Export {
        /// Id of the release
        release: String,
        /// File to write [default: .pilot/exports/RELEASE.release.tar]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Import a release from an archive that `releases export` wrote
    Import {
        /// Path of the archive
        file: PathBuf,
    },
    /// Remove old releases; the running one and the last known-good one always stay
    Prune {
        /// How many known-good releases to keep [default: keep_releases in pilot.toml]
        #[arg(long)]
        keep: Option<usize>,
    },
}

/// Runs the subcommand.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    match &args.command {
        Command::List => list(session)?,
        Command::Show { release } => show(session, release)?,
        Command::Diff { a, b } => diff::run(session, a, b)?,
        Command::Verify { release } => return verify(session, release.as_deref()),
        Command::Export { release, output } => export(session, release, output.as_deref())?,
        Command::Import { file } => import(session, file)?,
        Command::Prune { keep } => prune(session, *keep)?,
    }
    Ok(Finished::plain(Exit::Ok))
}

fn verify(session: &Session, one: Option<&str>) -> Result<Finished> {
    let out = &session.out;
    let (all, mut broken) = match one {
        Some(name) => (vec![session.store.named(name)?], Vec::new()),
        None => session.store.list()?,
    };
    let mut rows = Vec::new();
    for (release, checked) in all.iter().zip(session.store.check_all(&all)) {
        let detail = match &checked {
            Ok(()) => {
                let saved = release.images.values().filter(|image| image.is_saved()).count();
                let images = match release.images.len() {
                    all if all == saved => format!("{all} images"),
                    all => format!("{saved} of {all} images (the others were not saved)"),
                };
                format!("{} files, {images}, xtask: unchanged", release.files.len())
            }
            Err(error) => format!("{error:#}"),
        };
        out.say(out.marked(Some(checked.is_ok()), &format!("{:<5} {detail}", release.id)));
        rows.push(json!({"release": release.id, "ok": checked.is_ok(), "detail": detail}));
        broken.extend(checked.err().map(|_| format!("release {}: {detail}", release.id)));
    }
    out.event(&Event::Result { value: &json!({"releases": rows, "broken": broken}) });
    if broken.is_empty() {
        return Ok(Finished::plain(Exit::Ok));
    }
    let next = Some(
        Next::xtask("up").so("to make a complete release; a rollback does not use a broken one").to_owned(),
    );
    let finished = Finished { error: Some(broken.join("; ")), ..Finished::plain(Exit::NotRestored) };
    Ok(finished.then(next.as_ref(), out.context()))
}

fn export(session: &Session, name: &str, output: Option<&Path>) -> Result<()> {
    let release = session.store.named(name)?;
    let exports = session.pilot.state.exports();
    let to = output.map_or_else(|| exports.join(format!("{}.release.tar", release.id)), Path::to_owned);
    let to = std::path::absolute(&to)
        .with_context(|| format!("cannot find the absolute path of {}", to.display()))?;
    if output.is_none() {
        files::make_private_folder(&exports)?;
    }
    export::export(&session.pilot, &session.store, &release, &to)?;
    let bytes = files::size(&to)?;
    session.out.event(&Event::Result { value: &json!({"release": release.id, "file": to, "bytes": bytes}) });
    session.out.say(format!("release {} is in {}, {}", release.id, to.display(), files::human(bytes)));
    session.out.say("  it contains the env file with its secrets; on another host: releases import FILE");
    if source::sees(&to) {
        let file = to.display();
        session.out.note(format!(
            "{file} is in a git work tree and git does not ignore it: do not commit these secrets"
        ));
    }
    Ok(())
}

fn import(session: &Session, file: &Path) -> Result<()> {
    let _lock = session.lock("releases import")?;
    let release = export::import(&session.pilot, &session.store, file)?;
    session.out.event(&Event::Result { value: &json!(release) });
    let (id, state) = (&release.id, release.state.as_str());
    session.out.say(format!("{} is imported as release {id} ({}, {state})", file.display(), release.label));
    session.out.say(format!("  to deploy the last known-good release: {}", session.out.xtask("rollback")));
    Ok(())
}

fn prune(session: &Session, keep: Option<usize>) -> Result<()> {
    let _lock = session.lock("releases prune")?;
    let keep = keep.unwrap_or(session.pilot.manifest.limits.keep_releases);
    let freed = session.store.retain(keep)?;
    let bytes: u64 = freed.iter().map(|f| f.bytes).sum();
    session.out.event(&Event::Result { value: &json!({"freed": freed, "freed_bytes": bytes}) });
    freed.iter().for_each(|f| session.out.say(format!("  removed {}, {}", f.what, files::human(f.bytes))));
    session.out.say(format!(
        "freed {}; to remove their images from the engine too: {}",
        files::human(bytes),
        session.out.xtask("host --free")
    ));
    Ok(())
}

fn list(session: &Session) -> Result<()> {
    let out = &session.out;
    let (releases, broken) = session.store.list()?;
    let current = session.store.current().ok().flatten().map(|r| r.id);
    out.event(&Event::Result { value: &json!({"releases": releases, "current": current, "broken": broken}) });
    if releases.is_empty() {
        out.say(format!("there are no releases yet; to make one: {}", out.xtask("up")));
    } else {
        out.say("  release  state       version   commit         made");
    }
    for release in &releases {
        let running = if current.as_ref() == Some(&release.id) { "*" } else { " " };
        let commit: String = match &release.commit {
            Some(commit) if commit.ends_with("-dirty") => format!("{}-dirty", &commit[..7.min(commit.len())]),
            Some(commit) => commit.chars().take(12).collect(),
            None => "none".into(),
        };
        let word = release.state.as_str();
        let made = time(release.created_ms);
        out.say(format!(
            "{running} {:<7}  {word:<10}  {:<8}  {commit:<13}  {made}",
            release.id, release.label
        ));
    }
    broken.iter().for_each(|error| out.say(format!("{} {error}", out.mark(Some(false)))));
    Ok(())
}

fn show(session: &Session, id: &str) -> Result<()> {
    let out = &session.out;
    let release = session.store.named(id)?;
    out.event(&Event::Result { value: &json!(release) });
    let reason = release.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
    out.say(format!("release  {} ({}), {}{reason}", release.id, release.label, release.state.as_str()));
    out.say(format!("made     {} on {}", time(release.created_ms), release.engine));
    out.say(format!("verified {}", release.verified_ms.map_or("never".into(), time)));
    out.say(format!("commit   {}", release.commit.as_deref().unwrap_or("none")));
    for (service, image) in &release.images {
        let kept = if session.store.has(image) { "kept" } else { "not kept" };
        let short: String = image.id.chars().take(19).collect();
        out.say(format!("image    {service:<8} {short}  {kept}"));
    }
    let sound = session.store.check_files(&release);
    out.say(match &sound {
        Ok(()) => format!("files    {}, unchanged", release.files.len()),
        Err(error) => format!("files    {error:#}"),
    });
    out.say(format!("folder   {}", session.store.dir(&release.id).display()));
    if let Some(kept) = with_data::of_release(&session.pilot.state, &release.id)? {
        let (data, made) = (kept.backup.data().join(", "), time(kept.backup.made_ms));
        out.say(format!("snapshot {} of {data}, as it was left at {made}", kept.id));
        let back = out.xtask(&format!("rollback --to {} --with-data", release.id));
        out.say(format!("         to go back with it: {back}"));
    }
    Ok(())
}

fn time(ms: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}
