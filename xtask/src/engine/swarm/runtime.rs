//! The services of a stack on a Swarm: observes, stops, starts and removes them. Bringing them to a release is in `apply`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::http::Client;
use crate::base::threads::side_by_side;
use crate::engine::compose::line::{Line, in_path};
use crate::engine::roles::{Engine, Extent, Kind, Runtime};
use crate::engine::swarm::change::update;
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm, unreached};
use crate::engine::swarm::node::nodes;
use crate::engine::swarm::spec;
use crate::engine::swarm::state::{
    KEPT, Seen, has_begun, id, keep_down, kept_replicas, label, name_of, replicas,
};
use crate::release::description::{Image, Release};
use crate::stack::definition::Resolved;
use crate::stack::endpoint::Endpoint;
use crate::stack::envfile::EnvFile;
use crate::stack::model::{Instance, Service};
use crate::stack::pilot::Pilot;
use crate::stack::ports::connects;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How old what was seen may be for a request that only asks where a service is.
const FRESH: Duration = Duration::from_millis(500);

/// Limit of a question where a service is.
const WHERE: Duration = Duration::from_secs(5);

/// The pause between two looks at tasks that end.
const PAUSE: Duration = Duration::from_millis(50);

impl Runtime for Swarm {
    fn project(&self) -> &str {
        &self.pilot.project
    }

    fn kind(&self) -> Kind {
        Kind::Swarm
    }

    fn for_stack(&self, pilot: &Pilot) -> Result<Box<dyn Engine>> {
        let compose = self.compose.for_pilot(pilot);
        Ok(Box::new(Self {
            pilot: pilot.clone(),
            compose: Arc::new(compose),
            found: Arc::clone(&self.found),
        }))
    }

    fn describe(&self, deadline: Deadline) -> String {
        let told = self.get("/info", deadline).map(|info| {
            let of = |pointer: &str| info.pointer(pointer).map(Value::to_string).unwrap_or_default();
            let version = info["ServerVersion"].as_str().unwrap_or("?").to_owned();
            format!(
                "Docker {version}, Swarm of {} nodes, {} of them managers",
                of("/Swarm/Nodes"),
                of("/Swarm/Managers")
            )
        });
        told.unwrap_or_else(|error| format!("swarm ({error:#})"))
    }

    fn resolve(&self, dir: &Path, is_file: &dyn Fn(&str) -> bool, deadline: Deadline) -> Result<Resolved> {
        let resolved = self.compose.resolve(dir, is_file, deadline)?;
        // What a Swarm makes of it is known now, and told when the stack is judged.
        let services: BTreeSet<String> = resolved.definition.services().map(str::to_owned).collect();
        let image = |service: &String| (service.clone(), Image::new("sha256:".into(), String::new()));
        let images = services.iter().map(image).collect();
        // A file that a service mounts need not be in this folder yet.
        let read =
            |path: &str| if is_file(path) { Ok(vec![b'\n']) } else { Ok(std::fs::read(dir.join(path))?) };
        let told =
            self.specs(&images, dir, &services, &read, deadline).map(|plan| (plan.refusals, plan.notes));
        let told = told.unwrap_or_else(|error| (vec![format!("{error:#}")], Vec::new()));
        *self.found.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
        Ok(resolved)
    }

    fn services(&self, deadline: Deadline) -> Result<BTreeMap<String, Service>> {
        Ok(self.see(deadline)?.services(&self.pilot.project))
    }

    fn reach(&self, endpoint: &Endpoint, limit: Duration) -> Client {
        let (port, project, pass) = (endpoint.port, &self.pilot.project, endpoint.pass.clone());
        if let Some(at) = endpoint.at {
            return Client::at(&at.to_string(), Box::new(move || Ok(at)), project, pass, limit);
        }
        let own = self.clone();
        let at = move || {
            let all = own.lately()?.published(port);
            all.into_iter().next().with_context(|| format!("no task that publishes port {port} runs"))
        };
        Client::at(&self.shown(port), Box::new(at), project, pass, limit)
    }

    fn reach_each(&self, endpoint: &Endpoint, anew: bool, limit: Duration) -> Result<Vec<Client>> {
        let seen = if anew { self.see(Deadline::after(WHERE)) } else { self.lately() };
        let all = seen?.published(endpoint.port);
        if all.is_empty() {
            return Ok(vec![self.reach(&Endpoint { at: None, ..endpoint.clone() }, limit)]);
        }
        let client = |at: SocketAddr| self.reach(&Endpoint { at: Some(at), ..endpoint.clone() }, limit);
        Ok(all.into_iter().map(client).collect())
    }

