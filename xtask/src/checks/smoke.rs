//! The smoke checks: the validation of the runbook, as the manifest has it. They run against the live services with the
//! admin token, so they work behind a closed gate. Every figure is measured at the client. What could not be measured
//! fails. Called by `deploy`, `operations` and the commands `smoke`, `snapshot`, `preflight` and `kill-switch off`.

use crate::base::deadline::Deadline;
use crate::base::machine;
use crate::base::threads::joined;
use crate::checks::flags;
use crate::checks::health::{wait_behind, wait_healthy};
use crate::checks::run::{Latency, run};
use crate::checks::target::Target;
use crate::stack::check::{Check, FLAGS, HEALTHY, Metric};
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often, in all, a latency is measured that is over its limit.
const MEASUREMENTS: usize = 3;

/// One check and its result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// Name of the check.
    pub name: String,
    /// Did it pass?
    pub ok: bool,
    /// What was measured, or what came back instead.
    pub detail: String,
    /// How long the measured part took; none if it was not measured.
    pub measured: Option<Latency>,
    /// How long it may take, in milliseconds; none if there is no limit.
    pub limit_ms: Option<f64>,
    /// How long the check took, with its preparation, in milliseconds; none if it was not timed, as in older versions.
    #[serde(default)]
    pub took_ms: Option<f64>,
    /// Was it made at all?
    #[serde(skip)]
    pub made: bool,
}

/// The results of all checks.
#[derive(Clone, Debug, Serialize)]
pub struct Smoke {
    /// Did every check pass?
    pub passed: bool,
    /// The checks, in a fixed order.
    pub checks: Vec<Checked>,
}

impl Smoke {
    /// A summary in one line.
    pub fn summary(&self) -> String {
        let passed = self.checks.iter().filter(|check| check.ok).count();
        let mut all = format!("{passed} of {} checks passed", self.checks.len());
        for check in self.checks.iter().filter(|check| check.limit_ms.is_some()) {
            all += &format!("; {} {}", check.name, worst(check));
        }
        all
    }

    fn find(&self, name: &str) -> Option<&Checked> {
        self.checks.iter().find(|check| check.name == name)
    }
}

fn worst(check: &Checked) -> String {
    check.measured.map_or("not measured".into(), |l| format!("{:.0} ms at worst", l.worst_ms))
}

/// The "Success Criteria" of the manifest. Each is met if the checks that stand for it have passed; what they measured
/// is told with it.
pub fn criteria(smoke: &Smoke, target: &Target<'_>) -> Result<Vec<(String, bool)>> {
    let all = target.pilot.manifest.criteria.iter().map(|criterion| {
        let own: Vec<Option<&Checked>> = criterion.checks.iter().map(|name| smoke.find(name)).collect();
        let holds = match own.as_slice() {
            [] => smoke.passed,
            own => own.iter().all(|check| check.is_some_and(|check| check.ok)),
        };
        let limited = own.iter().flatten().filter(|check| check.limit_ms.is_some());
        let measured: Vec<String> = limited.map(|check| worst(check)).collect();
        let more = if measured.is_empty() { String::new() } else { format!(": {}", measured.join(" and ")) };
        Ok((format!("{}{more}", target.filled(&criterion.text)?), holds))
    });
    let all: Vec<_> = all.collect::<Result<_>>()?;
    Ok(if all.is_empty() { vec![("All checks pass".to_owned(), smoke.passed)] } else { all })
}

/// The services that run behind a gate which stops its own.
const BEHIND: &str = "services behind the gate healthy";

/// Waits until every service is healthy, at most until `ready`, then runs all checks at the same time, but those for a
/// snapshot.
pub fn verify(target: &Target<'_>, ready: Deadline) -> Smoke {
    checked(target, ready, |check| !check.snapshot_only)
}

/// The same with the checks for a snapshot.
pub fn verify_for_snapshot(target: &Target<'_>, ready: Deadline) -> Smoke {
    checked(target, ready, |_| true)
}

fn checked(target: &Target<'_>, ready: Deadline, wanted: impl Fn(&Check) -> bool) -> Smoke {
    let health = timed(|| plain(HEALTHY, wait_healthy(target, ready)));
    let healthy = health.ok;
    let mut checks = vec![health];
    let own: Vec<&Check> = target.checks.iter().filter(|check| wanted(check)).collect();
    let has_flags = target.pilot.manifest.flags.is_some();
    if healthy {
        checks.extend(side_by_side(target, &own, has_flags, ready));
    } else {
        let skipped = own.iter().map(|check| check.name.as_str()).chain(has_flags.then_some(FLAGS));
        checks.extend(skipped.map(|name| Checked {
            made: false,
            ..plain(name, Err(anyhow!("not measured: the services are not healthy")))
        }));
    }
    Smoke { passed: checks.iter().all(|check| check.ok), checks }
}

