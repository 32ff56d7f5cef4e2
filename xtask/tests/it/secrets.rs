//! What is secret leaves the tool nowhere: not in what it says, not in journals, reports and evidence, and
//! in archives only where nobody else and no repository sees them.

use crate::pilot::Engine::Process;
use crate::pilot::{Folder, Pilot, on};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Characters that every encoding writes in another way, and that an env file may have.
const TOKEN: &str = r#"to"ken\with<odd>&'chars'%41"#;
/// Begins with the token: what is behind it must not be left over.
const PASSWORD: &str = r#"to"ken\with<odd>&'chars'%41-and-its-longer-end"#;
/// Nobody lists these; their names and values tell.
const UNLISTED: [(&str, &str); 4] = [
    ("DATABASE_URL", "postgres://notes:pw-of-the-database@db.internal/notes"),
    ("API_KEY", "k3y-of-the-api"),
    ("UPSTREAM", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJub3RlcyJ9.c2lnbmF0dXJlLW9mLWEtand0"),
    ("SMTP_PASS", "291188"),
];
/// What must be seen nowhere: each secret, or a piece of it that no encoding changes.
const PIECES: [&str; 6] = [
    "-and-its-longer-end",
    "with<odd>",
    "pw-of-the-database",
    "k3y-of-the-api",
    "eyJzdWIiOiJub3RlcyJ9",
    "291188",
];

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}

/// All text below a folder, backups left out: these are the user's own copies.
fn text_below(folder: &Path) -> String {
    let all = files(folder).into_iter().filter(|path| !path.iter().any(|part| part == "backup"));
    all.map(|path| {
        format!("\n--- {}\n{}", path.display(), String::from_utf8_lossy(&std::fs::read(&path).unwrap()))
    })
    .collect()
}

