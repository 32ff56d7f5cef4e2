//! The part of the benchmark on the nodes of a Swarm: the pilot with two replicas of each service, compared with
//! `rollback` of each service by docker itself. A node is lost only in a lab of `scripts/swarm-lab`, where nothing else
//! runs. Called by `bench`.

use crate::base::deadline::{Deadline, for_bytes};
use crate::base::files::{self, Mode, Scratch};
use crate::base::output::Output;
use crate::base::proc::cmd;
use crate::base::threads::side_by_side;
use crate::engine::carry;
use crate::engine::roles::Kind;
use crate::engine::swarm::by_hand::ByHand;
use crate::operations::candidate::Source;
use crate::operations::up;
use crate::rehearsal::bench::by_hand::{OFTEN, broken, wait_ready};
use crate::rehearsal::bench::row::{Figures, Row};
use crate::rehearsal::{PART, Rehearsal};
use crate::release::description::{Image, Release};
use crate::stack::manifest::MANIFEST_FILE;
use crate::stack::model::{Health, Instance};
use crate::stack::names;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::File;
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The version of the good release.
const GOOD: &str = "v1.0.0";

/// How many replicas each service has.
const REPLICAS: usize = 2;

/// The image that is carried to other nodes, and what differs in it, in MB.
const LARGE: u64 = 1000;
const CHANGED: u64 = 1;

/// The pause between two looks at services that are rolled back by docker.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a rollback is begun if a node is lost in its middle: it is run again as it says.
const TRIES: usize = 5;

/// Error (exit 2): the docker client does not go to a manager of a Swarm.
pub fn check(pilot: &Pilot) -> Result<()> {
    ByHand::new(pilot, Deadline::after(pilot.manifest.limits.engine)).map(drop)
}

/// Adds the rows.
pub fn measure(real: &Pilot, rounds: usize, quiet: &dyn Fn() -> Output, rows: &mut Vec<Row>) -> Result<()> {
    let tree = Scratch::new("nodes")?;
    let pack = tree.path().join("pilot-deploy");
    write_pack(real, &pack)?;
    let rehearsal = Rehearsal::prepare(real, &pack, Some(Kind::Swarm), quiet(), false)?;
    rehearsal.set(OFTEN)?;
    rehearsal.images(GOOD, "")?;
    rehearsal.deploy(&up::Options { source: Source::Tag(GOOD), ..up::Options::default() })?;
    let good = rehearsal.session.store.current()?.context("the good release is not recorded")?;
    let pilot = rehearsal.session.pilot.clone();
    let by_hand = ByHand::new(&pilot, Deadline::after(PART))?;
    let nodes = Nodes { rehearsal, good, by_hand };
    let ours = nodes.rollbacks(rounds, rows)?;
    nodes.loss(real, rounds, ours, rows)?;
    nodes.carrying(rounds, rows)
}

/// The files of the pilot, with two replicas of each service.
fn write_pack(real: &Pilot, pack: &Path) -> Result<()> {
    let manifest = &real.manifest;
    let plain = real.layout.compose.iter().chain(&manifest.extra_files).chain(&manifest.seed_file);
    for name in plain.chain(&manifest.env_example) {
        files::copy(&real.pack.join(name), &pack.join(name), Mode::Plain)?;
    }
    let service = "x-service: &service\n";
    let replicas = format!("{service}  deploy: {{ replicas: {REPLICAS} }}\n");
    let compose = real.layout.compose[0].as_str();
    // Each engine has a store of its own, so the scenario is given to each.
    for (name, from, to) in
        [(compose, service, replicas.as_str()), (MANIFEST_FILE, names::SEED_ONE, names::SEED_EACH)]
    {
        let text = files::read_text(&real.pack.join(name))?;
        ensure!(text.contains(from), "{name} has no {from:?}");
        files::write(&pack.join(name), text.replacen(from, to, 1).as_bytes(), Mode::Plain)?;
    }
    Ok(())
}

/// The pilot on the nodes.
struct Nodes<'a> {
    rehearsal: Rehearsal,
    good: Release,
    by_hand: ByHand<'a>,
}

