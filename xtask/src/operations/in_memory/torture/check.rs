//! What must hold after every command of a sequence, and at its end.

use super::sequence::{Command, Event, Trouble};
use super::stage::{Ended, Stage};
use crate::base::failure::{Exit, exit_of};
use crate::deploy::event::{Finished, Outcome};
use crate::deploy::invariants;
use crate::deploy::lockout::Public;
use crate::deploy::paused;
use crate::engine::fake::world::{CORRUPT, Defect, Fault, Things};
use crate::operations::in_memory::{Ran, SECRET};
use crate::release::description::Release;
use crate::release::store::Store;
use crate::stack::hold;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// How often, and after which pause, a lock is tried that has to be free.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// The end in a few words.
fn told(finished: &Finished) -> String {
    let Finished { outcome, exit, release, held, public, error, .. } = finished;
    format!("{outcome:?} {exit:?} {release:?} held: {held} public: {public:?} error: {error:?}")
}

/// What there was before a command.
pub struct Before {
    client: usize,
    data: BTreeMap<String, String>,
    open_under_hold: bool,
    pinned: BTreeSet<String>,
    has_good: bool,
    has_lock: bool,
}

impl Before {
    pub fn of(stage: &Stage, client: usize) -> Self {
        let (pinned, has_good) = releases(stage, client);
        let data = stage.world.things().volumes.clone();
        Self {
            client,
            data,
            open_under_hold: is_open_under_hold(stage, client),
            pinned,
            has_good,
            has_lock: has_lock(stage),
        }
    }
}

/// Is there a lock at the engine?
fn has_lock(stage: &Stage) -> bool {
    let things = stage.world.things();
    things.records.iter().flat_map(|records| &records.all).any(|kept| kept.title.name == "lock")
}

/// The pinned ones of this client, and whether any is known-good.
fn releases(stage: &Stage, client: usize) -> (BTreeSet<String>, bool) {
    let store = Store::new(&stage.clients[client].pilot.state);
    let all = store.list().map(|(all, _)| all).unwrap_or_default();
    let pinned = all.iter().filter(|release| release.pinned).map(|release| release.id.clone());
    (pinned.collect(), all.iter().any(Release::is_known_good))
}

/// Is the public let in while this client knows of a hold, from its folder or from the engine?
fn is_open_under_hold(stage: &Stage, client: usize) -> bool {
    let is_open = stage.world.things().is_open();
    is_open && {
        let store = stage.clients[client].store();
        store.meet().ok();
        hold::standing(&store.ledger()).is_ok_and(|holds| !holds.is_empty())
    }
}

/// Does this without the message of a panic, and makes an error of it.
pub fn quietly<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(what)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
    })
}

/// Checks what a command has left. `interfered`: something else happened in the middle of it.
pub fn after(
    stage: &mut Stage,
    before: &Before,
    command: Command,
    trouble: Option<Trouble>,
    interfered: bool,
    ran: Ran,
) -> Result<(), String> {
    let (finished, ended) = match ran {
        Ran::Finished(finished) => {
            let text = told(&finished);
            (Some(finished), Ended { exit: None, text })
        }
        Ran::Refused(error) => {
            (None, Ended { exit: Some(exit_of(&error)), text: format!("refused: {error:#}") })
        }
        Ran::CutOff => (None, Ended { exit: None, text: "cut off".into() }),
    };
    let exit = finished.as_ref().map(|finished| finished.exit).or(ended.exit);
    if let Some(Trouble::Meanwhile(_, event)) = trouble.filter(|_| interfered) {
        stage.seen.note(event);
    }
    stage.seen.lied |=
        matches!(trouble, Some(Trouble::At(_, _, Fault::Lies) | Trouble::Every(_, Fault::Lies)));
    stage.seen.lost_journal |= match trouble {
        Some(Trouble::At(_, _, fault)) => fault != Fault::Kills,
        Some(Trouble::Every(name, _)) => name == "write to the journal",
        Some(Trouble::Meanwhile(..)) | None => false,
    };
    let said = ended.text.clone();
    stage.seen.last = Some(Ended { exit, ..ended });
    let tell = |why: String| format!("{why}; it ended: {said}; operations: {:?}", stage.world.things().done);
    nothing_is_lost(stage, before, interfered).map_err(&tell)?;
    if !interfered {
        nobody_is_let_in(stage, command).map_err(&tell)?;
    }
    if let (Some(finished), false) = (&finished, interfered) {
        what_is_said(stage, before.client, finished).map_err(&tell)?;
    }
    let may_lose = matches!(trouble, Some(Trouble::Meanwhile(_, Event::FolderIsDeleted(_)))) && interfered;
    let (pinned, has_good) = releases(stage, before.client);
    // Of two clients, the one that never knew of it may be the first to tell an engine that has lost everything.
    let may_lose = may_lose || stage.seen.lost_records && stage.clients.len() > 1;
    // A client learns late what another one has unpinned, or itself in a command that failed; and that a record was not kept.
    stage.seen.unpinned |= matches!(command, Command::Pin(_, false));
    let keeps_pins = !may_lose && !stage.seen.unpinned && !stage.seen.lied;
    if keeps_pins && !before.pinned.is_subset(&pinned) {
        return Err(tell(format!("a pinned release is gone: {:?} of {:?}", pinned, before.pinned)));
    }
    if !may_lose && before.has_good && !has_good {
        return Err(tell("no known-good release is left".into()));
    }
    if trouble.is_none() && exit != Some(Exit::Locked) && !before.has_lock {
        lock_is_free(stage, before.client).map_err(&tell)?;
    }
    under_hold(stage, before, command, exit, interfered)
        .map_err(|why| format!("{why}; it ended: {said}; operations: {:?}", stage.world.things().done))
}

