//! Runs the image of a service once on the nodes of a Swarm, in no network, with its volumes: how the gate is closed and
//! opened on disk where no task of the service runs. Called by `runtime` and `apply`.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::engine::roles::Images;
use crate::engine::swarm::cluster::Swarm;
use crate::engine::swarm::node::Node;
use crate::engine::swarm::spec::Plan;
use crate::engine::swarm::state::{Seen, has_begun};
use crate::stack::gate_rule::NOT_VERIFIED;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::sync::PoisonError;

impl Swarm {
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
        let said: Vec<_> = said.into_iter().filter_map(|(node, said)| Some((node, said?))).collect();
        let mut printed = self.found.printed.lock().unwrap_or_else(PoisonError::into_inner);
        printed.extend(said.iter().map(|(node, said)| ((node.id.clone(), mounts(container)), said.clone())));
        drop(printed);
        Ok(said)
    }

    /// Data of the nodes was changed, so what was printed before tells nothing more of it.
    pub fn forget_printed(&self) {
        self.found.printed.lock().unwrap_or_else(PoisonError::into_inner).clear();
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

    /// Closes the gate where no task of its service runs, and where this command has not closed it already: one that starts
    /// there comes up closed. Those that run were closed before.
    pub fn close_elsewhere(&self, plan: &Plan, deadline: Deadline) -> Result<()> {
        let Some(offline) = self.pilot.manifest.gate.offline() else { return Ok(()) };
        let service = self.pilot.gateway();
        let words = offline.words(NOT_VERIFIED)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let seen = self.see(deadline)?;
        let spec =
            plan.services.get(service).with_context(|| format!("the release has no service {service}"))?;
        let mounts = mounts(&spec["TaskTemplate"]["ContainerSpec"]);
        let printed = self.found.printed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_closed = |node: &Node| {
            let last = printed.get(&(node.id.clone(), mounts.clone()));
            last.is_some_and(|said| said.trim() == offline.prints)
        };
        let is_meant = |node: &Node| !is_closed(node) && !self.runs_on(&seen, service, node);
        for (node, said) in self.run_on(plan, service, &words, is_meant, deadline)? {
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

/// What a container mounts, as a key.
fn mounts(container: &Value) -> String {
    container["Mounts"].to_string()
}
