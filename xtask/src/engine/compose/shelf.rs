//! Records at a Docker daemon, for every client of it: each is a container that is made and never started. Its name is
//! taken once, so that of two clients one gets it. Its label has the text, and its image has the files, if there are any.
//! The label is our own, not Compose's, so that `--remove-orphans` does not take it. The images have a name that no
//! registry answers to.

use crate::base::deadline::Deadline;
use crate::base::proc::cmd;
use crate::engine::compose::api::Api;
use crate::engine::compose::client::{Compose, classify};
use crate::engine::compose::line::{by_labels, in_path, listed, status_of};
use crate::engine::compose::probes::time;
use crate::engine::roles::Ledger;
use crate::stack::shelf::{Kept, Shelf, Title};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

/// The label that has the project.
const PROJECT: &str = "rollback.invalid/ledger";

/// The label that has the title.
const TITLE: &str = "rollback.invalid/record";

/// The label that has the text, as a JSON string, as it was read from lists of the docker client.
const TEXT: &str = "rollback.invalid/text";

/// The registry of the images. No registry can have this name (RFC 6761).
const NOWHERE: &str = "ledger.rollback.invalid";

/// The tag of the image of a record without files.
const EMPTY: &str = "empty";

/// The folder in an image that has the files.
const FOLDER: &str = "files";

/// The records of one project.
pub struct Containers {
    /// The daemon.
    pub api: Api,
    /// The project.
    pub project: String,
}

impl Containers {
    fn docker(&self, args: &[&str], deadline: Deadline) -> Result<String> {
        cmd(&self.api.docker, args).run(deadline).map_err(classify)
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
        let import = cmd(&self.api.docker, &["import", "--change", &label, "-", &self.image(tag)]);
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
        let name = self.container(title);
        let labels = json!({
            PROJECT: self.project,
            TITLE: title.to_string(),
            TEXT: serde_json::to_string(text)?,
        });
        let made = json!({
            "Image": self.image(if with_files { &title.name } else { EMPTY }),
            // An image without a program needs the name of one, which is never started.
            "Cmd": ["never-started"],
            "Labels": labels,
            "HostConfig": { "NetworkMode": "none" },
        });
        let asked = Cell::new(false);
        let created = self.api.talk(deadline, |line| {
            let again = asked.replace(true);
            match line.post(&format!("/containers/create?name={}", in_path(&name)), &made) {
                // The answer was lost with the first connection, and the container may be there.
                Err(error) if status_of(&error) == Some(409) && again => {
                    let there = line.get(&format!("/containers/{name}/json"))?;
                    let own = there["Config"]["Labels"] == labels;
                    Ok(own.then(|| there["Id"].clone()))
                }
                other => other.map(|made| Some(made["Id"].clone())),
            }
        });
        match created {
            Err(error) if status_of(&error) == Some(409) => Ok(None),
            other => Ok(other.map_err(classify)?.and_then(|id| id.as_str().map(str::to_owned))),
        }
    }
}

impl Shelf for Containers {
    fn all(&self, deadline: Deadline) -> Result<Vec<Kept>> {
        let labels = [format!("{PROJECT}={}", self.project)];
        let list = format!("/containers/json?all=1&filters={}", by_labels(&labels));
        let parse = |one: &Value| {
            let label = |name: &str| one["Labels"].get(name)?.as_str();
            let (title, text) = (Title::parse(label(TITLE)?)?, serde_json::from_str(label(TEXT)?).ok()?);
            Some(Kept { title, text, handle: one["Id"].as_str()?.to_owned() })
        };
        let all = self.api.get(&list, deadline).map_err(classify)?;
        let read =
            |one: &Value| parse(one).with_context(|| format!("this record of docker cannot be read: {one}"));
        listed(&all)?.iter().map(read).collect()
    }

