//! Tests of the manifest: those of before are still read, and every mistake is told at once.

use super::*;
use crate::stack::check::{Kind, Metric};
use crate::stack::gate_rule::{self, GateRule};
use std::time::Duration;

/// As it was at 21325fb.
const VERSION_1: &str = include_str!("../captured/manifest_1.toml");
/// As it was before checks were data.
const VERSION_2: &str = include_str!("../captured/manifest_2_before_checks.toml");
const BUILT_IN: &str = include_str!("../../../../pilot-deploy/pilot.toml");

#[test]
fn manifests_of_before_are_read_and_check_all_that_is_checked_today() {
    let new = Manifest::built_in().unwrap();
    for old in [VERSION_1, VERSION_2] {
        let old = Manifest::parse("pilot.toml", old).unwrap();
        // A request names its service today; the gate and the evidence had a key of their own for it.
        // What a Swarm needs to open a gate on its other nodes had no key.
        let of_then = |text: String| {
            text.replace("Some(\"gateway\")", "None").replace("Some([\"gate\", \"open\"])", "None")
        };
        let shown = |manifest: &Manifest| of_then(format!("{:?} {:?}", manifest.gate, manifest.evidence));
        assert_eq!(shown(&old), shown(&new));
        let asked = |manifest: &Manifest| {
            let seed = manifest.seed.clone().unwrap();
            (manifest.gate.service().map(str::to_owned), seed.request.path, manifest.projects.refused.clone())
        };
        assert_eq!(asked(&old), asked(&new));
        assert_eq!((&old.checks, &old.criteria), (&new.checks, &new.criteria));
        let rest = |m: &Manifest| format!("{:?} {:?} {:?} {:?}", m.auth, m.health, m.memory, m.sessions);
        assert_eq!(rest(&old), rest(&new));
        assert_eq!(format!("{:?} {:?}", old.flags, old.load), format!("{:?} {:?}", new.flags, new.load));
    }
}

#[test]
fn a_manifest_of_today_gets_nothing_from_before() {
    let without = BUILT_IN
        .replace("[memory]\nrequest = \"GET /metrics\"\nmetric = \"scenario_resident_memory_bytes\"\n", "");
    assert!(without != BUILT_IN);
    assert!(Manifest::parse("pilot.toml", &without).unwrap().memory.is_none());
}

/// The mistakes of the pilot's manifest with these changes, one a line.
fn mistakes(changes: &[(&str, &str)]) -> Vec<String> {
    let changed = changes.iter().fold(BUILT_IN.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "there is no {from}");
        text.replacen(from, to, 1)
    });
    let error = Manifest::parse("pilot.toml", &changed).unwrap_err().to_string();
    error.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn all_mistakes_are_told_at_once_each_with_its_place_and_what_would_be_right() {
    let told = mistakes(&[
        ("probe = \"1s\"", "probe = \"1 sheep\""),
        ("[health]\nrequest", "[health]\nreqest"),
        ("version = 2", "version = 3"),
        ("request = \"POST gateway/admin/seed\"", "request = \"SEND gateway/admin/seed\""),
        ("keep_backups = 5 ", "keep_backups = \"five\" "),
    ]);
    assert_eq!(told[0], "pilot.toml has 6 mistakes");
    let line = |what: &str| BUILT_IN.lines().position(|line| line.starts_with(what)).unwrap() + 1;
    let expected = [
        (line("version"), "version: its version is 3, but this xtask only knows 1 and 2"),
        (line("request = \"POST gateway/admin/seed"), "the method must be GET, HEAD or POST"),
        (line("[health]"), "health: `request` is missing"),
        (line("[health]") + 1, "health: unknown key `reqest`; did you mean `request`?"),
        (line("probe"), "right would be \"500ms\", \"5s\" or \"2m\""),
        (line("keep_backups"), "limits.keep_backups: it is a text; it must be a whole number"),
    ];
    assert_eq!(told.len(), 1 + expected.len(), "{told:#?}");
    for ((line, what), told) in expected.into_iter().zip(&told[1..]) {
        assert!(told.starts_with(&format!("pilot.toml:{line}:")) && told.contains(what), "{told}: {what}");
    }
}

