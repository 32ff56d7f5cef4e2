//! Which Docker daemon the client talks to, and where the ports are reached that it publishes. The client chooses by
//! `DOCKER_HOST`, else `DOCKER_CONTEXT`, else `docker context use`. The ports of a daemon of this machine are at
//! 127.0.0.1; those of one that is reached over TCP are at its own address; those of one that is reached through ssh are
//! reached through ssh too. Called by `client`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::machine;
use crate::base::next::Next;
use crate::base::proc::cmd;
use crate::base::tunnel::Tunnels;
use crate::stack::ports::{connects, here};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

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

/// The machine of a daemon, and the way to the ports that it publishes.
#[derive(Clone)]
enum Place {
    /// This machine, or a virtual one of it.
    Here,
    /// Another one, by its name and its address.
    At(String, IpAddr),
    /// Another one, through ssh.
    Ssh(Arc<Tunnels>),
}

/// A daemon.
#[derive(Clone)]
pub struct Daemon {
    /// Its address.
    pub address: String,
    /// Does the address come from a context? Compose 1 does not follow every choice of a context.
    pub by_context: bool,
    place: Place,
}

impl Daemon {
    /// The daemon of this client. It is an error (exit 2) if its address leads to no machine that is known.
    pub fn of_client(docker: &Path, deadline: Deadline) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let config = config_folder().map(|folder| folder.join("config.json"));
        let config = config.map(|path| files::read_if_there(&path)).transpose()?.flatten();
        let (address, context) = match said(variable, config.as_deref().unwrap_or_default()) {
            Said::Address(address) => (address, None),
            Said::Context(name) => (address_of(docker, &name, deadline)?, Some(name)),
        };
        let by_context = context.is_some();
        let place = place_of(&address, deadline).map_err(|error| {
            let by = context.map_or_else(|| "DOCKER_HOST".to_owned(), |name| format!("context {name}"));
            let next = Next::shell("docker context ls").so("to see the contexts; --context NAME chooses one");
            fail(exit_of(&error), format!("the Docker engine is at {address} (from {by}): {error:#}"), next)
        })?;
        Ok(Self { address, by_context, place })
    }

    /// The name of its machine, if that is not this one.
    pub fn elsewhere(&self) -> Option<&str> {
        match &self.place {
            Place::Here => None,
            Place::At(name, _) => Some(name),
            Place::Ssh(tunnels) => Some(tunnels.host()),
        }
    }

    /// Are ports that are bound to 127.0.0.1 of its machine reached too?
    pub fn reaches_loopback(&self) -> bool {
        !matches!(self.place, Place::At(..))
    }

    /// The address of its machine, where the ports are that are bound to every address of it; as seen from there, if
    /// they are reached through ssh.
    pub fn ip(&self) -> IpAddr {
        match &self.place {
            Place::Here | Place::Ssh(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Place::At(_, ip) => *ip,
        }
    }

    /// Where a port is reached from here that is published at this address of its machine.
    pub fn reached(&self, published: SocketAddr) -> Result<SocketAddr> {
        match &self.place {
            Place::Here => Ok(here(published)),
            Place::Ssh(tunnels) => tunnels.to(here(published)),
            Place::At(name, _) if published.ip().is_loopback() => {
                bail!("{published} is reached on {name} alone; use an address like ssh://USER@{name}")
            }
            Place::At(_, ip) if published.ip().is_unspecified() => Ok(SocketAddr::new(*ip, published.port())),
            Place::At(..) => Ok(published),
        }
    }

    /// Does something take a connection at this address of its machine? An error if that is not known.
    pub fn answers(&self, published: SocketAddr, limit: Duration) -> Result<bool> {
        match &self.place {
            Place::Ssh(tunnels) => tunnels.answers(here(published)),
            Place::Here | Place::At(..) => connects(self.reached(published)?, limit),
        }
    }

    /// Where a port is published, in words: an address if there is one that can be opened from here.
    pub fn shown(&self, port: u16) -> String {
        match &self.place {
            Place::Here => format!("127.0.0.1:{port}"),
            Place::At(name, _) => format!("{name}:{port}"),
            Place::Ssh(tunnels) => format!("port {port} of {}", tunnels.host()),
        }
    }
}

/// Makes every docker client that this process starts use a context, those of its helpers too: it begins again with the
/// variable that says so. Returns at once if that is so already.
pub fn in_context(name: &str) -> Result<()> {
    let is = |variable: &str, value: &str| std::env::var(variable).unwrap_or_default() == value;
    if is("DOCKER_CONTEXT", name) && is("DOCKER_HOST", "") {
        return Ok(());
    }
    let mut again = Command::new(machine::this_program()?);
    again.args(std::env::args_os().skip(1)).env("DOCKER_CONTEXT", name).env_remove("DOCKER_HOST");
    Err(again.exec()).context("cannot begin again with DOCKER_CONTEXT")
}

