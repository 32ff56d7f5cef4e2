//! `releases list` and `releases show`.

use crate::base::deadline::utc;
use crate::deploy::event::Event;
use crate::deploy::session::Session;
use crate::operations::with_data;
use crate::release::changes::{self, Changes};
use crate::release::description::Release;
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeMap;

/// All releases, oldest first. Each is compared with the one before.
pub fn all(session: &Session) -> Result<()> {
    let out = &session.out;
    let (releases, broken) = session.store.list()?;
    let current = session.store.current().ok().flatten().map(|r| r.id);
    let differs = differences(session, &releases);
    let told: BTreeMap<&String, &Changes> =
        releases.iter().skip(1).map(|release| &release.id).zip(&differs).collect();
    out.event(&Event::Result {
        value: &json!({"releases": releases, "current": current, "broken": broken, "differs": told}),
    });
    if releases.is_empty() {
        out.say(format!("there are no releases yet; to make one: {}", out.xtask("up")));
    } else {
        out.say("  release  state       version   commit         made                  differs from the one before");
    }
    for release in &releases {
        let running = if current.as_ref() == Some(&release.id) { "*" } else { " " };
        let commit: String = match &release.commit {
            Some(commit) if commit.ends_with("-dirty") => format!("{}-dirty", &commit[..7.min(commit.len())]),
            Some(commit) => commit.chars().take(12).collect(),
            None => "none".into(),
        };
        let (word, made) = (release.state.as_str(), utc(release.created_ms));
        let differs = told.get(&release.id).map(ToString::to_string).unwrap_or_default();
        let line = format!(
            "{running} {:<7}  {word:<10}  {:<8}  {commit:<13}  {made}  {differs}",
            release.id, release.label
        );
        out.say(line.trim_end());
        let pinned = release.pinned.then(|| "pinned".to_owned());
        let about: Vec<String> =
            pinned.into_iter().chain(release.note.as_ref().map(|n| n.text.clone())).collect();
        if !about.is_empty() {
            out.say(format!("           {}", about.join("; ")));
        }
    }
    broken.iter().for_each(|error| out.say(format!("{} {error}", out.mark(Some(false)))));
    Ok(())
}

/// What each release but the first has otherwise than the one before.
fn differences(session: &Session, releases: &[Release]) -> Vec<Changes> {
    let settings: Vec<Option<BTreeMap<String, String>>> =
        releases.iter().map(|release| session.store.settings(release).ok().map(|env| env.map())).collect();
    let both = |n: usize| settings[n].as_ref().zip(settings[n + 1].as_ref());
    releases.windows(2).enumerate().map(|(n, two)| changes::between(&two[0], &two[1], both(n))).collect()
}

/// One release, with everything that is known of it.
pub fn one(session: &Session, id: &str) -> Result<()> {
    let out = &session.out;
    let release = session.store.named(id)?;
    out.event(&Event::Result { value: &json!(release) });
    let reason = release.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
    out.say(format!("release  {} ({}), {}{reason}", release.id, release.label, release.state.as_str()));
    out.say(format!("made     {} on {}", utc(release.created_ms), release.engine));
    out.say(format!("verified {}", release.verified_ms.map_or("never".into(), utc)));
    out.say(format!("commit   {}", release.commit.as_deref().unwrap_or("none")));
    if release.pinned {
        out.say(format!(
            "pinned   it is never removed; to undo that: {}",
            out.xtask(&format!("releases unpin {id}"))
        ));
    }
    if let Some(note) = &release.note {
        out.say(format!("note     {} ({}, {})", note.text, note.who, utc(note.at_ms)));
    }
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
        let (data, made) = (kept.backup.data().join(", "), utc(kept.backup.made_ms));
        out.say(format!("snapshot {} of {data}, as it was left at {made}", kept.id));
        let back = out.xtask(&format!("rollback --to {} --with-data", release.id));
        out.say(format!("         to go back with it: {back}"));
    }
    Ok(())
}
