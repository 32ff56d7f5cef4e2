//! Several clients of one engine: clones with state folders of their own, and a user with another home who reaches the
//! engine through a Docker context. What one does the others know, and one of them works at a time.

use crate::daemon::{self, Daemon};
use crate::docs::commands;
use crate::holds::shut_out;
use crate::http::try_http;
use crate::pilot::Engine::Compose2;
use crate::pilot::{Folder, Pilot, Ran, docker, docker_client, lose_records, on, ran, skip, workspace};
use serde_json::{Value, json};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A client of a pilot's engine and project, with a state folder of its own.
struct Client<'a> {
    pilot: &'a Pilot,
    folder: Folder,
    env: Vec<(String, String)>,
    /// What its commands are run by.
    within: Vec<&'static str>,
}

impl<'a> Client<'a> {
    fn of(pilot: &'a Pilot) -> Self {
        Self { pilot, folder: Folder::new("client"), env: Vec::new(), within: Vec::new() }
    }

    /// A user with a home of their own, who reaches the engine through a Docker context.
    fn through_a_context(pilot: &'a Pilot) -> Self {
        let mut client = Self::of(pilot);
        let home = client.folder.0.join("home");
        let config = home.join(".docker");
        std::fs::create_dir_all(&config).unwrap();
        // The plugin of Compose, where it is installed for one user only.
        let plugins = PathBuf::from(std::env::var_os("HOME").unwrap()).join(".docker/cli-plugins");
        if plugins.exists() {
            std::os::unix::fs::symlink(plugins, config.join("cli-plugins")).unwrap();
        }
        let address = docker(&["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]);
        let host = format!("host={}", address.trim());
        let made = docker_client()
            .args(["context", "create", "staging", "--docker", &host])
            .env("HOME", &home)
            .env_remove("DOCKER_CONFIG")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        client.set("HOME", &home.display().to_string());
        client.set("DOCKER_CONTEXT", "staging");
        client
    }

    fn set(&mut self, name: &str, value: &str) {
        self.env.push((name.into(), value.into()));
    }

    fn state(&self) -> PathBuf {
        self.folder.0.join("state")
    }

    fn command(&self, words: &[&str]) -> Command {
        let inner = self.pilot.command(words);
        let program = inner.get_program().to_owned();
        let within = self.within.iter().map(std::ffi::OsString::from);
        let mut all = within.chain([program]).chain(inner.get_args().map(ToOwned::to_owned));
        let mut command = Command::new(all.next().unwrap());
        command.args(all).current_dir(inner.get_current_dir().unwrap()).stdin(Stdio::null());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("PILOT_STATE_DIR", self.state()).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    fn xtask(&self, words: &[&str]) -> Ran {
        ran(self.command(words).output().unwrap())
    }

    /// Starts a command and waits until it has the lock of the stack at the engine.
    fn at_work(&self, words: &[&str]) -> Child {
        let child = self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        while !records(self.pilot).iter().any(|name| name.starts_with("lock.")) {
            assert!(Instant::now() < limit, "{words:?} never took the lock");
        }
        child
    }
}

/// The titles of the records at the engine.
fn records(pilot: &Pilot) -> Vec<String> {
    let filter = format!("label=rollback.invalid/ledger={}", pilot.project);
    let format = "{{.Label \"rollback.invalid/record\"}}";
    let told = docker(&["ps", "--all", "--filter", &filter, "--format", format]);
    told.lines().map(str::to_owned).collect()
}

/// Ids of the containers of the stack.
fn ids(pilot: &Pilot) -> String {
    docker(&[
        "ps",
        "--all",
        "--quiet",
        "--filter",
        &format!("label=com.docker.compose.project={}", pilot.project),
    ])
}

/// Two releases: r1, and r2 with another setting.
fn two_releases(pilot: Pilot) -> Pilot {
    let pilot = pilot.up();
    pilot.edit_env("QUOTA_PER_RUN", "25");
    pilot.xtask(&["up"]).expect(0);
    pilot
}

const QUOTA: &str = "QUOTA_PER_RUN";

/// A slow command that needs the lock, and that changes nothing which another one would notice.
const SLOW: [&str; 4] = ["reset", "--keep-data", "--yes", "--open"];

#[test]
fn what_one_clone_deployed_another_one_and_another_home_go_back_from() {
    on(&[Compose2], "clients", |pilot| {
        let pilot = two_releases(pilot);
        std::fs::remove_dir_all(pilot.state()).unwrap();
        let clone = Client::of(&pilot);
        // Nothing but what the engine knows, and no images of its own.
        let verify = clone.xtask(&["releases", "verify"]).expect(1).all();
        assert!(verify.contains("releases pull"), "{verify}");
        // The commands of the page, in their order.
        let page = std::fs::read_to_string(workspace().join("docs/clients.md")).unwrap();
        let commands = commands(&page, false);
        assert!(commands.len() >= 5, "{commands:?}");
        for words in &commands {
            clone.xtask(&words.iter().map(String::as_str).collect::<Vec<_>>()).expect(0);
        }
        let list = clone.xtask(&["releases", "list"]).expect(0).out;
        assert!(
            list.contains("  r1 ") && list.contains("* r2 ") && list.matches("known-good").count() == 2,
            "{list}"
        );
        let diff = clone.xtask(&["releases", "diff", "r1", "r2"]).expect(0).out;
        assert!(diff.contains(QUOTA) && diff.contains("25"), "{diff}");
        let back = clone.xtask(&["rollback", "--to", "r1"]).expect(0).out;
        assert!(back.contains("RESTORED: release r1 serves again"), "{back}");

        let home = Client::through_a_context(&pilot);
        let list = home.xtask(&["releases", "list"]).expect(0).out;
        assert!(list.contains("* r1 ") && list.contains("  r2 "), "{list}");
        assert!(home.xtask(&["releases", "diff", "r1", "r2"]).expect(0).out.contains(QUOTA));
        let back = home.xtask(&["rollback", "--to", "r2"]).expect(0).out;
        assert!(back.contains("RESTORED: release r2 serves again"), "{back}");
        // Secrets go to no place where an unprivileged user could read them.
        let env = std::fs::metadata(home.state().join("releases/r2/.env.poc")).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&env.permissions()) & 0o777, 0o600);

        // The images that the clone has saved survive a wiped engine.
        pilot.docker(&[&["rm", "--force"], ids(&pilot).lines().collect::<Vec<_>>().as_slice()].concat());
        pilot.lose_images();
        let back = clone.xtask(&["rollback"]).expect(0).out;
        assert!(back.contains("RESTORED: release r2 serves again"), "{back}");
        // The first clone has nothing left; what it makes gets an id of its own.
        pilot.xtask(&["up"]).expect(0);
        let list = clone.xtask(&["releases", "list"]).expect(0).out;
        assert!(list.contains("* r3 "), "{list}");
    });
}

#[test]
fn the_records_are_put_back_by_the_folder_that_still_has_them() {
    on(&[Compose2], "clients-lost", |pilot| {
        let pilot = two_releases(pilot);
        let clone = Client::of(&pilot);
        clone.xtask(&["kill-switch", "on", "--reason", "bad answers"]).expect(0);
        let known = |client: &Client<'_>| {
            let list = client.xtask(&["releases", "list"]).expect(0).out;
            let holds = client.xtask(&["--format", "json", "kill-switch", "status"]).expect(0).events();
            (list, holds[0]["value"]["holds"]["known"][0]["reason"].clone())
        };
        let before = known(&clone);
        assert_eq!(before.1, "bad answers");
        // Everything at the engine is lost. The clone has the hold, the first folder only learned of it when it looked.
        pilot.xtask(&["status"]);
        lose_records(&pilot.project);
        assert_eq!(known(&clone), before);
        let said = pilot.xtask(&["rollback"]).expect(9).all();
        assert!(
            said.contains("the engine knows now, for every client: ") && said.contains("hold "),
            "{said}"
        );
        // And the folders are lost.
        std::fs::remove_dir_all(clone.state()).unwrap();
        assert_eq!(known(&clone), before);
        shut_out(&pilot, "under a hold of another client");
        Client::of(&pilot).xtask(&["kill-switch", "off"]).expect(0);
        assert_eq!(known(&clone).1, Value::Null);
        // A copy in a folder does not bring it back.
        pilot.xtask(&["rollback"]).expect(0);
        assert_eq!(known(&clone).1, Value::Null);
    });
}

