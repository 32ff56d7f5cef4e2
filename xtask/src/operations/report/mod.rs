//! The reports of a run: `report.html` for people, `report.md` for a ticket, `report.xml` (JUnit) for CI, `report.json`
//! for programs. They have nothing that is not in the journal and the evidence of the run. Called by `ending` and by
//! the command `report`.

mod changes;
mod html;
mod junit;
mod logs;
mod markdown;
mod reading;
mod restored;
pub mod story;
mod words;

use crate::base::files::{self, Mode};
use crate::deploy::event::Finished;
use crate::operations::report::story::Story;
use crate::stack::state_dir::RunDir;
use anyhow::Result;

/// Writes the reports of the run in `dir`. The run has ended once `report.json` is there, so that is written even if the
/// journal cannot be read.
pub fn write(dir: &RunDir, finished: &Finished) -> Result<()> {
    let read = reading::read(dir, finished);
    let (story, error) = match read {
        Ok(story) => (story, None),
        Err(error) => (reading::of(&[], finished, &dir.id()), Some(error)),
    };
    files::write_json(&dir.report(), &story, Mode::Plain)?;
    let paths = [dir.page(), dir.markdown(), dir.junit()];
    for (path, text) in paths.iter().zip(pages(&story)?) {
        files::write(path, text.as_bytes(), Mode::Plain)?;
    }
    error.map_or(Ok(()), Err)
}

/// The page, the ticket and the suites that tell a story.
pub fn pages(story: &Story) -> Result<[String; 3]> {
    Ok([html::page(story)?, markdown::page(story)?, junit::suites(story)])
}

/// The story of a run, as Markdown and as a value. One that has not ended has no end in it.
pub fn of(dir: &RunDir) -> Result<(String, Story)> {
    let finished = match dir.report().exists() {
        true => files::read_json(&dir.report())?,
        false => Finished::unended(),
    };
    let story = reading::read(dir, &finished)?;
    Ok((markdown::page(&story)?, story))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::Exit;
    use serde_json::{Value, json};

    fn story(events: &[Value], finished: &Finished) -> Story {
        reading::of(events, finished, "0001-x")
    }

    #[test]
    fn text_from_services_cannot_become_markup() {
        let events = [json!({"event": "note", "text": "<script>alert(1)</script>"})];
        let page = html::page(&story(&events, &Finished::plain(Exit::Ok))).unwrap();
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        let step = json!({"event": "step", "progress": "failed", "step": "a | b", "took_ms": 1500, "at_ms": 2000, "detail": "<x>\u{1}\u{ffff}"});
        let told = story(std::slice::from_ref(&step), &Finished::plain(Exit::NotRestored));
        let xml = junit::suites(&told);
        assert!(xml.contains("errors=\"1\"") && xml.contains("time=\"1.500\""), "{xml}");
        assert!(xml.contains("&lt;x&gt;") && !xml.contains(['\u{1}', '\u{ffff}']), "{xml}");
        let page = markdown::page(&told).unwrap();
        assert!(page.contains("a \\| b") && !page.contains("<x>"), "{page}");
    }

    #[test]
    fn what_was_not_measured_is_said_to_be_so() {
        let told = story(&[], &Finished::plain(Exit::Ok));
        assert!(html::page(&told).unwrap().contains("not measured"));
        assert!(markdown::page(&told).unwrap().contains("not measured"));
    }

    #[test]
    fn a_journal_of_an_older_version_is_read_and_a_step_without_an_end_was_cut_off() {
        let events = [
            json!({"event": "started", "command": "rollback", "project": "p", "engine": "compose", "at_ms": 1000, "resumed": false}),
            json!({"event": "step", "progress": "started", "step": "verify", "at_ms": 100, "took_ms": 0}),
            json!({"event": "started", "command": "rollback", "engine": "compose", "at_ms": 2000, "resumed": true}),
            json!({"event": "step", "progress": "started", "step": "verify", "at_ms": 1100, "took_ms": 0}),
            json!({"event": "step", "progress": "missed", "step": "verify", "at_ms": 1200, "took_ms": 100}),
        ];
        let told = story(&events, &Finished::unended());
        assert_eq!((told.began_ms, told.resumed, told.who.as_deref()), (Some(1000), 1, None));
        let steps: Vec<_> = told.steps.iter().map(|step| (step.from_ms, step.took_ms)).collect();
        assert_eq!(steps, [(100, None), (1100, Some(100))]);
        assert_eq!(told.verdict(), "Not ended");
        html::page(&told).unwrap();
    }
}
