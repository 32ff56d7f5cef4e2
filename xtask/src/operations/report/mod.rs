//! The reports of a run, drawn from its journal: `report.html` for people, `report.md` to paste into an
//! incident's page, `report.xml` (JUnit) for CI. Nothing in them that is not in the journal.

mod html;
mod junit;
mod markdown;

use crate::base::files;
use crate::base::files::Mode;
use crate::deploy::event::Finished;
use crate::stack::state_dir::RunDir;
use anyhow::Result;
use serde_json::Value;
use std::path::PathBuf;

/// Writes the reports of the run in `dir`.
pub fn write(dir: &RunDir, finished: &Finished) -> Result<()> {
    let path = dir.journal();
    let text = files::read_text(&path)?;
    // A line cut off by a crash is no event.
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let write = |path: PathBuf, text: String| files::write(&path, text.as_bytes(), Mode::Plain);
    write(dir.page(), html::page(&events, finished)?)?;
    write(dir.markdown(), markdown::page(&events, finished)?)?;
    write(dir.junit(), junit::suite(&events, finished)?)
}

/// Events of one kind, in order.
fn of<'a>(events: &'a [Value], name: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["event"] == name)
}

/// Steps that ended, in order.
fn steps(events: &[Value]) -> impl Iterator<Item = &Value> {
    of(events, "step").filter(|step| step["progress"] != "started")
}

/// The smoke checks of the release that runs now.
fn checks(finished: &Finished) -> impl Iterator<Item = &Value> {
    finished.smoke.as_ref().and_then(|smoke| smoke["checks"].as_array()).into_iter().flatten()
}

/// A time in seconds, or that there is none.
fn seconds(ms: Option<u64>) -> String {
    ms.map_or("not measured".into(), |ms| format!("{:.2} s", ms as f64 / 1e3))
}

/// How it ended, in words.
fn outcome(finished: &Finished) -> Result<String> {
    let outcome = serde_json::to_value(finished.outcome)?;
    Ok(outcome.as_str().unwrap_or("unknown").replace('-', " "))
}

/// What began the run, and its id.
fn title(events: &[Value], finished: &Finished) -> String {
    let command = of(events, "started").find_map(|event| event["command"].as_str()).unwrap_or("run");
    format!("{command} {}", finished.rollback.as_deref().unwrap_or("?"))
}

/// Who holds the gate closed, and what the public met at the end, as far as either is known.
fn gate(finished: &Finished) -> impl Iterator<Item = String> {
    let hold = finished.hold.as_ref().map(|hold| format!("the gate is {hold}"));
    hold.into_iter().chain(finished.public.as_ref().map(ToString::to_string))
}

/// Text without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// For HTML and XML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::Exit;
    use serde_json::json;

    #[test]
    fn text_from_services_cannot_become_markup() {
        let events = [json!({"event": "note", "text": "<script>alert(1)</script>"})];
        let page = html::page(&events, &Finished::plain(Exit::Ok)).unwrap();
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        let step = json!({"event": "step", "progress": "failed", "step": "a | b", "took_ms": 1500, "at_ms": 2, "detail": "<x>\u{1}"});
        let xml = junit::suite(std::slice::from_ref(&step), &Finished::plain(Exit::NotRestored)).unwrap();
        assert!(xml.contains("failures=\"2\"") && xml.contains("time=\"1.5\""), "{xml}");
        assert!(xml.contains("&lt;x&gt;") && !xml.contains('\u{1}'), "{xml}");
        let page = markdown::page(&[step], &Finished::plain(Exit::NotRestored)).unwrap();
        assert!(page.contains("a \\| b"), "{page}");
    }

    #[test]
    fn what_was_not_measured_is_said_to_be_so() {
        let finished = Finished::plain(Exit::Ok);
        assert!(html::page(&[], &finished).unwrap().contains("not measured"));
        assert!(markdown::page(&[], &finished).unwrap().contains("not measured"));
    }
}