/// Checks what runs behind a gate that has stopped these services: everything is healthy, and the checks of services that
/// run. What needs the others is checked when they were started.
pub fn verify_behind(target: &Target<'_>, stopped: &BTreeSet<String>, ready: Deadline) -> Smoke {
    let health = timed(|| plain(BEHIND, wait_behind(target, stopped, ready)));
    let runs = |check: &&Check| check.service().is_some_and(|service| !stopped.contains(service));
    let own = target.checks.iter().filter(|check| !check.snapshot_only && health.ok).filter(runs);
    let own: Vec<&Check> = own.collect();
    let mut checks = vec![health];
    checks.extend(side_by_side(target, &own, false, ready));
    Smoke { passed: checks.iter().all(|check| check.ok), checks }
}

/// Makes the checks of these names, and no other. Nothing is on its way, so what does not answer has failed.
pub fn named(target: &Target<'_>, names: &[String]) -> Vec<Checked> {
    let own: Vec<&Check> = target.checks.iter().filter(|check| names.contains(&check.name)).collect();
    side_by_side(target, &own, false, Deadline::after(Duration::ZERO))
}

/// A check without a limit.
fn plain(name: &str, outcome: Result<String>) -> Checked {
    let (ok, detail) = match outcome {
        Ok(detail) => (true, detail),
        Err(error) => (false, format!("{error:#}")),
    };
    Checked { name: name.to_owned(), ok, detail, measured: None, limit_ms: None, took_ms: None, made: true }
}

/// All checks at the same time. A latency over its limit is measured again after that, alone: a host that was busy for a
/// moment is no reason to reject a release. The last measurement counts.
fn side_by_side(target: &Target<'_>, own: &[&Check], has_flags: bool, ready: Deadline) -> Vec<Checked> {
    let (first, others) = match own.split_first() {
        Some((first, others)) => (Some(*first), others),
        None => (None, own),
    };
    let (mut all, flags) = std::thread::scope(|scope| {
        let others: Vec<_> =
            others.iter().map(|check| scope.spawn(|| Ok(once(target, check, ready)))).collect();
        let flags = has_flags.then(|| scope.spawn(|| Ok(timed(|| plain(FLAGS, flags::hold(target))))));
        let mut all: Vec<Checked> = first.map(|check| once(target, check, ready)).into_iter().collect();
        for (job, check) in others.into_iter().zip(own.iter().skip(1)) {
            all.push(joined(job).unwrap_or_else(|error| plain(&check.name, Err(error))));
        }
        (all, flags.map(|flags| joined(flags).unwrap_or_else(|error| plain(FLAGS, Err(error)))))
    });
    for (result, check) in all.iter_mut().zip(own) {
        again(result, || once(target, check, ready));
    }
    all.extend(flags);
    all
}

fn again(result: &mut Checked, measure: impl Fn() -> Checked) {
    let over = |result: &Checked| {
        let limit = result.limit_ms.zip(result.measured);
        limit.is_some_and(|(limit, measured)| measured.worst_ms >= limit)
    };
    (1..MEASUREMENTS).for_each(|_| {
        if over(result) {
            *result = measure();
        }
    });
}

fn once(target: &Target<'_>, check: &Check, ready: Deadline) -> Checked {
    let limit = check.limit(&target.values(""));
    let limit = limit.map(|limit| limit.map(|limit| limit.as_secs_f64() * 1e3));
    timed(|| judged(check, limit, run(target, check, ready)))
}

/// A check with the time that it took.
fn timed(check: impl FnOnce() -> Checked) -> Checked {
    let begun = Instant::now();
    let result = check();
    Checked { took_ms: Some(begun.elapsed().as_secs_f64() * 1e3), ..result }
}

/// The load of this machine at this moment.
fn busy() -> String {
    let cores =
        std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |cores| cores.to_string());
    match machine::load() {
        Some(load) => format!("the load of this machine is {load:.1} on {cores} processors"),
        None => "the load of this machine is unknown".to_owned(),
    }
}

