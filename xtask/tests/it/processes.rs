//! The engine of local processes, whatever was killed, stopped, deleted or altered under it: the next command
//! finds every process of the project, and finishes.

use crate::http::try_http;
use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, Random, on, tries};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Supervisors and services of a pilot, by process id, found by what they were started with and not by
/// anything that the pilot wrote down.
struct Found {
    supervisors: Vec<u32>,
    services: Vec<u32>,
}

fn processes(pilot: &Pilot) -> Found {
    let mut found = Found { supervisors: Vec::new(), services: Vec::new() };
    let data = format!("SCENARIO_DATA={}", pilot.state().join("process/volumes").display());
    let spec = pilot.state().join("process/services").display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let words = read("cmdline");
        if words.contains("supervise") && words.contains(&spec) {
            found.supervisors.push(pid);
        } else if read("environ").split('\0').any(|v| v.starts_with(&data)) {
            found.services.push(pid);
        }
    }
    found
}

/// All services run, each with its supervisor, and nothing else.
#[track_caller]
fn whole(pilot: &Pilot, when: &str) {
    let found = processes(pilot);
    let counts = (found.supervisors.len(), found.services.len());
    assert_eq!(counts, (3, 3), "{when}: {:?} {:?}", found.supervisors, found.services);
    let answer = pilot.public("GET", "/healthz", None);
    assert_eq!(answer.json()["status"], "healthy", "{when}: {}", answer.body);
}

#[track_caller]
fn none_left(pilot: &Pilot, when: &str) {
    // What was killed may take a moment to be gone.
    let limit = Instant::now() + Duration::from_secs(5);
    loop {
        let found = processes(pilot);
        if found.supervisors.is_empty() && found.services.is_empty() {
            return;
        }
        assert!(Instant::now() < limit, "{when}: {:?} {:?} are left", found.supervisors, found.services);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(pids: &[u32], name: &str) {
    for pid in pids {
        let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
        assert!(sent.success(), "kill -{name} {pid}");
    }
}

/// Waits until a service is about to be started: its description was written anew.
fn wait_for_a_start(pilot: &Pilot, child: &mut Child) {
    let paths: Vec<PathBuf> = ["gateway", "engine", "jobs"]
        .iter()
        .map(|s| pilot.state().join("process/services").join(s).join("service.json"))
        .collect();
    let inodes = || paths.iter().map(|p| p.metadata().map_or(0, |m| m.ino())).collect::<Vec<_>>();
    let before = inodes();
    while inodes().iter().zip(&before).all(|(now, old)| now == old || *now == 0) {
        if child.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn killed_at_any_instant_the_next_command_finishes_and_knows_every_process() {
    on(&[Process], "killed-anywhere", |pilot| {
        let pilot = pilot.up();
        let mut random = Random::new();
        let commands: [&[&str]; 4] = [&["rollback"], &["reset", "--yes"], &["down"], &["up"]];
        for n in 0..tries(24) {
            let words = commands[random.below(4) as usize];
            if words[0] != "down" {
                // Something to do for each of them.
                pilot.edit_env("DEFAULT_SEED", &(n + 43).to_string());
            }
            let mut command = pilot.command(words);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let delay = if random.below(3) == 0 {
                random.below(600_000)
            } else {
                wait_for_a_start(&pilot, &mut child);
                random.below(6_000)
            };
            std::thread::sleep(Duration::from_micros(delay));
            child.kill().unwrap();
            child.wait().unwrap();
            let when = format!("try {n}: `{}` killed {delay} µs on", words.join(" "));
            let next = if random.below(3) == 0 { "down" } else { "rollback" };
            let ran = pilot.xtask(&[next]);
            assert_eq!(ran.code, 0, "{when}, then {next}\n{}", ran.all());
            if next == "down" {
                none_left(&pilot, &when);
                pilot.xtask(&["rollback"]).expect(0);
            }
            whole(&pilot, &when);
        }
        pilot.xtask(&["down"]).expect(0);
        none_left(&pilot, "at the end");
    });
}

#[test]
fn processes_whose_state_folder_was_deleted_are_found_and_ended() {
    on(&[Process], "deleted", |pilot| {
        let pilot = pilot.up();
        let env = pilot.env_text();
        std::fs::remove_dir_all(pilot.state()).unwrap();
        pilot.xtask(&["down"]).expect(0);
        none_left(&pilot, "deleted, then down");
        // With the same ports: they are held by what is the pilot's own.
        let again = |how: &str| {
            std::fs::create_dir_all(pilot.state()).unwrap();
            std::fs::write(pilot.env_path(), &env).unwrap();
            pilot.xtask(&["up"]).expect(0);
            whole(&pilot, how);
        };
        again("down, then up");
        std::fs::remove_dir_all(pilot.state()).unwrap();
        again("deleted, then up");
        // Moved away, somebody else's copy now.
        std::fs::rename(pilot.state(), pilot.folder.0.join("elsewhere")).unwrap();
        again("moved, then up");
        std::fs::remove_dir_all(pilot.state().join("process/services/gateway")).unwrap();
        pilot.xtask(&["rollback"]).expect(0);
        whole(&pilot, "the folder of one service deleted");
    });
}

#[test]
fn stopped_processes_are_ended_too() {
    on(&[Process], "stopped", |pilot| {
        let pilot = pilot.up();
        let found = processes(&pilot);
        signal(&found.supervisors, "STOP");
        signal(&found.services, "STOP");
        pilot.xtask(&["down"]).expect(0);
        none_left(&pilot, "stopped, then down");
    });
}

#[test]
fn a_service_without_its_supervisor_is_replaced() {
    on(&[Process], "lone", |pilot| {
        let pilot = pilot.up();
        signal(&processes(&pilot).supervisors, "KILL");
        let ran = pilot.json(&["rollback"]).expect(0);
        assert_eq!(ran.finished()["outcome"], "restored", "{}", ran.out);
        whole(&pilot, "without supervisors");
    });
}

#[test]
fn a_service_whose_description_cannot_be_read_is_replaced() {
    on(&[Process], "spec", |pilot| {
        let pilot = pilot.up();
        let path = pilot.state().join("process/services/engine/service.json");
        for how in ["half", "gone", "a folder", "a pipe"] {
            std::fs::remove_file(&path).unwrap();
            match how {
                "half" => std::fs::write(&path, "{\"image\": \"sha").unwrap(),
                "a folder" => std::fs::create_dir(&path).unwrap(),
                "a pipe" => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
                _ => {}
            }
            let limited = ["timeout", "60"].map(str::to_owned).to_vec();
            let ran = crate::pilot::ran(within(&pilot, &limited, &["rollback"]).output().unwrap());
            assert_eq!(ran.code, 0, "{how}: {}", ran.all());
            whole(&pilot, how);
        }
    });
}

/// A command of the pilot, run by another program.
fn within(pilot: &Pilot, by: &[String], args: &[&str]) -> Command {
    let command = pilot.command(args);
    let mut outer = Command::new(&by[0]);
    outer.args(&by[1..]).arg(command.get_program()).args(command.get_args()).current_dir(&pilot.root);
    outer.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?)))).stdin(Stdio::null());
    outer
}

