//! What the benchmark compares with: other images and settings that are deployed by hand, and plain Compose.
//! Called by the other files of `bench`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::proc::{Cmd, cmd};
use crate::checks::health::wait_healthy;
use crate::deploy::session::Session;
use crate::rehearsal::{PART, Rehearsal, copy_files};
use crate::release::description::{Image, Release};
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

/// Plain Compose waits for the next health check: here they are as often as in the default project.
pub const OFTEN: &[(&str, &str)] = &[("HEALTH_INTERVAL", "1s")];

/// How many milliseconds a command takes.
pub fn timed(command: Cmd) -> Result<f64> {
    let start = Instant::now();
    command.run(Deadline::after(PART))?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Deploys this by hand on the pilot, and waits until it is steady.
pub fn broken(
    rehearsal: &Rehearsal,
    images: BTreeMap<String, Image>,
    settings: &[(&str, &str)],
) -> Result<()> {
    rehearsal.deploy_by_hand(images, settings)?;
    wait_ready(rehearsal)
}

/// Waits until every service answers that it is healthy.
pub fn wait_ready(rehearsal: &Rehearsal) -> Result<()> {
    let session = &rehearsal.session;
    let view = session.running(Deadline::after(session.pilot.manifest.limits.engine))?;
    let target = view.target()?;
    let ready = Deadline::after(session.pilot.manifest.limits.ready);
    wait_healthy(&target, ready)
        .map(drop)
        .map_err(|error| fail(Exit::NotRestored, format!("{error:#}"), "docker ps"))
}

/// Writes the images of a release as archives that plain Docker loads. Returns their paths.
pub fn archives(session: &Session, release: &Release, to: &Path) -> Result<Vec<String>> {
    let archive = |(service, image): (&String, &Image)| -> Result<String> {
        let path = to.join(format!("{service}.image.tar"));
        let mut file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        std::io::copy(&mut session.store.open(image)?, &mut file)?;
        Ok(path.display().to_string())
    };
    release.images.iter().map(archive).collect()
}

/// Plain Compose on the files that were deployed by hand, with the present env file.
pub fn compose(rehearsal: &Rehearsal, words: &[&str]) -> Result<Cmd> {
    let dir = rehearsal.by_hand();
    copy_files(&rehearsal.session.pilot, &dir)?;
    Ok(cmd("docker", &["compose"]).args(compose_words(&dir, &rehearsal.session.pilot)).args(words))
}

/// The options of Compose for the files in a folder.
pub fn compose_words(dir: &Path, pilot: &Pilot) -> [String; 6] {
    let Pilot { project, layout, .. } = pilot;
    let path = |name: &String| dir.join(name).display().to_string();
    let (file, env) = (path(&layout.compose[0]), layout.env.as_ref().map(path).unwrap_or_default());
    ["--project-name".into(), project.clone(), "--file".into(), file, "--env-file".into(), env]
}
