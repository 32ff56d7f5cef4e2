//! `bench`: measures the figures that the project promises. This tool and the alternative are measured in the
//! same run and compared as a ratio, because machines differ. Each row names its goal; a missed goal fails no
//! test. Called by the command `bench`.

mod by_hand;
mod data;
mod floor;
mod large;
mod load;
mod many;
mod nodes;
mod receiver;
mod row;

use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::files;
use crate::base::machine;
use crate::base::output::Output;
use crate::base::proc::{Cmd, cmd};
use crate::base::screen;
use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::engine::roles::Kind;
use crate::rehearsal::bench::by_hand::{OFTEN, archives, broken, compose, compose_words, timed};
use crate::rehearsal::bench::row::{Figures, Row, show};
use crate::rehearsal::{PART, Rehearsal};
use crate::release::description::Release;
use crate::stack::lease;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Instant;

/// A part of the benchmark that is measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// What depends on the size of images and of data, with so many MB of each.
    Large(u64),
    /// What happens on the nodes of the Swarm that the docker client goes to.
    Nodes,
}

/// Measures everything but these parts `rounds` times, or only one of them; exit code 1 if a goal is not reached.
pub fn run(rounds: usize, only: Option<Only>, pilot: &Pilot, out: &Output) -> Result<Finished> {
    let quiet = || Output::silent(out.start());
    let mut reached = true;
    // Each part takes minutes, so its rows are shown when it is over.
    let mut part = |name: &str, measure: &dyn Fn(&mut Vec<Row>) -> Result<()>| {
        out.say(format!("\n{name} …"));
        let _shown = screen::doing(format!("measure {name}"));
        let mut rows = Vec::new();
        measure(&mut rows)?;
        reached &= show(out, &rows);
        Ok::<_, anyhow::Error>(())
    };
    if only == Some(Only::Nodes) {
        nodes::check(pilot)?;
        part("rollbacks on the nodes of a Swarm", &|rows| nodes::measure(pilot, rounds, &quiet, rows))?;
        return Ok(Finished::plain(if reached { Exit::Ok } else { Exit::NotRestored }));
    }
    if let Some(Only::Large(mb)) = only {
        let name = format!("three images of {mb} MB on Docker");
        part(&name, &|rows| large::measure(pilot, rounds, mb, &quiet, rows))?;
        let name = format!("a volume of {mb} MB and a log of {} MB on Docker", mb / 2);
        part(&name, &|rows| data::measure(pilot, rounds, mb, quiet(), rows))?;
        return Ok(Finished::plain(if reached { Exit::Ok } else { Exit::NotRestored }));
    }
    part("rollbacks on Docker", &|rows| {
        docker(&Rehearsal::with(pilot, Some(Kind::Compose), quiet(), OFTEN)?, rounds, rows)
    })?;
    part("30 services on Docker", &|rows| many::measure(pilot, rounds, quiet(), rows))?;
    part("1,000 streams on local processes", &|rows| {
        load::measure(&Rehearsal::begin(pilot, Some(Kind::Process), quiet(), false)?, rows)
    })?;
    part("a receiver in trouble, on local processes", &|rows| {
        receiver::measure(pilot, rounds, quiet(), rows)
    })?;
    part("xtask itself", &|rows| itself(pilot, rounds, rows))?;
    Ok(Finished::plain(if reached { Exit::Ok } else { Exit::NotRestored }))
}

/// Rollbacks, compared with plain Compose and with the old runbook.
fn docker(rehearsal: &Rehearsal, rounds: usize, rows: &mut Vec<Row>) -> Result<()> {
    let session = &rehearsal.session;
    let good = session.store.current()?.context("the good release is not recorded")?;
    let bad_env = session.pilot.manifest.drill.pairs();
    let mut gates = Figures::default();
    let mut ours = |images, settings| -> Result<f64> {
        broken(rehearsal, images, settings)?;
        let finished = rehearsal.go_back(&["rollback"], false)?;
        let missing = || finished.error.clone().unwrap_or_else(|| "the rollback measured nothing".into());
        gates.push(finished.gate_closed_ms.with_context(missing)? as f64);
        Ok(finished.restored_ms.with_context(missing)? as f64)
    };
    let bare = |images| -> Result<f64> {
        broken(rehearsal, images, &[])?;
        session.engine.retag(&good, Deadline::after(PART))?;
        timed(compose(rehearsal, &["up", "--detach", "--wait"])?)
    };
    let book = |images, settings, script| -> Result<f64> {
        broken(rehearsal, images, settings)?;
        let took = timed(runbook(rehearsal, &good, script)?)?;
        let from = env_of(session, &good)?;
        files::copy(&from, &session.pilot.env_path, files::Mode::Private)?;
        Ok(took)
    };
    let floor = |images| -> Result<f64> {
        broken(rehearsal, images, &[])?;
        session.engine.retag(&good, Deadline::after(PART))?;
        floor::measure(rehearsal)
    };
    let (mut b_floor, mut same) = (Figures::default(), Figures::default());
    let (mut b, mut b_bare, mut b_book) = (Figures::default(), Figures::default(), Figures::default());
    let (mut deaf, mut deaf_bare) = (Figures::default(), Figures::default());
    let (mut a, mut a_book) = (Figures::default(), Figures::default());
    for round in 0..rounds {
        let other = rehearsal.images(&format!("v8.0.{round}"), "")?;
        let ignoring = rehearsal.images(&format!("v9.0.{round}"), "ignore-sigterm")?;
        b.push(ours(other.clone(), &[])?);
        same.push(timed(rehearsal.command(&["up"])?)?);
        b_floor.push(floor(other.clone())?);
        b_bare.push(bare(other.clone())?);
        deaf.push(ours(ignoring.clone(), &[])?);
        // This is always long: it is the sum of the times that services get to stop.
        if round == 0 {
            deaf_bare.push(bare(ignoring)?);
        }
        a.push(ours(good.images.clone(), &bad_env)?);
        a_book.push(book(good.images.clone(), &bad_env, include_str!("runbook-a.sh"))?);
        b_book.push(book(other, &[], include_str!("runbook-b.sh"))?);
    }
    let row = |what, ours: &Figures, name, against, reach| Row {
        what,
        ours: ours.clone(),
        unit: "ms",
        against: Some((name, against)),
        reach,
    };
    let up = "docker compose up -d --wait";
    rows.push(row("rollback B", &b, up, b_bare, Some(0.45)));
    rows.push(row("rollback B", &b, "stop and start by the engine alone", b_floor, Some(1.55)));
    rows.push(row("rollback B, ignores SIGTERM", &deaf, up, deaf_bare, Some(0.15)));
    rows.push(row("rollback A", &a, "runbook A", a_book, None));
    rows.push(row("rollback B", &b, "runbook B", b_book, None));
    rows.push(Row::plain("gate proved closed", gates, "ms", 50.0));
    rows.push(Row::plain("up with nothing changed", same, "ms", 300.0));
    let image = &good.images[session.pilot.gateway()].id;
    rows.push(lock(session, image, rounds)?);
    let size = cmd("docker", &["image", "inspect", "--format", "{{.Size}}", image]);
    let size: f64 =
        size.run(Deadline::after(PART))?.trim().parse().context("docker does not say the size")?;
    rows.push(Row::plain("image of a service", size / 1e6, "MB", 15.0));
    Ok(())
}

