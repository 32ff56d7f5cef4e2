//! Tests: a folder for one input that has to be a file. Called by the targets of `hostile`.

use crate::base::files;
use std::path::{Path, PathBuf};

/// A folder for one input, in memory if the host allows it. It is removed when it is dropped.
pub(super) struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let memory = Some(Path::new("/dev/shm")).filter(|folder| folder.is_dir());
        let Ok(random) = files::random() else { unreachable!("the system gives random numbers") };
        let all = memory.map_or_else(std::env::temp_dir, Path::to_owned);
        let folder = all.join(format!("pilot-hostile-{random}"));
        assert!(files::make_private_folder(&folder).is_ok(), "no folder can be made in {}", all.display());
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        files::remove(&self.0).ok();
    }
}
