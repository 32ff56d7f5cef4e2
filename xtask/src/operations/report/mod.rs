//! The reports of a run, made from its journal: `report.html` for people, `report.md` to paste into the page
//! of an incident, `report.xml` (JUnit) for CI. They have nothing that is not in the journal. Called by
//! `ending`.

mod html;
mod junit;
mod markdown;
mod told;

use crate::base::files::{self, Mode};
use crate::deploy::event::Finished;
use crate::stack::state_dir::RunDir;
use anyhow::Result;
use serde_json::Value;
use std::path::PathBuf;

/// Writes the reports of the run in `dir`.
pub fn write(dir: &RunDir, finished: &Finished) -> Result<()> {
    let path = dir.journal();
    let text = files::read_text(&path)?;
    // A line that a crash left incomplete is ignored.
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let write = |path: PathBuf, text: String| files::write(&path, text.as_bytes(), Mode::Plain);
    write(dir.page(), html::page(&events, finished)?)?;
    write(dir.markdown(), markdown::page(&events, finished)?)?;
    write(dir.junit(), junit::suite(&events, finished)?)
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
