//! The power fails at any write, sync or rename of a rollback, a reset and a deployment; then the same command
//! finishes, and every file is the old or the new one. The state folder, with the env file in it, is on a file
//! system of the test's own (`disk`), which keeps what was synced and forgets the rest as chance wants (`tree`).

mod disk;
mod tree;

use crate::pilot::{Engine, Folder, Pilot, Random, skip, tries};
use disk::Disk;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};
use tree::Tree;

/// At how many points of a command the power is cut; with `PILOT_TRIES` at all of them.
const FEW: usize = 3;

/// How long a command may take.
const LONGEST: Duration = Duration::from_secs(60);

/// A pilot whose state is on a disk of its own.
struct Bench {
    /// Unmounted before the folder of the pilot, which it is in, is removed.
    disk: Disk,
    pilot: Pilot,
    /// What is on the disk when all is well and nothing runs.
    well: Tree,
    /// The settings of then.
    good: String,
}

/// A command that is cut off.
struct Story {
    name: &'static str,
    words: &'static [&'static str],
    /// What is done before it.
    begin: fn(&Pilot),
    /// What must hold when it has finished, besides what must hold after every command.
    end: fn(&Bench, &str, &str),
}

impl Bench {
    fn new(name: &str) -> Self {
        let pilot = Pilot::new(name, Engine::Process);
        let disk = Disk::mount(&pilot.state());
        let pilot = pilot.up();
        pilot.store_scenario();
        let good = pilot.env_text();
        power_off(&pilot);
        let well = disk.remember();
        Self { disk, pilot, well, good }
    }

    /// As it was at first, and running.
    fn be_well(&self) {
        power_off(&self.pilot);
        self.disk.bring_back(&self.well);
        self.pilot.xtask(&["rollback"]).expect(0);
    }

