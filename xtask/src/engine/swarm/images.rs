//! Images on the nodes of a Swarm. They are made and kept by their ids, as on one machine; each node that takes tasks gets
//! them from one that has them, with no registry in between, and holds them by a tag that no registry answers to.

use crate::base::deadline::{Deadline, for_bytes};
use crate::base::failure::{Exit, fail};
use crate::base::files::Freed;
use crate::base::next::Next;
use crate::base::threads::side_by_side;
use crate::engine::compose::client::Compose;
use crate::engine::compose::pin::tag_of;
use crate::engine::roles::{Build, Images};
use crate::engine::swarm::apply::update;
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm};
use crate::engine::swarm::node::Node;
use crate::engine::swarm::state::name_of;
use crate::release::description::{Image, Release};
use crate::stack::definition::Definition;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::PoisonError;

/// One image for one node: the tag that it gets there, the engine that it comes from if the node lacks it, whether any node
/// has it, and the node with its engine.
type Work<'a> = (&'a Image, String, Option<&'a Compose>, bool, &'a Node, &'a Compose);

impl Images for Swarm {
    /// Those that any node has: from there the others get them before a task needs them.
    fn images(&self, deadline: Deadline) -> Result<Vec<String>> {
        let all = self.each(deadline, |_, engine| engine.images(deadline))?;
        Ok(all.into_iter().flat_map(|(_, ids)| ids).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn build(&self, build: &Build<'_>, deadline: Deadline) -> Result<BTreeMap<String, Image>> {
        self.compose.build(build, deadline)
    }

    fn named(&self, name: &str, deadline: Deadline) -> Result<String> {
        self.compose.named(name, deadline)
    }

    fn provide(
        &self,
        definition: &Definition,
        dir: &Path,
        tag: Option<&str>,
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Image>> {
        self.compose.provide(definition, dir, tag, deadline)
    }

    fn tagged(&self, tag: &str, deadline: Deadline) -> Result<BTreeMap<String, Image>> {
        self.compose.tagged(tag, deadline)
    }

    fn tag(&self, images: &BTreeMap<String, Image>, tag: &str, deadline: Deadline) -> Result<()> {
        self.compose.tag(images, tag, deadline)
    }

    /// No tag of the stack is used on a Swarm. What comes back is how the stack itself wants its updates: while it was
    /// brought to the release they were quick.
    fn retag(&self, release: &Release, deadline: Deadline) -> Result<()> {
        let dir = self.pilot.state.release(&release.id);
        if !release.is_recorded() || !dir.is_dir() {
            return Ok(());
        }
        let plan = self.plan(&release.images, &dir, &self.services_of_stack(), deadline)?;
        let seen = self.see(deadline)?;
        self.ask(deadline, |line| {
            seen.services.iter().try_for_each(|service| {
                let name = name_of(service, &self.pilot.project).unwrap_or_default();
                let Some(wanted) = plan.services.get(name) else { return Ok(()) };
                let mut spec = service["Spec"].clone();
                for part in ["UpdateConfig", "RollbackConfig"] {
                    match wanted.get(part) {
                        Some(own) => spec[part] = own.clone(),
                        None => drop(spec.as_object_mut().and_then(|spec| spec.remove(part))),
                    }
                }
                if spec == service["Spec"] { Ok(()) } else { update(line, service, &spec) }
            })
        })
    }

    fn size(&self, image: &Image, deadline: Deadline) -> Result<u64> {
        self.holder(image, deadline)?.size(image, deadline)
    }

    fn save(
        &self,
        image: &Image,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
        deadline: Deadline,
    ) -> Result<()> {
        self.holder(image, deadline)?.save(image, take, deadline)
    }

    /// Onto one node that lacks it, and from there to the others.
    fn load(&self, image: &Image, from: &mut dyn Read, deadline: Deadline) -> Result<()> {
        let lacking =
            self.each(deadline, |_, engine| Ok((engine.through(&engine.options), engine.images(deadline)?)))?;
        let mut lacking =
            lacking.into_iter().filter(|(node, (_, ids))| node.takes_tasks() && !ids.contains(&image.id));
        match lacking.next() {
            None => Ok(()),
            Some((node, (engine, _))) => {
                engine.load(image, from, deadline).with_context(|| format!("on {}", node.name))?;
                self.supply([image], deadline)
            }
        }
    }

    fn bring(&self, images: &[Image], deadline: Deadline) -> Result<()> {
        self.supply(images, deadline)?;
        match self.lacking().into_values().next() {
            Some((_, why)) => {
                Err(fail(Exit::Host, why, Next::xtask("nodes").so("to see its images and its room")))
            }
            None => Ok(()),
        }
    }

    fn can_lose_one(&self, images: &[Image], deadline: Deadline) -> Result<()> {
        let all = self.nodes_of_swarm(deadline)?.into_iter().filter(Node::takes_tasks).count();
        let has = self.each(deadline, |_, engine| {
            let ids = engine.images(deadline)?;
            Ok(images.iter().all(|image| ids.contains(&image.id)))
        })?;
        let with: Vec<String> = has.into_iter().filter(|(_, has)| *has).map(|(node, _)| node.name).collect();
        if all < 2 || with.len() > 1 {
            return Ok(());
        }
        let what = format!(
            "{all} nodes take tasks, and only {} has the images of the release: its loss would be the loss of the release",
            if with.is_empty() { "none".to_owned() } else { with.join(", ") }
        );
        let next = Next::xtask("nodes").so("to see why the others are not reached; then nodes sync");
        Err(fail(Exit::Host, what, next))
    }

    fn at_a_time(&self) -> usize {
        2
    }

    fn forget(&self, keep: &[String], deadline: Deadline) -> Result<Vec<Freed>> {
        let freed = self.each(deadline, |node, engine| {
            let used: BTreeSet<String> = engine
                .docker(&["ps", "--all", "--no-trunc", "--format", "{{.Image}}"], deadline)?
                .lines()
                .map(str::to_owned)
                .collect();
            let gone = engine.pins(deadline)?.into_iter();
            let gone =
                gone.filter(|(tag, id)| !keep.contains(id) && !used.contains(id) && !used.contains(tag));
            gone.map(|(tag, _)| {
                engine.docker(&["rmi", &tag], deadline)?;
                Ok(Freed { what: format!("image {tag} on {}", node.name), bytes: 0 })
            })
            .collect::<Result<Vec<_>>>()
        })?;
        Ok(freed.into_iter().flat_map(|(_, freed)| freed).collect())
    }
}

impl Swarm {
    /// The engine of a node that has an image; its own client's first.
    fn holder(&self, image: &Image, deadline: Deadline) -> Result<Compose> {
        let mut all = self.reached(deadline)?;
        all.sort_by_key(|(_, engine)| !engine.options.is_empty());
        let has = |engine: &Compose| engine.images(deadline).is_ok_and(|ids| ids.contains(&image.id));
        let found = all.into_iter().find(|(_, engine)| has(engine)).map(|(_, engine)| engine);
        found.with_context(|| format!("no node has image {} ({})", image.id, image.tag))
    }

    /// The nodes that could not be given an image.
    pub fn lacking(&self) -> BTreeMap<String, (String, String)> {
        self.found.lacking.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives every node that takes tasks the images that it lacks, several nodes at a time, and the tags that keep them
    /// there. A node that cannot take one is left out (`lacking`). It is an error if no node has one of them.
    pub fn supply<'a>(&self, images: impl IntoIterator<Item = &'a Image>, deadline: Deadline) -> Result<()> {
        let images: BTreeMap<&String, &Image> = images.into_iter().map(|image| (&image.id, image)).collect();
        let there = self.each(deadline, |_, engine| {
            let tags = engine.tags("", deadline)?;
            let ids: BTreeSet<String> = engine.images(deadline)?.into_iter().collect();
            Ok((engine.through(&engine.options), ids, tags))
        })?;
        let mut work: Vec<Work<'_>> = Vec::new();
        for image in images.values() {
            let from =
                there.iter().find(|(_, (_, ids, _))| ids.contains(&image.id)).map(|(_, (engine, ..))| engine);
            for (node, (engine, ids, tags)) in there.iter().filter(|(node, _)| node.takes_tasks()) {
                let tag = tag_of(&self.pilot.project, image);
                if tags.get(&tag) != Some(&image.id) {
                    work.push((
                        *image,
                        tag,
                        from.filter(|_| !ids.contains(&image.id)),
                        from.is_some(),
                        node,
                        engine,
                    ));
                }
            }
        }
        let done =
            side_by_side(AT_A_TIME, work, |(image, tag, from, is_anywhere, node, engine): Work<'_>| {
                if from.is_none() && !is_anywhere {
                    let what = format!("no node has image {} ({})", image.id, image.tag);
                    return Err(fail(Exit::NotRestored, what, Next::xtask("rollback").so("which loads it")));
                }
                let carried = from.map_or(Ok(()), |from| carry(from, engine, image, deadline));
                let given = carried.and_then(|()| engine.docker(&["tag", &image.id, &tag], deadline));
                Ok(given.err().map(|error| {
                    let why = format!("cannot bring image {} to {}: {error:#}", image.tag, node.name);
                    (node.id.clone(), (node.name.clone(), why))
                }))
            });
        let lacking = done.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        *self.found.lacking.lock().unwrap_or_else(PoisonError::into_inner) = lacking;
        Ok(())
    }

    /// Removes the images of the project from every node.
    pub fn remove_images(&self, deadline: Deadline) -> Result<()> {
        let own = self.compose.own_tags(deadline)?;
        self.compose.each(&["rmi"], &own.into_keys().collect::<Vec<_>>(), deadline)?;
        self.each(deadline, |_, engine| {
            // The containers of tasks that have ended hold their images for a while.
            let ended = ["ps", "--all", "--quiet", "--filter", &format!("label={}", self.label())];
            let ended: Vec<String> = engine.docker(&ended, deadline)?.lines().map(str::to_owned).collect();
            engine.each(&["rm", "--force"], &ended, deadline)?;
            let pins: Vec<String> = engine.pins(deadline)?.into_keys().collect();
            engine.each(&["rmi"], &pins, deadline).map(drop)
        })?;
        Ok(())
    }
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
