//! Records at a Docker daemon, for every client of it: each is a container that is made and never started. Its name is
//! taken once, so that of two clients one gets it. Its label has the text, and its image has the files, if there are any.
//! The label is our own, not Compose's, so that `--remove-orphans` does not take it. The images have a name that no
//! registry answers to.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::proc::cmd;
use crate::engine::compose::client::{Compose, classify};
use crate::engine::compose::probes::time;
use crate::engine::roles::Ledger;
use crate::stack::shelf::{Kept, Shelf, Title};
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The label that has the project.
const PROJECT: &str = "rollback.invalid/ledger";

/// The label that has the title.
const TITLE: &str = "rollback.invalid/record";

/// The label that has the text, as a JSON string: a list of docker has one line for each container.
const TEXT: &str = "rollback.invalid/text";

/// The registry of the images. No registry can have this name (RFC 6761).
const NOWHERE: &str = "ledger.rollback.invalid";

/// The tag of the image of a record without files.
const EMPTY: &str = "empty";

/// The folder in an image that has the files.
const FOLDER: &str = "files";

/// The records of one project.
pub struct Containers {
    /// Path of the docker client.
    pub docker: PathBuf,
    /// The project.
    pub project: String,
}

impl Containers {
    fn docker(&self, args: &[&str], deadline: Deadline) -> Result<String> {
        cmd(&self.docker, args).run(deadline).map_err(classify)
    }

    fn image(&self, tag: &str) -> String {
        format!("{NOWHERE}/{}:{tag}", self.project)
    }

    fn container(&self, title: &Title) -> String {
        format!("rollback.{}.{title}", self.project)
    }

