//! When Docker asks containers for their health. If such a probe starts at the very moment of a pause, Docker 20.10 with
//! runc 1.1 answers nothing about the container, not even `unpause`, until the time of the probe is up. So a pause waits
//! until no probe is near. Called by `data`.

use crate::base::deadline::Deadline;
use crate::engine::compose::client::Compose;
use anyhow::{Context, Result};
use serde_json::Value;
use std::ops::ControlFlow::{Break, Continue};
use std::time::{Duration, SystemTime};

/// How far away the next probe must be; with short intervals, half of one.
const AWAY: Duration = Duration::from_millis(500);

/// How long is waited for that. A probe that takes longer is not waited for.
const WAIT: Duration = Duration::from_secs(5);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// The interval of a health check that names none.
const INTERVAL: Duration = Duration::from_secs(30);

impl Compose {
    /// Waits until no health probe of these containers is near, but not for long.
    pub fn wait_for_probes(&self, handles: &[String], deadline: Deadline) -> Result<()> {
        let waited = deadline.within(WAIT).poll(PAUSE, || match self.probe_is_near(handles, deadline) {
            Ok(false) => Break(Ok(())),
            Ok(true) => Continue(()),
            Err(error) => Break(Err(error)),
        });
        waited.unwrap_or(Ok(()))
    }

    fn probe_is_near(&self, handles: &[String], deadline: Deadline) -> Result<bool> {
        let text = self.each(&["inspect", "--type", "container"], handles, deadline)?;
        let Some(text) = text else { return Ok(false) };
        let all: Vec<Value> =
            serde_json::from_str(&text).context("cannot parse the output of docker inspect")?;
        let now = self.now(deadline)?;
        for container in &all {
            if is_near(container, now, |interval| self.unpaused(container, now - interval, now, deadline))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The time, by the clock of the engine's machine.
    fn now(&self, deadline: Deadline) -> Result<SystemTime> {
        if self.daemon.elsewhere().is_none() {
            return Ok(SystemTime::now());
        }
        let told = self.docker(&["info", "--format", "{{.SystemTime}}"], deadline)?;
        time(told.trim()).with_context(|| format!("the engine says {:?} for the time", told.trim()))
    }

    /// When a container was last unpaused in this time. Only Docker's events tell.
    fn unpaused(
        &self,
        container: &Value,
        since: SystemTime,
        until: SystemTime,
        deadline: Deadline,
    ) -> Result<Option<SystemTime>> {
        let stamp = |at: SystemTime| {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            format!("{}.{:09}", since.as_secs(), since.subsec_nanos())
        };
        let of = format!("container={}", container["Id"].as_str().unwrap_or_default());
        let (since, until) = (stamp(since), stamp(until));
        let within = ["events", "--since", &since, "--until", &until];
        let only = ["--filter", "event=unpause", "--filter", &of, "--format", "{{.TimeNano}}"];
        let told = self.docker(&[within.as_slice(), &only].concat(), deadline)?;
        let last = told.lines().last().and_then(|line| line.trim().parse().ok());
        Ok(last.map(|nanos| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)))
    }
}

/// Is a probe of a container under way, or does one begin in a moment? One that is due and does not come was put off by
/// a pause: from the end of that on, which `unpaused` finds, Docker counts the interval anew.
fn is_near(
    container: &Value,
    now: SystemTime,
    unpaused: impl FnOnce(Duration) -> Result<Option<SystemTime>>,
) -> Result<bool> {
    let Some((at, interval)) = next(container) else { return Ok(false) };
    let put_off = if at < now { unpaused(interval)? } else { None };
    let at = put_off.map_or(at, |unpaused| unpaused + interval);
    Ok(at < now + AWAY.min(interval / 2))
}

/// When the next probe of a container that was not paused starts, by the clock of the machine, and the interval; none if
/// it has none. A probe that is under way has a time that has passed.
fn next(container: &Value) -> Option<(SystemTime, Duration)> {
    let check = container.pointer("/Config/Healthcheck").filter(|check| !check.is_null())?;
    let health = container.pointer("/State/Health").filter(|health| !health.is_null())?;
    let interval = check.get("Interval").and_then(Value::as_u64).filter(|nanos| *nanos > 0);
    let interval = interval.map_or(INTERVAL, Duration::from_nanos);
    let last = health.get("Log").and_then(Value::as_array).and_then(|log| log.last());
    let last = last.map_or(container.pointer("/State/StartedAt"), |probe| probe.get("End"))?;
    Some((time(last.as_str()?)? + interval, interval))
}

/// A time as Docker writes it: with a fraction of a second, and in the zone of the daemon.
pub fn time(text: &str) -> Option<SystemTime> {
    let (seconds, rest) = text.split_at_checked("2026-11-25T22:27:55".len())?;
    let at = humantime::parse_rfc3339(&format!("{seconds}Z")).ok()?;
    let zone = rest.find(['Z', '+', '-'])?;
    let (fraction, zone) = rest.split_at(zone);
    let fraction = format!("0{fraction}").parse::<f64>().ok()?;
    let at = at + Duration::from_secs_f64(fraction);
    let offset = || {
        let (hours, minutes) = zone.get(1..)?.split_once(':')?;
        Some(Duration::from_secs(60 * (60 * hours.parse::<u64>().ok()? + minutes.parse::<u64>().ok()?)))
    };
    match zone.chars().next()? {
        'Z' => Some(at),
        '+' => at.checked_sub(offset()?),
        _ => at.checked_add(offset()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_next_probe_comes_an_interval_after_the_end_of_the_last_one() {
        let at = |text: &str| humantime::parse_rfc3339(text).unwrap();
        let container = |interval: u64, log: Value| {
            json!({
                "Config": { "Healthcheck": { "Test": ["CMD", "true"], "Interval": interval } },
                "State": { "StartedAt": "2026-11-25T10:00:00Z", "Health": { "Log": log } },
            })
        };
        let log = json!([{ "End": "2026-11-25T09:00:00Z" }, { "End": "2026-11-25T12:00:05.25+02:00" }]);
        let second = Duration::from_secs(1);
        assert_eq!(next(&container(1_000_000_000, log)), Some((at("2026-11-25T10:00:06.25Z"), second)));
        let first = Some((at("2026-11-25T10:00:30Z"), INTERVAL));
        assert_eq!(next(&container(0, json!([]))), first);
        assert_eq!(next(&json!({ "Config": { "Healthcheck": null }, "State": {} })), None);
        assert_eq!(time("2026-11-25T02:00:00.5-07:30"), Some(at("2026-11-25T09:30:00.5Z")));
        assert_eq!(time("soon"), None);
    }

    #[test]
    fn a_pause_puts_the_next_probe_off() {
        let at = |text: &str| humantime::parse_rfc3339(text).unwrap();
        let container = json!({
            "Config": { "Healthcheck": { "Test": ["CMD", "true"], "Interval": 10_000_000_000_u64 } },
            "State": { "Health": { "Log": [{ "End": "2026-11-25T12:00:00Z" }] } },
        });
        let near = |now: &str, unpaused: Option<&str>| {
            is_near(&container, at(now), |_| Ok(unpaused.map(at))).unwrap()
        };
        assert!(!near("2026-11-25T12:00:09Z", None) && near("2026-11-25T12:00:09.6Z", None));
        // It is due: under way, unless the container was paused.
        assert!(near("2026-11-25T12:00:11Z", None));
        assert!(!near("2026-11-25T12:00:11Z", Some("2026-11-25T12:00:05Z")));
        assert!(near("2026-11-25T12:00:14.6Z", Some("2026-11-25T12:00:05Z")));
    }
}
