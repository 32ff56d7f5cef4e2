//! The smoke checks: the runbook's validation. They run against the live services with the admin token, so
//! they work behind a closed gate. Every figure is measured at the client. What could not be measured fails.
//! Called by `deploy`, `operations` and the commands `smoke`, `snapshot`, `preflight` and `kill-switch off`.

use crate::base::deadline::Deadline;
use crate::base::http::{Client, Event};
use crate::base::threads::joined;
use crate::checks::flags;
use crate::checks::target::Target;
use crate::stack::contract::{self, StreamOf, health};
use crate::stack::model::Health;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow::{Break, Continue};
use std::time::{Duration, Instant};

/// How many streams measure the time to the first token, and how many are cancelled.
const FIRST_TOKENS: usize = 5;
const CANCELS: usize = 3;

/// How often, in all, a latency is measured that is over its limit.
const MEASUREMENTS: usize = 3;

/// One check and its result.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Name of the check.
    pub name: &'static str,
    /// Did it pass?
    pub ok: bool,
    /// What was measured, or what came back instead.
    pub detail: String,
}

/// Median and worst of several measurements, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// The median.
    pub median_ms: f64,
    /// The slowest.
    pub worst_ms: f64,
}

/// A service cannot use its stored data. Neither waiting nor another version fixes this.
#[derive(Debug)]
pub struct StoreCorrupt(String);

impl fmt::Display for StoreCorrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreCorrupt {}

/// The results of all checks.
#[derive(Clone, Debug, Serialize)]
pub struct Smoke {
    /// Did every check pass?
    pub passed: bool,
    /// The checks, in a fixed order.
    pub checks: Vec<Check>,
    /// Time to the first token; none if it could not be measured.
    pub first_token: Option<Latency>,
    /// Time from the cancel request to the end of the stream; none if it could not be measured.
    pub cancel: Option<Latency>,
    /// The limits of these two, in milliseconds.
    pub limits_ms: (f64, f64),
}

impl Smoke {
    /// A summary in one line.
    pub fn summary(&self) -> String {
        let passed = self.checks.iter().filter(|c| c.ok).count();
        let show = |l: Option<Latency>| {
            l.map_or("not measured".into(), |l| format!("{:.0} ms at worst", l.worst_ms))
        };
        format!(
            "{passed} of {} checks passed; first token {}, cancel {}",
            self.checks.len(),
            show(self.first_token),
            show(self.cancel)
        )
    }
}

/// The "Success Criteria" of the runbook. Each is met if the checks that stand for it have passed.
pub fn criteria(smoke: &Smoke) -> Vec<(String, bool)> {
    let holds = |names: &[&str]| {
        names.iter().all(|name| smoke.checks.iter().any(|check| check.name == *name && check.ok))
    };
    let show = |l: Option<Latency>| l.map_or("not measured".into(), |l| format!("{:.0} ms", l.worst_ms));
    let (first_ms, cancel_ms) = smoke.limits_ms;
    let latencies = format!("{} and {} at worst", show(smoke.first_token), show(smoke.cancel));
    vec![
        ("All 3 core services Up (healthy)".into(), holds(&[HEALTHY])),
        ("All smoke tests passing".into(), smoke.passed),
        (
            format!("First token < {first_ms} ms, cancel < {cancel_ms} ms: {latencies}"),
            holds(&[FIRST_TOKEN, CANCEL]),
        ),
        ("No security violations".into(), holds(&[HEADERS, FLAGS])),
        ("Demo scenarios functional".into(), holds(&[STREAMS, REPORT, JOBS, SAME, RESUME])),
    ]
}

/// Names of checks that `criteria` refers to.
const HEALTHY: &str = "all services healthy";
const BEHIND: &str = "services behind the gate healthy";
const STREAMS: &str = "stream starts and gives tokens";
const FIRST_TOKEN: &str = "first token in time";
const CANCEL: &str = "cancelled in time";
/// Two runs of the same seed give the same bytes.
pub const SAME: &str = "same seed, same bytes";
const RESUME: &str = "resume gives exactly the rest";
const REPORT: &str = "report complete";
const JOBS: &str = "jobs run to their end";
const HEADERS: &str = "security headers";
const FLAGS: &str = "safety flags as they should be";

