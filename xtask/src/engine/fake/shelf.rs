//! Tests: records in memory, for several clients. How old one is, is what a test says.

use crate::base::deadline::Deadline;
use crate::engine::fake::world::{Records, World};
use crate::stack::shelf::{Kept, Shelf, Title};
use anyhow::{Context, Result, ensure};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

struct InMemory(World);

impl World {
    /// Where records are kept, if they are kept at all.
    pub fn shelf(&self) -> Option<Box<dyn Shelf>> {
        self.things().records.is_some().then(|| Box::new(InMemory(self.clone())) as Box<dyn Shelf>)
    }
}

impl InMemory {
    /// One operation on the records.
    fn act<T>(&self, name: &'static str, how: impl FnOnce(&mut Records) -> T) -> Result<T> {
        let mut things = self.0.act(name)?;
        let done = how(things.records.as_mut().context("this engine keeps no records")?);
        things.over()?;
        Ok(done)
    }
}

impl Shelf for InMemory {
    fn all(&self, _: Deadline) -> Result<Vec<Kept>> {
        self.act("records", |records| records.all.clone())
    }

    fn put(&self, title: &Title, text: &str, _: bool, _: Deadline) -> Result<Option<String>> {
        self.act("put a record", |records| {
            if records.all.iter().any(|kept| kept.title == *title) {
                return None;
            }
            records.put += 1;
            let handle = records.put.to_string();
            records.all.push(Kept { title: title.clone(), text: text.to_owned(), handle: handle.clone() });
            Some(handle)
        })
    }

    fn remove(&self, kept: &[Kept], _: Deadline) -> Result<()> {
        // Docker says so of one that is named twice.
        let twice = (1..kept.len()).find(|at| kept[..*at].contains(&kept[*at]));
        ensure!(twice.is_none(), "a record is removed twice: {kept:?}");
        // One after another, as docker does: it may be cut off in between.
        kept.iter().try_for_each(|one| {
            self.act("remove a record", |records| records.all.retain(|other| other.handle != one.handle))
        })
    }

    fn store(&self, name: &str, folder: &Path, _: Deadline) -> Result<()> {
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_dir_all("files", folder)?;
        let bytes = archive.into_inner()?;
        self.act("store files", |records| drop(records.files.insert(name.to_owned(), bytes)))
    }

    fn fetch(
        &self,
        kept: &Kept,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        _: Deadline,
    ) -> Result<()> {
        let files = self.act("fetch files", |records| records.files.get(&kept.title.name).cloned())?;
        take(&mut files.context("no files")?.as_slice())
    }

    fn forget(&self, name: &str, _: Deadline) -> Result<()> {
        self.act("forget files", |records| drop(records.files.remove(name)))
    }

    fn age(&self, kept: &Kept, _: Deadline) -> Result<Option<Duration>> {
        self.act("age of a record", |records| records.all.contains(kept).then_some(records.age))
    }

    fn by_hand(&self, kept: &Kept) -> String {
        format!("remove {}", kept.title)
    }
}
