//! Archives and descriptions that somebody made by hand: whatever is in them, nothing is written, followed or
//! waited for outside the state folder, and what was there before is still there, byte for byte.

use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, Ran, on, ran};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One entry of an archive.
#[derive(Clone)]
struct Entry {
    name: String,
    kind: u8,
    link: String,
    data: Vec<u8>,
    /// What its header says, where that is not the truth.
    claims: Option<u64>,
}

fn file(name: &str, data: impl Into<Vec<u8>>) -> Entry {
    Entry { name: name.into(), kind: b'0', link: String::new(), data: data.into(), claims: None }
}

fn special(name: &str, kind: u8, link: &str) -> Entry {
    Entry { kind, link: link.into(), ..file(name, "") }
}

/// The archive, header by header (POSIX pax, "ustar Interchange Format").
fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in entries {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, entry.name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        let size = entry.claims.unwrap_or(entry.data.len() as u64);
        if size < 1 << 33 {
            put(124, format!("{size:011o}\0").as_bytes());
        } else {
            put(124, &[0x80]);
            put(128, &size.to_be_bytes());
        }
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[entry.kind]);
        put(157, entry.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        all.extend(header);
        all.extend(&entry.data);
        all.resize(all.len().next_multiple_of(512), 0);
    }
    all.extend([0; 1024]);
    all
}

fn sum(bytes: &[u8]) -> String {
    let child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()[..64].to_owned()
}

/// A small release that is in order, as an older version has exported it: its image is an archive.
fn sound(pilot: &Pilot) -> (Value, Value) {
    let id = sum(b"image's id");
    let image = json!({"id": format!("sha256:{id}"), "tag": format!("{}-gateway:latest", pilot.project), "archive": sum(b"image")});
    let release = json!({
        "version": 1, "id": "r1", "state": "known-good", "reason": null, "created_ms": 1, "verified_ms": 2,
        "label": "v1.0.0", "commit": null, "same_commits": [], "engine": "process",
        "images": {"gateway": image}, "files": {".env.poc": sum(b"A=1\n"), "seed/a.json": sum(b"{}")},
        "xtask": sum(b"xtask"), "settings": {},
    });
    (json!({"version": 1, "project": pilot.project, "release": "r1"}), release)
}

fn packed(index: &Value, release: &Value) -> Vec<Entry> {
    let image = release["images"]["gateway"]["id"].as_str().unwrap_or_default().replace("sha256:", "");
    let id = index["release"].as_str().unwrap();
    vec![
        file("export.json", index.to_string()),
        special(&format!("releases/{id}/"), b'5', ""),
        file(&format!("releases/{id}/release.json"), release.to_string()),
        file(&format!("releases/{id}/.env.poc"), "A=1\n"),
        file(&format!("releases/{id}/seed/a.json"), "{}"),
        file(&format!("bin/{}", release["xtask"].as_str().unwrap()), "xtask"),
        file(&format!("images/{image}.tar"), "image"),
    ]
}

/// The same as it is exported now: the image is an index, and what that names.
fn indexed(index: &Value, release: &Value) -> Vec<Entry> {
    let blob = "a layer";
    let text = format!("image index 1\nbytes 4\nheadblob {} {}\n", sum(blob.as_bytes()), blob.len());
    let mut release = release.clone();
    release["images"]["gateway"]["archive"] = Value::Null;
    release["images"]["gateway"]["index"] = json!(sum(text.as_bytes()));
    let mut all = packed(index, &release);
    all.pop();
    all.push(file(&format!("blobs/{}", sum(text.as_bytes())), text));
    all.push(file(&format!("blobs/{}", sum(blob.as_bytes())), blob));
    all
}

/// Everything below a folder with its content, but for the lock.
fn all_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let link = path.is_symlink();
        match path.is_dir() && !link {
            true => {
                all.push((path.clone(), Vec::new()));
                all.extend(all_below(&path));
            }
            false if path.ends_with("lock") => {}
            false => {
                all.push((path.clone(), if link { b"link".into() } else { std::fs::read(&path).unwrap() }))
            }
        }
    }
    all.sort();
    all
}

/// The command, ended when it waits for something.
fn limited(pilot: &Pilot, args: &[&str]) -> Ran {
    let command = pilot.command(args);
    let mut limited = Command::new("timeout");
    limited.args(["--signal=KILL", "60"]).arg(command.get_program()).args(command.get_args());
    limited.current_dir(&pilot.root).stdin(Stdio::null());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    ran(limited.output().unwrap())
}

