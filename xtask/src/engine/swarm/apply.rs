//! Brings the services of a stack to a release: all at once, from the release's own specs. The old tasks are ended through
//! the engines of their nodes first: a Swarm waits two seconds before it stops a task that is in a network, and then for
//! the grace of that task. Called by `runtime`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::threads::side_by_side;
use crate::engine::roles::Images;
use crate::engine::swarm::api::{Line, status_of};
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm, unreached};
use crate::engine::swarm::node::Node;
use crate::engine::swarm::runtime::{id, keep_down, update};
use crate::engine::swarm::spec::{self, File, Plan, Source};
use crate::engine::swarm::state::{Seen, has_begun, has_ended, label, name_of, replicas, settings_of};
use crate::release::description::Image;
use crate::stack::gate_rule::NOT_VERIFIED;
use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

/// The pause between two looks at tasks that begin.
const PAUSE: Duration = Duration::from_millis(50);

/// How often the task of a slot may be rejected before that is an error: a Swarm tries for ever.
const REJECTED: usize = 3;

impl Swarm {
    /// What the files in `dir` are on a Swarm. `read` gives out a file of the stack.
    pub fn specs(
        &self,
        images: &BTreeMap<String, Image>,
        dir: &Path,
        services: &BTreeSet<String>,
        read: &dyn Fn(&str) -> Result<Vec<u8>>,
        deadline: Deadline,
    ) -> Result<Plan> {
        let dir = files::real_path(dir);
        let config = self.compose.config_of(&dir, deadline)?;
        let ids = images.iter().map(|(service, image)| (service.clone(), image.id.clone())).collect();
        spec::plan(&Source {
            project: &self.pilot.project,
            config: &config,
            images: &ids,
            dir: &dir,
            read,
            services,
        })
    }

    /// The same. It is an error (exit 2) if they cannot be carried over.
    pub fn plan(
        &self,
        images: &BTreeMap<String, Image>,
        dir: &Path,
        services: &BTreeSet<String>,
        deadline: Deadline,
    ) -> Result<Plan> {
        let read = |path: &str| Ok(std::fs::read(dir.join(path))?);
        let plan = self.specs(images, dir, services, &read, deadline)?;
        if plan.refusals.is_empty() {
            return Ok(plan);
        }
        let what = format!("this stack cannot run on a Swarm:\n  {}", plan.refusals.join("\n  "));
        Err(fail(Exit::Usage, what, "change these places; nothing was begun"))
    }

