//! What the nodes of a Swarm report of the tasks of a stack, and of themselves.

use crate::base::deadline::Deadline;
use crate::base::observed::Observed;
use crate::base::threads::side_by_side;
use crate::engine::roles::{EngineHost, Images, Inspect, Log, Runtime, Usage};
use crate::engine::swarm::cluster::{AT_A_TIME, Swarm};
use crate::stack::definition::Definition;
use crate::stack::judge;
use crate::stack::model::{Instance, Node, Service};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

impl Inspect for Swarm {
    fn logs(&self, instance: &Instance, lines: usize, deadline: Deadline) -> Result<String> {
        let (engine, handle) = self.container(&instance.handle, deadline)?;
        engine.logs(&Instance { handle, ..instance.clone() }, lines, deadline)
    }

    fn newest_log(&self, instance: &Instance, most: usize, deadline: Deadline) -> Result<Log> {
        let (engine, handle) = self.container(&instance.handle, deadline)?;
        engine.newest_log(&Instance { handle, ..instance.clone() }, most, deadline)
    }

    fn usage(&self, deadline: Deadline) -> Result<Vec<Usage>> {
        let own = format!("label={}", self.label());
        let all = self.each(deadline, |node, engine| {
            let ids = engine.docker(&["ps", "--quiet", "--filter", &own], deadline)?;
            let ids: Vec<String> = ids.lines().map(str::to_owned).collect();
            let here = |usage: Usage| Usage { name: format!("{} on {}", usage.name, node.name), ..usage };
            Ok(engine.usage_of(&ids, deadline)?.into_iter().map(here).collect::<Vec<_>>())
        })?;
        Ok(all.into_iter().flat_map(|(_, usage)| usage).collect())
    }

    fn networks_and_volumes(&self, deadline: Deadline) -> Result<BTreeMap<String, String>> {
        let networks = self.get(&format!("/networks?filters={}", self.filter()), deadline)?;
        let mut all = BTreeMap::new();
        for one in networks.as_array().into_iter().flatten() {
            let name = one["Name"].as_str().unwrap_or("?");
            all.insert(format!("network {name}"), serde_json::to_string_pretty(one)?);
        }
        for (node, volumes) in self.volumes(deadline)? {
            let engine = self.engine_of(&node, deadline)?;
            for volume in volumes {
                let told = engine.docker(&["volume", "inspect", &volume], deadline)?;
                all.insert(format!("volume {volume} on {}", node.name), told);
            }
        }
        Ok(all)
    }

    fn refusals(
        &self,
        definition: &Definition,
        files: &BTreeSet<String>,
        deadline: Deadline,
    ) -> Result<Vec<String>> {
        let listed = self.get("/networks", deadline)?;
        let names = listed.as_array().into_iter().flatten().filter_map(|one| one["Name"].as_str());
        let there: BTreeSet<&str> = names.collect();
        let is_missing =
            |need: &judge::Need| matches!(need, judge::Need::Network(name) if !there.contains(name.as_str()));
        let missing = judge::needs(definition).into_iter().filter(is_missing).collect();
        let mut all = judge::problems(definition, &self.pilot.manifest, files, &missing);
        let (refusals, _) = self.found.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.extend(refusals);
        Ok(all)
    }

    fn remarks(&self) -> Vec<String> {
        self.found.told.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    fn nodes(&self, images: &BTreeSet<String>, deadline: Deadline) -> Result<Vec<Node>> {
        let seen = self.see(deadline)?;
        let services = seen.services(&self.pilot.project);
        let ways = self.ways(&seen.nodes, deadline);
        let told = side_by_side(AT_A_TIME, seen.nodes.iter().collect(), |node| {
            let engine = match ways.get(&node.id) {
                Some(Ok(way)) => Ok(self.compose.through(way)),
                Some(Err(why)) => Err(why.clone()),
                None => Err("it is not reached".to_owned()),
            };
            let unknown = |why: &String| (Observed::Unknown(why.clone()), Observed::Unknown(why.clone()));
            let own: Observed<usize> = match &engine {
                Ok(engine) => engine
                    .images(deadline)
                    .map(|ids| images.iter().filter(|id| ids.contains(id)).count())
                    .into(),
                Err(why) => Observed::Unknown(why.clone()),
            };
            let (memory_bytes, free_bytes) = match &engine {
                Ok(engine) => engine.room(deadline),
                Err(why) => unknown(why),
            };
            let on_it = |(name, service): (&String, &Service)| {
                let here = service.0.iter().filter(|one| one.node.as_ref() == Some(&node.name));
                here.map(|one| format!("{name} {}", one.state)).collect::<Vec<_>>()
            };
            Ok(Node {
                name: node.name.clone(),
                state: if node.is_ready { "ready".into() } else { "down".into() },
                availability: node.availability.clone(),
                manager: node.manager.clone(),
                address: node.ip,
                images: own,
                services: services.iter().flat_map(on_it).collect(),
                memory_bytes,
                free_bytes,
            })
        });
        told.into_iter().collect()
    }

    fn host(&self, deadline: Deadline) -> Result<EngineHost> {
        let own = self.compose.host(deadline)?;
        let nodes = self.nodes_of_swarm(deadline)?;
        let running = self.each(deadline, |_, engine| {
            Ok(engine.docker(&["ps", "--quiet"], deadline)?.lines().count() as u64)
        })?;
        Ok(EngineHost {
            version: format!("{}, Swarm of {} nodes", own.version, nodes.len()),
            root: Observed::Unknown(format!("the stack is on {}", self.elsewhere().unwrap_or_default())),
            running: Some(running.into_iter().map(|(_, count)| count).sum()),
            ..own
        })
    }
}
