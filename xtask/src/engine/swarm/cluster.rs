//! The nodes of a Swarm, and the way to the Docker engine of each: a context of the docker client that is called as the
//! node, or the engine that the client goes to by itself. Called by the other files of `swarm` and by the command `nodes`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::base::proc::cmd;
use crate::base::threads::side_by_side;
use crate::engine::compose::client::Compose;
use crate::engine::swarm::api::{Api, Line, Way, classify, is_headless, status_of};
use crate::engine::swarm::node::{Node, nodes};
use crate::stack::pilot::Pilot;
use crate::stack::shelf::Shelf;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow::{Break, Continue};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How many nodes are asked at a time.
pub const AT_A_TIME: usize = 8;

/// How long one node may take to say who it is. One that is lost must not hold up an incident.
const SAYS: Duration = Duration::from_secs(3);

/// How long the managers may be without a leader before that is taken for a lost majority: an election takes a second or
/// two, by the figures of swarmkit.
const ELECTED: Duration = Duration::from_secs(8);
const AGAIN: Duration = Duration::from_millis(250);

/// What is found out once, and shared by the engines of one command.
#[derive(Default)]
pub struct Found {
    /// The ways, by the id of the node; or why there is none.
    ways: OnceLock<BTreeMap<String, Result<Way, String>>>,
    /// The manager that answered last.
    manager: Mutex<Option<Way>>,
    /// What of the stack that was resolved last cannot be carried over to a Swarm, and what is different there.
    pub told: Mutex<(Vec<String>, Vec<String>)>,
    /// What runs, as it was seen last: where requests go.
    pub seen: Mutex<Option<(std::time::Instant, Arc<super::state::Seen>)>>,
}

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
        let api = self.api(&Way::default());
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
        Api { docker: self.compose.docker.clone(), way: way.clone() }
    }

    /// The label by which everything of the stack is found, as `docker stack` has it.
    pub fn label(&self) -> String {
        format!("{}={}", super::spec::STACK, self.pilot.project)
    }

    /// Asks the managers: the one that the client goes to, and if it does not answer, the others that a context leads to.
    /// While they elect a leader they are asked again.
    pub fn ask<T>(&self, deadline: Deadline, talk: impl Fn(&mut Line<'_>) -> Result<T>) -> Result<T> {
        let last = self.found.manager.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = last.unwrap_or_default();
        let tried = || self.api(&first).talk(deadline.within(ELECTED.min(deadline.left())), &talk);
        let error = match tried() {
            Err(error) if is_headless(&error) => {
                match deadline.within(ELECTED).poll(AGAIN, || match tried() {
                    Err(error) if is_headless(&error) => Continue(error),
                    other => Break(other),
                }) {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) | Err(error) => error,
                }
            }
            Err(error) if status_of(&error).is_some() => return Err(classify(error)),
            Err(error) => error,
            Ok(answer) => return Ok(answer),
        };
        if deadline.passed() {
            return Err(classify(error));
        }
        let others = self.contexts(deadline).unwrap_or_default().into_iter().map(|name| Way::context(&name));
        for way in others.filter(|way| *way != first) {
            let limit = deadline.within(SAYS);
            let is_manager = |api: &Api| {
                let info = api.get("/info", limit).ok()?;
                (info.pointer("/Swarm/ControlAvailable")? == true && self.is_of_this(&info)).then_some(())
            };
            let api = self.api(&way);
            if is_manager(&api).is_some()
                && let Ok(answer) = api.talk(deadline, &talk)
            {
                *self.found.manager.lock().unwrap_or_else(PoisonError::into_inner) = Some(way);
                return Ok(answer);
            }
        }
        Err(classify(error))
    }

    /// Is this the Swarm that the first manager spoke of? A context may lead to another one.
    fn is_of_this(&self, info: &Value) -> bool {
        let id = info.pointer("/Swarm/NodeID").and_then(Value::as_str);
        match self.found.ways.get() {
            Some(known) => id.is_some_and(|id| known.contains_key(id)),
            None => {
                // Nothing was asked yet: the stack is known by its services.
                info.pointer("/Swarm/Cluster/ID").is_some()
            }
        }
    }

    /// GET at a manager.
    pub fn get(&self, path: &str, deadline: Deadline) -> Result<Value> {
        self.ask(deadline, |line| line.get(path))
    }

    /// The nodes, as the managers see them.
    pub fn nodes_of_swarm(&self, deadline: Deadline) -> Result<Vec<Node>> {
        Ok(nodes(&self.get("/nodes", deadline)?))
    }

    /// The names of the client's contexts, but for the default one.
    fn contexts(&self, deadline: Deadline) -> Result<Vec<String>> {
        let listed = cmd(&self.compose.docker, &["context", "ls", "--format", "{{.Name}}"]).run(deadline)?;
        Ok(listed
            .lines()
            .map(str::trim)
            .filter(|name| !matches!(*name, "" | "default"))
            .map(str::to_owned)
            .collect())
    }

    /// The way to each node, by its id. Each way was asked whose engine it leads to.
    pub fn ways(&self, nodes: &[Node], deadline: Deadline) -> &BTreeMap<String, Result<Way, String>> {
        self.found.ways.get_or_init(|| {
            let contexts = self.contexts(deadline).unwrap_or_default();
            let named = contexts.into_iter().filter(|name| nodes.iter().any(|node| node.name == *name));
            let ways: Vec<Way> = named.map(|name| Way::context(&name)).chain([Way::default()]).collect();
            let asked = side_by_side(AT_A_TIME, ways, |way| {
                let told = self.api(&way).get("/info", deadline.within(SAYS));
                let id =
                    told.map(|info| info.pointer("/Swarm/NodeID").and_then(Value::as_str).map(str::to_owned));
                Ok((way, id))
            });
            let asked: Vec<(Way, Result<Option<String>>)> = asked.into_iter().flatten().collect();
            let of = |node: &Node| {
                let is =
                    |id: &Result<Option<String>>| id.as_ref().is_ok_and(|id| id.as_deref() == Some(&node.id));
                if let Some((way, _)) = asked.iter().find(|(_, id)| is(id)) {
                    return Ok(way.clone());
                }
                let own = Way::context(&node.name);
                Err(match asked.iter().find(|(way, _)| *way == own) {
                    Some((_, Err(error))) => format!("its context does not answer: {error:#}"),
                    Some((_, Ok(_))) => format!("the context {} leads to another engine", node.name),
                    None => format!("no docker context is called {}", node.name),
                })
            };
            nodes.iter().map(|node| (node.id.clone(), of(node))).collect()
        })
    }

    /// The engine of a node.
    pub fn engine_of(&self, node: &Node, deadline: Deadline) -> Result<Compose> {
        match self.ways(std::slice::from_ref(node), deadline).get(&node.id) {
            Some(Ok(way)) => Ok(self.compose.through(way.options())),
            Some(Err(why)) => Err(no_way(node, why)),
            None => Err(no_way(node, "it joined after this command began")),
        }
    }

    /// Every node whose engine is reached, with it. Those that are lost or have no way are left out.
    pub fn reached(&self, deadline: Deadline) -> Result<Vec<(Node, Compose)>> {
        let nodes = self.nodes_of_swarm(deadline)?;
        let ways = self.ways(&nodes, deadline);
        let with_way = |node: Node| {
            let way = ways.get(&node.id)?.as_ref().ok()?;
            let engine = self.compose.through(way.options());
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
        let asked = side_by_side(AT_A_TIME, all, |(node, engine)| {
            let answer = ask(&node, &engine).with_context(|| format!("on {}", node.name))?;
            Ok((node, answer))
        });
        asked.into_iter().collect::<Result<Vec<_>>>().map_err(classify)
    }

    /// The engine and the container of an instance, by its handle.
    pub fn container(&self, handle: &str, deadline: Deadline) -> Result<(Compose, String)> {
        let (node, container) =
            handle.split_once('/').ok_or_else(|| anyhow!("the task has no container yet"))?;
        if let Some(Ok(way)) = self.found.ways.get().and_then(|ways| ways.get(node)) {
            return Ok((self.compose.through(way.options()), container.to_owned()));
        }
        let nodes = self.nodes_of_swarm(deadline)?;
        self.ways(&nodes, deadline);
        let Some(node) = nodes.iter().find(|known| known.id == node) else {
            bail!("the Swarm has no node {node} any more")
        };
        Ok((self.engine_of(node, deadline)?, container.to_owned()))
    }
}

/// The engine of a node is not reached.
fn no_way(node: &Node, why: &str) -> anyhow::Error {
    let what = format!("the Docker engine of {} is not reached: {why}", node.name);
    let next = Next::shell(format!("docker context create {} --docker host=ssh://{}", node.name, node.name))
        .so("with the address of its engine");
    fail(Exit::Host, what, next)
}