/// Waits until every service is healthy, at most until `ready`, then runs all checks at the same time.
pub fn verify(target: &Target, ready: Deadline) -> Smoke {
    let health = wait_healthy(target, ready);
    let healthy = health.is_ok();
    let mut smoke = Smoke {
        passed: false,
        checks: Vec::new(),
        first_token: None,
        cancel: None,
        limits_ms: (target.first_token_ms, target.cancel_ms),
    };
    let mut add = |name, outcome: Result<String>| {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        smoke.checks.push(Check { name, ok, detail });
    };
    add(HEALTHY, health);
    if healthy {
        let latencies = std::thread::scope(|scope| {
            let cancel = scope.spawn(|| cancels(target));
            let replay = scope.spawn(|| replay(target));
            let report = scope.spawn(|| report(target));
            let flags = scope.spawn(|| flags::hold(target));
            let jobs = scope.spawn(|| job(target));
            let headers = scope.spawn(|| headers(target));
            let tokens = first_tokens(target);
            let cancel = joined(cancel);
            // The other checks ran at the same time, so a latency over its limit is measured again.
            let tokens = alone(tokens, target.first_token_ms, || first_tokens(target));
            let cancel = alone(cancel, target.cancel_ms, || cancels(target));
            add(
                STREAMS,
                tokens
                    .as_ref()
                    .map(|l| format!("{FIRST_TOKENS} streams, median {:.0} ms", l.median_ms))
                    .map_err(again),
            );
            add(FIRST_TOKEN, limit(&tokens, target.first_token_ms));
            add(
                "cancel answers 202, then 409",
                cancel.as_ref().map(|_| format!("{CANCELS} streams")).map_err(again),
            );
            add(CANCEL, limit(&cancel, target.cancel_ms));
            let (same, resumed) = match joined(replay) {
                Ok(both) => both,
                Err(error) => (Err(again(&error)), Err(error)),
            };
            add(SAME, same);
            add(RESUME, resumed);
            add(REPORT, joined(report));
            add(JOBS, joined(jobs));
            add(HEADERS, joined(headers));
            add(FLAGS, joined(flags));
            (tokens.ok(), cancel.ok())
        });
        (smoke.first_token, smoke.cancel) = latencies;
    } else {
        for name in ["streams", "cancel", "report", "jobs", "safety flags"] {
            add(name, Err(anyhow::anyhow!("not measured: the services are not healthy")));
        }
    }
    smoke.passed = smoke.checks.iter().all(|c| c.ok);
    smoke
}

/// Waits until every service that runs behind a gate is healthy, while the gate has stopped these services. What
/// needs them is checked when they were started.
pub fn verify_behind(target: &Target, stopped: &BTreeSet<String>, ready: Deadline) -> Smoke {
    let clients = target.clients.iter().filter(|(name, _)| !stopped.contains(*name));
    let health = match clients.clone().next() {
        Some(_) => wait_all(clients, ready),
        None => Ok("none runs there".to_owned()),
    };
    let (ok, detail) = match health {
        Ok(detail) => (true, detail),
        Err(error) => (false, format!("{error:#}")),
    };
    Smoke {
        passed: ok,
        checks: vec![Check { name: BEHIND, ok, detail }],
        first_token: None,
        cancel: None,
        limits_ms: (target.first_token_ms, target.cancel_ms),
    }
}

/// A copy of an error, for a second check that failed for the same reason.
fn again(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// Waits until every service answers and is healthy, and checks that all have one version. The error says
/// which one is not healthy, and why.
pub fn wait_healthy(target: &Target, ready: Deadline) -> Result<String> {
    wait_all(target.clients.iter(), ready)
}

fn wait_all<'a>(clients: impl Iterator<Item = (&'a String, &'a Client)>, ready: Deadline) -> Result<String> {
    let waits: Vec<Result<String>> = std::thread::scope(|scope| {
        let jobs: Vec<_> = clients
            .map(|(name, client)| {
                scope.spawn(move || {
                    let healthy = ready.poll(Duration::from_millis(5), || match health(client) {
                        Health::Healthy { version } => Break(Ok(version)),
                        // Waiting does not fix a corrupt store.
                        Health::StoreCorrupt(reason) => {
                            Break(Err(StoreCorrupt(format!("{name}: {reason}")).into()))
                        }
                        Health::Unhealthy(reason) | Health::Silent(reason) => {
                            Continue(anyhow!("{name}: {reason}"))
                        }
                    });
                    healthy.flatten()
                })
            })
            .collect();
        jobs.into_iter().map(joined).collect()
    });
    let mut versions = waits.into_iter().collect::<Result<Vec<String>>>()?;
    let count = versions.len();
    versions.dedup();
    ensure!(versions.len() == 1, "the services have different versions: {}", versions.join(", "));
    Ok(format!("{count} services, version {}", versions[0]))
}