impl Nodes<'_> {
    /// Whole-stack rollbacks of a version. Returns ours, in milliseconds.
    fn rollbacks(&self, rounds: usize, rows: &mut Vec<Row>) -> Result<Figures> {
        let (mut ours, mut gates) = (Figures::default(), Figures::default());
        let (mut waited, mut quick) = (Figures::default(), Figures::default());
        for round in 0..rounds {
            let other = self.rehearsal.images(&format!("v8.0.{round}"), "")?;
            broken(&self.rehearsal, other.clone(), &[])?;
            let finished = self.rehearsal.go_back(&["rollback"], false)?;
            let missing = || finished.error.clone().unwrap_or_else(|| "the rollback measured nothing".into());
            gates.push(finished.gate_closed_ms.with_context(missing)? as f64);
            ours.push(finished.restored_ms.with_context(missing)? as f64);
            broken(&self.rehearsal, other.clone(), &[])?;
            waited.push(self.timed(|| self.by_hand.roll_back(false, Deadline::after(PART)))?);
            // The settings of the services that run count, so those are quick too before they are replaced.
            self.by_hand.make_quick(Deadline::after(PART))?;
            self.by_hand.replace(&other, Deadline::after(PART))?;
            wait_ready(&self.rehearsal)?;
            quick.push(self.timed(|| self.by_hand.roll_back(true, Deadline::after(PART)))?);
        }
        let row = |name, against, reach| {
            let (what, ours) = ("rollback B, 3 × 2 replicas", ours.clone());
            Row { what, ours, unit: "ms", against: Some((name, against)), reach: Some(reach) }
        };
        rows.push(row("rollback by docker, waited for", waited, 0.4));
        rows.push(row("the same, quickest settings", quick, 0.9));
        rows.push(Row::plain("gate closed on each replica", gates, "ms", 150.0));
        Ok(ours)
    }

    /// Milliseconds until every task is one of the good release and healthy.
    fn timed(&self, roll_back: impl FnOnce() -> Result<()>) -> Result<f64> {
        let begun = Instant::now();
        roll_back()?;
        let engine = &self.rehearsal.session.engine;
        let waited = Deadline::after(PART).poll(PAUSE, || match engine.services(Deadline::after(PART)) {
            Ok(services) => {
                let is_well = |one: &Instance| matches!(one.health, Some(Health::Healthy { .. }));
                let is_back = |(name, image): (&String, &Image)| {
                    services.get(name).is_some_and(|service| {
                        service.0.len() == REPLICAS
                            && service.has_image(&image.id)
                            && service.is_running()
                            && service.0.iter().all(is_well)
                    })
                };
                let open = self.good.images.iter().find(|one| !is_back(*one));
                open.map_or(Break(Ok(())), |(name, _)| Continue(anyhow!("docker has not rolled {name} back")))
            }
            Err(error) => Break(Err(error)),
        });
        waited.flatten()?;
        wait_ready(&self.rehearsal)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// A node that has tasks, and is not the one of the client, is lost in the middle of a rollback.
    fn loss(&self, real: &Pilot, rounds: usize, without: Figures, rows: &mut Vec<Row>) -> Result<()> {
        let out = &self.rehearsal.session.out;
        let limit = || Deadline::after(PART);
        let nodes = self.by_hand.other_nodes(limit())?;
        let node = nodes.first().context("the Swarm has one node")?;
        let Some((lab, number)) = self.lab_of(node)? else {
            out.note(format!("no node is lost here: {node} is none of a lab of scripts/swarm-lab"));
            return Ok(());
        };
        let script = |act: &str| {
            let (script, lab) = (real.root.join("scripts/swarm-lab"), lab.display().to_string());
            let words = [script.display().to_string(), act.to_owned(), lab, number.clone()];
            cmd("bash", &words.each_ref().map(String::as_str)).run(limit())
        };
        let (middle, mut with) = (without.median() / 2e3, Figures::default());
        for round in 0..rounds {
            let other = self.rehearsal.images(&format!("v7.0.{round}"), "")?;
            broken(&self.rehearsal, other, &[])?;
            let begun = Instant::now();
            let restored = std::thread::scope(|scope| {
                let lost = scope.spawn(|| {
                    std::thread::sleep(Duration::from_secs_f64(middle));
                    script("lose")
                });
                let restored = self.restored(begun);
                match lost.join() {
                    Ok(lost) => lost.and(restored),
                    Err(_) => bail!("the thread that loses a node has panicked"),
                }
            });
            script("back")?;
            with.push(restored?);
            let joined = limit().poll(PAUSE, || match self.by_hand.are_ready(limit()) {
                Ok(false) => Continue(anyhow!("{node} does not come back")),
                other => Break(other.map(drop)),
            });
            joined.flatten()?;
        }
        let against = Some(("the same without loss", without));
        let what = "a node lost in the middle";
        rows.push(Row { what, ours: with, unit: "ms", against, reach: Some(2.5) });
        Ok(())
    }

    /// Milliseconds until a rollback has restored the release. One that ends before that is begun again, as it says.
    fn restored(&self, begun: Instant) -> Result<f64> {
        let mut last = anyhow!("it was not begun");
        for _ in 0..TRIES {
            let at = begun.elapsed().as_secs_f64() * 1e3;
            match self.rehearsal.go_back(&["rollback"], false) {
                Ok(finished) => match finished.restored_ms {
                    Some(ms) => return Ok(at + ms as f64),
                    None => {
                        last = anyhow!("{}", finished.error.unwrap_or_else(|| "it measured nothing".into()))
                    }
                },
                Err(error) => last = error,
            }
        }
        Err(last.context("no rollback restored the release after a node was lost"))
    }

    /// The folder of the lab that a node belongs to, and its number there.
    fn lab_of(&self, node: &str) -> Result<Option<(PathBuf, String)>> {
        let Some(own) = self.by_hand.folder_of(node, Deadline::after(PART))? else { return Ok(None) };
        let number = own.file_name().map(|name| name.display().to_string()).unwrap_or_default();
        let lab = own.parent().map(Path::to_path_buf).filter(|lab| lab.join("swarm-lab").exists());
        Ok(lab.map(|lab| (lab, number)))
    }

    /// An image of which the nodes have all but a little, against an image that has just that.
    fn carrying(&self, rounds: usize, rows: &mut Vec<Row>) -> Result<()> {
        let session = &self.rehearsal.session;
        let limit = || Deadline::after(for_bytes(PART, 20 * LARGE * 1_000_000));
        let name = format!("{}-large", session.pilot.project);
        let nodes = self.by_hand.other_nodes(limit())?;
        let made = |tag: String, id: String| Image::new(id.trim().to_owned(), tag);
        let base = format!("{name}:base");
        // As `up` does: what is brought to other nodes is in the store.
        let saved =
            |image| carry::save_image(&image, session.engine.as_ref(), &session.store, limit().left());
        let first =
            saved(made(base.clone(), add(&self.good.images[session.pilot.gateway()].id, &base, LARGE)?))?;
        session.engine.bring(std::slice::from_ref(&first), limit())?;
        let (mut ours, mut bare, mut read) = (Figures::default(), Figures::default(), Figures::default());
        for round in 0..rounds {
            let tag = format!("{name}:{round}");
            let image = made(tag.clone(), add(&base, &tag, CHANGED)?);
            let begun = Instant::now();
            let image = saved(image)?;
            read.push(begun.elapsed().as_secs_f64() * 1e3);
            let begun = Instant::now();
            session.engine.bring(std::slice::from_ref(&image), limit())?;
            ours.push(begun.elapsed().as_secs_f64() * 1e3);
            let small = format!("{name}:small{round}");
            add("scratch", &small, CHANGED)?;
            let begun = Instant::now();
            let copied = side_by_side(nodes.len(), nodes.iter().collect(), |node| {
                self.by_hand.copy(&small, node, limit())
            });
            copied.into_iter().collect::<Result<Vec<()>>>()?;
            bare.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        self.forget(&name, &nodes)?;
        let row = |what, ours, reach| {
            let against = Some(("1 MB by docker save and load", bare.clone()));
            Row { what, ours, unit: "ms", against, reach }
        };
        rows.push(row("1 MB of 1 GB to other nodes", ours, Some(5.0)));
        rows.push(row("reading it into the store before", read, None));
        Ok(())
    }

    /// Removes the images that were made here from every node.
    fn forget(&self, name: &str, nodes: &[String]) -> Result<()> {
        let ways = nodes.iter().map(|node| vec!["--context".to_owned(), node.clone()]).chain([Vec::new()]);
        for way in ways {
            let docker =
                |words: &[&str]| cmd("docker", &[]).args(&way).args(words).run(Deadline::after(PART));
            let all = docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", name])?;
            for tag in all.lines() {
                docker(&["rmi", tag])?;
            }
        }
        // Those tags that keep them on their nodes.
        let keep: Vec<String> = self.good.images.values().map(|image| image.id.clone()).collect();
        self.rehearsal.session.engine.forget(&keep, Deadline::after(PART)).map(drop)
    }
}

/// Makes an image: another one with so many MB of random data more. Returns its id.
fn add(from: &str, tag: &str, mb: u64) -> Result<String> {
    let scratch = Scratch::new("large")?;
    let limit = Deadline::after(for_bytes(PART, 20 * mb * 1_000_000));
    let text = format!("FROM {from}\nCOPY data /data-{mb}\n");
    files::write(&scratch.path().join("Dockerfile"), text.as_bytes(), Mode::Plain)?;
    let bytes = format!("{mb}000000");
    let data = scratch.path().join("data");
    cmd("head", &["--bytes", &bytes, "/dev/urandom"]).run_into(&mut File::create(&data)?, limit)?;
    let build = cmd("docker", &["build", "--quiet", "--tag", tag, "."]).dir(scratch.path());
    build.env("DOCKER_BUILDKIT", "0").run(limit)
}
