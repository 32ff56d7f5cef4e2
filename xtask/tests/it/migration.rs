//! A release of the notes changes the schema in a way that the one before cannot live with: the way there, and back with
//! the data. `docs/adopting.md` tells it to people.

use crate::notes::{self, Notes};
use crate::pilot::Engine::Compose2;
use crate::pilot::{Ran, workspace};
use serde_json::Value;
use std::path::PathBuf;

/// The blocks of the chapter in this language.
fn chapter(language: &str) -> Vec<String> {
    let page = std::fs::read_to_string(workspace().join("docs/adopting.md")).unwrap();
    let (_, chapter) = page.split_once("\n## 6.").unwrap();
    let blocks = chapter.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).map(str::to_owned).collect()
}

/// A column gets another name when the API starts. The API before asks for the old one.
fn changes_the_schema(notes: &Notes) {
    notes.edit(
        "app/app.py",
        "    make_table()\n    print",
        "    make_table()\n    ask(\"alter table notes change if exists words counted int\")\n    print",
    );
    notes.edit("app/app.py", "select id, text, words from", "select id, text, counted from");
    notes.edit("app/app.py", "where words is null", "where counted is null");
    notes.edit("app/app.py", "set words = %s", "set counted = %s");
    notes::label(notes, "2.0");
}

/// Is this note there? It does not wait for a worker.
fn is_there(notes: &Notes, text: &str) -> bool {
    let answer = notes.ask("GET", "/notes", None).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json().as_array().unwrap().iter().any(|note| note["text"] == text)
}

/// The backup that a command names as the one with what was there before.
fn named(ran: &Ran) -> String {
    let text = ran.all();
    let at = text.find("data from before is in backup ").unwrap_or_else(|| panic!("{text}"));
    text[at..].split_whitespace().nth(6).unwrap().trim_end_matches(':').to_owned()
}

/// The folder of the newest snapshot.
fn snapshot(notes: &Notes) -> PathBuf {
    let listed = notes.json(&["backup", "list"]).expect(0);
    let all: Vec<Value> = listed.events().into_iter().filter(|event| event["event"] == "result").collect();
    let backups = all[0]["value"]["backups"].as_array().unwrap().clone();
    let newest = backups.into_iter().rfind(|backup| backup["snapshot"] == true).unwrap();
    PathBuf::from(newest["folder"].as_str().unwrap())
}

#[test]
fn a_schema_change_is_taken_back_with_its_data() {
    notes::on(&[Compose2], "migration", |notes| {
        let (toml, commands) = (chapter("toml"), chapter("sh"));
        let [up, code_alone, with_data] = [0, 1, 2].map(|n| commands[n].trim());
        notes.append("pilot.toml", &toml[0]);
        // The API, the first of the services that mount it, mounts it read-only.
        notes.append("pilot.toml", "[data.exports]\nbefore_deploy = true\n");
        notes.xtask(&["up"]).expect(0);
        notes.write("before the change");
        assert!(notes.has("before the change"));
        changes_the_schema(&notes);
        let deployed = notes.shell(up).expect(0);
        assert!(deployed.out.contains("take a snapshot of db"), "{}", deployed.all());
        assert!(snapshot(&notes).join("db.dump.lz4").exists());
        assert_eq!(notes.version(), "2.0");
        let shown = notes.xtask(&["releases", "show", "r1"]).expect(0);
        assert!(shown.out.contains("rollback --to r1 --with-data"), "{}", shown.all());
        notes.write("after the change");
        // The code alone: it fails, nobody is let in, and what to do is said.
        let failed = notes.shell(&format!("{code_alone} --format json")).expect(1).finished();
        assert!(notes.ask("GET", "/notes", None).is_none());
        let next = failed["next"].as_str().unwrap();
        assert!(next.ends_with("rollback --to r1 --with-data"), "{failed}");
        assert!(failed["error"].as_str().unwrap().contains("data that is newer"), "{failed}");
        // Nobody is asked in a script, and nothing is replaced without a yes.
        notes.shell(with_data).expect(2);
        let back = notes.shell(&format!("{with_data} --yes")).expect(0);
        assert_eq!(notes.version(), "1.0");
        assert!(is_there(&notes, "before the change") && !is_there(&notes, "after the change"));
        assert!(notes.has("before the change") && notes.write("afterwards") == 201);
        the_way_there_again(&notes, &named(&back));
        a_restore_that_fails_puts_back_what_was_there(&notes);
        a_release_that_fails_is_taken_back_with_its_data(&notes);
    });
}

/// What was written since is in the backup that was named, for the release that can read it.
fn the_way_there_again(notes: &Notes, backup: &str) {
    notes.xtask(&["rollback", "--to", "r2"]).expect(0);
    notes.xtask(&["--yes", "backup", "restore", backup, "--only", "data"]).expect(0);
    assert!(is_there(notes, "after the change"));
    assert_eq!(notes.version(), "2.0");
}

fn a_restore_that_fails_puts_back_what_was_there(notes: &Notes) {
    let index = snapshot(notes).join("backup.json");
    let whole = std::fs::read_to_string(&index).unwrap();
    // It empties the database, and then fails.
    std::fs::write(&index, whole.replace("; cat)", "; echo nonsense)")).unwrap();
    let failed = notes.json(&["--yes", "rollback", "--to", "r1", "--with-data"]).expect(1).finished();
    assert!(failed["error"].as_str().unwrap().contains("was put back"), "{failed}");
    assert!(notes.ask("GET", "/notes", None).is_none());
    std::fs::write(&index, whole).unwrap();
    notes.xtask(&["rollback", "--to", "r2"]).expect(0);
    assert!(is_there(notes, "after the change"));
}

/// It was never let in, so nobody has written anything for it.
fn a_release_that_fails_is_taken_back_with_its_data(notes: &Notes) {
    notes.xtask(&["--yes", "rollback", "--to", "r1", "--with-data"]).expect(0);
    notes.write("the last of them");
    notes.edit("app/app.py", "insert into notes (text)", "insert into nodes (text)");
    notes::label(notes, "3.0");
    let failed = notes.xtask(&["up"]).expect(7);
    assert!(failed.all().contains("restore data of db"), "{}", failed.all());
    assert_eq!(notes.version(), "1.0");
    assert!(notes.has("the last of them"));
}
