//! Stored data of local processes: copies folders into archives, and back.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::proc::{Cmd, cmd};
use crate::engine::process::home::Processes;
use crate::engine::roles::{Data, Runtime};
use crate::engine::still;
use crate::release::description::Release;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

impl Data for Processes {
    fn stored(&self, _: Deadline) -> Result<BTreeSet<String>> {
        // Also data of services that the manifest does not name, because a teardown removes it too.
        let mut data = files::names(&self.home.join("volumes"))?;
        data.retain(|name| self.data(name).is_dir());
        Ok(data.into_iter().collect())
    }

    fn snapshot(&self, service: &str, archive: &Path, deadline: Deadline) -> Result<()> {
        save(&self.data(service), archive, deadline)
    }

    fn restore(
        &self,
        _: &Release,
        _: &Path,
        service: &str,
        archive: &Path,
        deadline: Deadline,
    ) -> Result<()> {
        restore(&self.data(service), archive, deadline)
    }

    fn remove_data(&self, service: &str, deadline: Deadline) -> Result<()> {
        self.stop(service, deadline)?;
        self.remove_whole(&self.data(service))
    }
}

/// Copies a folder, as of one moment, while a service may write to it.
fn save(from: &Path, archive: &Path, deadline: Deadline) -> Result<()> {
    let tar = tar("--create", archive, from).args(["."]);
    still::copy(&from.display().to_string(), archive, || tar.clone().run(deadline).map(drop))
}

/// A tar command. Its messages are parsed, so they must be in English.
fn tar(what: &str, archive: &Path, folder: &Path) -> Cmd {
    let words =
        [what, "--file", &archive.display().to_string(), "--directory", &folder.display().to_string()];
    cmd("tar", &words).env("LC_ALL", "C")
}

/// Fills a folder from an archive.
fn restore(to: &Path, archive: &Path, deadline: Deadline) -> Result<()> {
    files::make_folder(to)?;
    let restored = tar("--extract", archive, to).run(deadline).map(drop);
    restored.map_err(|error| still::told(&archive.display().to_string(), to, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn a_folder_that_never_rests_is_no_copy_and_a_still_one_comes_back_the_same() {
        let scratch = files::Scratch::new("data-test").unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        let archive = scratch.path().join("a.tar");
        let limit = || Deadline::after(Duration::from_secs(20));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Never seen empty.
                    std::fs::write(scratch.path().join("next"), n.to_string()).unwrap();
                    std::fs::rename(scratch.path().join("next"), from.join("counter")).unwrap();
                }
            });
            while !from.join("counter").exists() {
                std::thread::yield_now();
            }
            // On a busy machine the writer may sleep through two copies, but not every time.
            let error = (0..20).find_map(|_| save(&from, &archive, limit()).err());
            stop.store(true, Ordering::Relaxed);
            assert!(error.unwrap().to_string().contains("written to"));
        });
        assert!(!archive.exists(), "half an archive is left");
        save(&from, &archive, limit()).unwrap();
        restore(&to, &archive, limit()).unwrap();
        assert_eq!(std::fs::read(to.join("counter")).unwrap(), std::fs::read(from.join("counter")).unwrap());
    }

    #[test]
    fn a_full_disk_and_a_deadline_are_told_as_what_they_are_and_leave_no_half_archive() {
        let scratch = files::Scratch::new("data-test").unwrap();
        let from = scratch.path().join("from");
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("f"), [7; 100_000]).unwrap();
        let archive = scratch.path().join("a.tar");
        // A device that is always full (full(4)).
        std::os::unix::fs::symlink("/dev/full", &archive).unwrap();
        let error = save(&from, &archive, Deadline::after(Duration::from_secs(20))).unwrap_err();
        assert_eq!(crate::base::failure::exit_of(&error), crate::base::failure::Exit::Host, "{error:#}");
        assert!(format!("{error:#}").contains("is full"), "{error:#}");
        assert!(archive.symlink_metadata().is_err());
        let error = save(&from, &archive, Deadline::after(Duration::ZERO)).unwrap_err();
        assert!(format!("{error:#}").contains("took longer than it may"), "{error:#}");
        assert!(!archive.exists());
        let error = save(&from.join("f"), &archive, Deadline::after(Duration::from_secs(20))).unwrap_err();
        assert!(format!("{error:#}").contains("could not be copied"), "{error:#}");
    }
}
