//! The engine of another machine, through a Docker context.

use crate::daemon::{self, Daemon};
use crate::pilot::skip;
use std::process::Command;

#[test]
fn a_daemon_elsewhere_is_reached_at_an_address_of_its_own_and_leaves_nothing() {
    if let Some(why) = daemon::missing() {
        return skip("elsewhere", &why);
    }
    let mut daemon = Daemon::elsewhere();
    let folder = |daemon: &Daemon| {
        let told = ["--host", &daemon.tcp(), "info", "--format", "{{.DockerRootDir}}"];
        let told = Command::new("docker").args(told).output().unwrap();
        told.status.success().then(|| String::from_utf8(told.stdout).unwrap())
    };
    let is_own = |daemon: &Daemon| folder(daemon).is_some_and(|folder| folder.contains("pilot-test-daemon"));
    assert!(is_own(&daemon));
    // With the same address after it was away.
    daemon.stop();
    assert!(!is_own(&daemon));
    daemon.start();
    assert!(is_own(&daemon));
    let card = daemon.card().to_owned();
    let is_there = || Command::new("ip").args(["link", "show", &card]).output().unwrap().status.success();
    assert!(is_there());
    drop(daemon);
    assert!(!is_there(), "{card} is left");
}
