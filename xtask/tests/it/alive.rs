//! Data that is alive: copied while it is written to, restored whole, and nothing stays paused, whatever ends the copy.

use crate::notes::{self, Notes, Stack, within};
use crate::pilot::Engine::{Compose1, Compose2, Process};
use crate::pilot::{Pilot, Random, docker, on, pause, program, ran, tries};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long it may take until a pause has ended after the process that began it was killed.
const UNDONE: Duration = Duration::from_secs(20);

impl Notes {
    /// Runs SQL in the database's container, as the application's user.
    #[track_caller]
    fn sql(&self, sql: &str) -> String {
        let db = self.containers("db").remove(0);
        docker(&["exec", &db, "sh", "-c", &format!("{CLIENT} --execute \"$0\""), sql])
    }

    /// A client that moves amounts between two tables, one transaction after another, until it is killed.
    fn load(&self) -> Child {
        let loop_of = format!("while :; do echo \"{MOVE}\"; done | {CLIENT}");
        let db = self.containers("db").remove(0);
        let mut load = Command::new("docker");
        load.args(["exec", &db, "sh", "-c", &loop_of]).stdin(Stdio::null()).stdout(Stdio::null());
        load.stderr(Stdio::null()).spawn().unwrap()
    }
}

impl Stack {
    /// What is paused in this project.
    fn paused(&self) -> String {
        let project = format!("label=com.docker.compose.project={}", self.project);
        docker(&["ps", "--quiet", "--filter", &project, "--filter", "status=paused"])
    }

    /// Nothing is paused, and nothing is written down as paused.
    pub fn is_going(&self) -> bool {
        within(UNDONE, || self.paused().is_empty() && records(&self.dir().join(".pilot")) == 0)
    }
}

const CLIENT: &str = "mariadb --host 127.0.0.1 --user notes --password=\"$DB_PASSWORD\" --database notes --batch \
    --skip-column-names";

/// Two rows in one transaction: their sum never changes, and both count up.
const MOVE: &str = "begin; update left_side set amount = amount - 1, moves = moves + 1; \
    update right_side set amount = amount + 1, moves = moves + 1; commit;";

/// How many pauses are written down in a state folder.
fn records(state: &Path) -> usize {
    let names = std::fs::read_dir(state.join("pauses")).into_iter().flatten().flatten();
    names.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count()
}

#[test]
fn a_database_that_is_written_to_is_backed_up_and_comes_back_whole() {
    notes::on(&[Compose2], "alive", |notes| {
        // On a busy machine every call of Docker in a pause takes long.
        notes.append("pilot.toml", "[data]\npause_max = \"1m\"\n");
        notes.xtask(&["up"]).expect(0);
        for side in ["left_side", "right_side"] {
            notes.sql(&format!("create table {side} (amount bigint, moves bigint) engine=innodb"));
            notes.sql(&format!("insert into {side} values (1000000, 0)"));
        }
        notes.write("before the load");
        let stalls: Vec<Duration> = (0..tries(1)).map(|_| backed_up_and_restored(&notes)).collect();
        println!("{} backups came back whole; the longest stall of a client: {stalls:?}", stalls.len());
        assert!(notes.has("before the load"));
        killed_at_any_moment_of_a_copy_nothing_stays_paused(&notes);
        a_client_that_pauses_after_the_command_was_killed_leaves_nothing_paused(&notes);
    });
}

