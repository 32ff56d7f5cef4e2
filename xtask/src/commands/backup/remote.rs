//! `backup push|pull|list --remote`: what is said of backups in a repository off the host. `deploy/remote` does the work.
//! Called by `commands/backup`.

use crate::base::failure::Exit;
use crate::base::files;
use crate::base::output::Output;
use crate::deploy::event::{Event, Finished};
use crate::deploy::remote::Place;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use serde_json::json;
use std::time::{Duration, UNIX_EPOCH};

pub fn push(name: Option<&str>, pilot: &Pilot, out: &Output) -> Result<Finished> {
    let place = Place::of(pilot)?;
    out.say(format!("pushing the backups of {} to {}", pilot.project, place.location()));
    let done = place.push(name, out)?;
    out.event(&Event::Result { value: &json!(done) });
    if done.there > 0 {
        out.say(format!("  there before: {} of this machine", done.there));
    }
    if !done.too_old.is_empty() {
        out.say(format!("  not pushed, because newer ones fill the repository: {}", done.too_old.join(", ")));
    }
    let good = out.mark(Some(true));
    out.say(format!("{good} checked the repository: no errors; {} of its data was read back", done.checked));
    Ok(Finished::plain(Exit::Ok))
}

pub fn pull(name: &str, pilot: &Pilot, out: &Output) -> Result<Finished> {
    let done = Place::of(pilot)?.pull(name, out)?;
    out.event(&Event::Result { value: &json!(done) });
    let good = out.mark(Some(true));
    let how = if done.was_here { "is here already, whole" } else { "is here, every file verified" };
    out.say(format!("{good} backup {} {how}", done.backup));
    out.say(format!("  in {}", done.folder.display()));
    out.say(format!("  to restore it: {}", out.xtask(&format!("backup restore {}", done.backup))));
    Ok(Finished::plain(Exit::Ok))
}

pub fn list(pilot: &Pilot, out: &Output) -> Result<Finished> {
    let place = Place::of(pilot)?;
    let (all, here) = (place.list()?, place.here()?);
    let rows: Vec<_> = all
        .iter()
        .map(|one| json!({"backup": one.name, "release": one.release, "made_ms": one.made_ms, "bytes": one.bytes, "data": one.data, "snapshot": one.snapshot, "here": here.contains(&one.sum)}))
        .collect();
    out.event(&Event::Result { value: &json!({"repository": place.location(), "backups": rows}) });
    if all.is_empty() {
        out.say(format!("there are no backups of {} in {} yet", pilot.project, place.location()));
        out.say(format!("  to send them: {}", out.xtask("backup push")));
    }
    for one in &all {
        let made = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(one.made_ms));
        let release = one.release.as_deref().unwrap_or("-");
        let data = if one.data { "data" } else { "settings" };
        let here = if here.contains(&one.sum) { "here too" } else { "" };
        let line =
            format!("{}  {made}  {release:<5}  {:>9}  {data:<8}  {here}", one.name, files::human(one.bytes));
        out.say(line.trim_end());
    }
    Ok(Finished::plain(Exit::Ok))
}
