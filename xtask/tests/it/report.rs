//! The reports of real runs: what is in them, as a page in a real browser, as JUnit, and as JSON; `history` and `report`;
//! which runs are kept.

use crate::browser::{self, Browser};
use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, on, skip, workspace};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A run that restored, one under a hold, and one that failed: their folders.
fn three_runs(pilot: &Pilot) -> [PathBuf; 3] {
    let last = || pilot.runs().pop().unwrap();
    pilot.edit_env("ENABLE_CACHE", "true");
    pilot.xtask(&["rollback"]).expect(0);
    let restored = last();
    pilot.xtask(&["kill-switch", "on", "--reason", "bad <answers>"]).expect(0);
    pilot.edit_env("ENABLE_CACHE", "true");
    pilot.xtask(&["rollback"]).expect(9);
    let held = last();
    pilot.xtask(&["kill-switch", "off"]).expect(0);
    pilot.edit_env("USE_SIMULATION", "false");
    pilot.xtask(&["up", "--stay"]).expect(1);
    [restored, held, last()]
}

fn text(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn the_reports_of_a_run_tell_its_whole_story() {
    on(&[Process], "report", |pilot| {
        let pilot = pilot.up();
        let [restored, held, failed] = three_runs(&pilot);
        pages_tell(&pilot, &restored, &held, &failed);
        for dir in [&restored, &held, &failed] {
            links_lead_somewhere(dir);
            is_junit(&dir.join("report.xml"));
            let report: Value = serde_json::from_str(&text(dir, "report.json")).unwrap();
            let known = ["who", "host", "xtask", "project", "engine", "began_ms", "ended_ms"];
            assert!(known.iter().all(|key| !report[key].is_null()), "{report}");
            assert_eq!(report["run"], dir.file_name().unwrap().to_str().unwrap());
        }
        told_by_commands(&pilot, &restored, &failed);
        in_a_browser(&[("restored", &restored), ("held", &held), ("failed", &failed)]);
    });
}

fn pages_tell(pilot: &Pilot, restored: &Path, held: &Path, failed: &Path) {
    let page = text(restored, "report.html");
    for words in [
        "Restored: release r1 serves again",
        " UTC",
        pilot.project.as_str(),
        "<del>true</del>",
        "<ins>false</ins>",
        "the env file: from release r1",
        "evidence/",
        "local processes",
    ] {
        assert!(page.contains(words), "no {words:?} in {page}");
    }
    assert!(!page.contains(&pilot.setting("ADMIN_TOKEN")) && !page.contains("<script"));
    let page = text(held, "report.html");
    assert!(page.contains("the gate is held closed") && page.contains("bad &lt;answers&gt;"), "{page}");
    assert!(page.contains("kill-switch off"), "{page}");
    let page = text(failed, "report.html");
    for words in ["Not deployed", "✗</span>verify", "around the failure", "USE_SIMULATION", "rollback"] {
        assert!(page.contains(words), "no {words:?} in {page}");
    }
    // The log is that of what failed, not of what ran before.
    let junit = text(failed, "report.xml");
    assert!(junit.contains("<failure ") && junit.contains("<error ") && junit.contains("<system-err>"));
    assert!(!junit.contains("failures=\"0\" errors=\"0\" skipped=\"0\" time=\"0.000\""), "{junit}");
}

/// Each link of the page is relative, and something is there.
fn links_lead_somewhere(dir: &Path) {
    let page = text(dir, "report.html");
    let links: Vec<&str> = page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(links.len() > 5, "{links:?}");
    for link in links.iter().filter(|link| !link.starts_with("data:")) {
        assert!(!link.starts_with('/') && dir.join(link).exists(), "{} links to {link}", dir.display());
    }
}

/// Is it valid, by the schema of `junit.xsd`, and do its numbers fit?
fn is_junit(path: &Path) {
    let schema = workspace().join("xtask/tests/junit.xsd");
    let mut command = Command::new("xmllint");
    command.args(["--noout", "--nonet", "--schema"]).arg(schema).arg(path);
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Err(error) => skip("JUnit against its schema", &format!("xmllint: {error}")),
    }
    let xml = std::fs::read_to_string(path).unwrap();
    let sum = |key: &str| -> usize {
        let key = format!(" {key}=\"");
        xml.split(&key).skip(1).filter_map(|rest| rest.split('"').next()?.parse::<usize>().ok()).sum()
    };
    let count = |element: &str| xml.matches(&format!("<{element} ")).count();
    assert_eq!(sum("tests"), count("testcase"));
    assert_eq!((sum("failures"), sum("errors")), (count("failure"), count("error")));
    assert_eq!(sum("skipped"), count("skipped"));
}

