//! Tests: a release changes stored data in a way that the one before cannot live with. Snapshots before a deployment,
//! and the way back with them. The data of `jobs` is dumped, that of `engine` is copied.

use super::*;
use crate::base::failure::exit_of;
use crate::deploy::backup;
use crate::operations::with_data;

/// Data that is dumped, and data that is copied before a deployment.
pub const RULES: &str = "\n[data.jobs]\nservice = \"jobs\"\nbackup = \"dump\"\nrestore = \"restore\"\nbefore_deploy = true\n\
    [data.engine]\nbefore_deploy = true\n";

/// What the newer release makes of the data.
const NEWER: [(&str, &str); 2] = [("engine", "migrated engine"), ("jobs", "migrated jobs")];

fn new() -> Scene {
    Scene::by(&|manifest| manifest + RULES)
}

/// A newer release, which changes the data when it starts.
fn newer(scene: &Scene) -> Release {
    let release = scene.release("r2", "v2.0.0", &scene.env_text());
    let of = |(service, data): (&str, &str)| (release.images[service].id.clone(), data.to_owned());
    scene.world.things().migrations.extend(NEWER.map(of));
    release
}

fn with_data(session: &Session) -> Result<Finished> {
    let request = Request { to: Some("r1".into()), ..Request::by(Command::Rollback) };
    rollback::locked(&with_data::chosen(request, session)?, session, budget())
}

fn has(scene: &Scene, data: &[(&str, &str)]) {
    let things = scene.world.things();
    for (service, data) in data {
        assert_eq!(things.volumes[*service], *data, "{:?}", things.done);
    }
}

#[test]
fn a_deployment_takes_a_snapshot_and_the_way_back_restores_it() {
    let scene = new();
    newer(&scene);
    scene.world.begin(None, None);
    assert_eq!(scene.finishes(&deploy).exit, Exit::Ok);
    scene.went_as_planned("close-gate snapshot record-release apply settle seed verify open-gate retag");
    has(&scene, &NEWER);
    // The code alone goes back by default.
    let request = Request { to: Some("r1".into()), ..Request::by(Command::Rollback) };
    let back = scene.finishes(&|session: &Session| rollback::locked(&request, session, budget()));
    assert_eq!(back.exit, Exit::Ok);
    has(&scene, &NEWER);
    let finished = scene.finishes(&with_data);
    assert_eq!(finished.exit, Exit::Ok, "{finished:?}");
    scene.went_as_planned(
        "close-gate preserve record-release restore-data apply settle seed verify open-gate retag",
    );
    has(&scene, &DATA);
    scene.hold_with(&NEWER, Some(&finished));
    // The snapshot of a release that is kept is no surplus, however many backups there are.
    let kept = || backup::list(&scene.pilot.state).unwrap().0.into_iter().filter(|kept| kept.backup.snapshot);
    backup::retain(&scene.pilot.state, 1, &scene.store().ids().unwrap()).unwrap();
    assert_eq!(kept().count(), 1);
    // One that is not whole is refused, and nothing is begun.
    let snapshot = kept().next().unwrap();
    std::fs::write(snapshot.dir.join(snapshot.backup.files.keys().next_back().unwrap()), "altered").unwrap();
    let Ran::Refused(error) = scene.run(&with_data) else { panic!("it was not refused") };
    assert_eq!(exit_of(&error), Exit::Usage, "{error:#}");
}

#[test]
fn a_deployment_that_fails_behind_its_gate_goes_back_with_the_data() {
    let scene = new();
    let bad = newer(&scene);
    let defects = bad.images.values().map(|image| (image.id.clone(), Defect::Errors));
    scene.world.things().defects.extend(defects);
    scene.world.begin(None, None);
    let finished = scene.finishes(&|session: &Session| {
        let release = session.store.named("r2")?;
        up::deploy(Goal::plain(&release, Purpose::Deploy), false, "in memory", session, budget())
    });
    assert_eq!(
        (finished.outcome, finished.exit),
        (Some(Outcome::RolledBack), Exit::RolledBack),
        "{finished:?}"
    );
    has(&scene, &DATA);
    scene.hold_with(&NEWER, None);
    // By hand it is the next command.
    let scene = new();
    let bad = newer(&scene);
    let defects = bad.images.values().map(|image| (image.id.clone(), Defect::Errors));
    scene.world.things().defects.extend(defects);
    let finished = scene.finishes(&deploy);
    assert!(
        finished.next.as_ref().is_some_and(|next| next.contains("rollback --to r1 --with-data")),
        "{finished:?}"
    );
}

/// A rollback would also take back the settings, and then the next deployment would not be the one that was wanted.
#[test]
fn a_deployment_without_its_snapshot_lets_what_ran_before_in_again_and_leaves_the_settings() {
    let scene = Scene::by(&|manifest| manifest + &RULES.replace("\"dump\"", "\"nonsense\""));
    newer(&scene);
    let settings = scene.env_text() + "# for the new release\n";
    std::fs::write(&scene.pilot.env_path, &settings).unwrap();
    scene.world.begin(None, None);
    let finished = scene.finishes(&deploy);
    assert_eq!(
        (finished.outcome, finished.exit),
        (Some(Outcome::RolledBack), Exit::RolledBack),
        "{finished:?}"
    );
    assert!(finished.next.as_ref().is_some_and(|next| next.ends_with(" backup create")), "{finished:?}");
    assert_eq!(finished.release.as_deref(), Some("r1"));
    assert!(scene.world.things().is_open());
    assert_eq!(scene.env_text(), settings);
    has(&scene, &DATA);
}

