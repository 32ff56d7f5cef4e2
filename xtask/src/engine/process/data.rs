//! Stored data of local processes, into archives and back, and what a process group uses.

use crate::deadline::Deadline;
use crate::engine::Usage;
use crate::files;
use crate::proc::cmd;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// Copies that are made of a folder before it is said to be changing all the time.
const COPIES: usize = 6;

/// Copies a folder that may be written to meanwhile: two copies in a row that are the same show the state of
/// one moment, because a database does not return to bytes that it had before.
pub fn save(from: &Path, archive: &Path, deadline: Deadline) -> Result<()> {
    let tar = cmd("tar", &["--create", "--file", &archive.display().to_string()]);
    let tar = tar.args(["--directory", &from.display().to_string(), "."]);
    let mut last = None;
    for _ in 0..COPIES {
        // A file that changed while it was read is told by tar, and by the next copy.
        let copied = tar.clone().run(deadline);
        let sum = copied.as_ref().ok().map(|_| files::sha256(archive)).transpose()?;
        match (&last, sum) {
            (Some(last), Some(sum)) if *last == sum => return Ok(()),
            (_, Some(sum)) => last = Some(sum),
            (_, None) if deadline.passed() => return copied.map(drop),
            (_, None) => last = None,
        }
    }
    bail!("{} was written to during each of {COPIES} copies", from.display())
}

/// Fills a folder from an archive.
pub fn restore(to: &Path, archive: &Path, deadline: Deadline) -> Result<()> {
    files::make_folder(to)?;
    let tar = cmd("tar", &["--extract", "--file", &archive.display().to_string()]);
    tar.args(["--directory", &to.display().to_string()]).run(deadline).map(drop)
}

/// Memory and threads of a process group, from `/proc` (proc(5)): of what the supervisor runs, and itself.
pub fn usage(service: &str, group: i32) -> Result<Usage> {
    let (mut pages, mut threads) = (0u64, 0u64);
    let entries = std::fs::read_dir("/proc").context("cannot read /proc")?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
        // Behind the name, which may hold anything: state, parent, group, …, threads (18th from there).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        if fields.get(2).and_then(|f| f.parse().ok()) == Some(group) {
            threads += fields.get(17).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
            pages += fields.get(21).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(Usage {
        name: service.to_owned(),
        cpu: "not told".into(),
        memory: files::human(pages * 4096),
        processes: threads.to_string(),
    })
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
        save(&from, &archive, limit()).unwrap();
        restore(&to, &archive, limit()).unwrap();
        assert_eq!(std::fs::read(to.join("counter")).unwrap(), std::fs::read(from.join("counter")).unwrap());
    }
}
