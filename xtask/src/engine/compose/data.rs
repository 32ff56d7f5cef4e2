//! Stored data under Docker: copies volumes into archives, and back. Volumes are found by Compose's project
//! label.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Mode};
use crate::base::packed::pass;
use crate::base::proc::{RunError, cmd};
use crate::engine::compose::client::{Compose, PROJECT, classify, exec_code, is_hung, steady};
use crate::engine::copying;
use crate::engine::roles::{Data, Runtime, Use, User};
use crate::release::description::Release;
use crate::stack::definition::Resource;
use crate::stack::manifest::{Manifest, Service};
use crate::stack::model::Instance;
use anyhow::{Context, Error, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::time::Duration;

/// The time between two attempts to pause a container.
const AGAIN: Duration = Duration::from_millis(200);

impl Data for Compose {
    fn stored(&self, deadline: Deadline) -> Result<BTreeSet<String>> {
        let there = self.volumes(deadline)?;
        let all = self.data_volumes();
        // A volume that the stack does not know has its own name.
        let (names, theirs): (BTreeSet<String>, BTreeSet<String>) =
            all.into_iter().filter(|(_, volume)| there.contains(volume)).unzip();
        Ok(names.into_iter().chain(there.difference(&theirs).cloned()).collect())
    }

    fn bytes(&self, data: &str, deadline: Deadline) -> Result<Option<u64>> {
        let volume = self.volume(data);
        let format = "{{range .Volumes}}{{.Name}}\t{{.Size}}\n{{end}}";
        let found = self.docker(&["system", "df", "--verbose", "--format", format], deadline)?;
        let all = found.lines().filter_map(|line| line.split_once('\t'));
        Ok(all.filter(|(name, _)| *name == volume).find_map(|(_, size)| bytes_of(size)))
    }

    fn users(&self, service: &str, deadline: Deadline) -> Result<Vec<User>> {
        let volume = self.volume(service);
        self.users_of(&volume, deadline, &|labels| {
            let text = |name: &str| labels.get(name)?.as_str().map(str::to_owned);
            let own = text("com.docker.compose.project")? == self.pilot.project;
            own.then(|| text("com.docker.compose.service").unwrap_or_default())
        })
    }

    fn pause(&self, handles: &[String], deadline: Deadline) -> Result<()> {
        self.wait_for_probes(handles, deadline)?;
        let mut open = handles.to_vec();
        deadline.poll(AGAIN, || match self.each(&["pause"], &open, deadline) {
            // The kernel can be too busy to stop all processes of a container at once. Then runc lets them run on.
            Err(error) if format!("{error:#}").contains("unable to freeze") => {
                let paused = ["ps", "--quiet", "--no-trunc", "--filter", "status=paused"];
                let paused = self.listed(&paused, deadline).unwrap_or_default();
                open.retain(|id| !paused.contains(id));
                Continue(error)
            }
            ended => Break(ended.map(drop)),
        })?
    }

    fn unpause(&self, handles: &[String], deadline: Deadline) -> Result<()> {
        unpause_at(&self.docker, &self.way.options, handles, deadline).map_err(classify)
    }

    fn snapshot(&self, service: &str, into: &mut dyn Write, deadline: Deadline) -> Result<()> {
        let volume = self.volume(service);
        ensure!(self.volumes(deadline)?.contains(&volume), "there is no volume {volume}");
        let mounted = self.mounted(service, &volume, deadline)?.map(|(id, path)| format!("{id}:{path}/."));
        match mounted {
            Some(from) => self.copy_from(&from, &volume, into, deadline),
            None => self.copy_out(&volume, into, deadline),
        }
    }

    fn restore(
        &self,
        release: &Release,
        dir: &Path,
        service: &str,
        from: &mut dyn Read,
        deadline: Deadline,
    ) -> Result<()> {
        let user = self.user_services(service).into_iter().next();
        let user = user.with_context(|| format!("no service of the release uses the data {service}"))?;
        let compose = self.compose_release(release, dir, deadline)?;
        // A service of a profile is started if it is named.
        let up = compose.args(["up", "--no-start", "--no-deps"]);
        let up = up.args(self.no_pull(deadline)?).args([&user]);
        up.run(deadline).map_err(classify)?;
        let volume = self.volume(service);
        ensure!(self.volumes(deadline)?.contains(&volume), "{user} does not use the volume {volume}");
        self.fill(&volume, from, deadline)
    }

    fn dump(
        &self,
        instance: &Instance,
        words: &[String],
        into: &mut dyn Write,
        deadline: Deadline,
    ) -> Result<()> {
        let dump = self.client(&["exec", &instance.handle]).args(words);
        dump.run_into(into, deadline).map_err(|error| told_of_program(instance, words, error))
    }

    fn feed(
        &self,
        instance: &Instance,
        words: &[String],
        from: &mut dyn Read,
        deadline: Deadline,
    ) -> Result<()> {
        let feed = self.client(&["exec", "--interactive", &instance.handle]).args(words);
        let fed = feed.write_by(deadline, |into| Ok(pass(from, into).map(drop)?));
        fed.map(drop).map_err(|error| told_of_program(instance, words, error))
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
        // Only a volume of the project: the name may come from a backup of another release.
        if !self.volumes(deadline)?.contains(&volume) {
            return Ok(());
        }
        self.remove_helpers(deadline)?;
        self.remove(&self.user_services(service), deadline)?;
        self.docker(&["volume", "rm", "--force", &volume], deadline).map(drop)
    }
}

/// A size as Docker writes it, with four digits: `1.234GB`. None for `N/A`.
fn bytes_of(size: &str) -> Option<u64> {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let at = size.find(|c: char| c.is_ascii_alphabetic())?;
    let power = UNITS.iter().position(|unit| *unit == &size[at..])?;
    Some((size[..at].parse::<f64>().ok()? * 1000_f64.powi(power as i32)) as u64)
}

/// Docker ends with the code of the program, and with one of two of its own if the container has no such program; Docker
/// 20.10 says so where the program prints. One that hangs goes on in its container after we have given up.
fn told_of_program(instance: &Instance, words: &[String], error: Error) -> Error {
    let program = words.first().map(String::as_str).unwrap_or_default();
    let broke_off = |cause: &std::io::Error| cause.kind() == ErrorKind::BrokenPipe;
    if matches!(error.downcast_ref(), Some(RunError::Status(_, Some(126 | 127)))) {
        error.context(format!("the container cannot run {program}, or what {program} calls"))
    } else if exec_code(&error).is_some() {
        error
    } else if is_hung(&error) {
        let top = format!("docker top {}", instance.handle);
        error.context(format!(
            "{program} did not end in time, and may still run in its container (`{top}` shows it)"
        ))
    } else if error.chain().filter_map(|cause| cause.downcast_ref()).any(broke_off) {
        error.context(format!("{program} ended before it had read everything"))
    } else {
        classify(error)
    }
}

/// Unpauses containers by their ids. One that is not paused, or is gone, is passed over.
pub fn unpause(docker: &Path, handles: &[String], deadline: Deadline) -> Result<()> {
    unpause_at(docker, &[], handles, deadline)
}

/// The same at the daemon that these options of docker lead to.
pub fn unpause_at(docker: &Path, options: &[String], handles: &[String], deadline: Deadline) -> Result<()> {
    let words: Vec<&str> = handles.iter().map(String::as_str).collect();
    let client = |args: &[&str]| cmd(docker, &[]).args(options).args(args);
    let Err(error) = client(&[&["unpause"], words.as_slice()].concat()).run(deadline) else {
        return Ok(());
    };
    let listed = ["ps", "--no-trunc", "--quiet", "--filter", "status=paused"];
    let paused = client(&listed).run(deadline)?;
    if paused.lines().any(|id| words.contains(&id)) { Err(error) } else { Ok(()) }
}

/// A container of `docker inspect` that mounts this volume, and that is not down.
/// Its service is what `service` finds in its labels; none if it is not of the stack.
pub fn user(container: &Value, volume: &str, service: &dyn Fn(&Value) -> Option<String>) -> Option<User> {
    let text = |pointer: &str| container.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    // The filter of Docker finds a volume also by where it is mounted.
    let mounts = container.pointer("/Mounts").and_then(Value::as_array)?;
    mounts.iter().find(|mount| mount["Name"] == volume)?;
    let state = match text("/State/Status") {
        "paused" => Use::Paused,
        "restarting" => Use::Restarts,
        "exited" | "created" | "dead" | "removing" => return None,
        _ => Use::Runs,
    };
    Some(User {
        handle: text("/Id").to_owned(),
        name: text("/Name").trim_start_matches('/').to_owned(),
        service: container.pointer("/Config/Labels").and_then(service),
        state,
        started: text("/State/StartedAt").to_owned(),
    })
}

/// An archive with nothing but the folder that another archive is of, as `data`; none if that has no entry for it. Docker
/// takes the owner and the mode of a volume's folder from the image when it makes the volume, and passes over the entry of
/// an archive for the folder that it is unpacked into. A database does not start in a folder that is not its own.
fn folder_entry(archive: &mut dyn Read) -> Result<Option<Vec<u8>>> {
    let mut archive = tar::Archive::new(archive);
    let Some(first) = archive.entries()?.next().transpose()? else { return Ok(None) };
    if first.path()? != Path::new(".") || !first.header().entry_type().is_dir() {
        return Ok(None);
    }
    let mut header = first.header().clone();
    header.set_path("data/")?;
    header.set_cksum();
    let mut own = tar::Builder::new(Vec::new());
    own.append(&header, std::io::empty())?;
    Ok(Some(own.into_inner()?))
}

/// Keeps what is read from the beginning of a stream.
struct Begin<'a> {
    from: &'a mut dyn Read,
    read: Vec<u8>,
}

