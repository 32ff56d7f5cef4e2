//! A stack for a rehearsal: the last known-good release, written into a folder of its own, so that it shares no port,
//! image name, container, volume or network with the real stack. Called by `rehearsal`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::engine::carry;
use crate::engine::roles::Engine;
use crate::rehearsal::apart::{Own, apart};
use crate::release::description::{Image, Release, mode_of};
use crate::release::store::Store;
use crate::stack::definition::{Definition, Port, Source};
use crate::stack::pilot::Pilot;
use crate::stack::ports;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

/// The tag of the rehearsal's images.
const TAG: &str = "drill";

/// The time limit for images that the engine has lost.
const IMAGES: Duration = Duration::from_secs(300);

/// The real stack, as its last known-good release has it.
pub struct Original {
    store: Store,
    release: Release,
    definition: Definition,
}

impl Original {
    /// Errors (exit 6): there is no such release.
    pub fn of(real: &Pilot) -> Result<Self> {
        let store = Store::new(&real.state);
        let release = store.known_good()?.into_iter().next().ok_or_else(|| {
            let what = "a drill rehearses the way back to a known-good release, and there is none";
            fail(Exit::NoRelease, what, Next::xtask("up"))
        })?;
        let definition = store.definition(&release)?;
        let definition =
            definition.with_context(|| format!("release {} does not say what its stack is", release.id))?;
        Ok(Self { store, release, definition })
    }

    /// Writes the files for `project` into `to`. Returns its ports, held until its services may start.
    pub fn write(&self, project: &str, to: &Path) -> Result<Vec<TcpListener>> {
        let (mut own, held) = self.own(project)?;
        let layout = &self.release.layout;
        for name in self.release.files.keys() {
            files::copy(&self.store.file(&self.release.id, name), &to.join(name), mode_of(name, layout))?;
        }
        for name in layout.compose.iter().chain(&layout.included) {
            let path = to.join(name);
            let text = apart(&files::read_text(&path)?, &mut own)
                .with_context(|| format!("cannot make a separate stack from {name}"))?;
            files::write(&path, text.as_bytes(), Mode::Plain)?;
        }
        Ok(held)
    }

    /// The ports and images that the rehearsal has instead.
    fn own(&self, project: &str) -> Result<(Own, Vec<TcpListener>)> {
        let services = &self.definition.services;
        let published = |port: &&Port| port.published.is_some();
        let count = services.values().flat_map(|service| &service.ports).filter(published).count();
        let held = ports::free_ports(count, project)?;
        let mut free = held.iter();
        let mut own = Own::default();
        for (name, service) in services {
            let mut changed = service.ports.clone();
            for port in changed.iter_mut().filter(|port| port.published.is_some()) {
                let listener = free.next().context("too few free ports")?;
                port.published = Some(listener.local_addr()?.port());
            }
            own.ports.insert(name.clone(), changed);
            if self.release.images.contains_key(name) {
                own.images.insert(name.clone(), format!("{project}-{name}:{TAG}"));
            }
        }
        Ok((own, held))
    }

    /// Gives the images of the release the names that the rehearsal has for them. Those that the engine has lost are
    /// loaded.
    pub fn name_images(&self, engine: &dyn Engine) -> Result<()> {
        let deadline = Deadline::after(IMAGES);
        let there = engine.images(deadline)?;
        let lost = self.images().values().filter(|image| !there.contains(&image.id));
        carry::load(lost, engine, &self.store, IMAGES, Deadline::after(Duration::MAX))?;
        engine.tag(self.images(), TAG, deadline)
    }

    /// The images of the release, by service.
    pub fn images(&self) -> &BTreeMap<String, Image> {
        &self.release.images
    }

    /// Errors (exit 2) if the two stacks would touch each other.
    pub fn check_apart(&self, own: &Definition) -> Result<()> {
        let shared = shared(&self.definition, own);
        if shared.is_empty() {
            return Ok(());
        }
        let what = format!("the drill would touch what the real stack uses: {}", shared.join(", "));
        Err(fail(Exit::Usage, what, "change that in the compose file, or practise on another machine"))
    }
}

/// What a rehearsal shares with the real stack.
fn shared(real: &Definition, own: &Definition) -> Vec<String> {
    let mut found = Vec::new();
    for (kind, theirs, ours) in
        [("volume", &real.volumes, &own.volumes), ("network", &real.networks, &own.networks)]
    {
        let ours: Vec<&String> = ours.values().map(|resource| &resource.name).collect();
        let both = theirs.values().filter(|resource| ours.contains(&&resource.name));
        found.extend(both.map(|resource| format!("{kind} {}", resource.name)));
    }
    let ports = |all: &Definition| -> Vec<u16> {
        all.services.values().flat_map(|service| &service.ports).filter_map(|port| port.published).collect()
    };
    let theirs = ports(real);
    found.extend(ports(own).iter().filter(|port| theirs.contains(port)).map(|port| format!("port {port}")));
    for (name, service) in &own.services {
        for mount in service.mounts.iter().filter(|mount| !mount.read_only) {
            if let Source::Bind(path) = &mount.source
                && path.starts_with('/')
            {
                found.push(format!("{path}, which {name} may write"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::definition::{Mount, Resource, Service};

    fn stack(project: &str, port: u16, mounts: &[(&str, bool)]) -> Definition {
        let resource = |name: String| Resource { name, external: false };
        let port = Port { host_ip: None, published: Some(port), target: 80, protocol: "tcp".into() };
        let mount = |(path, read_only): &(&str, bool)| Mount {
            source: Source::Bind((*path).into()),
            target: "/x".into(),
            read_only: *read_only,
            selinux: None,
        };
        let mounts = mounts.iter().map(mount).collect();
        let web = Service { ports: vec![port], mounts, ..Service::default() };
        Definition::new(
            [("web".to_owned(), web)].into(),
            [("data".to_owned(), resource(format!("{project}_data")))].into(),
            [("default".to_owned(), resource(format!("{project}_default")))].into(),
        )
    }

    #[test]
    fn what_two_stacks_share_is_found() {
        let real = stack("shop", 80, &[]);
        assert_eq!(shared(&real, &stack("drill", 81, &[("/etc/hosts", true), ("conf", false)])), [""; 0]);
        assert_eq!(
            shared(&real, &stack("shop", 80, &[("/srv", false)])),
            ["volume shop_data", "network shop_default", "port 80", "/srv, which web may write"]
        );
    }
}