/// One check, told in place of those of the pilot's.
fn of_check(check: &str) -> String {
    let text = format!("[[check]]\nname = \"mine\"\n{check}\n[flags]\n");
    let told = mistakes(&[("[flags]\n", &text)]);
    assert!(told.iter().all(|line| line.starts_with("pilot.toml")), "{told:#?}");
    told.join("\n")
}

#[test]
fn a_check_that_makes_no_sense_is_refused() {
    for (check, why) in [
        ("", "a check has exactly one of request, tcp, exec, script, healthy; it has none"),
        ("request = \"GET gateway/\"\ntcp = \"gateway:1\"", "it has request and tcp"),
        ("request = \"GET door/\"", "there is no service door; there are: gateway, engine, jobs"),
        ("request = \"GET gateway/?a=${A-B}\"", "\"A-B\" is not the name of a variable"),
        ("request = \"GET gateway/\"\njson = {}", "a GET has no body"),
        ("request = \"POST gateway/\"", "a POST must have a body"),
        ("request = \"HEAD gateway/\"\nhas = [\"/a\"]", "the answer to HEAD has no body"),
        ("request = \"GET gateway/\"\nsse = \"a\"\nstatus = 201", "an expected event does not go with"),
        ("request = \"GET gateway/\"\nsse = \"a\"\nends_with = \"b\"", "keep one of them"),
        ("request = \"GET gateway/\"\npointer = { status = 1 }", "right would be \"/status\""),
        ("request = \"GET gateway/\"\nstatus = 20", "from 100 to 599"),
        ("request = \"GET gateway/\"\nwithin = \"fast\"", "right would be \"500ms\""),
        ("request = \"GET gateway/\"\ntimes = 0", "from 1 to 100"),
        ("request = \"GET gateway/\"\nsevice = \"x\"", "unknown key `sevice`; did you mean `service`?"),
        ("request = \"GET gateway/\"\nservice = \"gateway\"", "it goes with `exec`"),
        ("request = \"GET gateway/\"\nresume_after = \"1\"", "`resume_after` needs `ends_with`"),
        ("request = \"GET gateway/\"\nevents = [\"a\"]", "`events` goes with"),
        ("request = \"GET gateway/\"\nmetric = { speed = \"a\" }", "one of latency, seconds, passed"),
        ("tcp = \"gateway\"", "write it as \"service:port\""),
        ("exec = \"true\"", "`service` is missing"),
        ("exec = []\nservice = \"jobs\"", "it must be a command"),
        ("script = \"/bin/sh\"", "is not a path in the folder"),
        ("healthy = \"door\"", "there is no service door"),
        ("request = \"GET gateway/\"\ndeadline = 5", "it is a number; it must be a text"),
    ] {
        let told = of_check(check);
        assert!(told.contains(why), "{check}: {told}");
    }
}

#[test]
fn names_that_clash_and_keys_that_contradict_are_refused() {
    let second =
        "name = \"report complete\"\nrequest = \"GET gateway/report?scenarioId=${DEMO_SCENARIO_ID}&seed";
    for (change, why) in [
        ((second, &*second.replace("report complete", "jobs run to their end")), "two checks have this name"),
        (("name = \"report complete\"", "name = \"all services healthy\""), "is always made; choose another"),
        (
            ("checks = [\"all services healthy\"]", "checks = [\"all well\"]"),
            "there is no check of this name",
        ),
        (("file = \"sessions.json\"", "file = \"../sessions.json\""), "is not the name of a file"),
        (("file = \"sessions.json\"", "file = \"Plan.json\""), "another file of the evidence has this name"),
        (("file = \"metrics.txt\"", "file = \"log\""), "another file of the evidence has this name"),
        (
            ("file = \"sessions.json\"", "file = \"metrics.json\""),
            "another file of the evidence has this name",
        ),
        (("off = [\"ENABLE_RATE", "off = [\"USE_MOCK_DATA\", \"ENABLE_RATE"), "is in `off` and in `on`"),
        (("[gate]\n", "[gate]\nservice = \"jobs\"\n"), "it has several services: gateway, jobs"),
        (("reason = \"${REASON}\"", "reason = \"${TTFF_TARGET_MS}\""), "known are: ${REASON}, ${PROJECT}"),
        (("version = \"/version\"\n", ""), "`same_version` needs `version`"),
    ] {
        let told = mistakes(&[change]).join("\n");
        assert!(told.contains(why) && told.starts_with("pilot.toml"), "{change:?}: {told}");
    }
}