/// A docker client that is slow to pause, and goes on by itself when the command that started it was killed.
fn a_client_that_pauses_after_the_command_was_killed_leaves_nothing_paused(notes: &Notes) {
    let bin = notes.dir().join("slow");
    let real = std::env::var("PATH").unwrap();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = pause ]; then touch '{0}/pauses'; sleep 2; fi\nPATH='{real}' docker \"$@\"\ncode=$?\n\
         if [ \"$1\" = pause ]; then touch '{0}/paused'; fi\nexit $code\n",
        bin.display()
    );
    program(&bin.join("docker"), &script);
    let path = format!("{}:{real}", bin.display());
    let mut command = notes.command(&["backup", "create"]);
    let mut child = command.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(within(UNDONE, || bin.join("pauses").exists()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(within(UNDONE, || bin.join("paused").exists()), "the client did not go on");
    assert!(notes.is_going(), "{}", notes.paused());
    std::fs::remove_dir_all(bin).unwrap();
}

/// Returns how long a client waited at most.
fn backed_up_and_restored(notes: &Notes) -> Duration {
    let moves = || notes.sql("select moves from left_side").trim().parse::<u64>().unwrap();
    let first = moves();
    let mut load = notes.load();
    assert!(within(Duration::from_secs(20), || moves() > first + 50), "there is no load");
    let stop = AtomicBool::new(false);
    let (backup, longest) = std::thread::scope(|scope| {
        let stall = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                notes.ask("GET", "/notes", None);
                longest = longest.max(asked.elapsed());
            }
            longest
        });
        let backup = notes.json(&["backup", "create"]).expect(0);
        stop.store(true, Ordering::Relaxed);
        (backup, stall.join().unwrap())
    });
    assert!(longest < Duration::from_secs(60), "{longest:?}");
    assert!(notes.is_going());
    let copied = moves();
    assert!(within(Duration::from_secs(20), || moves() > copied), "the load did not go on");
    load.kill().unwrap();
    load.wait().unwrap();
    let told = |event: &Value| event["event"] == "bytes" && event["what"] == "copying db";
    assert!(backup.events().iter().any(|event| told(event) && event["bytes"].as_u64() > Some(1 << 20)));
    let id = backup.events().iter().find_map(|event| event["value"]["backup"].as_str().map(str::to_owned));
    notes.json(&["--yes", "backup", "restore", &id.unwrap(), "--only", "data"]).expect(0);
    let sums = notes.sql(&format!(
        "select l.amount + r.amount, l.moves = r.moves, l.moves > {first} + 50 and l.moves <= {copied} \
         from left_side l, right_side r"
    ));
    assert_eq!(sums.trim(), "2000000\t1\t1");
    let checked = notes.sql("check table left_side, right_side, notes extended");
    assert_eq!(checked.lines().filter(|line| line.ends_with("\tOK")).count(), 3, "{checked}");
    longest
}

#[test]
fn pauses_have_a_limit_and_strangers_and_what_is_paused_by_hand_are_told() {
    notes::on(&[Compose1], "pauses", |notes| {
        // A log is copied within the limit of the evidence, which is short for so much on a machine that is busy.
        notes.edit("pilot.toml", "[limits]\n", "[data]\npause_max = \"1ms\"\n[limits]\nevidence = \"60s\"\n");
        notes.xtask(&["up"]).expect(0);
        let late = notes.xtask(&["backup", "create"]).expect(1);
        assert!(late.err.contains("pause_max") && late.err.contains("kill-switch on"), "{}", late.err);
        assert!(notes.is_going());
        notes.xtask(&["kill-switch", "on"]).expect(0);
        // More of a log than a backup keeps, in more lines than are asked for first.
        let worker = notes.containers("worker").remove(0);
        let line = "a line of the log, and one more of them";
        let much = format!("busybox yes '{line}' | busybox head -n 150000 > /proc/1/fd/1");
        docker(&["exec", &worker, "sh", "-c", &much]);
        let kept = notes.xtask(&["backup", "create"]).expect(0);
        assert!(kept.out.contains("of the log of worker"), "{}", kept.all());
        a_pause_that_the_kernel_is_too_busy_for_is_tried_again(&notes);
        a_volume_of_a_stranger_is_refused(&notes);
        notes.xtask(&["kill-switch", "off"]).expect(0);
        // Paused by hand: a drift, which a rollback puts right.
        let db = notes.containers("db").remove(0);
        pause(&db);
        let copied = notes.xtask(&["backup", "create"]);
        assert_eq!(notes.paused().lines().count(), 1, "{}", copied.all());
        let seen = notes.xtask(&["diagnose"]);
        assert!(seen.all().contains("db is paused"), "{}", seen.all());
        let finished = notes.json(&["rollback"]).expect(0).finished();
        assert_eq!(finished["outcome"], "restored", "{finished}");
        assert!(notes.is_going());
    });
}

/// Docker as it answers when the kernel is too busy: the first pause fails, in the words of runc.
fn a_pause_that_the_kernel_is_too_busy_for_is_tried_again(notes: &Notes) {
    let bin = notes.dir().join("busy");
    let real = std::env::var("PATH").unwrap();
    let said = "Error response from daemon: Cannot pause container: OCI runtime pause failed: unable to freeze: unknown";
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = pause ] && mkdir '{0}/refused' 2>/dev/null; then echo '{said}' >&2; exit 1; fi\n\
         PATH='{real}'; exec docker \"$@\"\n",
        bin.display()
    );
    program(&bin.join("docker"), &script);
    let path = format!("{}:{real}", bin.display());
    let made = ran(notes.command(&["backup", "create"]).env("PATH", path).output().unwrap()).expect(0);
    assert!(bin.join("refused").is_dir() && notes.paused().is_empty(), "{}", made.all());
    std::fs::remove_dir_all(bin).unwrap();
}

