//! The images of local processes: programs that were taken in by their content, and the tags that lead to them.
//! Nothing is started here.

use super::Processes;
use crate::base::files;
use crate::base::files::{Freed, Mode};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// First line of an image archive; the program follows. The content id is the checksum of both.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) version: u32,
    pub(super) env: BTreeMap<String, String>,
}

impl Processes {
    /// Programs that were taken in, by image id.
    pub(super) fn program(&self, image: &str) -> PathBuf {
        self.home.join("images").join(image.trim_start_matches("sha256:"))
    }

    pub(super) fn tags_path(&self) -> PathBuf {
        self.home.join("tags.json")
    }

    pub(super) fn tags(&self) -> Result<BTreeMap<String, String>> {
        let path = self.tags_path();
        if path.exists() { files::read_json(&path) } else { Ok(BTreeMap::new()) }
    }

    pub(super) fn add_tags(&self, more: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let before = self.tags()?;
        let mut tags = before.clone();
        tags.extend(more);
        if tags == before { Ok(()) } else { files::write_json(&self.tags_path(), &tags, Mode::Plain) }
    }

    /// Takes a program in under its content id.
    pub(super) fn take_in(&self, archive: &[u8]) -> Result<String> {
        let id = format!("sha256:{}", files::sha256_bytes(archive));
        let path = self.program(&id);
        let end = archive.iter().position(|b| *b == b'\n').context("not an image archive")?;
        let _: Head = serde_json::from_slice(&archive[..end]).context("not an image archive")?;
        files::write(&path, &archive[end + 1..], Mode::Program)?;
        files::write(&path.with_extension("head"), &archive[..=end], Mode::Plain)?;
        Ok(id)
    }

    /// Content ids of the programs that were taken in.
    pub(super) fn images(&self) -> Result<Vec<String>> {
        let names = files::names(&self.home.join("images"))?;
        Ok(names.iter().filter_map(|name| Some(format!("sha256:{}", name.strip_suffix(".head")?))).collect())
    }

    /// What was being taken in when a command was killed: it has no head.
    pub(super) fn remove_halves(&self) -> Result<Vec<Freed>> {
        let folder = self.home.join("images");
        let whole = self.images()?;
        let mut names = files::names(&folder)?;
        names.retain(|name| !whole.contains(&format!("sha256:{}", name.trim_end_matches(".head"))));
        let remove = |name: String| {
            let bytes = files::remove(&folder.join(&name))?;
            Ok(Freed { what: format!("half a program, {name}"), bytes })
        };
        names.into_iter().map(remove).collect()
    }

    pub(super) fn head(&self, image: &str) -> Result<Head> {
        files::read_json(&self.program(image).with_extension("head"))
    }
}
