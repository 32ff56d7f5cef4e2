//! Where an engine keeps records for every client of it, beside the stack: the fifth role of an engine. A record has a
//! name, a version and a text; some have files too. It is put or removed, and never changed: what replaces it has the
//! next version, and the highest version counts. A name with its version exists once, so of two clients that replace
//! the same record at the same time, one is told so. Engines implement `Shelf`. What records mean is not known here, but
//! in `ledger`, `lease` and `release/shared`. Values and the trait only.

use crate::base::deadline::Deadline;
use anyhow::Result;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// The most bytes of a text: docker reads lines of 64 KiB at most from a file of labels.
pub const LONGEST_TEXT: usize = 60_000;

/// What one record is called: `running.3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Title {
    /// Its name: letters, digits, `-` and `.`.
    pub name: String,
    /// Its version, from 1.
    pub version: u64,
}

impl Title {
    /// The first version.
    pub fn first(name: &str) -> Self {
        Self { name: name.to_owned(), version: 1 }
    }

    /// The version that replaces this one.
    pub fn next(&self) -> Self {
        Self { name: self.name.clone(), version: self.version + 1 }
    }

    /// Reads `NAME.VERSION`; nothing if it has another form.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, version) = text.rsplit_once('.')?;
        Some(Self { name: name.to_owned(), version: version.parse().ok()? })
    }
}

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.version)
    }
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it is called.
    pub title: Title,
    /// What it says.
    pub text: String,
    /// What the engine calls it: no other record ever has this id.
    pub handle: String,
}

/// The records of one stack at its engine.
pub trait Shelf: Send + Sync {
    /// All of them, also those that were replaced.
    fn all(&self, deadline: Deadline) -> Result<Vec<Kept>>;

    /// Puts a record and returns its handle; none if there is one with this title. `with_files` if files were stored
    /// under its name.
    fn put(&self, title: &Title, text: &str, with_files: bool, deadline: Deadline) -> Result<Option<String>>;

    /// Removes records. It is no error if one is gone already.
    fn remove(&self, kept: &[Kept], deadline: Deadline) -> Result<()>;

    /// Stores the files in a folder under a name, in place of others with that name.
    fn store(&self, name: &str, folder: &Path, deadline: Deadline) -> Result<()>;

    /// Gives out the files of a record, as a tar archive.
    fn fetch(
        &self,
        kept: &Kept,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()>;

    /// Removes the files under a name. It is no error if there are none.
    fn forget(&self, name: &str, deadline: Deadline) -> Result<()>;

    /// How long ago a record was put, by the clock of the engine. None if it is there no more.
    fn age(&self, kept: &Kept, deadline: Deadline) -> Result<Option<Duration>>;

    /// The command by which a person removes a record.
    fn by_hand(&self, kept: &Kept) -> String;
}

/// The record that counts of those with this name.
pub fn newest<'a>(all: &'a [Kept], name: &str) -> Option<&'a Kept> {
    all.iter().filter(|kept| kept.title.name == name).max_by_key(|kept| kept.title.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_of_a_name_counts() {
        let kept = |title: &str| Kept {
            title: Title::parse(title).unwrap(),
            text: String::new(),
            handle: title.into(),
        };
        let all = ["release.r1.2", "release.r1.10", "release.r1.9", "release.r10.11"].map(kept);
        assert_eq!(newest(&all, "release.r1").unwrap().handle, "release.r1.10");
        assert_eq!(newest(&all, "release.r2"), None);
        assert_eq!(Title::parse("release.r1.10").unwrap().next().to_string(), "release.r1.11");
        for other in ["", "release", "release.r1", "release.r1.x"] {
            assert_eq!(Title::parse(other), None, "{other}");
        }
    }
}