impl Read for Begin<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(into)?;
        self.read.extend_from_slice(&into[..read]);
        Ok(read)
    }
}

impl Compose {
    /// The volume of each data of the stack: by the definition; of a release of an older version by the manifest, with
    /// the name that Compose gives by default.
    pub fn data_volumes(&self) -> BTreeMap<String, String> {
        if let Some(definition) = &self.pilot.definition {
            let volume = |(name, volume): (String, &Resource)| (name, volume.name.clone());
            return definition.data().into_iter().map(volume).collect();
        }
        let Manifest { services, observability, .. } = &self.pilot.manifest;
        let guessed =
            |service: &Service| (service.name.clone(), format!("{}_{}", self.pilot.project, service.volume));
        services.iter().chain(observability).map(guessed).collect()
    }

    /// The volume of this data. Backups of another release may call it by a service that uses no other. One that the
    /// stack does not know is called by its own name.
    pub fn volume(&self, data: &str) -> String {
        let known = match &self.pilot.definition {
            Some(definition) => definition.volume_of(data).map(|key| definition.volumes[key].name.clone()),
            None => self.data_volumes().remove(data),
        };
        known.unwrap_or_else(|| data.to_owned())
    }

    /// The services that use this data. If it is not known what the stack is, data is called by its service.
    pub fn user_services(&self, data: &str) -> Vec<String> {
        let volume = self.volume(data);
        match &self.pilot.definition {
            Some(definition) => definition.users(&volume).map(str::to_owned).collect(),
            None => vec![data.to_owned()],
        }
    }