    fn elsewhere(&self) -> Option<String> {
        Some("the nodes of the Swarm".to_owned())
    }

    fn reached(&self, published: SocketAddr) -> Result<Vec<SocketAddr>> {
        let all = self.lately()?.published(published.port());
        ensure!(!all.is_empty(), "no task that publishes port {} runs", published.port());
        Ok(all)
    }

    fn shown(&self, port: u16) -> String {
        let at = self.lately().ok().and_then(|seen| {
            let ready = || seen.nodes.iter().find(|node| node.is_ready).and_then(|node| node.ip);
            let own = seen.published(port).into_iter().next();
            own.or_else(|| Some(SocketAddr::new(ready()?, port)))
        });
        at.map_or_else(|| format!("port {port} of the Swarm"), |at| at.to_string())
    }

    /// Another stack of the Swarm. Of other programs on the nodes nothing is known.
    fn taken_by(&self, port: u16, deadline: Deadline) -> Result<Option<String>> {
        let all = self.get("/services", deadline)?;
        let publishes = |service: &&Value| {
            let ports = service.pointer("/Spec/EndpointSpec/Ports").and_then(Value::as_array);
            ports.into_iter().flatten().any(|one| one["PublishedPort"].as_u64() == Some(port.into()))
        };
        let own = |service: &&Value| label(&service["Spec"], spec::STACK) == Some(&self.pilot.project);
        let other = all.as_array().into_iter().flatten().filter(publishes).find(|service| !own(service));
        let name = other.and_then(|service| service.pointer("/Spec/Name")?.as_str());
        Ok(name.map(|name| format!("service {name}")))
    }

    fn can_read(&self, env: &EnvFile, deadline: Deadline) -> Result<()> {
        self.compose.can_read(env, deadline)
    }

    fn apply(
        &self,
        release: &Release,
        dir: &Path,
        force: &[String],
        held_back: &[String],
        deadline: Deadline,
    ) -> Result<()> {
        let plan = self.plan(&release.images, dir, &self.services_of_stack(), deadline)?;
        self.supply(release.images.values(), deadline)?;
        self.bring_to(&plan, force, held_back, deadline)
    }

    fn lost(&self, deadline: Deadline) -> Option<String> {
        // A manager that does not answer says nothing of the other nodes.
        self.see(deadline).ok().and_then(|seen| unreached(&seen))
    }

