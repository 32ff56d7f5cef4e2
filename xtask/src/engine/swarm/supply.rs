//! Gives the nodes of a Swarm the images that they lack: from the store only the layers that a node does not have, else the
//! whole image from another node. Called by `images` and `runtime`.

use crate::base::deadline::{Deadline, for_bytes};
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::base::passing::Passing;
use crate::base::threads::side_by_side;
use crate::engine::compose::client::Compose;
use crate::engine::compose::images::ImagesThere;
use crate::engine::compose::pin::tag_of;
use crate::engine::roles::Images;
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm};
use crate::engine::swarm::node::Node;
use crate::release::description::Image;
use crate::release::store::Store;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

/// One image for one node.
struct Work<'a> {
    image: &'a Image,
    /// The tag that keeps it there.
    tag: String,
    /// The engine of a node that has it.
    from: Option<&'a Compose>,
    node: &'a Node,
    engine: &'a Compose,
    /// The images that the node has.
    there: &'a ImagesThere,
}

impl Swarm {
    /// The nodes that could not be given an image.
    pub fn lacking(&self) -> BTreeMap<String, (String, String)> {
        self.found.lacking.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives every node that takes tasks the images that it lacks, several nodes at a time, and the tags that keep them
    /// there. A node that cannot take one is left out (`lacking`). It is an error if one is neither on a node nor in the store.
    pub fn supply<'a>(&self, images: impl IntoIterator<Item = &'a Image>, deadline: Deadline) -> Result<()> {
        let images: BTreeMap<&String, &Image> = images.into_iter().map(|image| (&image.id, image)).collect();
        let there = self
            .each(deadline, |_, engine| Ok((engine.through(&engine.way), engine.images_there(deadline)?)))?;
        let mut work = Vec::new();
        for image in images.values() {
            let holder = there.iter().find(|(_, (_, there))| there.ids.contains(&image.id));
            for (node, (engine, there)) in there.iter().filter(|(node, _)| node.takes_tasks()) {
                let tag = tag_of(&self.pilot.project, image);
                if there.tags.get(&tag) != Some(&image.id) {
                    let from = holder.map(|(_, (engine, ..))| engine);
                    work.push(Work { image, tag, from, node, engine, there });
                }
            }
        }
        let store = Store::new(&self.pilot.state);
        let done = side_by_side(AT_A_TIME, work, |work: Work<'_>| {
            let Work { image, node, .. } = work;
            if work.from.is_none() && !store.has(image) {
                let what = format!("neither a node nor the store has image {} ({})", image.id, image.tag);
                return Err(fail(Exit::NotRestored, what, Next::xtask("releases verify")));
            }
            Ok(give(&work, &store, deadline).err().map(|error| {
                let why = format!("cannot bring image {} to {}: {error:#}", image.tag, node.name);
                (node.id.clone(), (node.name.clone(), why))
            }))
        });
        let lacking = done.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        *self.found.lacking.lock().unwrap_or_else(PoisonError::into_inner) = lacking;
        Ok(())
    }
}

/// Gives a node an image with its tag.
fn give(work: &Work<'_>, store: &Store, deadline: Deadline) -> Result<()> {
    if !work.there.ids.contains(&work.image.id) {
        bring(work, store, deadline)?;
    }
    work.engine.docker(&["tag", &work.image.id, &work.tag], deadline).map(drop)
}

/// The ways to an image, the cheapest first: from the store what the node lacks of it, from there the whole, and the whole
/// from another node.
fn bring(work: &Work<'_>, store: &Store, deadline: Deadline) -> Result<()> {
    let from_store = || {
        ensure!(store.has(work.image), "it is not there");
        let known = known(work, deadline)?;
        let loaded = load(work, store, &known, deadline);
        // What an engine says of its layers is its own matter, and newer ones may read all of them.
        if known.is_empty() {
            return loaded;
        }
        loaded.or_else(|_| load(work, store, &BTreeSet::new(), deadline))
    };
    match (from_store(), work.from) {
        (Err(error), Some(from)) => carry(from, work.engine, work.image, deadline)
            .with_context(|| format!("from another node; from the store: {error:#}")),
        (ended, _) => ended,
    }
}

/// Loads an image from the store without these layers.
fn load(work: &Work<'_>, store: &Store, without: &BTreeSet<String>, deadline: Deadline) -> Result<()> {
    let saved = store.open_without(work.image, without)?;
    let (bytes, what) = (saved.bytes, format!("bring image {} to {}", work.image.tag, work.node.name));
    let limit = deadline.within(for_bytes(deadline.left(), bytes));
    work.engine.load(work.image, &mut Passing::new(saved, what, Some(bytes)), limit)
}

/// Carries an image from one engine to another, as it comes.
fn carry(from: &Compose, to: &Compose, image: &Image, deadline: Deadline) -> Result<()> {
    let bytes = from.size(image, deadline)?;
    let limit = deadline.within(for_bytes(deadline.left(), bytes));
    let mut loaded = false;
    from.save(
        image,
        &mut |stream| {
            loaded = true;
            to.load(image, stream, limit)
        },
        limit,
    )?;
    ensure!(loaded, "nothing was carried");
    Ok(())
}

/// The layers of an image that an engine has, by the checksums of their archives. Docker loads an image without reading
/// layers that it has (`image/tarexport/load.go`); it knows a layer by all that are below it. Where images are in the store
/// of containerd, every part of the archive is needed.
fn known(work: &Work<'_>, deadline: Deadline) -> Result<BTreeSet<String>> {
    let Some(from) = work.from else { return Ok(BTreeSet::new()) };
    let store = work.engine.docker(&["info", "--format", "{{json .DriverStatus}}"], deadline)?;
    if store.contains("io.containerd.snapshotter") {
        return Ok(BTreeSet::new());
    }
    let wanted = layers(from, [&work.image.id], deadline)?;
    let there = layers(work.engine, &work.there.ids, deadline)?;
    Ok(wanted.first().map(|wanted| shared(wanted, &there)).unwrap_or_default())
}

/// The layers of images, from the lowest.
fn layers<'a>(
    engine: &Compose,
    ids: impl IntoIterator<Item = &'a String>,
    deadline: Deadline,
) -> Result<Vec<Vec<String>>> {
    let ids: Vec<&str> = ids.into_iter().map(String::as_str).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ask = ["image", "inspect", "--format", "{{join .RootFS.Layers \" \"}}"];
    let sums = |line: &str| line.split(' ').map(|sum| sum.trim_start_matches("sha256:").to_owned()).collect();
    Ok(engine.docker(&[&ask, ids.as_slice()].concat(), deadline)?.lines().map(sums).collect())
}

/// The layers that an image begins with as another one does. One that comes again above them is needed.
fn shared(wanted: &[String], there: &[Vec<String>]) -> BTreeSet<String> {
    let same = |other: &Vec<String>| wanted.iter().zip(other).take_while(|(own, other)| own == other).count();
    let (below, above) = wanted.split_at(there.iter().map(same).max().unwrap_or(0));
    below.iter().filter(|sum| !above.contains(sum)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_known_by_all_that_are_below_it() {
        let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
        let known = |wanted: &str, there: &[&str]| {
            let there: Vec<_> = there.iter().map(|text| list(text)).collect();
            shared(&list(wanted), &there).into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(known("a b c", &["a x", "a b d", "x"]), "a b");
        assert_eq!(known("a b c", &["b c", "c"]), "");
        assert_eq!(known("a b c", &[]), "");
        assert_eq!(known("a b c", &["a b c d"]), "a b c");
        // The same once more, above what is known.
        assert_eq!(known("a b a", &["a b"]), "b");
    }
}
