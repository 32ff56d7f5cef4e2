//! A backup as the repository lists it, and retention there. Pure: `remote` calls restic. Called by `remote`.

use crate::deploy::backup::{Backup, Kept};
use crate::host::restic::Snapshot;
use std::collections::{BTreeMap, BTreeSet};

/// Digits of a checksum that tell two backups with the same id apart.
const SHORT: usize = 8;

/// Longest id of a backup that comes from elsewhere.
const LONGEST_ID: usize = 100;

/// A backup in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What the user calls it: its id; with a part of its checksum if another backup there has the same id.
    pub name: String,
    /// Its id where it was made.
    pub id: String,
    /// The checksum of its `backup.json`.
    pub sum: String,
    /// When it was made, in Unix milliseconds.
    pub made_ms: u64,
    /// The release that was running.
    pub release: Option<String>,
    /// The bytes of its files.
    pub bytes: u64,
    /// Has it stored data?
    pub data: bool,
    /// The id that restic gives it.
    pub snapshot: String,
}

/// What retention asks of a backup.
#[derive(Clone, Debug)]
pub struct Age {
    /// When it was made, in Unix milliseconds.
    made_ms: u64,
    /// Has it stored data?
    data: bool,
    /// The checksum of its `backup.json`.
    sum: String,
}

impl Stored {
    /// A snapshot, if it is a backup of this project that a push has made.
    pub fn read(snapshot: &Snapshot, project: &str) -> Option<Self> {
        let tag = |name: &str| {
            snapshot.tags.iter().find_map(|tag| tag.strip_prefix(name)?.strip_prefix(':')).map(str::to_owned)
        };
        let sum = tag("sum")?;
        let hex = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = tag("backup").filter(|id| is_id(id) && hex)?;
        (tag("project")? == project).then_some(())?;
        Some(Self {
            name: id.clone(),
            id,
            sum,
            made_ms: tag("made")?.parse().ok()?,
            release: tag("release"),
            bytes: tag("bytes")?.parse().ok()?,
            data: tag("data")? == "true",
            snapshot: snapshot.id.clone(),
        })
    }

    /// The first digits of its checksum.
    pub fn short(&self) -> &str {
        &self.sum[..SHORT]
    }

    /// What retention asks of it.
    pub fn age(&self) -> Age {
        Age { made_ms: self.made_ms, data: self.data, sum: self.sum.clone() }
    }
}

/// What retention asks of a backup.
pub fn age(sum: &str, backup: &Backup) -> Age {
    Age { made_ms: backup.made_ms, data: !backup.data().is_empty(), sum: sum.to_owned() }
}

/// How a backup is found again.
pub fn tags(project: &str, sum: &str, kept: &Kept, bytes: u64) -> Vec<String> {
    let Age { made_ms, data, .. } = age(sum, &kept.backup);
    let mut all = vec![
        format!("project:{project}"),
        format!("backup:{}", kept.id),
        format!("sum:{sum}"),
        format!("made:{made_ms}"),
        format!("bytes:{bytes}"),
        format!("data:{data}"),
    ];
    all.extend(kept.backup.release.iter().map(|release| format!("release:{release}")));
    all
}

/// May this be the id of a backup? It becomes the name of a folder, and may come from another machine.
pub fn is_id(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !id.is_empty() && id.len() <= LONGEST_ID && !id.starts_with('.') && id.chars().all(plain)
}

/// The checksums of the newest `keep` backups with data, and of as many without: so those of settings never push one
/// of data out.
pub fn newest(all: &[Age], keep: usize) -> BTreeSet<String> {
    let of_kind = |data: bool| {
        let own = all.iter().filter(move |age| age.data == data).map(|age| (age.made_ms, age.sum.clone()));
        let own: BTreeSet<(u64, String)> = own.collect();
        own.into_iter().rev().take(keep).map(|(_, sum)| sum).collect::<Vec<_>>()
    };
    of_kind(true).into_iter().chain(of_kind(false)).collect()
}

/// What is past the newest `keep` of each kind, and what is there twice.
pub fn surplus(all: &[Stored], keep: usize) -> Vec<&Stored> {
    let stays = newest(&all.iter().map(Stored::age).collect::<Vec<_>>(), keep);
    let mut seen = BTreeSet::new();
    all.iter().filter(|stored| !stays.contains(&stored.sum) || !seen.insert(&stored.sum)).collect()
}

/// Names those apart that have the same id.
pub fn name_apart(all: &mut [Stored]) {
    let mut sums: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for stored in all.iter() {
        sums.entry(stored.id.clone()).or_default().insert(stored.sum.clone());
    }
    for stored in all {
        if sums.get(&stored.id).is_some_and(|sums| sums.len() > 1) {
            stored.name = format!("{}-{}", stored.id, stored.short());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(id: &str, sum: char, made_ms: u64, data: bool) -> Stored {
        Stored {
            name: id.into(),
            id: id.into(),
            sum: sum.to_string().repeat(64),
            made_ms,
            release: None,
            bytes: 1,
            data,
            snapshot: format!("{id}{sum}{made_ms}"),
        }
    }

    #[test]
    fn backups_of_settings_push_none_of_data_out_and_doubles_go() {
        let all = [
            stored("1", 'a', 1, true),
            stored("2", 'b', 2, true),
            stored("2", 'b', 2, true),
            stored("3", 'c', 3, true),
            stored("4", 'd', 4, false),
            stored("5", 'e', 5, false),
            stored("6", 'f', 6, false),
        ];
        let over: Vec<&str> = surplus(&all, 2).into_iter().map(|stored| stored.id.as_str()).collect();
        assert_eq!(over, ["1", "2", "4"]);
        assert_eq!(surplus(&all, 30).len(), 1);
    }

    #[test]
    fn two_backups_with_the_same_id_have_two_names() {
        let mut all = [stored("1", 'a', 1, true), stored("1", 'b', 2, true), stored("2", 'c', 3, true)];
        name_apart(&mut all);
        assert_eq!(all.map(|stored| stored.name), ["1-aaaaaaaa", "1-bbbbbbbb", "2"]);
    }

    #[test]
    fn an_id_from_elsewhere_stays_in_the_folder() {
        for id in ["0001-20261125T185011686", "0002-x.2", "a_b"] {
            assert!(is_id(id), "{id}");
        }
        for id in ["", ".a", "..", "a/b", "../a", "a b", "a,b", &"a".repeat(101)] {
            assert!(!is_id(id), "{id}");
        }
    }
}