/// A container of another project that mounts a volume of this one.
fn a_volume_of_a_stranger_is_refused(notes: &Notes) {
    let stranger = format!("{}-stranger", notes.project);
    let mount = format!("{}-exports:/theirs", notes.project);
    let image = format!("{}-python:3.11", notes.project);
    let program = ["python3", "-c", "import time; time.sleep(600)"];
    let run = ["run", "--detach", "--name", &stranger, "--volume", &mount, &image];
    docker(&[run.as_slice(), &program].concat());
    let refused = notes.xtask(&["backup", "create"]);
    docker(&["rm", "--force", &stranger]);
    let refused = refused.expect(1);
    assert!(refused.err.contains(&format!("{stranger} uses it too")), "{}", refused.err);
    assert!(refused.err.contains(&format!("docker stop {stranger}")), "{}", refused.err);
    assert!(notes.is_going());
}

fn killed_at_any_moment_of_a_copy_nothing_stays_paused(notes: &Notes) {
    let whole = Instant::now();
    notes.xtask(&["backup", "create"]).expect(0);
    let whole = whole.elapsed();
    let mut chance = Random::new();
    let mut paused = 0;
    for n in 0..tries(4) {
        let moment = chance.up_to(whole);
        let mut command = notes.command(&["backup", "create"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        paused += records(&notes.dir().join(".pilot"));
        assert!(notes.is_going(), "try {n}, killed after {moment:?}: paused {:?}", notes.paused());
    }
    println!("{paused} of them were killed during a pause");
}

#[test]
fn processes_that_are_copied_are_paused_and_go_on_when_the_copy_is_killed() {
    on(&[Process], "killed-process", |pilot| {
        let pilot = pilot.up();
        pilot.store_scenario();
        // Enough to be copied that a kill meets the pause.
        let big = pilot.state().join("process/volumes/engine/big");
        std::fs::write(&big, vec![7; 16 << 20]).unwrap();
        let whole = Instant::now();
        pilot.xtask(&["backup", "create"]).expect(0);
        let whole = whole.elapsed();
        let mut chance = Random::new();
        let mut paused = 0;
        for n in 0..tries(6) {
            let moment = chance.up_to(whole);
            let mut command = pilot.command(&["backup", "create"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
            paused += records(&pilot.state());
            let going = || records(&pilot.state()) == 0 && is_running(&pilot);
            let left = || (records(&pilot.state()), pilot.xtask(&["assess"]).all());
            assert!(within(UNDONE, going), "try {n}, killed after {moment:?}: {:?}", left());
        }
        println!("{paused} of them were killed during a pause");
        // Ended by a signal, where nobody reads what it says.
        let mut command = pilot.command(&["backup", "create"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        std::thread::sleep(whole / 2);
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        let mut ended = false;
        for _ in 0..400 {
            ended = ended || child.try_wait().unwrap().is_some();
            std::thread::sleep(Duration::from_millis(if ended { 0 } else { 25 }));
        }
        child.kill().ok();
        assert!(ended, "SIGTERM did not end it");
        assert!(within(UNDONE, || records(&pilot.state()) == 0 && is_running(&pilot)));
        pilot.xtask(&["smoke"]).expect(0);
        // A log that is too long is cut, one that cannot be read is left out, and both are named.
        let logs = pilot.state().join("process/services");
        std::fs::write(logs.join("jobs/log.1"), vec![b'x'; 11 << 20]).unwrap();
        std::fs::remove_file(logs.join("engine/log")).unwrap();
        std::fs::create_dir(logs.join("engine/log")).unwrap();
        let kept = pilot.xtask(&["backup", "create"]).expect(0);
        for remark in ["of the log of jobs, only the newest 10.0 MiB", "the log of engine is not in it"] {
            assert!(kept.out.contains(remark), "{}", kept.all());
        }
    });
}

/// Is every service in the state that its engine calls running?
fn is_running(pilot: &Pilot) -> bool {
    let seen = pilot.json(&["assess"]);
    let text = seen.events().iter().map(Value::to_string).collect::<String>();
    !text.contains("\"paused\"")
}
