//! The images of a project. They are imported and not built from a Dockerfile: an image is one layer with one
//! program, and each step of a Dockerfile costs a Docker without BuildKit a container (0.8 s). They are found by the
//! project's image names and by the label that they get here.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files::{self, Freed};
use crate::base::next::Next;
use crate::base::threads::side_by_side;
use crate::engine::compose::client::{Compose, classify, steady};
use crate::engine::compose::line::listed;
use crate::engine::compose::pin::TAGS;
use crate::engine::roles::{Build, Images};
use crate::release::description::{Image, Release};
use crate::stack::definition::Definition;
use crate::stack::names as env;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// How much of an image is given to docker at a time, in bytes.
const BLOCK: usize = 1 << 20;

impl Images for Compose {
    fn images(&self, deadline: Deadline) -> Result<Vec<String>> {
        Ok(self.images_there(deadline)?.ids.into_iter().collect())
    }

    fn build(&self, build: &Build<'_>, deadline: Deadline) -> Result<BTreeMap<String, Image>> {
        let Build { binary, label, fault } = *build;
        let program = &self.pilot.manifest.build.as_ref().context("the manifest has no [build]")?.package;
        let scratch = files::Scratch::new("build")?;
        let layer = scratch.path().join("layer.tar");
        write_layer(binary, program, &layer).with_context(|| format!("cannot pack {}", binary.display()))?;
        let project = &self.pilot.project;
        let import = |service: &str| -> Result<(String, Image)> {
            let mut args = vec!["import".to_owned()];
            for line in [
                format!("USER {USER}:{USER}"),
                format!("ENTRYPOINT [{:?}]", format!("/{program}")),
                format!("ENV {}={service} {}={label} {}={fault}", env::ROLE, env::VERSION, env::FAULT),
                format!("LABEL pilot.project={project}"),
            ] {
                args.extend(["--change".to_owned(), line]);
            }
            args.extend([layer.display().to_string(), self.tag_of(service, label)]);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let id = self.docker(&args, deadline)?.trim().to_owned();
            Ok((service.to_owned(), Image::new(id, self.tag_of(service, "latest"))))
        };
        self.pilot.services().map(import).collect()
    }

    fn named(&self, name: &str, deadline: Deadline) -> Result<String> {
        let found = self.ids(&[name.to_owned()], deadline).map_err(|error| match exit_of(&error) {
            Exit::Host | Exit::OverBudget => error,
            _ => fail(Exit::Usage, format!("there is no image {name}"), Next::shell("docker images")),
        })?;
        found.into_iter().next().with_context(|| format!("docker says nothing of the image {name}"))
    }

