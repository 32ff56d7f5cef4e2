//! Receivers outside of the stack: what arrives, and that none of them is ever in the way.

use crate::pilot::Engine::Process;
use crate::pilot::{Folder, Pilot, copy_of_the_tree, on, program, ran, source_that_says_more, workspace};
use crate::schema::Schema;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A path that lets in whoever knows it.
const SECRET: &str = "T0PSECRETPATH4711";

/// A real HTTP server: it hears requests, and answers each with `status`; without one, never.
struct Server {
    port: u16,
    heard: Receiver<(String, Value)>,
}

impl Server {
    fn new(status: Option<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, heard) = channel();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                tell.send(request(&mut socket)).ok();
                match status {
                    Some(status) => {
                        write!(
                            socket,
                            "HTTP/1.1 {status} x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
                        )
                        .ok();
                    }
                    // Until the other side gives up.
                    None => drop(std::thread::spawn(move || socket.read_to_end(&mut Vec::new()))),
                }
            }
        });
        Self { port, heard }
    }

    /// The next request: its head, and its body.
    #[track_caller]
    fn next(&self) -> (String, Value) {
        self.heard.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    #[track_caller]
    fn hears_nothing_more(&self) {
        let more = self.heard.recv_timeout(Duration::from_millis(500)).ok();
        assert_eq!(more, None);
    }
}

fn request(socket: &mut TcpStream) -> (String, Value) {
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let read = socket.read(&mut part).unwrap();
        assert!(read > 0, "cut off: {}", String::from_utf8_lossy(&all));
        all.extend(&part[..read]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return (head.to_owned(), serde_json::from_str(body).unwrap());
        }
    }
}

/// A pilot whose manifest says this about receivers, with release r1 that has it too.
fn told(pilot: Pilot, notify: &str) -> (Pilot, Folder) {
    let tree = copy_of_the_tree("notify");
    let path = tree.0.join("pilot-deploy/pilot.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}\n[notify]\n{notify}\n")).unwrap();
    let mut pilot = pilot.up();
    pilot.root = tree.0.clone();
    (pilot, tree)
}

/// A new release of the images that run, by the manifest of the pilot's tree.
fn deploy(pilot: &Pilot) {
    pilot.xtask(&["up", "--tag", "v1.0.0"]).expect(0);
}

fn text(message: &(String, Value)) -> &str {
    message.1["text"].as_str().unwrap()
}

