//! The images of local processes: programs, stored by content id, and the tags that name them. Nothing is
//! started here.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Freed, Mode};
use crate::base::next::Next;
use crate::engine::process::home::Processes;
use crate::engine::roles::{Build, Images};
use crate::release::description::{Image, Release};
use crate::stack::definition::Definition;
use crate::stack::names as env;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The names of the two parts of an image that is saved.
const HEAD: &str = "head";
const PROGRAM: &str = "program";

/// The first line of an image, as JSON. The program follows. The content id is the SHA-256 of both.
#[derive(Debug, Serialize, Deserialize)]
pub struct Head {
    /// Version of this format.
    pub version: u32,
    /// The environment that is built into the image.
    pub env: BTreeMap<String, String>,
}

impl Images for Processes {
    fn images(&self, _: Deadline) -> Result<Vec<String>> {
        self.taken_in()
    }

    fn build(&self, build: &Build<'_>, deadline: Deadline) -> Result<BTreeMap<String, Image>> {
        let Build { binary, label, fault } = *build;
        let program = std::fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
        let mut images = BTreeMap::new();
        for service in self.pilot.services() {
            let env = [(env::ROLE, service), (env::VERSION, label), (env::FAULT, fault)];
            let env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            let mut archive = serde_json::to_vec(&Head { version: 1, env })?;
            archive.push(b'\n');
            archive.extend_from_slice(&program);
            let id = self.take_in(&archive)?;
            let tag = format!("{}:latest", self.pilot.image_name(service));
            images.insert(service.to_owned(), Image::new(id, tag));
        }
        self.tag(&images, label, deadline)?;
        Ok(images)
    }

    fn named(&self, name: &str, _: Deadline) -> Result<String> {
        let what = format!("there is no image {name}: local processes have none by name");
        Err(fail(Exit::Usage, what, "name an image with --engine compose"))
    }

    fn provide(
        &self,
        _: &Definition,
        _: &Path,
        _: Option<&str>,
        _: Deadline,
    ) -> Result<BTreeMap<String, Image>> {
        Ok(BTreeMap::new())
    }

    fn tagged(&self, tag: &str, _: Deadline) -> Result<BTreeMap<String, Image>> {
        let tags = self.tags()?;
        let mut images = BTreeMap::new();
        for service in self.pilot.services() {
            let name = self.pilot.image_name(service);
            let Some(id) = tags.get(&format!("{name}:{tag}")) else {
                let known: Vec<&str> = tags.keys().map(String::as_str).collect();
                let what = format!("there is no image {name}:{tag}; there are {}", known.join(", "));
                return Err(fail(Exit::Usage, what, Next::xtask("up").so("to build the source code")));
            };
            images.insert(service.to_owned(), Image::new(id.clone(), format!("{name}:latest")));
        }
        Ok(images)
    }

    fn tag(&self, images: &BTreeMap<String, Image>, tag: &str, _: Deadline) -> Result<()> {
        let name = |service: &str| format!("{}:{tag}", self.pilot.image_name(service));
        self.add_tags(images.iter().map(|(service, image)| (name(service), image.id.clone())))
    }

    fn size(&self, image: &Image, _: Deadline) -> Result<u64> {
        files::size(&self.program(&image.id))
    }