    /// The volumes that the definition names.
    pub fn defined(&self) -> impl Iterator<Item = &Resource> {
        self.pilot.definition.iter().flat_map(|definition| definition.volumes.values())
    }

    /// Names of the project's volumes that exist.
    fn volumes(&self, deadline: Deadline) -> Result<BTreeSet<String>> {
        self.own_volumes(PROJECT, deadline)
    }

    /// Names of the volumes that have the project in this label. Those that were not made for it have none: external ones, and
    /// ones with a name of their own that existed before.
    pub fn own_volumes(&self, label: &str, deadline: Deadline) -> Result<BTreeSet<String>> {
        let found = self.get("/volumes", deadline)?;
        let all = found["Volumes"].as_array().into_iter().flatten();
        let own = all.filter_map(|volume| {
            let name = volume["Name"].as_str()?;
            let project = volume["Labels"].get(label).and_then(Value::as_str);
            let is_own = project == Some(&self.pilot.project) || self.defined().any(|own| own.name == name);
            is_own.then(|| name.to_owned())
        });
        Ok(own.collect())
    }

    /// A container that mounts this data, and the path at which it does.
    fn mounted(&self, data: &str, volume: &str, deadline: Deadline) -> Result<Option<(String, String)>> {
        let there = self.services(deadline)?;
        let users = self.user_services(data);
        let all = users.iter().filter_map(|user| there.get(user)).flat_map(|service| &service.0);
        for instance in all {
            if let Some(path) = self.mount(&instance.handle, volume, deadline)? {
                return Ok(Some((instance.handle.clone(), path)));
            }
        }
        Ok(None)
    }