/// The data that a command has changed is in a backup, unless a service has changed it by itself.
fn nothing_is_lost(stage: &Stage, before: &Before, interfered: bool) -> Result<(), String> {
    if interfered {
        return Ok(());
    }
    let things = stage.world.things();
    let changed = before.data.iter().filter(|(service, old)| {
        let live = things.volumes.get(*service);
        let by_itself = live.is_some_and(|live| things.migrations.values().any(|newer| newer == live));
        live != Some(*old) && *old != CORRUPT && *old != "new" && !by_itself
    });
    for (service, old) in changed {
        let kept = stage.clients.iter().any(|scene| {
            quietly(|| invariants::is_backed_up(&scene.pilot.state, service, old)).unwrap_or(false)
        });
        if !kept {
            return Err(format!("data of {service} is lost: {old:?}, now {:?}", things.volumes.get(service)));
        }
    }
    Ok(())
}

fn nobody_is_let_in(stage: &Stage, command: Command) -> Result<(), String> {
    let things = stage.world.things();
    // Only a command that relies on the gate proves that it refuses.
    let lies = things.defect("gateway") == Some(Defect::LyingGate);
    let is_meant = matches!(command, Command::Down) || matches!(command, Command::HoldOff) && lies;
    if things.let_in_unseen > 0 && !is_meant {
        return Err("the public was let in to what a check sees is bad".into());
    }
    Ok(())
}

fn what_is_said(stage: &Stage, client: usize, finished: &Finished) -> Result<(), String> {
    let state = &stage.clients[client].pilot.state;
    let things = stage.world.things();
    if finished.outcome.is_some() {
        let before = invariants::Before { state, data: &[], secret: SECRET };
        quietly(|| invariants::what_is_said_is_so(&before, &things, finished))
            .map_err(|why| why.chars().take(2500).collect::<String>())?;
        let is_good = finished.exit.is_good();
        if is_good && !things.paused.is_empty() {
            return Err(format!("left paused: {:?}", things.paused));
        }
    }
    if finished.outcome == Some(Outcome::NotRestored) && things.is_open() && things.is_seen_bad() {
        let told = matches!(finished.public, Some(Public::Served | Public::Unknown(_)));
        let error = finished.error.clone().unwrap_or_default();
        if !told && !error.contains("MAY BE OPEN") {
            return Err("what is bad stays open, and this is not said".into());
        }
    }
    let recorded: BTreeSet<String> =
        stage.clients.iter().flat_map(|scene| paused::services(&scene.pilot.state)).collect();
    // A lie about this is found as a drift by the next command.
    if !stage.seen.lied && !things.paused.is_subset(&recorded) {
        return Err(format!("paused without a record: {:?}", things.paused));
    }
    Ok(())
}

fn lock_is_free(stage: &Stage, client: usize) -> Result<(), String> {
    if has_lock(stage) {
        return Err("the lock is still at the engine".into());
    }
    let scene = &stage.clients[client];
    if !scene.pilot.state.path().exists() {
        return Ok(());
    }
    // A program that another thread is just starting has the lock too, until it has begun.
    let mut last = None;
    for _ in 0..TRIES {
        match scene.store().ledger().lock_folder("test") {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(PAUSE);
    }
    Err(format!("the lock of the folder is still held: {last:?}"))
}

/// Nobody is let in while a hold stands, unless that was so before, or the command says that it could not close.
fn under_hold(
    stage: &mut Stage,
    before: &Before,
    command: Command,
    exit: Option<Exit>,
    interfered: bool,
) -> Result<(), String> {
    if !is_open_under_hold(stage, before.client) {
        stage.seen.excused = false;
        return Ok(());
    }
    let could_not = matches!(command, Command::HoldOn) && exit != Some(Exit::Ok);
    if could_not {
        stage.seen.excused = true;
    }
    let was_good = exit.is_some_and(Exit::is_good);
    let changes = !matches!(command, Command::Pin(..) | Command::BackUp | Command::Guard);
    if (before.open_under_hold || stage.seen.excused) && (interfered || !(was_good && changes)) {
        return Ok(());
    }
    Err("the public is let in although a hold stands".into())
}

/// A rollback without faults ends well, or there is nothing that it could go back to.
pub fn no_wedge(stage: &Stage, client: usize, ended: Option<Ended>) -> Result<(), String> {
    let Some(Ended { exit, text }) = ended else { return Err("the rollback did not end".into()) };
    let store = stage.clients[client].store();
    let things_of = |release: &Release, things: &Things| {
        let is_well = release.images.values().all(|image| !things.defects.contains_key(&image.id));
        let is_there = release.images.values().all(|image| things.images.contains_key(&image.id));
        (is_well, is_there)
    };
    let good = store.known_good().map_err(|error| format!("{error:#}"))?;
    let usable: Vec<String> = good
        .iter()
        .filter(|release| {
            let (is_well, is_there) = things_of(release, &stage.world.things());
            is_well && (store.check(release).is_ok() || is_there && store.check_files(release).is_ok())
        })
        .map(|release| release.id.clone())
        .collect();
    match exit {
        Some(Exit::Ok | Exit::Held) => Ok(()),
        _ if usable.is_empty() => Ok(()),
        _ => Err(format!("a rollback does not end well, though it could go to {usable:?}: {text}")),
    }
}

/// What is checked once for the whole sequence.
pub fn at_last(stage: &Stage) -> Result<(), String> {
    stage.clients.iter().try_for_each(|scene| {
        quietly(|| invariants::no_secret_is_written(&scene.pilot.state, SECRET))?;
        // The number of a run belongs to one folder.
        if stage.clients.len() > 1 || stage.seen.lost_journal {
            return Ok(());
        }
        quietly(|| invariants::watched_before_known_good(&scene.pilot.state))
    })
}
