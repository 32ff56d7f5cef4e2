//! What the pilot answers: `contract.md`, asked of real services.

use crate::http::http;
use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, on};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A stream that is read line by line while other requests go on.
pub struct Live(BufReader<TcpStream>);

impl Live {
    pub fn open(pilot: &Pilot, path: &str) -> Self {
        Self::ask(pilot.port("gateway"), path, "")
    }

    /// The same with header lines, each ended by `\r\n`.
    pub fn ask(port: u16, path: &str, headers: &str) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").unwrap();
        Self(BufReader::new(socket))
    }

    /// Reads to the end of the answer.
    pub fn until_end(&mut self) {
        let mut line = String::new();
        while line != "0\r\n" {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "cut off");
        }
    }

    pub fn until(&mut self, word: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "no {word} in {all}");
            all += &line;
            if line.contains(word) {
                return all;
            }
        }
    }
}

#[test]
fn streams_resume_and_are_the_same_for_the_same_seed() {
    on(&[Process], "c-stream", |pilot| {
        let pilot = pilot.up();
        let get = |path: &str, last: Option<&str>| {
            let headers: Vec<(&str, &str)> = last.map(|id| ("last-event-id", id)).into_iter().collect();
            http("GET", pilot.port("gateway"), path, &headers, None)
        };
        let whole = get("/stream?route=critique&seed=42&sessionId=one&budget=14", None);
        assert_eq!(whole.header("content-type"), "text/event-stream");
        assert_eq!(whole.header("cache-control"), "no-store, no-cache, must-revalidate");
        let names: Vec<String> = whole.events().into_iter().map(|e| e.0).collect();
        assert_eq!(names.first().map(String::as_str), Some("start"));
        assert_eq!(names.iter().filter(|n| *n == "token").count(), 14);
        assert_eq!(names.iter().filter(|n| *n == "progress").count(), 2);
        assert_eq!(
            whole.events().last().unwrap().1,
            json!({"sessionId": "one", "totalTokens": 14, "seed": 42})
        );
        assert_eq!(get("/stream?route=critique&seed=42&sessionId=one&budget=14", None).body, whole.body);
        // Resumed after every single event: exactly the rest.
        let blocks: Vec<&str> = whole.body.split_inclusive("\n\n").collect();
        for have in 1..blocks.len() {
            let id = format!("msg_{have:03}");
            let rest = get("/stream?route=critique&seed=42&sessionId=one&budget=14", Some(&id));
            assert_eq!(rest.body, blocks[have..].concat(), "after {id}");
        }
    });
}

#[test]
fn cancel_and_the_gate_end_running_streams() {
    on(&[Process], "c-cancel", |pilot| {
        let pilot = pilot.up();
        let cancel = |id: &str| pilot.public("POST", "/cancel", Some(&json!({"sessionId": id}).to_string()));
        let mut live = Live::open(&pilot, "/stream?route=plan&seed=1&budget=4000&sessionId=a");
        live.until("event: token");
        assert_eq!(pilot.public("GET", "/stream?route=plan&sessionId=a", None).status, 409);
        let first = cancel("a");
        assert_eq!((first.status, first.json()["status"].clone()), (202, json!("cancelling")));
        live.until("event: cancelled");
        let second = cancel("a");
        assert_eq!((second.status, second.json()["status"].clone()), (409, json!("already_cancelled")));
        assert_eq!(cancel("nobody").status, 404);

        let mut stream = Live::open(&pilot, "/stream?route=plan&seed=1&budget=4000");
        stream.until("event: token");
        pilot.xtask(&["kill-switch", "on", "--reason", "a test"]).expect(0);
        let end = stream.until("data: {\"reason\"");
        assert!(end.contains("event: cancelled") && end.contains("a test"), "{end}");
        for path in [
            "/stream?route=plan",
            "/report?scenarioId=demo-scenario",
            "/jobs/stream?scenarioId=demo-scenario",
        ] {
            let refused = pilot.public("GET", path, None);
            assert_eq!((refused.status, refused.header("retry-after")), (503, "5"), "{path}");
            assert!(refused.body.contains("a test"), "{}", refused.body);
        }
        let health = pilot.public("GET", "/healthz", None);
        assert_eq!((health.status, health.json()["status"].clone()), (200, json!("disabled")));
        assert_eq!(health.json()["reason"], "Kill switch active");
        assert_eq!(pilot.public("GET", "/metrics", None).status, 200);
        // With the token the gate lets through.
        assert_eq!(pilot.request("GET", "gateway", "/report?scenarioId=demo-scenario", None).status, 200);
        // A gateway that is replaced comes up as it was.
        let status = pilot.xtask(&["kill-switch", "status"]).expect(0).out;
        assert!(status.contains("closed: a test"), "{status}");
        pilot.xtask(&["kill-switch", "off"]).expect(0);
        assert_eq!(pilot.public("GET", "/healthz", None).json()["status"], "healthy");
    });
}

