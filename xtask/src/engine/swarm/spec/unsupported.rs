//! The settings of a service that a Swarm of Docker 20.10 does not have: which the stack can do without, and which it
//! cannot. Called by `service`.

use super::parts::Draft;
use super::reading::{is_empty, list, map, text};
use serde_json::Value;

/// What is carried over by other files, or means nothing to tasks.
const CARRIED: [&str; 55] = [
    "attach",
    "build",
    "cap_add",
    "cap_drop",
    "command",
    "configs",
    "container_name",
    "cpus",
    "depends_on",
    "deploy",
    "develop",
    "dns",
    "dns_opt",
    "dns_search",
    "entrypoint",
    "env_file",
    "environment",
    "expose",
    "extends",
    "extra_hosts",
    "group_add",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "label_file",
    "labels",
    "links",
    "logging",
    "mem_limit",
    "mem_reservation",
    "network_mode",
    "networks",
    "pids_limit",
    "platform",
    "ports",
    "profiles",
    "pull_policy",
    "pull_refresh_after",
    "read_only",
    "restart",
    "scale",
    "secrets",
    "security_opt",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "user",
    "volumes",
    "working_dir",
];

/// What a stack works without: it loses a limit or a comfort.
const LOST: [&str; 15] = [
    "annotations",
    "blkio_config",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "cpuset",
    "domainname",
    "mem_swappiness",
    "memswap_limit",
    "oom_kill_disable",
    "oom_score_adj",
];

/// What would make another stack, or an unsafe one, with what to do.
const REFUSED: [(&str, &str); 20] = [
    ("privileged", "name the rights that it needs under `cap_add`"),
    ("devices", "run it with Compose on the machine that has the device"),
    ("device_cgroup_rules", "run it with Compose on the machine that has the device"),
    ("gpus", "run it with Compose on the machine that has the GPU"),
    ("pid", "remove it: each task sees its own processes only"),
    ("ipc", "remove it: each task has shared memory of its own"),
    ("uts", "remove it, and use `hostname`"),
    ("cgroup", "remove it"),
    ("cgroup_parent", "remove it, and use `deploy.resources`"),
    ("userns_mode", "remove it, and set it up in the daemon of each node"),
    ("runtime", "remove it, and set `default-runtime` in the daemon of each node"),
    ("volumes_from", "name the volumes under `volumes`"),
    ("storage_opt", "remove it, and set it up in the daemon of each node"),
    ("credential_spec", "remove it"),
    ("mac_address", "remove it"),
    ("isolation", "remove it"),
    ("external_links", "use a network that both stacks are in"),
    ("post_start", "do it in the command of the service"),
    ("pre_stop", "do it in the service when it is told to stop"),
    ("use_api_socket", "remove it"),
];

/// What the engine does anyway.
const ANYWAY: [(&str, &str); 5] = [
    ("ipc", "private"),
    ("ipc", "shareable"),
    ("cgroup", "private"),
    ("runtime", "runc"),
    ("isolation", "default"),
];

/// Notes and refuses every setting of a service that is not carried over. What is not known is refused.
pub fn check(draft: &mut Draft<'_>, service: &str, settings: &Value) {
    for (key, value) in map(settings) {
        let key = key.as_str();
        let anyway = ANYWAY.iter().any(|(name, word)| *name == key && value == word);
        if is_empty(value) || anyway || key.starts_with("x-") {
            continue;
        }
        if let Some((_, advice)) = REFUSED.iter().find(|(name, _)| *name == key) {
            draft.refuse(service, format!("`{key}` cannot be given to a service of a Swarm; {advice}"));
        } else if LOST.contains(&key) {
            draft.note(service, format!("`{key}` is not carried over, because a Swarm has no such setting"));
        } else if !CARRIED.contains(&key) {
            draft.refuse(
                service,
                format!("`{key}` is not known here, so nothing is known of it on a Swarm; remove it"),
            );
        }
    }
    security(draft, service, settings);
    others(draft, service, settings);
}

fn security(draft: &mut Draft<'_>, service: &str, settings: &Value) {
    for option in list(&settings["security_opt"]).filter_map(text) {
        match option.replacen('=', ":", 1).as_str() {
            "no-new-privileges" | "no-new-privileges:true" => {
                let what =
                    "`no-new-privileges` is not carried over: Docker 20.10 has no such setting for services";
                draft.note(service, what);
            }
            "no-new-privileges:false" => {}
            _ => {
                let what =
                    format!("`security_opt: {option}` cannot be given to a service of a Swarm; remove it");
                draft.refuse(service, what);
            }
        }
    }
}

/// What a service has to do with other services.
fn others(draft: &mut Draft<'_>, service: &str, settings: &Value) {
    let depends_on = &settings["depends_on"];
    // A map, or a list of names.
    let listed = list(depends_on).filter_map(text).map(|name| (name, "service_started"));
    let mapped = map(depends_on)
        .map(|(name, how)| (name.as_str(), text(&how["condition"]).unwrap_or("service_started")));
    let all: Vec<(&str, &str)> = listed.chain(mapped).collect();
    for (other, condition) in all {
        if !draft.source.services.contains(other) {
            continue;
        }
        let until = match condition {
            "service_healthy" => format!("{other} is healthy"),
            "service_completed_successfully" => format!("{other} has done its work"),
            _ => format!("{other} has started"),
        };
        draft.note(service, format!("it starts without waiting until {until}; it must try again by itself"));
    }
    for link in list(&settings["links"]).filter_map(text) {
        let (other, alias) = link.split_once(':').unwrap_or((link, link));
        if other != alias {
            let what = format!(
                "it links {other} as {alias}, which a Swarm cannot; give {other} the alias {alias} under `networks`"
            );
            draft.refuse(service, what);
        }
    }
    if let Some(name) = text(&settings["container_name"]).filter(|name| !name.is_empty()) {
        let what = format!("its container is not called {name}, but other services reach it by that name");
        draft.note(service, what);
    }
}
