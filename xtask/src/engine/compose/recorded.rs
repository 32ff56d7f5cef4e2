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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::definition::{Mount, Service};
    use std::collections::BTreeMap;

    #[test]
    fn a_path_that_became_a_file_or_is_one_no_more_makes_another_stack() {
        let mount = |path: &str| Mount {
            source: Source::Bind(path.to_owned()),
            target: "/x".to_owned(),
            read_only: true,
            selinux: None,
        };
        let mounts = ["a.conf", "folder", "/etc/hosts"].map(mount).to_vec();
        // A config is a file that no mount names.
        let files = ["a.conf", "config"].map(str::to_owned).into();
        let services = [("web".to_owned(), Service { mounts, files, ..Service::default() })].into();
        let definition = Definition::new(services, BTreeMap::new(), BTreeMap::new());
        let same = |there: &[&str]| has_the_same_files(&definition, &|path| there.contains(&path));
        assert!(same(&["a.conf", "config"]));
        for other in [["a.conf", ""], ["config", ""]] {
            assert!(!same(&other), "{other:?}");
        }
        assert!(!same(&["a.conf", "config", "folder"]));
    }
}
