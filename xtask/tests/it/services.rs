//! What the services bear: more jobs, streams, connections, bytes and wrong tokens than they have room
//! for. Each is bounded and refused with a reason, and none of it keeps the operator out.

use crate::contract::Live;
use crate::http::{Answer, http, try_http};
use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, on};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest that anything here is waited for: no test is timed tightly.
const PATIENCE: Duration = Duration::from_secs(60);

const JOB: &str = "/jobs/stream?scenarioId=demo-scenario";

/// A gateway that belongs to no pilot, with settings of the test's own.
pub struct Lone {
    pub child: Child,
    pub port: u16,
}

impl Lone {
    /// A gateway that runs.
    pub fn gateway(pilot: &Pilot, settings: &[(&str, &str)]) -> Self {
        let (mut command, port) = Self::command(pilot, settings);
        let lone = Self { child: command.spawn().unwrap(), port };
        let limit = Instant::now() + PATIENCE;
        while try_http("GET", port, "/metrics", &[], None).is_err() {
            assert!(Instant::now() < limit, "the gateway does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        lone
    }

    /// The command of one that does not run yet, and its port. The program is the one that the pilot runs.
    pub fn command(pilot: &Pilot, settings: &[(&str, &str)]) -> (Command, u16) {
        let images = pilot.state().join("process/images");
        let mut programs = std::fs::read_dir(images).unwrap().map(|e| e.unwrap().path());
        let program = programs.find(|p| p.extension().is_none()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = pilot.folder.0.join(format!("lone-{port}"));
        std::fs::create_dir_all(&data).unwrap();
        let mut command = Command::new(program);
        command.arg("gateway").env_clear().env("SCENARIO_LISTEN", format!("127.0.0.1:{port}"));
        command.env("SCENARIO_DATA", data).envs(settings.iter().copied()).stdout(Stdio::null());
        (command, port)
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Asks and leaves the connection open, the answer read up to the end of its head.
fn hold(port: u16, path: &str) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "{path}: {}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    (socket, String::from_utf8(head).unwrap().to_lowercase())
}

/// Waits until the other side has closed this connection.
fn wait_closed(mut socket: TcpStream) -> Result<(), String> {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = [0; 4096];
    loop {
        match socket.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(format!("still open: {e}")),
        }
    }
}

fn refused_for_now(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.json()["error"].clone()), (status, json!(code)), "{}", answer.body);
    assert!(answer.json()["message"].is_string(), "{}", answer.body);
    assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{:?}", answer.headers);
}

fn resident_bytes(port: u16) -> u64 {
    let page = http("GET", port, "/metrics", &[], None).body;
    let line = page.lines().find_map(|l| l.strip_prefix("scenario_resident_memory_bytes "));
    line.unwrap().parse().unwrap()
}

#[test]
fn jobs_of_the_public_do_not_hold_up_a_rollback() {
    on(&[Process], "s-jobs", |pilot| {
        let pilot = pilot.up();
        let mut asked: Vec<(TcpStream, String)> =
            (0..500).map(|_| hold(pilot.port("gateway"), JOB)).collect();
        let accepted = asked.iter().filter(|(_, head)| head.starts_with("http/1.1 200")).count();
        let refused = asked.iter().filter(|(_, head)| head.starts_with("http/1.1 429")).count();
        assert_eq!(accepted + refused, 500);
        assert!(accepted >= 200 && refused > 0, "{accepted} accepted, {refused} refused");
        // A place is free whenever a job ends: those are taken first.
        let asked_in_vain = (0..20).map(|_| {
            while let (socket, head) = hold(pilot.port("gateway"), JOB)
                && head.starts_with("http/1.1 200")
            {
                asked.push((socket, head));
            }
            pilot.public("GET", JOB, None)
        });
        let refused = asked_in_vain.into_iter().find(|answer| answer.status != 200);
        refused_for_now(&refused.unwrap(), 429, "queue_full");
        // Whoever has the token is served beside the queue.
        let mine = pilot.request("GET", "gateway", JOB, None);
        assert_eq!(mine.events().last().unwrap().0, "job-completed", "{}", mine.body);

        let closing = json!({"enabled": true, "reason": "a test"}).to_string();
        assert_eq!(pilot.request("POST", "gateway", "/admin/kill-switch", Some(&closing)).status, 200);
        pilot.edit_env("LOG_LEVEL", "debug");
        pilot.xtask(&["rollback", "--open"]).expect(0);
        // The queue outlived its service, and comes to its end.
        wait_for_no_jobs(&pilot);
    });
}

/// Name of the job that was asked for, once it has ended.
fn done_job(pilot: &Pilot) -> String {
    loop {
        let answer = pilot.public("GET", JOB, None);
        if answer.status == 200 {
            return answer.events()[0].1["jobId"].as_str().unwrap().to_owned();
        }
        refused_for_now(&answer, 429, "queue_full");
    }
}

#[test]
fn jobs_that_are_over_are_forgotten_in_the_end() {
    on(&[Process], "s-forget", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("MAX_CONCURRENT_JOBS", "64");
        pilot.xtask(&["up"]).expect(0);
        let first = done_job(&pilot);
        std::thread::scope(|scope| {
            for _ in 0..48 {
                scope.spawn(|| (0..24).for_each(|_| drop(done_job(&pilot))));
            }
        });
        let last = done_job(&pilot);
        let cancel = |id: &str| pilot.public("POST", "/jobs/cancel", Some(&json!({"jobId": id}).to_string()));
        assert_eq!(cancel(&first).status, 404);
        assert_eq!(cancel(&last).json()["status"], "already_finished");
    });
}

