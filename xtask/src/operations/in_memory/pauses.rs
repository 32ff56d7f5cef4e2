//! Tests: backups while the public is served. Every operation of a paused copy fails once, and the backup is cut off
//! once before each: nothing stays paused that the next command does not undo.

use super::*;
use crate::deploy::archives::Archiving;
use crate::deploy::backup;
use crate::deploy::paused::{Copy, Longest};
use crate::engine::pause::Pause;

/// A backup of all the data, as `backup create` makes it.
fn back_up(session: &Session) -> Result<Finished> {
    let data = DATA.map(|(name, _)| name.to_owned());
    let longest = Longest::Served(Duration::from_secs(10));
    let what = backup::Contents {
        release: None,
        data: &data,
        longest,
        logs: false,
        snapshot: false,
        out: &session.out,
    };
    let engine = session.engine.as_ref();
    backup::keep(&session.pilot, engine, what, Deadline::after(Duration::from_secs(20)))?;
    Ok(Finished::plain(Exit::Ok))
}

/// What is paused, and what is written down as paused.
fn left(scene: &Scene) -> (Vec<String>, usize) {
    let paused = scene.world.things().paused.iter().cloned().collect();
    (paused, Pause::all(&scene.pilot.state).unwrap().len())
}

#[test]
fn a_backup_that_fails_or_is_cut_off_anywhere_leaves_nothing_paused() {
    let (mut points, mut found) = (0, 0);
    for number in 1.. {
        let mut reached = false;
        for (fail_at, kill_at) in [(Some(number), None), (None, Some(number))] {
            let scene = Scene::new();
            scene.world.begin(fail_at, kill_at);
            let ran = scene.run(&back_up);
            let done = scene.world.things().done.clone();
            reached |= done.len() >= number;
            let name = done.get(number - 1).copied();
            let when = format!("{number} ({name:?}), {}", kill_at.map_or("failed", |_| "cut off"));
            scene.hold(None);
            let (is_paused, records) = left(&scene);
            match ran {
                // Where an engine cannot undo a pause, the record stays for the next command.
                Ran::Refused(error) if name == Some("unpause") => {
                    assert!(
                        format!("{error:#}").contains("may still be paused") && records == 1,
                        "{when}: {error:#}"
                    );
                }
                Ran::CutOff => found += usize::from(!is_paused.is_empty()),
                _ => assert_eq!((is_paused, records), (Vec::new(), 0), "{when}"),
            }
            scene.world.begin(None, None);
            scene.finishes(&back_up);
            assert_eq!(left(&scene), (Vec::new(), 0), "after {when}");
            scene.world.things().volumes.clear();
            scene.hold(None);
            points += 1;
        }
        if !reached {
            break;
        }
    }
    assert!(points > 40 && found > 5, "only {points} points, {found} of them left something paused");
}

#[test]
fn what_is_paused_by_somebody_else_is_copied_and_stays_paused_until_a_rollback() {
    let scene = Scene::new();
    scene.world.things().paused.insert("jobs".into());
    scene.finishes(&back_up);
    assert_eq!(left(&scene), (vec!["jobs".to_owned()], 0));
    let (kept, _) = backup::list(&scene.pilot.state).unwrap();
    assert_eq!(kept[0].backup.remarks, ["jobs was paused already, and stays so"]);
    let finished = scene.finishes(&roll_back);
    scene.hold(Some(&finished));
    assert_eq!((finished.exit, finished.scenarios.as_slice()), (Exit::Ok, [Scenario::Host].as_slice()));
}

#[test]
fn what_is_unpaused_or_starts_during_a_copy_makes_it_no_copy() {
    let scene = Scene::new();
    scene.world.begin(None, None);
    scene.finishes(&back_up);
    let copied = scene.world.things().done.iter().position(|name| *name == "snapshot").unwrap();
    // Somebody unpauses it right after it was copied: it is copied again.
    let scene = Scene::new();
    scene.world.begin(None, None);
    let unpause = |things: &mut Things| things.paused.clear();
    scene.world.things().meanwhile = Some((copied + 2, Box::new(unpause)));
    scene.finishes(&back_up);
    let copies = scene.world.things().done.iter().filter(|name| **name == "snapshot").count();
    assert_eq!(copies, DATA.len() + 1);
    assert_eq!(left(&scene), (Vec::new(), 0));
}

#[test]
fn a_copy_that_takes_longer_than_the_public_may_wait_says_what_to_do() {
    let scene = Scene::new();
    let ran = scene.run(&|session: &Session| {
        let late = |_| {
            let command = crate::base::proc::cmd("sleep", &["5"]);
            command.run(Deadline::after(Duration::from_millis(10))).map(drop)
        };
        let (engine, state) = (session.engine.as_ref(), &session.pilot.state);
        let longest = Longest::Served(Duration::from_millis(10));
        let deadline = Deadline::after(Duration::from_secs(20));
        let limit = Duration::from_secs(5);
        Copy { engine, state, data: "jobs", longest, limit, deadline }.make(&mut { late })?;
        Ok(Finished::plain(Exit::Ok))
    });
    let Ran::Refused(error) = ran else { panic!("it was copied") };
    let (text, next) = (format!("{error:#}"), crate::base::failure::next_of(&error).unwrap().clone());
    assert!(text.contains("pause_max") && text.contains("the pause is undone"), "{text}");
    assert!(next.words().contains("pause_max") && next.words().contains("shut the public out"), "{next:?}");
    assert_eq!(left(&scene), (Vec::new(), 0));
}

#[test]
fn a_full_disk_is_told_as_that_and_leaves_no_half_archive() {
    let scene = Scene::new();
    let folder = scene.pilot.state.path();
    let to = folder.join("jobs.data.tar.lz4");
    // A device that is always full (full(4)).
    std::os::unix::fs::symlink("/dev/full", &to).unwrap();
    let ran = scene.run(&|session: &Session| {
        let limit = Deadline::after(Duration::from_secs(20));
        let (pilot, engine, longest) = (&session.pilot, session.engine.as_ref(), Longest::Copy);
        let out = &session.out;
        Archiving { pilot, engine, longest, deadline: limit, out }.make("jobs", folder)?;
        Ok(Finished::plain(Exit::Ok))
    });
    let Ran::Refused(error) = ran else { panic!("it was copied") };
    assert_eq!(crate::base::failure::exit_of(&error), Exit::Host, "{error:#}");
    assert!(format!("{error:#}").contains("is full: copying the data of jobs"), "{error:#}");
    assert!(to.symlink_metadata().is_err());
    assert_eq!(left(&scene), (Vec::new(), 0));
}