fn told_by_commands(pilot: &Pilot, restored: &Path, failed: &Path) {
    let id = |dir: &Path| dir.file_name().unwrap().to_str().unwrap().to_owned();
    let runs = pilot.told(&["history"], 0)["runs"].clone();
    let outcomes: Vec<&str> =
        runs.as_array().unwrap().iter().map(|run| run["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["not restored", "restored", "restored", "deployed"]);
    assert_eq!((&runs[1]["held"], &runs[2]["held"]), (&json!(true), &json!(false)));
    assert!(runs[2]["downtime_ms"].is_u64() && runs[2]["who"].is_string(), "{runs}");
    let said = pilot.xtask(&["history"]).expect(0).out;
    assert!(said.contains(&id(restored)) && said.contains("restored, held"), "{said}");
    // The newest one; and one by its number.
    let said = pilot.xtask(&["report"]).expect(0).out;
    assert!(said.contains(&id(failed)) && said.contains("**Not deployed**"), "{said}");
    assert!(said.contains(&failed.join("report.html").display().to_string()), "{said}");
    let report = pilot.told(&["report", "2"], 0);
    assert_eq!(report["report"]["run"], id(restored));
    let refused = pilot.xtask(&["report", "77"]).expect(2);
    assert!(
        refused.err.contains("there is no run 77") && refused.err.contains(&id(failed)),
        "{}",
        refused.err
    );
    // By the program that opens files.
    let opened = pilot.folder.0.join("opened");
    let bin = pilot.folder.0.join("bin");
    let script = format!("#!/bin/sh\necho \"$1\" >{}\n", opened.display());
    crate::pilot::program(&bin.join("xdg-open"), &script);
    let mut command = pilot.command(&["report", "2", "--open"]);
    command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    crate::pilot::ran(command.output().unwrap()).expect(0);
    let page = std::fs::read_to_string(opened).unwrap();
    assert_eq!(page.trim(), restored.join("report.html").display().to_string());
}

/// How a page looks to people, to a screen reader and on paper.
fn in_a_browser(pages: &[(&str, &Path)]) {
    let (program, axe) = match browser::available() {
        Ok(found) => found,
        Err(why) => return skip("the page in a browser", &why),
    };
    let mut browser = Browser::start(&program);
    let pictures = workspace().join("target/ci/reports");
    std::fs::create_dir_all(&pictures).unwrap();
    for (name, dir) in pages {
        for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
            let what = format!("{name}-{width}-{scheme}");
            browser.open(&dir.join("report.html"), width, scheme);
            std::fs::write(pictures.join(format!("{what}.png")), browser.picture()).unwrap();
            // Nothing is wider than the window.
            let wide = browser.value("document.documentElement.scrollWidth");
            assert!(wide.as_u64().unwrap() <= u64::from(width), "{what}: {wide} wide");
            assert_eq!(browser.requests(), [""; 0], "{what}");
            assert!(browser.complaints().is_empty(), "{what}: {:?}", browser.complaints());
            browser.value(&format!("{axe};0"));
            let found = browser.value(
                "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})\
                 .then(r => ({wrong: r.violations.map(v => [v.id, v.nodes.map(n => n.html + n.failureSummary)]), held: r.passes.length}))",
            );
            assert_eq!(found["wrong"], json!([]), "{what}");
            assert!(found["held"].as_u64().unwrap() > 15, "{what}: {found}");
        }
        browser.open(&dir.join("report.html"), 1280, "dark");
        let pdf = browser.printed();
        assert!(pdf.starts_with(b"%PDF-") && pdf.len() > 10_000, "{name}: {} bytes", pdf.len());
        std::fs::write(pictures.join(format!("{name}.pdf")), pdf).unwrap();
    }
}

#[test]
fn a_rollback_that_fails_shows_the_logs_of_its_end_and_is_not_called_restored() {
    on(&[Process], "report-failed", |pilot| {
        let pilot = pilot.up();
        let port = pilot.port("jobs");
        pilot.xtask(&["down"]).expect(0);
        // Somebody else listens where a service must.
        let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        pilot.xtask(&["rollback"]).expect(4);
        drop(taken);
        let dir = pilot.runs().pop().unwrap();
        let page = text(&dir, "report.html");
        for words in
            ["Not restored", "How to go on", "end that process", "Level 3", "evidence-at-the-end/gateway.log"]
        {
            assert!(page.contains(words), "no {words:?} in {page}");
        }
        links_lead_somewhere(&dir);
        is_junit(&dir.join("report.xml"));
        in_a_browser(&[("not-restored", &dir)]);
    });
}

#[test]
fn old_runs_are_removed_with_their_evidence() {
    on(&[Process], "old-runs", |pilot| {
        let mut pilot = pilot.up();
        let tree = crate::pilot::copy_of_the_tree("old-runs-tree");
        let manifest = tree.0.join("pilot-deploy/pilot.toml");
        let text = std::fs::read_to_string(&manifest).unwrap();
        let text = text
            .replace("keep_runs = 50 ", "keep_runs = 2 ")
            .replace("keep_backups = 5 ", "keep_backups = 1 ");
        std::fs::write(&manifest, text).unwrap();
        pilot.root.clone_from(&tree.0);
        for seed in ["7", "8", "9"] {
            pilot.edit_env("DEFAULT_SEED", seed);
            pilot.xtask(&["up", "--tag", "v1.0.0"]).expect(0);
        }
        let numbers = || -> Vec<String> {
            let name = |run: &PathBuf| run.file_name().unwrap().to_string_lossy()[..4].to_owned();
            pilot.runs().iter().map(name).collect()
        };
        assert_eq!(numbers(), ["0003", "0004"]);
        // A rollback has a backup, and the newest one is kept, however old its run.
        pilot.edit_env("DEFAULT_SEED", "1");
        pilot.xtask(&["rollback"]).expect(0);
        for seed in ["2", "3", "4"] {
            pilot.edit_env("DEFAULT_SEED", seed);
            pilot.xtask(&["up", "--tag", "v1.0.0"]).expect(0);
        }
        assert_eq!(numbers(), ["0005", "0007", "0008"]);
        assert_eq!(pilot.told(&["history"], 0)["runs"].as_array().unwrap().len(), 3);
    });
}