/// Does the environment name a context? Then Docker is meant, whether it answers or not.
pub fn is_named() -> bool {
    std::env::var_os("DOCKER_CONTEXT").is_some_and(|name| !name.is_empty())
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

/// The contexts of the client by their names, with the address of the engine of each, but for the default one; from its own
/// files (docker/cli, `context/store`): to start it takes longer than to close a gate. What cannot be read is not there.
pub fn contexts() -> BTreeMap<String, String> {
    let Some(folder) = config_folder().map(|folder| folder.join("contexts/meta")) else {
        return BTreeMap::new();
    };
    let read = |name: &String| {
        let context: Value = files::read_json(&folder.join(name).join("meta.json")).ok()?;
        let address = context.pointer("/Endpoints/docker/Host")?;
        Some((context["Name"].as_str()?.to_owned(), address.as_str()?.to_owned()))
    };
    files::names(&folder).unwrap_or_default().iter().filter_map(read).collect()
}

/// The address of a context. Where the files do not tell it, the client says why.
fn address_of(docker: &Path, context: &str, deadline: Deadline) -> Result<String> {
    if let Some(address) = contexts().remove(context) {
        return Ok(address);
    }
    let asked = cmd(docker, &["context", "inspect", "--format", "{{.Endpoints.docker.Host}}", context]);
    let said = asked.run(deadline).with_context(|| format!("cannot find out where context {context} leads"));
    let said = said.map_err(|error| {
        let next = Next::shell("docker context ls").so("to see the contexts; docker context use selects one");
        fail(Exit::Usage, format!("{error:#}"), next)
    })?;
    Ok(said.trim().to_owned())
}

/// The machine at an address. It is an error if the address has another form, or if its name is not known.
fn place_of(address: &str, deadline: Deadline) -> Result<Place> {
    if is_local(address) {
        return Ok(Place::Here);
    }
    if let Some(tunnels) = Tunnels::to_host(address) {
        return Ok(Place::Ssh(Arc::new(tunnels)));
    }
    let (scheme, host) = parts(address);
    if !matches!(scheme, "tcp" | "http" | "https") || host.is_empty() {
        let known = "the addresses of engines begin with unix://, tcp:// or ssh://";
        return Err(fail(Exit::Usage, known, ""));
    }
    let ip = match host.parse() {
        Ok(ip) => ip,
        Err(_) => resolved(host, deadline).map_err(|error| fail(Exit::Host, format!("{error:#}"), ""))?,
    };
    Ok(Place::At(host.to_owned(), ip))
}

/// The address of a host. The system has no deadline for this question.
fn resolved(host: &str, deadline: Deadline) -> Result<IpAddr> {
    let (tell, told) = channel();
    let name = host.to_owned();
    std::thread::spawn(move || {
        tell.send((name.as_str(), 0).to_socket_addrs().map(|mut all| all.next().map(|one| one.ip()))).ok();
    });
    let found = told.recv_timeout(deadline.left());
    let found = found.with_context(|| format!("nobody said in time what the address of {host} is"))?;
    let found = found.with_context(|| format!("cannot find the address of {host}"))?;
    found.with_context(|| format!("{host} has no address"))
}

/// The scheme and the host of an address. One without a scheme is of TCP.
fn parts(address: &str) -> (&str, &str) {
    let (scheme, rest) = address.split_once("://").unwrap_or(("tcp", address));
    let rest = rest.split('/').next().unwrap_or_default();
    let host = match rest.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => rest.split(':').next().unwrap_or_default(),
    };
    (scheme, host)
}

/// A socket of this machine, also that of a virtual machine (Docker Desktop), or a port of it.
fn is_local(address: &str) -> bool {
    if address.starts_with("unix://") {
        return true;
    }
    let (scheme, host) = parts(address);
    let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    matches!(scheme, "tcp" | "http" | "https") && (loopback || host == "localhost" || host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn published_ports_are_reached_at_the_machine_of_the_daemon() {
        let daemon = |address: &str| {
            let place = place_of(address, Deadline::after(Duration::from_secs(20)))?;
            Ok::<_, anyhow::Error>(Daemon { address: address.to_owned(), by_context: false, place })
        };
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (near, far) = (daemon(DEFAULT).unwrap(), daemon("tcp://10.0.0.5:2376").unwrap());
        assert_eq!((near.elsewhere(), far.elsewhere()), (None, Some("10.0.0.5")));
        assert_eq!(near.reached(at("0.0.0.0:80")).unwrap(), at("127.0.0.1:80"));
        assert_eq!(near.reached(at("[::]:80")).unwrap(), at("[::1]:80"));
        assert_eq!(far.reached(at("0.0.0.0:80")).unwrap(), at("10.0.0.5:80"));
        assert_eq!(far.reached(at("10.9.9.9:80")).unwrap(), at("10.9.9.9:80"));
        // A port here of the same number is another one: of its loopback address nothing is known.
        let error = far.reached(at("127.0.0.1:80")).unwrap_err().to_string();
        assert!(error.contains("reached on 10.0.0.5 alone"), "{error}");
        assert!(far.answers(at("127.0.0.1:80"), Duration::from_secs(1)).is_err());
        assert_eq!((near.shown(80), far.shown(80)), ("127.0.0.1:80".into(), "10.0.0.5:80".into()));
        let through = daemon("ssh://ann@staging").unwrap();
        assert_eq!((through.elsewhere(), through.shown(80)), (Some("staging"), "port 80 of staging".into()));
        for (address, exit) in
            [("npipe:////./pipe/docker_engine", Exit::Usage), ("tcp://no.such.host.invalid:1", Exit::Host)]
        {
            let error = daemon(address).err().unwrap();
            assert_eq!(exit_of(&error), exit, "{error:#}");
        }
    }
}
