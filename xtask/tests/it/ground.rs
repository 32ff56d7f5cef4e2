//! The ground that every command stands on: the lock, state files, temporary folders, names, requests, full
//! disks. What is damaged or hostile there is refused or gone around, in bounded time and memory.

use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{Folder, Pilot, Ran, docker, on, ran, skip};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest that any command of these tests may take: it is ended then, with 124.
const LIMIT: &str = "120";

/// A command of the pilot within `timeout`, and within so many KiB of memory that it can write to, where that is
/// given: addresses that are only set aside (a part for each thread) are no memory.
fn limited(pilot: &Pilot, memory: Option<u64>, args: &[&str]) -> Ran {
    let command = pilot.command(args);
    let mut outer = Command::new("timeout");
    let limit = memory.map_or("unlimited".to_owned(), |kib| kib.to_string());
    outer.args([LIMIT, "sh", "-c", "ulimit -d \"$0\"; exec \"$@\"", &limit]);
    outer.arg(command.get_program()).args(command.get_args()).current_dir(&pilot.root).stdin(Stdio::null());
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    ran(outer.output().unwrap())
}

/// A command that is ended when dropped.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A command that has the lock, stopped in the middle of what it does.
fn stopped(pilot: &Pilot, args: &[&str]) -> Held {
    let child = Held(pilot.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let limit = Instant::now() + Duration::from_secs(60);
    let has_lock = || {
        let note = std::fs::read_to_string(pilot.state().join("lock")).unwrap_or_default();
        note.contains(&format!("process {},", child.0.id()))
    };
    while !has_lock() {
        assert!(Instant::now() < limit, "the lock was not taken");
        std::thread::sleep(Duration::from_micros(200));
    }
    assert!(Command::new("kill").args(["-STOP", &child.0.id().to_string()]).status().unwrap().success());
    child
}

#[test]
fn a_stopped_holder_is_named_with_a_way_round_even_when_its_lock_file_is_deleted() {
    on(&[Process], "stopped-holder", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("DEFAULT_SEED", "7");
        let mut holder = stopped(&pilot, &["rollback"]);
        let pid = holder.0.id().to_string();
        let refused = pilot.json(&["rollback"]).expect(5).finished();
        let error = refused["error"].as_str().unwrap().to_owned();
        for word in ["`cargo xtask rollback`", &format!("process {pid}, since 20"), "it is stopped"] {
            assert!(error.contains(word), "{error}");
        }
        std::fs::remove_file(pilot.state().join("lock")).unwrap();
        let refused = pilot.json(&["rollback"]).expect(5).finished();
        let error = refused["error"].as_str().unwrap().to_owned();
        for word in [" rollback`", &format!("process {pid}, since 20"), "it is stopped"] {
            assert!(error.contains(word), "{error}");
        }
        // The way round, pasted.
        let next = refused["next"].as_str().unwrap();
        assert_eq!(next, format!("kill -KILL {pid}"));
        assert!(Command::new("sh").args(["-c", next]).status().unwrap().success());
        holder.0.wait().unwrap();
        pilot.xtask(&["rollback"]).expect(0);
        assert_ne!(pilot.setting("DEFAULT_SEED"), "7");
    });
}

#[test]
fn a_lock_that_is_a_link_overwrites_nothing_and_is_a_lock_all_the_same() {
    on(&[Process], "link-lock", |pilot| {
        let pilot = pilot.up();
        let precious = pilot.folder.0.join("precious");
        std::fs::write(&precious, "precious").unwrap();
        let lock = pilot.state().join("lock");
        std::fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink(&precious, &lock).unwrap();
        pilot.xtask(&["rollback"]).expect(0);
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        let folder = std::fs::File::open(pilot.state()).unwrap();
        folder.lock().unwrap();
        let refused = pilot.xtask(&["rollback"]).expect(5);
        assert!(refused.err.contains(&format!("process {}", std::process::id())), "{}", refused.err);
    });
}

/// A small disk of a test's own, taken away when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        Self::ask(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], at).map(|()| Self(at.to_owned()))
    }

    fn ask(words: &[&str], at: &Path) -> Result<(), String> {
        let output = Command::new("mount").args(words).arg(at).output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().unwrap();
    }
}