    /// Creates and updates services, and waits until the tasks of the new ones have begun. Those in `held_back` are made
    /// and not started.
    pub fn bring_to(
        &self,
        plan: &Plan,
        force: &[String],
        held_back: &[String],
        deadline: Deadline,
    ) -> Result<()> {
        let before = self.see(deadline)?;
        let pins = self.pins_of(plan, &before, deadline)?;
        let ways = self.ways(&before.nodes, deadline);
        // A node whose engine is not reached has neither the images nor a gate that was closed there.
        let barred: Vec<&Node> =
            before.nodes.iter().filter(|node| !matches!(ways.get(&node.id), Some(Ok(_)))).collect();
        let there = self.ask(deadline, |line| self.place(line, plan))?;
        let mut specs = BTreeMap::new();
        for (name, spec) in &plan.services {
            let mut spec = spec.clone();
            fill_in(&mut spec, &there);
            constrain(&mut spec, pins.get(name), &barred);
            let now = before.services.iter().find(|one| name_of(one, &self.pilot.project) == Some(name));
            if held_back.contains(name) {
                keep_down(&mut spec);
            }
            specs.insert(name.clone(), (spec, now.cloned()));
        }
        specs.retain(|name, (spec, now)| match now {
            Some(now) if !force.contains(name) => differs(spec, now),
            _ => true,
        });
        let gateway = self.pilot.gateway();
        if specs.contains_key(gateway) && !held_back.iter().any(|held| held == gateway) {
            self.close_elsewhere(plan, deadline)?;
        }
        let old: Vec<Value> = specs.values().filter_map(|(_, now)| now.clone()).collect();
        // What a task of before shows says nothing of the release, also if it had the same settings.
        let past = Past {
            replaced: old
                .iter()
                .flat_map(|service| before.tasks_of(service))
                .map(|task| id(task).to_owned())
                .collect(),
            all: before.tasks.iter().map(|task| id(task).to_owned()).collect(),
        };
        self.kill(&before, &old, deadline);
        let changed = specs.into_iter().collect();
        let done = side_by_side(AT_A_TIME, changed, |(name, (spec, now))| {
            let put = self.ask(deadline, |line| match &now {
                // Made by this command, if the answer of a manager that was lost is missing.
                None => match line.post("/services/create", &spec) {
                    Err(error) if status_of(&error) == Some(409) => Ok(()),
                    made => made.map(drop),
                },
                Some(now) => {
                    let mut spec = spec.clone();
                    if force.contains(&name) {
                        let last = now.pointer("/Spec/TaskTemplate/ForceUpdate").and_then(Value::as_u64);
                        spec["TaskTemplate"]["ForceUpdate"] = (last.unwrap_or(0) + 1).into();
                    }
                    update(line, now, &quick(spec))
                }
            });
            put.with_context(|| format!("cannot bring {name} to the release"))
        });
        done.into_iter().collect::<Result<Vec<()>>>()?;
        self.wait(plan, &past, deadline)
    }

    /// Makes the networks, configs and secrets of a stack that are not there. Returns the ids by name.
    fn place(&self, line: &mut Line<'_>, plan: &Plan) -> Result<BTreeMap<String, String>> {
        let all = line.get("/networks")?;
        let named = |name: &str| all.as_array().into_iter().flatten().find(|one| one["Name"] == name);
        for network in &plan.networks {
            match named(&network.name) {
                None if network.external => {
                    let what = format!("the external network {} is not there", network.name);
                    let next =
                        format!("docker network create --driver overlay --attachable {}", network.name);
                    return Err(fail(Exit::Usage, what, Next::shell(next)));
                }
                None => drop(line.post("/networks/create", &network.spec)?),
                Some(there) => ensure!(
                    there["Scope"] == "swarm",
                    "the network {} is there, and is of one node alone; it needs another name",
                    network.name
                ),
            }
        }
        let mut ids = BTreeMap::new();
        for (kind, files) in [("configs", &plan.configs), ("secrets", &plan.secrets)] {
            let there = line.get(&format!("/{kind}"))?;
            for one in there.as_array().into_iter().flatten() {
                let name = one.pointer("/Spec/Name").and_then(Value::as_str).unwrap_or_default();
                ids.insert(format!("{kind}/{name}"), id(one).to_owned());
            }
            for File { name, labels, data } in files {
                let key = format!("{kind}/{name}");
                if let Entry::Vacant(entry) = ids.entry(key) {
                    let made = json!({ "Name": name, "Labels": labels, "Data": STANDARD.encode(data) });
                    entry.insert(id(&line.post(&format!("/{kind}/create"), &made)?).to_owned());
                }
            }
        }
        Ok(ids)
    }

    /// Ends the tasks of services at once, through the engines of their nodes. One that cannot be reached is ended by the
    /// Swarm, which takes longer.
    pub fn kill(&self, seen: &Seen, services: &[Value], deadline: Deadline) {
        let mut by_node: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for task in services.iter().flat_map(|service| seen.tasks_of(service)).filter(|task| has_begun(task))
        {
            let container = task.pointer("/Status/ContainerStatus/ContainerID").and_then(Value::as_str);
            if let (Some(node), Some(container)) = (task["NodeID"].as_str(), container) {
                by_node.entry(node).or_default().push(container);
            }
        }
        let ways = self.ways(&seen.nodes, deadline);
        let all = by_node.into_iter().filter_map(|(node, containers)| {
            let ready = seen.nodes.iter().any(|one| one.id == node && one.is_ready);
            Some((ways.get(node).filter(|_| ready)?.as_ref().ok()?, containers))
        });
        let killed = side_by_side(AT_A_TIME, all.collect(), |(way, containers)| {
            let engine = self.compose.through(way.options());
            // Docker answers when they have ended.
            engine.docker(&[&["kill"], containers.as_slice()].concat(), deadline).map(|_| containers)
        });
        let killed = killed.into_iter().flatten().flatten().map(str::to_owned);
        self.found.ended.lock().unwrap_or_else(PoisonError::into_inner).extend(killed);
    }