#[test]
fn a_registry_is_a_host_with_a_path_or_without() {
    let read =
        |name: &str| Manifest::parse("p.toml", &format!("version = 2\n[images]\nregistry = \"{name}\""));
    for name in
        ["localhost", "localhost/a", "registry.example.com:5000/pilot/a_b", "10.0.0.1:5000", "[::1]:5000"]
    {
        assert_eq!(read(name).unwrap().registry.as_deref(), Some(name));
    }
    for name in
        ["pilot", "pilot/a", "https://a.b", "a.b/", "a.b//c", "a.b/c:1", "a.b/C", "A.b", "a.b/c@sha256"]
    {
        assert!(read(name).unwrap_err().to_string().contains("a host, with a path"), "{name}");
    }
}

#[test]
fn the_pilot_has_every_check_of_the_runbook() {
    let manifest = Manifest::built_in().unwrap();
    let names: Vec<&str> = manifest.checks.iter().map(|check| check.name.as_str()).collect();
    for name in [
        "stream starts and gives tokens",
        "first token in time",
        "cancel answers 202, then 409",
        "cancelled in time",
        "same seed, same bytes",
        "resume gives exactly the rest",
        "report complete",
        "jobs run to their end",
        "security headers",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    let first = manifest.checks.iter().find(|check| check.name == "first token in time").unwrap();
    assert_eq!((first.times, first.within.as_deref()), (5, Some("${TTFF_TARGET_MS}ms")));
    assert_eq!(first.metric, Some(Metric::Latency("timeToFirstToken".into())));
    assert!(matches!(&first.kind, Kind::Http(exchange) if exchange.call.sse.as_deref() == Some("token")));
    let known = |name: &str| name == "DEMO_SEED" || name == "DEMO_SCENARIO_ID" || name.ends_with("_S");
    let error = manifest.check_needs(known, None).unwrap_err().to_string();
    assert_eq!(error.matches("is missing in the env file (pilot.toml:").count(), 2, "{error}");
    assert!(error.contains("TTFF_TARGET_MS is missing") && error.contains("CANCEL_TARGET_MS"), "{error}");
}

#[test]
fn a_broken_file_is_told_with_its_place() {
    let told = |text: &str| Manifest::parse("p.toml", text).unwrap_err().to_string();
    let broken = told("version = 2\nenv_file = \n[limits\n");
    assert!(broken.contains("p.toml:2:") && broken.contains("p.toml:3:"), "{broken}");
    assert!(told("").contains("`version` is missing"), "{}", told(""));
    // The column counts characters.
    assert!(
        told("version = 2\nä = \"ü\" x\n").contains("p.toml:2:9:"),
        "{}",
        told("version = 2\nä = \"ü\" x\n")
    );
}

/// What every manifest must have, for examples that show a part.
const NEEDED: &str = r#"
version = 2
env_file = ".env"
env_example = ".env.example"
compose_file = "docker-compose.yml"
seed_file = "seed.json"
build = { package = "a" }
seed = { request = "POST api/seed" }
[gate]
close = { request = "POST api/gate", json = {} }
open = { request = "POST api/gate", json = {} }
refused = { request = "GET api/", status = 503 }
served = { request = "GET api/" }
position = { request = "GET api/gate", closed = { "/on" = true }, open = { "/on" = false }, reason = "/reason" }
offline = { run = ["gate"], prints = "closed" }
"#;

const PAGE: &str = include_str!("../../../../docs/manifest.md");

#[test]
fn every_example_of_the_page_about_the_manifest_is_read() {
    let blocks: Vec<&str> =
        PAGE.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() > 10, "only {} examples", blocks.len());
    for block in blocks {
        let read = reading::read("example", block, &|_| vec![NEEDED], sections::manifest);
        assert!(read.is_ok(), "{block}\n{}", read.err().map(|e| e.to_string()).unwrap_or_default());
    }
}

