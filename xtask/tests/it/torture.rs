//! The search for counter-examples, a few of each kind; `cargo xtask torture` does more.

use crate::pilot::Engine::Process;
use crate::pilot::{on, workspace};

#[test]
fn commands_that_are_killed_at_random_moments_finish_when_they_are_run_again() {
    on(&[Process], "torture", |pilot| {
        let told = pilot.told(&["torture", "--kills", "10", "--seed", "7"], 0);
        let row = &told["rows"][0];
        assert_eq!(
            (&row["tried"], &row["held"], &row["found"][0]),
            (&10.into(), &10.into(), &().into()),
            "{told}"
        );
        // Nothing of the stacks is left.
        let left = std::fs::read_dir(&pilot.folder.0).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("pilot-torture-")).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

/// Each patch says what it breaks and what finds it, and still applies.
#[test]
fn every_planted_fault_applies_to_the_source() {
    let folder = workspace().join("scripts/mutations");
    let patches: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(patches.len() >= 15, "only {} patches", patches.len());
    for path in patches {
        let text = std::fs::read_to_string(&path).unwrap();
        for key in ["# breaks: ", "# found by: "] {
            assert!(text.lines().any(|line| line.starts_with(key)), "{}: no line {key}", path.display());
        }
        let mut git = std::process::Command::new("git");
        let output = git.args(["apply", "--check"]).arg(&path).current_dir(workspace()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", path.display());
    }
}
