//! Parsing of what Docker reports: a container of `docker inspect`, the plugin folders, and the state folder
//! that a container was deployed from. Pure, except that it reads environment variables. Called only by
//! `compose`.

use crate::base::secrets;
use crate::engine::compose::daemon::config_folder;
use crate::stack::model::{Health, Instance, Service};
use anyhow::{Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Groups the containers of `docker inspect` by service. If two containers of a service have the same number
/// (a recreate was cut off), they count as one instance: the running one.
pub fn services(containers: &[Value]) -> Result<BTreeMap<String, Service>> {
    let mut found: BTreeMap<(String, String), Instance> = BTreeMap::new();
    for container in containers {
        let (key, instance) = instance(container)?;
        if found.get(&key).is_none_or(|other| !other.is_running()) {
            found.insert(key, instance);
        }
    }
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    for ((name, _), instance) in found {
        services.entry(name).or_default().0.push(instance);
    }
    Ok(services)
}

/// One container, with the name of its service and its number there.
fn instance(container: &Value) -> Result<((String, String), Instance)> {
    let text = |pointer: &str| container.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let label = |name: &str| {
        let labels = container.pointer("/Config/Labels").and_then(|l| l.get(name));
        labels.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let env = container.pointer("/Config/Env").and_then(Value::as_array);
    let env = env.into_iter().flatten().filter_map(Value::as_str).filter_map(|e| e.split_once('='));
    let bindings = container.pointer("/HostConfig/PortBindings").and_then(Value::as_object);
    let port = bindings
        .into_iter()
        .flatten()
        .find_map(|(_, hosts)| hosts.get(0)?.get("HostPort")?.as_str()?.parse().ok());
    let service = label("com.docker.compose.service");
    if service.is_empty() || text("/Id").is_empty() {
        bail!("cannot parse the output of docker inspect: a container has no id or no service label");
    }
    let env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    secrets::learn(&env);
    let instance = Instance {
        state: text("/State/Status").to_owned(),
        image: text("/Image").to_owned(),
        env,
        address: port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        node: None,
        health: health(container),
        settings: label("com.docker.compose.config-hash"),
        state_dir: state_dir(&label("com.docker.compose.project.config_files")),
        restarts: container.pointer("/RestartCount").and_then(Value::as_u64).unwrap_or(0),
        restart: restart(text("/HostConfig/RestartPolicy/Name"), container),
        handle: text("/Id").to_owned(),
        inspect: serde_json::to_string_pretty(container)?,
    };
    Ok(((service, label("com.docker.compose.container-number")), instance))
}

/// What Docker says of the health of a container that runs: by its health check, if it has one. Its version is the name
/// of its image.
fn health(container: &Value) -> Option<Health> {
    let text = |pointer: &str| container.pointer(pointer).and_then(Value::as_str);
    let version = text("/Config/Image").unwrap_or("?").to_owned();
    match (text("/State/Status")?, text("/State/Health/Status")) {
        ("running", Some("healthy") | None) => Some(Health::Healthy { version }),
        // By its last probe, which was before the pause.
        ("running", _) if was_paused(container) => Some(match last_probe(container) {
            Some(0) => Health::Healthy { version },
            _ => Health::Silent("its health check has not passed yet since it was paused".to_owned()),
        }),
        ("running", Some("unhealthy")) => {
            let log = container.pointer("/State/Health/Log").and_then(Value::as_array);
            let said = log.and_then(|log| log.last()?.get("Output")?.as_str()).unwrap_or_default().trim();
            let said: String = said.chars().take(LONGEST_OUTPUT).collect();
            Some(Health::Unhealthy(format!("its health check fails: {}", secrets::mask(&said))))
        }
        ("running", Some(_)) => Some(Health::Silent("its health check has not passed yet".to_owned())),
        _ => None,
    }
}

/// Does Docker call a container unhealthy only because it was paused, until the next probe? No probe has failed then.
pub fn was_paused(container: &Value) -> bool {
    let health = &container["State"]["Health"];
    container["State"]["Status"] == "running"
        && health["Status"] == "unhealthy"
        && health["FailingStreak"] == 0
}

/// The exit code of the last probe.
fn last_probe(container: &Value) -> Option<i64> {
    container.pointer("/State/Health/Log")?.as_array()?.last()?.get("ExitCode")?.as_i64()
}

/// The restart policy, as a compose file writes it.
fn restart(name: &str, container: &Value) -> Option<String> {
    let most = container.pointer("/HostConfig/RestartPolicy/MaximumRetryCount").and_then(Value::as_u64);
    Some(match (name, most) {
        ("", _) => "no".to_owned(),
        ("on-failure", Some(most)) if most > 0 => format!("on-failure:{most}"),
        _ => name.to_owned(),
    })
}

/// How many characters of the output of a health check are told.
const LONGEST_OUTPUT: usize = 200;

/// The folders in which the docker client looks for plugins (docker/cli, `cli-plugins/manager`).
fn plugin_folders() -> Vec<PathBuf> {
    let system =
        ["/usr/local/lib/docker", "/usr/local/libexec/docker", "/usr/lib/docker", "/usr/libexec/docker"];
    config_folder()
        .into_iter()
        .chain(system.map(PathBuf::from))
        .map(|folder| folder.join("cli-plugins"))
        .collect()
}

/// The plugin of Compose 2 that the docker client would use.
pub fn plugin() -> Option<PathBuf> {
    let mut all = plugin_folders().into_iter().map(|folder| folder.join("docker-compose"));
    all.find_map(|path| which::which(path).ok())
}

/// The state folder in the paths of the compose files: `STATE/releases/ID/docker-compose.poc.yml`, perhaps
/// with others after it, gives `STATE`.
fn state_dir(config_files: &str) -> Option<String> {
    let releases = Path::new(config_files.split(',').next()?).parent()?.parent()?;
    let state = releases.file_name()?.eq("releases").then(|| releases.parent())??;
    Some(state.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_docker_says_of_a_container_that_was_paused_is_not_taken_for_a_failed_probe() {
        let container = |status: &str, streak: u64, codes: &[i64]| {
            let log: Vec<Value> =
                codes.iter().map(|code| json!({"ExitCode": code, "Output": "no"})).collect();
            let health = json!({"Status": status, "FailingStreak": streak, "Log": log});
            json!({"State": {"Status": "running", "Health": health}, "Config": {"Image": "db:1"}})
        };
        let healthy = Some(Health::Healthy { version: "db:1".into() });
        assert_eq!(health(&container("healthy", 0, &[0])), healthy);
        // As Docker 20.10 says it after a pause, until the next probe.
        assert_eq!(health(&container("unhealthy", 0, &[0])), healthy);
        assert!(was_paused(&container("unhealthy", 0, &[0])));
        assert!(matches!(health(&container("unhealthy", 0, &[])), Some(Health::Silent(_))));
        assert!(matches!(health(&container("unhealthy", 1, &[0, 1])), Some(Health::Unhealthy(_))));
        assert!(
            !was_paused(&container("unhealthy", 1, &[0, 1])) && !was_paused(&container("healthy", 0, &[0]))
        );
    }
}
