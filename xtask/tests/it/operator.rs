//! What the operator is promised of the services: the gate, the admin routes, the settings, the logs, how
//! a service ends, and that nothing a client sends brings one down.

use crate::contract::Live;
use crate::http::{Answer, http};
use crate::pilot::Engine::Process;
use crate::pilot::on;
use crate::services::Lone;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

const ROUTES: [(&str, &str); 10] = [
    ("GET", "/stream?route=plan"),
    ("HEAD", "/stream?route=plan"),
    ("GET", "/report?scenarioId=demo"),
    ("HEAD", "/report?scenarioId=demo"),
    ("GET", "/jobs"),
    ("GET", "/jobs/stream?scenarioId=demo"),
    ("HEAD", "/jobs/stream?scenarioId=demo"),
    ("GET", "/jobs/stream?jobId=nobody"),
    ("POST", "/cancel"),
    ("POST", "/jobs/cancel"),
];

/// Asks with a body where the method has one.
fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    http(method, port, path, headers, (method == "POST").then_some("{"))
}

#[test]
fn a_closed_gate_refuses_every_public_route_and_ends_job_streams() {
    on(&[Process], "c-closed", |pilot| {
        let pilot = pilot.up();
        let port = pilot.port("gateway");
        let job = "/jobs/stream?scenarioId=demo";
        // So many before it that it waits for seconds.
        let _before: Vec<Live> = (0..200).map(|_| Live::open(&pilot, job)).collect();
        let mut waiting = Live::open(&pilot, job);
        waiting.until("event: job-queued");
        let mut stream = Live::open(&pilot, "/stream?route=plan&budget=4000");
        stream.until("event: token");
        let closed = json!({"enabled": true, "reason": "a test"}).to_string();
        assert_eq!(pilot.request("POST", "gateway", "/admin/kill-switch", Some(&closed)).status, 200);
        let since = Instant::now();
        for (live, what) in [(&mut stream, "stream"), (&mut waiting, "jobs")] {
            let end = live.until("data: {\"reason\"");
            assert!(end.contains("event: cancelled") && end.contains("a test"), "{what}: {end}");
            assert!(end.contains("\"timestamp\""), "{what}: {end}");
            live.until_end();
        }
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
        for (method, path) in ROUTES {
            let refused = ask(port, method, path, &[]);
            assert_eq!((refused.status, refused.header("retry-after")), (503, "5"), "{method} {path}");
            if method != "HEAD" {
                assert_eq!(refused.json()["error"], "gate_closed", "{method} {path}");
                assert!(refused.json()["message"].as_str().unwrap().contains("a test"), "{}", refused.body);
            }
            let token = format!("Bearer {}", pilot.setting("ADMIN_TOKEN"));
            let passed = ask(port, method, path, &[("authorization", &token)]).status;
            assert!([200, 400, 404].contains(&passed), "{method} {path} with the token: {passed}");
        }
        for (path, status) in [
            ("/healthz", 200),
            ("/metrics", 200),
            ("/admin/kill-switch", 401),
            ("/admin/sessions", 401),
            ("/admin/metrics", 401),
            ("/nothing", 404),
        ] {
            assert_eq!(pilot.public("GET", path, None).status, status, "{path}");
        }
        assert!(pilot.public("GET", "/metrics", None).body.contains("scenario_gate_closed 1"));
        let position = pilot.request("GET", "gateway", "/admin/kill-switch", None).json();
        assert_eq!((position["closed"].clone(), position["reason"].clone()), (json!(true), json!("a test")));
    });
}

