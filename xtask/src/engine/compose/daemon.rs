//! Which Docker daemon the client talks to, and that it is one of this machine. The client chooses by
//! `DOCKER_HOST`, else `DOCKER_CONTEXT`, else `docker context use`. A remote daemon is refused before anything is
//! asked of it: the ports that it publishes are at another host, and it cannot mount files of this one. Called by
//! `client`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::proc::cmd;
use anyhow::{Context, Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The socket that the client uses if nothing else is said.
pub const DEFAULT: &str = "unix:///var/run/docker.sock";

/// What the client goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    /// `DOCKER_HOST`, or the default socket.
    Address(String),
    /// A context, by its name.
    Context(String),
}

/// A daemon of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Its address.
    pub address: String,
    /// Does the address come from a context? Compose 1 does not follow every choice of a context.
    pub by_context: bool,
}

impl Daemon {
    /// The daemon of this client. It is an error (exit 2) if it is not one of this machine.
    pub fn of_client(docker: &Path, deadline: Deadline) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let config = config_folder().map(|folder| folder.join("config.json"));
        let config = config.map(|path| files::read_if_there(&path)).transpose()?.flatten();
        match said(variable, config.as_deref().unwrap_or_default()) {
            Said::Address(address) if is_local(&address) => Ok(Self { address, by_context: false }),
            Said::Address(address) => Err(remote(&address, "DOCKER_HOST")),
            Said::Context(name) => {
                let address = address_of(docker, &name, deadline)?;
                if is_local(&address) {
                    return Ok(Self { address, by_context: true });
                }
                Err(remote(&address, &format!("context {name}")))
            }
        }
    }
}

/// The folder of the client's settings.
pub fn config_folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home)
}

/// What the client goes by (docker/cli, `resolveContextName`). `config` is its `config.json`; if that cannot be
/// parsed, the client uses the default daemon too.
fn said(variable: impl Fn(&str) -> Option<String>, config: &[u8]) -> Said {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(address) = set("DOCKER_HOST") {
        return Said::Address(address);
    }
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let used = || config["currentContext"].as_str().map(str::to_owned).filter(|name| !name.is_empty());
    match set("DOCKER_CONTEXT").or_else(used) {
        Some(name) if name != "default" => Said::Context(name),
        _ => Said::Address(DEFAULT.to_owned()),
    }
}

fn address_of(docker: &Path, context: &str, deadline: Deadline) -> Result<String> {
    let asked = cmd(docker, &["context", "inspect", "--format", "{{.Endpoints.docker.Host}}", context]);
    let said = asked.run(deadline).with_context(|| format!("cannot find out where context {context} leads"));
    let said = said.map_err(|error| {
        let next = Next::shell("docker context ls").so("to see the contexts; docker context use selects one");
        fail(Exit::Usage, format!("{error:#}"), next)
    })?;
    Ok(said.trim().to_owned())
}

/// A socket of this machine, also that of a virtual machine (Docker Desktop), or a port of it. An address without a
/// scheme is one of TCP.
fn is_local(address: &str) -> bool {
    if address.starts_with("unix://") {
        return true;
    }
    let (scheme, rest) = address.split_once("://").unwrap_or(("tcp", address));
    let rest = rest.split('/').next().unwrap_or_default();
    let host = match rest.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => rest.split(':').next().unwrap_or_default(),
    };
    let loopback = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    matches!(scheme, "tcp" | "http" | "https") && (loopback || host == "localhost" || host.is_empty())
}

fn remote(address: &str, by: &str) -> Error {
    let what = format!(
        "the Docker engine is at {address} (from {by}), which is not this machine: its published ports cannot be \
         checked at 127.0.0.1, and it cannot mount the files of a release; nothing was changed"
    );
    let next = "run the command on that host; or, for the engine of this machine, unset DOCKER_HOST and \
                DOCKER_CONTEXT, and select a local context with `docker context use default`";
    fail(Exit::Usage, what, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::exit_of;

    #[test]
    fn the_daemon_is_the_one_that_the_client_uses() {
        let chosen = |host: &str, context: &str, config: &str| {
            let variable = |name: &str| {
                let value = if name == "DOCKER_HOST" { host } else { context };
                Some(value.to_owned())
            };
            said(variable, config.as_bytes())
        };
        let (address, context) = (|a: &str| Said::Address(a.into()), |c: &str| Said::Context(c.into()));
        let config = r#"{"currentContext": "desktop-linux"}"#;
        assert_eq!(chosen("ssh://x", "staging", config), address("ssh://x"));
        assert_eq!(chosen("", "staging", config), context("staging"));
        assert_eq!(chosen("", "", config), context("desktop-linux"));
        assert_eq!(chosen("", "default", config), address(DEFAULT));
        for nothing in ["", "{}", "no json", r#"{"currentContext": ""}"#] {
            assert_eq!(chosen("", "", nothing), address(DEFAULT), "{nothing}");
        }
        assert_eq!(said(|_| None, b""), address(DEFAULT));
    }

    #[test]
    fn only_an_address_of_this_machine_is_local() {
        for address in [
            DEFAULT,
            "unix:///Users/me/.docker/run/docker.sock",
            "tcp://127.0.0.1:2375",
            "tcp://localhost:2375",
            "tcp://[::1]:2376",
            "tcp://:2375",
            "127.0.0.1:2375",
            "localhost:2375",
        ] {
            assert!(is_local(address), "{address}");
        }
        for address in [
            "ssh://deploy@staging",
            "ssh://localhost",
            "tcp://10.0.0.5:2376",
            "tcp://staging:2376",
            "tcp://127.0.0.1.example.org:2376",
            "tcp://[fd00::1]:2376",
            "staging:2375",
            "npipe:////./pipe/docker_engine",
        ] {
            assert!(!is_local(address), "{address}");
        }
        let refused = remote("ssh://deploy@staging", "context staging");
        assert_eq!(exit_of(&refused), Exit::Usage);
    }
}
