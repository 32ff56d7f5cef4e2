//! The stack by the manifest of one release. To close the gate, copy data and keep evidence, the manifest of
//! the release that runs counts. To apply, check and open, the manifest of the target release counts. `up`
//! uses the manifest of the source. Each is a `View`, so code that has one view cannot use another manifest
//! by mistake. Made by `Session`.

use crate::base::deadline::Deadline;
use crate::checks::target::Target;
use crate::deploy::drift::Wanted;
use crate::deploy::gate::Gateway;
use crate::deploy::observe::{self, Observation};
use crate::engine::reach::clients;
use crate::engine::roles::Engine;
use crate::release::description::Release;
use crate::release::store::Store;
use crate::stack::definition::{Definition, Environment};
use crate::stack::envfile::EnvFile;
use crate::stack::manifest::Manifest;
use crate::stack::model::Service;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// The stack by one manifest.
pub struct View {
    /// The pilot with that manifest.
    pub pilot: Pilot,
    /// The engine, by that manifest.
    pub engine: Box<dyn Engine>,
    /// The release that has this manifest; none if it is the manifest of the source.
    pub release: Option<Release>,
    /// The settings of that release, or of the source; none if they cannot be read.
    pub env: Option<EnvFile>,
    /// The environment of each service of that release; none if it is not known.
    pub environment: Option<Environment>,
}

impl View {
    /// By the manifest of a release. It is an error if its manifest, its model or its settings cannot be
    /// read.
    pub fn of(pilot: &Pilot, engine: &dyn Engine, store: &Store, release: &Release) -> Result<Self> {
        let manifest = Manifest::in_folder(&store.dir(&release.id))?;
        let (layout, definition) = (release.layout.clone(), store.definition(release)?);
        let pilot = Pilot { manifest, layout, definition, ..pilot.clone() };
        let engine = engine.for_stack(&pilot)?;
        let (env, environment) = (store.settings(release)?, store.environment(release)?);
        Ok(Self { pilot, engine, release: Some(release.clone()), env: Some(env), environment })
    }

    /// By the manifest of the source, or its substitute.
    pub fn tree(pilot: &Pilot, engine: &dyn Engine) -> Result<Self> {
        let (engine, env) = (engine.for_stack(pilot)?, pilot.env().ok());
        Ok(Self { pilot: pilot.clone(), engine, release: None, env, environment: None })
    }

    /// By the manifest of the release that runs: the one that is recorded, or the one whose images run. If
    /// what runs belongs to no known release, by the manifest of the source, without a release.
    pub fn running(pilot: &Pilot, engine: &dyn Engine, store: &Store, deadline: Deadline) -> Result<Self> {
        let by = |release: &Release| Self::of(pilot, engine, store, release).ok();
        if let Some(view) = store.current().ok().flatten().and_then(|release| by(&release)) {
            return Ok(view);
        }
        let limit = deadline.within(pilot.manifest.limits.engine);
        let services = engine.services(limit).unwrap_or_default();
        let releases = store.list().map(|(all, _)| all).unwrap_or_default();
        let found = releases.iter().rev().filter(|release| runs(&services, release)).find_map(by);
        found.map_or_else(|| Self::tree(pilot, engine), Ok)
    }

    /// The settings. It is an error if they could not be read.
    pub fn env(&self) -> Result<&EnvFile> {
        self.env.as_ref().with_context(|| format!("{} cannot be read", self.pilot.env_path.display()))
    }

    /// What the release wants of the engine.
    pub fn wanted(&self) -> Wanted {
        let definition = self.pilot.definition.as_ref().filter(|_| self.environment.is_some());
        let optional =
            self.pilot.every_service().filter(|name| self.pilot.services().all(|own| own != *name));
        let observability = self.pilot.manifest.observability.iter().map(|service| service.name.clone());
        Wanted {
            file: self.env.as_ref().map(EnvFile::map).unwrap_or_default(),
            environment: self.environment.clone(),
            data: definition.map(Definition::own_data),
            beside: optional.map(str::to_owned).chain(observability).collect(),
        }
    }

    /// The gateway, with the port and token of these settings.
    pub fn gateway(&self, limit: Duration) -> Result<Gateway> {
        let mut all = clients(&self.pilot, self.engine.as_ref(), self.env()?, limit)?;
        let client = all.remove(self.pilot.gateway()).context("pilot.toml names no gateway")?;
        Ok(Gateway::new(client, self.pilot.manifest.gate()?))
    }

    /// The settings and limits that the smoke checks use.
    pub fn target(&self) -> Result<Target> {
        Target::new(&self.pilot, self.engine.as_ref(), self.env()?)
    }

    /// Observes the stack by this view. `stored` is the engine that knows which data exists: the target
    /// release may use other names for volumes.
    pub fn observe(&self, stored: &dyn Engine, deadline: Deadline) -> Observation {
        observe::observe(&self.pilot, self.engine.as_ref(), stored, self.env.as_ref(), deadline)
    }
}

/// Do exactly the images of this release run?
fn runs(services: &BTreeMap<String, Service>, release: &Release) -> bool {
    let same = |(service, image): (&String, &crate::release::description::Image)| {
        services.get(service).is_some_and(|service| service.has_image(&image.id))
    };
    !release.images.is_empty() && release.images.iter().all(same)
}
