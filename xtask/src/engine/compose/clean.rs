//! Docker's side of the host: what it uses, what surrounds the services, and freeing what is the
//! project's own and no longer needed. Images go by the project's names and the label its builds carry,
//! never by age or by being unused.

use super::Compose;
use crate::base::deadline::Deadline;
use crate::base::files::Freed;
use crate::engine::roles::{EngineHost, Usage};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

impl Compose {
    /// `docker stats` of the project's running containers.
    pub(super) fn read_usage(&self, deadline: Deadline) -> Result<Vec<Usage>> {
        let format = "{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.PIDs}}";
        let text = self.steady(deadline, || {
            let ids = self.listed(&["ps", "--quiet"], deadline)?;
            self.each(&["stats", "--no-stream", "--format", format], &ids, deadline)
        })?;
        let usage = |line: &str| {
            let mut fields = line.split('\t').map(str::to_owned);
            Some(Usage {
                name: fields.next()?,
                cpu: fields.next()?,
                memory: fields.next()?,
                processes: fields.next()?,
            })
        };
        Ok(text.unwrap_or_default().lines().filter_map(usage).collect())
    }

    /// `docker network inspect` and `docker volume inspect` of what the project has.
    pub(super) fn read_surroundings(&self, deadline: Deadline) -> Result<BTreeMap<String, String>> {
        self.steady(deadline, || {
            let mut all = BTreeMap::new();
            for kind in ["network", "volume"] {
                for name in self.listed(&[kind, "ls", "--format", "{{.Name}}"], deadline)? {
                    let told = self.docker(&[kind, "inspect", &name], deadline)?;
                    all.insert(format!("{kind} {name}"), told);
                }
            }
            Ok(all)
        })
    }

    /// What a listing command tells of the project, a line each.
    fn listed(&self, words: &[&str], deadline: Deadline) -> Result<Vec<String>> {
        let label = self.label();
        let text = self.docker(&[words, &["--filter", &label]].concat(), deadline)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Where the engine keeps its files, its clock against ours, and what it uses.
    pub(super) fn read_host(&self, deadline: Deadline) -> Result<EngineHost> {
        let before = SystemTime::now();
        let info = self.docker(&["info", "--format", "{{json .}}"], deadline)?;
        let asked = before.elapsed().unwrap_or_default() / 2;
        let info: Value = serde_json::from_str(&info).context("cannot understand docker info")?;
        let clock = info["SystemTime"].as_str().and_then(|text| humantime::parse_rfc3339(text).ok());
        let skew = clock.map(|engine| {
            let ours = before + asked;
            engine.duration_since(ours).unwrap_or_else(|behind| behind.duration())
        });
        let used = self.docker(
            &["system", "df", "--format", "{{.Type}}: {{.Size}}, {{.Reclaimable}} reclaimable"],
            deadline,
        )?;
        Ok(EngineHost {
            version: info["ServerVersion"].as_str().unwrap_or("?").to_owned(),
            root: info["DockerRootDir"].as_str().map(PathBuf::from),
            skew,
            running: info["ContainersRunning"].as_u64(),
            used: used.lines().map(str::to_owned).collect(),
        })
    }

    /// Removes images that were built for the project and that no release names, and one-off containers that
    /// have ended.
    pub(super) fn remove_leftovers(&self, keep: &[String], deadline: Deadline) -> Result<Vec<Freed>> {
        let mut freed = Vec::new();
        let oneoff = "label=com.docker.compose.oneoff=True";
        let format = "{{.ID}}\t{{.Names}}";
        let ended = [
            "ps",
            "-a",
            "--filter",
            &self.label(),
            "--filter",
            oneoff,
            "--filter",
            "status=exited",
            "--format",
            format,
        ];
        for (id, name) in self.docker(&ended, deadline)?.lines().filter_map(|line| line.split_once('\t')) {
            self.docker(&["rm", id], deadline)?;
            freed.push(Freed { what: format!("stopped container {name}"), bytes: 0 });
        }
        let used = self.used_images(deadline)?;
        let label = format!("label=pilot.project={}", self.pilot.project);
        // By name and by the label that the Dockerfile sets: an image of that name that was not built here has no other copy, and one
        // of another name that was built on ours has the label too.
        let built = self.docker(&["images", "--no-trunc", "--quiet", "--filter", &label], deadline)?;
        let built: Vec<&str> = built.lines().collect();
        for tag in self.own_tags(deadline)? {
            let [id, size] = self.image(&tag, deadline)?;
            if keep.contains(&id) || used.contains(&id) || !built.contains(&id.as_str()) {
                continue;
            }
            let others =
                self.docker(&["image", "inspect", "--format", "{{len .RepoTags}}", &id], deadline)?;
            self.docker(&["rmi", &tag], deadline)?;
            let last = others.trim().parse::<u32>().is_ok_and(|n| n <= 1);
            let bytes = if last { size.parse().unwrap_or(0) } else { 0 };
            freed.push(Freed { what: format!("image {tag}"), bytes });
        }
        Ok(freed)
    }

    /// Content id and size in bytes.
    fn image(&self, name: &str, deadline: Deadline) -> Result<[String; 2]> {
        let text = self.docker(&["image", "inspect", "--format", "{{.Id}} {{.Size}}", name], deadline)?;
        let (id, size) = text.trim().split_once(' ').context("cannot understand docker image inspect")?;
        Ok([id.to_owned(), size.to_owned()])
    }

    /// Content ids that the project's containers, stopped ones included, were made from.
    fn used_images(&self, deadline: Deadline) -> Result<Vec<String>> {
        let text = self.steady(deadline, || {
            let ids = self.listed(&["ps", "-a", "--quiet"], deadline)?;
            self.each(&["inspect", "--type", "container", "--format", "{{.Image}}"], &ids, deadline)
        })?;
        Ok(text.unwrap_or_default().lines().map(str::to_owned).collect())
    }
}
