//! `backup create|list|restore`: settings, logs and data, copied with checksums. A restore works like a
//! rollback: behind the closed gate, after a backup of the present state, and verified. `push`, `pull` and
//! `list --remote` are in `remote`: they need no engine.

mod remote;

use crate::base::ask;
use crate::base::deadline::Deadline;
use crate::base::deadline::utc;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::output::Output;
use crate::deploy::backup::{self, Backup, Kept};
use crate::deploy::event::{Event, Finished};
use crate::deploy::gate::Gate;
use crate::deploy::paused::Longest;
use crate::deploy::run::{self, Request};
use crate::deploy::session::Session;
use crate::engine::roles::Engine;
use crate::operations::candidate;
use crate::operations::rollback;
use crate::operations::with_data;
use crate::stack::layout::Layout;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How long a backup may take, whatever its size.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// `cargo xtask backup`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask backup create\n  cargo xtask backup list\n  cargo xtask backup restore latest --yes\n  cargo xtask backup restore latest --only env\n  cargo xtask backup push\n  cargo xtask backup list --remote\n  cargo xtask backup pull latest"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

impl Args {
    /// What it is called if it changes something.
    pub fn changes(&self) -> Option<&'static str> {
        match self.command {
            Command::Create => Some("backup create"),
            Command::Push { .. } => Some("backup push"),
            Command::Pull { .. } => Some("backup pull"),
            Command::Restore { .. } => Some("backup restore"),
            Command::List { .. } => None,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Back up env file, compose file, seed, logs and data
    Create,
    /// List all backups, also those of rollbacks, oldest first
    List {
        /// List those in the repository of [remote] in pilot.toml
        #[arg(long)]
        remote: bool,
    },
    /// Send backups to the repository of [remote] in pilot.toml, which restic keeps; check it
    Push {
        /// Its id, as `list` shows it; or `latest` [default: every backup that is not there]
        backup: Option<String>,
    },
    /// Get a backup from that repository, and verify it; then `restore` works
    Pull {
        /// Its name, as `list --remote` shows it; or `latest`
        backup: String,
    },
    /// Restore a backup; the present state is backed up first
    Restore {
        /// Its id, as `list` shows it; or `latest`: the newest backup that has the wanted parts
        backup: String,
        /// Only this part; can be given more than once [default: all parts]
        #[arg(long, value_enum)]
        only: Vec<Part>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The env file
    Env,
    /// The demo scenario
    Seed,
    /// The compose file
    Compose,
    /// Stored data
    Data,
}

/// Runs the subcommand.
pub fn run(args: &Args, yes: bool, session: &Session) -> Result<Finished> {
    match &args.command {
        Command::Create => create(session),
        Command::List { .. } => list(session),
        Command::Restore { backup, only } => restore(backup, only, yes, session),
        Command::Push { backup } => remote::push(backup.as_deref(), &session.pilot, &session.out),
        Command::Pull { backup } => remote::pull(backup, &session.pilot, &session.out),
    }
}

/// Runs a subcommand that is about the repository, if it is one: it needs no engine.
pub fn run_remote(args: &Args, pilot: &Pilot, out: &Output) -> Option<Result<Finished>> {
    match &args.command {
        Command::List { remote: true } => Some(remote::list(pilot, out)),
        Command::Push { backup } => Some(remote::push(backup.as_deref(), pilot, out)),
        Command::Pull { backup } => Some(remote::pull(backup, pilot, out)),
        Command::Create | Command::List { .. } | Command::Restore { .. } => None,
    }
}

fn create(session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let _lock = session.lock("backup create")?;
    // Each copy has its own limit, which grows with its size.
    let deadline = Deadline::after(LONGEST).growing(pilot.manifest.limits.deploy);
    let data: Vec<String> = session.engine.stored(deadline)?.into_iter().collect();
    let current = session.store.current().ok().flatten().map(|release| release.id);
    let view = session.running(deadline)?;
    let gate = view.observe(view.engine.as_ref(), deadline).gate;
    let longest = match gate {
        Gate::Closed(_) => Longest::Copy,
        Gate::Open | Gate::Unknown(_) => Longest::Served(view.pilot.manifest.data.pause_max),
    };
    let what = backup::Contents {
        release: current.as_deref(),
        data: &data,
        longest,
        logs: true,
        snapshot: false,
        out: &session.out,
    };
    let kept = backup::keep(pilot, session.engine.as_ref(), what, Deadline::after(LONGEST))?;
    let bytes = files::size(&kept.dir)?;
    session.out.event(&Event::Result {
        value: &json!({"backup": kept.id, "folder": kept.dir, "files": kept.backup.files, "bytes": bytes}),
    });
    session.out.say(format!(
        "backup {}: {} files, {}",
        kept.id,
        kept.backup.files.len(),
        files::human(bytes)
    ));
    session.out.say(format!("  in {}", kept.dir.display()));
    kept.backup.remarks.iter().for_each(|remark| session.out.note(remark.clone()));
    for freed in backup::retain(&pilot.state, pilot.manifest.limits.keep_backups, &session.store.ids()?)? {
        session.out.note(format!(
            "removed {}: only the newest {} backups are kept",
            freed.what, pilot.manifest.limits.keep_backups
        ));
    }
    Ok(Finished::plain(Exit::Ok))
}

fn list(session: &Session) -> Result<Finished> {
    let out = &session.out;
    let (all, broken) = backup::list(&session.pilot.state)?;
    let sizes: Vec<Option<u64>> = all.iter().map(|kept| files::size(&kept.dir).ok()).collect();
    let rows: Vec<_> = all
        .iter()
        .zip(&sizes)
        .map(|(kept, bytes)| json!({"bytes": bytes, "backup": kept.id, "folder": kept.dir, "release": kept.backup.release, "snapshot": kept.backup.snapshot, "made_ms": kept.backup.made_ms, "files": kept.backup.files}))
        .collect();
    out.event(&Event::Result { value: &json!({"backups": rows, "broken": broken}) });
    if all.is_empty() {
        out.say(format!("there are no backups yet; to make one: {}", out.xtask("backup create")));
    }
    if !all.is_empty() {
        out.say(format!(
            "{:<34}  {:<20}  {:<8}  {:<7}  {:>9}  what",
            "backup", "made", "by", "release", "size"
        ));
    }
    for (kept, bytes) in all.iter().zip(sizes) {
        let of = match &kept.run {
            _ if kept.backup.snapshot => "snapshot",
            Some(_) => "rollback",
            None => "by hand",
        };
        let release = kept.backup.release.as_deref().unwrap_or("-");
        let names: Vec<&str> = kept.backup.files.keys().map(String::as_str).collect();
        let (made, size) = (utc(kept.backup.made_ms), bytes.map_or("unknown".into(), files::human));
        let (id, names) = (&kept.id, names.join(" "));
        out.say(format!("{id:<34}  {made:<20}  {of:<8}  {release:<7}  {size:>9}  {names}"));
    }
    broken.iter().for_each(|error| out.say(format!("{} {error}", out.mark(Some(false)))));
    Ok(Finished::plain(Exit::Ok))
}

/// The files of this part, by their names in a stack with this layout.
fn names(part: Part, layout: &Layout) -> Vec<&String> {
    match part {
        Part::Env => layout.private().collect(),
        Part::Seed => layout.seed.iter().collect(),
        Part::Compose => layout.compose.iter().chain(&layout.included).collect(),
        Part::Data => Vec::new(),
    }
}

/// The files of a backup, by their names in the release that they become a part of. Older versions had other names for
/// some of them.
fn replaced(files: &[&String], kept: &Kept, release: &Layout) -> BTreeMap<String, PathBuf> {
    let old = &kept.backup.layout;
    let name = |file: &String| match (&release.env, &release.seed) {
        (Some(env), _) if old.env.as_ref() == Some(file) => env.clone(),
        (_, Some(seed)) if old.seed.as_ref() == Some(file) => seed.clone(),
        _ if old.compose.len() == 1 && old.compose[0] == *file => release.compose[0].clone(),
        _ => file.clone(),
    };
    files.iter().map(|file| (name(file), kept.dir.join(file))).collect()
}

fn restore(name: &str, only: &[Part], yes: bool, session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let wanted = |part: Part| only.is_empty() || only.contains(&part);
    let has = |part: Part, backup: &Backup| match part {
        Part::Data => !backup.data().is_empty(),
        part => names(part, &backup.layout).iter().any(|name| backup.files.contains_key(*name)),
    };
    let all = [Part::Env, Part::Seed, Part::Compose, Part::Data];
    let kept = backup::named(&pilot.state, name, |b| all.iter().all(|part| !wanted(*part) || has(*part, b)))?;
    if kept.backup.project != pilot.project {
        let what =
            format!("cannot restore backup {}: it belongs to project {}", kept.id, kept.backup.project);
        return Err(fail(Exit::Usage, what, format!("--project {}", kept.backup.project)));
    }
    let services = if wanted(Part::Data) { kept.backup.data() } else { Vec::new() };
    let parts = [Part::Env, Part::Seed, Part::Compose].into_iter().filter(|part| wanted(*part));
    let files = parts.flat_map(|part| names(part, &kept.backup.layout));
    let files: Vec<&String> = files.filter(|name| kept.backup.files.contains_key(*name)).collect();
    if files.is_empty() && services.is_empty() {
        let what = format!("backup {} has none of the wanted parts", kept.id);
        return Err(fail(Exit::Usage, what, Next::xtask("backup list")));
    }
    let parts: Vec<&str> = files.iter().copied().chain(&services).map(String::as_str).collect();
    let list = parts.join(", ");
    ask::confirm(
        yes,
        &format!(
            "this replaces {list} with the copy in backup {}; the present state is backed up first",
            kept.id
        ),
    )?;
    let _lock = session.lock("backup restore")?;
    // Data alone is restored for the release that runs. Files belong to the release that they were backed up
    // with, if that release is still kept.
    let running = session.store.current().ok().flatten().filter(|_| files.is_empty());
    let beside = kept.backup.release.as_ref().and_then(|id| session.store.named(id).ok());
    let beside = running.or(beside).filter(|release| release.is_known_good());
    let base = match beside {
        Some(release) => Some(release),
        None => session.store.known_good()?.into_iter().next(),
    };
    let base = base.ok_or_else(|| {
        fail(
            Exit::NoRelease,
            "cannot restore the backup: there is no known-good release to run it with",
            Next::xtask("up"),
        )
    })?;
    session.store.check_files(&base)?;
    refuse_external(&kept.id, &services, session.by(&base)?.engine.as_ref())?;
    let release = candidate::variant(session, &base, replaced(&files, &kept, &base.layout))
        .context("cannot make a release with the files of the backup")?;
    let request = Request {
        to: Some(release.id.clone()),
        backup: Some((kept.dir.clone(), services.clone())),
        ..Request::by(run::Command::Restore)
    };
    let deadline = Deadline::after(with_data::budget(pilot.manifest.limits.budget, &request)?);
    let finished = rollback::locked(&request, session, deadline)?;
    if let Some(why) = &finished.error {
        session.store.mark_failed(&release.id, why)?;
        return Ok(finished);
    }
    // The data that a cut-off run had removed is back, so later commands need not mention that run.
    for cut in run::all_cut_off(&pilot.state, None)? {
        if !services.is_empty() && cut.only_copies().contains(&kept.id) {
            run::give_up(&cut)?;
        }
    }
    Ok(finished)
}

/// Data in external volumes cannot be restored. This is said before the run, which would close the gate.
fn refuse_external(backup: &str, services: &[String], engine: &dyn Engine) -> Result<()> {
    let external = services.iter().filter_map(|service| Some((service, engine.external(service)?)));
    let all: Vec<String> =
        external.map(|(service, volume)| format!("volume {volume} of {service} is external")).collect();
    if all.is_empty() {
        return Ok(());
    }
    let what = format!(
        "cannot restore the data of backup {backup}: {}; only its maker may remove what is in it; nothing was begun",
        all.join(", ")
    );
    let next = Next::xtask(&format!("backup restore {backup} --only env"));
    Err(fail(Exit::Usage, what, next.so("restores the settings alone; copy the data by hand")))
}