    fn put(&self, title: &Title, text: &str, with_files: bool, deadline: Deadline) -> Result<Option<String>> {
        match self.create(title, text, with_files, deadline) {
            Err(error) if !with_files && status_of(&error) == Some(404) => {
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
        let removed = self.api.talk(deadline, |line| {
            kept.iter().try_for_each(|kept| match line.delete(&format!("/containers/{}", kept.handle)) {
                // Another client is about to.
                Err(error) if status_of(&error) == Some(409) => Ok(()),
                other => other,
            })
        });
        removed.map_err(classify)
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
        cmd(&self.api.docker, &["cp", &from, "-"]).read_by(deadline, take).map_err(classify)
    }

    fn forget(&self, name: &str, deadline: Deadline) -> Result<()> {
        match self.docker(&["rmi", &self.image(name)], deadline) {
            Err(error) if !format!("{error:#}").contains("No such image") => Err(error),
            _ => Ok(()),
        }
    }

    fn age(&self, kept: &Kept, deadline: Deadline) -> Result<Option<Duration>> {
        let asked = self.api.talk(deadline, |line| {
            let made = line.get(&format!("/containers/{}/json", kept.handle))?;
            Ok((made["Created"].clone(), line.get("/info")?["SystemTime"].clone()))
        });
        let (made, now) = match asked {
            Err(error) if status_of(&error) == Some(404) => return Ok(None),
            other => other.map_err(classify)?,
        };
        let read = |told: &Value| {
            told.as_str().and_then(time).with_context(|| format!("docker tells the time {told}"))
        };
        Ok(Some(read(&now)?.duration_since(read(&made)?).unwrap_or_default()))
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
        Containers { api: self.api(), project: self.pilot.project.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::files::{Scratch, read_text};
    use crate::engine::compose::api::tests::scripted;

    /// A daemon that makes the container, and whose connection is cut before it has answered. Another client may have made one
    /// of that name before.
    fn cut_off(scratch: &Scratch, text: &str) -> Containers {
        let text = serde_json::to_string(text).unwrap();
        let labels = json!({ PROJECT: "shop", TITLE: "hold.1", TEXT: text });
        let there = json!({ "Id": "made", "Config": { "Labels": labels } });
        let script = format!(
            r#"while asks; do
  echo "$asked" >> asked
  case "$asked" in
  *"/info "*) answers '200 OK' '{{}}' ;;
  *"/containers/create?"*)
    if [ -e made ]; then answers '409 Conflict' '{{"message":"taken"}}'; else touch made; exit; fi ;;
  *) answers '200 OK' '{there}' ;;
  esac
done
"#
        );
        Containers { api: scripted(scratch, &script), project: "shop".into() }
    }

    #[test]
    fn a_record_whose_answer_was_lost_is_there_once_and_one_of_another_client_is_not_taken_for_it() {
        let limit = || Deadline::after(Duration::from_secs(20));
        let title = Title::parse("hold.1").unwrap();
        for (text, handle) in [("mine", Some("made")), ("of another client", None)] {
            let scratch = Scratch::new("shelf-test").unwrap();
            let shelf = cut_off(&scratch, text);
            // A connection that is kept is one that may have been cut.
            shelf.api.get("/info", limit()).unwrap();
            assert_eq!(shelf.put(&title, "mine", false, limit()).unwrap().as_deref(), handle);
            let asked = read_text(&scratch.path().join("asked")).unwrap();
            assert_eq!(asked.matches("/containers/create?").count(), 2, "{asked}");
        }
    }

    #[test]
    fn a_record_that_went_away_since_it_was_listed_has_no_age() {
        let scratch = Scratch::new("shelf-test").unwrap();
        let script = "while asks; do answers '404 Not Found' '{\"message\":\"No such container\"}'; done\n";
        let shelf = Containers { api: scripted(&scratch, script), project: "shop".into() };
        let title = Title::parse("lock.1").unwrap();
        let kept = Kept { title, text: String::new(), handle: "gone".into() };
        let age = shelf.age(&kept, Deadline::after(Duration::from_secs(20))).unwrap();
        assert_eq!(age, None);
    }
}