    /// The path at which a container mounts a volume.
    fn mount(&self, container: &str, volume: &str, deadline: Deadline) -> Result<Option<String>> {
        let format = format!(
            "{{{{range .Mounts}}}}{{{{if eq .Name {volume:?}}}}}{{{{.Destination}}}}{{{{end}}}}{{{{end}}}}"
        );
        let path = self.docker(&["inspect", "--format", &format, container], deadline)?;
        Ok(Some(path.trim().to_owned()).filter(|path| !path.is_empty()))
    }

    /// Unpacks an archive into a volume that exists. This goes through a helper container: a service may mount the
    /// volume read-only, and then Docker refuses. The folder of the volume gets the owner and the mode that it has in
    /// the archive. Docker takes both from the image when it makes a volume, and passes over the entry of an archive
    /// for the folder that it is unpacked into. A database does not start in a folder that is not its own.
    pub fn fill(&self, volume: &str, from: &mut dyn Read, deadline: Deadline) -> Result<()> {
        let mut begin = Begin { from, read: Vec::new() };
        let entry = folder_entry(&mut begin)?;
        let mut whole = begin.read.as_slice().chain(begin.from);
        self.with_helper(volume, deadline, |id| {
            let copy = self.client(&["cp", "-", &format!("{id}:/data")]);
            let copied = copy.write_by(deadline, |into| Ok(pass(&mut whole, into).map(drop)?));
            copied.map_err(|error| classify(copying::is_full_there(&format!("volume {volume}"), error)))?;
            let Some(entry) = &entry else { return Ok(()) };
            let copy = self.client(&["cp", "-", &format!("{id}:/")]);
            let copied = copy.write_by(deadline, |to| Ok(to.write_all(entry)?));
            copied.map(drop).map_err(classify).with_context(|| format!("restoring the folder of {volume}"))
        })
    }

    /// The containers that mount a volume and are not down. `service` finds the service of one in its labels.
    pub fn users_of(
        &self,
        volume: &str,
        deadline: Deadline,
        service: &dyn Fn(&Value) -> Option<String>,
    ) -> Result<Vec<User>> {
        let found = steady(deadline, || {
            let filter = format!("volume={volume}");
            let ids =
                self.docker(&["ps", "--all", "--no-trunc", "--quiet", "--filter", &filter], deadline)?;
            let ids: Vec<String> = ids.lines().map(str::to_owned).collect();
            self.each(&["inspect", "--type", "container"], &ids, deadline)
        })?;
        let Some(text) = found else { return Ok(Vec::new()) };
        let all: Vec<Value> =
            serde_json::from_str(&text).context("cannot parse the output of docker inspect")?;
        Ok(all.iter().filter_map(|one| user(one, volume, service)).collect())
    }

    /// Writes a volume as a tar archive, through a helper container.
    pub fn copy_out(&self, volume: &str, into: &mut dyn Write, deadline: Deadline) -> Result<()> {
        self.with_helper(volume, deadline, |id| {
            self.copy_from(&format!("{id}:/data/."), volume, into, deadline)
        })
    }

    fn copy_from(&self, from: &str, volume: &str, into: &mut dyn Write, deadline: Deadline) -> Result<()> {
        // A slow copy is not an engine that does not answer, so a missed deadline is not a host failure.
        let classified = |error| if is_hung(&error) { error } else { classify(error) };
        let copied = self.client(&["cp", from, "-"]).run_into(into, deadline);
        copied.map_err(classified).with_context(|| format!("copying volume {volume}"))
    }

    fn helper_name(&self) -> String {
        format!("{}-helper", self.pilot.project)
    }

    /// Removes the helper container of a command that was killed: its volume could not be removed.
    pub fn remove_helpers(&self, deadline: Deadline) -> Result<()> {
        let name = format!("name=^/?{}$", self.helper_name());
        let list = ["ps", "--all", "--filter", &self.label(), "--filter", &name, "--format"];
        let left = self.docker(&[list.as_slice(), &["{{.ID}} {{.Image}}"]].concat(), deadline)?;
        left.lines().filter_map(|line| line.split_once(' ')).try_for_each(|(id, image)| {
            self.docker(&["rm", "--force", id], deadline)?;
            self.docker(&["rmi", image], deadline).map(drop)
        })
    }

