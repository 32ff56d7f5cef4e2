//! Tests: which copies of data there are when a run was cut off while it restored data.

use super::{DATA, Ran, Scene, reset};
use crate::base::failure::Exit;
use crate::deploy::invariants::is_backed_up;

/// What a restore has written when it is killed.
const HALF: &str = "the first half";

#[test]
fn what_a_cut_off_run_has_restored_in_part_is_not_copied_over_the_first_copy() {
    let whole = Scene::new();
    whole.world.begin(None, None);
    whole.finishes(&reset);
    let done = whole.world.things().done.clone();
    let restores: Vec<usize> = (1..=done.len()).filter(|number| done[number - 1] == "restore").collect();
    assert_eq!(restores.len(), DATA.len(), "{done:?}");
    let scene = Scene::new();
    scene.world.begin(None, Some(restores[1]));
    assert!(matches!(scene.run(&reset), Ran::CutOff));
    let restored: Vec<String> = scene.world.things().volumes.keys().cloned().collect();
    assert_eq!(restored.len(), 1, "{restored:?}");
    scene.world.things().volumes.insert(restored[0].clone(), HALF.to_owned());
    scene.world.begin(None, None);
    let finished = scene.finishes(&reset);
    assert_eq!(finished.exit, Exit::Ok, "{finished:?}");
    scene.hold(Some(&finished));
    for (name, data) in DATA {
        assert_eq!(scene.world.things().volumes[name], data);
        // Somebody would take it for the newest backup.
        assert!(!is_backed_up(&scene.pilot.state, name, HALF), "a half of {name} is a backup");
    }
}
