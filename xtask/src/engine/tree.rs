//! What the stack in a folder is, before there is a release of it: Compose is asked about a copy of exactly those files
//! that a release would have, so a file that is missing there is noticed here. Called by `engine` and `operations`.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::engine::roles::Runtime;
use crate::release::description::mode_of;
use crate::stack::definition::Resolved;
use crate::stack::pilot::Pilot;
use anyhow::Result;
use std::path::PathBuf;

/// A copy of the files that Compose reads.
pub fn copied(pilot: &Pilot, place: &dyn Fn(&str) -> PathBuf) -> Result<files::Scratch> {
    let copy = files::Scratch::new("stack")?;
    for name in pilot.layout.files() {
        files::copy(&place(name), &copy.path().join(name), mode_of(name, &pilot.layout))?;
    }
    for folder in &pilot.layout.build_folders {
        files::make_folder(&copy.path().join(folder))?;
    }
    Ok(copy)
}

/// Asks what a stack is. `place` says where the files are that it has under these names. Changes nothing.
pub fn resolve(
    pilot: &Pilot,
    place: &dyn Fn(&str) -> PathBuf,
    runtime: &dyn Runtime,
    deadline: Deadline,
) -> Result<Resolved> {
    let copy = copied(pilot, place)?;
    let is_file = |path: &str| place(path).is_file();
    runtime.for_stack(pilot)?.resolve(copy.path(), &is_file, deadline)
}
