//! `releases list|show`: what there is to go back to.

use crate::deploy::Session;
use crate::failure::Exit;
use crate::journal::{Event, Finished};
use anyhow::Result;
use clap::Subcommand;
use serde_json::json;
use std::time::{Duration, UNIX_EPOCH};

/// `cargo xtask releases`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask releases list\n  cargo xtask releases show r1")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every release, oldest first
    List,
    /// One release: images, files, when it was made and verified
    Show {
        /// Its id, as `list` shows it
        release: String,
    },
}

/// Reads the store; changes nothing.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    match &args.command {
        Command::List => list(session)?,
        Command::Show { release } => show(session, release)?,
    }
    Ok(Finished::plain(Exit::Ok))
}

fn list(session: &Session) -> Result<()> {
    let out = &session.out;
    let (releases, broken) = session.store.list()?;
    let current = session.store.current().ok().flatten().map(|r| r.id);
    out.event(&Event::Result { value: &json!({"releases": releases, "current": current, "broken": broken}) });
    if releases.is_empty() {
        out.say("no releases yet; cargo xtask up makes one");
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
        let word = release.state.word();
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
    out.say(format!("release  {} ({}), {}{reason}", release.id, release.label, release.state.word()));
    out.say(format!("made     {} on {}", time(release.created_ms), release.engine));
    out.say(format!("verified {}", release.verified_ms.map_or("never".into(), time)));
    out.say(format!("commit   {}", release.commit.as_deref().unwrap_or("none")));
    for (service, image) in &release.images {
        let kept = if session.store.archive(&image.id).exists() { "kept" } else { "not kept" };
        let short: String = image.id.chars().take(19).collect();
        out.say(format!("image    {service:<8} {short}  {kept}"));
    }
    let sound = session.store.check_files(&release);
    out.say(match &sound {
        Ok(()) => format!("files    {}, as they were", release.files.len()),
        Err(error) => format!("files    {error:#}"),
    });
    out.say(format!("folder   {}", session.store.dir(&release.id).display()));
    Ok(())
}

fn time(ms: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}