#[test]
fn a_state_folder_that_cannot_be_written_is_no_obstacle_to_taking_the_pilot_down() {
    on(&[Process], "read-only", |pilot| {
        let disk = match Disk::mount(&pilot.state(), "300M") {
            Ok(disk) => disk,
            Err(why) => return skip("read-only state folder", &why),
        };
        let pilot = pilot.up();
        let port = pilot.port("gateway");
        // The services have files open to write, so the disk itself cannot become read-only: a look at it can.
        Disk::ask(&["--bind", &pilot.state().display().to_string()], &pilot.state()).unwrap();
        let looked = Disk(pilot.state());
        Disk::ask(&["-o", "remount,bind,ro"], &pilot.state()).unwrap();
        std::fs::write(pilot.state().join("x"), "").unwrap_err();
        pilot.xtask(&["down"]).expect(0);
        assert!(crate::http::try_http("GET", port, "/healthz", &[], None).is_err());
        drop(looked);
        pilot.xtask(&["rollback"]).expect(0);
        pilot.xtask(&["down"]).expect(0);
        drop(disk);
    });
}

/// Between the public and a gateway: passes all on, but answers a stream with `head` and `more` for ever.
fn hostile(listener: &TcpListener, gateway: u16, head: &'static str, more: &'static str, stop: &AtomicBool) {
    let answer = |mut socket: TcpStream| {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(Duration::from_secs(5)))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut request = vec![0; 65536];
        let length = socket.read(&mut request)?;
        if !request.starts_with(b"GET /stream") {
            let mut there = TcpStream::connect(("127.0.0.1", gateway))?;
            there.set_read_timeout(Some(Duration::from_millis(500)))?;
            there.write_all(&request[..length])?;
            // It keeps the connection: what came within that time is the answer.
            let mut whole = Vec::new();
            there.read_to_end(&mut whole).ok();
            return socket.write_all(&whole);
        }
        socket.write_all(head.as_bytes())?;
        let more = more.repeat(4096);
        while !stop.load(Ordering::Relaxed) {
            socket.write_all(more.as_bytes())?;
        }
        Ok::<_, std::io::Error>(())
    };
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((socket, _)) => drop(scope.spawn(move || answer(socket).ok())),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    });
}

#[test]
fn a_gateway_that_never_stops_answering_costs_no_memory() {
    on(&[Process], "endless", |pilot| {
        let pilot = pilot.up();
        let gateway = pilot.port("gateway");
        let model = pilot.state().join("releases/r1/model.json");
        let whole = std::fs::read_to_string(&model).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let published = |port: u16| format!("\"published\": {port}");
        let other = published(listener.local_addr().unwrap().port());
        assert!(whole.contains(&published(gateway)), "{whole}");
        std::fs::write(&model, whole.replace(&published(gateway), &other)).unwrap();
        let ok = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
        let event = "id: msg_001\nevent: token\ndata: {\"text\": \"\"}\n\n";
        for (head, more) in [(ok, "x"), (ok, event), ("HTTP/1.1 200 OK\r\n", "a: b\r\n")] {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| hostile(&listener, gateway, head, more, &stop));
                let ran = limited(&pilot, Some(300_000), &["smoke"]);
                stop.store(true, Ordering::Relaxed);
                assert_eq!(ran.code, 1, "{more:?}: {}", ran.all());
            });
        }
        std::fs::write(&model, whole).unwrap();
        pilot.xtask(&["rollback"]).expect(0);
    });
}

#[test]
fn a_project_is_not_called_so_that_it_has_what_is_anothers() {
    let call = |project: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["--project", project, "--engine", "process", "status"]);
        command.current_dir(crate::pilot::workspace()).env_remove("PILOT_STATE_DIR");
        ran(command.output().unwrap())
    };
    for (project, why) in [
        ("scenario", "would share an image or a network"),
        ("pilot", "would share an image or a network"),
        ("pilot-drill-mine", "drill"),
        ("a-", "letters and digits"),
        ("a--b", "letters and digits"),
        ("../a", "letters and digits"),
        (&"a".repeat(200), "at most 63"),
    ] {
        let refused = call(project).expect(2);
        assert!(refused.err.contains(why), "{project}: {}", refused.err);
    }
    // Nothing was made for any of them.
    assert!(!crate::pilot::workspace().join(".pilot/projects/scenario").exists());
}

