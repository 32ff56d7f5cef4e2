//! What a CI job gets of a command besides its output. On GitHub Actions: an annotation for its error, and the reports of
//! its runs in the summary of the job. Everywhere, if `PILOT_REPORTS` names a folder: copies of the reports there. Called
//! by `ending` when a run has a report, and by `main` when a command has ended. The formats are those of
//! <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>.

use crate::base::files::{self, Mode};
use crate::base::output::Output;
use crate::base::stderr;
use crate::deploy::event::Finished;
use crate::stack::pilot::REHEARSALS;
use crate::stack::state_dir::RunDir;
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Is `true` in a job of GitHub Actions.
const ON_GITHUB: &str = "GITHUB_ACTIONS";

/// Names the file that GitHub Actions shows as the summary of a step.
const SUMMARY: &str = "GITHUB_STEP_SUMMARY";

/// Names the folder that gets a copy of the reports.
const REPORTS: &str = "PILOT_REPORTS";

/// What a pipeline sets. A process that is only a part of a command gets none of it.
pub const VARIABLES: [&str; 3] = [ON_GITHUB, SUMMARY, REPORTS];

/// Most bytes of the summary of a step; GitHub shows nothing of a larger one.
const LARGEST: u64 = 1 << 20;

/// Most characters of an annotation.
const LONGEST: usize = 4000;

/// The runs that this process has ended, in their order: of a deployment that fails and goes back there are two.
static ENDED: Mutex<Vec<RunDir>> = Mutex::new(Vec::new());

/// A run has ended and has a report. What only prepares a rehearsal does not count.
pub fn ended(project: &str, run: &RunDir) {
    if !project.starts_with(REHEARSALS) {
        ENDED.lock().unwrap_or_else(PoisonError::into_inner).push(run.clone());
    }
}

/// Tells the pipeline how a command has ended. `title` says in a few words what failed. What cannot be told is a remark:
/// the exit code is that of the command.
pub fn tell(title: &str, finished: &Finished, out: &Output) {
    let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let mut runs = std::mem::take(&mut *ENDED.lock().unwrap_or_else(PoisonError::into_inner));
    // The rollback of a drill was another process.
    let last = finished.report.as_ref().and_then(|page| Some(RunDir::new(Path::new(page).parent()?)));
    runs.extend(last.filter(|last| !runs.contains(last)));
    for run in &runs {
        if let Some(file) = set(SUMMARY)
            && let Err(error) = summarize(run, Path::new(&file))
        {
            out.note(format!("no report in the summary of the job ({SUMMARY}): {error:#}"));
        }
        if let Some(folder) = set(REPORTS)
            && let Err(error) = copy(run, Path::new(&folder))
        {
            out.note(format!("no copy of the reports ({REPORTS}): {error:#}"));
        }
    }
    if set(ON_GITHUB).is_some_and(|value| value == "true")
        && let Some(error) = &finished.error
    {
        let public = finished.public.iter().map(ToString::to_string);
        let next = finished.what_next().map(|next| format!("next: {next}"));
        let lines: Vec<String> = std::iter::once(error.clone()).chain(public).chain(next).collect();
        stderr::line(annotation(title, &lines.join("\n")));
    }
}

/// Appends the report to the summary.
fn summarize(run: &RunDir, summary: &Path) -> Result<()> {
    let what = || format!("cannot write to {}", summary.display());
    let report = files::read(&run.markdown())?;
    let mut file = files::append(summary).with_context(what)?;
    let full = file.metadata().with_context(what)?.len() + report.len() as u64;
    ensure!(
        full < LARGEST,
        "with {} it would have {}, and the limit is {}",
        run.markdown().display(),
        files::human(full),
        files::human(LARGEST)
    );
    file.write_all(&[report.as_slice(), b"\n"].concat()).with_context(what)
}

/// Copies the reports to `folder/RUN/`.
fn copy(run: &RunDir, folder: &Path) -> Result<()> {
    let folder = folder.join(run.id());
    files::make_folder(&folder)?;
    let reports: [PathBuf; 4] = [run.page(), run.markdown(), run.junit(), run.report()];
    for report in reports {
        let name = report.file_name().context("a report has a name")?;
        files::copy(&report, &folder.join(name), Mode::Plain)?;
    }
    Ok(())
}

/// The line that makes GitHub Actions show an error on the page of the job.
fn annotation(title: &str, text: &str) -> String {
    let text: String = text.chars().take(LONGEST).collect();
    let value = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let title = value(title).replace(':', "%3A").replace(',', "%2C");
    format!("::error title={title}::{}", value(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_is_one_line_and_cannot_be_ended_by_its_text() {
        let line = annotation("HOST: a, b", "50% of\r\nit::error::x");
        assert_eq!(line, "::error title=HOST%3A a%2C b::50%25 of%0D%0Ait::error::x");
        assert_eq!(annotation("t", &"x".repeat(LONGEST + 9)).len(), LONGEST + "::error title=t::".len());
    }

    #[test]
    fn a_summary_that_would_be_too_large_is_left_as_it_is() {
        let scratch = files::Scratch::new("pipeline-test").unwrap();
        let run = RunDir::new(scratch.path().join("0001-x"));
        files::make_folder(run.path()).unwrap();
        let summary = scratch.path().join("summary");
        std::fs::write(run.markdown(), "# report\n").unwrap();
        std::fs::write(&summary, "before\n").unwrap();
        summarize(&run, &summary).unwrap();
        assert_eq!(std::fs::read_to_string(&summary).unwrap(), "before\n# report\n\n");
        std::fs::write(run.markdown(), "x".repeat(LARGEST as usize)).unwrap();
        let error = summarize(&run, &summary).unwrap_err().to_string();
        assert!(error.contains("the limit is 1.0 MiB"), "{error}");
        assert_eq!(std::fs::read_to_string(&summary).unwrap(), "before\n# report\n\n");
    }
}