/// What a measurement means.
fn judged(check: &Check, limit: Result<Option<f64>>, measured: Result<(Latency, String)>) -> Checked {
    let (limit, (latency, detail)) = match (limit, measured) {
        (Ok(limit), Ok(measured)) => (limit, measured),
        (Ok(limit_ms), Err(error)) => return Checked { limit_ms, ..plain(&check.name, Err(error)) },
        (Err(error), _) => return plain(&check.name, Err(error)),
    };
    let times = match (check.times, limit) {
        (1, None) => detail,
        (1, Some(limit)) => format!("{:.0} ms, limit {limit:.0} ms", latency.worst_ms),
        (_, limit) => {
            let limit = limit.map(|limit| format!(", limit {limit:.0} ms")).unwrap_or_default();
            format!("median {:.0} ms, worst {:.0} ms{limit}", latency.median_ms, latency.worst_ms)
        }
    };
    let ok = limit.is_none_or(|limit| latency.worst_ms < limit);
    let name = check.name.clone();
    // Whoever reads it should see whether the machine was busy with something else.
    let detail = if ok { times } else { format!("{times}; {}", busy()) };
    Checked { name, ok, detail, measured: Some(latency), limit_ms: limit, took_ms: None, made: true }
}

/// The values and limits that a snapshot has under names of their own.
pub fn metrics(smoke: &Smoke, checks: &[Check]) -> (Map<String, Value>, Map<String, Value>) {
    let (mut values, mut limits) = (Map::new(), Map::new());
    for (metric, name) in checks.iter().filter_map(|check| Some((check.metric.as_ref()?, &check.name))) {
        let result = smoke.find(name);
        let measured = result.and_then(|result| result.measured);
        let limit = result.and_then(|result| result.limit_ms);
        let value = match metric {
            Metric::Latency(name) => {
                limits.extend(limit.map(|limit| (format!("{name}Ms"), json!(limit))));
                json!(measured)
            }
            Metric::Seconds(name) => {
                limits.extend(limit.map(|limit| (name.clone(), json!(limit / 1e3))));
                json!(measured.map(|measured| measured.worst_ms / 1e3))
            }
            Metric::Passed(_) => json!(result.filter(|result| result.made).map(|result| result.ok)),
        };
        values.insert(metric.name().to_owned(), value);
    }
    (values, limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::run::latency;
    use crate::stack::check::Kind;

    fn check(times: usize) -> Check {
        let kind = Kind::Healthy { service: "a".into() };
        Check { times, metric: Some(Metric::Latency("slow".into())), ..Check::new("slow", kind) }
    }

    fn measured(ms: &[u64], limit: Option<f64>) -> Checked {
        let times = latency(ms.iter().map(|ms| Duration::from_millis(*ms)).collect());
        judged(&check(ms.len()), Ok(limit), times.map(|latency| (latency, "fine".to_owned())))
    }

    #[test]
    fn nothing_measured_is_not_a_latency_and_fails_its_limit() {
        let nothing = measured(&[], Some(500.0));
        assert!(!nothing.ok && nothing.measured.is_none() && nothing.limit_ms == Some(500.0));
        let some = measured(&[30, 10, 20], Some(31.0));
        assert_eq!(some.measured, Some(Latency { median_ms: 20.0, worst_ms: 30.0 }));
        assert!(some.ok && some.detail == "median 20 ms, worst 30 ms, limit 31 ms", "{}", some.detail);
        let over = measured(&[30, 10, 20], Some(30.0));
        assert!(
            !over.ok && over.detail.contains("limit 30 ms; the load of this machine is "),
            "{}",
            over.detail
        );
        assert_eq!(measured(&[7], None).detail, "fine");
    }

    #[test]
    fn a_latency_is_measured_again_only_when_over_its_limit_and_never_for_ever() {
        let slow = || measured(&[40], Some(30.0));
        let count = std::cell::Cell::new(0);
        let mut result = slow();
        again(&mut result, || {
            count.set(count.get() + 1);
            slow()
        });
        assert!(!result.ok && count.get() == MEASUREMENTS - 1);
        again(&mut result, || measured(&[2], Some(30.0)));
        assert!(result.ok);
        let mut failed = measured(&[], Some(30.0));
        again(&mut failed, || measured(&[2], Some(30.0)));
        assert!(!failed.ok);
    }

    #[test]
    fn a_snapshot_has_null_for_what_was_not_measured() {
        let smoke = |checked: Checked| Smoke { passed: checked.ok, checks: vec![checked] };
        let (values, limits) = metrics(&smoke(measured(&[5], Some(500.0))), &[check(1)]);
        assert_eq!(
            (values["slow"]["worst_ms"].clone(), limits["slowMs"].clone()),
            (json!(5.0), json!(500.0))
        );
        let (values, _) = metrics(&smoke(measured(&[], Some(500.0))), &[check(1)]);
        assert_eq!(values["slow"], Value::Null);
        let passed = Check { metric: Some(Metric::Passed("same".into())), ..check(1) };
        let skipped = Checked { made: false, ..measured(&[], None) };
        assert_eq!(metrics(&smoke(skipped), std::slice::from_ref(&passed)).0["same"], Value::Null);
        assert_eq!(metrics(&smoke(measured(&[], None)), &[passed]).0["same"], json!(false));
    }
}
