//! The part of the benchmark with large images: the pilot, with random data in each image. It measures what a
//! release stores, and whether the time of a rollback depends on the size of images. Called by `bench`.

use crate::base::deadline::{Deadline, for_bytes};
use crate::base::files::{self, Scratch};
use crate::base::output::Output;
use crate::base::proc::{Cmd, cmd};
use crate::base::threads::side_by_side;
use crate::engine::roles::{Extent, Kind};
use crate::operations::candidate::Source;
use crate::operations::up;
use crate::rehearsal::bench::by_hand::{OFTEN, archives, broken, compose, timed};
use crate::rehearsal::bench::row::{Figures, Row};
use crate::rehearsal::{PART, Rehearsal};
use crate::release::description::Release;
use crate::stack::names;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs::File;
use std::time::Instant;

/// The versions: the good one, the same with 1 MB more in one image, and with 1 MB more in each.
const GOOD: &str = "v1.0.0";
const ONE_MORE: &str = "v1.0.1";
const ALL_MORE: &str = "v1.0.2";

/// What is added to the small images that are compared with, in MB.
const SMALL: u64 = 6;

/// Adds the rows for three images of this many MB.
pub fn measure(
    real: &Pilot,
    rounds: usize,
    mb: u64,
    quiet: &dyn Fn() -> Output,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let small = Large::begin(real, SMALL, quiet())?.rollbacks(rounds)?;
    let large = Large::begin(real, mb, quiet())?;
    let rollback = large.rollbacks(rounds)?;
    let row = |what, ours, name, figures, reach| Row {
        what,
        ours,
        unit: "ms",
        against: Some((name, figures)),
        reach: Some(reach),
    };
    rows.push(row("rollback, large images", rollback, "the same with 6 MB each", small, 1.1));
    large.deployment(rows, &row)?;
    large.verification(rows)?;
    let (ours, docker) = large.loading(rounds)?;
    rows.push(row("loading lost images", ours, "docker load, side by side", docker, 1.2));
    Ok(())
}

/// A pilot with large images.
struct Large {
    rehearsal: Rehearsal,
    good: Release,
    /// The limit for whatever reads or writes all images.
    limit: Deadline,
}

impl Large {
    /// Makes the images and deploys the good version.
    fn begin(real: &Pilot, mb: u64, out: Output) -> Result<Self> {
        let rehearsal = Rehearsal::prepare(real, &real.pack, Some(Kind::Compose), out, false)?;
        rehearsal.set(OFTEN)?;
        let limit = Deadline::after(for_bytes(PART, 100 * mb * 1_000_000));
        rehearsal.images(GOOD, "")?;
        for service in rehearsal.session.pilot.services() {
            add(&rehearsal, service, (GOOD, GOOD), mb, limit)?;
            add(&rehearsal, service, (GOOD, ONE_MORE), u64::from(service == "engine"), limit)?;
            add(&rehearsal, service, (GOOD, ALL_MORE), 1, limit)?;
        }
        rehearsal.deploy(&up::Options { source: Source::Tag(GOOD), ..up::Options::default() })?;
        let good = rehearsal.session.store.current()?.context("the good release is not recorded")?;
        Ok(Self { rehearsal, good, limit })
    }

    /// Milliseconds until the public is served again, from images that differ in 1 MB each.
    fn rollbacks(&self, rounds: usize) -> Result<Figures> {
        let session = &self.rehearsal.session;
        let bad = session.engine.tagged(ALL_MORE, Deadline::after(PART))?;
        let measure = |_| -> Result<f64> {
            broken(&self.rehearsal, bad.clone(), &[])?;
            let finished = self.rehearsal.go_back(&["rollback"], false)?;
            let missing = || finished.error.clone().unwrap_or_else(|| "it measured nothing".into());
            Ok(finished.restored_ms.with_context(missing)? as f64)
        };
        (0..rounds).map(measure).collect()
    }

