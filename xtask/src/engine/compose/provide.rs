//! Gets the images that this program does not build: Compose builds them, or the compose file names them and
//! they are pulled if they are not there. Called only by `images`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::base::threads::side_by_side;
use crate::engine::compose::client::{Compose, Generation, classify};
use crate::release::description::Image;
use crate::stack::definition::{Definition, Service};
use anyhow::Result;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How many images are pulled, or asked for, at a time.
const PULLS: usize = 4;

/// Where the image of a service comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This program builds it.
    Ours,
    /// Compose builds it, with this reference.
    Built(String),
    /// The compose file names it.
    Named(String),
}

/// `name:tag`; a name without a tag means `latest`. One with a digest stays as it is.
fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { reference.to_owned() } else { format!("{reference}:latest") }
}

/// The same reference with another tag.
fn retagged(reference: &str, tag: &str) -> String {
    let (folder, last) = reference.rsplit_once('/').map_or(("", reference), |(folder, last)| (folder, last));
    let name = last.split([':', '@']).next().unwrap_or_default();
    if folder.is_empty() { format!("{name}:{tag}") } else { format!("{folder}/{name}:{tag}") }
}

/// Where the image of a service comes from. `ours` is the name that this program gives to an image of the
/// service; `between` is what this Compose puts between the project and the service in the names it makes.
pub fn origin(project: &str, between: char, name: &str, service: &Service, ours: Option<&str>) -> Origin {
    match &service.image {
        Some(image) if ours.is_some_and(|ours| with_tag(image) == with_tag(ours)) => Origin::Ours,
        Some(image) if service.has_build => Origin::Built(with_tag(image)),
        Some(image) => Origin::Named(with_tag(image)),
        None => Origin::Built(with_tag(&format!("{project}{between}{name}"))),
    }
}

impl Compose {
    /// Where the images of the services come from that always start.
    fn origins(&self, definition: &Definition, deadline: Deadline) -> Result<BTreeMap<String, Origin>> {
        let between = match self.generation(deadline)? {
            Generation::Two => '-',
            Generation::One(_) => '_',
        };
        let always = definition.services.iter().filter(|(_, service)| service.profiles.is_empty());
        let origin = |(name, service): (&String, &Service)| {
            let ours = self.pilot.image_name(name);
            (name.clone(), origin(&self.pilot.project, between, name, service, Some(&ours)))
        };
        Ok(always.map(origin).collect())
    }

