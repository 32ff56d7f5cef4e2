//! How stored data becomes an archive, and comes back. A database with a dump command is dumped while it runs; every
//! other volume is copied while what uses it is paused (`paused`). An archive says by its name which of the two it is.
//! Which data is copied or restored, and when, is decided elsewhere. Called by `backup`, `restoring` and the drill.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::output::Output;
use crate::base::packed::{COMPRESSED, Content, Packing};
use crate::deploy::paused::{Copy, Longest};
use crate::deploy::progress::Counted;
use crate::engine::copying;
use crate::engine::roles::Engine;
use crate::stack::manifest::Dump;
use crate::stack::model::Instance;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How the name of an archive ends, before `COMPRESSED`. Older versions wrote only copies, and did not compress them.
const COPY: &str = ".data.tar";
const DUMP: &str = ".dump";

/// How a dump is restored. It is kept with the dump: the manifest of another release may say something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dumped {
    /// The service in whose container it is restored.
    pub service: String,
    /// The program that reads the dump.
    pub restore: Vec<String>,
}

/// An archive that was made and read back.
#[derive(Debug)]
pub struct Archived {
    /// Its name in the folder.
    pub name: String,
    /// The SHA-256 of the file.
    pub sum: String,
    /// How it is restored, if it is a dump.
    pub dumped: Option<Dumped>,
    /// What is worth knowing of it, in sentences.
    pub remarks: Vec<String>,
}

/// The data that is in the archive with this name; none if it is another file.
pub fn data_in(name: &str) -> Option<&str> {
    let plain = name.strip_suffix(COMPRESSED).unwrap_or(name);
    plain.strip_suffix(COPY).or_else(|| plain.strip_suffix(DUMP).filter(|_| plain != name))
}

/// What an archive is made with.
#[derive(Clone, Copy)]
pub struct Archiving<'a> {
    /// The stack, whose manifest says what is dumped.
    pub pilot: &'a Pilot,
    /// The engine that has the data.
    pub engine: &'a dyn Engine,
    /// How long what uses the data may be paused.
    pub longest: Longest,
    /// When it must be ready, whatever its size.
    pub deadline: Deadline,
    /// Where progress is told.
    pub out: &'a Output,
}

impl Archiving<'_> {
    /// Makes an archive of this data in a folder. A large one takes longer, but not past the deadline.
    pub fn make(&self, data: &str, folder: &Path) -> Result<Archived> {
        let Some(dump) = self.pilot.data_rule(data).and_then(|rule| rule.dump.as_ref()) else {
            return self.copied(data, folder);
        };
        let services = self.engine.services(self.deadline.within(self.pilot.manifest.limits.engine))?;
        let database =
            services.get(&dump.service).and_then(|service| service.0.iter().find(|one| one.is_running()));
        match database {
            Some(database) => self.dumped(data, dump, database, folder),
            None => self.copied(data, folder),
        }
    }

    /// Copies the volume, whatever the manifest says of a dump.
    pub fn copied(&self, data: &str, folder: &Path) -> Result<Archived> {
        let Self { pilot, engine, longest, deadline, out } = *self;
        let name = format!("{data}{COPY}{COMPRESSED}");
        let (state, limit) = (&pilot.state, pilot.manifest.limits.deploy);
        let (sum, remarks) = packed(&folder.join(&name), data, |to| {
            let mut made = None;
            let mut make = |deadline| {
                let packing = made.insert(Packing::new(to, Content::Tar)?);
                engine.snapshot(data, &mut Counted::new(packing, out, format!("copying {data}")), deadline)
            };
            let remarks = Copy { engine, state, data, longest, limit, deadline }.make(&mut make)?;
            // Syncing and reading back take as long as copying, and nothing is paused any more.
            Ok((made.context("nothing was copied")?.finish(deadline.growing(limit))?, remarks))
        })?;
        Ok(Archived { name, sum, dumped: None, remarks })
    }

    fn dumped(&self, data: &str, dump: &Dump, database: &Instance, folder: &Path) -> Result<Archived> {
        let deadline = self.deadline.growing(self.pilot.manifest.limits.deploy);
        let name = format!("{data}{DUMP}{COMPRESSED}");
        let sum = packed(&folder.join(&name), data, |to| {
            let mut packing = Packing::new(to, Content::Printed)?;
            let mut counted = Counted::new(&mut packing, self.out, format!("dumping {data}"));
            self.engine.dump(database, &dump.backup.0, &mut counted, deadline)?;
            drop(counted);
            packing.finish(deadline)
        });
        let sum = sum.map_err(|error| {
            let what = format!("{} gave no dump: {error:#}", dump.service);
            let next = match exit_of(&error) {
                Exit::Host => Next::xtask("host").so("says what is wrong; `host --free` makes room"),
                _ => {
                    let mend =
                        format!("tries it alone; mend `backup` of {data} in [data] of pilot.toml first");
                    Next::xtask("backup create").so(mend)
                }
            };
            fail(exit_of(&error), what, next)
        })?;
        let dumped = Some(Dumped { service: dump.service.clone(), restore: dump.restore.0.clone() });
        Ok(Archived { name, sum, dumped, remarks: Vec::new() })
    }
}

/// Makes an archive. If that fails, half of it is nothing to keep.
fn packed<T>(to: &Path, data: &str, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    make(to).map_err(|error| {
        let error = copying::told(&format!("the data of {data}"), to, error);
        files::remove(to).ok();
        error
    })
}