    fn beyond_reach(&self) -> Result<Vec<String>> {
        let seen = self.lately()?;
        let mut all: BTreeSet<String> = seen.beyond_reach(&self.pilot.project).into_iter().collect();
        let lost = self.found.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let is_back = |id: &String| seen.nodes.iter().any(|node| node.id == *id && node.is_ready);
        // A node that is back was told by the managers to end what they do not list.
        if !lost.keys().all(is_back) {
            all.extend(self.found.behind.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        }
        Ok(all.into_iter().collect())
    }

    fn left_out(&self) -> Vec<String> {
        let mut lost = self.found.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lost.retain(|id, _| self.is_lost(id));
        let lost = lost.into_values().map(|(node, _)| (node, "its engine went away".to_owned()));
        let all = self.lacking().into_values().chain(lost);
        all.map(|(node, why)| format!("no task is put on {node}: {why}")).collect()
    }

    fn agreed(&self, deadline: Deadline) -> Result<Option<String>> {
        self.wait_until_agreed(deadline)
    }

    /// On every node where a task of the service may be put: one that starts there later finds what was made.
    fn run_once(
        &self,
        release: &Release,
        dir: &Path,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<String> {
        let plan = self.plan(&release.images, dir, &self.services_of_stack(), deadline)?;
        self.supply(release.images.get(service), deadline)?;
        self.run_on_each(&plan, service, words, deadline)
    }

    fn run_where_none(
        &self,
        release: &Release,
        dir: &Path,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<bool> {
        let plan = self.plan(&release.images, dir, &self.services_of_stack(), deadline)?;
        // A node that gets no image starts no task of it either.
        self.supply(release.images.get(service), deadline).ok();
        self.run_on_others(&plan, service, words, deadline).map(|_| true)
    }

    fn stop(&self, service: &str, deadline: Deadline) -> Result<()> {
        let names = [service.to_owned()];
        ensure!(
            self.services(deadline)?.contains_key(service),
            "{service} is no service of stack {}",
            self.pilot.project
        );
        self.keep_down(&names, deadline)
    }

    fn remove(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let seen = self.see(deadline)?;
        let gone = self.own(&seen, services);
        self.kill(&seen, gone.iter().flat_map(|service| seen.tasks_of(service)), deadline);
        self.ask(deadline, |line| {
            gone.iter().try_for_each(|service| line.delete(&format!("/services/{}", id(service))))
        })?;
        self.wait_until_gone(services, deadline)
    }

    fn start(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let seen = self.see(deadline)?;
        let there = seen.services(&self.pilot.project);
        if let Some(name) = services.iter().find(|name| !there.contains_key(*name)) {
            bail!("{name} is no service of stack {}", self.pilot.project);
        }
        let mut kept = self.own(&seen, services);
        kept.retain(|service| kept_replicas(&service["Spec"]).is_some());
        self.change(&kept, deadline, &|spec| {
            if let Some(wanted) = kept_replicas(spec) {
                spec["Mode"]["Replicated"]["Replicas"] = wanted.into();
            }
        })?;
        self.wait_for_tasks(&kept, &seen, deadline)
    }

    fn keep_down(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let seen = self.see(deadline)?;
        let own = self.own(&seen, services);
        self.change(&own, deadline, &|spec| keep_down(spec))?;
        self.kill(&seen, own.iter().flat_map(|service| seen.tasks_of(service)), deadline);
        let is_live = |seen: &Seen| {
            let on_ready =
                |task: &Value| seen.nodes.iter().any(|n| n.is_ready && task["NodeID"] == n.id.as_str());
            own.iter()
                .flat_map(|service| seen.tasks_of(service))
                .any(|task| has_begun(task) && on_ready(task))
        };
        let ended = deadline.poll(PAUSE, || match self.see(deadline) {
            Ok(seen) if is_live(&seen) => Continue(anyhow!("a task of {} still runs", services.join(", "))),
            other => Break(other.map(drop)),
        });
        ended.flatten()
    }

    /// What was kept down may start again by itself. Its own policy is in its spec.
    fn restart_as(&self, policies: &BTreeMap<String, String>, deadline: Deadline) -> Result<()> {
        let names: Vec<String> = policies.keys().cloned().collect();
        let seen = self.see(deadline)?;
        self.change(&self.own(&seen, &names), deadline, &|spec| {
            if replicas(spec) != Some(0)
                && let Some(labels) = spec["Labels"].as_object_mut()
            {
                labels.remove(KEPT);
            }
        })
    }

    /// Any node that is ready and takes a connection. Of a node that is lost nothing is known, and the public does not
    /// reach it either, as far as the managers can tell.
    fn answers_at(&self, address: SocketAddr, limit: Duration) -> Result<bool> {
        let seen = self.lately()?;
        let ips = seen.nodes.iter().filter(|node| node.is_ready).filter_map(|node| node.ip).collect();
        let asked = side_by_side(AT_A_TIME, ips, |ip| connects(SocketAddr::new(ip, address.port()), limit));
        let answers: Vec<bool> = asked.into_iter().collect::<Result<_>>()?;
        Ok(answers.contains(&true))
    }

    fn exec(
        &self,
        instance: &Instance,
        words: &[String],
        env: &[(&str, &str)],
        deadline: Deadline,
    ) -> Result<(i32, String)> {
        let (engine, handle) = self.container(&instance.handle, deadline)?;
        engine.exec(&Instance { handle, ..instance.clone() }, words, env, deadline)
    }

    fn add(&self, dir: &Path, services: &[String], deadline: Deadline) -> Result<()> {
        let _ = (dir, services, deadline);
        let what = "on a Swarm the tool does not start services besides those of the stack";
        Err(fail(Exit::Usage, what, "run Prometheus and Grafana as a stack of their own: docs/swarm.md"))
    }

    fn down(&self, extent: Extent, deadline: Deadline) -> Result<()> {
        let seen = self.see(deadline)?;
        let names: Vec<String> = seen.services(&self.pilot.project).into_keys().collect();
        self.remove(&names, deadline)?;
        let filter = self.filter();
        self.ask(deadline, |line| {
            for kind in ["configs", "secrets"] {
                let all = line.get(&format!("/{kind}?filters={filter}"))?;
                for one in all.as_array().into_iter().flatten() {
                    line.delete(&format!("/{kind}/{}", id(one)))?;
                }
            }
            Ok(())
        })?;
        self.remove_networks(deadline)?;
        if extent != Extent::Services {
            self.remove_volumes(deadline)?;
        }
        if extent == Extent::Everything {
            self.remove_images(deadline)?;
            self.shelf_of_project().remove_all(deadline)?;
        }
        Ok(())
    }

    fn resources(&self, deadline: Deadline) -> Result<Vec<String>> {
        let filter = self.filter();
        let names = |list: &Value, kind: &str, pointer: &str| {
            let all = list.as_array().into_iter().flatten();
            all.filter_map(|one| one.pointer(pointer)?.as_str())
                .map(|name| format!("{kind} {name}"))
                .collect::<Vec<_>>()
        };
        let mut all = self.ask(deadline, |line| {
            let mut all = Vec::new();
            for kind in ["service", "config", "secret"] {
                all.extend(names(&line.get(&format!("/{kind}s?filters={filter}"))?, kind, "/Spec/Name"));
            }
            all.extend(names(&line.get(&format!("/networks?filters={filter}"))?, "network", "/Name"));
            Ok(all)
        })?;
        for (node, volumes) in self.volumes(deadline)? {
            all.extend(volumes.into_iter().map(|name| format!("volume {name} on {}", node.name)));
        }
        all.sort_unstable();
        Ok(all)
    }
}

impl Swarm {
    /// The names of the services that always start.
    pub fn services_of_stack(&self) -> BTreeSet<String> {
        self.pilot.services().map(str::to_owned).collect()
    }

    /// The filter for everything of the stack, as a part of a path.
    pub fn filter(&self) -> String {
        let filter = json!({ "label": [self.label()] }).to_string();
        in_path(&filter)
    }

    /// What runs, at this moment.
    pub fn see(&self, deadline: Deadline) -> Result<Arc<Seen>> {
        let filter = self.filter();
        let mut seen = self.ask(deadline, |line| look(line, &filter))?;
        seen.note_ended(&self.found.ended.lock().unwrap_or_else(PoisonError::into_inner));
        for node in &mut seen.nodes {
            node.is_ready &= !self.is_lost(&node.id);
        }
        let seen = Arc::new(seen);
        self.ask_nodes_ahead(&seen.nodes);
        *self.found.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), Arc::clone(&seen)));
        Ok(seen)
    }

