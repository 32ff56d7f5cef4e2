//! The nodes of a Swarm, and the way to the Docker engine of each: a context of the docker client that is called as the
//! node, or the engine that the client goes to by itself. Called by the other files of `swarm` and by the command `nodes`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::base::threads::side_by_side;
use crate::engine::compose::api::{Api, Way, is_gone};
use crate::engine::compose::client::Compose;
use crate::engine::compose::daemon::contexts;
use crate::engine::compose::line::{Line, by_labels, status_of};
use crate::engine::swarm::failure::{classify, is_headless};
use crate::engine::swarm::node::{Node, nodes};
use crate::engine::swarm::state::{Seen, has_begun, is_wanted};
use crate::stack::layout::Layout;
use crate::stack::pilot::Pilot;
use crate::stack::ports::connects;
use crate::stack::shelf::Shelf;
use anyhow::{Result, anyhow, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::ControlFlow::{Break, Continue};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many nodes are asked at a time.
pub const AT_A_TIME: usize = 8;

/// How long one node may take to answer, or to say who it is. One that is lost must not hold up an incident.
pub const SAYS: Duration = Duration::from_secs(3);

/// How long another manager may take for an answer: one without a leader asks around first.
const DECIDES: Duration = Duration::from_secs(6);

/// How long the managers may be without a leader before that is taken for a lost majority: they notice the loss of one
/// after ten seconds (swarmkit, `ElectionTick`), and then elect another one, perhaps not at the first try.
const ELECTED: Duration = Duration::from_secs(45);
const AGAIN: Duration = Duration::from_millis(250);

/// The label of the container of a task: the id of its node.
const NODE: &str = "com.docker.swarm.node.id";

/// The ways to nodes by their ids, or why there is none.
pub type Ways = BTreeMap<String, Result<Way, String>>;

/// How long after a node did not answer it is asked again.
const ASKED_AGAIN: Duration = Duration::from_secs(5);

/// What is found out once, and shared by the engines of one command.
#[derive(Default)]
pub struct Found {
    /// The ways, by the id of the node; or why there is none.
    ways: Mutex<Option<(Instant, Arc<Ways>)>>,
    /// Were they asked for ahead?
    asked: AtomicBool,
    /// The manager that answered last.
    manager: Mutex<Option<Way>>,
    /// The containers that were ended through the engines of their nodes, and seen to end. The managers may learn it late.
    pub ended: Mutex<BTreeSet<String>>,
    /// The nodes, by their ids, that could not be given an image that they need: how each is called, and why.
    pub lacking: Mutex<BTreeMap<String, (String, String)>>,
    /// Was an election waited for that did not come?
    gave_up: AtomicBool,
    /// The nodes, by their ids, whose engines were seen to be gone: how each is called, and when.
    pub lost: Mutex<BTreeMap<String, (String, Instant)>>,
    /// What may still serve the public on them, as `Seen::beyond_reach` has it: the Swarm does not list it any more.
    pub behind: Mutex<BTreeSet<String>>,
    /// What of the stack that was resolved last cannot be carried over to a Swarm, and what is different there.
    pub told: Mutex<(Vec<String>, Vec<String>)>,
    /// What Compose makes of the releases that were needed: their folders, by which files, and what it printed.
    pub configs: Mutex<Vec<(PathBuf, Layout, Arc<Value>)>>,
    /// What the image of a service printed when it was run last, by the id of the node and by the mounts. What removes or
    /// replaces data forgets it.
    pub printed: Mutex<BTreeMap<(String, String), String>>,
    /// What runs, as it was seen last: where requests go.
    pub seen: Mutex<Option<(Instant, Arc<Seen>)>>,
}

/// How long a node counts as lost whose engine was seen to be gone. Until then the managers notice by themselves, after 15 to
/// 20 seconds, or it is back.
const LOST: Duration = Duration::from_secs(60);

/// How long a node may take to answer at a port.
const REACHED: Duration = Duration::from_secs(1);

/// A Docker Swarm, for one stack.
#[derive(Clone)]
pub struct Swarm {
    /// The stack.
    pub pilot: Pilot,
    /// What Compose alone understands.
    pub compose: Arc<Compose>,
    /// What was found out.
    pub found: Arc<Found>,
}

impl Swarm {
    /// Errors: those of `Compose::new`. Whether a manager answers is not checked here.
    pub fn new(pilot: &Pilot) -> Result<Self> {
        let compose = Arc::new(Compose::new(pilot)?);
        Ok(Self { pilot: pilot.clone(), compose, found: Arc::default() })
    }

    /// Is the engine of the client a manager of a Swarm that has services or records of the stack?
    pub fn has_stack(&self, deadline: Deadline) -> Result<bool> {
        let api = self.compose.api();
        if api.get("/info", deadline)?.pointer("/Swarm/ControlAvailable") != Some(&Value::Bool(true)) {
            return Ok(false);
        }
        let has = |list: &Value| list.as_array().is_some_and(|all| !all.is_empty());
        let filter = self.filter();
        if has(&self.get(&format!("/services?filters={filter}"), deadline)?) {
            return Ok(true);
        }
        Ok(!self.shelf_of_project().all(deadline)?.is_empty())
    }

    /// The API of an engine.
    pub fn api(&self, way: &Way) -> Api {
        Api { way: way.clone(), ..self.compose.api() }
    }

    /// The label by which everything of the stack is found, as `docker stack` has it.
    pub fn label(&self) -> String {
        format!("{}={}", super::spec::STACK, self.pilot.project)
    }

    /// Asks the managers: the one that answered last, and where it does not answer, or knows no leader, the other nodes of
    /// the same Swarm. An election is waited for, whatever the limit of one question is.
    pub fn ask<T>(&self, deadline: Deadline, talk: impl Fn(&mut Line<'_>) -> Result<T>) -> Result<T> {
        let first = self.found.manager.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = first.unwrap_or_else(|| self.compose.way.clone());
        let error = match self.api(&first).talk(deadline, &talk) {
            Err(error) if is_silent(&error) => error,
            other => return other.map_err(classify),
        };
        let ways: Vec<Way> = self.others(&first).into_iter().chain([first.clone()]).collect();
        // An election that did not come is not waited for again.
        let patience = if self.found.gave_up.load(Relaxed) { Duration::ZERO } else { ELECTED };
        let asked = Deadline::after(patience).poll(AGAIN, || {
            let mut last = None;
            for way in &ways {
                match self.api(way).talk(Deadline::after(DECIDES), &talk) {
                    Err(error) if is_silent(&error) => last = last.or(Some(error)),
                    Ok(answer) => {
                        *self.found.manager.lock().unwrap_or_else(PoisonError::into_inner) =
                            Some(way.clone());
                        return Break(Ok(answer));
                    }
                    Err(error) => return Break(Err(error)),
                }
            }
            // Nobody else is known, and there is no election: nothing changes by itself.
            let last = last.unwrap_or_else(|| anyhow!("no manager answers"));
            if ways.len() == 1 && !is_headless(&last) { Break(Err(last)) } else { Continue(last) }
        });
        asked.flatten().map_err(|last| {
            self.found.gave_up.store(true, Relaxed);
            classify(if is_headless(&last) { last } else { error })
        })
    }

    /// The ways to the other nodes of the same Swarm. A context may lead to another Swarm, with another stack of the same
    /// name; so the first manager must have said which nodes there are. One that has lost its leader still says which other
    /// managers there were; of one that is gone nothing is known.
    fn others(&self, first: &Way) -> Vec<Way> {
        let limit = Deadline::after(DECIDES);
        let known = self.known_ways().unwrap_or_default();
        let mut ways: Vec<Way> = known.values().flatten().filter(|way| *way != first).cloned().collect();
        if !known.is_empty() && known.values().all(Result::is_ok) {
            return ways;
        }
        let Ok(info) = self.api(first).get("/info", limit) else { return ways };
        let managers = info.pointer("/Swarm/RemoteManagers").and_then(Value::as_array);
        let ids: Vec<&str> =
            managers.into_iter().flatten().filter_map(|one| one["NodeID"].as_str()).collect();
        let contexts = contexts().into_iter().map(|(name, address)| Way::context(&name, &address));
        let asked = side_by_side(AT_A_TIME, contexts.filter(|way| way != first).collect(), |way| {
            let info = self.api(&way).get("/info", limit)?;
            let id = info.pointer("/Swarm/NodeID").and_then(Value::as_str).unwrap_or_default();
            ensure!(ids.contains(&id), "it is of another Swarm");
            Ok(way)
        });
        ways.extend(asked.into_iter().flatten());
        ways
    }

    /// GET at a manager.
    pub fn get(&self, path: &str, deadline: Deadline) -> Result<Value> {
        self.ask(deadline, |line| line.get(path))
    }

    /// The nodes, as the managers see them.
    pub fn nodes_of_swarm(&self, deadline: Deadline) -> Result<Vec<Node>> {
        Ok(nodes(&self.get("/nodes", deadline)?))
    }

    /// The way to each node, by its id. Each way was asked whose engine it leads to; one that did not answer is asked again
    /// after a while.
    pub fn ways(&self, nodes: &[Node], deadline: Deadline) -> Arc<Ways> {
        let mut known = self.found.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.take();
        if let Some((at, ways)) = &before {
            let is_complete = nodes.iter().all(|node| matches!(ways.get(&node.id), Some(Ok(_))));
            if is_complete || at.elapsed() < ASKED_AGAIN {
                let ways = Arc::clone(ways);
                *known = before;
                return ways;
            }
        }
        let mut ways = self.asked_ways(nodes, deadline);
        for (id, way) in before.iter().flat_map(|(_, ways)| ways.iter()) {
            if way.is_ok() && !matches!(ways.get(id), Some(Ok(_))) {
                ways.insert(id.clone(), way.clone());
            }
        }
        let ways = Arc::new(ways);
        *known = Some((Instant::now(), Arc::clone(&ways)));
        ways
    }

    /// Begins to ask the nodes who they are, when they are seen for the first time: who needs their engines a moment later
    /// waits the less.
    pub fn ask_nodes_ahead(&self, nodes: &[Node]) {
        if !self.found.asked.swap(true, Relaxed) {
            let (own, nodes) = (self.clone(), nodes.to_vec());
            std::thread::spawn(move || own.ways(&nodes, Deadline::after(SAYS)));
        }
    }

    fn asked_ways(&self, nodes: &[Node], deadline: Deadline) -> Ways {
        let named: BTreeMap<String, Way> = contexts()
            .into_iter()
            .filter(|(name, _)| nodes.iter().any(|node| node.name == *name))
            .map(|(name, address)| (name.clone(), Way::context(&name, &address)))
            .collect();
        // The client's own engine mostly has a context, too.
        let own = Some(&self.compose.way).filter(|own| !named.values().any(|way| way.is_same_engine(own)));
        let ways: Vec<Way> = named.values().chain(own).cloned().collect();
        let asked = side_by_side(AT_A_TIME, ways, |way| {
            let id = self.api(&way).talk(deadline.within(SAYS), node_of);
            Ok((way, id))
        });
        let asked: Vec<(Way, Result<Option<String>>)> = asked.into_iter().flatten().collect();
        let of = |node: &Node| {
            let is =
                |id: &Result<Option<String>>| id.as_ref().is_ok_and(|id| id.as_deref() == Some(&node.id));
            if let Some((way, _)) = asked.iter().find(|(_, id)| is(id)) {
                return Ok(way.clone());
            }
            let own = named.get(&node.name);
            Err(match asked.iter().find(|(way, _)| Some(way) == own) {
                Some((_, Err(error))) => format!("its context does not answer: {error:#}"),
                Some((_, Ok(_))) => format!("the context {} leads to another engine", node.name),
                None => format!("no docker context is called {}", node.name),
            })
        };
        nodes.iter().map(|node| (node.id.clone(), of(node))).collect()
    }

    /// The ways that are known.
    fn known_ways(&self) -> Option<Arc<Ways>> {
        let known = self.found.ways.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().map(|(_, ways)| Arc::clone(ways))
    }

    /// The engine of a node.
    pub fn engine_of(&self, node: &Node, deadline: Deadline) -> Result<Compose> {
        match self.ways(std::slice::from_ref(node), deadline).get(&node.id) {
            Some(Ok(way)) => Ok(self.compose.through(way)),
            Some(Err(why)) => Err(no_way(node, why)),
            None => Err(no_way(node, "it joined after this command began")),
        }
    }

    /// Every node whose engine is reached, with it. Those that are lost or have no way are left out.
    pub fn reached(&self, deadline: Deadline) -> Result<Vec<(Node, Compose)>> {
        let nodes = match self.seen_lately() {
            Some(seen) => seen.nodes.clone(),
            None => self.nodes_of_swarm(deadline)?,
        };
        let ways = self.ways(&nodes, deadline);
        let with_way = |node: Node| {
            let way = ways.get(&node.id)?.as_ref().ok()?;
            let engine = self.compose.through(way);
            Some((node, engine))
        };
        Ok(nodes.into_iter().filter(|node| node.is_ready).filter_map(with_way).collect())
    }

    /// The same question to every node that is reached, at the same time.
    pub fn each<T: Send>(
        &self,
        deadline: Deadline,
        ask: impl Fn(&Node, &Compose) -> Result<T> + Sync,
    ) -> Result<Vec<(Node, T)>> {
        let all = self.reached(deadline)?;
        let asked = side_by_side(AT_A_TIME, all, |(node, engine)| match ask(&node, &engine) {
            Ok(answer) => Ok(Some((node, answer))),
            // It was lost a moment ago, and the managers do not know it yet.
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.context(format!("on {}", node.name))),
        });
        let answers: Vec<_> = asked.into_iter().collect::<Result<Vec<_>>>().map_err(classify)?;
        let answers: Vec<_> = answers.into_iter().flatten().collect();
        ensure!(!answers.is_empty(), "the Docker engine of no node answers");
        Ok(answers)
    }

    /// The nodes with tasks that are wanted there, of which the managers hear, and whose engines nobody answers for. One that
    /// hangs may still be there.
    pub fn gone(&self, seen: &Seen) -> BTreeSet<String> {
        let has_task = |node: &&Node| {
            seen.tasks.iter().any(|task| is_wanted(task) && task["NodeID"] == node.id.as_str())
        };
        let ways = self.known_ways().unwrap_or_default();
        let asked = seen.nodes.iter().filter(|node| node.is_ready).filter(has_task);
        let asked = asked.filter_map(|node| Some((node, ways.get(&node.id)?.as_ref().ok()?)));
        let gone = side_by_side(AT_A_TIME, asked.collect(), |(node, way)| {
            let answer = self.api(way).ping(Deadline::after(SAYS));
            Ok(answer.err().filter(is_gone).map(|_| node.id.clone()))
        });
        gone.into_iter().flatten().flatten().collect()
    }

    /// Was the engine of a node seen to be gone a moment ago?
    pub fn is_lost(&self, id: &str) -> bool {
        let lost = self.found.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get(id).is_some_and(|(_, at)| at.elapsed() < LOST)
    }

    /// The engine and the container of an instance, by its handle.
    pub fn container(&self, handle: &str, deadline: Deadline) -> Result<(Compose, String)> {
        let (node, container) =
            handle.split_once('/').ok_or_else(|| anyhow!("the task has no container yet"))?;
        if let Some(Ok(way)) = self.known_ways().as_ref().and_then(|ways| ways.get(node)) {
            return Ok((self.compose.through(way), container.to_owned()));
        }
        let nodes = self.nodes_of_swarm(deadline)?;
        self.ways(&nodes, deadline);
        let Some(node) = nodes.iter().find(|known| known.id == node) else {
            bail!("the Swarm has no node {node} any more")
        };
        Ok((self.engine_of(node, deadline)?, container.to_owned()))
    }
}

/// The node of a task that is said to run there, if nobody is reached at the port that the task publishes. One that refuses is
/// reached: what runs there may only be slow to listen.
pub fn unreached(seen: &Seen) -> Option<String> {
    let runs = seen.tasks.iter().filter(|task| has_begun(task));
    let on = runs.filter_map(|task| seen.nodes.iter().find(|node| task["NodeID"] == node.id.as_str()));
    let ready = on.filter(|node| node.is_ready);
    let nodes: BTreeMap<&String, &Node> = ready.map(|node| (&node.id, node)).collect();
    let ports = seen.ports();
    let asked = side_by_side(AT_A_TIME, nodes.into_values().collect(), |node| {
        let at = node.ip.zip(ports.first().copied()).map(SocketAddr::from);
        Ok(at.is_some_and(|at| connects(at, REACHED).is_err()).then(|| node.name.clone()))
    });
    asked.into_iter().flatten().flatten().next()
}

/// The id of the node that an engine is. Its containers say that, too: to tell of itself (`GET /info`) an engine starts two
/// programs, which takes it ten times as long.
fn node_of(line: &mut Line<'_>) -> Result<Option<String>> {
    let running = line.get(&format!("/containers/json?filters={}", by_labels(&[NODE.to_owned()])))?;
    if let Some(id) = running.pointer("/0/Labels").and_then(|labels| labels[NODE].as_str()) {
        return Ok(Some(id.to_owned()));
    }
    Ok(line.get("/info")?.pointer("/Swarm/NodeID").and_then(Value::as_str).map(str::to_owned))
}

/// Did nobody answer who can decide for the Swarm: no engine, one that has no leader, or one that is no manager?
fn is_silent(error: &anyhow::Error) -> bool {
    is_headless(error) || matches!(status_of(error), None | Some(503))
}

/// The engine of a node is not reached.
fn no_way(node: &Node, why: &str) -> anyhow::Error {
    let what = format!("the Docker engine of {} is not reached: {why}", node.name);
    let next = Next::shell(format!("docker context create {} --docker host=ssh://{}", node.name, node.name))
        .so("with the address of its engine");
    fail(Exit::Host, what, next)
}
