//! The part of the benchmark with many services: the pilot, with more services of the role `jobs`. Called by
//! `bench`.

use crate::base::deadline::Deadline;
use crate::base::files::{self, Mode};
use crate::base::output::Output;
use crate::engine::roles::Kind;
use crate::operations::candidate::Source;
use crate::operations::up;
use crate::rehearsal::bench::by_hand::{broken, compose, timed, wait_ready};
use crate::rehearsal::bench::row::{Figures, Row};
use crate::rehearsal::{PART, Rehearsal};
use crate::stack::manifest::MANIFEST_FILE;
use crate::stack::names;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Instant;

/// How many services there are in all.
const SERVICES: usize = 30;

/// The version of the good release.
const GOOD: &str = "v1.0.0";

/// Adds the rows for a stack of many services.
pub fn measure(real: &Pilot, rounds: usize, out: Output, rows: &mut Vec<Row>) -> Result<()> {
    let tree = files::Scratch::new("many")?;
    write_tree(real, tree.path())?;
    let rehearsal =
        Rehearsal::prepare(real, &tree.path().join("pilot-deploy"), Some(Kind::Compose), out, false)?;
    rehearsal.images(GOOD, "")?;
    rehearsal.deploy(&up::Options { source: Source::Tag(GOOD), ..up::Options::default() })?;
    let session = &rehearsal.session;
    let good = session.store.current()?.context("the good release is not recorded")?;
    ensure!(good.images.len() == SERVICES, "the release has {} services", good.images.len());
    let (mut ours, mut gates, mut bare) = (Figures::default(), Figures::default(), Figures::default());
    for round in 0..rounds {
        let other = rehearsal.images(&format!("v8.0.{round}"), "")?;
        broken(&rehearsal, other.clone(), &[])?;
        let finished = rehearsal.go_back(&["rollback"], false)?;
        let missing = || finished.error.clone().unwrap_or_else(|| "the rollback measured nothing".into());
        gates.push(finished.gate_closed_ms.with_context(missing)? as f64);
        ours.push(finished.restored_ms.with_context(missing)? as f64);
        broken(&rehearsal, other, &[])?;
        session.engine.retag(&good, Deadline::after(PART))?;
        let start = Instant::now();
        timed(compose(&rehearsal, &["up", "--detach", "--timeout", "0"])?)?;
        wait_ready(&rehearsal)?;
        bare.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let against = Some(("docker compose up -d --timeout 0", bare));
    let what = "rollback B, 30 services";
    rows.push(Row { what, ours, unit: "ms", against, reach: Some(1.1) });
    rows.push(Row::plain("gate closed, 30 services", gates, "ms", 120.0));
    Ok(())
}

/// The files of the pilot, with more services.
fn write_tree(real: &Pilot, root: &Path) -> Result<()> {
    let pack = root.join("pilot-deploy");
    let manifest = &real.manifest;
    let plain = manifest.seed_file.iter().chain(&manifest.extra_files);
    for name in plain {
        files::copy(&real.pack.join(name), &pack.join(name), Mode::Plain)?;
    }
    let (mut services, mut volumes, mut entries, mut ports) = Default::default();
    let add = |text: &mut String, more: String| text.push_str(&more);
    for n in manifest.services.len()..SERVICES {
        add(
            &mut services,
            format!(
                "  s{n}:\n    <<: *service\n    image: ${{PILOT_IMAGES}}-s{n}:latest\n    environment:\n      \
                 {}: jobs\n      {}: ${{PILOT_PROJECT}}\n      \
                 {}: 0.0.0.0:3003\n    ports: [\"127.0.0.1:${{S{n}_PORT}}:3003\"]\n    \
                 volumes: [\"s{n}_data:/data\"]\n\n",
                names::ROLE,
                names::OWNER,
                names::LISTEN,
            ),
        );
        add(&mut volumes, format!("  s{n}_data:\n"));
        add(
            &mut entries,
            format!("[[services]]\nname = \"s{n}\"\nport = \"S{n}_PORT\"\nvolume = \"s{n}_data\"\n\n"),
        );
        add(&mut ports, format!("S{n}_PORT=1\n"));
    }
    let compose = real.layout.compose[0].as_str();
    let example = manifest.env_example.as_deref().context("the manifest has no env_example")?;
    for (name, mark, more) in [
        (compose, "\nservices:\n", &services),
        (compose, "\nvolumes:\n", &volumes),
        (MANIFEST_FILE, "\n[gate]\n", &entries),
        (example, "", &ports),
    ] {
        let (from, to) = (real.pack.join(name), pack.join(name));
        let text = files::read_text(if to.exists() { &to } else { &from })?;
        let (before, after) = text.split_once(mark).with_context(|| format!("{name} has no {mark:?}"))?;
        // In a manifest, the part begins after what is added; elsewhere before it.
        let text = match name {
            MANIFEST_FILE => format!("{before}\n{more}{}{after}", mark.trim_start()),
            _ => format!("{before}{mark}{more}{after}"),
        };
        files::write(&to, text.as_bytes(), Mode::Plain)?;
    }
    Ok(())
}
