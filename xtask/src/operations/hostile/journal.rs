//! Tests: the journal of a run that may be anything, for a disk may have lost or garbled any part of it. A line that is cut
//! off proves nothing, a longer journal takes nothing back that a shorter one proves, and a report can be made of each.
//! Called by `hostile`.

use super::folder::Folder;
use crate::deploy::past::Past;
use crate::deploy::step::Step;
use crate::operations::report;
use crate::stack::state_dir::RunDir;
use anyhow::Result;
use serde_json::Value;

/// What a power cut may leave of a line that would prove a lot.
const CUT_OFF: &[u8] = b"\n{\"event\":\"step\",\"action\":{\"step\":\"open-gate\"},\"progress\":\"sta";

pub(super) fn body(bytes: &[u8]) {
    let folder = Folder::new();
    let dir = RunDir::new(folder.0.join("0007-x"));
    let Ok(past) = read(&dir, bytes) else { unreachable!("a journal that is there is read") };
    assert_eq!(
        read(&dir, &[bytes, CUT_OFF].concat()).ok().as_ref(),
        Some(&past),
        "a cut line proves something"
    );
    let half = bytes[..bytes.len() / 2].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let Ok(earlier) = read(&dir, &bytes[..half]) else { unreachable!("a shorter journal is read") };
    assert!(past.opening || !earlier.opening, "it had begun to open the gate, and now it had not");
    assert!(past.changed || !earlier.changed, "it had changed something, and now it had not");
    assert!(earlier.began_ms.is_none() || earlier.began_ms == past.began_ms, "it began at another time");
    assert!(past.backups("0007-x").iter().all(|id| id.starts_with("0007-x")));
    String::from_utf8_lossy(bytes).lines().for_each(steps_come_back);
    assert!(read(&dir, bytes).is_ok());
    reports(&dir);
}

fn read(dir: &RunDir, bytes: &[u8]) -> Result<Past> {
    std::fs::create_dir_all(dir.path())?;
    std::fs::write(dir.journal(), bytes)?;
    Past::read(dir)
}

/// A step that was read, written and read again is the same.
fn steps_come_back(line: &str) {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return };
    let Ok(step) = serde_json::from_value::<Step>(event["action"].clone()) else { return };
    assert!(!step.to_string().is_empty(), "{step:?} has no words");
    let again = serde_json::to_value(&step).and_then(serde_json::from_value::<Step>);
    assert_eq!(again.ok(), Some(step), "a step does not come back");
}

/// The reports are well formed, and no text of the journal becomes a part of the page.
fn reports(dir: &RunDir) {
    let told = report::of(dir);
    assert!(told.is_ok(), "no report: {told:?}");
    let Ok((_, story)) = told else { return };
    assert!(serde_json::to_string(&story).is_ok());
    let Ok([page, markdown, suites]) = report::pages(&story) else { unreachable!("the story has its pages") };
    for (name, page) in [("the page", &page), ("the ticket", &markdown)] {
        assert!(!page.to_lowercase().contains("<script"), "{name} has a script");
    }
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\t' | '\r');
    assert!(!suites.contains(odd), "the suites have what XML may not have");
    assert_eq!(unbalanced(&suites), None, "{suites}");
}

/// The first tag of an XML document that does not fit the one before it.
fn unbalanced(xml: &str) -> Option<String> {
    let mut open: Vec<&str> = Vec::new();
    for tag in xml.split('<').skip(1) {
        let Some((tag, _)) = tag.split_once('>') else { return Some(tag.to_owned()) };
        let name = tag.split([' ', '\n', '/']).find(|word| !word.is_empty()).unwrap_or_default();
        if tag.starts_with('?') || tag.ends_with('/') {
            continue;
        }
        if !tag.starts_with('/') {
            open.push(name);
        } else if open.pop() != Some(name) {
            return Some(tag.to_owned());
        }
    }
    open.pop().map(str::to_owned)
}