    /// Mounts a volume into an empty helper container, which never runs, so that it can be read or written.
    fn with_helper(
        &self,
        volume: &str,
        deadline: Deadline,
        work: impl FnOnce(&str) -> Result<()>,
    ) -> Result<()> {
        self.remove_helpers(deadline)?;
        self.with_empty_image(deadline, |tag| {
            let mount = format!("type=volume,source={volume},target=/data");
            let id = self.create_helper(&mount, tag, deadline)?;
            let done = work(&id);
            self.docker(&["rm", "--force", &id], self.to_clear()).ok();
            done
        })
    }

    /// Which of these paths the machine of the engine does not have. Docker says so of a mount of a container that never
    /// runs; a container that Compose makes would get an empty folder in its place.
    pub fn missing_there(&self, paths: &BTreeSet<String>, deadline: Deadline) -> Result<BTreeSet<String>> {
        if paths.is_empty() {
            return Ok(BTreeSet::new());
        }
        self.remove_helpers(deadline)?;
        self.with_empty_image(deadline, |tag| {
            let mut missing = BTreeSet::new();
            for path in paths {
                let mount = format!("type=bind,source={path},target=/data,readonly");
                match self.create_helper(&mount, tag, deadline) {
                    Ok(id) => drop(self.docker(&["rm", "--force", &id], self.to_clear())?),
                    Err(error) if format!("{error:#}").contains("bind source path does not exist") => {
                        missing.insert(path.clone());
                    }
                    Err(error) => return Err(error.context(format!("looking for {path}"))),
                }
            }
            Ok(missing)
        })
    }

    /// Makes the helper container, with a mount; its id.
    fn create_helper(&self, mount: &str, image: &str, deadline: Deadline) -> Result<String> {
        let create = ["create", "--name", &self.helper_name(), "--label", &self.label()["label=".len()..]];
        let more = ["--label", "com.docker.compose.oneoff=True", "--mount", mount, image, "none"];
        let made = self.docker(&[create.as_slice(), &more].concat(), deadline);
        made.map(|id| id.trim().to_owned())
    }

    /// The time to clear a helper away, also where the work took all the time that it had.
    fn to_clear(&self) -> Deadline {
        Deadline::after(self.pilot.manifest.limits.engine)
    }

    /// Does something with an image that has no file.
    fn with_empty_image<T>(&self, deadline: Deadline, work: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        let scratch = files::Scratch::new("helper")?;
        let empty = scratch.path().join("empty.tar");
        // Two blocks of zeros are an empty archive (POSIX pax, "ustar Interchange Format").
        files::write(&empty, &[0; 1024], Mode::Plain)?;
        let tag = format!("{}:{}", self.helper_name(), std::process::id());
        self.docker(&["import", &empty.display().to_string(), &tag], deadline)?;
        let done = work(&tag);
        // Docker may be busy with something else. What was done is done, and what is left here holds no data.
        self.docker(&["rmi", &tag], self.to_clear()).ok();
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_an_archive_keeps_its_owner_and_its_mode() {
        let tar_of = |name: &str, kind| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_uid(28);
            header.set_gid(29);
            header.set_mode(0o700);
            header.set_size(0);
            let mut tar = tar::Builder::new(Vec::new());
            tar.append_data(&mut header, name, std::io::empty()).unwrap();
            tar.into_inner().unwrap()
        };
        let own = folder_entry(&mut tar_of("./", tar::EntryType::Directory).as_slice()).unwrap().unwrap();
        let mut own = tar::Archive::new(own.as_slice());
        let all: Vec<_> = own.entries().unwrap().map(Result::unwrap).collect();
        let header = all[0].header();
        assert_eq!((all.len(), all[0].path().unwrap().to_str()), (1, Some("data/")));
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mode().unwrap()), (28, 29, 0o700));
        assert_eq!(folder_entry(&mut tar_of("file", tar::EntryType::Regular).as_slice()).unwrap(), None);
        assert_eq!(folder_entry(&mut [0; 1024].as_slice()).unwrap(), None);
    }
}