#[test]
fn a_state_file_that_is_no_file_hangs_nothing() {
    on(&[Process], "no-file", |pilot| {
        let pilot = pilot.up();
        let state = pilot.state();
        let paths = ["current", "releases/r1/release.json", "process/tags.json", ".env.poc"];
        for path in paths.map(|path| state.join(path)) {
            let bytes = std::fs::read(&path).unwrap();
            for how in ["folder", "pipe", "zero"] {
                std::fs::remove_file(&path).unwrap();
                match how {
                    "folder" => std::fs::create_dir(&path).unwrap(),
                    "pipe" => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
                    _ => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                }
                for command in ["status", "assess", "diagnose", "preflight", "rollback"] {
                    let ran = limited(&pilot, Some(2_000_000), &[command]);
                    let told = format!("{command}, {} is a {how}: {}", path.display(), ran.all());
                    assert!((0..=9).contains(&ran.code), "{} {told}", ran.code);
                    assert!(!ran.all().contains("panicked"), "{told}");
                }
                // Unless the rollback has restored it.
                match path.symlink_metadata() {
                    Ok(data) if data.is_dir() => std::fs::remove_dir(&path).unwrap(),
                    Ok(_) => std::fs::remove_file(&path).unwrap(),
                    Err(_) => {}
                }
                std::fs::write(&path, &bytes).unwrap();
            }
        }
        pilot.xtask(&["rollback"]).expect(0);
    });
}

#[test]
fn a_state_folder_that_is_a_file_is_told_as_that() {
    on(&[Process], "state-file", |pilot| {
        std::fs::write(pilot.state(), "precious").unwrap();
        for command in ["status", "up", "rollback", "down"] {
            let refused = pilot.xtask(&[command]).expect(2);
            assert!(refused.err.contains("is not a folder"), "{command}: {}", refused.err);
        }
        assert_eq!(std::fs::read_to_string(pilot.state()).unwrap(), "precious");
        std::fs::remove_file(pilot.state()).unwrap();
    });
}

#[test]
fn without_a_home_and_a_temporary_folder_it_works() {
    on(&[Process], "homeless", |pilot| homeless(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn homeless(pilot: &mut Pilot) {
    // Docker's client looks for its settings at home; where temporary files go is the tool's own business.
    let folders = ["/nonexistent/tmp", "/proc", ""];
    for folder in &folders[..if pilot.engine == Process { 3 } else { 1 }] {
        pilot.set("TMPDIR", folder);
        pilot.edit_env("DEFAULT_SEED", "7");
        let mut command = pilot.command(&["rollback"]);
        ran(command.env_remove("HOME").output().unwrap()).expect(0);
        assert_ne!(pilot.setting("DEFAULT_SEED"), "7", "{folder}");
    }
}

/// Fills a disk up to so many bytes.
fn fill(folder: &Path, but: u64) {
    let filler = std::fs::File::create(folder.join("filler")).unwrap();
    let mut filler = std::io::BufWriter::new(filler);
    while filler.write_all(&[0; 65536]).is_ok() && filler.flush().is_ok() {}
    let file = std::fs::File::options().write(true).open(folder.join("filler")).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(but)).unwrap();
}

#[test]
fn a_disk_that_is_full_for_a_copy_of_data_is_told_as_that() {
    on(&[Process], "full-copy", |pilot| full_for_a_copy(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn full_for_a_copy(pilot: &mut Pilot) {
    let folder = Folder::new("full-copy-disk");
    // Nothing that could be compressed.
    let mut state = 1u32;
    let many = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    });
    let many: Vec<u8> = many.take(6_000_000).collect();
    pilot.overwrite("jobs", "large", &many);
    // Backups go to a small disk.
    let backups = pilot.state().join("backups");
    let _disk = match Disk::mount(&backups, "16M") {
        Ok(disk) => disk,
        Err(why) => return skip("full disk", &why),
    };
    fill(&backups, 3 << 20);
    let ran = limited(pilot, None, &["--format", "json", "backup", "create"]);
    let told = ran.expect(4).finished();
    let error = told["error"].as_str().unwrap();
    assert!(error.contains("is full") && error.contains("are free"), "{error}");
    assert!(told["next"].as_str().unwrap().contains("host --free"), "{told}");
    let left: Vec<_> = std::fs::read_dir(&backups).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["filler"], "half a backup is left");
    // With room again it is made.
    std::fs::remove_file(backups.join("filler")).unwrap();
    pilot.xtask(&["backup", "create"]).expect(0);
    drop(folder);
    if pilot.engine == Compose2 {
        let own = docker(&["ps", "-a", "--format", "{{.Names}}"]);
        assert!(!own.contains(&format!("{}-helper", pilot.project)), "{own}");
    }
}