#[track_caller]
fn assert_hidden(what: &str, text: &str) {
    let escaped = |piece: &str| {
        let json = serde_json::to_string(piece).unwrap();
        json[1..json.len() - 1].to_owned()
    };
    for piece in PIECES.into_iter().chain([TOKEN, PASSWORD]) {
        for form in [piece.to_owned(), escaped(piece), escaped(&escaped(piece)), piece.replace('<', "&lt;")] {
            let found = text.find(&form).map(|at| {
                let around = |n: usize| (n..).find(|n| text.is_char_boundary(*n)).unwrap();
                text[around(at.saturating_sub(200))..around((at + 100).min(text.len()))].to_owned()
            });
            assert_eq!(found, None, "{form} is shown in {what}");
        }
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Makes a pilot run with all of these secrets as release r2.
fn run_with_secrets(pilot: &Pilot) {
    pilot.edit_env("ADMIN_TOKEN", TOKEN);
    pilot.edit_env("GRAFANA_ADMIN_PASSWORD", PASSWORD);
    let more: String = UNLISTED.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    std::fs::write(pilot.env_path(), pilot.env_text() + &more).unwrap();
    pilot.xtask(&["up"]).expect(0);
}

#[test]
fn awkward_and_unlisted_secrets_are_shown_nowhere() {
    on(&[Process], "awkward", |pilot| awkward_secrets(&mut pilot.up()));
}

/// On Docker this is one of those in `all_on_one.rs`.
pub fn awkward_secrets(pilot: &mut Pilot) {
    run_with_secrets(pilot);
    let preflight = &["preflight"];
    let looks = [["assess"].as_slice(), &["diagnose"], &["status"], &["releases", "show", "r2"]];
    let more =
        [["smoke"].as_slice(), &["flags"], preflight, &["host"], &["rollback", "--plan", "--to", "r1"]];
    for command in looks.into_iter().chain(more) {
        assert_hidden(&format!("{command:?}"), &pilot.xtask(command).all());
        assert_hidden(&format!("{command:?} as JSON"), &pilot.json(command).all());
    }
    let bundle = pilot.told(&["evidence"], 0);
    let folder = Path::new(bundle["folder"].as_str().unwrap());
    assert_hidden("the evidence", &text_below(folder));
    assert!(folder.join("gateway.inspect.json").exists());
    // It is still JSON, and what is no secret is still there.
    for path in files(folder).iter().filter(|p| p.extension().is_some_and(|e| e == "json")) {
        let text = std::fs::read_to_string(path).unwrap();
        serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let env = std::fs::read_to_string(folder.join("env.masked")).unwrap();
    for line in [
        "MAX_TOKENS_PER_RUN=4000",
        "QUOTA_PER_RUN=24",
        "ENABLE_SECRET_HYGIENE_BLOCKING=false",
        "API_KEY=********",
    ] {
        assert!(env.lines().any(|l| l == line), "no {line} in {env}");
    }
    let archive = Path::new(bundle["archive"].as_str().unwrap());
    assert_eq!((mode(archive), mode(folder)), (0o600, 0o700));
    // Both ways of comparing, each secret on one side alone and then on both.
    for pair in [["r1", "r2"], ["r1", "running"], ["tree", "r1"]] {
        let words = [["releases", "diff"].as_slice(), &pair].concat();
        assert_hidden(&format!("{words:?}"), &pilot.xtask(&words).expect(0).all());
        let told = pilot.json(&words).expect(0).all();
        assert_hidden(&format!("{words:?} as JSON"), &told);
    }
    // Ids of images are told alike by what runs and by the release.
    let same = pilot.told(&["releases", "diff", "r2", "running"], 0);
    assert_eq!((&same["images"], &same["compose"]), (&json!({}), &Value::Null), "{same}");
    let told = pilot.told(&["releases", "diff", "r1", "r2"], 0);
    assert_eq!(told["settings"]["API_KEY"], json!(["(none)", "********"]));
    // A rollback away from it, with all that it writes.
    let said = pilot.json(&["rollback", "--to", "r1"]).expect(0).all();
    assert_hidden("the rollback", &said);
    assert_hidden("the rollback's folder", &text_below(&pilot.state().join("rollbacks")));
}

#[test]
fn what_the_manifest_calls_public_is_shown() {
    on(&[Process], "public", |pilot| {
        let mut pilot = pilot;
        let tree = Folder::new("public-tree");
        let copied = Command::new("cp").arg("-r").arg(pilot.root.join("pilot-deploy")).arg(&tree.0).status();
        assert!(copied.unwrap().success());
        let path = tree.0.join("pilot-deploy/pilot.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("# public = [\"SOME_KEY\"]", "public = [\"API_KEY\"]")).unwrap();
        std::fs::create_dir_all(pilot.state()).unwrap();
        std::fs::write(pilot.env_path(), "API_KEY=known-to-all\nOTHER_KEY=known-to-few\n").unwrap();
        pilot.root = tree.0.clone();
        let bundle = pilot.told(&["evidence"], 0);
        let env = Path::new(bundle["folder"].as_str().unwrap()).join("env.masked");
        assert_eq!(std::fs::read_to_string(env).unwrap(), "API_KEY=known-to-all\nOTHER_KEY=********\n");
    });
}

#[test]
fn secrets_of_a_malformed_env_file_are_masked() {
    on(&[Process], "malformed", |pilot| {
        let pilot = pilot.up();
        let lines = [
            "ADMIN_TOKEN s3cret-behind-a-space",
            "export GRAFANA_ADMIN_PASSWORD=s3cret-behind-export",
            "ADMIN_TOKEN: s3cret-behind-a-colon",
            "  PRIVATE_KEY = \"s3cret in quotes",
            "s3cret-that-goes-on-in-the-next-line\" # a comment",
            "SMTP_PASSWORD='it\\'s a s3cret'",
            "TLS_KEY=\"a quote that nobody closes s3cret",
            "# OLD_PASSWORD=s3cret-in-a-comment",
            "YWJjZGVmZ2hpamtsbW5vcHM3c2VjcmV0bGluZQ==",
        ];
        std::fs::write(pilot.env_path(), "LOG_LEVEL=info\n".to_owned() + &lines.join("\n") + "\n").unwrap();
        let bundle = pilot.told(&["evidence"], 0);
        let folder = Path::new(bundle["folder"].as_str().unwrap());
        let mut said = text_below(folder);
        let env = std::fs::read_to_string(folder.join("env.masked")).unwrap();
        assert!(env.starts_with("LOG_LEVEL=info\n") && env.lines().count() == 10, "{env}");
        for command in ["assess", "diagnose", "status", "smoke"] {
            said += &pilot.xtask(&[command]).all();
            said += &pilot.json(&[command]).all();
        }
        said += &pilot.json(&["rollback"]).expect(0).all();
        said += &text_below(&pilot.state().join("rollbacks"));
        for piece in ["s3cret", "YWJjZGVm"] {
            let at = said.find(piece).map(|at| said[at.saturating_sub(300)..at + 20].to_owned());
            assert_eq!(at, None, "{piece} is shown");
        }
    });
}

#[test]
fn an_export_is_private_and_out_of_sight_of_git() {
    on(&[Process], "export-place", |pilot| {
        let pilot = pilot.up();
        let told = pilot.told(&["releases", "export", "r1"], 0);
        let file = PathBuf::from(told["file"].as_str().unwrap());
        assert_eq!(file, pilot.state().join("exports/r1.release.tar"));
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        // Where git would see it, that is said; where git ignores it, or there is no git, nothing is.
        let repository = Folder::new("export-git");
        assert!(Command::new("git").args(["init", "--quiet"]).arg(&repository.0).status().unwrap().success());
        std::fs::write(repository.0.join(".gitignore"), "/ignored\n").unwrap();
        for (place, warned) in [("seen.tar", true), ("ignored/x.tar", false), ("../export-beside.tar", false)]
        {
            let to = if warned || place.starts_with("ignored") {
                repository.0.join(place)
            } else {
                pilot.folder.0.join("beside.tar")
            };
            let ran =
                pilot.xtask(&["releases", "export", "r1", "--output", &to.display().to_string()]).expect(0);
            assert_eq!(ran.all().contains("does not ignore it"), warned, "{place}: {}", ran.all());
            assert_eq!(mode(&to), 0o600);
        }
        // The repository's own ignore file keeps such archives out wherever they are put.
        let ignored = |path: &str| {
            let mut asked = Command::new("git");
            asked.args(["check-ignore", "--quiet", path]).current_dir(&pilot.root);
            asked.status().unwrap().success()
        };
        assert!(
            ignored("r1.release.tar")
                && ignored("pilot-deploy/.env.poc")
                && ignored("pilot-deploy/.env.poc.bak")
        );
        assert!(!ignored("pilot-deploy/.env.poc.example"));
    });
}