/// What a person does who needs room on the disk, on a daemon of the test's own.
#[test]
fn a_prune_of_everything_by_hand_forgets_nothing() {
    if let Some(why) = daemon::missing() {
        return skip("clients-pruned", &why);
    }
    let daemon = Daemon::new();
    let mut pilot = Pilot::new("clients-pruned", Compose2);
    daemon.serve(&mut pilot);
    let pilot = two_releases(pilot);
    pilot.xtask(&["kill-switch", "on", "--reason", "bad answers"]).expect(0);
    let titles = || {
        let format = "{{.Label \"rollback.invalid/record\"}}";
        let filter = format!("label=rollback.invalid/ledger={}", pilot.project);
        pilot.docker(&["ps", "--all", "--filter", &filter, "--format", format])
    };
    assert!(titles().contains("hold.") && titles().contains("release.r1."), "{}", titles());
    pilot.docker(&["system", "prune", "--all", "--force", "--volumes"]);
    assert_eq!(titles(), "");
    let said = pilot.xtask(&["rollback", "--to", "r1"]).expect(9).all();
    assert!(said.contains("held by ") && said.contains("bad answers"), "{said}");
    assert!(said.contains("the engine knows now, for every client: "), "{said}");
    for record in ["hold.", "release.r1.", "release.r2.", "running."] {
        assert!(titles().contains(record), "{record}: {}", titles());
    }
    let clone = Client::of(&pilot);
    let list = clone.xtask(&["releases", "list"]).expect(0).out;
    assert!(
        list.contains("* r1 ") && list.contains("  r2 ") && list.matches("known-good").count() == 2,
        "{list}"
    );
    assert!(clone.xtask(&["kill-switch", "status"]).expect(0).out.contains("bad answers"));
    clone.xtask(&["kill-switch", "off"]).expect(0);
}

