//! `releases`: lists, shows, annotates, pins, compares, checks, exports, imports, pulls and removes the releases that a
//! rollback can go to.

mod diff;
mod list;

use crate::base::count::count;
use crate::base::deadline::now_ms;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::machine;
use crate::base::next::Next;
use crate::base::secrets;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use crate::engine::carry;
use crate::release::description::Note;
use crate::release::{export, source};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};

/// `cargo xtask releases`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask releases list\n  cargo xtask releases diff r1 running\n  cargo xtask releases verify\n  cargo xtask releases annotate r1 \"before the new cache\"\n  cargo xtask releases pin r1\n  cargo xtask releases export r1"
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
            Command::Pull { .. } => Some("releases pull"),
            Command::Prune { .. } => Some("releases prune"),
            Command::Annotate { .. } => Some("releases annotate"),
            Command::Pin { .. } => Some("releases pin"),
            Command::Unpin { .. } => Some("releases unpin"),
            Command::List
            | Command::Show { .. }
            | Command::Diff { .. }
            | Command::Verify { .. }
            | Command::Export { .. } => None,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List every release, oldest first, with what differs from the one before, and notes
    List,
    /// Show one release: images, files, when it was made and verified
    Show {
        /// Its id, as `releases list` shows it
        release: String,
    },
    /// Write a note about a release; `list` and `show` have it. An empty text removes it
    Annotate {
        /// Id of the release
        release: String,
        /// The note; secrets in it are masked
        text: String,
    },
    /// Never remove this release, however many newer ones there are
    Pin {
        /// Id of the release
        release: String,
    },
    /// Let retention remove this release again
    Unpin {
        /// Id of the release
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
    /// Save the images of releases that other clients of the engine have made, so that this folder needs nobody else
    Pull {
        /// Only this release [default: all that a rollback can go to]
        release: Option<String>,
    },
    /// Remove old releases; the running one, the last known-good one and pinned ones always stay
    Prune {
        /// How many known-good releases to keep, at least 1 [default: keep_releases in pilot.toml]
        #[arg(long)]
        keep: Option<usize>,
    },
}

/// Runs the subcommand.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    match &args.command {
        Command::List => list::all(session)?,
        Command::Show { release } => list::one(session, release)?,
        Command::Annotate { release, text } => annotate(session, release, text)?,
        Command::Pin { release } => pin(session, release, true)?,
        Command::Unpin { release } => pin(session, release, false)?,
        Command::Diff { a, b } => diff::run(session, a, b)?,
        Command::Verify { release } => return verify(session, release.as_deref()),
        Command::Export { release, output } => export(session, release, output.as_deref())?,
        Command::Import { file } => import(session, file)?,
        Command::Pull { release } => pull(session, release.as_deref())?,
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
    let there = to.symlink_metadata().is_ok();
    if output.is_none() {
        files::make_private_folder(&exports)?;
    } else if there {
        let what = format!("{} exists already, and nothing was written", to.display());
        return Err(fail(Exit::Usage, what, "name another file with --output, or remove that one"));
    }
    export::export(&session.pilot, &session.store, &release, &to)?;
    let bytes = files::size(&to)?;
    session.out.event(&Event::Result { value: &json!({"release": release.id, "file": to, "bytes": bytes}) });
    session.out.say(format!("release {} is in {}, {}", release.id, to.display(), files::human(bytes)));
    if there {
        session.out.note("the export of before was replaced");
    }
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

/// Their files are here already: every command fetches them.
fn pull(session: &Session, one: Option<&str>) -> Result<()> {
    let _lock = session.lock("releases pull")?;
    let Session { store, engine, out, .. } = session;
    let all = match one {
        Some(name) => vec![store.named(name)?],
        None => store.known_good()?,
    };
    let mut rows = Vec::new();
    for release in &all {
        let saved = carry::pull(release, engine.as_ref(), store, session.pilot.manifest.limits.deploy)?;
        let what = match saved {
            0 => "all of it was here".to_owned(),
            saved => format!("{} saved", count(saved, "image")),
        };
        out.say(format!("  {:<5} {what}", release.id));
        rows.push(json!({"release": release.id, "saved": saved}));
    }
    out.event(&Event::Result { value: &json!({"releases": rows}) });
    out.say(format!("to check every byte: {}", out.xtask("releases verify")));
    Ok(())
}

/// The most characters of a note: it stands on one line of a list.
const LONGEST_NOTE: usize = 500;

fn annotate(session: &Session, id: &str, text: &str) -> Result<()> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() > LONGEST_NOTE {
        let what = format!("the note has more than {LONGEST_NOTE} characters");
        return Err(fail(Exit::Usage, what, "write a shorter one, with a link to the rest"));
    }
    let _lock = session.lock("releases annotate")?;
    let release = session.store.named(id)?;
    let who = format!("{}@{}", machine::person(), machine::host_name());
    let note = Note { text: secrets::mask(&text), who, at_ms: now_ms() };
    session.store.annotate(&release.id, note)?;
    told(session, &release.id)
}

fn pin(session: &Session, id: &str, pinned: bool) -> Result<()> {
    let _lock = session.lock(if pinned { "releases pin" } else { "releases unpin" })?;
    let release = session.store.named(id)?;
    session.store.pin(&release.id, pinned)?;
    told(session, &release.id)
}

/// What is written about it now.
fn told(session: &Session, id: &str) -> Result<()> {
    let release = session.store.named(id)?;
    session.out.event(&Event::Result { value: &json!(release) });
    let pinned = if release.pinned { "pinned: it is never removed" } else { "not pinned" };
    let note = release.note.as_ref().map_or_else(|| "no note".into(), |note| format!("note: {}", note.text));
    session.out.say(format!("release {id}: {pinned}; {note}"));
    Ok(())
}

fn prune(session: &Session, keep: Option<usize>) -> Result<()> {
    if keep == Some(0) {
        let what = "with --keep 0 there would be no release to go back to; nothing was removed";
        return Err(fail(Exit::Usage, what, Next::xtask("releases prune --keep 1")));
    }
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