#[test]
fn a_deployment_that_was_cut_off_after_it_changed_the_data_still_goes_back_with_that_of_before() {
    let deploy = |session: &Session| {
        let release = session.store.named("r2")?;
        up::deploy(Goal::plain(&release, Purpose::Deploy), false, "in memory", session, budget())
    };
    let twin = new();
    newer(&twin);
    twin.world.begin(None, None);
    twin.finishes(&deploy);
    let number = twin.world.things().done.iter().position(|done| *done == "retag").unwrap() - 3;
    // The same again, and one that is made anew.
    for again in ["r2", "r3"] {
        let scene = new();
        let mut bad = newer(&scene);
        scene.world.begin(None, Some(number));
        assert!(matches!(scene.run(&deploy), Ran::CutOff));
        has(&scene, &NEWER);
        if again == "r3" {
            bad = scene.release("r3", "v3.0.0", &scene.env_text());
        }
        let defects = bad.images.values().map(|image| (image.id.clone(), Defect::Errors));
        scene.world.things().defects.extend(defects);
        scene.world.begin(None, None);
        let finished = scene.finishes(&|session: &Session| {
            let release = session.store.named(again)?;
            up::deploy(Goal::plain(&release, Purpose::Deploy), false, "in memory", session, budget())
        });
        assert_eq!(finished.exit, Exit::RolledBack, "{finished:?}");
        has(&scene, &DATA);
    }
}

#[test]
fn a_restore_that_fails_puts_back_what_was_there() {
    for at in ["restore", "fill the database"] {
        let scene = new();
        newer(&scene);
        scene.finishes(&deploy);
        scene.world.begin(None, None);
        // The operations of a run that goes well, to find the one that has to fail.
        let twin = new();
        newer(&twin);
        twin.finishes(&deploy);
        twin.world.begin(None, None);
        assert_eq!(twin.finishes(&with_data).exit, Exit::Ok);
        let number = twin.world.things().done.iter().position(|done| *done == at).unwrap() + 1;
        scene.world.begin(Some(number), None);
        let finished = scene.finishes(&with_data);
        assert_eq!(finished.exit, Exit::NotRestored, "{finished:?}");
        assert!(finished.error.as_ref().is_some_and(|error| error.contains("was put back")), "{finished:?}");
        assert!(!scene.world.things().is_open());
        has(&scene, &NEWER);
        scene.hold_with(&DATA, Some(&finished));
        // Nothing is owed: the data is where it was.
        assert!(run::all_cut_off(&scene.pilot.state, None).unwrap().is_empty());
    }
}

/// What was there is a copy of the volume, so it comes back without that command.
#[test]
fn what_was_there_is_put_back_although_the_command_that_restores_a_dump_never_works() {
    let scene = new();
    newer(&scene);
    scene.finishes(&deploy);
    let (all, _) = backup::list(&scene.pilot.state).unwrap();
    let index = all.iter().find(|kept| kept.backup.snapshot).unwrap().dir.join(backup::INDEX);
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("\"restore\"\n", "\"nonsense\"\n")).unwrap();
    scene.world.begin(None, None);
    let finished = scene.finishes(&with_data);
    assert_eq!(finished.exit, Exit::NotRestored, "{finished:?}");
    assert!(finished.error.as_ref().is_some_and(|error| error.contains("was put back")), "{finished:?}");
    assert!(finished.next.as_ref().is_some_and(|next| next.contains("rollback --to r2")), "{finished:?}");
    has(&scene, &NEWER);
}

#[test]
fn going_back_with_the_data_can_fail_or_be_cut_off_anywhere() {
    let deployed = || {
        let scene = new();
        newer(&scene);
        scene.finishes(&deploy);
        scene
    };
    let points = everywhere(&deployed, &NEWER, &with_data, &with_data, &|scene| has(scene, &DATA));
    assert!(points > 60, "only {points} points");
}

#[test]
fn a_deployment_with_a_snapshot_that_fails_or_is_cut_off_anywhere_leaves_a_way_back() {
    let begun = || {
        let scene = new();
        newer(&scene);
        scene
    };
    let points = everywhere(&begun, &[], &deploy, &roll_back, &|_| ());
    assert!(points > 40, "only {points} points");
}

#[test]
fn a_reset_brings_a_dumped_database_back_and_loses_nothing_where_it_fails_or_is_cut_off() {
    let scene = new();
    assert_eq!(scene.finishes(&reset).exit, Exit::Ok);
    has(&scene, &DATA);
    let points = everywhere(&new, &[], &reset, &reset, &|_| ());
    assert!(points > 60, "only {points} points");
}