    /// Imports an image from a tar archive.
    fn import(
        &self,
        tag: &str,
        give: impl FnOnce(&mut dyn Write) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()> {
        let label = format!("LABEL {PROJECT}={}", self.project);
        let import = cmd(&self.docker, &["import", "--change", &label, "-", &self.image(tag)]);
        import.write_by(deadline, give).map(drop).map_err(classify)
    }

    /// Makes the container of a record. None if its name is taken.
    fn create(
        &self,
        title: &Title,
        text: &str,
        with_files: bool,
        deadline: Deadline,
    ) -> Result<Option<String>> {
        let scratch = files::Scratch::new("record")?;
        let labels = scratch.path().join("labels");
        let text = serde_json::to_string(text)?;
        let lines = format!("{PROJECT}={}\n{TITLE}={title}\n{TEXT}={text}\n", self.project);
        files::write(&labels, lines.as_bytes(), files::Mode::Private)?;
        let image = self.image(if with_files { &title.name } else { EMPTY });
        let (name, labels) = (self.container(title), labels.display().to_string());
        let create =
            ["create", "--pull", "never", "--network", "none", "--name", &name, "--label-file", &labels];
        // An image without a program needs the name of one, which is never started.
        match self.docker(&[&create, [image.as_str(), "never-started"].as_slice()].concat(), deadline) {
            Ok(id) => Ok(Some(id.trim().to_owned())),
            Err(error) if format!("{error:#}").contains("is already in use by container") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Shelf for Containers {
    fn all(&self, deadline: Deadline) -> Result<Vec<Kept>> {
        let filter = format!("label={PROJECT}={}", self.project);
        let format = format!("{{{{.ID}}}}\t{{{{.Label \"{TITLE}\"}}}}\t{{{{.Label \"{TEXT}\"}}}}");
        let list = ["ps", "--all", "--no-trunc", "--filter", &filter, "--format", &format];
        let parse = |line: &str| {
            let mut parts = line.splitn(3, '\t');
            let (handle, title, text) = (parts.next()?, Title::parse(parts.next()?)?, parts.next()?);
            Some(Kept { title, text: serde_json::from_str(text).ok()?, handle: handle.to_owned() })
        };
        let listed = self.docker(&list, deadline)?;
        let read =
            |line: &str| parse(line).with_context(|| format!("this record of docker cannot be read: {line}"));
        listed.lines().map(read).collect()
    }

    fn put(&self, title: &Title, text: &str, with_files: bool, deadline: Deadline) -> Result<Option<String>> {
        match self.create(title, text, with_files, deadline) {
            Err(error) if !with_files && format!("{error:#}").contains("No such image") => {
                // An archive without files: two empty blocks.
                let give =
                    |to: &mut dyn Write| to.write_all(&[0; 1024]).context("cannot give docker an image");
                self.import(EMPTY, give, deadline)?;
                self.create(title, text, with_files, deadline)
            }
            other => other,
        }
    }

    fn remove(&self, kept: &[Kept], deadline: Deadline) -> Result<()> {
        let handles = kept.iter().map(|kept| kept.handle.as_str());
        let args: Vec<&str> = ["rm"].into_iter().chain(handles).collect();
        self.docker(&args, deadline).map(drop).or_else(|error| {
            let told = format!("{error:#}");
            let mut each = told.lines().filter(|line| line.contains("Error")).peekable();
            // Another client may have removed one, or be about to.
            let harmless =
                |line: &str| line.contains("No such container") || line.contains("already in progress");
            if each.peek().is_some() && each.all(harmless) { Ok(()) } else { Err(error) }
        })
    }

    fn store(&self, name: &str, folder: &Path, deadline: Deadline) -> Result<()> {
        let give = |to: &mut dyn Write| {
            let mut archive = tar::Builder::new(to);
            archive.follow_symlinks(false);
            archive
                .append_dir_all(FOLDER, folder)
                .and_then(|()| archive.finish())
                .context("cannot give docker the files")
        };
        let stored = self.import(name, give, deadline);
        stored.with_context(|| format!("cannot store {} at the engine", folder.display()))
    }

    fn fetch(
        &self,
        kept: &Kept,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()> {
        let from = format!("{}:/{FOLDER}", kept.handle);
        cmd(&self.docker, &["cp", &from, "-"]).read_by(deadline, take).map_err(classify)
    }

    fn forget(&self, name: &str, deadline: Deadline) -> Result<()> {
        match self.docker(&["rmi", &self.image(name)], deadline) {
            Err(error) if !format!("{error:#}").contains("No such image") => Err(error),
            _ => Ok(()),
        }
    }

    fn age(&self, kept: &Kept, deadline: Deadline) -> Result<Duration> {
        let inspect = ["inspect", "--type", "container", "--format", "{{.Created}}", &kept.handle];
        let made = self.docker(&inspect, deadline)?;
        let now = self.docker(&["info", "--format", "{{.SystemTime}}"], deadline)?;
        let read = |text: &str| time(text.trim()).with_context(|| format!("docker tells the time {text:?}"));
        Ok(read(&now)?.duration_since(read(&made)?).unwrap_or_default())
    }

    fn by_hand(&self, kept: &Kept) -> String {
        format!("docker rm {}", self.container(&kept.title))
    }
}

impl Containers {
    /// Removes all records of the project, and their images.
    pub fn remove_all(&self, deadline: Deadline) -> Result<()> {
        let all = self.all(deadline)?;
        if !all.is_empty() {
            self.remove(&all, deadline)?;
        }
        let list = ["images", "--format", "{{.Repository}}:{{.Tag}}", &self.image("*")];
        let tags = self.docker(&list, deadline)?;
        let args: Vec<&str> = ["rmi"].into_iter().chain(tags.lines()).collect();
        if args.len() == 1 { Ok(()) } else { self.docker(&args, deadline).map(drop) }
    }
}

impl Ledger for Compose {
    fn shelf(&self) -> Option<Box<dyn Shelf>> {
        Some(Box::new(self.shelf_of_project()))
    }
}

impl Compose {
    /// The records of this project.
    pub fn shelf_of_project(&self) -> Containers {
        Containers { docker: self.docker.clone(), project: self.pilot.project.clone() }
    }
}
