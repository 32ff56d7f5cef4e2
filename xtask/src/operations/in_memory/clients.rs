//! Several clients of one engine, which keeps records for all of them: what one does the others know, one works at a
//! time, and what the engine or a folder has lost comes back.

use super::watch::{deploy_or_back, watching_by};
use super::*;
use crate::base::failure::exit_of;
use crate::engine::fake::world::Records;
use crate::stack::hold;
use crate::stack::shelf::{Kept, Title};

impl Scene {
    /// Its engine keeps records; it has those of release r1.
    fn shared() -> Self {
        let scene = Self::new();
        scene.keeps_records();
        scene.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
        scene
    }

    pub fn keeps_records(&self) {
        self.world.things().records = Some(Records::default());
    }

    /// Another client of the same engine, whose folder is empty.
    pub fn client(&self) -> Self {
        let folder = Folder::new();
        let state = folder.state();
        let pilot = Pilot::at(&self.pilot.pack, "memory", state, By::Any).unwrap();
        Self { _folder: folder, pilot, world: self.world.clone(), is_locked: true }
    }

    /// What it knows without the lock.
    fn met(&self) -> Store {
        let store = self.store();
        assert_eq!(store.meet().unwrap(), [""; 0]);
        store
    }

    fn records(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .world
            .things()
            .records
            .iter()
            .flat_map(|records| &records.all)
            .map(|kept| kept.title.to_string())
            .collect();
        all.sort();
        all
    }

    /// The locks of those that were cut off have run out.
    fn later(&self) {
        self.world.things().records.as_mut().unwrap().age = Duration::from_secs(3600);
    }
}

#[test]
fn what_one_client_deployed_another_one_lists_and_goes_back_from() {
    let one = Scene::shared();
    one.release("r2", "v2.0.0", &one.env_text());
    let finished = one.finishes(&deploy);
    assert_eq!(finished.outcome, Some(Outcome::Deployed), "{finished:?}");
    let other = one.client();
    drop(one);
    let store = other.met();
    let good: Vec<String> = store.known_good().unwrap().into_iter().map(|release| release.id).collect();
    assert_eq!((good, store.current().unwrap().unwrap().id), (vec!["r2".into(), "r1".into()], "r2".into()));
    assert!(store.check_files(&store.named("r1").unwrap()).is_ok());
    let back = Request { to: Some("r1".into()), ..Request::by(Command::Rollback) };
    let finished = other.finishes(&|session| rollback::locked(&back, session, budget()));
    assert_eq!((finished.outcome, finished.release.as_deref()), (Some(Outcome::Restored), Some("r1")));
    assert_eq!(other.world.things().version("engine").unwrap(), "v1.0.0");
    // The order of what was verified is one for all clients.
    let third = other.client().met();
    assert_eq!(third.known_good().unwrap()[0].id, "r1");
    assert_eq!(third.current().unwrap().unwrap().id, "r1");
    // The next id is none that any of them has given.
    assert_eq!(third.free_id().unwrap(), "r3");
}

#[test]
fn a_hold_is_kept_by_all_through_a_wiped_engine_and_a_deleted_folder() {
    let one = Scene::shared();
    let (two, three) = (one.client(), one.client());
    Hold::mine("bad answers").place(&one.store().ledger()).unwrap();
    one.break_version(Defect::Errors);
    let finished = two.finishes(&roll_back);
    assert!(finished.held && !one.world.things().is_open(), "{finished:?}");
    // Docker is pruned: the records are gone. Any client that has the hold keeps it, and puts it back.
    one.keeps_records();
    assert!(two.finishes(&roll_back).held);
    // The folders of both are deleted.
    [&one, &two].into_iter().for_each(|client| std::fs::remove_dir_all(client.pilot.state.path()).unwrap());
    assert_eq!(hold::standing(&three.met().ledger()).unwrap().len(), 1);
    assert!(two.finishes(&roll_back).held);
    // One lifts it, and it stays lifted, though others have a copy.
    let holds = hold::standing(&two.met().ledger()).unwrap();
    holds[0].lift(&two.store().ledger()).unwrap();
    for client in [&one, &two, &three] {
        assert_eq!(hold::standing(&client.met().ledger()).unwrap(), []);
    }
    one.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
    assert_eq!(hold::standing(&two.met().ledger()).unwrap(), []);
}

