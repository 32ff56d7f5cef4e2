//! TCP ports: which are free on this host, which process uses one, and whether something answers there.

use crate::base::deadline::Deadline;
use crate::base::machine;
use crate::base::proc::cmd;
use crate::stack::names;
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// How long a process that has ended may still have its port, and the pause between two looks.
const LETS_GO: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// `count` free ports on 127.0.0.1 for a project. They are between 20000 and 32000, below the range that
/// Linux uses for outgoing connections, so that no such connection takes one first. The search starts at a
/// place that depends on the project's name, so that projects made at the same time find different ports. The
/// ports are held: no other program gets one until its listener is dropped.
pub fn free_ports(count: usize, project: &str) -> Result<Vec<TcpListener>> {
    let sum = crate::base::files::sha256_bytes(project.as_bytes());
    let start = 20_000 + u16::from_str_radix(&sum[..4], 16)? % 12_000;
    let hold = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
    let ports: Vec<TcpListener> = (start..32_000).chain(20_000..start).filter_map(hold).take(count).collect();
    (ports.len() == count).then_some(ports).context("not enough free ports between 20000 and 32000")
}

/// Where something that is published at this address of this machine is reached.
pub fn here(published: SocketAddr) -> SocketAddr {
    let ip = match published.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, published.port())
}

/// Who uses this port, as far as it can be found out; nothing if it is free.
pub fn owner_of(port: u16) -> Option<String> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(bound) => {
            drop(bound);
            let taken = !machine::BIND_TELLS && answers(port);
            taken.then(|| process_on(port).unwrap_or_else(|| "an unknown process".into()))
        }
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            Some(process_on(port).unwrap_or_else(|| "an unknown process".into()))
        }
        Err(e) => Some(format!("no process, but it cannot be used: {e}")),
    }
}

/// The same for a port whose last user has ended a moment ago. A process that ends closes its files one by one, and may have
/// let go of its lock before it lets go of its port.
pub fn owner_after_end(port: u16) -> Option<String> {
    let is_free = || owner_of(port).map_or(Break(()), Continue);
    Deadline::after(LETS_GO).poll(PAUSE, is_free).err()
}

/// The process that listens on a port.
fn process_on(port: u16) -> Option<String> {
    let owner = machine::listener_on(port)?;
    let name = owner.name();
    // Ports of containers are held by this program, or by that of Docker Desktop (lsof cuts names).
    let is_docker = name == "docker-proxy" || name.starts_with("com.docke");
    let container = if is_docker { container_on(port) } else { None };
    // A pilot's own process says which pilot, so that somebody can go there and take it down.
    let pilot = || Some((owner.variable(names::OWNER)?, owner.variable(names::DATA)?));
    let of = pilot().map(|(project, data)| format!(", of project {project}, data in {data}"));
    Some(format!("process {} ({}{})", owner.id(), container.unwrap_or(name), of.unwrap_or_default()))
}

/// Does anybody accept connections on a port?
fn answers(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

/// The container that publishes the port.
fn container_on(port: u16) -> Option<String> {
    let publish = format!("publish={port}");
    let list = cmd("docker", &["ps", "--filter", &publish, "--format", "{{.Names}}"]);
    let names = list.run(Deadline::after(Duration::from_secs(2))).ok()?;
    let first = names.lines().next()?;
    Some(format!("container {first}"))
}

/// Does something take a connection here? An error if that is not known.
pub fn connects(address: SocketAddr, limit: Duration) -> Result<bool> {
    match TcpStream::connect_timeout(&address, limit) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot tell whether {address} answers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_taken_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = owner_of(listener.local_addr().unwrap().port()).unwrap();
        assert!(owner.contains(&std::process::id().to_string()), "{owner}");
        // Two of one name at the same time: what one holds, the other does not get.
        let (free, other) = (free_ports(4, "test").unwrap(), free_ports(4, "test").unwrap());
        let numbers = |held: &[TcpListener]| -> Vec<u16> {
            held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
        };
        assert_eq!(free.len(), 4);
        assert!(numbers(&free).iter().all(|port| !numbers(&other).contains(port)));
        let first = numbers(&free)[0];
        drop(free);
        assert_eq!(owner_of(first), None);
    }

    #[test]
    fn a_port_that_is_let_go_of_in_a_moment_is_free() {
        let held = free_ports(2, "ends").unwrap();
        let [ends, stays] = [0, 1].map(|at| held[at].local_addr().unwrap().port());
        let [first, _stays] = held.try_into().unwrap();
        assert!(owner_of(ends).is_some());
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        assert_eq!(owner_after_end(ends), None);
        letting_go.join().unwrap();
        assert!(owner_after_end(stays).is_some());
    }
}
