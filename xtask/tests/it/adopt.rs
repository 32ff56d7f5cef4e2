//! A stack that shares nothing with the pilot: the whole way of a team that adopts the tool, on Docker.

use crate::notes::{Notes, bad_release, crash_loop, on, within};
use crate::pilot::Engine::{Compose1, Compose2};
use std::time::Duration;

/// How long a busy machine may take to start the stack.
const START: Duration = Duration::from_secs(30);

/// What the other tests take for granted: the stack is good, and each bad release is bad in the way that it says.
#[test]
fn plain_compose_runs_the_stack_and_its_bad_releases() {
    on(&[Compose2, Compose1], "plain", |notes: Notes| {
        notes.deploy_by_hand();
        assert!(within(START, || notes.write("three words here") == 201));
        assert!(notes.has("three words here"));
        assert_eq!((notes.version().as_str(), notes.containers("worker").len()), ("1.0", 2));
        bad_release(&notes);
        notes.deploy_by_hand();
        assert!(within(START, || notes.write("lost") == 500));
        assert_eq!(notes.version(), "2.0");
        crash_loop(&notes);
        notes.deploy_by_hand();
        assert!(within(START, || notes.write("lost") == 502));
    });
}
