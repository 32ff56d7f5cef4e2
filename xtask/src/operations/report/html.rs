//! `report.html`: one file, without scripts and without requests to a server. Called by `report`.

use crate::deploy::difference::Difference;
use crate::deploy::event::{Finished, Outcome};
use crate::operations::report::told::{checks, escape, gate, of, outcome, plain, seconds, steps, title};
use anyhow::Result;
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2125}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #dfe3e8;vertical-align:top}\
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
.good{color:#1a7f37}.bad{color:#c4231f}.figures{display:flex;gap:2rem;flex-wrap:wrap}\
.figures b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}";

/// The page.
pub fn page(events: &[Value], finished: &Finished) -> Result<String> {
    let good = matches!(finished.outcome, Some(Outcome::Restored | Outcome::NothingToDo | Outcome::Deployed));
    let outcome = outcome(finished)?;
    let title = escape(&title(events, finished));
    let class = if good { "good" } else { "bad" };
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style>\n<h1>{title}: <span class={class}>{outcome}</span></h1>\n"
    );
    let scenarios: Vec<&str> = finished.scenarios.iter().map(|s| s.as_str()).collect();
    writeln!(
        page,
        "<div class=figures><div><b>{}</b>gate proved closed</div><div><b>{}</b>first public token</div>\
         <div><b>{}</b>release</div><div><b>{}</b>scenario</div></div>",
        seconds(finished.gate_closed_ms),
        seconds(finished.restored_ms),
        escape(finished.release.as_deref().unwrap_or("none")),
        if scenarios.is_empty() { "none".into() } else { scenarios.join(" + ") },
    )?;
    for line in gate(finished) {
        writeln!(page, "<p><b>{}</b></p>", escape(&line))?;
    }
    if let Some(error) = &finished.error {
        writeln!(page, "<p class=bad>{}</p>", escape(error))?;
    }
    if let Some(next) = &finished.next {
        writeln!(page, "<p>Next: <code>{}</code></p>", escape(next))?;
    }
    if let Some(advice) = &finished.advice {
        writeln!(page, "<p>{}</p>", escape(advice))?;
    }
    if let Some(escalation) = &finished.escalation {
        writeln!(page, "<p>{}</p>", escape(&escalation.to_string()))?;
    }
    page += "<h2>What differed from the release</h2><ul>\n";
    for event in of(events, "drift") {
        let differences: Vec<Difference> = serde_json::from_value(event["differences"].clone())?;
        for difference in differences {
            writeln!(page, "<li>{}", escape(&difference.to_string()))?;
        }
    }
    page += "</ul>\n<h2>Steps</h2><table><tr><th>Step<th>How it ended<th class=n>took<th class=n>at\n";
    for step in steps(events) {
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
    for check in checks(finished) {
        let (class, word) = if check["ok"] == true { ("good", "passed") } else { ("bad", "failed") };
        writeln!(
            page,
            "<tr><td>{}<td class={class}>{word}<td>{}",
            escape(&plain(&check["name"])),
            escape(&plain(&check["detail"]))
        )?;
    }
    page += "</table>\n";
    let notes: Vec<&Value> = of(events, "note").collect();
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
