//! `report.html` of a rollback, drawn from its journal. One file, no script, nothing fetched.

use crate::drift::Difference;
use crate::files::{self, Mode};
use crate::journal::{Finished, Outcome};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2125}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #dfe3e8;vertical-align:top}\
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
.good{color:#1a7f37}.bad{color:#c4231f}.figures{display:flex;gap:2rem;flex-wrap:wrap}\
.figures b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}";

/// Writes the report of the rollback in `dir`.
pub fn write(dir: &Path, finished: &Finished) -> Result<()> {
    let path = dir.join("journal.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // A line cut off by a crash is no event.
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    files::write(&dir.join("report.html"), html(&events, finished)?.as_bytes(), Mode::Plain)
}

fn html(events: &[Value], finished: &Finished) -> Result<String> {
    let good = matches!(finished.outcome, Some(Outcome::Restored | Outcome::NothingToDo));
    let outcome = serde_json::to_value(finished.outcome)?;
    let outcome = outcome.as_str().unwrap_or("unknown").replace('-', " ");
    let id = escape(finished.rollback.as_deref().unwrap_or("?"));
    let class = if good { "good" } else { "bad" };
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Rollback {id}</title><style>{STYLE}</style>\n<h1>Rollback {id}: <span class={class}>{outcome}</span></h1>\n"
    );
    let seconds =
        |ms: Option<u64>| ms.map_or("not measured".into(), |ms| format!("{:.2} s", ms as f64 / 1e3));
    let scenarios: Vec<&str> = finished.scenarios.iter().map(|s| s.word()).collect();
    writeln!(
        page,
        "<div class=figures><div><b>{}</b>gate proved closed</div><div><b>{}</b>first public token</div>\
         <div><b>{}</b>release</div><div><b>{}</b>scenario</div></div>",
        seconds(finished.gate_closed_ms),
        seconds(finished.restored_ms),
        escape(finished.release.as_deref().unwrap_or("none")),
        if scenarios.is_empty() { "none".into() } else { scenarios.join(" + ") },
    )?;
    if let Some(error) = &finished.error {
        writeln!(
            page,
            "<p class=bad>{}</p><p>Next: <code>{}</code></p>",
            escape(error),
            escape(finished.next.as_deref().unwrap_or(""))
        )?;
    }
    let of = |name: &str| events.iter().filter(move |e| e["event"] == name).cloned().collect::<Vec<_>>();
    page += "<h2>What differed from the release</h2><ul>\n";
    for event in of("drift") {
        let differences: Vec<Difference> = serde_json::from_value(event["differences"].clone())?;
        for difference in differences {
            writeln!(page, "<li>{}", escape(&difference.to_string()))?;
        }
    }
    page += "</ul>\n<h2>Steps</h2><table><tr><th>Step<th>How it ended<th class=n>took<th class=n>at\n";
    for step in of("step").iter().filter(|s| s["progress"] != "started") {
        let class = match step["progress"].as_str() {
            Some("done") => "good",
            _ => "bad",
        };
        let detail = step["detail"].as_str().map(|d| format!("<br>{}", escape(d))).unwrap_or_default();
        writeln!(
            page,
            "<tr><td>{}{detail}<td class={class}>{}<td class=n>{} ms<td class=n>{} ms",
            escape(&plain(&step["step"])),
            escape(&plain(&step["progress"])),
            step["took_ms"],
            step["at_ms"]
        )?;
    }
    page += "</table>\n<h2>Checks</h2><table>\n";
    let checks = finished.smoke.as_ref().and_then(|s| s["checks"].as_array());
    for check in checks.into_iter().flatten() {
        let (class, word) = if check["ok"] == true { ("good", "passed") } else { ("bad", "failed") };
        writeln!(
            page,
            "<tr><td>{}<td class={class}>{word}<td>{}",
            escape(&plain(&check["name"])),
            escape(&plain(&check["detail"]))
        )?;
    }
    page += "</table>\n";
    let notes = of("note");
    if !notes.is_empty() {
        page += "<h2>Notes</h2><ul>\n";
        for note in notes {
            writeln!(page, "<li>{}", escape(&plain(&note["text"])))?;
        }
        page += "</ul>\n";
    }
    page += "</html>\n";
    Ok(page)
}

/// Text without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;
    use serde_json::json;

    #[test]
    fn text_from_services_cannot_become_markup() {
        let events = [json!({"event": "note", "text": "<script>alert(1)</script>"})];
        let page = html(&events, &Finished::plain(Exit::Ok)).unwrap();
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
    }

    #[test]
    fn what_was_not_measured_is_said_to_be_so() {
        assert!(html(&[], &Finished::plain(Exit::Ok)).unwrap().contains("not measured"));
    }
}
