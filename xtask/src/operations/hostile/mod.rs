//! Tests: what comes from outside, as it may come. There is one target for each kind of input; its body takes any bytes,
//! has them read, and panics if something does not hold that must hold of all input. No input is expected to be good.
//! Called by the unit tests, with the seeds in `fuzz/seeds` and random changes of them, and by the fuzz targets in
//! `xtask/fuzz`, which find inputs of their own. What Docker says is in `engine/hostile`.

mod archive;
mod env_file;
mod folder;
mod journal;
mod manifest;
mod sse;

use crate::engine;

/// What is given any bytes.
pub struct Target {
    /// Its name, and that of the folder with its seeds.
    pub name: &'static str,
    /// Has them read. Panics if something does not hold.
    pub body: fn(&[u8]),
    /// How many random changes of its seeds the unit tests give it: some take long.
    pub tries: usize,
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "archive", body: archive::body, tries: 60 },
    Target { name: "docker", body: engine::hostile::body, tries: 250 },
    Target { name: "env_file", body: env_file::body, tries: 400 },
    Target { name: "journal", body: journal::body, tries: 100 },
    Target { name: "manifest", body: manifest::body, tries: 100 },
    Target { name: "sse", body: sse::body, tries: 400 },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;
    use std::collections::BTreeMap;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;

    /// The kept inputs of a target, by name.
    fn seeds(target: &str) -> BTreeMap<String, Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| {
                (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
            })
            .collect()
    }

    /// A few changes: a bit, a byte that means something somewhere, a part that is missing, or is there twice, or is from
    /// another input.
    fn changed(one: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
        const TELLING: &[u8; 24] = b"\0\n\r\"'\\#$={}[]:,.-/ 09ax\xff";
        let mut bytes = one.to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() + 1);
            let end = (at + random.below(40)).min(bytes.len());
            match random.below(7) {
                0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                2 if at < bytes.len() => bytes[at] = random.one(TELLING),
                3 => bytes.insert(at, random.one(TELLING)),
                4 => drop(bytes.drain(at..end)),
                5 => {
                    let part = bytes[at..end].to_vec();
                    let to = random.below(bytes.len() + 1);
                    bytes.splice(to..to, part);
                }
                6 if random.chance(20) => bytes.truncate(at),
                _ => {
                    let from = random.below(other.len() + 1);
                    let part = &other[from..(from + random.below(60)).min(other.len())];
                    bytes.splice(at..end, part.iter().copied());
                }
            }
        }
        bytes
    }

    /// Gives a target its seeds and random changes of them.
    fn attacked(target: &Target) {
        let seeds = seeds(target.name);
        assert!(seeds.len() >= 3, "{} has only {} seeds", target.name, seeds.len());
        let tried = |bytes: &[u8], what: &str| {
            let held = catch_unwind(AssertUnwindSafe(|| (target.body)(bytes)));
            assert!(held.is_ok(), "{}, {what}: \"{}\"", target.name, bytes.escape_ascii());
        };
        seeds.iter().for_each(|(name, bytes)| tried(bytes, name));
        let all: Vec<(&String, &Vec<u8>)> = seeds.iter().collect();
        let mut random = Random::new(14);
        for at in 0..target.tries {
            let (name, one) = all[random.below(all.len())];
            let (_, other) = all[random.below(all.len())];
            tried(&changed(one, other, &mut random), &format!("change {at}, of {name}"));
        }
    }

    #[test]
    fn whatever_comes_from_outside_is_read_or_refused() {
        TARGETS.iter().for_each(attacked);
    }

    /// The search itself: a body with a mistake that only a changed seed shows.
    #[test]
    fn a_mistake_in_reading_is_found() {
        let body = |bytes: &[u8]| assert!(!bytes.ends_with(b"\n\n\n"));
        let target = Target { name: "env_file", body, tries: 100_000 };
        let told = catch_unwind(|| attacked(&target)).unwrap_err();
        let told = told.downcast_ref::<String>().unwrap();
        assert!(told.starts_with("env_file, change ") && told.ends_with("\\n\\n\\n\""), "{told}");
    }
}