    fn provide(
        &self,
        definition: &Definition,
        dir: &Path,
        tag: Option<&str>,
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Image>> {
        self.provided(definition, dir, tag, deadline)
    }

    fn tagged(&self, tag: &str, deadline: Deadline) -> Result<BTreeMap<String, Image>> {
        let names: Vec<&str> = self.pilot.services().collect();
        let references: Vec<String> = names.iter().map(|s| self.tag_of(s, tag)).collect();
        let ids = self.ids(&references, deadline).map_err(|e| match exit_of(&e) {
            Exit::Host | Exit::OverBudget => e,
            _ => {
                let what = format!("some images with the tag {tag} are missing: {e:#}");
                fail(Exit::Usage, what, Next::shell(format!("docker images '{}'", self.tag_of("*", "*"))))
            }
        })?;
        Ok(names
            .into_iter()
            .zip(ids)
            .map(|(s, id)| (s.to_owned(), Image::new(id, self.tag_of(s, "latest"))))
            .collect())
    }

    fn tag(&self, images: &BTreeMap<String, Image>, tag: &str, deadline: Deadline) -> Result<()> {
        let there = self.tagged(tag, deadline).unwrap_or_default();
        let same = |service: &String, image: &Image| there.get(service).is_some_and(|t| t.id == image.id);
        for (service, image) in images.iter().filter(|(service, image)| !same(service, image)) {
            self.docker(&["tag", &image.id, &self.tag_of(service, tag)], deadline)?;
        }
        Ok(())
    }

    fn size(&self, image: &Image, deadline: Deadline) -> Result<u64> {
        let size = self.docker(&["image", "inspect", "--format", "{{.Size}}", &image.id], deadline)?;
        size.trim().parse().with_context(|| format!("docker does not say the size of image {}", image.id))
    }

    fn save(
        &self,
        image: &Image,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()> {
        self.client(&["save", &image.id]).read_by(deadline, take).map_err(classify)
    }

    fn load(&self, image: &Image, from: &mut dyn Read, deadline: Deadline) -> Result<()> {
        let give = |to: &mut dyn Write| {
            let mut to = BufWriter::with_capacity(BLOCK, to);
            std::io::copy(from, &mut to).and_then(|_| to.flush()).context("cannot give docker the image")
        };
        let said = self.client(&["load", "--quiet"]).write_by(deadline, give).map_err(classify)?;
        match self.ids(std::slice::from_ref(&image.id), deadline)?.first() {
            Some(id) if *id == image.id => Ok(()),
            _ => bail!("docker loaded image {}, but says {:?}", image.id, said.trim()),
        }
    }

    fn retag(&self, release: &Release, deadline: Deadline) -> Result<()> {
        let there = self.images_there(deadline)?.tags;
        let own = |(service, image): &(&String, &Image)| image.tag == self.tag_of(service, "latest");
        let moved = release.images.iter().filter(own).map(|(_, image)| image);
        let moved = moved.filter(|image| there.get(&image.tag) != Some(&image.id)).collect();
        let tag = |image: &Image| self.docker(&["tag", &image.id, &image.tag], deadline);
        side_by_side(TAGS, moved, tag).into_iter().try_for_each(|moved| moved.map(drop))
    }

    fn forget(&self, keep: &[String], deadline: Deadline) -> Result<Vec<Freed>> {
        let mut freed = Vec::new();
        let oneoff = "label=com.docker.compose.oneoff=True";
        let format = "{{.ID}}\t{{.Names}}";
        let ended = [
            "ps",
            "-a",
            "--filter",
            &self.label(),
            "--filter",
            oneoff,
            "--filter",
            "status=exited",
            "--format",
            format,
        ];
        for (id, name) in self.docker(&ended, deadline)?.lines().filter_map(|line| line.split_once('\t')) {
            self.docker(&["rm", id], deadline)?;
            freed.push(Freed { what: format!("stopped container {name}"), bytes: 0 });
        }
        let used = self.used_images(deadline)?;
        let label = format!("label=pilot.project={}", self.pilot.project);
        // Remove an image of our name only if it has our label too. An image with our name that was not built
        // here may have no other copy, and an image of another name that was built on ours has the label too.
        // A private tag was always made here.
        let built = self.docker(&["images", "--no-trunc", "--quiet", "--filter", &label], deadline)?;
        let built: Vec<&str> = built.lines().collect();
        let pins = self.pins(deadline)?;
        let own = self.own_tags(deadline)?;
        let own = own.into_iter().filter(|(_, id)| built.contains(&id.as_str()));
        let gone: Vec<(String, String)> =
            own.chain(pins).filter(|(_, id)| !keep.contains(id) && !used.contains(id)).collect();
        let (tags, ids): (Vec<String>, Vec<String>) = gone.into_iter().unzip();
        let format = "{{.Size}} {{len .RepoTags}}";
        let told = self.each(&["image", "inspect", "--format", format], &ids, deadline)?.unwrap_or_default();
        let mut left: BTreeMap<&String, (u64, usize)> = BTreeMap::new();
        for (id, line) in ids.iter().zip(told.lines()) {
            let numbers =
                line.split_once(' ').and_then(|(size, tags)| Some((size.parse().ok()?, tags.parse().ok()?)));
            left.insert(id, numbers.context("cannot parse the output of docker image inspect")?);
        }
        for (tag, id) in tags.iter().zip(&ids) {
            self.docker(&["rmi", tag], deadline)?;
            // The space is free when its last tag is gone.
            let bytes = left.get_mut(id).map_or(0, |(size, tags)| {
                *tags = tags.saturating_sub(1);
                if *tags == 0 { *size } else { 0 }
            });
            freed.push(Freed { what: format!("image {tag}"), bytes });
        }
        Ok(freed)
    }
}

/// The images of an engine.
#[derive(Debug, Default)]
pub struct ImagesThere {
    /// Their content ids.
    pub ids: BTreeSet<String>,
    /// The same by their tags.
    pub tags: BTreeMap<String, String>,
}

impl ImagesThere {
    /// From `GET /images/json`.
    fn read(answer: &Value) -> Result<Self> {
        let mut there = Self::default();
        for image in listed(answer)? {
            let id = image["Id"].as_str().context("the engine lists an image without its id")?;
            let tags = image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
            there.tags.extend(tags.map(|tag| (tag.to_owned(), id.to_owned())));
            there.ids.insert(id.to_owned());
        }
        Ok(there)
    }
}

impl Compose {
    /// The images of the engine.
    pub fn images_there(&self, deadline: Deadline) -> Result<ImagesThere> {
        ImagesThere::read(&self.get("/images/json", deadline)?)
    }

    /// The tags of the project's image names, with the ids of their images.
    pub fn own_tags(&self, deadline: Deadline) -> Result<BTreeMap<String, String>> {
        let names: Vec<String> =
            self.pilot.services().map(|service| self.pilot.image_name(service)).collect();
        let mut all = self.images_there(deadline)?.tags;
        all.retain(|tag, _| {
            tag.rsplit_once(':').is_some_and(|(name, _)| names.iter().any(|own| own == name))
        });
        Ok(all)
    }

    /// Content ids of the images that the project's containers use, also stopped ones.
    pub fn used_images(&self, deadline: Deadline) -> Result<Vec<String>> {
        let text = steady(deadline, || {
            let ids = self.listed(&["ps", "-a", "--quiet"], deadline)?;
            self.each(&["inspect", "--type", "container", "--format", "{{.Image}}"], &ids, deadline)
        })?;
        Ok(text.unwrap_or_default().lines().map(str::to_owned).collect())
    }
}

/// The user of the services, and the owner of their data.
const USER: u64 = 65532;

/// The one layer of every image: the program, and the folder for stored data, whose owner a new volume gets. It has
/// no dates, so the same program always gives the same layer, which images share.
fn write_layer(binary: &Path, program: &str, to: &Path) -> Result<()> {
    let mut layer = tar::Builder::new(std::fs::File::create(to)?);
    let mut add = |name: &str, kind: tar::EntryType, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(USER);
        header.set_gid(USER);
        header.set_size(bytes.len() as u64);
        layer.append_data(&mut header, name, bytes)
    };
    add(program, tar::EntryType::Regular, &std::fs::read(binary)?)?;
    add("data/", tar::EntryType::Directory, &[])?;
    layer.into_inner()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_image_is_known_by_its_id_and_by_each_of_its_tags() {
        let all =
            json!([{"Id": "sha256:1", "RepoTags": ["a:1", "b:1"]}, {"Id": "sha256:2", "RepoTags": null}]);
        let there = ImagesThere::read(&all).unwrap();
        assert_eq!(there.ids.into_iter().collect::<Vec<_>>(), ["sha256:1", "sha256:2"]);
        assert_eq!(there.tags.values().collect::<Vec<_>>(), ["sha256:1", "sha256:1"]);
        for none in [json!(null), json!([{"RepoTags": ["a:1"]}])] {
            assert!(ImagesThere::read(&none).is_err(), "{none}");
        }
    }
}
