//! Tests: makes every operation of a run fail once, and interrupts the run once before each.

use super::{DATA, Ran, Scene};
use crate::base::failure::Exit;
use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use anyhow::Result;

/// Makes a scene with this gate, and something done to it.
pub fn prepared<'a>(gate: Option<&'a str>, prepare: &'a dyn Fn(&Scene)) -> impl Fn() -> Scene + 'a {
    move || {
        let scene = Scene::of(gate);
        prepare(&scene);
        scene
    }
}

/// Makes every operation of `what` fail, one at a time, then interrupts the run before each. Each time it is a new
/// scene. The invariants must hold, and `again` must end well, as `ends` checks. `also` is data besides `DATA` that must
/// not be lost. Returns how many cases there were.
pub fn everywhere(
    new: &dyn Fn() -> Scene,
    also: &[(&str, &str)],
    what: &dyn Fn(&Session) -> Result<Finished>,
    again: &dyn Fn(&Session) -> Result<Finished>,
    ends: &dyn Fn(&Scene),
) -> usize {
    let mut points = 0;
    for number in 1.. {
        let mut reached = false;
        for (fail_at, kill_at) in [(Some(number), None), (None, Some(number))] {
            let scene = new();
            scene.world.begin(fail_at, kill_at);
            let ran = scene.run(what);
            let done = scene.world.things().done.clone();
            reached |= done.len() >= number;
            let when =
                format!("{number} ({:?}), {}", done.get(number - 1), kill_at.map_or("failed", |_| "cut off"));
            let finished = if let Ran::Finished(finished) = &ran { Some(finished.as_ref()) } else { None };
            scene.hold_with(&[&DATA, also].concat(), finished);
            // What the public stores from now on takes the place of what was there.
            let open = scene.world.things().is_open();
            let stored = scene.store_more();
            let still = also.iter().filter(|(service, _)| !(open && *service == stored[2].0));
            let data: Vec<(&str, &str)> = stored.iter().chain(still).copied().collect();
            scene.world.begin(None, None);
            let finished = scene.finishes(again);
            assert_eq!(finished.exit, Exit::Ok, "after {when}: {finished:?}");
            scene.hold_with(&data, Some(&finished));
            ends(&scene);
            points += 1;
        }
        if !reached {
            break;
        }
    }
    points
}
