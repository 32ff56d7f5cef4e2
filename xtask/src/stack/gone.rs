//! What was removed on purpose: lifted holds, and releases that retention removed. Other clients have copies in their
//! state folders, which must not bring it back; what is missing at the engine and is not named here was lost. A value;
//! `ledger` keeps it.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const FORMAT: u32 = 1;

/// How many lifted holds are named. The ids of holds begin with the time, so the oldest are forgotten first.
const LIFTED: usize = 200;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    version: u32,
    /// Ids of holds.
    holds: BTreeSet<String>,
    /// Numbers of releases: the first and the last of each row without a gap.
    releases: Vec<(u64, u64)>,
}

impl Gone {
    /// Reads it. It is an error if a newer version has written it.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let gone: Self =
            serde_json::from_slice(text).context("the list of what was removed cannot be read")?;
        ensure!(gone.version <= FORMAT, "the list of what was removed has the newer format {}", gone.version);
        Ok(gone)
    }

    /// As it is written down.
    pub fn text(&self) -> Result<String> {
        Ok(serde_json::to_string(&Self { version: FORMAT, ..self.clone() })?)
    }

    /// Is nothing named?
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.releases.is_empty()
    }

    /// This hold is lifted.
    pub fn lift(&mut self, id: &str) {
        self.holds.insert(id.to_owned());
        while self.holds.len() > LIFTED {
            self.holds.pop_first();
        }
    }

    /// Was it lifted?
    pub fn is_lifted(&self, id: &str) -> bool {
        self.holds.contains(id)
    }

    /// The release with this number is removed.
    pub fn remove(&mut self, number: u64) {
        self.releases.push((number, number));
        self.releases.sort_unstable();
        let mut rows: Vec<(u64, u64)> = Vec::new();
        for (first, last) in self.releases.drain(..) {
            match rows.last_mut() {
                Some(row) if first <= row.1.saturating_add(1) => row.1 = row.1.max(last),
                _ => rows.push((first, last)),
            }
        }
        self.releases = rows;
    }

    /// Was it removed?
    pub fn is_removed(&self, number: u64) -> bool {
        self.releases.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// The highest number of a release that was removed; 0 if none was.
    pub fn highest(&self) -> u64 {
        self.releases.last().map_or(0, |(_, last)| *last)
    }

    /// Also everything that the other names.
    pub fn add(&mut self, other: &Self) {
        other.holds.iter().for_each(|id| self.lift(id));
        self.releases.extend(&other.releases);
        if let Some((first, _)) = self.releases.first().copied() {
            self.remove(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_named_in_rows_and_two_lists_become_one() {
        let mut one = Gone::default();
        [3, 1, 2, 7].into_iter().for_each(|number| one.remove(number));
        let mut two = Gone::default();
        two.remove(4);
        two.lift("a");
        two.add(&one);
        assert_eq!(two.releases, [(1, 4), (7, 7)]);
        assert!(two.is_removed(4) && !two.is_removed(5) && two.is_lifted("a") && two.highest() == 7);
        assert_eq!(Gone::parse(two.text().unwrap().as_bytes()).unwrap(), Gone { version: FORMAT, ..two });
        assert!(Gone::parse(br#"{"version":2,"holds":[],"releases":[]}"#).is_err());
    }

    #[test]
    fn the_oldest_lifted_holds_are_forgotten() {
        let mut gone = Gone::default();
        (0..LIFTED + 1).for_each(|number| gone.lift(&format!("{number:05}")));
        assert!(!gone.is_lifted("00000") && gone.is_lifted("00001"));
    }
}