/// What each command pays for the lock at the engine, which is in all the times above.
fn lock(session: &Session, image: &str, rounds: usize) -> Result<Row> {
    let (mut ours, mut bare) = (Figures::default(), Figures::default());
    for _ in 0..rounds * 5 {
        let begun = Instant::now();
        drop(session.ledger().lock("bench", lease::USUAL)?);
        ours.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        let create = cmd("docker", &["create", "--network", "none", image, "never-started"]);
        let id = create.run(Deadline::after(PART))?;
        cmd("docker", &["rm", id.trim()]).run(Deadline::after(PART))?;
        bare.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let against = Some(("docker create and docker rm", bare));
    Ok(Row { what: "lock, taken and given back", ours, unit: "ms", against, reach: None })
}

/// The env file of a release.
fn env_of(session: &Session, release: &Release) -> Result<PathBuf> {
    let name = release.layout.env.as_ref().context("the release has no env file")?;
    Ok(session.store.file(&release.id, name))
}

/// A script of the old runbook, on the same files and images.
fn runbook(rehearsal: &Rehearsal, good: &Release, script: &str) -> Result<Cmd> {
    let (session, dir) = (&rehearsal.session, rehearsal.by_hand());
    let pilot = &session.pilot;
    let env_file = env_of(session, good)?;
    // The name that the runbook gives its copy.
    let copy = format!("{}.backup", env_file.file_name().unwrap_or_default().display());
    files::copy(&env_file, &dir.join(copy), files::Mode::Private)?;
    let env = pilot.env()?;
    let archives = archives(session, good, &dir)?;
    let compose = format!("docker compose {}", compose_words(&dir, pilot).join(" "));
    let mut run = cmd("sh", &["-c", script])
        .env("PACK", &dir.display().to_string())
        .env("COMPOSE", &compose)
        .env("IMAGES", &pilot.project)
        .env("ARCHIVES", &archives.join(" "));
    for (service, image) in &good.images {
        let name = service.to_uppercase();
        run = run.env(&format!("{name}_ID"), &image.id);
        run = run.env(&format!("{name}_PORT"), &pilot.port(service, &env)?.unwrap_or_default().to_string());
    }
    Ok(run)
}

/// How long xtask takes before it does anything.
fn itself(pilot: &Pilot, rounds: usize, rows: &mut Vec<Row>) -> Result<()> {
    let me = machine::this_program()?;
    let often = rounds * 10;
    let repeat = |command: &dyn Fn() -> Cmd| -> Result<Figures> {
        command().run(Deadline::after(PART))?;
        (0..often).map(|_| timed(command())).collect()
    };
    let help = repeat(&|| cmd(&me, &["--help"]))?;
    rows.push(Row::plain("xtask --help", help, "ms", 10.0));
    let warm = repeat(&|| cmd("cargo", &["xtask", "--help"]).dir(&pilot.root))?;
    let empty = ["run", "--quiet", "--package", "xtask", "--example", "empty"];
    let empty = repeat(&|| cmd("cargo", &empty).dir(&pilot.root))?;
    let against = Some(("cargo run of an empty program", empty));
    rows.push(Row { what: "cargo xtask --help, warm", ours: warm, unit: "ms", against, reach: Some(1.7) });
    let scratch = files::Scratch::new("cold")?;
    let cold = cmd("cargo", &["build", "--package", "xtask", "--bin", "xtask", "--locked"])
        .dir(&pilot.root)
        .env("CARGO_TARGET_DIR", &scratch.path().display().to_string());
    let seconds = timed(cold)? / 1e3;
    rows.push(Row::plain("cold debug build of xtask", seconds, "s", 30.0));
    Ok(())
}
