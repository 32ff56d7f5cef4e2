//! `report.md`: the story of a run, to paste into a ticket; also what the command `report` shows. Called by `report`.

use crate::base::deadline::utc;
use crate::deploy::event::Progress;
use crate::operations::report::story::{Mood, Story};
use crate::operations::report::words::{lasted, seconds};
use std::fmt::{Result, Write};

/// The page.
pub fn page(story: &Story) -> std::result::Result<String, std::fmt::Error> {
    let mut page = String::new();
    let project = story.project.as_deref().map(|project| format!(" of {project}")).unwrap_or_default();
    writeln!(page, "# {}{project}: {}\n", story.title(), story.outcome())?;
    let mark = match story.mood() {
        Mood::Good => "✓",
        Mood::Held => "!",
        Mood::Bad => "✗",
    };
    writeln!(page, "{mark} **{}**\n", one_line(&story.verdict()))?;
    facts(&mut page, story)?;
    if story.mood() != Mood::Good {
        go_on(&mut page, story)?;
    }
    changes(&mut page, story)?;
    list(&mut page, story.restored_title(), &story.restored)?;
    steps(&mut page, story)?;
    if !story.checks.is_empty() {
        page += "\n## Checks\n\n| check | | measured |\n| --- | --- | --- |\n";
    }
    for check in &story.checks {
        let word = if check.ok { "passed" } else { "**failed**" };
        writeln!(page, "| {} | {word} | {} |", cell(&check.name), cell(&check.detail))?;
    }
    if story.mood() == Mood::Good {
        go_on(&mut page, story)?;
    }
    for excerpt in story.logs.iter().filter(|_| story.mood() == Mood::Bad) {
        writeln!(
            page,
            "\n## Log of {} ({})\n\n````text",
            one_line(&excerpt.service),
            one_line(&excerpt.file)
        )?;
        excerpt.lines.iter().try_for_each(|line| writeln!(page, "{}", line.replace("````", "'''")))?;
        page += "````\n";
    }
    list(&mut page, "Remarks", &story.notes)?;
    Ok(page)
}

fn facts(page: &mut String, story: &Story) -> Result {
    let finished = &story.finished;
    let brief = |release: &crate::deploy::event::Brief| match &release.commit {
        Some(commit) => format!("{} ({}, commit {commit})", release.id, release.label),
        None => format!("{} ({})", release.id, release.label),
    };
    let who = story.who.as_ref().zip(story.host.as_ref()).map(|(who, host)| format!("{who} on {host}"));
    let rows = [
        ("error", finished.error.clone()),
        ("began", story.began_ms.map(utc)),
        ("ended", story.ended_ms.map(utc)),
        ("who", who),
        ("release", Some(finished.release.clone().unwrap_or_else(|| "none".into()))),
        ("ran before", story.left.as_ref().map(brief)),
        ("went to", story.went_to.as_ref().map(brief)),
        ("scenario", Some(story.scenarios())),
        ("gate proved closed", Some(seconds(finished.gate_closed_ms))),
        ("first public request", Some(seconds(finished.restored_ms))),
        ("without service", finished.downtime_ms.map(lasted)),
        ("engine", story.engine.clone()),
        ("xtask", story.xtask.clone()),
    ];
    for (what, value) in rows.into_iter().filter_map(|(what, value)| Some((what, value?))) {
        writeln!(page, "- {what}: {}", one_line(&value))?;
    }
    story.gate().iter().try_for_each(|line| writeln!(page, "- {}", one_line(line)))?;
    story.advice().iter().try_for_each(|advice| writeln!(page, "- {}", one_line(advice)))?;
    finished.escalation.iter().try_for_each(|escalation| writeln!(page, "- {escalation}"))
}

fn go_on(page: &mut String, story: &Story) -> Result {
    let next = story.finished.next.as_ref().filter(|_| story.go_on.is_empty());
    if story.go_on.is_empty() && next.is_none() {
        return Ok(());
    }
    page.push_str("\n## How to go on\n\n");
    next.iter().try_for_each(|next| writeln!(page, "- `{}`", one_line(next)))?;
    story
        .go_on
        .iter()
        .try_for_each(|one| writeln!(page, "- `{}`: {}", one_line(&one.command), one_line(&one.why)))
}

fn changes(page: &mut String, story: &Story) -> Result {
    if story.changes.is_empty() && story.differences.is_empty() {
        return Ok(());
    }
    let release = story.finished.release.as_deref().unwrap_or("the target release");
    writeln!(page, "\n## What differed from release {release}\n")?;
    if !story.changes.is_empty() {
        writeln!(page, "| what | where | before | in release {release} |\n| --- | --- | --- | --- |")?;
    }
    for change in &story.changes {
        let value = |value: &Option<String>| cell(value.as_deref().unwrap_or("not set"));
        let (what, of) = (cell(&change.what), cell(&change.of.join(", ")));
        writeln!(page, "| {what} | {of} | {} | {} |", value(&change.old), value(&change.new))?;
    }
    if !story.changes.is_empty() && !story.differences.is_empty() {
        page.push('\n');
    }
    story.differences.iter().try_for_each(|line| writeln!(page, "- {}", one_line(line)))
}

fn list(page: &mut String, title: &str, lines: &[String]) -> Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(page, "\n## {title}\n")?;
    lines.iter().try_for_each(|line| writeln!(page, "- {}", one_line(line)))
}

fn steps(page: &mut String, story: &Story) -> Result {
    if story.steps.is_empty() {
        return Ok(());
    }
    page.push_str("\n## Steps\n\n| step | how it ended | at | took |\n| --- | --- | --- | --- |\n");
    for step in &story.steps {
        let word = match step.progress {
            Progress::Done => "done",
            Progress::Skipped => "skipped",
            Progress::Warned => "warning",
            Progress::Failed => "**failed**",
            Progress::Started => "**cut off**",
        };
        let detail = step.detail.as_deref().map(|d| d.strip_prefix("skipped: ").unwrap_or(d));
        let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        let took = step.took_ms.map_or_else(|| "did not end".to_owned(), lasted);
        let (step, from) = (cell(&step.step), seconds(Some(step.from_ms)));
        writeln!(page, "| {step} | {} | {from} | {took} |", cell(&format!("{word}{detail}")))?;
    }
    Ok(())
}

/// One line, which no markup can begin.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('<', "&lt;")
}

/// Escapes `|`, which would begin the next cell.
fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}
