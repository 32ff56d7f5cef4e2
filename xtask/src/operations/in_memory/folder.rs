//! Tests: the folder of one of them.

use crate::base::files;
use crate::stack::state_dir::StateDir;
use std::path::PathBuf;

/// A folder for one test, in memory if the host allows it: a run syncs every write.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let memory = Some(PathBuf::from("/dev/shm")).filter(|folder| folder.is_dir());
        let name = format!("pilot-in-memory-{}", files::random().unwrap());
        let folder = memory.unwrap_or_else(std::env::temp_dir).join(name);
        files::make_private_folder(&folder).unwrap();
        Self(folder)
    }

    pub fn state(&self) -> StateDir {
        StateDir::new(self.0.join("state"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let elsewhere = self.state().fallbacks();
        for folder in elsewhere.into_iter().chain([self.0.clone()]) {
            std::fs::remove_dir_all(folder).ok();
        }
    }
}
