//! The part of the benchmark with much data: the pilot, with a large volume and a long log. It measures a backup against
//! `docker cp` with zstd, and whether the length of a log matters. Called by `bench`.

use crate::base::deadline::{Deadline, for_bytes};
use crate::base::files::{self, Mode, Scratch};
use crate::base::machine::{self, Process};
use crate::base::output::Output;
use crate::base::proc::{Cmd, cmd};
use crate::base::threads::joined;
use crate::checks::health::health;
use crate::engine::roles::Kind;
use crate::operations::candidate::Source;
use crate::operations::up;
use crate::rehearsal::bench::row::{Figures, Row};
use crate::rehearsal::{PART, Rehearsal};
use crate::stack::manifest::MANIFEST_FILE;
use crate::stack::model::Health;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The version of the release.
const GOOD: &str = "v1.0.0";

/// The log that is compared with, in MB: longer than what is read of any, so that only the length makes a difference.
const SHORT: u64 = 20;

/// The pause between two looks at how much memory a backup uses.
const PAUSE: Duration = Duration::from_millis(10);

/// Bytes of a line of the log, about, and how many lines a connection makes. With short lines this would take minutes.
const LINE: usize = 8_000;
const LINES: usize = 25;

/// Adds the rows for a volume of so many MB, and for a log of half as many.
pub fn measure(real: &Pilot, rounds: usize, mb: u64, out: Output, rows: &mut Vec<Row>) -> Result<()> {
    which::which("zstd").context("the benchmark compares with zstd")?;
    let tree = Scratch::new("data")?;
    write_tree(real, tree.path())?;
    let rehearsal = Rehearsal::prepare(real, tree.path(), Some(Kind::Compose), out, false)?;
    rehearsal.images(GOOD, "")?;
    rehearsal.deploy(&up::Options { source: Source::Tag(GOOD), ..up::Options::default() })?;
    let own = &rehearsal.session.pilot;
    let service = own.services().find(|name| *name != own.gateway()).context("the pilot has one service")?;
    let limit = Deadline::after(for_bytes(PART, 100 * mb * 1_000_000));
    let much = Much { rehearsal: &rehearsal, service, container: container(&rehearsal, service)?, limit };
    much.logs(rounds, mb / 2, rows)?;
    much.volume(rounds, mb, rows)
}

/// A pilot with much data.
struct Much<'a> {
    rehearsal: &'a Rehearsal,
    /// The service that has it.
    service: &'a str,
    /// The id of its container.
    container: String,
    /// The limit for whatever reads or writes all of it.
    limit: Deadline,
}