    /// Runs a command whose power fails before its change with this number. At what it was, or nothing if it ended
    /// before.
    fn cut(&self, story: &Story, change: usize, random: &mut Random) -> Option<String> {
        self.be_well();
        (story.begin)(&self.pilot);
        let before = self.pilot.env_text();
        self.disk.stop_at(change);
        let said = self.pilot.folder.0.join("said");
        let file = std::fs::File::create(&said).unwrap();
        let mut command = self.pilot.command(story.words);
        let mut child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let limit = Instant::now() + LONGEST;
        let ended = loop {
            match child.try_wait().unwrap() {
                None if self.disk.stopped().is_some() => break None,
                None => assert!(Instant::now() < limit, "{:?} does not end", story.words),
                Some(status) => break Some(status),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let at = self.disk.stopped();
        self.disk.stop();
        power_off(&self.pilot);
        child.wait().unwrap();
        let said = std::fs::read_to_string(said).unwrap();
        self.forget_what_is_elsewhere();
        assert!(at.is_some() || ended.is_some_and(|status| status.success()), "{ended:?}\n{said}");
        self.disk.power_cut(random);
        // What was there before, or what comes after it.
        let left = std::fs::read_to_string(self.pilot.env_path()).unwrap_or_default();
        assert!(left == before || left == self.good, "the env file, after {said}:\n{left}");
        assert_eq!(torn(&self.pilot.state()), [""; 0], "after {said}");
        // What was said to be done is done.
        let words = if at.is_some() { story.words } else { &["rollback"] };
        let ran = self.pilot.xtask(words);
        assert_eq!(ran.code, 0, "--- before the cut\n{said}\n--- after it\n{}", ran.all());
        self.look(&ran.all());
        (story.end)(self, &before, &ran.all());
        at
    }

    /// In the moment between the first failed write and its end the command turned to the temporary folder. At a power
    /// cut there is no such moment.
    fn forget_what_is_elsewhere(&self) {
        for entry in std::fs::read_dir(&self.pilot.folder.0).unwrap().flatten() {
            if entry.path().is_dir() && entry.path() != self.pilot.state() {
                std::fs::remove_dir_all(entry.path()).unwrap();
            }
        }
    }

    /// What holds after every command.
    fn look(&self, said: &str) {
        let served = self.pilot.public("GET", "/healthz", None);
        assert_eq!(served.json()["status"], "healthy", "{said}");
        assert_eq!(torn(&self.pilot.state()), [""; 0], "{said}");
        let verified = self.pilot.xtask(&["releases", "verify"]);
        assert_eq!(verified.code, 0, "{said}\n{}", verified.all());
        assert!(self.pilot.has_scenario(), "the data is gone: {said}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.disk.stop();
        power_off(&self.pilot);
    }
}

/// Kills all that runs of this pilot, as a power cut does, and waits until it has ended: by then it has no file open.
fn power_off(pilot: &Pilot) {
    let state = pilot.state().display().to_string();
    let read = |pid: i32, file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let is_ours = |pid: i32| read(pid, "environ").contains(&state) || read(pid, "cmdline").contains(&state);
    let me = std::process::id().cast_signed();
    let limit = Instant::now() + LONGEST;
    let mut ending = BTreeSet::new();
    loop {
        let names = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
        let pids = names.filter_map(|name| name.to_string_lossy().parse::<i32>().ok());
        let found: Vec<i32> = pids.filter(|pid| *pid != me && is_ours(*pid)).collect();
        for pid in &found {
            kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).ok();
        }
        ending.extend(found.iter().copied());
        ending.retain(|pid| {
            let stat = read(*pid, "stat");
            !stat.is_empty() && !stat.contains(") Z ")
        });
        if found.is_empty() && ending.is_empty() {
            return;
        }
        assert!(Instant::now() < limit, "{ending:?} do not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The files of the tool that are empty or cannot be understood. What a cut-off write leaves under a name of its own
/// is none of them, nor is what the services write.
fn torn(state: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![state.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let below = path.strip_prefix(state).unwrap().display().to_string();
            let unfinished = name.starts_with('.') && name != ".env.poc" || name.ends_with(".new");
            if unfinished || ["process/volumes", "process/trash"].contains(&below.as_str()) {
                continue;
            }
            if path.is_dir() {
                // A backup without its index is not made yet, and in no list.
                let made =
                    below == "backups" || !name.starts_with("backup") || path.join("backup.json").exists();
                open.extend(made.then_some(path));
            } else if let Some(why) = wrong(&path, &name) {
                found.push(format!("{below}: {why}"));
            }
        }
    }
    found.sort();
    found
}

/// What is wrong with a file.
fn wrong(path: &Path, name: &str) -> Option<String> {
    let text = match std::fs::read(path) {
        Ok(bytes) if bytes.is_empty() => {
            // Locks and marks are empty, and a service or a run may have said nothing yet.
            let may_be =
                ["lock", "opening", "alive", "log", "counts.lock", "given-up", "owes-data", "journal.jsonl"];
            let may_be = may_be.contains(&name);
            return (!may_be && !name.ends_with(".log")).then(|| "it is empty".into());
        }
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return Some(error.to_string()),
    };
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).err().map(|e| e.to_string());
    match name.rsplit_once('.').map(|(_, end)| end) {
        Some("json") => json(&text),
        Some("toml") => toml::from_str::<toml::Table>(&text).err().map(|error| error.to_string()),
        // The line that was being written is torn, with or without its end. No other is.
        Some("jsonl") => {
            let torn: Vec<String> = text.lines().filter_map(json).collect();
            (torn.len() > 1).then(|| torn.join(", "))
        }
        _ => None,
    }
}

/// Can a disk be mounted? If not, it is said that the test is skipped.
fn can_mount(name: &str) -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        skip(name, "only root mounts a file system, and /dev/fuse must be there");
    }
    can
}

/// Cuts the power at a few points of the command, or at all.
fn cut_everywhere(story: &Story) {
    if !can_mount(story.name) {
        return;
    }
    let mut random = Random::new();
    let bench = Bench::new(story.name);
    let mut failed = Vec::new();
    let lot = random.below(u64::MAX / 2);
    let mut try_at = |change: usize| {
        let mut random = Random::of(lot.wrapping_add(change as u64));
        match catch_unwind(AssertUnwindSafe(|| bench.cut(story, change, &mut random))) {
            Ok(at) => println!("{}, {change}: {}", story.name, at.as_deref().unwrap_or("after the end")),
            Err(_) => {
                println!("{}, {change}: DID NOT HOLD", story.name);
                failed.push(change);
            }
        }
    };
    // To the end first, and then the power fails: so many changes there are.
    try_at(usize::MAX);
    let changes = bench.disk.so_many();
    assert!(changes > 50, "only {changes} changes");
    let first = random.below((changes / FEW) as u64) as usize;
    let points: Vec<usize> = match std::env::var("PILOT_CUT").ok() {
        Some(some) => some.split(',').map(|one| one.parse().unwrap()).collect(),
        None if std::env::var_os("PILOT_TRIES").is_some() => (1..=changes).collect(),
        None => (1 + first..=changes).step_by(changes / FEW).collect(),
    };
    points.iter().for_each(|change| try_at(*change));
    println!("{}: {} cuts of {changes}, {} did not hold", story.name, points.len() + 1, failed.len());
    assert_eq!(failed, [0; 0], "did not hold, each for the reason that it gave above");
}

fn is_good_again(bench: &Bench, _: &str, said: &str) {
    assert!(bench.pilot.env_text() == bench.good, "the env file is another one: {said}");
    assert_eq!(bench.pilot.running_values("engine")["USE_SIMULATION"], true);
}

fn is_deployed(bench: &Bench, settings: &str, said: &str) {
    assert!(bench.pilot.env_text() == settings, "it is not deployed any more: {said}");
    assert_eq!(bench.pilot.running_values("engine")["DEFAULT_SEED"], 43);
}

#[test]
fn a_rollback_finishes_after_a_power_cut_at_any_write() {
    cut_everywhere(&Story {
        name: "power-rollback",
        words: &["rollback"],
        begin: |pilot| {
            pilot.edit_env("USE_SIMULATION", "false");
            pilot.xtask(&["up", "--stay"]).expect(1);
        },
        end: is_good_again,
    });
}

#[test]
fn a_reset_finishes_after_a_power_cut_at_any_write_and_keeps_the_data() {
    cut_everywhere(&Story {
        name: "power-reset",
        words: &["reset", "--yes", "--keep-data"],
        begin: |_| {},
        end: is_good_again,
    });
}

#[test]
fn a_deployment_finishes_after_a_power_cut_at_any_write() {
    cut_everywhere(&Story {
        name: "power-up",
        words: &["up"],
        begin: |pilot| pilot.edit_env("DEFAULT_SEED", "43"),
        end: is_deployed,
    });
}

#[test]
fn a_gate_that_was_closed_by_hand_is_closed_after_a_power_cut() {
    if !can_mount("power-gate") {
        return;
    }
    let mut random = Random::new();
    let bench = Bench::new("power-gate");
    for _ in 0..tries(3) {
        bench.be_well();
        bench.disk.stop_at(usize::MAX);
        bench.pilot.xtask(&["kill-switch", "on", "--reason", "test"]).expect(0);
        bench.disk.stop();
        power_off(&bench.pilot);
        bench.disk.power_cut(&mut random);
        // As the gateway would come up if something started it.
        let position = std::fs::read_to_string(bench.pilot.state().join("process/volumes/gateway/gate.json"));
        assert!(position.is_ok_and(|text| text.contains("\"closed\":true")));
        bench.pilot.xtask(&["rollback"]).expect(9);
        assert_eq!(bench.pilot.public("GET", "/healthz", None).json()["status"], "disabled");
    }
}

/// The kernel and the disk understand each other.
#[test]
fn the_disk_does_what_a_disk_does_until_it_stops() {
    if !can_mount("power-disk") {
        return;
    }
    let folder = Folder::new("power-disk");
    let disk = Disk::mount(&folder.0.join("disk"));
    let at = |name: &str| folder.0.join("disk").join(name);
    std::fs::create_dir_all(at("a/b")).unwrap();
    (0..500).for_each(|n| std::fs::write(at(&format!("a/b/{n}")), n.to_string()).unwrap());
    assert_eq!(std::fs::read_dir(at("a/b")).unwrap().count(), 500);
    std::fs::write(at("one"), "one").unwrap();
    std::fs::write(at("two"), vec![b'2'; 3 << 20]).unwrap();
    std::fs::hard_link(at("one"), at("a/three")).unwrap();
    std::os::unix::fs::symlink("a/three", at("link")).unwrap();
    let cwd = rustix::fs::CWD;
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(cwd, at("one"), cwd, at("two"), exchange).unwrap();
    assert_eq!(std::fs::metadata(at("one")).unwrap().len(), 3 << 20);
    assert_eq!(std::fs::read_to_string(at("link")).unwrap(), "one");
    let mut log = std::fs::File::options().append(true).open(at("two")).unwrap();
    log.write_all(b" more").unwrap();
    assert_eq!(std::fs::read_to_string(at("link")).unwrap(), "one more");
    assert!(std::fs::rename(at("one"), at("nowhere/one")).is_err() && std::fs::remove_dir(at("a")).is_err());
    drop(log);
    std::fs::remove_dir_all(at("a")).unwrap();
    // The third change does not happen, nor does anything after it.
    disk.stop_at(3);
    let mut new = std::fs::File::create(at("new")).unwrap();
    new.write_all(b"new").unwrap();
    assert!(new.sync_all().is_err() && std::fs::read(at("one")).is_err());
    assert_eq!(disk.stopped().unwrap(), "sync new");
    drop(new);
    let mut random = Random::of(1);
    disk.power_cut(&mut random);
    assert_eq!(std::fs::read(at("one")).unwrap(), vec![b'2'; 3 << 20]);
}