    /// The images of the services that always start, but for those that this program builds. See
    /// `Images::provide`.
    pub fn provided(
        &self,
        definition: &Definition,
        dir: &Path,
        tag: Option<&str>,
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Image>> {
        let (mut references, mut build) = (BTreeMap::new(), Vec::new());
        for (service, origin) in self.origins(definition, deadline)? {
            match (origin, tag) {
                (Origin::Ours, _) => {}
                (Origin::Named(reference), _) => drop(references.insert(service, reference)),
                (Origin::Built(reference), Some(tag)) => {
                    references.insert(service, retagged(&reference, tag));
                }
                (Origin::Built(reference), None) => {
                    build.push(service.clone());
                    references.insert(service, reference);
                }
            }
        }
        if !build.is_empty() {
            let file = self.contexts(definition, &build, dir, deadline)?.display().to_string();
            let command = self.compose(dir, deadline)?.args(["--file", &file, "build"]).args(&build);
            command.show_errors().run(deadline).map_err(|error| match exit_of(&error) {
                Exit::OverBudget => error,
                _ => {
                    let what = format!("Compose could not build {}: {error:#}", build.join(", "));
                    fail(exit_of(&classify(error)), what, "fix what it says; nothing was begun")
                }
            })?;
        }
        let ids = self.present(&references, deadline)?;
        let image = |(service, reference): (String, String)| {
            let id = ids.get(&reference)?.clone();
            Some((service, Image::new(id, reference)))
        };
        Ok(references.into_iter().filter_map(image).collect())
    }

    /// Writes a compose file with the folders that images are built from: they are in the source, and not in
    /// `dir`.
    fn contexts(
        &self,
        definition: &Definition,
        build: &[String],
        dir: &Path,
        deadline: Deadline,
    ) -> Result<PathBuf> {
        let contexts = build.iter().filter_map(|name| {
            let context = definition.services.get(name)?.context.as_deref()?;
            let folder = if context == "." { self.pilot.pack.clone() } else { self.pilot.pack.join(context) };
            // An address of a repository is no folder.
            let folder = folder.is_dir().then(|| folder.display().to_string().replace('$', "$$"))?;
            Some((name.clone(), json!({ "build": { "context": folder } })))
        });
        let mut all = json!({ "services": contexts.collect::<serde_json::Map<_, _>>() });
        if let Some(format) = self.format(dir, deadline)? {
            all["version"] = format.into();
        }
        let path = dir.join("contexts.json");
        files::write(&path, all.to_string().as_bytes(), Mode::Plain)?;
        Ok(path)
    }

    /// Ids by reference. An image that is not there is pulled; the error names the service that needs it.
    fn present(
        &self,
        wanted: &BTreeMap<String, String>,
        deadline: Deadline,
    ) -> Result<BTreeMap<String, String>> {
        let all: Vec<String> = wanted.values().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        if all.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ids = match self.ids(&all, deadline) {
            Ok(ids) => ids,
            Err(error) if matches!(exit_of(&error), Exit::Host | Exit::OverBudget) => return Err(error),
            // One of them is missing, and docker does not say which.
            Err(_) => {
                let got =
                    side_by_side(PULLS, all.clone(), |reference| self.pulled(&reference, wanted, deadline));
                got.into_iter().collect::<Result<_>>()?
            }
        };
        Ok(all.into_iter().zip(ids).collect())
    }

    fn pulled(
        &self,
        reference: &str,
        wanted: &BTreeMap<String, String>,
        deadline: Deadline,
    ) -> Result<String> {
        let id = || self.ids(&[reference.to_owned()], deadline);
        if let Ok(Some(id)) = id().map(|ids| ids.into_iter().next()) {
            return Ok(id);
        }
        let pull = self.client(&["pull", "--quiet", reference]).run(deadline);
        let found = pull.and_then(|_| id()).map(|ids| ids.into_iter().next());
        let error = match found {
            Ok(Some(id)) => return Ok(id),
            Ok(None) => anyhow::anyhow!("docker does not say its id"),
            Err(error) if exit_of(&error) == Exit::OverBudget => return Err(error),
            Err(error) => error,
        };
        let services = wanted.iter().filter(|(_, other)| *other == reference);
        let services: Vec<&str> = services.map(|(service, _)| service.as_str()).collect();
        let what = format!(
            "image {reference} of {} is not on this machine, and could not be pulled: {error:#}",
            services.join(", ")
        );
        Err(fail(Exit::Usage, what, Next::shell(format!("docker pull {reference}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_ours_or_built_by_compose_or_named_by_the_compose_file() {
        let of = |image: Option<&str>, has_build: bool| {
            let service = Service { image: image.map(str::to_owned), has_build, ..Service::default() };
            origin("shop", '_', "web", &service, Some("scenario-web"))
        };
        assert_eq!(of(Some("scenario-web:latest"), false), Origin::Ours);
        assert_eq!(of(Some("scenario-web:v2"), false), Origin::Named("scenario-web:v2".into()));
        assert_eq!(of(Some("r:5000/team/web"), false), Origin::Named("r:5000/team/web:latest".into()));
        assert_eq!(of(Some("web@sha256:00"), false), Origin::Named("web@sha256:00".into()));
        assert_eq!(of(Some("web:1"), true), Origin::Built("web:1".into()));
        assert_eq!(of(None, true), Origin::Built("shop_web:latest".into()));
        assert_eq!(retagged("r:5000/team/web:1", "2"), "r:5000/team/web:2");
        assert_eq!(retagged("web", "2"), "web:2");
    }
}