#[test]
fn admin_routes_do_what_they_say() {
    on(&[Process], "c-admin", |pilot| {
        let pilot = pilot.up();
        let admin =
            |method: &str, path: &str, body: Option<&str>| pilot.request(method, "gateway", path, body);
        pilot.store_scenario();
        let kept = pilot.public("GET", "/report?scenarioId=kept", None).json();
        assert_eq!(
            (kept["meta"]["scenarioId"].clone(), kept["meta"]["seed"].clone()),
            (json!("kept"), json!(42))
        );
        let mut live = Live::open(&pilot, "/stream?route=plan&seed=5&budget=4000&sessionId=listed");
        live.until("event: token");
        let listed = admin("GET", "/admin/sessions", None).json();
        assert_eq!(listed, json!({"active": 1, "sessions": [{"sessionId": "listed", "seed": 5}]}));
        let cancels = || admin("GET", "/admin/metrics", None).json()["cancels"].as_u64().unwrap();
        let (before, sent) = (cancels(), Instant::now());
        let cancel = || pilot.public("POST", "/cancel", Some(r#"{"sessionId":"listed"}"#));
        assert_eq!(cancel().status, 202);
        live.until("event: cancelled");
        live.until_end();
        assert!(sent.elapsed() < Duration::from_secs(2), "{:?}", sent.elapsed());
        let figures = admin("GET", "/admin/metrics", None).json();
        assert_eq!((cancels(), figures["activeSessions"].clone()), (before + 1, json!(0)));
        assert!(figures["meanFirstTokenMs"].is_number() && figures["meanCancelMs"].is_number(), "{figures}");
        for body in ["", "{", r#"{"enabled":"yes"}"#, r#"{"enabled":true,"more":1}"#] {
            for path in ["/admin/kill-switch", "/admin/seed"] {
                let refused = admin("POST", path, Some(body));
                assert_eq!(refused.status, 400, "{path} {body}: {}", refused.body);
                assert!(refused.json()["error"].is_string() && refused.json()["message"].is_string());
            }
        }
        // Asked for another deployment: a wrong port, so nothing is done.
        let token = format!("Bearer {}", pilot.setting("ADMIN_TOKEN"));
        let headers = [("authorization", token.as_str()), ("x-pilot-project", "another")];
        let closing = Some(r#"{"enabled":true,"reason":"x"}"#);
        assert_eq!(http("POST", pilot.port("gateway"), "/admin/kill-switch", &headers, closing).status, 421);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
        // The engine's and the jobs' own admin routes ask for the token too.
        for service in ["engine", "jobs"] {
            assert_eq!(http("GET", pilot.port(service), "/admin/config", &[], None).status, 401, "{service}");
        }
        assert_eq!(http("POST", pilot.port("engine"), "/scenarios", &[], Some("{}")).status, 401);
        // What a job was told holds when asked again.
        let _before: Vec<Live> =
            (0..40).map(|_| Live::open(&pilot, "/jobs/stream?scenarioId=demo")).collect();
        let mut job = Live::open(&pilot, "/jobs/stream?scenarioId=demo");
        let said = job.until("data: ");
        let data: Value = serde_json::from_str(said.rsplit("data: ").next().unwrap()).unwrap();
        let cancel =
            || pilot.public("POST", "/jobs/cancel", Some(&json!({"jobId": data["jobId"]}).to_string()));
        let (first, second) = (cancel(), cancel());
        assert_eq!((first.status, first.json()["status"].clone()), (202, json!("cancelling")));
        assert_eq!((second.status, second.json()["status"].clone()), (409, json!("already_cancelled")));
        job.until("event: job-failed");
        assert_eq!(cancel().json()["status"], "already_cancelled");
    });
}

#[test]
fn bodies_are_never_logged() {
    on(&[Process], "c-log", |pilot| {
        let pilot = pilot.up();
        pilot.edit_env("LOG_LEVEL", "trace");
        pilot.xtask(&["up"]).expect(0);
        let option = |id: &str| json!({"id": id, "name": "hush-hush"});
        let scenario =
            json!({"scenarioId": "hush-hush", "title": "hush-hush", "options": [option("a"), option("b")]});
        for (path, body) in [
            ("/cancel", r#"{"sessionId":"hush-hush"}"#),
            ("/cancel", "hush-hush"),
            ("/jobs/cancel", r#"{"jobId":"hush-hush"}"#),
            ("/admin/seed", scenario.to_string().as_str()),
            ("/admin/seed", r#"{"hush-hush":1}"#),
            ("/admin/kill-switch", r#"{"enabled":true,"reason":"hush-hush"}"#),
            ("/admin/kill-switch", r#"{"enabled":false,"hush-hush":1}"#),
        ] {
            pilot.request("POST", "gateway", path, Some(body));
        }
        for service in ["gateway", "engine", "jobs"] {
            let path = pilot.state().join("process/services").join(service).join("log");
            let log = std::fs::read_to_string(path).unwrap();
            assert!(log.contains("\"request\"") || log.contains("listening"), "{service}: {log}");
            assert!(!log.contains("hush-hush"), "{service}: {log}");
            assert!(!log.contains(&pilot.setting("ADMIN_TOKEN")), "{service}: {log}");
        }
    });
}

#[test]
fn settings_of_the_gateway_hold_and_sigterm_ends_it_at_once() {
    on(&[Process], "c-settings", |pilot| {
        let pilot = pilot.up();
        let closed = Lone::gateway(&pilot, &[("GLOBAL_KILL_SWITCH", "true")]);
        let health = http("GET", closed.port, "/healthz", &[], None);
        assert_eq!((health.status, health.json()["status"].clone()), (200, json!("disabled")));
        let refused = http("GET", closed.port, "/stream?route=plan", &[], None);
        assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
        assert!(refused.body.contains("GLOBAL_KILL_SWITCH"), "{}", refused.body);
        // No token is set, so nobody has it.
        let empty = http("GET", closed.port, "/admin/sessions", &[("authorization", "Bearer ")], None);
        assert_eq!(empty.status, 401);

        let engine = format!("http://127.0.0.1:{}", pilot.port("engine"));
        let settings =
            [("ADMIN_AUTH", "off"), ("SCENARIO_ENGINE_URL", engine.as_str()), ("CORS_ORIGINS", "*")];
        let mut bare = Lone::gateway(&pilot, &settings);
        assert_eq!(http("GET", bare.port, "/admin/sessions", &[], None).status, 200);
        for enabled in [true, false] {
            let body = json!({"enabled": enabled, "reason": "bare"}).to_string();
            assert_eq!(http("POST", bare.port, "/admin/kill-switch", &[], Some(&body)).status, 200);
            let status = http("GET", bare.port, "/healthz", &[], None).json()["status"].clone();
            assert_eq!(status, if enabled { "disabled" } else { "healthy" });
        }
        for origin in [vec![], vec![("origin", "http://anybody.example")]] {
            let answer = http("GET", bare.port, "/healthz", &origin, None);
            assert_eq!(answer.header("access-control-allow-origin"), "*");
        }

        // However many streams run.
        let mut live = Live::ask(bare.port, "/stream?route=plan&budget=4000", "");
        live.until("event: token");
        let told = Instant::now();
        let pid = bare.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(bare.child.wait().unwrap().success());
        assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());

        // A value that makes no sense ends the service with its name.
        for (name, value) in [
            ("ADMIN_AUTH", "maybe"),
            ("GLOBAL_KILL_SWITCH", "yes"),
            ("MAX_CONCURRENT_JOBS", "many"),
            ("LOG_LEVEL", "loud"),
            ("DEMO_SCENARIO_ID", "../x"),
            ("CORS_ORIGINS", "\u{1}"),
        ] {
            let (mut command, _) = Lone::command(&pilot, &[(name, value)]);
            let ended = command.output().unwrap();
            assert!(!ended.status.success(), "{name}={value}");
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert!(said.contains(name) && !said.contains("panic"), "{said}");
        }
    });
}

#[test]
fn hostile_heads_are_never_a_500() {
    on(&[Process], "c-hostile", |pilot| {
        let pilot = pilot.up();
        let token = format!("authorization: Bearer {}", pilot.setting("ADMIN_TOKEN"));
        let heads = [
            "GET /stream?route=plan&seed=99999999999999999999999 HTTP/1.1\r\nhost: x",
            "GET /stream?route=plan&budget=1&sessionId=%ff%fe HTTP/1.1\r\nhost: x",
            "GET /stream?route=plan&route=plan HTTP/1.1\r\nhost: x",
            "GET /stream?route=plan HTTP/1.1\r\nhost: x\r\nlast-event-id: \u{ff}",
            "GET /stream?route=plan&budget=1 HTTP/1.1\r\nhost: x\r\nlast-event-id: msg_4294967295",
            "GET /stream?route=plan HTTP/1.1\r\nhost: x\r\nlast-event-id: msg_99999999999",
            "GET /generate?route=plan&seed=1&budget=4294967295 HTTP/1.1\r\nhost: x",
            "GET /generate?route=plan&seed=1&budget=1&from=4294967295 HTTP/1.1\r\nhost: x",
            "GET /report?scenarioId=demo&seed=-1 HTTP/1.1\r\nhost: x",
            "GET /report?scenarioId=demo&seed=18446744073709551615 HTTP/1.1\r\nhost: x",
            "GET /jobs/stream?scenarioId=a&jobId=b HTTP/1.1\r\nhost: x",
            "GET http://elsewhere.example/report?scenarioId=demo HTTP/1.1\r\nhost: x",
            "GET //healthz?%00 HTTP/1.1\r\nhost: x",
            "OPTIONS * HTTP/1.1\r\nhost: x",
            "POST /cancel HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
            "POST /cancel HTTP/1.1\r\nhost: x\r\ncontent-length: -1",
            "BREW /report HTTP/1.1\r\nhost: x",
            "GET /report HTTP/9.9",
            "\u{0}\u{1}\u{2}",
        ];
        let ask = |port: u16, head: &str, more: &str| {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
            let more = if more.is_empty() { String::new() } else { format!("\r\n{more}") };
            // Closed while we still write: an answer too.
            drop(socket.write_all(format!("{head}{more}\r\nconnection: close\r\n\r\n").as_bytes()));
            let mut answer = Vec::new();
            // Closed in the middle of what makes no sense: an end too.
            drop(socket.read_to_end(&mut answer));
            String::from_utf8_lossy(&answer).into_owned()
        };
        for service in ["gateway", "engine", "jobs"] {
            let port = pilot.port(service);
            // Side by side: some wait until the service has had enough of waiting.
            std::thread::scope(|scope| {
                for head in heads {
                    for more in ["", token.as_str()] {
                        let ask = &ask;
                        scope.spawn(move || {
                            let answer = ask(port, head, more);
                            assert!(!answer.starts_with("HTTP/1.1 5"), "{service} {head}: {answer}");
                        });
                    }
                }
            });
            let health = http("GET", pilot.port(service), "/healthz", &[], None);
            assert_eq!(health.status, 200, "{service}: {}", health.body);
            let path = pilot.state().join("process/services").join(service).join("log");
            let log = std::fs::read_to_string(path).unwrap();
            assert_eq!(log.matches("listening").count(), 1, "{service} was started again: {log}");
        }
    });
}