#[test]
fn every_key_is_on_the_page_about_the_manifest() {
    let code =
        [include_str!("sections.rs"), include_str!("requests.rs"), include_str!("outward.rs")].concat();
    let mut count = 0;
    for word in [".need(\"", ".get(\"", ".or(\"", ".each(\"", "time(\"", "kept(\"", "number(\"", "call(\""] {
        for key in code.split(word).skip(1).filter_map(|rest| rest.split('"').next()) {
            count += 1;
            let named = [
                format!("`{key}`"),
                format!(".{key}`"),
                format!("`{key} "),
                format!("[{key}]"),
                format!("{key} ="),
            ];
            assert!(named.iter().any(|named| PAGE.contains(named)), "docs/manifest.md does not name {key}");
        }
    }
    assert!(count > 80, "only {count} keys");
}

#[test]
fn a_watch_is_read_and_what_it_cannot_watch_is_told_with_its_place() {
    let read = |watch: &str| {
        let check = "[[check]]\nname = \"it answers\"\nhealthy = \"web\"\n[[services]]\nname = \"web\"\nport = \"P\"\nvolume = \"v\"\n";
        Manifest::parse("m", &format!("version = 2\n{check}[watch]\n{watch}")).map(|manifest| manifest.watch)
    };
    assert_eq!(read("").unwrap(), WatchRule::default());
    let watch =
        read("for = \"0s\"\nevery = \"2s\"\nchecks = [\"it answers\"]\nrestarts = 2\nfailures = 1").unwrap();
    assert_eq!((watch.time, watch.every), (Duration::ZERO, Duration::from_secs(2)));
    assert_eq!(
        (watch.checks.as_slice(), watch.restarts, watch.failures),
        (&["it answers".to_owned()][..], 2, 1)
    );
    let wrong = "for = 10\nevery = \"1ms\"\nchecks = [\"it answers\", \"other\"]\nfailures = 0\nrestart = 1";
    let told = read(wrong).unwrap_err().to_string();
    for why in [
        "m:10:7: watch.for",
        "too often",
        "m:12:25: watch.checks: there is no check \"other\"",
        "from 1 to 100",
        "did you mean `restarts`?",
    ] {
        assert!(told.contains(why), "no {why} in {told}");
    }
}

#[test]
fn a_gate_of_each_kind_is_read_and_all_its_mistakes_are_told_at_once() {
    let read = |gate: &str| Manifest::parse("m", &format!("version = 2\n[gate]\n{gate}")).map(|m| m.gate);
    let exec = "kind = \"exec\"\nservice = \"a\"\nclose = [\"gate\", \"close\"]\nopen = \"gate open\"\n\
                closed = \"sh -c 'test -e /closed'\"";
    let Ok(GateRule::Exec(gate)) = read(exec) else { panic!("{:?}", read(exec)) };
    assert_eq!(gate.closed.0, ["sh", "-c", "test -e /closed"]);
    assert_eq!(read("kind = \"stop\"").unwrap().kind(), gate_rule::Kind::Stop);
    assert_eq!(Manifest::parse("m", "version = 2").unwrap().gate.kind(), gate_rule::Kind::Stop);
    for (text, why) in [
        ("service = \"a\"", vec!["`kind` is missing"]),
        (
            "kind = \"exec\"\nservices = [\"a\"]\nopen = { request = \"GET /\" }\nclosed = \"a 'b\"",
            vec![
                "services",
                "names no service",
                "`close` is missing",
                "it must be a text",
                "a ' is not closed",
            ],
        ),
        ("kind = \"stop\"\nservice = \"a\"", vec!["service"]),
        ("kind = \"http\"\nclose = \"a\"", vec!["it must be a table", "`position` is missing"]),
        ("kind = \"door\"", vec!["is no kind of gate"]),
    ] {
        let error = read(text).unwrap_err().to_string();
        why.iter().for_each(|why| assert!(error.contains(why), "{text}: {error}"));
    }
}

