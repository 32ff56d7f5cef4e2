//! What a receiver of `[notify]` costs that hangs, answers 500 or is gone: a rollback with it, against the same rollback
//! without any. Called by
//! `bench`.

use crate::base::files::{self, Mode};
use crate::base::output::Output;
use crate::engine::roles::Kind;
use crate::operations::candidate::Source;
use crate::operations::{notify, up};
use crate::rehearsal::Rehearsal;
use crate::rehearsal::bench::by_hand::{broken, timed};
use crate::rehearsal::bench::row::{Figures, Row};
use crate::stack::manifest::MANIFEST_FILE;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

/// The version of the release.
const GOOD: &str = "v1.0.0";

/// A rollback takes less than a second here, and what is measured is a few milliseconds.
const OFTENER: usize = 5;

/// Adds the row. The time is that of the whole process.
pub fn measure(real: &Pilot, rounds: usize, out: Output, rows: &mut Vec<Row>) -> Result<()> {
    let tree = files::Scratch::new("receiver")?;
    // Connections are made, and nobody ever answers.
    let receiver = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    let pack = tree.path().join("pilot-deploy");
    let example = real.manifest.env_example.iter();
    for name in real
        .layout
        .compose
        .iter()
        .chain(&real.manifest.extra_files)
        .chain(&real.manifest.seed_file)
        .chain(example)
    {
        files::copy(&real.pack.join(name), &pack.join(name), Mode::Plain)?;
    }
    let text = files::read_text(&real.pack.join(MANIFEST_FILE))?;
    let port = receiver.local_addr()?.port();
    let text = format!("{text}\n[notify]\nwebhook = \"http://127.0.0.1:{port}/\"\n");
    files::write(&pack.join(MANIFEST_FILE), text.as_bytes(), Mode::Plain)?;
    let rehearsal = Rehearsal::prepare(real, &pack, Some(Kind::Process), out, false)?;
    rehearsal.images(GOOD, "")?;
    rehearsal.deploy(&up::Options { source: Source::Tag(GOOD), ..up::Options::default() })?;
    let good = rehearsal.session.store.current()?.context("the good release is not recorded")?;
    let bad = rehearsal.session.pilot.manifest.drill.pairs();
    ensure!(!bad.is_empty(), "pilot.toml has no settings in [drill]");
    let mut compare = |what| {
        let (mut with, mut without) = (Figures::default(), Figures::default());
        for _ in 0..rounds * OFTENER {
            broken(&rehearsal, good.images.clone(), &bad)?;
            with.push(timed(rehearsal.command(&["rollback"])?.env(notify::REHEARSED, "1"))?);
            broken(&rehearsal, good.images.clone(), &bad)?;
            without.push(timed(rehearsal.command(&["rollback"])?)?);
        }
        let against = Some(("the same without a receiver", without));
        rows.push(Row { what, ours: with, unit: "ms", against, reach: Some(1.1) });
        anyhow::Ok(())
    };
    compare("rollback A, a receiver hangs")?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| refuse(&receiver, &over));
        let compared = compare("rollback A, it answers 500");
        over.store(true, Ordering::SeqCst);
        // Wakes it, so that it sees this.
        TcpStream::connect(("127.0.0.1", port)).ok();
        compared
    })?;
    drop(receiver);
    compare("rollback A, it is gone")
}

/// Answers every request with 500 until it is over.
fn refuse(receiver: &TcpListener, over: &AtomicBool) {
    for stream in receiver.incoming() {
        if over.load(Ordering::SeqCst) {
            return;
        }
        // Whoever has given up meanwhile gets nothing.
        let answer = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.and_then(|mut stream| stream.write_all(answer)).ok();
    }
}