#[test]
fn a_client_that_leaves_at_once_leaves_no_job_that_never_runs() {
    on(&[Process], "s-leave", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("MAX_CONCURRENT_JOBS", "64");
        pilot.xtask(&["up"]).expect(0);
        for service in ["gateway", "jobs"] {
            for n in 0..200 {
                let mut socket = TcpStream::connect(("127.0.0.1", pilot.port(service))).unwrap();
                write!(socket, "GET {JOB} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                std::thread::sleep(Duration::from_micros(n * 10));
            }
        }
        wait_for_no_jobs(&pilot);
    });
}

/// Waits until no job is queued or running.
fn wait_for_no_jobs(pilot: &Pilot) {
    let limit = Instant::now() + PATIENCE;
    let waiting = || {
        let all = pilot.request("GET", "gateway", "/jobs", None).json();
        let open = |job: &&serde_json::Value| job["state"] == "queued" || job["state"] == "running";
        all["jobs"].as_array().unwrap().iter().filter(open).count()
    };
    while waiting() > 0 {
        assert!(Instant::now() < limit, "{} jobs still wait", waiting());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn streams_of_the_public_do_not_hold_up_the_gate_or_the_operator() {
    on(&[Process], "s-streams", |pilot| {
        let pilot = pilot.up();
        let port = pilot.port("gateway");
        let stream = "/stream?route=plan&seed=1&budget=4000";
        let (mut held, mut refused) = (Vec::new(), 0);
        for _ in 0..1_200 {
            let (socket, head) = hold(port, stream);
            if head.starts_with("http/1.1 200") {
                held.push(socket);
            } else {
                assert!(head.starts_with("http/1.1 503") && head.contains("retry-after"), "{head}");
                refused += 1;
            }
        }
        assert!(held.len() >= 1_000 && refused > 0, "{} streams, {refused} refused", held.len());
        refused_for_now(&pilot.public("GET", "/report?scenarioId=demo-scenario", None), 503, "busy");
        assert_eq!(pilot.public("GET", "/healthz", None).status, 200);
        let short = "/stream?route=plan&seed=1&budget=2";
        assert_eq!(pilot.request("GET", "gateway", short, None).events().last().unwrap().0, "done");
        assert!(resident_bytes(port) < 200 << 20, "{} bytes", resident_bytes(port));

        let closing = json!({"enabled": true, "reason": "a test"}).to_string();
        assert_eq!(pilot.request("POST", "gateway", "/admin/kill-switch", Some(&closing)).status, 200);
        let closed = Instant::now();
        for mut socket in held {
            let mut all = String::new();
            while !all.contains("event: cancelled") {
                let mut some = [0; 65536];
                let n = socket.read(&mut some).unwrap();
                assert!(n > 0, "a stream ended without cancelled");
                all = all.split_off(all.len().saturating_sub(64)) + &String::from_utf8_lossy(&some[..n]);
            }
        }
        assert!(closed.elapsed() < Duration::from_secs(20), "{:?}", closed.elapsed());
        pilot.xtask(&["smoke"]).expect(0);
    });
}

#[test]
fn half_open_connections_end_and_keep_nobody_out() {
    on(&[Process], "s-half", |pilot| {
        let pilot = pilot.up();
        let port = pilot.port("gateway");
        let half = |text: &str| {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.write_all(text.as_bytes()).unwrap();
            socket
        };
        let files = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
        let texts = ["", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", "\r\n"];
        let mut held: Vec<TcpStream> = (0..2_500).map(|n| half(texts[n % texts.len()])).collect();
        // Everybody is served all the same, and a stream that runs is not cut.
        let mut live = Live::open(&pilot, "/stream?route=plan&seed=1&budget=500&sessionId=long");
        live.until("event: token");
        for _ in 0..20 {
            assert_eq!(pilot.public("GET", "/healthz", None).status, 200);
            assert_eq!(pilot.request("GET", "gateway", "/admin/sessions", None).json()["active"], 1);
        }
        // Kept alive after an answer, and used no more.
        held.push(hold(port, "/healthz").0);
        let stuck: Vec<String> = held.into_iter().filter_map(|s| wait_closed(s).err()).collect();
        assert_eq!(stuck.len(), 0, "{:?}", stuck.first());
        live.until("event: done");
    });
}

#[test]
fn a_client_that_reads_nothing_is_let_go() {
    on(&[Process], "s-deaf", |pilot| {
        let pilot = pilot.up();
        let mut socket = TcpStream::connect(("127.0.0.1", pilot.port("gateway"))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let limit = Instant::now() + PATIENCE;
        let end = loop {
            match socket.write_all(&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100)) {
                Err(e) if e.kind() != ErrorKind::WouldBlock => break e.kind(),
                _ => assert!(Instant::now() < limit, "still open"),
            }
        };
        assert!(matches!(end, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{end}");
    });
}

#[test]
fn wrong_tokens_are_slowed_and_the_right_one_is_answered() {
    on(&[Process], "s-guess", |pilot| {
        let pilot = pilot.up();
        for service in ["gateway", "engine", "jobs"] {
            let port = pilot.port(service);
            let (judged, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                for n in 0..16 {
                    let (judged, stop) = (&judged, &stop);
                    scope.spawn(move || {
                        let token = format!("Bearer guess-{n}");
                        while !stop.load(Ordering::Relaxed) {
                            let headers = [("authorization", token.as_str())];
                            let answer = http("GET", port, "/admin/config", &headers, None);
                            if answer.status == 401 {
                                judged.fetch_add(1, Ordering::Relaxed);
                            } else {
                                refused_for_now(&answer, 429, "too_many_guesses");
                            }
                        }
                    });
                }
                let started = Instant::now();
                while started.elapsed() < Duration::from_secs(2) {
                    assert_eq!(pilot.request("GET", service, "/admin/config", None).status, 200);
                    assert_eq!(http("GET", port, "/healthz", &[], None).status, 200);
                }
                stop.store(true, Ordering::Relaxed);
            });
            let judged = judged.into_inner();
            assert!((1..200).contains(&judged), "{service} judged {judged} tokens in two seconds");
        }
        // Behind a closed gate, a guess is told no faster.
        let closing = json!({"enabled": true, "reason": "a test"}).to_string();
        assert_eq!(pilot.request("POST", "gateway", "/admin/kill-switch", Some(&closing)).status, 200);
        let asked = Instant::now();
        let path = "/report?scenarioId=demo-scenario";
        let guess = http("GET", pilot.port("gateway"), path, &[("authorization", "Bearer guess")], None);
        refused_for_now(&guess, 503, "gate_closed");
        assert!(asked.elapsed() > Duration::from_millis(100), "{:?}", asked.elapsed());
    });
}

#[test]
fn requests_that_never_end_are_bounded() {
    on(&[Process], "s-endless", |pilot| {
        let pilot = pilot.up();
        let port = pilot.port("gateway");
        let token = format!("authorization: Bearer {}\r\n", pilot.setting("ADMIN_TOKEN"));
        // A body that stops half way is told so.
        for (path, headers) in [("/cancel", ""), ("/jobs/cancel", ""), ("/admin/seed", token.as_str())] {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}content-length: 100\r\n\r\n{{\"se");
            socket.write_all(head.as_bytes()).unwrap();
            let mut all = String::new();
            socket.read_to_string(&mut all).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert!(all.starts_with("HTTP/1.1 408") && all.contains("slow_body"), "{path}: {all}");
        }
        // A head or a body without an end is cut off, and costs no memory.
        for (start, more) in [
            ("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ".to_owned(), "a".repeat(65536)),
            ("GET /".to_owned(), "a".repeat(65536)),
            ("GET / HTTP/1.1\r\n".to_owned(), "X-Many: a\r\n".repeat(6000)),
            (chunked("/cancel", ""), format!("10000\r\n{}\r\n", "a".repeat(65536))),
            (chunked("/jobs/cancel", ""), format!("10000\r\n{}\r\n", "a".repeat(65536))),
            (chunked("/admin/seed", &token), format!("10000\r\n{}\r\n", "a".repeat(65536))),
            (
                chunked("/report?scenarioId=demo-scenario", "").replace("POST", "GET"),
                format!("10000\r\n{}\r\n", "a".repeat(65536)),
            ),
        ] {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
            socket.write_all(start.as_bytes()).unwrap();
            let sent = (0..1_000).take_while(|_| socket.write_all(more.as_bytes()).is_ok()).count();
            assert!(sent < 1_000, "{start}: took 65 MB");
        }
        for service in ["gateway", "engine", "jobs"] {
            assert!(resident_bytes(pilot.port(service)) < 60 << 20, "{service}");
        }
    });
}

fn chunked(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}transfer-encoding: chunked\r\n\r\n")
}

/// Answers each request with `head`, and then with `more` as often as it is taken.
fn hostile(head: &'static str, more: Option<Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().take(4) {
            let (mut socket, more) = (socket.unwrap(), more.clone());
            std::thread::spawn(move || {
                drop(socket.read(&mut [0; 4096]));
                socket.write_all(head.as_bytes()).ok();
                let taken =
                    more.map_or(0, |m| (0..8_000).take_while(|_| socket.write_all(&m).is_ok()).count());
                // Silence, until the other side has had enough.
                if taken < 8_000 {
                    drop(socket.read(&mut [0; 1]));
                }
            });
        }
    });
    port
}

#[test]
fn an_engine_that_never_ends_its_answer_is_left() {
    on(&[Process], "s-upstream", |pilot| {
        let pilot = pilot.up();
        let ok =
            "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
        let long = format!("10000\r\n{}\r\n", "a".repeat(65536)).into_bytes();
        for (what, port) in [
            ("a line without an end", hostile(ok, Some(long))),
            ("a head and nothing more", hostile(ok, None)),
            ("nothing at all", hostile("", None)),
        ] {
            let url = format!("http://127.0.0.1:{port}");
            let lone = Lone::gateway(
                &pilot,
                &[("SCENARIO_ENGINE_URL", url.as_str()), ("SCENARIO_JOBS_URL", url.as_str())],
            );
            let said = Live::ask(lone.port, "/stream?route=plan&seed=1", "").until("data: {\"code\"");
            assert!(said.contains("event: error"), "{what}: {said}");
            let report = http("GET", lone.port, "/report?scenarioId=demo-scenario", &[], None);
            assert_eq!((report.status, report.json()["error"].clone()), (502, json!("upstream")), "{what}");
            assert!(resident_bytes(lone.port) < 60 << 20, "{what}: {} bytes", resident_bytes(lone.port));
        }
    });
}
