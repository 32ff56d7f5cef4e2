//! Images on the nodes of a Swarm. They are made and kept by their ids, as on one machine; each node that takes tasks gets
//! them from one that has them, with no registry in between, and holds them by a tag that no registry answers to.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::Freed;
use crate::base::next::Next;
use crate::engine::compose::client::Compose;
use crate::engine::roles::{Build, Images};
use crate::engine::swarm::change::update;
use crate::engine::swarm::cluster::Swarm;
use crate::engine::swarm::node::Node;
use crate::engine::swarm::placement::{let_on, off};
use crate::engine::swarm::state::name_of;
use crate::release::description::{Image, Release};
use crate::release::store::Store;
use crate::stack::definition::Definition;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::time::Duration;

/// How late a container may come after the service that it was made for was removed, and the pause between two looks.
const LATE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);

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

    /// No tag of the stack is used on a Swarm. What comes back is how the stack itself wants its updates, because they were
    /// quick while it was brought to the release; and tasks may be put again on nodes that were lost or lacked an image.
    fn retag(&self, release: &Release, deadline: Deadline) -> Result<()> {
        let dir = self.pilot.state.release(&release.id);
        if !release.is_recorded() || !dir.is_dir() {
            return Ok(());
        }
        let plan = self.plan(&release.images, &dir, &self.services_of_stack(), deadline)?;
        let seen = self.see(deadline)?;
        let is_kept_off = seen.services.iter().any(|service| off(&service["Spec"]).next().is_some());
        let able = if is_kept_off { self.able_to_run(release, deadline)? } else { BTreeSet::new() };
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
                let_on(&mut spec, wanted, &able);
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

    /// Each node gets what it lacks from the store, whose stream is opened anew for each: one may have no room. An image of
    /// another stack's store goes onto one node, and from there to the others.
    fn load(&self, image: &Image, from: &mut dyn Read, deadline: Deadline) -> Result<()> {
        if !Store::new(&self.pilot.state).has(image) {
            let mut nodes = self.reached(deadline)?.into_iter().filter(|(node, _)| node.takes_tasks());
            let (node, engine) = nodes.next().context("no node that takes tasks is reached")?;
            engine.load(image, from, deadline).with_context(|| format!("on {}", node.name))?;
        }
        self.supply([image], deadline)?;
        match (self.holder(image, deadline), self.lacking().into_values().next()) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some((_, why))) => Err(fail(Exit::Host, why, Next::xtask("nodes"))),
            (Err(error), None) => Err(error),
        }
    }

    fn bring(&self, images: &[Image], deadline: Deadline) -> Result<Option<String>> {
        let remark = self.draw(images, deadline);
        self.supply(images, deadline)?;
        match self.lacking().into_values().next() {
            Some((_, why)) => {
                let what = [Some(why), remark].into_iter().flatten().collect::<Vec<_>>().join("; ");
                Err(fail(Exit::Host, what, Next::xtask("nodes").so("to see its images and its room")))
            }
            None => Ok(remark),
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
    /// The ids of the nodes that are reached, were not lost a moment ago, and have every image of a release.
    fn able_to_run(&self, release: &Release, deadline: Deadline) -> Result<BTreeSet<String>> {
        let has = self.each(deadline, |node, engine| {
            let ids = engine.images(deadline)?;
            Ok(!self.is_lost(&node.id) && release.images.values().all(|image| ids.contains(&image.id)))
        })?;
        Ok(has.into_iter().filter(|(_, has)| *has).map(|(node, _)| node.id).collect())
    }

    /// The engine of a node that has an image; its own client's first.
    pub fn holder(&self, image: &Image, deadline: Deadline) -> Result<Compose> {
        let mut all = self.reached(deadline)?;
        all.sort_by_key(|(_, engine)| !engine.way.options.is_empty());
        let has = |engine: &Compose| engine.images(deadline).is_ok_and(|ids| ids.contains(&image.id));
        let found = all.into_iter().find(|(_, engine)| has(engine)).map(|(_, engine)| engine);
        found.with_context(|| format!("no node has image {} ({})", image.id, image.tag))
    }

    /// Removes the images of the project from every node.
    pub fn remove_images(&self, deadline: Deadline) -> Result<()> {
        let own = self.compose.own_tags(deadline)?;
        self.compose.each(&["rmi"], &own.into_keys().collect::<Vec<_>>(), deadline)?;
        self.each(deadline, |_, engine| {
            // The containers of tasks that have ended hold their images for a while, and one that was being made when its
            // service was removed comes after it.
            let remove = || {
                let ended = ["ps", "--all", "--quiet", "--filter", &format!("label={}", self.label())];
                let ended = engine.docker(&ended, deadline)?.lines().map(str::to_owned).collect::<Vec<_>>();
                engine.each(&["rm", "--force"], &ended, deadline)?;
                let pins: Vec<String> = engine.pins(deadline)?.into_keys().collect();
                engine.each(&["rmi"], &pins, deadline).map(drop)
            };
            let removed = deadline.within(LATE).poll(PAUSE, || match remove() {
                Err(error) if format!("{error:#}").contains("is using its referenced image") => {
                    Continue(error)
                }
                other => Break(other),
            });
            removed.flatten()
        })?;
        Ok(())
    }
}
