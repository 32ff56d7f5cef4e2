//! The registry of a stack, where its manifest names one: a deployment puts its images there, and each node draws the layers
//! that it lacks. No rollback asks it. Called by `images`.

use crate::base::deadline::{Deadline, for_bytes};
use crate::base::threads::side_by_side;
use crate::engine::compose::client::Compose;
use crate::engine::compose::pin::{name_of, tag_of};
use crate::engine::roles::Images;
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm};
use crate::release::description::Image;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Limit of putting an image there, without the time for its bytes: one that does not answer is not waited for longer.
const ANSWERS: Duration = Duration::from_secs(15);

impl Swarm {
    /// Puts images into the registry, and lets every node that takes tasks draw those that it lacks; also those that no node
    /// has any more. Returns why this was not done.
    pub fn draw(&self, images: &[Image], deadline: Deadline) -> Option<String> {
        let registry = self.pilot.manifest.registry.as_ref()?;
        let done = side_by_side(AT_A_TIME, images.iter().collect(), |image: &Image| {
            let (place, tag) = (format!("{registry}/{}", name_of(image)), tag_of(&self.pilot.project, image));
            let way = Way { image, place: &place, tag: &tag };
            if let Ok(holder) = self.holder(image, deadline) {
                let limit = for_bytes(ANSWERS, holder.size(image, deadline)?);
                way.put(&holder, limit, deadline).with_context(|| format!("putting {place} there"))?;
            }
            let drawn = self.each(deadline, |node, engine| {
                let lacks = node.takes_tasks() && !engine.images(deadline)?.contains(&image.id);
                if lacks { way.draw(engine, deadline) } else { Ok(()) }
            });
            drawn.map(drop).with_context(|| format!("drawing {place} from there"))
        });
        let error = done.into_iter().find_map(Result::err)?;
        Some(format!("the registry {registry} was not used: {error:#}"))
    }
}

/// One image between a registry and the engines of nodes.
struct Way<'a> {
    image: &'a Image,
    /// Where it is in the registry.
    place: &'a str,
    /// The tag that keeps it on a node.
    tag: &'a str,
}

impl Way<'_> {
    /// A registry that takes longer than `limit` leaves no tag behind either.
    fn put(&self, engine: &Compose, limit: Duration, deadline: Deadline) -> Result<()> {
        self.keep(engine, deadline)?;
        engine.docker(&["tag", &self.image.id, self.place], deadline)?;
        let put = engine.docker(&["push", "--quiet", self.place], deadline.within(limit));
        let untagged = engine.docker(&["rmi", self.place], deadline);
        put.and(untagged).map(drop)
    }

    /// It is an error if the registry has another image in this place.
    fn draw(&self, engine: &Compose, deadline: Deadline) -> Result<()> {
        engine.docker(&["pull", "--quiet", self.place], deadline)?;
        let drawn = engine.docker(&["image", "inspect", "--format", "{{.Id}}", self.place], deadline)?;
        let drawn = drawn.trim();
        if drawn == self.image.id {
            self.keep(engine, deadline)?;
        }
        engine.docker(&["rmi", self.place], deadline)?;
        ensure!(drawn == self.image.id, "it is another image, {drawn}");
        Ok(())
    }

    /// An image without a tag would be gone with its place in the registry.
    fn keep(&self, engine: &Compose, deadline: Deadline) -> Result<()> {
        engine.docker(&["tag", &self.image.id, self.tag], deadline).map(drop)
    }
}
