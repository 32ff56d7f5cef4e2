//! Copies of stored data that may be written to meanwhile, for every engine: two copies in a row that are the
//! same byte for byte show the state of one moment, because a database does not return to bytes that it had
//! before. What keeps a copy from being made is told as what it is, and no half archive is left.

use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::machine;
use crate::base::next::Next;
use crate::base::proc::RunError;
use anyhow::{Error, Result, bail, ensure};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Copies that are made before data is said to be changing all the time.
const COPIES: usize = 6;

/// The end of every archive: two blocks of zeros (POSIX pax, "ustar Interchange Format").
const END: usize = 1024;

/// Has `copy` fill the archive until it holds `what` as of one moment.
pub fn copy(what: &str, archive: &Path, copy: impl Fn() -> Result<()>) -> Result<()> {
    let copied = until_still(what, archive, copy);
    if copied.is_err() {
        files::remove(archive).ok();
    }
    copied
}

fn until_still(what: &str, archive: &Path, copy: impl Fn() -> Result<()>) -> Result<()> {
    let (mut last, mut changing) = (None, None);
    for _ in 0..COPIES {
        match copy().and_then(|()| whole(archive)) {
            Ok(sum) if last.as_ref() == Some(&sum) => return Ok(()),
            Ok(sum) => last = Some(sum),
            Err(error) if is_late(&error) => {
                let size = files::human(files::size(archive).unwrap_or(0));
                return Err(
                    error.context(format!("copying {what} took longer than it may; {size} were copied"))
                );
            }
            Err(error) if is_full(&error) => return Err(full(what, archive, &error)),
            Err(error) if exit_of(&error) == Exit::Host => return Err(error),
            // A file that changed while it was read; the next copy may be better.
            Err(error) => (last, changing) = (None, Some(error)),
        }
    }
    match changing.filter(|error| !is_change(error)) {
        Some(error) => Err(error.context(format!("{what} could not be copied, in {COPIES} tries"))),
        None => {
            bail!("{what} was written to during each of {COPIES} copies")
        }
    }
}

/// Checksum of an archive that has its end.
fn whole(archive: &Path) -> Result<String> {
    let mut file = files::open_regular(archive)?;
    let mut end = [1; END];
    let read = file.seek(SeekFrom::End(-(END as i64))).and_then(|_| file.read_exact(&mut end));
    ensure!(read.is_ok() && end == [0; END], "{} breaks off before its end", archive.display());
    files::sha256(archive)
}

fn says(error: &Error, words: &[&str]) -> bool {
    let text = format!("{error:#}").to_lowercase();
    words.iter().any(|word| text.contains(word))
}

/// `wrote only` is what tar says of the last block that a disk took a part of.
fn is_full(error: &Error) -> bool {
    says(error, &["no space left on device", "quota exceeded", "wrote only"])
}

fn is_late(error: &Error) -> bool {
    matches!(error.downcast_ref(), Some(RunError::Deadline(_)))
}

/// What tar says of a file that somebody is at work on.
fn is_change(error: &Error) -> bool {
    says(error, &["changed as we read it", "removed before we read it", "file shrank", "cannot stat"])
}

/// A disk that is full, told as that, with what may be done; other errors as they are.
pub fn told(what: &str, to: &Path, error: Error) -> Error {
    if is_full(&error) { full(what, to, &error) } else { error }
}

fn full(what: &str, to: &Path, error: &Error) -> Error {
    let folder = to.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let free = machine::space(folder).map(|(space, _)| files::human(space.bytes));
    let free = free.unwrap_or_else(|_| "an unknown number of bytes".into());
    let got = files::human(files::size(to).unwrap_or(0));
    let message = format!(
        "the disk of {} is full: copying {what} got to {got}, and {free} are free: {error:#}",
        folder.display()
    );
    fail(Exit::Host, message, Next::xtask("host --free").so(format!("and df -h {}", folder.display())))
}