#[test]
fn what_the_engine_has_lost_is_put_back_and_what_was_removed_is_not() {
    let one = Scene::shared();
    let env = one.env_text();
    for id in ["r2", "r3"] {
        one.release(id, "v1.0.0", &with_value(&env, "ENABLE_CACHE", id).unwrap());
    }
    one.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
    let two = one.client();
    assert_eq!(two.met().ids().unwrap().len(), 3);
    one.finishes(&|session| session.store.retain(1).map(|_| Finished::plain(Exit::Ok)));
    let left = one.store().ids().unwrap();
    assert!(left.len() < 3 && left.contains("r1"), "{left:?}");
    // The other client still has its folder.
    two.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
    assert_eq!((two.store().ids().unwrap(), one.met().ids().unwrap()), (left.clone(), left.clone()));
    // Everything at the engine is lost, also that it was on purpose.
    one.keeps_records();
    two.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
    assert_eq!(one.client().met().ids().unwrap(), left);
    assert!(one.records().contains(&"running.1".to_owned()), "{:?}", one.records());
}

#[test]
fn two_clients_that_did_not_know_of_each_other_keep_both_releases() {
    let one = Scene::new();
    let two = one.client();
    let mut other = one.release("r9", "v2.0.0", &one.env_text());
    std::fs::remove_dir_all(one.pilot.state.release("r9")).unwrap();
    other.id = "r1".into();
    let from = one.pilot.state.release("r1");
    for (name, sum) in &mut other.files {
        *sum =
            files::copy(&from.join(name), &two.pilot.state.release("r1").join(name), Mode::Private).unwrap();
    }
    files::write_json(&two.pilot.state.release("r1").join(DESCRIPTION), &other, Mode::Plain).unwrap();
    one.keeps_records();
    one.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
    two.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
    let store = one.met();
    let labels: Vec<(String, String)> =
        store.list().unwrap().0.into_iter().map(|release| (release.id, release.label)).collect();
    assert_eq!(labels, [("r1".into(), "v1.0.0".into()), ("r2".into(), "v2.0.0".into())]);
    assert!(store.list().unwrap().0.iter().all(|release| store.check_files(release).is_ok()));
}

/// The files of one release are lost at the engine, and another one was made by a newer version.
#[test]
fn a_release_that_cannot_be_fetched_or_read_is_passed_over() {
    let one = Scene::shared();
    one.release("r2", "v2.0.0", &one.env_text());
    one.release("r3", "v3.0.0", &one.env_text());
    one.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
    {
        let mut things = one.world.things();
        let records = things.records.as_mut().unwrap();
        records.files.remove("release.r2").unwrap();
        let newer = records.all.iter_mut().find(|kept| kept.title.name == "release.r3").unwrap();
        newer.text = newer.text.replace("\"version\":3", "\"version\":99");
    }
    let two = one.client();
    let failed = two.store().meet().unwrap();
    assert!(failed.len() == 2 && failed[0].contains("release r2 of another client"), "{failed:?}");
    one.break_version(Defect::Errors);
    assert_eq!(two.finishes(&roll_back).outcome, Some(Outcome::Restored));
    // What is not understood is neither overwritten nor removed.
    assert!(
        one.world
            .things()
            .records
            .as_ref()
            .unwrap()
            .all
            .iter()
            .any(|kept| kept.text.contains("\"version\":99"))
    );
}

/// A client is cut off before each operation of a run; another one, with a folder of its own, finishes.
#[test]
fn another_client_takes_over_wherever_the_first_is_cut_off() {
    type Command = fn(&Session) -> Result<Finished>;
    // A rollback at every operation; of the others it is the records alone that are new here.
    let all: [(usize, Command); 3] = [(1, roll_back), (3, reset), (3, deploy)];
    for (stride, what) in all {
        let mut cuts = 0;
        for at in (1..).step_by(stride) {
            let scene = Scene::shared();
            scene.release("r2", "v2.0.0", &scene.env_text());
            scene.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
            if stride == 1 {
                scene.break_version(Defect::Errors);
            }
            scene.world.begin(None, Some(at));
            if !matches!(scene.run(&what), Ran::CutOff) {
                break;
            }
            cuts += 1;
            scene.world.begin(None, None);
            let other = scene.client();
            // While its lock lasts, nobody else works.
            if scene.records().iter().any(|title| title.starts_with("lock")) {
                let Ran::Refused(error) = other.run(&roll_back) else { panic!("cut {at}: two at once") };
                assert_eq!(exit_of(&error), Exit::Locked, "cut {at}: {error:#}");
            }
            scene.later();
            let finished = other.finishes(&roll_back);
            assert!(finished.exit.is_good() && scene.world.things().is_open(), "cut {at}: {finished:?}");
            assert!(scene.world.things().is_well() && scene.world.things().let_in_to_bad == 0, "cut {at}");
            // And the first one again.
            let finished = scene.finishes(&roll_back);
            assert!(finished.exit.is_good(), "cut {at}: {finished:?}");
            assert!(!scene.records().iter().any(|title| title.starts_with("lock")), "{:?}", scene.records());
        }
        assert!(cuts * stride > 20, "{cuts}");
    }
}