/// Measures a latency again if it is over its limit, without the other checks: a host that was busy for a
/// moment is no reason to reject a release. The last measurement counts.
fn alone(first: Result<Latency>, limit_ms: f64, measure: impl Fn() -> Result<Latency>) -> Result<Latency> {
    let over = |latency: &Result<Latency>| latency.as_ref().is_ok_and(|l| l.worst_ms >= limit_ms);
    (1..MEASUREMENTS).fold(first, |last, _| if over(&last) { measure() } else { last })
}

fn limit(measured: &Result<Latency>, limit_ms: f64) -> Result<String> {
    let Ok(latency) = measured else { bail!("not measured") };
    let detail = format!(
        "median {:.0} ms, worst {:.0} ms, limit {limit_ms:.0} ms",
        latency.median_ms, latency.worst_ms
    );
    ensure!(latency.worst_ms < limit_ms, "{detail}");
    Ok(detail)
}

/// The median and the worst. An error if nothing was measured.
pub fn latency(mut measured: Vec<Duration>) -> Result<Latency> {
    measured.sort_unstable();
    let worst = measured.last().context("nothing was measured")?;
    let ms = |d: &Duration| d.as_secs_f64() * 1e3;
    Ok(Latency { median_ms: ms(&measured[measured.len() / 2]), worst_ms: ms(worst) })
}

fn session(kind: &str, n: usize) -> String {
    let now = crate::base::deadline::now_ms();
    format!("smoke-{kind}-{}-{now:x}-{n}", std::process::id())
}

fn first_tokens(target: &Target) -> Result<Latency> {
    let stream = StreamOf { budget: Some(1), ..StreamOf::seed(&target.seed) };
    let measure = |_| stream.open(&target.gateway, None)?.until(contract::TOKEN).map(|event| event.after);
    latency((0..FIRST_TOKENS).map(measure).collect::<Result<_>>()?)
}

fn cancels(target: &Target) -> Result<Latency> {
    let measure = |n| {
        let id = session("cancel", n);
        // So many tokens that the run cannot end by itself before it is cancelled.
        let stream = StreamOf { budget: Some(500), session: Some(&id), ..StreamOf::seed(&target.seed) };
        let mut events = stream.open(&target.gateway, None)?;
        events.until(contract::TOKEN)?;
        let sent = Instant::now();
        contract::cancel(&target.gateway, &id)?;
        events.until(contract::CANCELLED)?;
        let took = sent.elapsed();
        contract::cancel_again(&target.gateway, &id)?;
        Ok(took)
    };
    latency((0..CANCELS).map(measure).collect::<Result<_>>()?)
}

type Replay = (Result<String>, Result<String>);

