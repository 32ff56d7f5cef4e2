//! What differs between two releases, in short: which images, how many settings, which files. Pure. Called by the
//! command `releases list`.

use crate::release::description::{ENVIRONMENT_FILE, Release};
use crate::stack::pilot::MODEL_FILE;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The settings in an env file.
pub type Settings = BTreeMap<String, String>;

/// The differences.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Services that have another image, or that only one of the two has.
    pub images: Vec<String>,
    /// How many settings of the env file differ; none if an env file cannot be read.
    pub settings: Option<usize>,
    /// Other files that differ, by their names in the release.
    pub files: Vec<String>,
}

/// The keys that have different values, or that only one side has.
fn differing<T: PartialEq>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> Vec<String> {
    let added = new.keys().filter(|key| !old.contains_key(*key));
    let others = old.keys().filter(|key| old.get(*key) != new.get(*key));
    let mut all: Vec<String> = others.chain(added).cloned().collect();
    all.sort();
    all
}

/// What the release `new` has otherwise than `old`. `settings` are those of their env files.
pub fn between(old: &Release, new: &Release, settings: Option<(&Settings, &Settings)>) -> Changes {
    let images = |release: &Release| -> BTreeMap<String, String> {
        release.images.iter().map(|(service, image)| (service.clone(), image.id.clone())).collect()
    };
    // The settings are counted, and the engine made the other two of the rest.
    let counted = |name: &String| {
        let env = [old, new].iter().any(|release| release.layout.env.as_ref() == Some(name));
        env || [MODEL_FILE, ENVIRONMENT_FILE].contains(&name.as_str())
    };
    let mut files = differing(&old.files, &new.files);
    files.retain(|name| !counted(name));
    Changes {
        images: differing(&images(old), &images(new)),
        settings: settings.map(|(old, new)| differing(old, new).len()),
        files,
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.images.is_empty() {
            parts.push(format!("images of {}", self.images.join(", ")));
        }
        parts.extend(match self.settings {
            Some(0) => None,
            Some(1) => Some("1 setting".to_owned()),
            Some(count) => Some(format!("{count} settings")),
            None => Some("settings unknown".to_owned()),
        });
        parts.extend(self.files.iter().cloned());
        f.write_str(&if parts.is_empty() { "nothing".to_owned() } else { parts.join("; ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::description::Image;

    fn release(images: &[(&str, &str)], files: &[(&str, &str)]) -> Release {
        let map = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter().map(|(name, sum)| ((*name).to_owned(), (*sum).to_owned())).collect()
        };
        let images = map(images).into_iter().map(|(name, id)| (name, Image::new(id, "x:1".into()))).collect();
        Release { files: map(files), ..Release::unrecorded("v1", "process", images) }
    }

    #[test]
    fn what_differs_is_counted_and_what_is_unknown_is_not_the_same() {
        let old = release(&[("api", "1"), ("db", "1")], &[("compose.yml", "1"), (MODEL_FILE, "1")]);
        let new = release(&[("api", "2"), ("web", "1")], &[("compose.yml", "2"), (MODEL_FILE, "2")]);
        let map = |value: &str| BTreeMap::from([("A".to_owned(), value.to_owned())]);
        let (one, two) = (map("1"), map("2"));
        let changes = between(&old, &new, Some((&one, &two)));
        assert_eq!(changes.to_string(), "images of api, db, web; 1 setting; compose.yml");
        assert_eq!(between(&old, &old, Some((&one, &one))).to_string(), "nothing");
        assert_eq!(between(&old, &old, None).to_string(), "settings unknown");
    }
}