#[test]
fn a_dump_has_both_commands_and_the_container_that_they_run_in() {
    let read = |text: &str| Manifest::parse("p.toml", &format!("version = 2\n{text}"));
    let whole = read(
        "[data]\npause_max = \"3s\"\n[data.pgdata]\nservice = \"db\"\nbackup = \"pg_dump -Fc notes\"\n\
         restore = \"sh -ec 'pg_restore -d notes'\"\nbefore_deploy = true\n[data.files]\nbefore_deploy = true",
    );
    let data = whole.unwrap().data;
    assert_eq!(data.pause_max, Duration::from_secs(3));
    let rule = &data.each["pgdata"];
    let dump = rule.dump.as_ref().unwrap();
    assert_eq!((dump.backup.0.len(), dump.restore.0[2].as_str()), (3, "pg_restore -d notes"));
    assert!(rule.before_deploy && data.each["files"].before_deploy && data.each["files"].dump.is_none());
    let error = |text: &str| read(text).unwrap_err().to_string();
    for half in ["backup = \"a\"", "service = \"db\"", "service = \"db\"\nrestore = \"a\""] {
        assert!(error(&format!("[data.x]\n{half}")).contains("go together"), "{half}");
    }
    assert!(error("[data]\npause_min = \"3s\"").contains("p.toml:3:13"));
    let known = Parts::default();
    let needs = read("[data.pgdat]\nbefore_deploy = true").unwrap();
    let told = needs.check_needs(|_| true, Some(&known)).unwrap_err().to_string();
    assert!(told.contains("there is no data pgdat"), "{told}");
}

#[test]
fn a_remote_is_read_and_has_no_password_in_it() {
    let read = |text: &str| Manifest::parse("m", &format!("version = 2\n[remote]\n{text}")).map(|m| m.remote);
    let all = "repository = \"sftp:user@host:/path\"\npassword_file = \"secret\"";
    let remote = read(all).unwrap().unwrap();
    assert_eq!((remote.keep, remote.check.as_str()), (30, "5%"));
    for sound in ["/srv/b", "local:/srv/b", "rest:https://user@host/b", "s3:s3.amazonaws.com/b", "b2:b:/p"] {
        let text = format!("repository = \"{sound}\"\npassword_file = \"/etc/secret\"\ncheck = \"0.5%\"");
        assert_eq!(read(&text).unwrap().unwrap().repository, sound);
    }
    for (text, why) in [
        ("keep = 3", vec!["`repository` is missing", "`password_file` is missing"]),
        ("repository = \"backups\"", vec!["m:3:14: remote.repository", "right would be \"/path\""]),
        ("repository = \"local:b\"", vec!["is no repository"]),
        ("repository = \"rest:https://me:hunter2@host/b\"", vec!["it has a password in it"]),
        ("keep = 0\ncheck = \"101%\"", vec!["from 1 to 9999", "\"101%\" is no part of a whole"]),
        ("password = \"hunter2\"", vec!["unknown key `password`"]),
    ] {
        let error = read(text).unwrap_err().to_string();
        why.iter().for_each(|why| assert!(error.contains(why), "{text}: {error}"));
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn services_that_only_compose_knows_are_checked_when_it_was_asked() {
    let read = |text: &str| Manifest::parse("p.toml", text).unwrap();
    let all = read(&format!("check = [{{ name = \"a\", tcp = \"dp:5432\" }}]\n{NEEDED}"));
    let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect();
    let known = Parts { services: names(&["api", "db"]), data: names(&["pgdata"]) };
    let error = all.check_needs(|_| true, Some(&known)).unwrap_err().to_string();
    assert_eq!(error, "there is no service dp; there are: api, db (p.toml:1:30 needs it)");
    all.check_needs(|_| true, None).unwrap();
    // An older manifest has no place for what was added to it.
    let error = read(VERSION_1).check_needs(|_| false, None).unwrap_err().to_string();
    assert!(
        error.contains(
            "TTFF_TARGET_MS is missing in the env file (p.toml, which is of an older version, needs it)"
        ),
        "{error}"
    );
}
