//! What Docker reports about the project's containers, networks and volumes, and about itself.

use crate::base::deadline::Deadline;
use crate::base::machine;
use crate::base::newest::Newest;
use crate::base::observed::Observed;
use crate::base::proc::{Cmd, cmd};
use crate::engine::compose::client::{Compose, classify, steady};
use crate::engine::roles::{EngineHost, Inspect, Log, Usage};
use crate::stack::definition::Definition;
use crate::stack::judge::{self, Need};
use crate::stack::model::Instance;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How many lines of a log are asked for first.
const LINES: usize = 2_000;

/// Between two tries while Docker is busy with the same question of somebody else.
const BUSY: Duration = Duration::from_millis(200);

impl Inspect for Compose {
    fn logs(&self, instance: &Instance, lines: usize, deadline: Deadline) -> Result<String> {
        self.log_lines(instance, lines).run(deadline).map_err(classify)
    }

    fn newest_log(&self, instance: &Instance, most: usize, deadline: Deadline) -> Result<Log> {
        // Docker finds the last lines quickly, but it does not know how many bytes they are.
        let mut lines = LINES;
        loop {
            let mut newest = Newest::new(most);
            self.log_lines(instance, lines).run_into(&mut newest, deadline).map_err(classify)?;
            if newest.bytes_seen >= most || newest.lines_seen < lines {
                let (bytes, is_cut) = newest.lines();
                return Ok(Log { bytes, is_cut });
            }
            lines = (most / (newest.bytes_seen / lines).max(1)).max(lines) * 2;
        }
    }

    fn usage(&self, deadline: Deadline) -> Result<Vec<Usage>> {
        steady(deadline, || self.usage_of(&self.listed(&["ps", "--quiet"], deadline)?, deadline))
    }

    fn networks_and_volumes(&self, deadline: Deadline) -> Result<BTreeMap<String, String>> {
        steady(deadline, || {
            let mut all = BTreeMap::new();
            for kind in ["network", "volume"] {
                let names = self.listed(&[kind, "ls", "--format", "{{.Name}}"], deadline)?;
                let told = self.each(&[kind, "inspect"], &names, deadline)?.unwrap_or_else(|| "[]".into());
                let unclear = || format!("cannot parse the output of docker {kind} inspect");
                let told: Vec<Value> = serde_json::from_str(&told).with_context(unclear)?;
                for one in told {
                    let name = one["Name"].as_str().with_context(unclear)?;
                    all.insert(format!("{kind} {name}"), serde_json::to_string_pretty(&one)?);
                }
            }
            Ok(all)
        })
    }

    fn refusals(
        &self,
        definition: &Definition,
        files: &BTreeSet<String>,
        deadline: Deadline,
    ) -> Result<Vec<String>> {
        let needed = judge::needs(definition);
        // Most stacks need nothing, and then nothing is asked.
        let all = |kind: &str, wanted: bool| -> Result<BTreeSet<String>> {
            let listed = if wanted {
                self.docker(&[kind, "ls", "--format", "{{.Name}}"], deadline)?
            } else {
                String::new()
            };
            Ok(listed.lines().map(str::to_owned).collect())
        };
        let volumes = all("volume", needed.iter().any(|need| matches!(need, Need::Volume(_))))?;
        let networks = all("network", needed.iter().any(|need| matches!(need, Need::Network(_))))?;
        let paths = needed.iter().filter_map(|need| match need {
            Need::Path(path) => Some(path.clone()),
            Need::Volume(_) | Need::Network(_) => None,
        });
        let lacking = match self.daemon.elsewhere() {
            Some(_) => self.missing_there(&paths.collect(), deadline)?,
            // Docker Desktop has some paths, such as its socket, that this machine does not have.
            None if !cfg!(target_os = "linux") => BTreeSet::new(),
            None => paths.filter(|path| !Path::new(path).exists()).collect(),
        };
        let is_missing = |need: &Need| match need {
            Need::Volume(name) => !volumes.contains(name),
            Need::Network(name) => !networks.contains(name),
            Need::Path(path) => lacking.contains(path),
        };
        let missing = needed.into_iter().filter(is_missing).collect();
        let mut all = judge::problems(definition, &self.pilot.manifest, files, &missing);
        if let Some(host) = self.daemon.elsewhere() {
            all.extend(judge::not_elsewhere(definition, host, self.daemon.reaches_loopback()));
        }
        Ok(all)
    }

