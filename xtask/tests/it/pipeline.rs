//! What a CI job gets of a command: the report in the summary of the job, an annotation for an error, copies of the
//! reports. And what a job that was killed leaves to the next one.

use crate::pilot::Engine::Process;
use crate::pilot::{Folder, Pilot, on, ran};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A job of GitHub Actions with a folder for its artifacts. Returns the summary of the job and that folder.
fn in_a_job(pilot: &mut Pilot) -> (PathBuf, PathBuf) {
    let (summary, reports) = (pilot.folder.0.join("summary.md"), pilot.folder.0.join("reports"));
    std::fs::write(&summary, "from a step before\n").unwrap();
    pilot.set("GITHUB_ACTIONS", "true");
    pilot.set("GITHUB_STEP_SUMMARY", &summary.display().to_string());
    pilot.set("PILOT_REPORTS", &reports.display().to_string());
    (summary, reports)
}

/// The first lines of the reports in a summary.
fn titles(summary: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(summary).unwrap();
    assert!(text.starts_with("from a step before\n"), "{text}");
    text.lines().filter(|line| line.starts_with("# ")).map(str::to_owned).collect()
}

/// What was copied, and whether it is what the run itself has.
fn copied(reports: &Path, pilot: &Pilot) -> Vec<String> {
    let mut runs: Vec<String> = std::fs::read_dir(reports)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    runs.sort();
    for run in &runs {
        for name in ["report.html", "report.md", "report.xml", "report.json"] {
            let own = pilot.state().join("rollbacks").join(run).join(name);
            let copy = reports.join(run).join(name);
            assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&own).unwrap(), "{}", copy.display());
        }
    }
    runs
}

#[test]
fn a_job_has_the_report_in_its_summary_and_an_annotation_for_its_error() {
    on(&[Process], "pipeline", |mut pilot| {
        let (summary, reports) = in_a_job(&mut pilot);
        let up = pilot.xtask(&["up"]).expect(0);
        assert!(!up.all().contains("::error"), "{}", up.all());
        assert_eq!(titles(&summary).len(), 1);
        assert_eq!(copied(&reports, &pilot).len(), 1);

        // In JSON too: standard output has nothing but events.
        pilot.edit_env("USE_SIMULATION", "false");
        let failed = pilot.json(&["up", "--rollback-on-failure"]).expect(7);
        let finished = failed.finished();
        let line = failed.err.lines().find(|line| line.starts_with("::error ")).unwrap();
        let error = finished["error"].as_str().unwrap().replace('%', "%25").replace('\n', "%0A");
        assert!(line.starts_with(&format!("::error title=NOT DEPLOYED::{error}%0A")), "{line}");
        assert_eq!(failed.err.matches("::error").count(), 1, "{}", failed.err);
        let all = titles(&summary);
        // Why it failed, and the way back.
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(all[1].starts_with("# up ") && all[2].starts_with("# rollback "), "{all:?}");
        assert_eq!(copied(&reports, &pilot).len(), 3);

        // A command without a run: an annotation, and no report of another run.
        let refused = pilot.xtask(&["rollback", "--to", "r9"]).expect(2);
        assert!(refused.err.contains("::error title=error::"), "{}", refused.err);
        assert_eq!((titles(&summary).len(), copied(&reports, &pilot).len()), (3, 3));

        // Elsewhere than on GitHub there are no annotations.
        pilot.set("GITHUB_ACTIONS", "");
        let refused = pilot.xtask(&["rollback", "--to", "r9"]).expect(2);
        assert!(!refused.err.contains("::error"), "{}", refused.err);
    });
}

#[test]
fn a_drill_is_one_report_and_no_error_of_the_rollback_that_it_practises() {
    on(&[Process], "pipeline-drill", |mut pilot| {
        let (summary, reports) = in_a_job(&mut pilot);
        let drill = pilot.xtask(&["drill", "--stop", "engine"]).expect(0);
        assert!(!drill.all().contains("::error"), "{}", drill.all());
        let all = titles(&summary);
        assert!(all.len() == 1 && all[0].starts_with("# rollback "), "{all:?}");
        assert_eq!(std::fs::read_dir(&reports).unwrap().count(), 1);
    });
}

#[test]
fn a_summary_that_cannot_be_written_does_not_change_how_a_command_ends() {
    on(&[Process], "pipeline-refused", |mut pilot| {
        let nowhere = Folder::new("pipeline-nowhere");
        pilot.set("GITHUB_STEP_SUMMARY", &nowhere.0.display().to_string());
        pilot.set("PILOT_REPORTS", "/dev/null/reports");
        let up = pilot.json(&["up"]).expect(0);
        let notes: Vec<String> = up
            .events()
            .iter()
            .filter(|event| event["event"] == "note")
            .map(|event| event["text"].as_str().unwrap().to_owned())
            .collect();
        for word in ["no report in the summary of the job (GITHUB_STEP_SUMMARY): ", "(PILOT_REPORTS): "] {
            assert!(notes.iter().any(|note| note.contains(word)), "{notes:?}");
        }
    });
}

/// A job that is cancelled may be killed at any moment. The next one runs the same command.
#[test]
fn the_next_job_goes_on_after_one_that_was_killed() {
    on(&[Process], "pipeline-killed", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("QUOTA_PER_RUN", "25");
        let mut job = pilot.command(&["up", "--rollback-on-failure", "--format", "json"]);
        let mut job = job.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(job.stdout.take().unwrap()));
        // When the public is shut out.
        let closed = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()).any(|event| {
            event["event"] == "step" && event["progress"] == "done" && event["action"]["step"] == "close-gate"
        });
        assert!(closed);
        job.kill().unwrap();
        job.wait().unwrap();
        let next = ran(pilot.command(&["up", "--rollback-on-failure"]).output().unwrap()).expect(0);
        assert!(next.out.contains("DEPLOYED"), "{}", next.out);
        assert_eq!(pilot.running_values("gateway")["QUOTA_PER_RUN"], 25);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    });
}
