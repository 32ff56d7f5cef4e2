//! `report.html`: one file, without scripts and without requests to a server. The verdict comes first. Called by
//! `report`.

mod timeline;

use crate::base::deadline::utc;
use crate::checks::smoke::Checked;
use crate::deploy::event::{Brief, Finished};
use crate::deploy::lockout::Public;
use crate::operations::report::story::{Mood, Story};
use crate::operations::report::words::{UNMEASURED, escape, lasted, seconds};
use std::fmt::{Result, Write};

const STYLE: &str = include_str!("style.css");

/// Nothing may be loaded, also if text of a service should ever become markup.
const NOTHING: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// Words in a log line that deserve a look.
const LOUD: [&str; 6] = ["error", "fatal", "panic", "failed", "refused", "exception"];

/// The page.
pub fn page(story: &Story) -> std::result::Result<String, std::fmt::Error> {
    let mut page = String::new();
    head(&mut page, story)?;
    writeln!(page, "<main>")?;
    let calm = story.mood() == Mood::Good;
    if !calm {
        go_on(&mut page, story)?;
    }
    figures(&mut page, story)?;
    timeline::write(&mut page, story)?;
    differences(&mut page, story)?;
    list(&mut page, "restored", story.restored_title(), &story.restored)?;
    checks(&mut page, &story.checks)?;
    logs(&mut page, story)?;
    if calm {
        go_on(&mut page, story)?;
    }
    list(&mut page, "notes", "Remarks", &story.notes)?;
    about(&mut page, story)?;
    files(&mut page, story)?;
    writeln!(page, "</main>")?;
    let made = story.xtask.as_ref().map(|version| format!(" by xtask {version}")).unwrap_or_default();
    writeln!(
        page,
        "<footer><p>Made{} from the journal of the run. Secrets are masked.</p></footer>",
        escape(&made)
    )?;
    writeln!(page, "</body></html>")?;
    Ok(page)
}

fn head(page: &mut String, story: &Story) -> Result {
    let (class, mark) = match story.mood() {
        Mood::Good => ("good", "✓"),
        Mood::Held => ("held", "!"),
        Mood::Bad => ("bad", "✗"),
    };
    let project = story.project.as_deref().map(|project| format!(" of {project}")).unwrap_or_default();
    let verdict = escape(&story.verdict());
    let title = escape(&format!("{}{project}", story.title()));
    write!(page, "<!doctype html>\n<html lang=en>\n<head><meta charset=utf-8>")?;
    write!(page, "<meta name=viewport content=\"width=device-width,initial-scale=1\">")?;
    write!(page, "<meta http-equiv=Content-Security-Policy content=\"{NOTHING}\">")?;
    write!(
        page,
        "<link rel=icon href=\"data:,\"><title>{verdict}: {title}</title>\n<style>\n{STYLE}</style></head>\n"
    )?;
    writeln!(page, "<body>\n<header class=\"verdict {class}\"><div>")?;
    let began = story.began_ms.map(|ms| format!(", {}", day(ms))).unwrap_or_default();
    writeln!(page, "<p class=what>{title}{began}</p>")?;
    writeln!(page, "<h1><span class=mark aria-hidden=true>{mark}</span>{verdict}</h1>")?;
    for line in lead(story) {
        writeln!(page, "<p class=lead>{}</p>", escape(&sentence(&line)))?;
    }
    writeln!(page, "</div></header>")
}

/// A time with its zone, for people: `2026-11-26 02:11:22 UTC`.
fn day(ms: u64) -> String {
    utc(ms).replace('T', " ").replace('Z', " UTC")
}

/// Begins with a capital letter: errors are fragments.
fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// The sentences below the verdict.
fn lead(story: &Story) -> Vec<String> {
    let Finished { gate_closed_ms, restored_ms, downtime_ms, error, escalation, .. } = &story.finished;
    let mut lines: Vec<String> = error.iter().cloned().collect();
    lines.extend(story.gate());
    if let (Mood::Good, Some(closed), Some(opened)) = (story.mood(), gate_closed_ms, restored_ms) {
        let down = downtime_ms.map(|ms| format!(": {} without service", lasted(ms))).unwrap_or_default();
        lines.push(format!(
            "The gate was closed after {}, and the first public request was served after {}{down}.",
            seconds(Some(*closed)),
            seconds(Some(*opened))
        ));
    }
    if story.finished.outcome.is_none() {
        lines.push("There is no end in its journal: it was cut off, or it still runs.".into());
    }
    if let (false, Some(escalation)) = (story.mood() == Mood::Good, escalation) {
        lines.push(escalation.to_string());
    }
    lines.extend(story.advice());
    lines
}