#[test]
fn a_webhook_and_a_program_are_told_of_a_run_and_of_a_hold() {
    on(&[Process], "notify", |pilot| {
        let server = Server::new(Some(200));
        let (mut pilot, tree) = told(pilot, "webhook = \"${CHAT}\"\ncommand = [\"./tell\", \"a b\"]");
        let said = tree.0.join("said");
        let script =
            format!("#!/bin/sh\n[ \"$1\" = 'a b' ] || exit 9\ncat >> {0}\necho >> {0}\n", said.display());
        program(&tree.0.join("pilot-deploy/tell"), &script);
        pilot.set("CHAT", &format!("http://127.0.0.1:{}/{SECRET}", server.port));
        deploy(&pilot);
        let (head, body) = server.next();
        assert!(head.starts_with(&format!("POST /{SECRET} HTTP/1.1")), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
        // Nothing but the sentence: some chats refuse other keys.
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        assert!(
            body["text"].as_str().unwrap().starts_with("up 0")
                && body["text"].as_str().unwrap().ends_with(" begins")
        );
        assert!(text(&server.next()).contains("✓ release r2 is deployed"));

        pilot.edit_env("ENABLE_CACHE", "true");
        let ran = pilot.json(&["rollback"]).expect(0);
        let run = ran.finished()["rollback"].as_str().unwrap().to_owned();
        assert!(!ran.all().contains("[notify]"), "{}", ran.all());
        assert!(text(&server.next()).starts_with(&format!("rollback {run} of {} on ", pilot.project)));
        let end = server.next();
        assert!(text(&end).contains("✓ release r2 serves again\ngate closed for "), "{end:?}");

        pilot.xtask(&["kill-switch", "on", "--reason", "bad answers"]).expect(0);
        let hold = server.next();
        assert!(
            text(&hold).contains("the gate is held by ") && text(&hold).contains("bad answers"),
            "{hold:?}"
        );
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        assert!(text(&server.next()).starts_with("kill-switch off of "));
        // Looking, and a deployment that changes nothing, is told to nobody.
        pilot.xtask(&["status"]).expect(0);
        pilot.xtask(&["rollback", "--plan"]).expect(0);
        server.hears_nothing_more();

        let said = std::fs::read_to_string(&said).unwrap();
        let notices: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let about: Vec<Value> = notices.iter().map(|notice| notice["about"].clone()).collect();
        let both = json!(["end", "hold"]);
        assert_eq!(
            about,
            [json!(["start"]), json!(["end"]), json!(["start"]), json!(["end"]), both.clone(), both]
        );
        notices
            .iter()
            .for_each(|notice| assert_eq!(Schema::shipped().part("notice", notice), Ok(()), "{notice}"));
        assert_eq!(
            (&notices[3]["run"], &notices[3]["finished"]["outcome"]),
            (&json!(run), &json!("restored"))
        );
    });
}

/// How a rollback went: how long its process took, and what it said of receivers.
fn rollback(pilot: &Pilot) -> (Duration, String) {
    pilot.edit_env("ENABLE_CACHE", "true");
    let start = Instant::now();
    let ran = pilot.json(&["rollback"]).expect(0);
    let took = start.elapsed();
    assert_eq!(ran.finished()["outcome"], "restored");
    assert!(!ran.all().contains(SECRET), "{}", ran.all());
    let said = ran.events().into_iter().filter_map(|event| Some(event["text"].as_str()?.to_owned()));
    (took, said.filter(|text| text.contains("[notify]")).collect::<Vec<_>>().join("\n"))
}

/// The limit is longer than a rollback here, so one that waited for it would be seen.
#[test]
fn a_receiver_that_fails_hangs_or_is_gone_costs_nothing_but_a_remark() {
    on(&[Process], "notify-bad", |pilot| {
        let (mut pilot, _tree) = told(pilot, "webhook = \"${CHAT}\"\nlimit = \"30s\"");
        pilot.set("CHAT", "");
        deploy(&pilot);
        assert!(rollback(&pilot).1.contains("CHAT is set neither in the environment nor in the env file"));
        let url = |port: u16| format!("http://127.0.0.1:{port}/{SECRET}");
        let failing = Server::new(Some(500));
        pilot.set("CHAT", &url(failing.port));
        let (_, said) = rollback(&pilot);
        assert!(said.contains("error: 500"), "{said}");
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        pilot.set("CHAT", &url(gone));
        let (_, said) = rollback(&pilot);
        assert!(said.contains("Failed to connect") || said.contains("Couldn't connect"), "{said}");
        let hanging = Server::new(None);
        pilot.set("CHAT", &url(hanging.port));
        let (took, said) = rollback(&pilot);
        assert!(said.contains("have no answer yet"), "{said}");
        assert!(took < Duration::from_secs(25), "{took:?}");
        // The secret is in nothing that is kept, but for the env file of nobody here.
        assert!(!texts_below(&pilot.state()).contains(SECRET));
        // No secret on a command line either: the helper still waits for its receiver.
        let lines = std::process::Command::new("ps").args(["-eo", "args"]).output().unwrap();
        let lines = String::from_utf8_lossy(&lines.stdout).into_owned();
        assert!(lines.contains("curl --disable --config -") && !lines.contains(SECRET), "{lines}");
    });
}

fn texts_below(folder: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            all += &texts_below(&path);
        } else if kind.is_file() && entry.metadata().unwrap().len() < 1 << 20 {
            all += &String::from_utf8_lossy(&std::fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn a_run_that_is_killed_is_told_too() {
    on(&[Process], "notify-killed", |pilot| {
        let server = Server::new(Some(200));
        let (mut pilot, _tree) = told(pilot, "webhook = \"${CHAT}\"");
        pilot.set("CHAT", &format!("http://127.0.0.1:{}/x", server.port));
        deploy(&pilot);
        assert!(text(&server.next()).ends_with(" begins"));
        server.next();
        pilot.edit_env("ENABLE_CACHE", "true");
        let mut command = pilot.command(&["rollback"]);
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        assert!(text(&server.next()).ends_with(" begins"));
        child.kill().unwrap();
        child.wait().unwrap();
        let last = server.next();
        assert!(text(&last).contains("was cut off; the same command continues it"), "{last:?}");
        pilot.xtask(&["rollback"]).expect(0);
        assert!(text(&server.next()).ends_with(" goes on"));
        assert!(text(&server.next()).contains("serves again"));
        server.hears_nothing_more();
    });
}

#[test]
fn nobody_is_told_of_a_drill_but_of_an_engine_that_is_gone() {
    on(&[Process], "notify-drill", |mut pilot| {
        let server = Server::new(Some(200));
        let more = format!("[notify]\nwebhook = \"http://127.0.0.1:{}/{SECRET}\"\n", server.port);
        let tree = source_that_says_more("notify-tree", &more);
        pilot.root = tree.0.clone();
        pilot.set("CARGO_TARGET_DIR", &workspace().join("target").display().to_string());
        pilot.xtask(&["drill"]).expect(0);
        server.hears_nothing_more();
        // No Docker engine: nothing can be begun, so no run has an end. The last option counts.
        let mut command = pilot.command(&[]);
        let gone = Folder::new("no-docker");
        // The client need not be there either.
        program(&gone.0.join("docker"), "#!/bin/sh\nexit 1\n");
        let path = format!("{}:/usr/bin:/bin", gone.0.display());
        let host = format!("unix://{}/docker.sock", gone.0.display());
        command.args(["rollback"]).env("PATH", path).env("DOCKER_HOST", host);
        let words: Vec<_> =
            command.get_args().map(|word| word.to_string_lossy().replace("process", "compose")).collect();
        let mut again = std::process::Command::new(command.get_program());
        let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        again.args(words).envs(set).current_dir(&tree.0);
        let refused = ran(again.output().unwrap()).expect(4);
        assert!(!refused.all().contains(SECRET), "{}", refused.all());
        let (_, body) = server.next();
        let text = body["text"].as_str().unwrap();
        assert!(text.contains("✗ not done: ") && text.contains("Level 3, infrastructure"), "{text}");
        assert!(!text.contains(SECRET), "{text}");
    });
}

#[test]
fn every_command_that_changes_something_is_in_the_audit_log() {
    on(&[Process], "audit", |pilot| {
        let pilot = pilot.up();
        let token = pilot.setting("ADMIN_TOKEN");
        pilot.xtask(&["status"]).expect(0);
        pilot.xtask(&["rollback", "--plan"]).expect(0);
        pilot.xtask(&["kill-switch", "status"]).expect(0);
        pilot.xtask(&["kill-switch", "on", "--reason", &format!("it is {token}")]).expect(0);
        let run = pilot.json(&["rollback", "--open"]).expect(0).finished()["rollback"].clone();
        pilot.xtask(&["rollback", "--to", "r11"]).expect(2);
        let log = std::fs::read_to_string(pilot.state().join("audit.log")).unwrap();
        assert!(!log.contains(&token), "{log}");
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &lines {
            assert_eq!(Schema::shipped().part("audit", line), Ok(()), "{line}");
        }
        let what = |line: &Value| json!([line["command"], line["outcome"], line["exit_code"]]);
        let want = [
            json!(["up", "deployed", 0]),
            json!(["kill-switch on", null, 0]),
            json!(["rollback", "restored", 0]),
            json!(["rollback", "refused", 2]),
        ];
        assert_eq!(lines.iter().map(what).collect::<Vec<_>>(), want);
        assert_eq!(lines[2]["run"], run);
        let called = lines[1]["line"].as_str().unwrap();
        assert!(called.ends_with("kill-switch on --reason 'it is ********'"), "{called}");
        let user = std::process::Command::new("id").arg("-un").output().unwrap();
        let user =
            std::env::var("SUDO_USER").unwrap_or(String::from_utf8_lossy(&user.stdout).trim().to_owned());
        assert_eq!(lines[0]["user"], json!(user));
    });
}
