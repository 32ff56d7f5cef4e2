//! What keeps stored data from being copied, told as what it is: a disk that is full, with what may be done. Called by
//! the engines, and by `deploy/backup`, which writes the archives.

use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::machine;
use crate::base::next::Next;
use anyhow::Error;
use std::path::Path;

/// `wrote only` is what tar says of the last block that a disk took a part of.
fn is_full(error: &Error) -> bool {
    let text = format!("{error:#}").to_lowercase();
    ["no space left on device", "quota exceeded", "wrote only"].iter().any(|words| text.contains(words))
}

/// The disk of stored data is full while it is restored, told as that; other errors as they are.
pub fn is_full_there(what: &str, error: Error) -> Error {
    if !is_full(&error) {
        return error;
    }
    let message = format!("the disk of {what} is full: {error:#}");
    fail(Exit::Host, message, Next::xtask("host --free").so("and df -h"))
}

/// A disk that is full, told as that; other errors as they are. `what` was copied to `to`.
pub fn told(what: &str, to: &Path, error: Error) -> Error {
    if !is_full(&error) {
        return error;
    }
    // Not its own folder: what is not complete is removed with it.
    let folder = to.ancestors().skip(2).find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let free = machine::space(folder).map(|(space, _)| files::human(space.bytes));
    let free = free.unwrap_or_else(|_| "an unknown number of bytes".into());
    let got = files::human(files::size(to).unwrap_or(0));
    let message = format!(
        "the disk of {} is full: copying {what} got to {got}, and {free} are free: {error:#}",
        folder.display()
    );
    fail(Exit::Host, message, Next::xtask("host --free").so(format!("and df -h {}", folder.display())))
}
