//! Tests: the lock of a stack at its engine, with two clients that ask for it, in whichever order.

use super::*;
use crate::base::failure::exit_of;
use crate::engine::fake::world::Records;
use crate::stack::lease::EngineLock;
use crate::stack::ledger::Ledger;
use crate::stack::shared::Shared;
use crate::stack::shelf::{Kept, Shelf, Title};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A shelf on which another client acts right before one of this client's operations.
struct Between {
    shelf: Box<dyn Shelf>,
    left: AtomicUsize,
    act: Box<dyn Fn() + Send + Sync>,
}

impl Between {
    fn pass(&self) -> &dyn Shelf {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            (self.act)();
        }
        self.shelf.as_ref()
    }
}

impl Shelf for Between {
    fn all(&self, deadline: Deadline) -> Result<Vec<Kept>> {
        self.pass().all(deadline)
    }
    fn put(&self, title: &Title, text: &str, files: bool, deadline: Deadline) -> Result<Option<String>> {
        self.pass().put(title, text, files, deadline)
    }
    fn remove(&self, kept: &[Kept], deadline: Deadline) -> Result<()> {
        self.pass().remove(kept, deadline)
    }
    fn store(&self, name: &str, folder: &Path, deadline: Deadline) -> Result<()> {
        self.pass().store(name, folder, deadline)
    }
    fn fetch(
        &self,
        kept: &Kept,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()> {
        self.pass().fetch(kept, take, deadline)
    }
    fn forget(&self, name: &str, deadline: Deadline) -> Result<()> {
        self.pass().forget(name, deadline)
    }
    fn age(&self, kept: &Kept, deadline: Deadline) -> Result<Option<Duration>> {
        self.pass().age(kept, deadline)
    }
    fn by_hand(&self, kept: &Kept) -> String {
        self.shelf.by_hand(kept)
    }
}

fn lock_on(shelf: Box<dyn Shelf>) -> EngineLock {
    EngineLock::new(Arc::new(Shared::new(shelf, Duration::from_secs(1))))
}

/// One client asks for the lock; another one does so, and renews it or gives it back, between any two of its
/// operations. Never do both have it.
#[test]
fn in_whichever_order_two_clients_ask_one_has_the_lock() {
    let long = Duration::from_secs(600);
    let (mut both_tried, mut refused) = (0, 0);
    for before in ["free", "run out"] {
        for then in ["keeps it", "renews it", "gives it back", "gives it back and takes it again"] {
            for at in 1..12 {
                let world = World::default();
                world.things().records = Some(Records::default());
                if before == "run out" {
                    lock_on(world.shelf().unwrap()).acquire("up", Duration::ZERO).unwrap();
                    world.things().records.as_mut().unwrap().age = long;
                }
                let other = Arc::new(lock_on(world.shelf().unwrap()));
                let (acts, its_world) = (other.clone(), world.clone());
                let act = move || {
                    // Whoever holds the lock by now holds a fresh one, but for the one that had run out.
                    let took = acts.acquire("rollback", Duration::ZERO);
                    its_world.things().records.as_mut().unwrap().age = Duration::ZERO;
                    if took.is_ok() {
                        match then {
                            "renews it" => acts.keep(long).unwrap(),
                            "gives it back" => acts.release().unwrap(),
                            "gives it back and takes it again" => {
                                acts.release().unwrap();
                                acts.acquire("rollback", Duration::ZERO).unwrap();
                            }
                            _ => {}
                        }
                    }
                };
                let left = AtomicUsize::new(at);
                let one =
                    lock_on(Box::new(Between { shelf: world.shelf().unwrap(), left, act: Box::new(act) }));
                let took = one.acquire("reset", Duration::ZERO);
                // Asking for more time than is left makes each of them prove that it has it.
                let (has, others) = (one.keep(long).is_ok(), other.keep(long).is_ok());
                let case = format!("{before}, the other {then} before operation {at}: {has} {others}");
                assert!(!(has && others), "both have it: {case}");
                // Whoever does not get it is told that another one has it, also if that one went away meanwhile.
                assert!(
                    took.as_ref().err().is_none_or(|error| exit_of(error) == Exit::Locked),
                    "{case}: {took:?}"
                );
                assert!(has || others || then == "gives it back", "nobody has it: {case}");
                both_tried += usize::from(others);
                refused += usize::from(took.is_err());
            }
        }
    }
    assert!(both_tried > 0 && refused > 0);
}

#[test]
fn a_lock_that_ran_out_is_taken_over_and_its_holder_knows() {
    let world = World::default();
    world.things().records = Some(Records::default());
    let [one, two] = [(), ()].map(|()| lock_on(world.shelf().unwrap()));
    one.acquire("up", Duration::ZERO).unwrap();
    let error = two.acquire("rollback", Duration::ZERO).unwrap_err();
    assert!(exit_of(&error) == Exit::Locked && error.to_string().contains("locked by "), "{error}");
    world.things().records.as_mut().unwrap().age = Duration::from_secs(3600);
    let over = two.acquire("rollback", Duration::ZERO).unwrap().unwrap();
    assert!(over.contains("xtask up`") && over.contains("not renewed"), "{over}");
    let error = one.keep(Duration::from_secs(1)).unwrap_err();
    assert!(exit_of(&error) == Exit::Locked && error.to_string().contains("lost the lock"), "{error}");
    two.keep(Duration::from_secs(1)).unwrap();
    // Removed by hand, while nobody else has taken it: it is taken again.
    world.things().records.as_mut().unwrap().all.clear();
    two.keep(Duration::from_secs(600)).unwrap();
    assert!(
        Ledger::of(&StateDir::new("/nowhere"), world.shelf(), Duration::from_secs(1))
            .holder()
            .unwrap()
            .is_some()
    );
}