#[test]
fn whoever_looks_keeps_no_service_from_starting() {
    on(&[Process], "looker", |pilot| {
        let pilot = pilot.up();
        let held: Vec<std::fs::File> = ["gateway", "engine", "jobs"]
            .iter()
            .map(|s| {
                pilot.xtask(&["down"]).expect(0);
                let path = pilot.state().join("process/services").join(s).join("alive");
                let file = std::fs::File::open(path).unwrap();
                file.lock_shared().unwrap();
                file
            })
            .collect();
        pilot.xtask(&["rollback"]).expect(0);
        whole(&pilot, "looked at");
        drop(held);
    });
}

#[test]
fn a_process_id_that_is_written_down_ends_nobody() {
    on(&[Process], "reused", |pilot| {
        use std::os::unix::process::CommandExt;
        let pilot = pilot.up();
        pilot.xtask(&["down"]).expect(0);
        let mut stranger = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let path = pilot.state().join("process/services/engine/alive");
        std::fs::write(&path, format!("{}\n", stranger.id())).unwrap();
        let held = std::fs::File::open(&path).unwrap();
        held.lock().unwrap();
        let ran = pilot.xtask(&["down"]);
        let alive = stranger.try_wait().unwrap().is_none();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert!(alive, "a stranger was ended");
        // Who holds it is named, or it does not matter to the command.
        assert!(ran.code == 0 || ran.err.contains(&std::process::id().to_string()), "{}", ran.err);
        drop(held);
        pilot.xtask(&["rollback"]).expect(0);
        whole(&pilot, "at the end");
    });
}

#[test]
fn a_supervisor_needs_nothing_but_the_program() {
    on(&[Process], "bare", |pilot| {
        let pilot = pilot.up();
        let dir = pilot.state().join("process/services/gateway");
        // As on a full disk: neither the count nor the log can be written.
        for name in ["restarts", "log"] {
            std::fs::remove_file(dir.join(name)).unwrap();
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        signal(&processes(&pilot).services, "KILL");
        let limit = Instant::now() + Duration::from_secs(20);
        let port = pilot.port("gateway");
        while try_http("GET", port, "/healthz", &[], None).is_err() {
            assert!(Instant::now() < limit, "the gateway was not started again");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}
