//! Stored data under Docker: copies volumes into archives, and back. Volumes are found by Compose's project
//! label.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Mode};
use crate::base::proc::cmd;
use crate::engine::compose::client::{Compose, PROFILE, classify, is_hung};
use crate::engine::roles::{Data, Runtime};
use crate::engine::still;
use crate::stack::definition::Resource;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::path::Path;

impl Data for Compose {
    fn stored(&self, deadline: Deadline) -> Result<BTreeSet<String>> {
        let there = self.volumes(deadline)?;
        let all = self.pilot.every_service().map(|service| (&service.name, self.volume(&service.name)));
        // Two services may have one volume. One that belongs to no service of the manifest has its own name.
        let (services, theirs): (BTreeSet<String>, BTreeSet<String>) = all
            .filter(|(_, volume)| there.contains(volume))
            .map(|(name, volume)| (name.clone(), volume))
            .unzip();
        Ok(services.into_iter().chain(there.difference(&theirs).cloned()).collect())
    }

    fn snapshot(&self, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        let volume = self.volume(service);
        ensure!(self.volumes(deadline)?.contains(&volume), "there is no volume {volume}");
        let container = self.container(service, deadline)?;
        let mounted = match &container {
            Some(id) => self.mount(id, &volume, deadline)?.map(|path| format!("{id}:{path}/.")),
            None => None,
        };
        let copy = |from: &str| {
            let copy = cmd(&self.docker, &["cp", from, "-"]).stdout_to(archive);
            // A slow copy is not an engine that does not answer, so a missed deadline is not a host failure.
            let classified = |error| if is_hung(&error) { error } else { classify(error) };
            still::copy(&format!("volume {volume}"), archive, || {
                copy.clone().run(deadline).map(drop).map_err(classified)
            })
        };
        match mounted {
            Some(from) => copy(&from),
            None => self.with_helper(&volume, deadline, |id| copy(&format!("{id}:/data/."))),
        }
    }

    fn restore(&self, dir: &Path, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        let beside = self.pilot.services().all(|own| own != service);
        let profile: &[&str] = if beside { &["--profile", PROFILE] } else { &[] };
        let up = self.compose(dir, deadline)?.args(profile).args(["up", "--no-start", "--no-deps"]);
        let up = up.args(self.no_pull(deadline)?).args([service]);
        up.run(deadline).map_err(classify)?;
        let (volume, id) = (self.volume(service), self.container(service, deadline)?);
        let id = id.with_context(|| format!("{service} has no container"))?;
        let path = self.mount(&id, &volume, deadline)?;
        let path = path.with_context(|| format!("{service} does not use its volume {volume}"))?;
        let copy = cmd(&self.docker, &["cp", "-", &format!("{id}:{path}")]).stdin_from(archive);
        let copied = copy.run(deadline).map(drop);
        copied.map_err(|error| classify(still::told(&format!("into volume {volume}"), archive, error)))
    }

    fn external(&self, service: &str) -> Option<String> {
        let volume = self.volume(service);
        self.defined().any(|other| other.external && other.name == volume).then_some(volume)
    }

    fn remove_data(&self, service: &str, deadline: Deadline) -> Result<()> {
        if let Some(volume) = self.external(service) {
            bail!("volume {volume} of {service} is external, so it is not removed");
        }
        let volume = self.volume(service);
        self.remove(&[service.to_owned()], deadline)?;
        self.docker(&["volume", "rm", "--force", &volume], deadline).map(drop)
    }
}

impl Compose {
    /// The name of the volume of a service: the one in the definition; of an older release the name that
    /// Compose gives by default.
    fn volume(&self, service: &str) -> String {
        let Some(found) = self.pilot.every_service().find(|s| s.name == service) else {
            // A volume that belongs to no service of the manifest is called by its own name.
            return service.to_owned();
        };
        let defined = self.definition.as_ref().and_then(|definition| definition.volumes.get(&found.volume));
        let guessed = || format!("{}_{}", self.pilot.project, found.volume);
        defined.map_or_else(guessed, |volume| volume.name.clone())
    }

    /// The volumes that the definition names.
    fn defined(&self) -> impl Iterator<Item = &Resource> {
        self.definition.iter().flat_map(|definition| definition.volumes.values())
    }

    /// Names of the project's volumes that exist. Those that Compose did not make have no label of the
    /// project: external ones, and ones with a name of their own that existed before.
    fn volumes(&self, deadline: Deadline) -> Result<BTreeSet<String>> {
        let format = "{{.Name}}\t{{.Label \"com.docker.compose.project\"}}";
        let found = self.docker(&["volume", "ls", "--format", format], deadline)?;
        let all = found.lines().filter_map(|line| line.split_once('\t'));
        let own = all.filter(|(name, project)| {
            *project == self.pilot.project || self.defined().any(|volume| volume.name == *name)
        });
        Ok(own.map(|(name, _)| name.to_owned()).collect())
    }

    /// Id of the first container of a service.
    fn container(&self, service: &str, deadline: Deadline) -> Result<Option<String>> {
        let there = self.services(deadline)?;
        Ok(there.get(service).and_then(|service| service.0.first()).map(|instance| instance.handle.clone()))
    }

    /// The path at which a container mounts a volume.
    fn mount(&self, container: &str, volume: &str, deadline: Deadline) -> Result<Option<String>> {
        let format = format!(
            "{{{{range .Mounts}}}}{{{{if eq .Name {volume:?}}}}}{{{{.Destination}}}}{{{{end}}}}{{{{end}}}}"
        );
        let path = self.docker(&["inspect", "--format", &format, container], deadline)?;
        Ok(Some(path.trim().to_owned()).filter(|path| !path.is_empty()))
    }

    /// Mounts a volume that no container uses into an empty helper container, so that it can be read.
    fn with_helper(
        &self,
        volume: &str,
        deadline: Deadline,
        work: impl FnOnce(&str) -> Result<()>,
    ) -> Result<()> {
        let scratch = files::Scratch::new("helper")?;
        let empty = scratch.path().join("empty.tar");
        // Two blocks of zeros are an empty archive (POSIX pax, "ustar Interchange Format").
        files::write(&empty, &[0; 1024], Mode::Plain)?;
        let tag = format!("{}-helper:{}", self.pilot.project, std::process::id());
        self.docker(&["import", &empty.display().to_string(), &tag], deadline)?;
        let create = ["create", "--label", &self.label()["label=".len()..], "--label"];
        let mount = format!("{volume}:/data");
        let more = ["com.docker.compose.oneoff=True", "--volume", &mount, &tag, "none"];
        let made = self.docker(&[create.as_slice(), &more].concat(), deadline);
        let done = made.and_then(|id| {
            let done = work(id.trim());
            self.docker(&["rm", "--force", id.trim()], deadline)?;
            done
        });
        self.docker(&["rmi", &tag], deadline)?;
        done
    }
}
