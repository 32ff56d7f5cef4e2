//! The records at the engine, as this process knows them. It asks for all of them at once, and remembers the answer and
//! what it has put since. What it has replaced is removed together, when its work is done. Used by `ledger`, `lease` and
//! `release/shared`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::stack::shelf::{Kept, LONGEST_TEXT, Shelf, Title, newest};
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a record is replaced anew if somebody else replaces it at the same time.
const TRIES: usize = 5;

/// How long all records may take. Somebody waits for the gate to be closed.
const LOOK: Duration = Duration::from_secs(3);

/// The records of a stack at its engine.
pub struct Shared {
    /// The engine's side.
    pub shelf: Box<dyn Shelf>,
    /// Limit of one change.
    limit: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// All records; none until the engine has answered.
    records: Option<Vec<Kept>>,
    /// When it was asked last, and why it did not answer then.
    asked: Option<(Instant, Option<String>)>,
    /// What was replaced.
    replaced: Vec<Kept>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// The records on this shelf. A change may take `limit`.
    pub fn new(shelf: Box<dyn Shelf>, limit: Duration) -> Self {
        Self { shelf, limit, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.limit)
    }

    /// Asks the engine for all records. After an error the last answer is not known any more.
    pub fn look(&self) -> Result<()> {
        let asked = self.shelf.all(Deadline::after(LOOK.min(self.limit)));
        let why = asked.as_ref().err().map(|error| format!("{error:#}"));
        let mut known = self.known();
        known.asked = Some((Instant::now(), why));
        match asked {
            Ok(all) => {
                known.records = Some(all);
                Ok(())
            }
            Err(error) => {
                known.records = None;
                Err(error).context("the engine does not tell its records of this stack")
            }
        }
    }

    /// The same, unless it was asked within `age`: then its last answer, or its last error, counts.
    pub fn look_within(&self, age: Duration) -> Result<()> {
        let asked = self.known().asked.clone();
        match asked {
            Some((at, None)) if at.elapsed() < age && self.is_known() => Ok(()),
            Some((at, Some(why))) if at.elapsed() < age => Err(fail(Exit::Host, why, Next::xtask("host"))),
            _ => self.look(),
        }
    }

    /// Has the engine answered?
    pub fn is_known(&self) -> bool {
        self.known().records.is_some()
    }

    /// The record that counts of those with this name, as far as is known.
    pub fn newest(&self, name: &str) -> Option<Kept> {
        newest(self.known().records.as_deref()?, name).cloned()
    }

    /// Every record with this name.
    pub fn every(&self, name: &str) -> Vec<Kept> {
        let known = self.known();
        let all = known.records.iter().flatten();
        all.filter(|kept| kept.title.name == name).cloned().collect()
    }

    /// The records that count whose names begin so, each with the rest of its name.
    pub fn named(&self, prefix: &str) -> Vec<(String, Kept)> {
        let known = self.known();
        let all = known.records.as_deref().unwrap_or_default();
        let counts = |kept: &&Kept| newest(all, &kept.title.name) == Some(*kept);
        let named = all.iter().filter(counts).filter_map(|kept| {
            let rest = kept.title.name.strip_prefix(prefix)?;
            Some((rest.to_owned(), kept.clone()))
        });
        named.collect()
    }

    /// Puts a record with this title. None if there is one.
    pub fn put(&self, title: &Title, text: &str, with_files: bool) -> Result<Option<Kept>> {
        ensure!(text.len() <= LONGEST_TEXT, "the record {title} has more than {LONGEST_TEXT} bytes");
        let put = self.shelf.put(title, text, with_files, self.deadline());
        let put = put.with_context(|| format!("cannot put the record {title} at the engine"))?;
        let kept = put.map(|handle| Kept { title: title.clone(), text: text.to_owned(), handle });
        if let (Some(records), Some(kept)) = (&mut self.known().records, &kept) {
            records.push(kept.clone());
        }
        Ok(kept)
    }

    /// Puts the first record with this name; false if there is one.
    pub fn add(&self, name: &str, text: &str, with_files: bool) -> Result<bool> {
        if !self.is_known() {
            self.look()?;
        }
        if self.newest(name).is_some() {
            return Ok(false);
        }
        self.put(&Title::first(name), text, with_files).map(|put| put.is_some())
    }

    /// Replaces what a record says; puts it if there is none.
    pub fn replace(&self, name: &str, text: &str, with_files: bool) -> Result<()> {
        self.change(name, with_files, &|_| Ok(text.to_owned()))
    }

    /// Replaces what a record says by what `how` makes of it. If somebody else replaces it at the same time, of that.
    pub fn change(
        &self,
        name: &str,
        with_files: bool,
        how: &dyn Fn(Option<&str>) -> Result<String>,
    ) -> Result<()> {
        if !self.is_known() {
            self.look()?;
        }
        for _ in 0..TRIES {
            let (now, every) = (self.newest(name), self.every(name));
            let text = how(now.as_ref().map(|kept| kept.text.as_str()))?;
            let title = now.as_ref().map_or_else(|| Title::first(name), |kept| kept.title.next());
            if self.put(&title, &text, with_files)?.is_some() {
                let mut known = self.known();
                let new = every.into_iter().filter(|kept| !known.replaced.contains(kept)).collect::<Vec<_>>();
                known.replaced.extend(new);
                return Ok(());
            }
            self.look()?;
        }
        bail!("the record {name} was replaced {TRIES} times by somebody else while it was to be replaced")
    }

    /// Removes every record with this name.
    pub fn remove(&self, name: &str) -> Result<()> {
        if !self.is_known() {
            self.look()?;
        }
        self.take_away(&self.every(name))
    }

    /// Removes these records, and what was replaced.
    pub fn take_away(&self, gone: &[Kept]) -> Result<()> {
        let mut all = std::mem::take(&mut self.known().replaced);
        all.retain(|kept| !gone.contains(kept));
        all.extend(gone.iter().cloned());
        if all.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = gone.iter().map(|kept| kept.title.to_string()).collect();
        let removed = self.shelf.remove(&all, self.deadline());
        removed.with_context(|| format!("cannot remove the records {} at the engine", names.join(", ")))?;
        if let Some(records) = &mut self.known().records {
            records.retain(|kept| !all.contains(kept));
        }
        Ok(())
    }
}