/// Two runs of the same seed, and a third that resumes, all at the same time.
fn replay(target: &Target) -> Result<Replay> {
    let run = |n: usize, last: Option<&str>| -> Result<Vec<Event>> {
        let id = session("replay", n);
        let stream = StreamOf { budget: Some(4), session: Some(&id), ..StreamOf::seed(&target.seed) };
        stream.open(&target.gateway, last)?.rest()
    };
    let (one, two, rest) = std::thread::scope(|scope| {
        let two = scope.spawn(|| run(1, None));
        let rest = scope.spawn(|| run(2, Some("msg_003")));
        (run(0, None), joined(two), joined(rest))
    });
    // Without the first and last event, which contain the name of the session.
    let tokens = |events: &[Event]| -> Vec<(String, String, String)> {
        let inner = events.iter().filter(|e| e.name == contract::TOKEN || e.name == contract::PROGRESS);
        inner.map(|e| (e.id.clone(), e.name.clone(), e.data.clone())).collect()
    };
    let (one, two) = (one?, two?);
    let compare = || {
        ensure!(one.last().is_some_and(|e| e.name == contract::DONE), "the stream did not end with done");
        ensure!(tokens(&one) == tokens(&two), "two runs of seed {} differ", target.seed);
        Ok(format!("{} events twice", one.len()))
    };
    let resumed = || {
        let rest = rest?;
        let want: Vec<_> = tokens(&one).into_iter().filter(|(id, ..)| id.as_str() > "msg_003").collect();
        ensure!(
            tokens(&rest) == want,
            "after msg_003 expected {} events, got {}",
            want.len(),
            tokens(&rest).len()
        );
        ensure!(rest.iter().all(|e| e.id.as_str() > "msg_003"), "events were repeated");
        ensure!(
            rest.last().is_some_and(|e| e.name == contract::DONE),
            "the resumed stream did not end with done"
        );
        Ok(format!("{} of {} events after msg_003", rest.len(), one.len()))
    };
    Ok((compare(), resumed()))
}

fn report(target: &Target) -> Result<String> {
    let (first, options) = contract::report(&target.gateway, &target.scenario, &target.seed)?;
    let (second, _) = contract::report(&target.gateway, &target.scenario, &target.seed)?;
    ensure!(first == second, "two reports of the same seed differ");
    contract::report_head(&target.gateway, &target.scenario, &target.seed)?;
    Ok(format!("{options} options, the same twice"))
}

fn job(target: &Target) -> Result<String> {
    let events = contract::job(&target.gateway, &target.scenario)?;
    Ok(format!("{events} events"))
}

fn headers(target: &Target) -> Result<String> {
    let answer = contract::healthz(&target.gateway)?;
    let is = |answer: &crate::base::http::Answer, name: &str, value: &str| {
        let found = answer.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("nothing").to_owned();
        ensure!(found == value, "{name} is {found}, expected {value}");
        Ok(())
    };
    is(&answer, "cache-control", "no-store")?;
    is(&answer, "x-content-type-options", "nosniff")?;
    is(&answer, "x-frame-options", "DENY")?;
    is(&answer, "referrer-policy", "no-referrer")?;
    let stream = StreamOf { budget: Some(1), ..StreamOf::seed(&target.seed) }.whole(&target.gateway)?;
    is(&stream, "cache-control", "no-store, no-cache, must-revalidate")?;
    Ok("5 headers".into())
}

/// The time until a report compares all options: a job until it ends, then its report.
pub fn comparison(target: &Target) -> Result<Duration> {
    let started = Instant::now();
    job(target)?;
    report(target)?;
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_measured_is_not_a_latency_and_fails_its_limit() {
        assert!(latency(Vec::new()).is_err());
        assert!(limit(&latency(Vec::new()), 500.0).is_err());
        let some =
            latency(vec![Duration::from_millis(30), Duration::from_millis(10), Duration::from_millis(20)]);
        assert_eq!(some.as_ref().unwrap(), &Latency { median_ms: 20.0, worst_ms: 30.0 });
        assert!(limit(&some, 31.0).is_ok());
        assert!(limit(&some, 30.0).is_err());
        // Measured again only when over its limit, and never for ever.
        let slow = || Ok(Latency { median_ms: 1.0, worst_ms: 40.0 });
        assert!(limit(&alone(slow(), 30.0, slow), 30.0).is_err());
        let fast = || Ok(Latency { median_ms: 1.0, worst_ms: 2.0 });
        assert!(limit(&alone(slow(), 30.0, fast), 30.0).is_ok());
        assert!(alone(latency(Vec::new()), 30.0, fast).is_err());
        // The checklist of a pilot that nobody could measure has no tick at all.
        let nothing = Smoke {
            passed: false,
            checks: Vec::new(),
            first_token: None,
            cancel: None,
            limits_ms: (500.0, 150.0),
        };
        assert!(criteria(&nothing).iter().all(|(_, holds)| !holds));
    }
}
