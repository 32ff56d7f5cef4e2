//! Stored data under Docker: the volumes of the project's services, into archives and back, and taking
//! the project down. Volumes, networks and containers are found by Compose's project label.

use super::{Compose, PROFILE, blame, is_hung};
use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::files::Mode;
use crate::base::proc::cmd;
use crate::engine::roles::{Engine, Extent};
use crate::engine::still;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;

impl Compose {
    /// Volume of a service as Compose names it.
    pub(super) fn volume(&self, service: &str) -> Result<String> {
        let found = self.pilot.every_service().find(|s| s.name == service);
        // Data of no service that the manifest names goes by its volume's own name.
        Ok(found.map_or_else(|| service.to_owned(), |s| format!("{}_{}", self.pilot.project, s.volume)))
    }

    /// Names of the project's volumes.
    pub(super) fn volumes(&self, deadline: Deadline) -> Result<Vec<String>> {
        let found = self.docker(&["volume", "ls", "--quiet", "--filter", &self.label()], deadline)?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    /// The services that these volumes belong to; a volume of none goes by its own name, because a teardown
    /// takes it too.
    pub(super) fn services_of(&self, volumes: &[String]) -> BTreeSet<String> {
        let service = |volume: &String| {
            let all = self.pilot.every_service();
            let of = |name: &str| self.volume(name).is_ok_and(|own| own == *volume);
            all.map(|s| &s.name).find(|name| of(name)).unwrap_or(volume).clone()
        };
        volumes.iter().map(service).collect()
    }

    /// Copies a volume as of one moment; the services may be writing meanwhile.
    pub(super) fn save_volume(&self, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        let volume = self.volume(service)?;
        ensure!(self.volumes(deadline)?.contains(&volume), "there is no volume {volume}");
        let container = self.observe(deadline)?.services.get(service).map(|s| s.handle.clone());
        let mounted = match &container {
            Some(id) => self.mount(id, &volume, deadline)?.map(|path| format!("{id}:{path}/.")),
            None => None,
        };
        let copy = |from: &str| {
            let copy = cmd(&self.docker, &["cp", from, "-"]).stdout_to(archive);
            // Much to copy takes long: that is not an engine that does not answer.
            let blamed = |error| if is_hung(&error) { error } else { blame(error) };
            still::copy(&format!("volume {volume}"), archive, || {
                copy.clone().run(deadline).map(drop).map_err(blamed)
            })
        };
        match mounted {
            Some(from) => copy(&from),
            None => self.with_helper(&volume, deadline, |id| copy(&format!("{id}:/data/."))),
        }
    }

    /// Where a container has a volume.
    fn mount(&self, container: &str, volume: &str, deadline: Deadline) -> Result<Option<String>> {
        let format = format!(
            "{{{{range .Mounts}}}}{{{{if eq .Name {volume:?}}}}}{{{{.Destination}}}}{{{{end}}}}{{{{end}}}}"
        );
        let path = self.docker(&["inspect", "--format", &format, container], deadline)?;
        Ok(Some(path.trim().to_owned()).filter(|path| !path.is_empty()))
    }

    /// Gives a volume that no container has to one with nothing in it, so that it can be read.
    fn with_helper(
        &self,
        volume: &str,
        deadline: Deadline,
        work: impl FnOnce(&str) -> Result<()>,
    ) -> Result<()> {
        let scratch = files::Scratch::new("helper")?;
        let empty = scratch.path().join("empty.tar");
        // Two blocks of zeros: the end of an archive (POSIX pax, "ustar Interchange Format").
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

    /// Fills a volume. The service's container is made first: Docker gives a new volume the owner that
    /// the image has for its folder.
    pub(super) fn restore_volume(
        &self,
        dir: &Path,
        service: &str,
        archive: &Path,
        deadline: Deadline,
    ) -> Result<()> {
        let beside = self.pilot.services().all(|own| own != service);
        let profile: &[&str] = if beside { &["--profile", PROFILE] } else { &[] };
        let up = self.compose(dir, deadline)?.args(profile).args(["up", "--no-start", "--no-deps"]);
        let up = up.args(self.no_pull(deadline)?).args([service]);
        up.run(deadline).map_err(blame)?;
        let (volume, id) = (self.volume(service)?, self.container(service, deadline)?);
        let path = self.mount(&id, &volume, deadline)?;
        let path = path.with_context(|| format!("{service} does not use its volume {volume}"))?;
        let copy = cmd(&self.docker, &["cp", "-", &format!("{id}:{path}")]).stdin_from(archive);
        let copied = copy.run(deadline).map(drop);
        copied.map_err(|error| blame(still::told(&format!("into volume {volume}"), archive, error)))
    }

    /// By label and not by `compose down`: that needs a compose file, and the tree's may be broken.
    pub(super) fn take_down(&self, extent: Extent, deadline: Deadline) -> Result<()> {
        let ids = self.every_container(deadline)?;
        if !ids.is_empty() {
            let mut args = vec!["rm", "--force"];
            args.extend(ids.iter().map(String::as_str));
            self.docker(&args, deadline)?;
        }
        let kinds: &[&str] = if extent == Extent::Services { &["network"] } else { &["network", "volume"] };
        for kind in kinds {
            let found = self.docker(&[kind, "ls", "--quiet", "--filter", &self.label()], deadline)?;
            for name in found.lines() {
                self.docker(&[kind, "rm", name], deadline)?;
            }
        }
        if extent == Extent::Everything {
            for tag in self.own_tags(deadline)? {
                self.docker(&["rmi", &tag], deadline)?;
            }
        }
        Ok(())
    }

    /// One-off containers too.
    fn every_container(&self, deadline: Deadline) -> Result<Vec<String>> {
        let found =
            self.docker(&["ps", "-a", "--no-trunc", "--quiet", "--filter", &self.label()], deadline)?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    /// What the project has, images apart, by name.
    pub(super) fn list_belongings(&self, deadline: Deadline) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for (kind, args) in [
            ("container", ["ps", "-a", "--format", "{{.Names}}"].as_slice()),
            ("volume", &["volume", "ls", "--format", "{{.Name}}"]),
            ("network", &["network", "ls", "--format", "{{.Name}}"]),
        ] {
            let found = self.docker(&[args, &["--filter", &self.label()]].concat(), deadline)?;
            let mut names: Vec<String> = found.lines().map(|name| format!("{kind} {name}")).collect();
            names.sort_unstable();
            all.append(&mut names);
        }
        Ok(all)
    }

    /// The tags of the project's own image names.
    pub(super) fn own_tags(&self, deadline: Deadline) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for service in self.pilot.services() {
            let format = "{{.Repository}}:{{.Tag}}";
            let tags =
                self.docker(&["images", "--format", format, &self.pilot.image_name(service)], deadline)?;
            all.extend(tags.lines().filter(|tag| !tag.ends_with(":<none>")).map(str::to_owned));
        }
        Ok(all)
    }
}
