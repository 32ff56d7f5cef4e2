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

#[test]
fn a_drill_says_what_the_stack_does_not_have_and_init_what_it_has() {
    on(&[Compose2, Compose1], "asked", |notes: Notes| {
        let notes = notes.without_a_manifest();
        let no_such = |args: &[&str], told: &str, code| {
            let said = notes.xtask(&[&["drill"], args].concat()).expect(code).all();
            assert!(said.contains(told), "{said}");
        };
        no_such(&[], "--stop SERVICE or --image SERVICE=IMAGE (api, db, proxy, worker)", 2);
        no_such(&["--stop", "nobody"], "no service nobody; it has api, db, proxy, worker", 2);
        no_such(&["--image", "api=nothing:9"], "there is no image nothing:9", 2);
        no_such(&["--set", "NOBODY=1"], ".env has no NOBODY", 2);
        no_such(&["--corrupt", "tape"], "no data tape; it has db, exports", 2);
        no_such(&["--stop", "api"], "a known-good release, and there is none", 6);
        notes.xtask(&["init"]).expect(0);
        let written = std::fs::read_to_string(notes.dir().join("pilot.toml")).unwrap();
        let project = &notes.project;
        for line in [
            format!("#   service worker: image {project}-app:1.0, 2 containers, health check"),
            format!("#   service api: built by Compose as {project}-app:1.0, health check"),
            format!(
                "#   service proxy: image {project}-nginx:1.22, published at 127.0.0.1:{}, health check",
                notes.port
            ),
            format!("#   data db: volume {project}_notes_data"),
            format!("#   data exports: volume {project}-exports"),
        ] {
            assert!(written.contains(&line), "{line}\n{written}");
        }
        assert_eq!(notes.containers("db"), [""; 0]);
    });
}