    /// Waits until each service has its tasks, all of the new spec, and nothing of the old one runs.
    fn wait(&self, plan: &Plan, past: &Past, deadline: Deadline) -> Result<()> {
        let settings: BTreeMap<&String, &str> = plan
            .services
            .iter()
            .filter_map(|(name, spec)| {
                let label =
                    spec.pointer("/TaskTemplate/ContainerSpec/Labels")?.get(spec::SETTINGS)?.as_str()?;
                Some((name, label))
            })
            .collect();
        let open = |seen: &Seen| {
            let of = |(name, settings): (&&String, &&str)| {
                pending(seen, &self.pilot.project, name, settings, past).transpose()
            };
            settings.iter().find_map(of).transpose()
        };
        // One question after another, so that it goes on at another manager when one is lost.
        let waited = deadline.poll(PAUSE, || {
            match self.see(deadline).and_then(|seen| {
                // A node that was just lost is in the lists until the managers notice.
                open(&seen)
                    .map(|why| why.or_else(|| unreached(&seen).map(|node| format!("{node} is not reached"))))
            }) {
                Ok(None) => Break(Ok(())),
                Ok(Some(why)) => Continue(anyhow!("the Swarm has not started what it was told to: {why}")),
                Err(error) => Break(Err(error)),
            }
        });
        waited.flatten()
    }