/// Opens a section with this heading.
fn section(page: &mut String, id: &str, title: &str) -> Result {
    writeln!(page, "<section aria-labelledby={id}><h2 id={id}>{}</h2>", escape(title))
}

fn go_on(page: &mut String, story: &Story) -> Result {
    let class = match story.mood() {
        Mood::Good => "",
        Mood::Held => " held-first",
        Mood::Bad => " bad-first",
    };
    if story.go_on.is_empty() && story.finished.next.is_none() {
        return Ok(());
    }
    section(page, "go-on", "How to go on")?;
    writeln!(page, "<ul class=\"next{class}\">")?;
    for step in &story.go_on {
        writeln!(page, "<li><code>{}</code><span>{}</span></li>", escape(&step.command), escape(&step.why))?;
    }
    // Journals of older versions have the next command alone.
    if let (true, Some(next)) = (story.go_on.is_empty(), &story.finished.next) {
        let why = story.finished.advice.as_deref().unwrap_or("the next command to run");
        writeln!(page, "<li><code>{}</code><span>{}</span></li>", escape(next), escape(why))?;
    }
    writeln!(page, "</ul></section>")
}

fn figures(page: &mut String, story: &Story) -> Result {
    let finished = &story.finished;
    let passed = story.checks.iter().filter(|check| check.ok).count();
    let checks = match story.checks.len() {
        0 => "none made".to_owned(),
        all => format!("{passed} of {all}"),
    };
    let shut = finished.held || finished.public.as_ref().is_some_and(Public::is_shut);
    let downtime = match finished.downtime_ms {
        Some(ms) => lasted(ms),
        None if shut => "goes on".into(),
        None => UNMEASURED.into(),
    };
    let rows = [
        ("gate proved closed after", seconds(finished.gate_closed_ms)),
        ("first public request after", seconds(finished.restored_ms)),
        ("without service", downtime),
        ("checks passed", checks),
        ("release", finished.release.clone().unwrap_or_else(|| "none".into())),
    ];
    writeln!(page, "<dl class=figures>")?;
    for (what, value) in rows {
        let class = if value == UNMEASURED { " class=none" } else { "" };
        writeln!(page, "<div><dt>{what}</dt><dd{class}>{}</dd></div>", escape(&value))?;
    }
    writeln!(page, "</dl>")
}

fn differences(page: &mut String, story: &Story) -> Result {
    if story.changes.is_empty() && story.differences.is_empty() {
        return Ok(());
    }
    let release = story.finished.release.as_deref().unwrap_or("the target release");
    section(page, "differences", &format!("What differed from release {release}"))?;
    if !story.changes.is_empty() {
        writeln!(
            page,
            "<p class=hint>Before the run → in release {}.</p><ul class=changes>",
            escape(release)
        )?;
    }
    let value = |value: &Option<String>| escape(value.as_deref().unwrap_or("not set"));
    for change in &story.changes {
        write!(page, "<li><code>{}</code><span><span class=vh>was </span>", escape(&change.what))?;
        write!(page, "<del>{}</del><span class=arrow aria-hidden=true>→</span>", value(&change.old))?;
        write!(page, "<span class=vh>, the release has </span><ins>{}</ins></span>", value(&change.new))?;
        writeln!(page, "<span class=of>{}</span></li>", escape(&change.of.join(", ")))?;
    }
    if !story.changes.is_empty() {
        writeln!(page, "</ul>")?;
    }
    items(page, &story.differences)?;
    writeln!(page, "</section>")
}

fn items(page: &mut String, lines: &[String]) -> Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(page, "<ul class=plain>")?;
    lines.iter().try_for_each(|line| writeln!(page, "<li>{}</li>", escape(line)))?;
    writeln!(page, "</ul>")
}

/// A section with a list, if there is something to list.
fn list(page: &mut String, id: &str, title: &str, lines: &[String]) -> Result {
    if lines.is_empty() {
        return Ok(());
    }
    section(page, id, title)?;
    items(page, lines)?;
    writeln!(page, "</section>")
}

