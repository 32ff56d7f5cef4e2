//! The floor of the benchmark: what the engine itself needs to run other containers. They are made beforehand,
//! and stopped and started side by side, through the engine's own interface. Called by `bench`.

use crate::base::deadline::Deadline;
use crate::base::proc::cmd;
use crate::base::threads::side_by_side;
use crate::engine::roles::Extent;
use crate::rehearsal::bench::by_hand::{compose_words, wait_ready};
use crate::rehearsal::{PART, Rehearsal};
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Instant;

/// Milliseconds from the first stop until every service answers again. The containers of the images that the
/// tags name now take the place of those that run. They are removed again.
pub fn measure(rehearsal: &Rehearsal) -> Result<f64> {
    let session = &rehearsal.session;
    let pilot = Pilot { project: format!("{}-floor", session.pilot.project), ..session.pilot.clone() };
    let compose = |words: &[&str]| {
        let files = compose_words(&rehearsal.by_hand(), &pilot);
        cmd("docker", &["compose"]).args(files).args(words).run(Deadline::after(PART))
    };
    let measured = compose(&["up", "--no-start", "--no-build", "--pull", "never"])
        .and_then(|_| swap(&containers(&rehearsal.session.pilot.project)?, &containers(&pilot.project)?))
        .and_then(|start| wait_ready(rehearsal).map(|()| start.elapsed().as_secs_f64() * 1e3));
    session.engine.for_stack(&pilot)?.down(Extent::Data, Deadline::after(PART))?;
    measured
}

/// Ids of the containers of a project, by service.
fn containers(project: &str) -> Result<BTreeMap<String, String>> {
    let filter = format!("label=com.docker.compose.project={project}");
    let format = "{{.Label \"com.docker.compose.service\"}} {{.ID}}";
    let listed = cmd("docker", &["ps", "--all", "--filter", &filter, "--format", format]);
    let listed = listed.run(Deadline::after(PART))?;
    Ok(listed.lines().filter_map(|l| l.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
}

/// Stops the container of each service and starts the other one. Returns when it began.
fn swap(running: &BTreeMap<String, String>, made: &BTreeMap<String, String>) -> Result<Instant> {
    let socket = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
    let socket = socket.strip_prefix("unix://").context("the floor needs a Docker on a local socket")?;
    let post = |path: &str| {
        let url = format!("http://docker/containers/{path}");
        let words =
            ["--silent", "--show-error", "--fail", "--unix-socket", socket, "--request", "POST", &url];
        cmd("curl", &words).run(Deadline::after(PART))
    };
    let pairs = made.iter().map(|(service, new)| Ok((running.get(service).context("it does not run")?, new)));
    let pairs: Vec<(&String, &String)> = pairs.collect::<Result<_>>()?;
    let start = Instant::now();
    let swapped = side_by_side(pairs.len(), pairs, |(old, new)| {
        post(&format!("{old}/stop?t=0")).and_then(|_| post(&format!("{new}/start")))
    });
    swapped.into_iter().try_for_each(|one| one.map(drop))?;
    Ok(start)
}
