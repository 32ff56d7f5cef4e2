//! Log lines around the failure, from the evidence of a run: the newest lines of each service that failed, bounded and
//! masked. Called by `reading`.

use crate::base::secrets;
use crate::operations::report::story::{Excerpt, Mood, Story};
use crate::stack::state_dir::RunDir;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;

/// How many services, how many lines of each, and how many characters of a line are shown.
const SERVICES: usize = 4;
const LINES: usize = 15;
const WIDTH: usize = 240;
/// How many bytes at the end of a log are read for them.
const BYTES: u64 = 64 << 10;

/// The excerpts. Services that the error or the differences name come first.
pub fn excerpts(dir: &RunDir, story: &Story) -> Vec<Excerpt> {
    let (end, before) = (dir.evidence_of_the_end(), dir.evidence());
    let folder = if end.is_dir() && story.mood() == Mood::Bad { end } else { before };
    let names = crate::base::files::names(&folder).unwrap_or_default();
    let mut services: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".log")).collect();
    let told = told(story);
    services.sort_by_key(|service| !told.contains(*service));
    let excerpt = |service: &str| {
        let name = format!("{service}.log");
        let lines = newest(&folder.join(&name))?;
        let file = format!("{}/{name}", folder.file_name()?.to_str()?);
        (!lines.is_empty()).then(|| Excerpt { service: service.to_owned(), file, lines })
    };
    services.into_iter().filter_map(excerpt).take(SERVICES).collect()
}

/// Everything that was said to be wrong.
fn told(story: &Story) -> String {
    let changes = story.changes.iter().flat_map(|change| change.of.iter().cloned());
    let failed = story.checks.iter().filter(|check| !check.ok).map(|check| check.detail.clone());
    let error = story.finished.error.iter().cloned();
    error.chain(failed).chain(story.differences.iter().cloned()).chain(changes).collect::<Vec<_>>().join(" ")
}

/// The last lines of a log; none if it cannot be read. A line that `BYTES` cut is left out.
fn newest(path: &Path) -> Option<Vec<String>> {
    let file = File::open(path).ok()?;
    let bytes = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
    let text = crate::base::files::tail(&file, BYTES).ok()?;
    let whole = text.lines().skip(usize::from(bytes > BYTES)).filter(|line| !line.trim().is_empty());
    let all: Vec<&str> = whole.collect();
    Some(all[all.len().saturating_sub(LINES)..].iter().map(|line| shown(line)).collect())
}

/// A line that is a JSON object, as people read it: time, level, message, and the rest as `key=value`. Docker writes a
/// time before each line, which is left out if the object has one.
fn of_json(line: &str) -> Option<String> {
    let stamped = line.split_once(' ').filter(|(stamp, _)| humantime::parse_rfc3339(stamp).is_ok());
    let (stamp, object) = stamped.map_or((None, line), |(stamp, object)| (Some(stamp.to_owned()), object));
    let mut fields: Map<String, Value> = serde_json::from_str(object).ok()?;
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut take = |names: &[&str]| names.iter().find_map(|name| fields.remove(*name)).map(text);
    let first = [
        take(&["timestamp", "time", "ts"]).or(stamp),
        take(&["level", "severity"]),
        take(&["message", "msg"]),
    ];
    let rest = fields.into_iter().map(|(key, value)| format!("{key}={}", text(value)));
    Some(first.into_iter().flatten().chain(rest).collect::<Vec<_>>().join(" "))
}

/// Masked before it is cut: half a secret would not be recognised. Colours of a terminal are left out.
fn shown(line: &str) -> String {
    let masked = secrets::mask(line);
    // Once more, because another form may show what the first one hid.
    let masked = of_json(&masked).map_or(masked, |text| secrets::mask(&text));
    let mut plain = String::new();
    let mut rest = masked.as_str();
    while let Some((text, more)) = rest.split_once('\u{1b}') {
        plain.push_str(text);
        rest = more.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    let plain: String = plain.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match plain.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &plain[..at]),
        None => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_without_colours_and_not_longer_than_it_may_be() {
        assert_eq!(shown("\u{1b}[31mbad\u{1b}[0m\tanswer"), "bad answer");
        let json = "{\"level\":\"INFO\",\"message\":\"request\",\"status\":503,\"timestamp\":\"12:00\"}";
        assert_eq!(shown(json), "12:00 INFO request status=503");
        assert_eq!(shown(&format!("2026-11-26T03:12:40.042836898Z {json}")), "12:00 INFO request status=503");
        let untimed = "2026-11-26T03:12:40.042836898Z {\"msg\":\"up\"}";
        assert_eq!(shown(untimed), "2026-11-26T03:12:40.042836898Z up");
        assert_eq!(shown("{\"half"), "{\"half");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), WIDTH + 1);
    }

    #[test]
    fn the_newest_lines_are_kept() {
        let scratch = crate::base::files::Scratch::new("logs-test").unwrap();
        let path = scratch.path().join("a.log");
        let lines: Vec<String> = (0..20_000).map(|n| format!("line {n}")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let found = newest(&path).unwrap();
        assert_eq!((found.len(), found.last().map(String::as_str)), (LINES, Some("line 19999")));
        assert_eq!(newest(&scratch.path().join("b.log")), None);
    }
}
