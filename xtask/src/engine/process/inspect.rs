//! What can be found out about local processes: their logs, what they use, and their data.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::newest::Newest;
use crate::base::observed::Observed;
use crate::engine::process::home::Processes;
use crate::engine::process::members::Member;
use crate::engine::roles::{EngineHost, Inspect, Log, Usage};
use crate::stack::model::Instance;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Bytes of a log in which its last lines are looked for.
const READ: usize = 4 << 20;

impl Inspect for Processes {
    fn logs(&self, instance: &Instance, lines: usize, deadline: Deadline) -> Result<String> {
        let newest = self.newest_log(instance, READ, deadline)?.bytes;
        let text = String::from_utf8_lossy(&newest).into_owned();
        let all: Vec<&str> = text.lines().collect();
        Ok(all[all.len().saturating_sub(lines)..].join("\n"))
    }

    /// The supervisor keeps one older file.
    fn newest_log(&self, instance: &Instance, most: usize, _: Deadline) -> Result<Log> {
        let path = Path::new(&instance.handle).join("log");
        let mut newest = Newest::new(most);
        for path in [path.with_extension("1"), path] {
            match files::open_regular(&path) {
                Ok(mut file) => std::io::copy(&mut file, &mut newest).map(drop),
                Err(_) if path.extension().is_some() && !path.exists() => Ok(()),
                Err(error) => return Err(error),
            }
            .with_context(|| format!("cannot read {}", path.display()))?;
        }
        let (bytes, is_cut) = newest.lines();
        Ok(Log { bytes, is_cut })
    }

    fn usage(&self, _: Deadline) -> Result<Vec<Usage>> {
        Ok(self.members()?.iter().map(|(service, members)| usage(service, members)).collect())
    }

    fn networks_and_volumes(&self, _: Deadline) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for service in self.pilot.services() {
            let path = self.data(service);
            let bytes = files::size(&path)?;
            all.insert(format!("data of {service}"), format!("{}: {bytes} bytes", path.display()));
        }
        Ok(all)
    }

    fn host(&self, _: Deadline) -> Result<EngineHost> {
        Ok(EngineHost {
            version: "local processes".into(),
            root: Observed::Known(self.pilot.state.path().to_owned()),
            skew: Some(Duration::ZERO),
            running: None,
            used: Observed::Known(vec![format!("programs and data: {} bytes", files::size(&self.home)?)]),
        })
    }
}

/// Memory and threads of a service with its supervisor.
fn usage(service: &str, members: &[Member]) -> Usage {
    let stats: Vec<_> = members.iter().filter_map(|member| member.process.stat()).collect();
    Usage {
        name: service.to_owned(),
        cpu: "unknown".into(),
        memory: files::human(stats.iter().map(|stat| stat.memory).sum()),
        processes: stats.iter().map(|stat| stat.threads).sum::<u64>().to_string(),
    }
}