    fn host(&self, deadline: Deadline) -> Result<EngineHost> {
        let before = SystemTime::now();
        let info = self.docker(&["info", "--format", "{{json .}}"], deadline)?;
        let asked = before.elapsed().unwrap_or_default() / 2;
        let info: Value = serde_json::from_str(&info).context("cannot parse the output of docker info")?;
        let clock = info["SystemTime"].as_str().and_then(|text| humantime::parse_rfc3339(text).ok());
        let skew = clock.map(|engine| {
            let ours = before + asked;
            engine.duration_since(ours).unwrap_or_else(|behind| behind.duration())
        });
        let format = "{{.Type}}: {{.Size}}, {{.Reclaimable}} reclaimable";
        // Docker does this for one client at a time, and refuses the others meanwhile.
        let used =
            deadline.poll(BUSY, || match self.docker(&["system", "df", "--format", format], deadline) {
                Err(error) if format!("{error:#}").contains("is already running") => Continue(error),
                other => Break(other),
            });
        // The engine has answered. What it uses takes it longer to add up, the more there is.
        let lines = |text: String| text.lines().map(str::to_owned).collect();
        let used = Observed::from(used.flatten().map(lines));
        Ok(EngineHost {
            version: info["ServerVersion"].as_str().unwrap_or("?").to_owned(),
            root: match self.daemon.elsewhere() {
                Some(host) => Observed::Unknown(format!("the engine is on {host}")),
                None => root(&info, &machine::kernel()),
            },
            skew,
            running: info["ContainersRunning"].as_u64(),
            used,
        })
    }
}

impl Compose {
    /// The memory of the engine's machine, and the room on its disk, if that is seen from here.
    pub fn room(&self, deadline: Deadline) -> (Observed<u64>, Observed<u64>) {
        let info = self.docker(&["info", "--format", "{{json .}}"], deadline).and_then(|text| {
            serde_json::from_str::<Value>(&text).context("cannot parse the output of docker info")
        });
        let info = match info {
            Ok(info) => info,
            Err(error) => {
                return (Observed::from(Err(error)), Observed::Unknown("the engine does not answer".into()));
            }
        };
        let memory = info["MemTotal"].as_u64().context("the engine does not say it");
        let free = match root(&info, &machine::kernel()) {
            Observed::Known(folder) => machine::space(&folder).map(|(space, _)| space.bytes).into(),
            Observed::Unknown(why) => Observed::Unknown(why),
        };
        (memory.into(), free)
    }

    /// What these containers use.
    pub fn usage_of(&self, ids: &[String], deadline: Deadline) -> Result<Vec<Usage>> {
        let format = "{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.PIDs}}";
        let text = self.each(&["stats", "--no-stream", "--format", format], ids, deadline)?;
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

    /// The last lines of a log. The services write to both streams, so both are read.
    fn log_lines(&self, instance: &Instance, lines: usize) -> Cmd {
        let script = "exec \"$0\" \"$@\" 2>&1";
        let lines = lines.to_string();
        let logs = ["logs", "--timestamps", "--tail", &lines, &instance.handle];
        let docker = self.docker.display().to_string();
        cmd("sh", &["-c", script, &docker]).args(&self.way.options).args(logs)
    }
}

/// The folder of the engine, as `docker info` tells it. An engine on another kernel than ours is in a virtual machine,
/// and a folder of the same name here is not its own.
fn root(info: &Value, our_kernel: &str) -> Observed<PathBuf> {
    let text = |name: &str| info[name].as_str().unwrap_or("unknown");
    let (kernel, folder) = (text("KernelVersion"), text("DockerRootDir"));
    if kernel != our_kernel {
        let system = text("OperatingSystem");
        return Observed::Unknown(format!(
            "the engine ({system}) is in a virtual machine with kernel {kernel}"
        ));
    }
    if Path::new(folder).is_dir() {
        return Observed::Known(PathBuf::from(folder));
    }
    Observed::Unknown(format!("the engine's folder {folder} is not seen from here"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_disk_of_an_engine_in_a_virtual_machine_is_unknown() {
        let here = json!({"KernelVersion": "6.1", "DockerRootDir": "/", "OperatingSystem": "Debian"});
        assert_eq!(root(&here, "6.1"), Observed::Known("/".into()));
        // It has a folder of this name; it is not this one.
        let desktop = json!({"KernelVersion": "6.6-linuxkit", "DockerRootDir": "/", "OperatingSystem": "Docker Desktop"});
        assert!(root(&desktop, "6.1").why().contains("(Docker Desktop) is in a virtual machine"));
        let elsewhere = json!({"KernelVersion": "6.1", "DockerRootDir": "/nonexistent/docker"});
        assert!(root(&elsewhere, "6.1").why().contains("/nonexistent/docker"));
        assert!(root(&json!({}), "6.1").known().is_none());
    }
}
