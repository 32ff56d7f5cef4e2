//! Counters, gauges and histograms of one service, in the Prometheus text format. The roles record values;
//! `/metrics` and `/admin/metrics` read them.

use prometheus::{Encoder, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use serde_json::{Value, json};
use std::time::Duration;

/// The metrics of one service. The ones of the gateway stay at zero in the other roles.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    first_token: Histogram,
    cancel: Histogram,
    /// Streams running now.
    pub active_sessions: IntGauge,
    /// 1 while the gate is closed.
    pub gate_closed: IntGauge,
    resident: IntGauge,
}

impl Metrics {
    /// Registers every metric once. An error comes from the registry (a name was used twice).
    pub fn new() -> Result<Self, String> {
        let said = |e: prometheus::Error| format!("metrics: {e}");
        let seconds = |name: &str, help: &str, buckets: Vec<f64>| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).map_err(said)
        };
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).map_err(said);
        let requests = Opts::new("scenario_requests_total", "Requests answered");
        let all = Self {
            registry: Registry::new(),
            requests: IntCounterVec::new(requests, &["route", "status"]).map_err(said)?,
            first_token: seconds(
                "scenario_time_to_first_token_seconds",
                "From the request to its first token",
                vec![0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0],
            )?,
            cancel: seconds(
                "scenario_cancel_latency_seconds",
                "From the cancel request to the end of its stream",
                vec![0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.5, 1.0],
            )?,
            active_sessions: gauge("scenario_active_sessions", "Streams running now")?,
            gate_closed: gauge("scenario_gate_closed", "1 while the kill switch is active")?,
            resident: gauge("scenario_resident_memory_bytes", "Resident memory of the process")?,
        };
        for part in [
            Box::new(all.requests.clone()) as Box<dyn prometheus::core::Collector>,
            Box::new(all.first_token.clone()),
            Box::new(all.cancel.clone()),
            Box::new(all.active_sessions.clone()),
            Box::new(all.gate_closed.clone()),
            Box::new(all.resident.clone()),
        ] {
            all.registry.register(part).map_err(said)?;
        }
        Ok(all)
    }

    /// Counts one answered request.
    pub fn request(&self, route: &str, status: u16) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
    }

    /// Records the time to the first token of a run.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// Records the time from the cancel request to the end of the run.
    pub fn cancelled(&self, after: Duration) {
        self.cancel.observe(after.as_secs_f64());
    }

    /// Prometheus text format 0.0.4.
    pub fn text(&self) -> Result<String, String> {
        if let Some(bytes) = resident_bytes() {
            self.resident.set(bytes);
        }
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .map_err(|e| format!("cannot encode metrics: {e}"))?;
        String::from_utf8(out).map_err(|e| e.to_string())
    }

    /// The figures for `GET /admin/metrics`. A mean without values is null.
    pub fn summary(&self) -> Value {
        let mean_ms = |h: &Histogram| match h.get_sample_count() {
            0 => Value::Null,
            n => json!(h.get_sample_sum() * 1000.0 / n as f64),
        };
        json!({
            "activeSessions": self.active_sessions.get(),
            "gateClosed": self.gate_closed.get() == 1,
            "firstTokens": self.first_token.get_sample_count(),
            "meanFirstTokenMs": mean_ms(&self.first_token),
            "cancels": self.cancel.get_sample_count(),
            "meanCancelMs": mean_ms(&self.cancel),
            "residentBytes": resident_bytes(),
        })
    }
}

/// Resident memory in bytes, from `/proc/self/statm` (second field, in pages of 4 KiB);
/// nothing on other systems.
fn resident_bytes() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_that_was_not_measured_is_null() {
        let metrics = Metrics::new().unwrap();
        assert_eq!(metrics.summary()["meanFirstTokenMs"], Value::Null);
        metrics.first_token(Duration::from_millis(20));
        assert_eq!(metrics.summary()["meanFirstTokenMs"], json!(20.0));
    }
}
