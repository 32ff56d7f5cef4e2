//! What the running release says that the stack is. Compose need not be asked about files that have not changed since:
//! that takes longer than everything else of an `up` that changes nothing. Called by `runtime`.

use crate::base::files;
use crate::engine::compose::client::Compose;
use crate::engine::roles::Runtime;
use crate::release::store::Store;
use crate::stack::definition::{Definition, Resolved, Source};
use std::path::Path;

impl Compose {
    /// What Compose made of the files of the running release, if those in `dir` are the same. None too if anything of
    /// the release is missing or altered, or if its model has an older format: then Compose is asked.
    pub fn recorded(&self, dir: &Path, is_file: &dyn Fn(&str) -> bool) -> Option<Resolved> {
        let store = Store::new(&self.pilot.state);
        let running = store.current().ok()??;
        let layout = &self.pilot.layout;
        let same = |name: &String| {
            let now = files::sha256(&dir.join(name)).ok();
            now.is_some() && now.as_ref() == running.files.get(name)
        };
        if running.engine != self.kind().as_str() || running.layout != *layout || !layout.files().all(same) {
            return None;
        }
        store.check_files(&running).ok()?;
        let definition = store.definition(&running).ok()??;
        let environment = Some(store.environment(&running).ok()??);
        let usable = definition.is_current() && has_the_same_files(&definition, is_file);
        usable.then_some(Resolved { definition, environment })
    }
}

/// Is each path that a service mounts still a file, or still none?
fn has_the_same_files(definition: &Definition, is_file: &dyn Fn(&str) -> bool) -> bool {
    definition.services.values().all(|service| {
        let mut paths = service.mounts.iter().filter_map(|mount| match &mount.source {
            Source::Bind(path) if !path.starts_with('/') => Some(path),
            _ => None,
        });
        paths.all(|path| is_file(path) == service.files.contains(path))
            && service.files.iter().all(|path| is_file(path))
    })
}
