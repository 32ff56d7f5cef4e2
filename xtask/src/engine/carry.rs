//! Carries images between the store and an engine: several at a time, within a time that grows with their size.
//! Called by `deploy`, `operations`, `rehearsal` and the command `releases pull`.

use crate::base::deadline::{Deadline, for_bytes};
use crate::base::passing::Passing;
use crate::base::threads::side_by_side;
use crate::engine::roles::Images;
use crate::release::description::{Image, Release};
use crate::release::store::Store;
use anyhow::Result;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Loads images into the engine, each once even if services share it. `limit` is for an empty image; it ends at
/// `until` in any case.
pub fn load<'a>(
    images: impl IntoIterator<Item = &'a Image>,
    engine: &dyn Images,
    store: &Store,
    limit: Duration,
    until: Deadline,
) -> Result<()> {
    let each: BTreeMap<&String, &Image> = images.into_iter().map(|image| (&image.id, image)).collect();
    let opened = each.into_values().map(|image| Ok((image, store.open(image)?)));
    let opened = opened.collect::<Result<Vec<_>>>()?;
    let bytes = opened.iter().map(|(_, saved)| saved.bytes).fold(0, u64::saturating_add);
    let deadline = until.within(for_bytes(limit, bytes));
    let loaded = side_by_side(engine.at_a_time(), opened, |(image, saved)| {
        let all = Some(saved.bytes);
        engine.load(image, &mut Passing::new(saved, format!("load image {}", image.tag), all), deadline)
    });
    loaded.into_iter().collect()
}

/// Saves the images of a release that are not saved yet, and records them. `limit` is for an empty image. It fails if it is
/// `over` before they are saved.
pub fn save(
    release: &str,
    engine: &dyn Images,
    store: &Store,
    limit: Duration,
    over: &AtomicBool,
) -> Result<()> {
    store.save_images(release, engine.at_a_time(), &|image, take| {
        saved(image, engine, limit, &mut |from| take(&mut Until { from, over }))
    })
}

/// Saves an image that no release has.
pub fn save_image(image: &Image, engine: &dyn Images, store: &Store, limit: Duration) -> Result<Image> {
    store.save_image(image, &|image, take| saved(image, engine, limit, take))
}

/// Saves the images of a release that only another client has saved, and returns how many there were.
pub fn pull(release: &Release, engine: &dyn Images, store: &Store, limit: Duration) -> Result<usize> {
    store.pull_images(release, engine.at_a_time(), &|image, take| saved(image, engine, limit, take))
}

fn saved(
    image: &Image,
    engine: &dyn Images,
    limit: Duration,
    take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    let most = engine.at_a_time() as u64;
    // The others may slow it down as if it were so many times as large.
    let bytes = engine.size(image, Deadline::after(limit))?.saturating_mul(most);
    let mut counted = |from: &mut dyn Read| {
        take(&mut Passing::new(from, format!("save image {}", image.tag), Some(bytes / most)))
    };
    engine.save(image, &mut counted, Deadline::after(for_bytes(limit, bytes)))
}

/// A stream that ends with an error when it is over.
struct Until<'a> {
    from: &'a mut dyn Read,
    over: &'a AtomicBool,
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.over.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("its images are not needed any more"));
        }
        self.from.read(into)
    }
}