impl Much<'_> {
    /// What reads logs, with a long one and with a short one.
    fn logs(&self, rounds: usize, mb: u64, rows: &mut Vec<Row>) -> Result<()> {
        let commands: [(&str, &[&str]); 3] = [
            ("backup, long log", &["backup", "create"]),
            ("evidence, long log", &["evidence"]),
            ("assess, long log", &["assess"]),
        ];
        let all = || -> Result<Vec<Figures>> {
            let one = |(_, words): &(_, &[&str])| {
                (0..rounds).map(|_| self.timed(self.rehearsal.command(words)?)).collect()
            };
            commands.iter().map(one).collect()
        };
        self.log(SHORT)?;
        let short = all()?;
        self.log(mb)?;
        for (((what, _), ours), short) in commands.into_iter().zip(all()?).zip(short) {
            let against = Some(("the same with a log of 20 MB", short));
            rows.push(Row { what, ours, unit: "ms", against, reach: Some(1.2) });
        }
        Ok(())
    }

    /// Makes the log of the service at least so long. The service logs each request with its method, whatever that is.
    fn log(&self, mb: u64) -> Result<()> {
        let session = &self.rehearsal.session;
        let port =
            session.pilot.port(self.service, &session.pilot.env()?)?.context("it publishes no port")?;
        let lines = |last: &str| format!("{} / HTTP/1.1\r\nhost: localhost\r\n{last}\r\n", "X".repeat(LINE));
        let requests = lines("").repeat(LINES - 1) + &lines("connection: close\r\n");
        let bytes = mb * 1_000_000;
        for _ in 0..=bytes / (LINE * LINES) as u64 {
            ensure!(!self.limit.passed(), "the log did not grow in time");
            let mut socket = TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
            socket.set_read_timeout(Some(PART)).context("cannot set a limit")?;
            socket.write_all(requests.as_bytes()).context("cannot send")?;
            socket.read_to_end(&mut Vec::new()).context("no answer")?;
        }
        let there = cmd("docker", &["logs", &self.container]).read_by(self.limit, length)?;
        ensure!(there >= bytes, "the log has {there} bytes after {bytes} were written");
        Ok(())
    }

    /// Copies of the volume, with the gate closed: a pause has no limit then.
    fn volume(&self, rounds: usize, mb: u64, rows: &mut Vec<Row>) -> Result<()> {
        let scratch = Scratch::new("data")?;
        let data = scratch.path().join("large");
        cmd("head", &["--bytes", &format!("{mb}000000"), "/dev/urandom"])
            .run_into(&mut File::create(&data)?, self.limit)?;
        let mounted = "{{range .Mounts}}{{.Destination}}{{end}}";
        let inspect = cmd("docker", &["inspect", "--format", mounted, &self.container]);
        let from = format!("{}:{}", self.container, inspect.run(self.limit)?.trim());
        cmd("docker", &["cp", &data.display().to_string(), &from]).run(self.limit)?;
        drop(scratch);
        self.rehearsal.operate(&["kill-switch", "on", "--reason", "bench"], false)?;
        let to = self.rehearsal.session.pilot.state.path().join("by-hand.tar");
        let by = |script: &str| -> Result<f64> {
            let words = ["-c", script, "sh", &format!("{from}/."), &to.display().to_string()];
            let took = self.timed(cmd("sh", &words));
            files::remove(&to)?;
            took
        };
        let (mut ours, mut packed, mut copies) = (Figures::default(), Figures::default(), Figures::default());
        for _ in 0..rounds {
            ours.push(self.timed(self.rehearsal.command(&["backup", "create"])?)?);
            packed.push(by("docker cp \"$1\" - | zstd --quiet -o \"$2\"")?);
            copies.push(by("docker cp \"$1\" - >\"$2\"")?);
        }
        let (stall, peak) = self.watched()?;
        let row = |what, ours, name, figures, reach| {
            let against = Some((name, figures));
            Row { what, ours, unit: "ms", against, reach: Some(reach) }
        };
        let name = "docker cp | zstd, not read back";
        rows.push(row("backup of a large volume", ours, name, packed, 1.5));
        rows.push(row("its longest stall of a client", stall.into(), "docker cp to a file", copies, 1.0));
        rows.push(Row::plain("its memory, resident at most", peak, "MiB", 64.0));
        Ok(())
    }

    /// One backup more: how many milliseconds a client of the service had to wait at most, and how many MiB the backup
    /// used at most.
    fn watched(&self) -> Result<(f64, f64)> {
        let session = &self.rehearsal.session;
        let rule = session.pilot.manifest.health.as_ref().context("pilot.toml has no [health]")?;
        let client = session.running(self.limit)?.client_of(Some(self.service), self.limit.left())?;
        let over = AtomicBool::new(false);
        let going = || !over.load(Ordering::Relaxed);
        let words = ["backup", "create"];
        let command = self.rehearsal.command(&words)?;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut longest = Duration::ZERO;
                while going() {
                    let asked = Instant::now();
                    let seen = health(&client, rule);
                    let well = matches!(seen, Health::Healthy { .. });
                    ensure!(well, "{} is not healthy: {seen:?}", self.service);
                    longest = longest.max(asked.elapsed());
                }
                Ok(longest.as_secs_f64() * 1e3)
            });
            let looking = scope.spawn(|| {
                let is_it = |process: &Process| {
                    let said = process.words();
                    said.contains(&session.pilot.project) && said.ends_with(&words.map(str::to_owned))
                };
                let (mut backup, mut most) = (None, 0);
                while going() {
                    backup = backup.or_else(|| machine::all().ok()?.into_iter().find(is_it));
                    most = most.max(backup.and_then(Process::stat).map_or(0, |stat| stat.memory));
                    std::thread::sleep(PAUSE);
                }
                ensure!(most > 0, "the memory of the backup is not known");
                Ok(most as f64 / f64::from(1 << 20))
            });
            let ran = command.run(self.limit);
            over.store(true, Ordering::Relaxed);
            let seen = (joined(waiting), joined(looking));
            ran?;
            Ok((seen.0?, seen.1?))
        })
    }

    fn timed(&self, command: Cmd) -> Result<f64> {
        let start = Instant::now();
        command.run(self.limit)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

fn length(from: &mut dyn Read) -> Result<u64> {
    Ok(std::io::copy(from, &mut std::io::sink())?)
}

/// The id of the container of a service.
fn container(rehearsal: &Rehearsal, service: &str) -> Result<String> {
    let of = |label: &str, value: &str| format!("label=com.docker.compose.{label}={value}");
    let (project, service) = (of("project", &rehearsal.session.pilot.project), of("service", service));
    let list = ["ps", "--no-trunc", "--quiet", "--filter", &project, "--filter", &service];
    let id = cmd("docker", &list).run(Deadline::after(PART))?.trim().to_owned();
    ensure!(!id.is_empty(), "{service} does not run");
    Ok(id)
}

/// The files of the pilot, with another limit for the size of logs: without one, that of the daemon would count.
fn write_tree(real: &Pilot, to: &Path) -> Result<()> {
    let (manifest, compose) = (&real.manifest, real.layout.compose[0].as_str());
    let plain = manifest.seed_file.iter().chain(&manifest.extra_files).chain(&manifest.env_example);
    for name in plain.map(String::as_str).chain([MANIFEST_FILE]) {
        files::copy(&real.pack.join(name), &to.join(name), Mode::Plain)?;
    }
    let text = files::read_text(&real.pack.join(compose))?;
    let (limit, much) = ("max-size: \"5m\"", "max-size: \"100g\"");
    ensure!(text.contains(limit), "{compose} has no {limit}");
    files::write(&to.join(compose), text.replace(limit, much).as_bytes(), Mode::Plain)
}