    /// What runs, as it was a moment ago at most.
    pub fn lately(&self) -> Result<Arc<Seen>> {
        self.seen_lately().map_or_else(|| self.see(Deadline::after(WHERE)), Ok)
    }

    /// The same, if it was looked at.
    pub fn seen_lately(&self) -> Option<Arc<Seen>> {
        let last = self.found.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.filter(|(at, _)| at.elapsed() < FRESH).map(|(_, seen)| seen)
    }

    /// The services with these names.
    pub fn own(&self, seen: &Seen, names: &[String]) -> Vec<Value> {
        let named = |service: &&Value| {
            name_of(service, &self.pilot.project).is_some_and(|name| names.iter().any(|one| one == name))
        };
        seen.services.iter().filter(named).cloned().collect()
    }

    /// Changes the specs of services. If somebody else has changed one since it was read, that is an error: what they did
    /// must be looked at first.
    pub fn change(
        &self,
        services: &[Value],
        deadline: Deadline,
        how: &(dyn Fn(&mut Value) + Sync),
    ) -> Result<()> {
        self.ask(deadline, |line| {
            services.iter().try_for_each(|service| {
                let mut spec = service["Spec"].clone();
                how(&mut spec);
                if spec == service["Spec"] { Ok(()) } else { update(line, service, &spec) }
            })
        })
    }

    fn wait_until_gone(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let gone = deadline.poll(PAUSE, || match self.see(deadline) {
            Ok(seen) if !self.own(&seen, services).is_empty() => {
                Continue(anyhow!("{} are still there", services.join(", ")))
            }
            other => Break(other.map(drop)),
        });
        gone.flatten()
    }

    /// Removes the networks of the stack. One that is in use is tried again: its tasks are still ending.
    fn remove_networks(&self, deadline: Deadline) -> Result<()> {
        let filter = self.filter();
        let remove = || {
            self.ask(deadline, |line| {
                let all = line.get(&format!("/networks?filters={filter}"))?;
                let ids = all.as_array().into_iter().flatten().filter_map(|one| one["Id"].as_str());
                ids.map(|id| format!("/networks/{id}")).try_for_each(|path| line.delete(&path))
            })
        };
        let removed = deadline.poll(PAUSE, || match remove() {
            Err(error) if format!("{error:#}").contains("in use") => Continue(error),
            other => Break(other),
        });
        removed.flatten()
    }
}

/// The services, tasks and nodes of a stack.
pub fn look(line: &mut Line<'_>, filter: &str) -> Result<Seen> {
    let list = |value: Value| match value {
        Value::Array(all) => all,
        _ => Vec::new(),
    };
    let services = list(line.get(&format!("/services?filters={filter}"))?);
    let tasks = list(line.get(&format!("/tasks?filters={filter}"))?);
    let nodes = nodes(&line.get("/nodes")?);
    Ok(Seen { services, tasks, nodes })
}
