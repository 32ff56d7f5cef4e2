//! `report.xml`: the steps, the checks and the end of the run as test cases, in the JUnit format that CI systems read (the
//! elements and attributes of Ant's JUnit task and of `junit-10.xsd` of Jenkins). Called by `report`.

use crate::base::deadline::utc;
use crate::deploy::event::Progress;
use crate::operations::report::story::Story;
use crate::operations::report::words::escape;
use std::fmt::Write;

/// How a case ended.
enum End {
    Passed,
    Skipped(String),
    /// A check did not hold.
    Failure(String),
    /// A step could not be done.
    Error(String),
}

/// One case.
struct Case {
    name: String,
    ms: f64,
    end: End,
    /// What it said.
    out: Option<String>,
}

/// Three suites: the steps, the checks, and how the run ended.
pub fn suites(story: &Story) -> String {
    let steps = story.steps.iter().map(|step| {
        let detail = step.detail.clone().unwrap_or_default();
        let (end, out) = match step.progress {
            Progress::Done => (End::Passed, step.detail.clone()),
            Progress::Warned => (End::Passed, Some(format!("warning: {detail}"))),
            Progress::Skipped => (End::Skipped(detail), None),
            Progress::Failed => (End::Error(detail), None),
            Progress::Started => (End::Error("the run was cut off in this step".into()), None),
        };
        Case { name: step.step.clone(), ms: step.took_ms.unwrap_or(0) as f64, end, out }
    });
    let checks = story.checks.iter().map(|check| {
        let end = if check.ok { End::Passed } else { End::Failure(check.detail.clone()) };
        let ms = check.took_ms.or(check.measured.map(|measured| measured.worst_ms));
        let out = check.ok.then(|| check.detail.clone());
        Case { name: check.name.clone(), ms: ms.unwrap_or(0.0), end, out }
    });
    let finished = &story.finished;
    let why = finished.error.clone().unwrap_or_else(|| format!("exit code {}", u8::from(finished.exit)));
    let end = if finished.exit.is_good() { End::Passed } else { End::Error(why) };
    let lines: Vec<String> = story.gate().into_iter().chain(story.notes.iter().cloned()).collect();
    let whole = Case {
        name: story.verdict(),
        ms: story.length_ms as f64,
        end,
        out: (!lines.is_empty()).then(|| lines.join("\n")),
    };
    let all = [
        suite(story, "steps", &steps.collect::<Vec<_>>()),
        suite(story, "checks", &checks.collect::<Vec<_>>()),
        suite(story, "run", &[whole]),
    ];
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n{}</testsuites>\n", all.concat())
}

fn suite(story: &Story, name: &str, cases: &[Case]) -> String {
    let count = |is: fn(&End) -> bool| cases.iter().filter(|case| is(&case.end)).count();
    let failures = count(|end| matches!(end, End::Failure(_)));
    let errors = count(|end| matches!(end, End::Error(_)));
    let skipped = count(|end| matches!(end, End::Skipped(_)));
    // Not `sum`: that of nothing is -0.
    let ms = cases.iter().fold(0.0, |ms, case| ms + case.ms);
    // The format has no zone; it is UTC, as a property says.
    let began = story.began_ms.map(|ms| utc(ms).trim_end_matches('Z').to_owned());
    let attribute = |key: &str, value: Option<String>| {
        value.map(|value| format!(" {key}=\"{}\"", text(&value))).unwrap_or_default()
    };
    let mut xml = format!(
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{}\"{}{}>\n",
        text(&format!("{}: {name}", story.title())),
        cases.len(),
        seconds(ms),
        attribute("timestamp", began),
        attribute("hostname", story.host.clone()),
    );
    let properties = [
        ("outcome", Some(story.outcome())),
        ("release", story.finished.release.clone()),
        ("commit", story.went_to.as_ref().and_then(|release| release.commit.clone())),
        ("project", story.project.clone()),
        ("engine", story.engine.clone()),
        ("xtask", story.xtask.clone()),
        ("user", story.who.clone()),
        ("zone", Some("UTC".to_owned())),
    ];
    xml += " <properties>\n";
    for (key, value) in properties.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        writeln!(xml, "  <property name=\"{key}\" value=\"{}\"/>", text(&value)).ok();
    }
    xml += " </properties>\n";
    cases.iter().for_each(|each| case(&mut xml, name, each));
    if errors + failures > 0 {
        let logs = story
            .logs
            .iter()
            .flat_map(|excerpt| excerpt.lines.iter().map(move |line| format!("{}: {line}", excerpt.service)));
        let lines: Vec<String> = story.finished.error.iter().cloned().chain(logs).collect();
        writeln!(xml, " <system-err>{}</system-err>", text(&lines.join("\n"))).ok();
    }
    xml + "</testsuite>\n"
}

fn case(xml: &mut String, class: &str, Case { name, ms, end, out }: &Case) {
    let element = match end {
        End::Passed => None,
        End::Skipped(why) => Some(("skipped", "", why.strip_prefix("skipped: ").unwrap_or(why))),
        End::Failure(why) => Some(("failure", " type=\"check\"", why.as_str())),
        End::Error(why) => Some(("error", " type=\"step\"", why.as_str())),
    };
    let mut inner = String::new();
    if let Some((element, kind, why)) = element {
        let first = why.lines().next().unwrap_or_default();
        let whole = if element == "skipped" { String::new() } else { text(why) };
        writeln!(inner, "   <{element}{kind} message=\"{}\">{whole}</{element}>", text(first)).ok();
    }
    if let Some(out) = out {
        writeln!(inner, "   <system-out>{}</system-out>", text(out)).ok();
    }
    let head = format!("  <testcase classname=\"{class}\" name=\"{}\" time=\"{}\"", text(name), seconds(*ms));
    *xml += &head;
    *xml += &if inner.is_empty() { "/>\n".to_owned() } else { format!(">\n{inner}  </testcase>\n") };
}

/// A time in seconds, as the format has it.
fn seconds(ms: f64) -> String {
    format!("{:.3}", ms / 1e3)
}

/// Escapes text. XML 1.0 does not allow most control characters and two others, not even escaped.
fn text(raw: &str) -> String {
    let allowed = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => ' ',
        c => c,
    };
    escape(&raw.chars().map(allowed).collect::<String>())
}