    /// Runs the image of a service on the nodes of which `is_meant` holds, of those where a task of it may be put and that
    /// have the image; with its volumes and these arguments. Returns what each of them prints.
    pub fn run_on(
        &self,
        plan: &Plan,
        service: &str,
        words: &[&str],
        is_meant: impl Fn(&Node) -> bool + Sync,
        deadline: Deadline,
    ) -> Result<Vec<(Node, String)>> {
        let spec =
            plan.services.get(service).with_context(|| format!("the release has no service {service}"))?;
        let container = &spec["TaskTemplate"]["ContainerSpec"];
        let secret = files::Scratch::new("run-once")?;
        let env = secret.path().join("env");
        let lines = container["Env"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let text = lines.map(|line| format!("{line}\n")).collect::<String>();
        files::write(&env, text.as_bytes(), files::Mode::Private)?;
        let mut args: Vec<String> =
            ["run", "--rm", "--network", "none", "--env-file"].map(str::to_owned).into();
        args.push(env.display().to_string());
        for mount in container["Mounts"].as_array().into_iter().flatten() {
            if let (Some("volume"), Some(source), Some(target)) =
                (mount["Type"].as_str(), mount["Source"].as_str(), mount["Target"].as_str())
            {
                let label = format!("volume-label={}", self.label());
                let volume = format!("type=volume,source={source},target={target},{label}");
                args.extend(["--mount".into(), volume]);
            }
        }
        if let Some(user) = container["User"].as_str().filter(|user| !user.is_empty()) {
            args.extend(["--user".into(), user.to_owned()]);
        }
        let image = container["Image"].as_str().unwrap_or_default().to_owned();
        args.push(image.clone());
        args.extend(words.iter().map(|word| (*word).to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let pins = self.pins_of(plan, &*self.see(deadline)?, deadline)?;
        let may_run = |node: &Node| pins.get(service).map_or(node.takes_tasks(), |pin| *pin == node.id);
        let said = self.each(deadline, |node, engine| {
            if !may_run(node) || !is_meant(node) || !engine.images(deadline)?.contains(&image) {
                return Ok(None);
            }
            engine.docker(&args, deadline).map(Some)
        })?;
        Ok(said.into_iter().filter_map(|(node, said)| Some((node, said?))).collect())
    }

    /// Does a task of a service run on a node?
    fn runs_on(&self, seen: &Seen, service: &str, node: &Node) -> bool {
        let all = self.own(seen, &[service.to_owned()]);
        let mut tasks = all.iter().flat_map(|service| seen.tasks_of(service));
        tasks.any(|task| has_begun(task) && task["NodeID"] == node.id.as_str())
    }

    /// On each node where a task of the service may be put.
    pub fn run_on_each(
        &self,
        plan: &Plan,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<String> {
        let said = self.run_on(plan, service, words, |_| true, deadline)?;
        let first = said.first().map(|(_, said)| said.clone()).context("no node takes tasks of it")?;
        if let Some((node, other)) = said.iter().find(|(_, said)| *said != first) {
            bail!("{} says {:?}, and another node {:?}", node.name, other.trim(), first.trim());
        }
        Ok(first)
    }

    /// Where no task of it runs now.
    pub fn run_on_others(
        &self,
        plan: &Plan,
        service: &str,
        words: &[&str],
        deadline: Deadline,
    ) -> Result<Vec<(Node, String)>> {
        let seen = self.see(deadline)?;
        self.run_on(plan, service, words, |node| !self.runs_on(&seen, service, node), deadline)
    }

    /// Closes the gate where no task of its service runs: one that starts there comes up closed. Those that run were closed
    /// before.
    fn close_elsewhere(&self, plan: &Plan, deadline: Deadline) -> Result<()> {
        let Some(offline) = self.pilot.manifest.gate.offline() else { return Ok(()) };
        let service = self.pilot.gateway();
        let words = offline.words(NOT_VERIFIED)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for (node, said) in self.run_on_others(plan, service, &words, deadline)? {
            ensure!(
                said.trim() == offline.prints,
                "the gate on {} is {:?} after closing it",
                node.name,
                said.trim()
            );
        }
        Ok(())
    }
}

/// Puts the ids of configs and secrets where a spec names them.
fn fill_in(spec: &mut Value, ids: &BTreeMap<String, String>) {
    for (kind, list, name, key) in
        [("configs", "Configs", "ConfigName", "ConfigID"), ("secrets", "Secrets", "SecretName", "SecretID")]
    {
        let all = spec["TaskTemplate"]["ContainerSpec"].get_mut(list).and_then(Value::as_array_mut);
        for one in all.into_iter().flatten() {
            let named = one[name].as_str().unwrap_or_default();
            if let Some(id) = ids.get(&format!("{kind}/{named}")) {
                one[key] = id.as_str().into();
            }
        }
    }
}

/// Keeps the tasks of a service on the node that has its data, and off nodes that nothing is known of.
fn constrain(spec: &mut Value, pin: Option<&String>, barred: &[&Node]) {
    let own = match pin {
        Some(node) => vec![format!("node.id=={node}")],
        None => barred.iter().map(|node| format!("node.id!={}", node.id)).collect(),
    };
    if own.is_empty() {
        return;
    }
    let placement = &mut spec["TaskTemplate"]["Placement"];
    if placement.is_null() {
        *placement = json!({});
    }
    let mut all: Vec<Value> = placement["Constraints"].as_array().cloned().unwrap_or_default();
    all.extend(own.into_iter().map(Value::String));
    placement["Constraints"] = all.into();
}

/// Does a service that is there have to be changed?
fn differs(spec: &Value, now: &Value) -> bool {
    let pinned = |spec: &Value| {
        let all = spec.pointer("/TaskTemplate/Placement/Constraints").and_then(Value::as_array);
        all.into_iter().flatten().any(|one| one.as_str().is_some_and(|text| text.starts_with("node.id==")))
    };
    let kept = |spec: &Value| label(spec, super::state::KEPT).map(str::to_owned);
    let now = &now["Spec"];
    spec::digest(spec) != spec::digest(now) || pinned(spec) != pinned(now) || kept(spec) != kept(now)
}

/// The settings of an update that is quick: all tasks at once, watched by this tool and not by the Swarm. What the stack
/// itself says comes back when it is served again (`Images::retag`).
fn quick(mut spec: Value) -> Value {
    spec["UpdateConfig"] =
        json!({ "Parallelism": 0, "FailureAction": "continue", "Monitor": 1, "Order": "stop-first" });
    spec
}

/// The tasks that there were before a change, by their ids.
struct Past {
    /// Those of services that are changed.
    replaced: BTreeSet<String>,
    /// Those of all services.
    all: BTreeSet<String>,
}

/// Why a service is not there yet; nothing if it is. It is an error if the Swarm cannot start it.
fn pending(seen: &Seen, project: &str, name: &str, settings: &str, past: &Past) -> Result<Option<String>> {
    let Some(service) = seen.services.iter().find(|one| name_of(one, project) == Some(name)) else {
        return Ok(Some(format!("{name} is not there")));
    };
    let is_new = |task: &&Value| settings_of(task) == Some(settings) && !past.replaced.contains(id(task));
    let of_node = |task: &Value| {
        let node = seen.nodes.iter().find(|node| task["NodeID"] == node.id.as_str());
        node.map_or_else(String::new, |node| format!(" on {}", node.name))
    };
    let said = |task: &Value| {
        let words = [&task["Status"]["Err"], &task["Status"]["Message"]];
        words
            .into_iter()
            .filter_map(Value::as_str)
            .find(|text| !text.is_empty())
            .unwrap_or("no reason given")
            .to_owned()
    };
    let rejected: Vec<&Value> = seen
        .tasks_of(service)
        .filter(is_new)
        .filter(|task| task["Status"]["State"] == "rejected" && !past.all.contains(id(task)))
        .collect();
    if let Some(last) = rejected.last().filter(|_| rejected.len() >= REJECTED) {
        bail!("{name} cannot start{}: {}", of_node(last), said(last));
    }
    let on_ready =
        |task: &&Value| seen.nodes.iter().any(|node| node.is_ready && task["NodeID"] == node.id.as_str());
    let old = seen.tasks_of(service).filter(|task| !is_new(task) && has_begun(task)).find(on_ready);
    if let Some(task) = old {
        return Ok(Some(format!("a task of {name} from before still runs{}", of_node(task))));
    }
    // One that began and ended is there too: whether it is healthy is another question.
    let begun = seen.tasks_of(service).filter(is_new).filter(|task| {
        let container = task.pointer("/Status/ContainerStatus/ContainerID").and_then(Value::as_str);
        (has_begun(task) && on_ready(task)) || (has_ended(task) && container.is_some_and(|id| !id.is_empty()))
    });
    let slots: BTreeSet<String> = begun.map(|task| format!("{}{}", task["Slot"], task["NodeID"])).collect();
    let all: BTreeSet<u64> =
        seen.tasks_of(service).filter(is_new).filter_map(|task| task["Slot"].as_u64()).collect();
    let wanted = replicas(&service["Spec"]).unwrap_or(1);
    if (slots.len() as u64) < wanted {
        let waits = seen.tasks_of(service).filter(is_new).find(|task| !has_begun(task) && !has_ended(task));
        let why = waits.map_or_else(
            || "it has no task".to_owned(),
            |task| {
                format!(
                    "{}: {}{}",
                    task["Status"]["State"].as_str().unwrap_or("?"),
                    said(task),
                    of_node(task)
                )
            },
        );
        return Ok(Some(format!(
            "{} of {wanted} tasks of {name} have begun ({} made); {why}",
            slots.len(),
            all.len()
        )));
    }
    Ok(None)
}
