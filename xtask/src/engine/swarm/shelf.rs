//! Records at a Swarm, for every client of it: each is a config that no service uses. The managers agree on it, so it
//! outlives each of them. Its name is taken once. What is longer than a config may be is in several.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::engine::compose::line::{in_path, status_of};
use crate::engine::compose::probes::time;
use crate::engine::roles::Ledger;
use crate::engine::swarm::cluster::Swarm;
use crate::engine::swarm::state::id;
use crate::stack::shelf::{Kept, Shelf, Title};
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// The label that has the project, the title of a record, and the name under which files are stored.
const PROJECT: &str = "rollback.invalid/ledger";
const TITLE: &str = "rollback.invalid/record";
const FILES: &str = "rollback.invalid/files-of";

/// The place of a part among the parts of the files of a record.
const PART: &str = "rollback.invalid/part";

/// Bytes of a part: a config has 500 KiB at most (swarmkit, `MaxConfigSize`).
const BYTES: usize = 400 << 10;

/// Characters of a project and of a title in the name of a config: it has 64 at most.
const SHORT: usize = 12;

/// The records of one project.
pub struct Configs(Swarm);

impl Configs {
    fn name(&self, rest: &str) -> String {
        // The text is in the labels; the name only has to be the same for the same record.
        let sum = files::sha256_bytes(format!("{} {rest}", self.0.pilot.project).as_bytes());
        format!("rollback.{}", &sum[..2 * SHORT])
    }

    fn list(&self, deadline: Deadline) -> Result<Vec<Value>> {
        let filter = json!({ "label": [format!("{PROJECT}={}", self.0.pilot.project)] }).to_string();
        let all = self.0.get(&format!("/configs?filters={}", in_path(&filter)), deadline)?;
        Ok(all.as_array().cloned().unwrap_or_default())
    }

    fn create(&self, name: &str, labels: Value, data: &[u8], deadline: Deadline) -> Result<Option<String>> {
        let made = json!({ "Name": self.name(name), "Labels": labels, "Data": STANDARD.encode(data) });
        let asked = Cell::new(false);
        let created = self.0.ask(deadline, |line| {
            let again = asked.replace(true);
            match line.post("/configs/create", &made) {
                Ok(made) => Ok(Some(id(&made).to_owned())),
                // The answer of a manager that was lost may be missing, and the config be there.
                Err(error) if status_of(&error) == Some(409) && again => {
                    let there = line.get(&format!("/configs/{}", self.name(name)))?;
                    let own = there["Spec"]["Data"] == made["Data"];
                    Ok(own.then(|| id(&there).to_owned()))
                }
                Err(error) => Err(error),
            }
        });
        match created {
            Err(error) if status_of(&error) == Some(409) => Ok(None),
            other => other,
        }
    }

    /// The parts of the files under a name, in their order.
    fn parts(&self, name: &str, deadline: Deadline) -> Result<Vec<Value>> {
        let mut all = self.list(deadline)?;
        all.retain(|one| one.pointer("/Spec/Labels").and_then(|l| l.get(FILES)?.as_str()) == Some(name));
        all.sort_by_key(part_of);
        Ok(all)
    }

    fn delete(&self, ids: &[&str], deadline: Deadline) -> Result<()> {
        self.0.ask(deadline, |line| ids.iter().try_for_each(|id| line.delete(&format!("/configs/{id}"))))
    }

    /// Removes all records of the project.
    pub fn remove_all(&self, deadline: Deadline) -> Result<()> {
        let all = self.list(deadline)?;
        self.delete(&all.iter().map(id).collect::<Vec<_>>(), deadline)
    }
}

fn part_of(config: &Value) -> Option<u64> {
    config.pointer("/Spec/Labels")?.get(PART)?.as_str()?.parse().ok()
}

fn data_of(config: &Value) -> Result<Vec<u8>> {
    let data = config.pointer("/Spec/Data").and_then(Value::as_str).unwrap_or_default();
    STANDARD.decode(data).context("the Swarm gave a config that is no base64")
}

impl Shelf for Configs {
    fn all(&self, deadline: Deadline) -> Result<Vec<Kept>> {
        let read = |one: Value| {
            let title = one.pointer("/Spec/Labels")?.get(TITLE)?.as_str().and_then(Title::parse)?;
            let text = data_of(&one).map(|data| String::from_utf8_lossy(&data).into_owned());
            Some(text.map(|text| Kept { title, text, handle: id(&one).to_owned() }))
        };
        self.list(deadline)?.into_iter().filter_map(read).collect()
    }

    fn put(&self, title: &Title, text: &str, _: bool, deadline: Deadline) -> Result<Option<String>> {
        let labels = json!({ PROJECT: self.0.pilot.project, TITLE: title.to_string() });
        // A config has one byte at least.
        let text = if text.is_empty() { "\n" } else { text };
        self.create(&title.to_string(), labels, text.as_bytes(), deadline)
    }

    fn remove(&self, kept: &[Kept], deadline: Deadline) -> Result<()> {
        self.delete(&kept.iter().map(|kept| kept.handle.as_str()).collect::<Vec<_>>(), deadline)
    }

    fn store(&self, name: &str, folder: &Path, deadline: Deadline) -> Result<()> {
        let mut archive = tar::Builder::new(Vec::new());
        archive.follow_symlinks(false);
        archive.append_dir_all("files", folder).context("cannot read the files")?;
        let bytes = archive.into_inner().context("cannot read the files")?;
        self.forget(name, deadline)?;
        for (part, bytes) in bytes.chunks(BYTES).enumerate() {
            let labels = json!({ PROJECT: self.0.pilot.project, FILES: name, PART: part.to_string() });
            let stored = self.create(&format!("{name} part {part}"), labels, bytes, deadline);
            stored.with_context(|| format!("cannot store {} at the Swarm", folder.display()))?;
        }
        Ok(())
    }

    fn fetch(
        &self,
        kept: &Kept,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        for part in self.parts(&kept.title.name, deadline)? {
            bytes.extend(data_of(&part)?);
        }
        take(&mut bytes.as_slice())
    }

    fn forget(&self, name: &str, deadline: Deadline) -> Result<()> {
        let parts = self.parts(name, deadline)?;
        self.delete(&parts.iter().map(id).collect::<Vec<_>>(), deadline)
    }

    fn age(&self, kept: &Kept, deadline: Deadline) -> Result<Option<Duration>> {
        let asked = self
            .0
            .ask(deadline, |line| Ok((line.get(&format!("/configs/{}", kept.handle))?, line.get("/info")?)));
        let (config, info) = match asked {
            Err(error) if status_of(&error) == Some(404) => return Ok(None),
            other => other?,
        };
        let read = |value: &Value| {
            let text = value.as_str().unwrap_or_default();
            time(text).with_context(|| format!("the Swarm tells the time {text:?}"))
        };
        Ok(Some(read(&info["SystemTime"])?.duration_since(read(&config["CreatedAt"])?).unwrap_or_default()))
    }

    fn by_hand(&self, kept: &Kept) -> String {
        format!("docker config rm {}", kept.handle)
    }
}

impl Ledger for Swarm {
    fn shelf(&self) -> Option<Box<dyn Shelf>> {
        Some(Box::new(self.shelf_of_project()))
    }
}

impl Swarm {
    /// The records of this project.
    pub fn shelf_of_project(&self) -> Configs {
        Configs(self.clone())
    }
}
