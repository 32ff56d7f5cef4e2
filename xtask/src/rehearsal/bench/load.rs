//! The load part of the benchmark: a thousand streams through one gateway, as `[load]` of the manifest says. It measures
//! how much memory they use, and how fast they end when the gate closes. Called by `bench`.

use crate::base::deadline::Deadline;
use crate::base::threads::joined;
use crate::checks::memory::memory;
use crate::checks::target::Target;
use crate::rehearsal::Rehearsal;
use crate::rehearsal::bench::row::Row;
use crate::stack::call::filled_path;
use crate::stack::manifest::LoadRule;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const STREAMS: usize = 1_000;

/// The time limit for all of it.
const LIMIT: Duration = Duration::from_secs(60);

/// Adds the rows for memory, idle and under load, and for closing the gate.
pub fn measure(rehearsal: &Rehearsal, rows: &mut Vec<Row>) -> Result<()> {
    let pilot = &rehearsal.session.pilot;
    let env = pilot.env()?;
    let rule = pilot.manifest.load.as_ref().context("pilot.toml has no [load]")?;
    let engine = rehearsal.session.engine.as_ref();
    let target = Target::new(pilot, engine, &env)?;
    let used = || memory(&target, engine, Deadline::after(pilot.manifest.limits.engine));
    let largest = used()?.into_values().fold(0.0, f64::max) / 1e6;
    rows.push(Row::plain("a service, resident idle", largest, "MB", 30.0));

    let port = pilot.port(pilot.gateway(), &env)?.context("the gateway has no port")?;
    let started = AtomicUsize::new(0);
    let ends: Vec<Result<Instant>> = std::thread::scope(|scope| {
        let spawn = |n: usize| {
            let started = &started;
            std::thread::Builder::new()
                .stack_size(128 << 10)
                .spawn_scoped(scope, move || stream(port, n, started, rule))
        };
        let streams: Vec<_> =
            (0..STREAMS).map(spawn).collect::<std::io::Result<_>>().context("too few threads")?;
        let limit = Instant::now() + LIMIT;
        while started.load(Ordering::Relaxed) < STREAMS {
            ensure!(Instant::now() < limit, "only {} streams started", started.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_secs(2));
        let loaded = used()?.get(pilot.gateway()).context("the memory of the gateway is not known")? / 1e6;
        rows.push(Row::plain("gateway with 1,000 streams", loaded, "MB", 150.0));
        let view = rehearsal.session.running(Deadline::after(LIMIT))?;
        let gate = view.gate(Duration::from_secs(5))?;
        let closing = Instant::now();
        gate.close("bench")?;
        let ends: Vec<Result<Instant>> = streams.into_iter().map(joined).collect();
        let mut took: Vec<f64> = Vec::new();
        for end in &ends {
            match end {
                Ok(at) => took.push(at.saturating_duration_since(closing).as_secs_f64() * 1e3),
                Err(error) => anyhow::bail!("{error:#}"),
            }
        }
        took.sort_by(f64::total_cmp);
        let p99 = took.get(took.len() * 99 / 100).copied().context("nothing was measured")?;
        rows.push(Row::plain("closing ends them, p99", p99, "ms", 150.0));
        Ok::<_, anyhow::Error>(ends)
    })?;
    ensure!(ends.len() == STREAMS, "only {} streams ended", ends.len());
    Ok(())
}

/// Reads one stream to its end. Returns when the event came that says that the gate has ended it.
fn stream(port: u16, n: usize, started: &AtomicUsize, rule: &LoadRule) -> Result<Instant> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
    socket.set_read_timeout(Some(LIMIT)).context("cannot set a limit")?;
    let path = filled_path(&rule.request.path, &[("N", &n.to_string())])?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    socket.write_all(request.as_bytes()).context("cannot send")?;
    let mut counted = false;
    for line in BufReader::with_capacity(1 << 10, socket).lines() {
        let line = line.context("the stream ended early")?;
        if !counted && line == format!("event: {}", rule.begins) {
            counted = true;
            started.fetch_add(1, Ordering::Relaxed);
        }
        if line == format!("event: {}", rule.ends) {
            return Ok(Instant::now());
        }
    }
    anyhow::bail!("a stream ended without {}", rule.ends)
}
