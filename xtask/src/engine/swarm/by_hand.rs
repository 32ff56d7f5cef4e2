//! What people do on a Swarm with the commands of docker alone, one service after another or side by side: the benchmark
//! compares with it. Nothing of it is used by a rollback. Called by `rehearsal::bench`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::proc::cmd;
use crate::base::threads::side_by_side;
use crate::release::description::Image;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The docker commands for one stack, at the engine that the client goes to by itself.
pub struct ByHand<'a> {
    pilot: &'a Pilot,
    docker: PathBuf,
}

impl<'a> ByHand<'a> {
    /// Error (exit 2): the engine of the client is no manager of a Swarm.
    pub fn new(pilot: &'a Pilot, deadline: Deadline) -> Result<Self> {
        let docker = which::which("docker").context("there is no docker client")?;
        let own = Self { pilot, docker };
        let told = own.docker(&["info", "--format", "{{json .Swarm.ControlAvailable}}"], deadline)?;
        if told.trim() == "true" {
            return Ok(own);
        }
        let what = "the engine of the docker client is no manager of a Swarm, so nothing is measured there";
        Err(fail(Exit::Usage, what, "make one with scripts/swarm-lab, and set DOCKER_CONFIG as it says"))
    }

    fn docker(&self, words: &[&str], deadline: Deadline) -> Result<String> {
        cmd(&self.docker, words).run(deadline)
    }

    /// The same command for each service, side by side; it is waited for as docker does.
    fn each(&self, words: &(dyn Fn(&str) -> Vec<String> + Sync), deadline: Deadline) -> Result<()> {
        let services: Vec<&str> = self.pilot.services().collect();
        let ran = side_by_side(services.len(), services, |service| {
            let own = format!("{}_{service}", self.pilot.project);
            let all = [vec!["service".to_owned()], words(service), vec![own]].concat();
            self.docker(&all.iter().map(String::as_str).collect::<Vec<_>>(), deadline)
        });
        ran.into_iter().try_for_each(|one| one.map(drop))
    }

    /// Rolls every service back, and waits for it unless `detach`.
    pub fn roll_back(&self, detach: bool, deadline: Deadline) -> Result<()> {
        let detach = format!("--detach={detach}");
        self.each(&|_| ["rollback", "--quiet", &detach].map(str::to_owned).into(), deadline)
    }

    /// Gives every service the quickest settings for updates and rollbacks, and waits until its tasks have them.
    pub fn make_quick(&self, deadline: Deadline) -> Result<()> {
        let words = "update --quiet --detach=false --no-resolve-image --stop-grace-period 0s --update-parallelism 0 \
                     --update-monitor 0s --rollback-parallelism 0 --rollback-monitor 0s";
        self.each(&|_| words.split_whitespace().map(str::to_owned).collect(), deadline)
    }

    /// Gives every service another image, and waits until its tasks have it.
    pub fn replace(&self, images: &BTreeMap<String, Image>, deadline: Deadline) -> Result<()> {
        let words = |service: &str| {
            let id = images.get(service).map_or("", |image| image.id.as_str());
            ["update", "--quiet", "--detach=false", "--no-resolve-image", "--image", id]
                .map(str::to_owned)
                .into()
        };
        self.each(&words, deadline)
    }

    /// The way from the engine of the client to those of the other nodes: docker's options, by the name of the node, where
    /// a context is called as the node.
    pub fn other_nodes(&self, deadline: Deadline) -> Result<Vec<String>> {
        let own = self.docker(&["info", "--format", "{{.Name}}"], deadline)?;
        let all = self.docker(&["node", "ls", "--format", "{{.Hostname}}"], deadline)?;
        Ok(all.lines().filter(|name| *name != own.trim()).map(str::to_owned).collect())
    }

    /// Carries an image to another node with nothing but docker.
    pub fn copy(&self, image: &str, node: &str, deadline: Deadline) -> Result<()> {
        let load = cmd(&self.docker, &["--context", node, "load", "--quiet"]);
        let give = |to: &mut dyn std::io::Write| {
            cmd(&self.docker, &["save", image])
                .read_by(deadline, |from| Ok(std::io::copy(from, to).map(drop)?))
        };
        load.write_by(deadline, give).map(drop)
    }

    /// The folder of the engine's socket, if a node is one of this machine.
    pub fn folder_of(&self, node: &str, deadline: Deadline) -> Result<Option<PathBuf>> {
        let told = self.docker(&["context", "inspect", node], deadline)?;
        let told: Value = serde_json::from_str(&told).context("docker does not say what the context is")?;
        let host = told.pointer("/0/Endpoints/docker/Host").and_then(Value::as_str).unwrap_or_default();
        let folder =
            host.strip_prefix("unix://").and_then(|socket| PathBuf::from(socket).parent().map(Into::into));
        Ok(folder)
    }

    /// Do all nodes hear of each other?
    pub fn are_ready(&self, deadline: Deadline) -> Result<bool> {
        let all = self.docker(&["node", "ls", "--format", "{{.Status}}"], deadline)?;
        Ok(all.lines().all(|state| state == "Ready"))
    }
}
