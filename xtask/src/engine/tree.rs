//! What the stack in a folder is, before there is a release of it: Compose is asked about a copy of exactly those files
//! that a release would have, so a file that is missing there is noticed here. Called by `engine` and `operations`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
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

/// Asks what a stack is. `place` says where the files are that it has under these names. Changes nothing. Errors (exit 2):
/// it could not be started either, because the engine does not understand it.
pub fn resolve(
    pilot: &Pilot,
    place: &dyn Fn(&str) -> PathBuf,
    runtime: &dyn Runtime,
    deadline: Deadline,
) -> Result<Resolved> {
    let copy = copied(pilot, place)?;
    let is_file = |path: &str| place(path).is_file();
    let resolved = runtime.for_stack(pilot)?.resolve(copy.path(), &is_file, deadline);
    resolved.map_err(|error| match exit_of(&error) {
        Exit::NotRestored => {
            let by = runtime.describe(deadline);
            let why = format!("{error:#}")
                .replace(&copy.path().display().to_string(), &pilot.pack.display().to_string());
            let what = format!("{by} does not understand the stack: {why}");
            let files = pilot.layout.compose.iter().map(|name| pilot.pack.join(name).display().to_string());
            let files = files.collect::<Vec<_>>().join(" or ");
            let next =
                format!("fix {files}, or install the Compose that it is written for; nothing was begun");
            fail(Exit::Usage, what, next)
        }
        _ => error,
    })
}
