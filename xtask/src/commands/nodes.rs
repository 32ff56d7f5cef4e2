//! `nodes`: the machines of an engine that has several, with what is on each of them, and `nodes sync`, which gives every
//! node the images that it lacks, and lets services run there.

use crate::base::count::count;
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::base::screen;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use crate::release::description::Image;
use crate::stack::model::Node;
use anyhow::Result;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// `cargo xtask nodes`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask nodes --engine swarm\n  cargo xtask nodes sync --engine swarm"
)]
pub struct Args {
    /// What to do with them [default: show them]
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Give every node that takes tasks the images of the known-good releases that it lacks, and let services run where they
    /// were kept off while a node was lost
    Sync,
}

impl Args {
    /// What it is called if it changes something.
    pub fn changes(&self) -> Option<&'static str> {
        self.action.as_ref().map(|Action::Sync| "nodes sync")
    }
}

/// Exit 0 if every node is ready and has the images of the release that runs, else 4.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let limits = &session.pilot.manifest.limits;
    let wanted = images(session)?;
    if args.action.is_some() {
        let _lock = session.lock("nodes sync")?;
        let _shown = screen::doing("bring images to the nodes");
        let wanted: Vec<Image> = wanted.values().cloned().collect();
        let remark = session.engine.bring(&wanted, Deadline::after(limits.deploy))?;
        remark.into_iter().for_each(|remark| session.out.note(remark));
    }
    let ids: BTreeSet<String> = wanted.into_keys().collect();
    let deadline = Deadline::after(limits.engine);
    let nodes = session.engine.nodes(&ids, deadline)?;
    if nodes.is_empty() {
        let what = format!(
            "the engine {} has no nodes: its stack is on one machine",
            session.engine.kind().as_str()
        );
        return Err(fail(Exit::Usage, what, "run the command with --engine swarm, at a manager of a Swarm"));
    }
    if let (Some(_), Some(release)) = (&args.action, session.store.current()?) {
        session.by(&release)?.engine.retag(&release, Deadline::after(limits.engine))?;
    }
    let out = &session.out;
    out.event(&Event::Result { value: &json!({ "nodes": nodes }) });
    for node in &nodes {
        let (ok, line) = told(node, ids.len());
        out.say(out.marked(Some(ok), &line));
        node.services.iter().for_each(|service| out.say(format!("    {service}")));
    }
    let Some(lacking) = nodes.iter().find(|node| !told(node, ids.len()).0) else {
        let all = count(nodes.len(), "node");
        out.verdict(out.marked(Some(true), &format!("{all}: each is ready and has every image")));
        return Ok(Finished::plain(Exit::Ok));
    };
    let error = Some(format!("{} is not ready, or lacks images", lacking.name));
    let next = Next::xtask("nodes sync").so("once it is reached");
    Ok(Finished { error, ..Finished::plain(Exit::Host) }.then(Some(&next), out.context()))
}

/// The images of every known-good release, by their ids.
fn images(session: &Session) -> Result<BTreeMap<String, Image>> {
    let releases = session.store.known_good()?;
    let all = releases.into_iter().flat_map(|release| release.images.into_values());
    Ok(all.map(|image| (image.id.clone(), image)).collect())
}

/// Is all well with a node, and the line that says what is there?
fn told(node: &Node, wanted: usize) -> (bool, String) {
    let Node { name, state, availability, manager, address, images, memory_bytes, free_bytes, .. } = node;
    let role = manager.as_ref().map_or("worker".to_owned(), |word| format!("manager, {word}"));
    let at = address.map_or_else(|| "no address".to_owned(), |ip| ip.to_string());
    let images_told = match images {
        Observed::Known(own) => format!("{own} of {wanted} images"),
        Observed::Unknown(why) => format!("images unknown: {why}"),
    };
    let bytes = |of: &Observed<u64>| of.known().map_or("unknown".to_owned(), |bytes| files::human(*bytes));
    let is_well = state == "ready" && (availability != "active" || images.known() == Some(&wanted));
    let line = format!(
        "{name:<12} {state}, {availability}, {role}; {at}; {images_told}; memory {}, disk free {}",
        bytes(memory_bytes),
        bytes(free_bytes)
    );
    (is_well, line)
}