fn write(pilot: &Pilot, bytes: &[u8]) -> String {
    let path = pilot.folder.0.join("hostile.tar");
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[track_caller]
fn assert_refused(pilot: &Pilot, what: &str, bytes: &[u8]) {
    let path = write(pilot, bytes);
    // The audit log says that it was refused.
    let all = || {
        let mut all = all_below(&pilot.folder.0);
        all.retain(|(path, _)| !path.ends_with("audit.log"));
        all
    };
    let before = all();
    let ran = pilot.xtask(&["releases", "import", &path]);
    // 2: it is no archive of a release at all.
    assert!(matches!(ran.code, 1 | 2), "{what}: {}", ran.all());
    assert!(ran.err.contains("hostile.tar") && !ran.err.contains("panicked"), "{what}: {}", ran.err);
    let after = all();
    let new: Vec<&PathBuf> = after.iter().filter(|e| !before.contains(e)).map(|(path, _)| path).collect();
    assert!(new.is_empty() && before.len() == after.len(), "{what} left {new:?}; {}", ran.all());
}

#[test]
fn a_sound_archive_is_taken_in_and_hostile_ones_leave_nothing() {
    on(&[Process], "hostile", |pilot| {
        let (index, release) = sound(&pilot);
        let good = packed(&index, &release);
        std::fs::create_dir_all(pilot.state()).unwrap();
        // Descriptions that lead out, or to somebody else's things.
        let changes: [(&str, Value); 15] = [
            ("/images/gateway/id", json!("../../x")),
            ("/images/gateway/id", json!("sha256:../../../x")),
            ("/images/gateway/id", json!("sha256:abc")),
            ("/images/gateway/tag", json!("--help")),
            ("/images/gateway/archive", json!(null)),
            ("/images/gateway/archive", json!(sum(b"other"))),
            ("/images", json!({"../../x": release["images"]["gateway"]})),
            ("/files", json!({"../../x": sum(b"A=1\n")})),
            ("/files", json!({"/tmp/x": sum(b"A=1\n")})),
            ("/files", json!({"release.json": sum(b"A=1\n")})),
            ("/xtask", json!("../../x")),
            ("/label", json!("--privileged")),
            ("/label", json!("v1\u{1b}[2J")),
            ("/id", json!("../../x")),
            ("/version", json!(4)),
        ];
        for (pointer, value) in changes {
            let mut changed = release.clone();
            *changed.pointer_mut(pointer).unwrap() = value.clone();
            assert_refused(&pilot, &format!("{pointer} {value}"), &tar(&packed(&index, &changed)));
        }
        for id in ["../../x", "r01", "r", "R1", ".r1", "r1/x"] {
            let mut index = index.clone();
            index["release"] = json!(id);
            assert_refused(&pilot, &format!("release {id}"), &tar(&packed(&index, &release)));
        }
        // Entries that are no files, or lie about what they are.
        let outside = pilot.folder.0.join("outside");
        std::fs::create_dir(&outside).unwrap();
        let target = outside.display().to_string();
        let through = format!("images/{}.tar", sum(b"image's id"));
        let more: Vec<(&str, Vec<Entry>)> = vec![
            ("a symbolic link", vec![special("releases/r1/x", b'2', "/etc/passwd")]),
            (
                "a link that is written through",
                vec![special("images", b'2', &target), file(&through, "image")],
            ),
            ("a hard link", vec![special("releases/r1/x", b'1', "/etc/passwd")]),
            ("a pipe", vec![special("releases/r1/x", b'6', "")]),
            ("a device", vec![special("releases/r1/x", b'3', "")]),
            ("a sparse file", vec![special("releases/r1/x", b'S', "")]),
            ("a longer name", vec![Entry { kind: b'L', ..file("././@LongLink", "releases/r1/x\0") }]),
            ("another header", vec![Entry { kind: b'x', ..file("PaxHeader", "22 path=releases/r1/x\n") }]),
            ("a path that leads out", vec![file("../x", "x")]),
            ("a path that leads out on its way", vec![file("releases/../../x", "x")]),
            ("an absolute path", vec![file(&format!("{target}/x"), "x")]),
            ("a file twice", vec![file("releases/r1/.env.poc", "A=1\n")]),
            ("a file that nobody asked for", vec![file("current", "r1\n")]),
            ("a file beside the release's", vec![file("releases/r1/x", "x")]),
            ("a folder that nobody asked for", vec![special("rollbacks/", b'5', "")]),
            ("more than there is", vec![Entry { claims: Some(1 << 40), ..file("releases/r1/x", "x") }]),
            ("more than can be", vec![Entry { claims: Some(u64::MAX), ..file("releases/r1/x", "x") }]),
        ];
        for (what, entries) in more {
            assert_refused(&pilot, &format!("{what}, last"), &tar(&[good.clone(), entries.clone()].concat()));
            assert_refused(&pilot, &format!("{what}, first"), &tar(&[entries, good.clone()].concat()));
        }
        // Something is missing, altered, or of another size than the index says.
        let today = indexed(&index, &release);
        for all in [&good, &today] {
            for n in (0..all.len()).filter(|n| all[*n].kind == b'0') {
                let mut less = all.clone();
                let gone = less.remove(n);
                assert_refused(&pilot, &format!("no {}", gone.name), &tar(&less));
                let mut other = all.clone();
                other[n].data.push(b'?');
                assert_refused(&pilot, &format!("{} altered", gone.name), &tar(&other));
            }
        }
        let stray = file(&format!("blobs/{}", sum(b"stray")), "stray");
        assert_refused(&pilot, "a blob that no image names", &tar(&[today.clone(), vec![stray]].concat()));
        let mut sizes = index.clone();
        sizes["sizes"] = json!({"releases/r1/release.json": 1});
        assert_refused(&pilot, "sizes that are not so", &tar(&packed(&sizes, &release)));
        assert_refused(
            &pilot,
            "an endless description",
            &tar(&packed(&json!({"release": "r1", "x": "x".repeat(1 << 21)}), &release)),
        );
        // No archive of this sort at all.
        assert_refused(&pilot, "nothing", b"");
        assert_refused(&pilot, "noise", &b"noise".repeat(4000));
        assert_refused(&pilot, "cut off", &tar(&good)[..2048]);
        let plain = write(&pilot, &tar(&good));
        assert!(Command::new("gzip").args(["--force", &plain]).status().unwrap().success());
        let packed_again = std::fs::read(format!("{plain}.gz")).unwrap();
        std::fs::remove_file(format!("{plain}.gz")).unwrap();
        assert_refused(&pilot, "compressed", &packed_again);
        // And the sound one.
        let path = write(&pilot, &tar(&good));
        pilot.xtask(&["releases", "import", &path]).expect(0);
        pilot.xtask(&["releases", "verify", "r1"]).expect(0);
        let again = pilot.xtask(&["releases", "import", &path]).expect(0);
        assert!(again.out.contains("release r1"), "{}", again.out);
        std::fs::remove_dir_all(pilot.state()).unwrap();
        let path = write(&pilot, &tar(&today));
        pilot.xtask(&["releases", "import", &path]).expect(0);
        pilot.xtask(&["releases", "verify", "r1"]).expect(0);
        assert!(pilot.xtask(&["releases", "show", "r1"]).expect(0).out.contains("  kept"));
    });
}

#[test]
fn an_import_waits_for_nothing_and_fills_no_disk() {
    on(&[Process], "import-bounds", |pilot| {
        let (index, release) = sound(&pilot);
        std::fs::create_dir_all(pilot.state()).unwrap();
        let pipe = pilot.folder.0.join("pipe.tar");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let ran = limited(&pilot, &["releases", "import", &pipe.display().to_string()]).expect(2);
        assert!(ran.err.contains("regular file"), "{}", ran.err);
        limited(&pilot, &["releases", "import", "/dev/zero"]).expect(2);
        limited(&pilot, &["releases", "import", &pilot.folder.0.display().to_string()]).expect(2);
        limited(&pilot, &["releases", "import", "/no/such/file"]).expect(2);
        // A file with a hole is as long as it says and takes no space, until it is copied.
        let mut entries = packed(&index, &release);
        if let Some(last) = entries.last_mut() {
            (last.claims, last.data) = (Some(1 << 42), Vec::new());
        }
        let path = write(&pilot, &tar(&entries));
        let hole = std::fs::File::options().write(true).open(&path).unwrap();
        if hole.set_len((1 << 42) + (1 << 16)).is_ok() {
            let ran = limited(&pilot, &["releases", "import", &path]).expect(1);
            assert!(ran.err.contains("free"), "{}", ran.err);
        }
        assert!(!pilot.state().join("images").exists());
    });
}

#[test]
fn what_a_cut_off_import_left_is_removed_by_the_next() {
    on(&[Process], "import-left", |pilot| {
        let (index, release) = sound(&pilot);
        let half = pilot.state().join("import.123.new");
        std::fs::create_dir_all(half.join("releases/r7")).unwrap();
        // It had moved its image already, when it was killed before the release was there.
        let mut left = release.clone();
        left["id"] = json!("r7");
        left["images"]["gateway"]["id"] = json!(format!("sha256:{}", sum(b"left")));
        std::fs::write(half.join("releases/r7/release.json"), left.to_string()).unwrap();
        std::fs::create_dir_all(pilot.state().join("images")).unwrap();
        let image = pilot.state().join(format!("images/{}.tar", sum(b"left")));
        std::fs::write(&image, "left").unwrap();
        // Another one that an import left of the very image, cut short on a full disk.
        let same = pilot.state().join(format!("images/{}.tar", sum(b"image's id")));
        std::fs::write(&same, "ima").unwrap();
        let path = write(&pilot, &tar(&packed(&index, &release)));
        pilot.xtask(&["releases", "import", &path]).expect(0);
        assert!(!half.exists() && !image.exists());
        assert_eq!(std::fs::read(&same).unwrap(), b"image");
        pilot.xtask(&["releases", "verify"]).expect(0);
    });
}

#[test]
fn a_description_on_disk_that_leads_out_is_refused() {
    on(&[Process], "edited", |pilot| {
        let (index, release) = sound(&pilot);
        let path = write(&pilot, &tar(&packed(&index, &release)));
        pilot.xtask(&["releases", "import", &path]).expect(0);
        let place = pilot.state().join("releases/r1/release.json");
        let stays = pilot.folder.0.join("x.tar");
        std::fs::write(&stays, "somebody's").unwrap();
        for (pointer, value) in [
            ("/images/gateway/id", json!("../../../x")),
            ("/files", json!({"../../../x.tar": sum(b"somebody's")})),
            ("/xtask", json!("../../x.tar")),
        ] {
            let mut changed = release.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            std::fs::write(&place, changed.to_string()).unwrap();
            for command in
                [["verify", "r1"].as_slice(), &["show", "r1"], &["export", "r1"], &["diff", "r1", "tree"]]
            {
                let ran = pilot.xtask(&[["releases"].as_slice(), command].concat());
                assert!(ran.code != 0 && ran.err.contains("release.json"), "{command:?}: {}", ran.all());
            }
            pilot.xtask(&["releases", "prune", "--keep", "1"]).expect(0);
            assert_eq!(std::fs::read(&stays).unwrap(), b"somebody's");
        }
        std::fs::write(&place, release.to_string()).unwrap();
        // `current` names a release, not a path.
        std::fs::write(pilot.state().join("current"), "../../outside\n").unwrap();
        let status = pilot.xtask(&["status"]);
        assert!(!status.all().contains("outside/release.json"), "{}", status.all());
    });
}

#[test]
fn a_backup_that_names_files_elsewhere_is_refused() {
    on(&[Process], "edited-backup", |pilot| {
        let pilot = pilot.up();
        let made = pilot.told(&["backup", "create"], 0);
        let place = Path::new(made["folder"].as_str().unwrap()).join("backup.json");
        let sound: Value = serde_json::from_slice(&std::fs::read(&place).unwrap()).unwrap();
        std::fs::write(pilot.folder.0.join("x.data.tar"), "somebody's").unwrap();
        for name in ["../../../x.data.tar", "/etc/passwd", "sub/../../x", "..", ""] {
            let mut changed = sound.clone();
            changed["files"][name] = json!(sum(b"somebody's"));
            std::fs::write(&place, changed.to_string()).unwrap();
            let ran = pilot.xtask(&["backup", "restore", made["backup"].as_str().unwrap(), "--yes"]);
            assert!(ran.code != 0, "{name}: {}", ran.all());
            let listed = pilot.xtask(&["backup", "list"]);
            assert!(listed.all().contains("backup.json"), "{name}: {}", listed.all());
        }
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    });
}