/// Whatever fails of the records, the run ends as it must, and the next one restores.
#[test]
fn a_record_that_cannot_be_kept_never_lets_the_public_in_to_what_is_bad() {
    let mut failed = 0;
    for at in 1.. {
        let scene = Scene::shared();
        scene.break_version(Defect::Errors);
        scene.world.begin(Some(at), None);
        let ran = scene.run(&roll_back);
        let done = scene.world.things().done.len();
        if done < at {
            break;
        }
        failed += 1;
        if let Ran::Finished(finished) = &ran
            && finished.exit.is_good()
        {
            assert!(scene.world.things().is_well(), "failure {at}");
        }
        assert_eq!(scene.world.things().let_in_to_bad, 0, "failure {at}");
        scene.world.begin(None, None);
        scene.later();
        assert!(scene.client().finishes(&roll_back).exit.is_good(), "failure {at}");
    }
    assert!(failed > 20, "{failed}");
}

/// Somebody takes the lock over before each operation of a run: it ends before its next step, and leaves the gate.
#[test]
fn a_run_that_lost_its_lock_does_nothing_more() {
    let taken_over = |things: &mut Things| {
        let records = &mut things.records.as_mut().unwrap().all;
        let Some(at) = records.iter().position(|kept| kept.title.name == "lock") else { return };
        let old = records.remove(at);
        let text = old.text.replace("\"test\"", "\"up\"");
        records.push(Kept { title: old.title.next(), text, handle: "other".into() });
    };
    let (mut lost, mut named) = (0, 0);
    for at in 1.. {
        let scene = Scene::shared();
        scene.break_version(Defect::Errors);
        scene.world.begin(None, None);
        scene.world.things().meanwhile = Some((at, Box::new(taken_over)));
        let ran = scene.run(&roll_back);
        if scene.world.things().meanwhile.is_some() {
            break;
        }
        assert_eq!(scene.world.things().let_in_to_bad, 0, "before {at}");
        let Ran::Finished(finished) = ran else { continue };
        if finished.exit != Exit::Locked {
            continue;
        }
        lost += 1;
        let error = finished.error.unwrap();
        assert!(error.contains("has lost the lock of the stack to "), "{error}");
        named += usize::from(error.contains("xtask up`"));
        let journal = scene.journal();
        // The step that noticed is the last; or it was noticed when the result was to be recorded.
        let failed = journal.iter().position(|(_, ended)| ended == "failed");
        assert!(failed.is_none_or(|at| at + 1 == journal.len()), "before {at}: {journal:?}");
        // It was never its own to give back.
        let records = scene.world.things().records.clone().unwrap().all;
        assert!(records.iter().any(|kept| kept.handle == "other"), "before {at}: {records:?}");
    }
    assert!(lost > 10 && named > 5, "{lost} {named}");
}

/// What another client puts at the engine for a hold.
fn place(things: &mut Things) {
    // An id has the process in it, and this one has none of its own.
    let mut hold = Hold::mine("not now");
    hold.id = "another-1".into();
    let title = Title::first(&format!("hold.{}", hold.id));
    let text = serde_json::to_string(&hold).unwrap();
    let records = &mut things.records.as_mut().unwrap().all;
    records.push(Kept { title, text, handle: "another client's".into() });
}

/// What a hold keeps down is not bad, whoever placed it.
#[test]
fn a_watch_knows_of_a_hold_of_another_client() {
    let scene = watching_by(&|manifest| with_gate(&manifest, gates::STOP));
    scene.keeps_records();
    scene.finishes(&|_| Ok(Finished::plain(Exit::Ok)));
    scene.after(1, |things| {
        place(things);
        let edge: Vec<String> = things.edge.iter().cloned().collect();
        things.keep_down(&edge);
    });
    let finished = scene.finishes(&deploy_or_back);
    assert_eq!((finished.exit, finished.release.as_deref()), (Exit::Held, Some("r2")), "{finished:?}");
    assert!(!scene.world.things().is_open());
}

/// Another client places a hold and closes the gate before each operation of a run: at its end nothing is open.
#[test]
fn a_hold_of_another_client_at_any_moment_of_a_run_stays() {
    for at in 1.. {
        let scene = Scene::shared();
        scene.break_version(Defect::Errors);
        scene.world.begin(None, None);
        let hold = |things: &mut Things| {
            place(things);
            things.set_gate(Some("not now".into()));
        };
        scene.world.things().meanwhile = Some((at, Box::new(hold)));
        let ran = scene.run(&roll_back);
        if scene.world.things().meanwhile.is_some() {
            assert!(at > 20, "{at}");
            break;
        }
        assert!(!scene.world.things().is_open(), "placed before operation {at}");
        // Where it closed while the first public request was made, this one failed; never is it said that it is open.
        assert!(
            !matches!(ran, Ran::Finished(finished) if finished.public.as_ref().is_some_and(|public| !public.is_shut()))
        );
        // The next one knows of it too.
        assert!(scene.client().finishes(&roll_back).held, "placed before operation {at}");
    }
}