/// When each run of a client was at work: from its beginning to its last step, in Unix milliseconds.
fn intervals(state: &std::path::Path) -> Vec<(u64, u64)> {
    let runs = std::fs::read_dir(state.join("rollbacks")).into_iter().flatten().flatten();
    let each = runs.filter_map(|run| {
        let text = std::fs::read_to_string(run.path().join("journal.jsonl")).ok()?;
        let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let began = events.iter().find(|event| event["event"] == "started")?["at_ms"].as_u64()?;
        let steps: Vec<u64> = events
            .iter()
            .filter(|event| event["event"] == "step")
            .filter_map(|event| event["at_ms"].as_u64())
            .collect();
        Some((began + steps.first()?, began + steps.last()?))
    });
    each.collect()
}

#[test]
fn of_twenty_clients_one_works_and_the_others_name_it() {
    on(&[Compose2], "clients-twenty", |pilot| {
        let pilot = pilot.up();
        let mut clients: Vec<Client<'_>> = (0..4).map(|_| Client::of(&pilot)).collect();
        clients.push(Client::through_a_context(&pilot));
        let ran: Vec<Ran> = std::thread::scope(|scope| {
            let start = |n: usize| {
                let client = &clients[n % clients.len()];
                scope.spawn(move || client.xtask(&SLOW))
            };
            let all: Vec<_> = (0..20).map(start).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let (done, refused): (Vec<&Ran>, Vec<&Ran>) = ran.iter().partition(|ran| ran.code == 0);
        assert!(!done.is_empty() && !refused.is_empty(), "{ran:?}");
        for ran in refused {
            assert_eq!(ran.code, 5, "{ran:?}");
            assert!(ran.err.contains(" locked by `cargo xtask reset`"), "{}", ran.err);
        }
        let mut at_work: Vec<(u64, u64)> =
            clients.iter().flat_map(|client| intervals(&client.state())).collect();
        at_work.sort_unstable();
        assert_eq!(at_work.len(), done.len());
        assert!(at_work.windows(2).all(|two| two[0].1 <= two[1].0), "two at once: {at_work:?}");
        assert!(!records(&pilot).iter().any(|name| name.starts_with("lock.")), "{:?}", records(&pilot));
    });
}

#[test]
fn a_holder_that_is_killed_stopped_or_cut_off_never_works_beside_another() {
    on(&[Compose2], "clients-holder", |pilot| {
        let pilot = pilot.up();
        let (mut one, two) = (Client::of(&pilot), Client::of(&pilot));
        // Killed: this machine sees that its process is gone.
        let mut killed = one.at_work(&SLOW);
        let process = killed.id();
        killed.kill().unwrap();
        killed.wait().unwrap();
        let said = two.xtask(&["rollback", "--open"]).expect(0).all();
        let over = format!("process {process}, since ");
        assert!(said.contains(&over) && said.contains("was taken over: that process has ended"), "{said}");
        // Stopped: it is named, and goes on when it may.
        let stopped = one.at_work(&SLOW);
        let signal = |name: &str, id: u32| {
            assert!(Command::new("kill").args([name, &id.to_string()]).status().unwrap().success());
        };
        signal("-STOP", stopped.id());
        let refused = two.xtask(&["rollback"]).expect(5);
        assert!(refused.err.contains("it is stopped: let it continue (kill -CONT "), "{}", refused.err);
        signal("-CONT", stopped.id());
        assert_eq!(stopped.wait_with_output().unwrap().status.code(), Some(0));
        // Cut off from the engine: it ends, and cannot give its lock back.
        let cable = Cable::new(one.folder.0.join("docker.sock"));
        one.set("DOCKER_HOST", &format!("unix://{}", cable.path.display()));
        let cut_off = one.at_work(&SLOW);
        cable.cut();
        let ended = ran(cut_off.wait_with_output().unwrap());
        assert!([1, 4].contains(&ended.code), "{ended:?}");
        two.xtask(&["rollback", "--open"]).expect(0);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    });
}

/// A socket that leads to the machine's engine, until it is cut.
struct Cable {
    path: PathBuf,
    connections: Arc<Mutex<Option<Vec<UnixStream>>>>,
}

impl Cable {
    fn new(path: PathBuf) -> Self {
        let engine = docker(&["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]);
        let engine = engine.trim().strip_prefix("unix://").unwrap().to_owned();
        let listener = UnixListener::bind(&path).unwrap();
        let connections = Arc::new(Mutex::new(Some(Vec::new())));
        let all = Arc::clone(&connections);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&engine).unwrap());
                let pass_on = |from: &UnixStream, to: &UnixStream| {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        std::io::copy(&mut from, &mut to).ok();
                        to.shutdown(Shutdown::Write).ok();
                    });
                };
                pass_on(&client, &server);
                pass_on(&server, &client);
                match all.lock().unwrap().as_mut() {
                    Some(all) => all.extend([client, server]),
                    None => return,
                }
            }
        });
        Self { path, connections }
    }

    fn cut(&self) {
        std::fs::remove_file(&self.path).unwrap();
        for connection in self.connections.lock().unwrap().take().unwrap() {
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

/// Nobody on this machine can see the processes of another one, or of a container: here, of another namespace. Its lock
/// is left alone until its time is up by the clock of the engine.
#[test]
fn a_lock_of_another_machine_is_taken_over_when_its_time_is_up() {
    on(&[Compose2], "clients-far", |pilot| {
        let pilot = pilot.up();
        let (mut far, near) = (Client::of(&pilot), Client::of(&pilot));
        far.within = vec!["unshare", "--pid", "--fork", "--kill-child"];
        let mut killed = far.at_work(&["rollback", "--scenario", "version", "--budget", "2s"]);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let begun = Instant::now();
        let mut refused = 0;
        let over = loop {
            let ran = near.xtask(&["rollback", "--open"]);
            if ran.code != 5 {
                break ran.expect(0).all();
            }
            refused += 1;
            assert!(
                ran.err.contains("if that process has died, its lock can be taken over in "),
                "{}",
                ran.err
            );
            assert!(ran.err.contains(&format!("docker rm rollback.{}.lock.", pilot.project)), "{}", ran.err);
            assert!(begun.elapsed() < Duration::from_secs(90), "{}", ran.err);
            std::thread::sleep(Duration::from_millis(500));
        };
        assert!(refused > 0 && over.contains("was taken over: it was not renewed for "), "{over}");
    });
}

/// Jobs of a pipeline, each on a fresh clone without a state folder: it has what the job before it has deployed.
#[test]
fn the_jobs_of_a_pipeline_need_no_state_of_their_own() {
    on(&[Compose2], "clients-jobs", |pilot| {
        let pilot = pilot.up();
        let settings = pilot.env_text();
        // As a job writes it, from a secret of the CI service.
        let job = |quota: &str| {
            let job = Client::of(&pilot);
            let text = settings.lines().map(|line| match line.starts_with(QUOTA) {
                true => format!("{QUOTA}={quota}\n"),
                false => format!("{line}\n"),
            });
            std::fs::create_dir_all(job.state()).unwrap();
            std::fs::write(job.state().join(".env.poc"), text.collect::<String>()).unwrap();
            job
        };
        let up = ["up"];
        let plan = ["rollback", "--plan", "--detailed-exitcode"];
        let old = pilot.running_values("gateway")[QUOTA].to_string();
        job(&old).xtask(&plan).expect(0);
        // One that is cancelled gives its lock back; the next one goes on where the stack is.
        let cancelled = job("25");
        let child = cancelled.at_work(&up);
        let limit = Instant::now() + Duration::from_secs(60);
        while !records(&pilot).iter().any(|name| name.starts_with("release.r2.")) {
            assert!(Instant::now() < limit, "it made no release");
        }
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
        assert!(!records(&pilot).iter().any(|name| name.starts_with("lock.")), "{:?}", records(&pilot));
        job("25").xtask(&up).expect(0);
        assert_eq!(pilot.running_values("gateway")[QUOTA], 25);
        // Two at once: one works, the other one says so.
        let (one, two) = (job("26"), job("26"));
        let first = one.at_work(&up);
        let refused = two.xtask(&up).expect(5);
        assert!(refused.err.contains("locked by `cargo xtask up`"), "{}", refused.err);
        assert_eq!(first.wait_with_output().unwrap().status.code(), Some(0));
        // One that is killed in the middle, when the public is shut out.
        let killed = job("27");
        let mut child = killed.at_work(&up);
        let limit = Instant::now() + Duration::from_secs(60);
        let shut = |path: &str| {
            try_http("GET", pilot.port("gateway"), path, &[], None).map_or(true, |a| a.status == 503)
        };
        while !shut("/stream?route=critique&seed=42") {
            assert!(Instant::now() < limit, "the gate was never closed");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let next = job("27");
        let said = next.xtask(&up).expect(0).all();
        assert!(said.contains("was taken over: that process has ended"), "{said}");
        assert_eq!(pilot.running_values("gateway")[QUOTA], 27);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
        // A person rolls back from the first clone, which never saw any of this.
        let back = pilot.xtask(&["rollback", "--to", "r1"]).expect(0).out;
        assert!(back.contains("RESTORED: release r1 serves again"), "{back}");
        job(&old).xtask(&plan).expect(0);
    });
}

/// A hold that is placed while another client's run opens the gate: the gate ends closed, also if that client is killed.
#[test]
fn a_hold_of_one_client_stops_the_opening_of_another() {
    on(&[Compose2], "clients-hold", |pilot| {
        let pilot = pilot.up();
        let (one, two) = (Client::of(&pilot), Client::of(&pilot));
        for kill in [false, true] {
            let mut run = one.at_work(&["rollback", "--scenario", "version"]);
            std::thread::sleep(Duration::from_millis(if kill { 900 } else { 400 }));
            if kill {
                run.kill().unwrap();
            }
            two.xtask(&["kill-switch", "on", "--reason", "not now"]).expect(0);
            run.wait().unwrap();
            shut_out(&pilot, "after a hold of another client");
            let said = one.xtask(&["rollback"]).expect(9);
            assert!(said.all().contains("not now"), "{}", said.all());
            two.xtask(&["kill-switch", "off"]).expect(0);
        }
        assert_eq!(json!(pilot.public("GET", "/healthz", None).json()["status"]), "healthy");
    });
}