fn checks(page: &mut String, checks: &[Checked]) -> Result {
    if checks.is_empty() {
        return Ok(());
    }
    section(page, "checks", "Checks")?;
    writeln!(page, "<ul class=checks>")?;
    // What failed comes first.
    let (failed, passed): (Vec<_>, Vec<_>) = checks.iter().partition(|check| !check.ok);
    for check in failed.into_iter().chain(passed) {
        let (class, word) = if check.ok { ("ok", "✓ passed") } else { ("no", "✗ failed") };
        write!(page, "<li><span>{}</span><span class=\"state {class}\">{word}</span>", escape(&check.name))?;
        write!(page, "<div class=measured>{}", escape(&check.detail))?;
        if let (Some(limit), Some(measured)) = (check.limit_ms.filter(|limit| *limit > 0.0), check.measured) {
            let part = measured.worst_ms * 100.0 / limit;
            let over = if part >= 100.0 { " class=over" } else { "" };
            write!(
                page,
                "<div class=meter aria-hidden=true><i{over} style=\"width:{:.1}%\"></i></div>",
                part.min(100.0)
            )?;
        }
        writeln!(page, "</div></li>")?;
    }
    writeln!(page, "</ul></section>")
}

fn logs(page: &mut String, story: &Story) -> Result {
    if story.logs.is_empty() {
        return Ok(());
    }
    let bad = story.mood() == Mood::Bad;
    let when = if bad { "around the failure" } else { "of what ran before" };
    section(page, "logs", &format!("Log lines {when}"))?;
    if !bad {
        writeln!(page, "<details><summary>Show the newest lines of {} services</summary>", story.logs.len())?;
    }
    for excerpt in &story.logs {
        let (service, file) = (escape(&excerpt.service), escape(&excerpt.file));
        writeln!(page, "<figure><figcaption>{service}: <a href=\"{file}\">{file}</a></figcaption><pre>")?;
        for line in &excerpt.lines {
            let low = line.to_lowercase();
            match LOUD.iter().any(|word| low.contains(word)) {
                true => writeln!(page, "<b>{}</b>", escape(line))?,
                false => writeln!(page, "{}", escape(line))?,
            }
        }
        writeln!(page, "</pre></figure>")?;
    }
    writeln!(page, "{}</section>", if bad { "" } else { "</details>" })
}

fn about(page: &mut String, story: &Story) -> Result {
    let brief = |release: &Brief| {
        let commit = release.commit.as_ref().map(|commit| format!(", commit {}", short(commit)));
        format!("{} ({}{})", release.id, release.label, commit.unwrap_or_default())
    };
    let who = match (&story.who, &story.host) {
        (Some(who), Some(host)) => Some(format!("{who} on {host}")),
        (who, host) => who.clone().or_else(|| host.clone()),
    };
    let again = match story.resumed {
        0 => None,
        n => Some(format!("{n} times, after it was cut off")),
    };
    let rows = [
        ("began", story.began_ms.map(day)),
        ("ended", story.ended_ms.map(day)),
        ("who", who),
        ("project", story.project.clone()),
        ("ran before", story.left.as_ref().map(brief)),
        ("went to", story.went_to.as_ref().map(brief)),
        ("scenario", Some(story.scenarios()).filter(|scenarios| scenarios != "none")),
        ("engine", story.engine.clone()),
        ("xtask", story.xtask.clone()),
        ("continued", again),
        ("exit code", story.finished.outcome.map(|_| u8::from(story.finished.exit).to_string())),
        ("escalation", story.finished.escalation.as_ref().map(ToString::to_string)),
        ("run", Some(story.run.clone())),
    ];
    section(page, "about", "About this run")?;
    writeln!(page, "<dl class=about>")?;
    for (what, value) in rows.into_iter().filter_map(|(what, value)| Some((what, value?))) {
        writeln!(page, "<div><dt>{what}</dt><dd>{}</dd></div>", escape(&value))?;
    }
    writeln!(page, "</dl></section>")
}

/// The first characters of a commit, and that it had changes.
fn short(commit: &str) -> String {
    let plain: String = commit.chars().take(12).collect();
    if commit.ends_with("-dirty") { format!("{plain} with uncommitted changes") } else { plain }
}

fn files(page: &mut String, story: &Story) -> Result {
    if story.links.is_empty() {
        return Ok(());
    }
    section(page, "files", "Files of this run")?;
    writeln!(page, "<ul class=plain>")?;
    for link in &story.links {
        let path = escape(&link.path);
        writeln!(page, "<li><a href=\"{path}\">{path}</a> {}</li>", escape(&link.what))?;
    }
    writeln!(page, "</ul></section>")
}
