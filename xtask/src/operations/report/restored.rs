//! What a run has restored, and from where, as sentences: of the steps that were done. Pure. Called by `reading`.

use crate::deploy::event::Progress;
use crate::deploy::step::Step;
use crate::operations::report::story::Stepped;

/// The sentences, in order. `release` is the one that the run went to.
pub fn restored(steps: &[Stepped], release: Option<&str>) -> Vec<String> {
    let release = release.map_or_else(|| "the release".to_owned(), |id| format!("release {id}"));
    let mut copy = "the backup of this run".to_owned();
    let mut all = Vec::new();
    for step in steps.iter().filter(|s| matches!(s.progress, Progress::Done | Progress::Warned)) {
        match (&step.action, &step.folder) {
            (Some(Step::Preserve { .. } | Step::Snapshot { .. }), Some(folder)) => {
                copy = format!("the backup of this run ({folder}/)");
            }
            (Some(action), _) => all.extend(sentence(action, &release, &copy)),
            (None, _) => {}
        }
    }
    all.dedup();
    all
}

fn sentence(step: &Step, release: &str, copy: &str) -> Option<String> {
    Some(match step {
        Step::LoadImages { services, .. } => {
            format!("images of {} that the engine had lost: from the store of {release}", services.join(", "))
        }
        Step::RestoreEnvFile => format!("the env file: from {release}"),
        Step::ReturnData { except } if except.is_empty() => format!("stored data: from {copy}"),
        Step::ReturnData { except } => {
            format!("stored data, but not of {}: from {copy}", except.join(", "))
        }
        Step::RestoreData { from, services } => {
            format!("data of {}: from the backup {}", services.join(", "), from.display())
        }
        Step::RemoveData { services } => {
            format!("data of {} was removed; its copy is in {copy}", services.join(", "))
        }
        Step::TearDown => format!("the project was removed and made again; what it had stored is in {copy}"),
        Step::Apply { services, .. } if services.is_empty() => {
            format!("services that differed: with images, settings and files of {release}")
        }
        Step::Apply { services, .. } => {
            format!("{}: with images, settings and files of {release}", services.join(", "))
        }
        Step::RemoveServices { services } => {
            format!("{} was removed: {release} does not have it", services.join(", "))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_done_is_told_with_the_copy_that_it_came_from() {
        let step = |action: Step, progress, folder: Option<&str>| Stepped {
            step: action.to_string(),
            action: Some(action),
            progress,
            from_ms: 0,
            took_ms: Some(1),
            detail: None,
            folder: folder.map(str::to_owned),
        };
        let told = restored(
            &[
                step(
                    Step::Preserve { data: vec!["db".into()], stop: Vec::new() },
                    Progress::Done,
                    Some("backup-2"),
                ),
                step(Step::RestoreEnvFile, Progress::Done, None),
                step(Step::ReturnData { except: Vec::new() }, Progress::Done, None),
                step(Step::RemoveData { services: vec!["db".into()] }, Progress::Failed, None),
            ],
            Some("r1"),
        );
        assert_eq!(
            told,
            ["the env file: from release r1", "stored data: from the backup of this run (backup-2/)"]
        );
    }
}
