//! What can be found out about local processes: their logs, what they use, and their data.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::observed::Observed;
use crate::engine::process::home::Processes;
use crate::engine::process::members::Member;
use crate::engine::roles::{EngineHost, Inspect, Usage};
use crate::stack::model::Instance;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

impl Inspect for Processes {
    fn logs(&self, instance: &Instance, lines: Option<usize>, _: Deadline) -> Result<String> {
        let path = Path::new(&instance.handle).join("log");
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let all: Vec<&str> = text.lines().collect();
        Ok(all[all.len().saturating_sub(lines.unwrap_or(usize::MAX))..].join("\n"))
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