    /// A release in which 1 MB of one image differs.
    fn deployment(
        &self,
        rows: &mut Vec<Row>,
        row: &dyn Fn(&'static str, Figures, &'static str, Figures, f64) -> Row,
    ) -> Result<()> {
        let session = &self.rehearsal.session;
        let before = files::size(session.pilot.state.path())?;
        let start = Instant::now();
        let finished = self.rehearsal.go_back(&["up", "--tag", ONE_MORE], false)?;
        let ended = start.elapsed().as_secs_f64() * 1e3;
        let missing = || finished.error.clone().unwrap_or_else(|| "it measured nothing".into());
        let served = finished.restored_ms.with_context(missing)? as f64;
        let stored = files::size(session.pilot.state.path())?.saturating_sub(before);
        let images = session.engine.tagged(ONE_MORE, Deadline::after(PART))?;
        let save = |id: &String| cmd("docker", &["save", id]).read_by(self.limit, nowhere);
        let start = Instant::now();
        let ids: Vec<&String> = images.values().map(|image| &image.id).collect();
        side_by_side(ids.len(), ids, save).into_iter().collect::<Result<Vec<u64>>>()?;
        let docker = start.elapsed().as_secs_f64() * 1e3;
        // The same change by plain Compose.
        self.rehearsal.go_back(&["rollback", "--to", &self.good.id], false)?;
        let by_hand = Release::unrecorded("by-hand", &self.good.engine, images);
        session.engine.retag(&by_hand, Deadline::after(PART))?;
        let bare = timed(compose(&self.rehearsal, &["up", "--detach", "--wait"])?)?;
        rows.push(Row::plain("stored for 1 MB that changed", stored as f64 / 1e6, "MB", 5.0));
        rows.push(row("up: public served", served.into(), "docker compose up -d --wait", bare.into(), 1.2));
        let name = "docker save to nowhere, side by side";
        rows.push(row("up: command ended", ended.into(), name, docker.into(), 1.3));
        Ok(())
    }

    fn verification(&self, rows: &mut Vec<Row>) -> Result<()> {
        let bytes = files::size(&self.rehearsal.session.pilot.state.blobs())?;
        let start = Instant::now();
        self.rehearsal.command(&["releases", "verify"])?.run(self.limit)?;
        let seconds = start.elapsed().as_secs_f64();
        let (what, unit) = ("releases verify", "MB/s");
        let ours = (bytes as f64 / 1e6 / seconds).into();
        rows.push(Row { what, ours, unit, against: None, reach: None });
        Ok(())
    }

    /// Milliseconds to load the images that Docker has lost, and those of plain Docker.
    fn loading(&self, rounds: usize) -> Result<(Figures, Figures)> {
        let session = &self.rehearsal.session;
        let scratch = Scratch::new("archives")?;
        let archives = archives(session, &self.good, scratch.path())?;
        let lose = || session.engine.down(Extent::Everything, self.limit);
        let (mut ours, mut docker) = (Figures::default(), Figures::default());
        for _ in 0..rounds {
            lose()?;
            let start = Instant::now();
            let load = |path: &String| cmd("docker", &["load", "--quiet", "--input", path]).run(self.limit);
            let loaded = side_by_side(archives.len(), archives.iter().collect(), load);
            loaded.into_iter().try_for_each(|one| one.map(drop))?;
            docker.push(start.elapsed().as_secs_f64() * 1e3);
            for image in self.good.images.values() {
                cmd("docker", &["rmi", &image.id]).run(self.limit)?;
            }
            self.rehearsal.go_back(&["rollback", "--to", &self.good.id, "--budget", "1h"], false)?;
            ours.push(self.took("load-images")?);
        }
        Ok((ours, docker))
    }

    /// How many milliseconds a step of the newest run took.
    fn took(&self, step: &str) -> Result<f64> {
        let (_, run) = self.rehearsal.session.pilot.state.every_run()?.pop().context("there is no run")?;
        let text = files::read_text(&run.journal())?;
        let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let done = |event: &Value| event["action"]["step"] == step && event["progress"] == "done";
        let event = events.find(done).with_context(|| format!("the run has no step {step}"))?;
        event["took_ms"].as_f64().context("a step without its time")
    }
}

fn nowhere(from: &mut dyn std::io::Read) -> Result<u64> {
    Ok(std::io::copy(from, &mut std::io::sink())?)
}

/// Makes the second version of the image of a service: the first one with this many MB more.
fn add(
    rehearsal: &Rehearsal,
    service: &str,
    (from, to): (&str, &str),
    mb: u64,
    limit: Deadline,
) -> Result<()> {
    let scratch = Scratch::new("large")?;
    let name = rehearsal.session.pilot.image_name(service);
    let copy = if mb > 0 { format!("COPY data /data-{to}\n") } else { String::new() };
    let text = format!("FROM {name}:{from}\nENV {}={to}\n{copy}", names::VERSION);
    files::write(&scratch.path().join("Dockerfile"), text.as_bytes(), files::Mode::Plain)?;
    if mb > 0 {
        let bytes = format!("{mb}000000");
        let data = scratch.path().join("data");
        cmd("head", &["--bytes", &bytes, "/dev/urandom"]).run_into(&mut File::create(&data)?, limit)?;
    }
    let build: Cmd = cmd("docker", &["build", "--quiet", "--tag", &format!("{name}:{to}"), "."]);
    build.dir(scratch.path()).env("DOCKER_BUILDKIT", "0").run(limit).map(drop)
}