#[test]
fn jobs_report_and_admin_routes() {
    on(&[Process], "c-rest", |pilot| {
        let pilot = pilot.up();
        let jobs = pilot.public("GET", "/jobs/stream?scenarioId=demo-scenario", None).events();
        let names: Vec<&str> = jobs.iter().map(|e| e.0.as_str()).collect();
        assert_eq!(names[..2], ["job-queued", "job-started"]);
        assert_eq!(names.last(), Some(&"job-completed"));
        let id = jobs[0].1["jobId"].as_str().unwrap();
        let cancel = |id: &str| pilot.public("POST", "/jobs/cancel", Some(&json!({"jobId": id}).to_string()));
        assert_eq!(cancel(id).json()["status"], "already_finished");
        assert_eq!(cancel("nobody").status, 404);
        let mut live = Live::open(&pilot, "/jobs/stream?scenarioId=demo-scenario");
        let data = live.until("data: ");
        let data: Value =
            serde_json::from_str(data.lines().last().unwrap().strip_prefix("data: ").unwrap()).unwrap();
        let first = cancel(data["jobId"].as_str().unwrap());
        assert_eq!((first.status, first.json()["status"].clone()), (202, json!("cancelling")));
        live.until("event: job-failed");

        let report = pilot.public("GET", "/report?scenarioId=demo-scenario&seed=7", None);
        assert_eq!(report.json()["decision"]["options"].as_array().unwrap().len(), 3);
        assert_eq!(report.json()["meta"]["seed"], 7);
        let again = pilot.public("GET", "/report?scenarioId=demo-scenario&seed=7", None);
        assert_eq!(report.body, again.body);
        assert_eq!(pilot.public("HEAD", "/report?scenarioId=demo-scenario&seed=7", None).status, 200);
        assert_eq!(pilot.public("GET", "/report?scenarioId=none", None).status, 404);

        for path in ["/admin/kill-switch", "/admin/sessions", "/admin/metrics", "/admin/config"] {
            assert_eq!(pilot.public("GET", path, None).status, 401, "{path}");
            assert_eq!(pilot.request("GET", "gateway", path, None).status, 200, "{path}");
        }
        let refused = pilot.request("POST", "gateway", "/admin/seed", Some(r#"{"scenarioId":"x"}"#));
        assert_eq!(refused.status, 400);
        assert!(refused.json()["message"].as_str().unwrap().contains("title"), "{}", refused.body);
        assert_eq!(pilot.public("POST", "/admin/kill-switch", Some(r#"{"enabled":true}"#)).status, 401);
        let effective = pilot.request("GET", "engine", "/admin/config", None).body;
        assert!(!effective.contains(&pilot.setting("ADMIN_TOKEN")));
    });
}

#[test]
fn bad_requests_are_refused_with_a_code_and_a_sentence() {
    on(&[Process], "c-bad", |pilot| {
        let pilot = pilot.up();
        for path in [
            "/stream",
            "/stream?route=nonsense",
            "/stream?route=plan&seed=-1",
            "/stream?route=plan&seed=x",
            "/stream?route=plan&budget=0",
            "/stream?route=plan&budget=999999",
            "/stream?route=plan&sessionId=a%2Fb",
            "/report",
            "/report?scenarioId=..%2F..",
            "/jobs/stream",
            "/jobs/stream?scenarioId=%00",
        ] {
            let answer = pilot.public("GET", path, None);
            assert_eq!(answer.status, 400, "{path}: {}", answer.body);
            assert!(
                answer.json()["error"].is_string() && answer.json()["message"].is_string(),
                "{}",
                answer.body
            );
        }
        let deep = "[".repeat(5000);
        for body in ["", "{", "[]", "{\"sessionId\":3}", "{\"other\":\"x\"}", "\u{0}", deep.as_str()] {
            assert_eq!(pilot.public("POST", "/cancel", Some(body)).status, 400, "{body}");
            assert_eq!(pilot.public("POST", "/jobs/cancel", Some(body)).status, 400, "{body}");
        }
        let port = pilot.port("gateway");
        let bad_id = http("GET", port, "/stream?route=plan", &[("last-event-id", "seven")], None);
        assert_eq!(bad_id.status, 400);
        let none = pilot.public("GET", "/nothing", None);
        assert_eq!((none.status, none.json()["error"].clone()), (404, json!("no_route")));
        assert_eq!(pilot.public("POST", "/healthz", None).status, 405);
        // And none of it was logged but by route and status.
        let log = std::fs::read_to_string(pilot.state().join("process/services/gateway/log")).unwrap();
        assert!(log.contains("\"route\":\"/cancel\"") && !log.contains("sessionId"), "{log}");
        assert!(!log.to_lowercase().contains("panic"), "{log}");
    });
}

#[test]
fn headers_cors_and_metrics() {
    on(&[Process], "c-head", |pilot| {
        let pilot = pilot.up();
        let health = pilot.public("GET", "/healthz", None);
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(health.header(name), value);
        }
        let port = pilot.port("gateway");
        let from = |origin: &str| {
            let headers = [
                ("origin", origin),
                ("access-control-request-method", "GET"),
                ("access-control-request-headers", "last-event-id"),
            ];
            http("OPTIONS", port, "/stream", &headers, None)
        };
        let ours = from("http://localhost:5173");
        assert_eq!(ours.header("access-control-allow-origin"), "http://localhost:5173");
        assert!(ours.header("access-control-allow-headers").contains("last-event-id"));
        assert_eq!(from("http://evil.example").header("access-control-allow-origin"), "");
        pilot.public("GET", "/stream?route=plan&budget=2", None);
        for service in ["gateway", "engine", "jobs"] {
            let page = pilot.request("GET", service, "/metrics", None);
            assert!(page.body.contains("# TYPE scenario_requests_total counter"), "{service}");
            assert!(page.body.contains("# TYPE scenario_time_to_first_token_seconds histogram"), "{service}");
        }
        let page = pilot.public("GET", "/metrics", None).body;
        assert!(page.contains("scenario_requests_total{route=\"/stream\",status=\"200\"}"), "{page}");
    });
}

#[test]
fn a_stream_whose_client_went_away_is_resumed_or_cancelled() {
    on(&[Process], "c-away", |pilot| {
        let pilot = pilot.up();
        let port = pilot.port("gateway");
        let path = "/stream?route=plan&seed=1&budget=4000&sessionId=away";
        let cancel = || pilot.public("POST", "/cancel", Some(r#"{"sessionId":"away"}"#));
        let leave = |mut live: Live| {
            live.until("event: token");
            drop(live);
            wait_for("the gateway to notice", || {
                pilot.request("GET", "gateway", "/admin/sessions", None).json()["active"] == 0
            });
        };
        leave(Live::open(&pilot, path));
        let mut resumed = Live::ask(port, path, "last-event-id: msg_002\r\n");
        let said = resumed.until("event: token");
        assert!(said.contains("id: msg_003") && !said.contains("id: msg_002"), "{said}");
        leave(resumed);
        let first = cancel();
        assert_eq!((first.status, first.json()["status"].clone()), (202, json!("cancelling")));
        let second = cancel();
        assert_eq!((second.status, second.json()["status"].clone()), (409, json!("already_cancelled")));
        // Cancelled is over, whether its client was there or not.
        let resume = |id: &str| {
            let path = format!("/stream?route=plan&seed=1&budget=4000&sessionId={id}");
            http("GET", port, &path, &[("last-event-id", "msg_003")], None)
        };
        let refused = resume("away");
        assert_eq!((refused.status, refused.json()["error"].clone()), (409, json!("session_cancelled")));
        let mut live = Live::open(&pilot, "/stream?route=plan&seed=1&budget=4000&sessionId=here");
        live.until("event: token");
        assert_eq!(pilot.public("POST", "/cancel", Some(r#"{"sessionId":"here"}"#)).status, 202);
        live.until("event: cancelled");
        assert_eq!(resume("here").status, 409);
    });
}

fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn demo_names_the_demo_scenario_whatever_its_id() {
    on(&[Process], "c-demo", |pilot| {
        let pilot = pilot.up();
        let demo = pilot.public("GET", "/report?scenarioId=demo&seed=7", None);
        assert_eq!(demo.json()["meta"]["scenarioId"], "demo-scenario");
        assert_eq!(demo.body, pilot.public("GET", "/report?scenarioId=demo-scenario&seed=7", None).body);
        let jobs = pilot.public("GET", "/jobs/stream?scenarioId=demo", None).events();
        assert_eq!(jobs[0].1["scenarioId"], "demo-scenario");
        assert_eq!(jobs.last().unwrap().0, "job-completed");
        // Another one of that name could never be asked for.
        let option = |id: &str| json!({"id": id, "name": id});
        let taken = json!({"scenarioId": "demo", "title": "t", "options": [option("a"), option("b")]});
        let refused = pilot.request("POST", "gateway", "/admin/seed", Some(&taken.to_string()));
        assert_eq!(refused.status, 400, "{}", refused.body);
        // The setting decides.
        pilot.store_scenario();
        pilot.edit_env("DEMO_SCENARIO_ID", "kept");
        pilot.xtask(&["up", "--stay"]);
        assert_eq!(
            pilot.public("GET", "/report?scenarioId=demo&seed=7", None).json()["meta"]["scenarioId"],
            "kept"
        );
    });
}

#[test]
fn get_and_head_name_an_origin_to_clients_that_name_none() {
    on(&[Process], "c-origin", |pilot| {
        let pilot = pilot.up();
        let port = pilot.port("gateway");
        let allowed = |method: &str, path: &str, origin: Option<&str>| {
            let headers: Vec<(&str, &str)> = origin.map(|o| ("origin", o)).into_iter().collect();
            let answer = http(method, port, path, &headers, None);
            let all: Vec<String> = answer
                .headers
                .get_all("access-control-allow-origin")
                .iter()
                .map(|v| v.to_str().unwrap().to_owned())
                .collect();
            all.join(" ")
        };
        for path in ["/healthz", "/report?scenarioId=demo-scenario", "/nothing", "/stream"] {
            for method in ["GET", "HEAD"] {
                assert_eq!(allowed(method, path, None), "http://localhost:5173", "{method} {path}");
                let second = "http://127.0.0.1:5173";
                assert_eq!(allowed(method, path, Some(second)), second, "{method} {path}");
                assert_eq!(allowed(method, path, Some("http://evil.example")), "", "{method} {path}");
            }
        }
        assert_eq!(allowed("POST", "/cancel", None), "");
    });
}

#[test]
fn events_and_reports_have_their_fields() {
    on(&[Process], "c-fields", |pilot| {
        let pilot = pilot.up();
        let has = |value: &Value, fields: &[&str]| {
            for field in fields {
                assert!(value.pointer(field).is_some_and(|v| !v.is_null()), "no {field} in {value}");
            }
        };
        let numbered = |body: &str| {
            let ids: Vec<&str> = body.lines().filter_map(|l| l.strip_prefix("id: ")).collect();
            let wanted: Vec<String> = (1..=ids.len()).map(|n| format!("msg_{n:03}")).collect();
            assert_eq!(ids, wanted);
        };
        let run = pilot.public("GET", "/stream?route=critique&seed=42", None);
        numbered(&run.body);
        for (name, data) in run.events() {
            match name.as_str() {
                "start" => has(&data, &["/sessionId", "/seed", "/timestamp"]),
                "token" => has(&data, &["/text", "/tokenIndex", "/timestamp", "/model"]),
                "progress" => has(&data, &["/percent", "/message"]),
                "done" => has(&data, &["/sessionId", "/totalTokens", "/seed"]),
                other => panic!("unknown event {other}"),
            }
        }
        let job = pilot.public("GET", "/jobs/stream?scenarioId=demo", None);
        numbered(&job.body);
        let names: Vec<String> = job.events().into_iter().map(|e| e.0).collect();
        assert!(names.iter().any(|n| n == "job-progress"), "{names:?}");
        job.events().iter().for_each(|(_, data)| has(data, &["/jobId", "/timestamp"]));

        let path = "/report?scenarioId=demo&seed=7";
        let report = pilot.public("GET", path, None);
        has(&report.json(), &["/decision/title", "/recommendation/primary", "/analysis/confidence"]);
        has(&report.json(), &["/meta/scenarioId", "/meta/seed", "/meta/timestamp"]);
        for n in 0..3 {
            for field in ["id", "name", "score", "description"] {
                has(&report.json(), &[&format!("/decision/options/{n}/{field}")]);
            }
        }
        let head = pilot.public("HEAD", path, None);
        for name in ["content-type", "content-length", "cache-control", "x-content-type-options"] {
            assert_eq!(head.header(name), report.header(name), "{name}");
            assert!(!head.header(name).is_empty(), "{name}");
        }
        assert_eq!((head.body.as_str(), report.header("cache-control")), ("", "no-store"));
        let health = pilot.public("GET", "/healthz", None).json();
        has(&health, &["/version", "/timestamp"]);
        assert_eq!(health["status"], "healthy");
    });
}

#[test]
fn head_of_a_stream_starts_nothing() {
    on(&[Process], "c-headless", |pilot| {
        let pilot = pilot.up();
        for path in ["/stream?route=plan&sessionId=headless", "/jobs/stream?scenarioId=demo"] {
            let head = pilot.public("HEAD", path, None);
            assert_eq!((head.status, head.header("content-type")), (200, "text/event-stream"), "{path}");
        }
        assert_eq!(pilot.public("POST", "/cancel", Some(r#"{"sessionId":"headless"}"#)).status, 404);
        let count = || pilot.public("GET", "/jobs", None).json()["jobs"].as_array().unwrap().len();
        let before = count();
        pilot.public("HEAD", "/jobs/stream?scenarioId=demo", None);
        assert_eq!(count(), before);
    });
}