    /// As a tar of head and program, so that services which have the same program share it in the store.
    fn save(
        &self,
        image: &Image,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        _: Deadline,
    ) -> Result<()> {
        let program = self.program(&image.id);
        let mut tar = tar::Builder::new(Vec::new());
        for (name, path) in [(HEAD, program.with_extension("head")), (PROGRAM, program)] {
            let bytes = files::read(&path).with_context(|| format!("there is no image {}", image.id))?;
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes.as_slice())?;
        }
        take(&mut tar.into_inner()?.as_slice())
    }

    /// Older versions have saved the head and the program one after the other.
    fn load(&self, image: &Image, from: &mut dyn Read, _: Deadline) -> Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).with_context(|| format!("cannot read image {}", image.id))?;
        if bytes.first() != Some(&b'{') {
            let mut both = Vec::new();
            for entry in tar::Archive::new(bytes.as_slice()).entries()? {
                entry?.read_to_end(&mut both)?;
            }
            bytes = both;
        }
        let id = format!("sha256:{}", files::sha256_bytes(&bytes));
        ensure!(id == image.id, "what was saved as image {} is the image {id}", image.id);
        self.take_in(&bytes).map(drop)
    }

    fn retag(&self, release: &Release, _: Deadline) -> Result<()> {
        self.add_tags(release.images.values().map(|image| (image.tag.clone(), image.id.clone())))
    }

    fn forget(&self, keep: &[String], _: Deadline) -> Result<Vec<Freed>> {
        let mut keep = keep.to_vec();
        for service in self.pilot.services() {
            keep.extend(self.read_spec(service)?.map(|spec| spec.image));
        }
        let old: Vec<String> = self.taken_in()?.into_iter().filter(|id| !keep.contains(id)).collect();
        let mut tags = self.tags()?;
        tags.retain(|_, id| !old.contains(id));
        files::write_json(&self.tags_path(), &tags, Mode::Plain)?;
        let mut freed = Vec::new();
        for id in old {
            let program = self.program(&id);
            let bytes = files::size(&program)?;
            // The head first, and durably: an image that has one is taken for whole.
            let head = program.with_extension("head");
            std::fs::remove_file(&head).with_context(|| format!("cannot remove {}", head.display()))?;
            files::sync_folder(&self.home.join("images"))?;
            files::remove(&program)?;
            freed.push(Freed { what: format!("program {}", program.display()), bytes });
        }
        freed.extend(self.remove_unfinished()?);
        Ok(freed)
    }
}

impl Processes {
    /// Path of the program of an image.
    pub fn program(&self, image: &str) -> PathBuf {
        self.home.join("images").join(image.trim_start_matches("sha256:"))
    }

    fn tags_path(&self) -> PathBuf {
        self.home.join("tags.json")
    }

    fn tags(&self) -> Result<BTreeMap<String, String>> {
        let path = self.tags_path();
        if path.exists() { files::read_json(&path) } else { Ok(BTreeMap::new()) }
    }

    fn add_tags(&self, more: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let before = self.tags()?;
        let mut tags = before.clone();
        tags.extend(more);
        if tags == before { Ok(()) } else { files::write_json(&self.tags_path(), &tags, Mode::Plain) }
    }

    /// Stores an image under its content id.
    fn take_in(&self, archive: &[u8]) -> Result<String> {
        let id = format!("sha256:{}", files::sha256_bytes(archive));
        let path = self.program(&id);
        let end = archive.iter().position(|b| *b == b'\n').context("not an image archive")?;
        let _: Head = serde_json::from_slice(&archive[..end]).context("not an image archive")?;
        files::write(&path, &archive[end + 1..], Mode::Program)?;
        files::write(&path.with_extension("head"), &archive[..=end], Mode::Plain)?;
        Ok(id)
    }

    /// Content ids of the stored images.
    fn taken_in(&self) -> Result<Vec<String>> {
        let names = files::names(&self.home.join("images"))?;
        Ok(names.iter().filter_map(|name| Some(format!("sha256:{}", name.strip_suffix(".head")?))).collect())
    }

    /// Removes images that are incomplete because a command was killed: they have no head.
    fn remove_unfinished(&self) -> Result<Vec<Freed>> {
        let folder = self.home.join("images");
        let whole = self.taken_in()?;
        let mut names = files::names(&folder)?;
        names.retain(|name| !whole.contains(&format!("sha256:{}", name.trim_end_matches(".head"))));
        let remove = |name: String| {
            let bytes = files::remove(&folder.join(&name))?;
            Ok(Freed { what: format!("incomplete program {name}"), bytes })
        };
        names.into_iter().map(remove).collect()
    }

    /// The head of an image.
    pub fn head(&self, image: &str) -> Result<Head> {
        files::read_json(&self.program(image).with_extension("head"))
    }
}
