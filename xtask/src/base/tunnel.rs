//! Ports of another host, each reached at a port of this machine through a process of ssh, which ends with this one. Who
//! may log in there, and how, is the business of ssh and its settings; it asks nothing. Nothing here knows docker. Called
//! by `engine/compose`.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::proc::{RunError, cmd};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long ssh may take to log in, and to say whether a port there answers.
const BEGINS: Duration = Duration::from_secs(10);

/// How long a connection must last: ssh accepts each, and closes it as soon as it knows that nobody listens there.
pub const ACCEPTED: Duration = Duration::from_secs(1);

/// Bytes of what ssh says that an error shows.
const SAID: u64 = 500;

/// What ssh says of a port that refuses a connection (OpenSSH, at the level INFO).
const REFUSED: &str = "open failed: connect failed: Connection refused";

/// Options of every ssh: it never waits for an answer of a person, and is not that of another program.
const OPTIONS: [&str; 5] = ["-o", "BatchMode=yes", "-o", "LogLevel=INFO", "-Snone"];

/// Ports of one host.
pub struct Tunnels {
    host: String,
    login: Vec<String>,
    open: Mutex<BTreeMap<SocketAddr, Arc<Mutex<Option<Tunnel>>>>>,
}

/// A port that is reached, for as long as this lives.
struct Tunnel {
    ssh: Child,
    near: SocketAddr,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.ssh.kill().ok();
        self.ssh.wait().ok();
    }
}

impl Tunnels {
    /// To the host of an address like `ssh://user@host:22`; none if it has another form.
    pub fn to_host(address: &str) -> Option<Self> {
        let rest = address.strip_prefix("ssh://")?.split('/').next()?;
        let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => v6.split_once(']').map(|(host, port)| (host, port.strip_prefix(':')))?,
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        if host.is_empty() {
            return None;
        }
        let option = |name: &str, value: Option<&str>| value.map(|value| [name.to_owned(), value.to_owned()]);
        let login = [option("-l", user), option("-p", port)].into_iter().flatten().flatten();
        let login = login.chain(["--".to_owned(), host.to_owned()]).collect();
        Some(Self { host: host.to_owned(), login, open: Mutex::default() })
    }

    /// The name of the host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where this address of the host is reached from here.
    pub fn to(&self, far: SocketAddr) -> Result<SocketAddr> {
        let slot = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(open.entry(far).or_default())
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tunnel) = slot.as_mut()
            && matches!(tunnel.ssh.try_wait(), Ok(None))
        {
            return Ok(tunnel.near);
        }
        let made =
            self.dig(far).with_context(|| format!("cannot reach {far} of {} through ssh", self.host))?;
        Ok(slot.insert(made).near)
    }

    fn dig(&self, far: SocketAddr) -> Result<Tunnel> {
        // The port is free again until ssh has it. If somebody else takes it in between, ssh says so and ends.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free port")?;
        let near = free.local_addr().context("cannot find a free port")?;
        drop(free);
        let errors = files::anonymous()?;
        let ssh = Command::new("ssh")
            .args(OPTIONS)
            .args(["-T", "-o", "ExitOnForwardFailure=yes", "-L", &format!("{near}:{far}")])
            .args(&self.login)
            // It ends when its input does, and that ends with us. What it echoes says that the port is there.
            .arg("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().context("cannot share a file")?)
            .process_group(0)
            .spawn()
            .context("cannot start ssh")?;
        let mut tunnel = Tunnel { ssh, near };
        let (tell, told) = channel();
        if let (Some(stdin), Some(mut out)) = (tunnel.ssh.stdin.as_mut(), tunnel.ssh.stdout.take()) {
            stdin.write_all(b"\n").ok();
            std::thread::spawn(move || tell.send(out.read_exact(&mut [0; 1]).is_ok()).ok());
        }
        match told.recv_timeout(BEGINS) {
            Ok(true) => Ok(tunnel),
            Ok(false) => bail!("ssh ended: {}", files::tail(&errors, SAID).unwrap_or_default().trim()),
            Err(_) => bail!(
                "ssh did not log in within {} s: {}",
                BEGINS.as_secs(),
                files::tail(&errors, SAID).unwrap_or_default().trim()
            ),
        }
    }

    /// Does something take a connection at this address of the host? An error if that is not known.
    pub fn answers(&self, far: SocketAddr) -> Result<bool> {
        let near = self.to(far)?;
        if lasts(near)? {
            return Ok(true);
        }
        // It was closed at once. Only ssh knows whether it was refused.
        let asked = cmd("ssh", &OPTIONS).args(["-W", &far.to_string()]).args(&self.login);
        match asked.run(Deadline::after(BEGINS)) {
            Ok(_) => Ok(true),
            Err(error) => match error.downcast_ref() {
                Some(RunError::Status(said, _)) if said.contains(REFUSED) => Ok(false),
                _ => {
                    Err(error).with_context(|| format!("cannot tell whether {far} of {} answers", self.host))
                }
            },
        }
    }
}

/// Does a connection to the near end last, or bring anything?
fn lasts(near: SocketAddr) -> Result<bool> {
    let what = || format!("cannot connect to ssh at {near}");
    let mut socket = TcpStream::connect_timeout(&near, ACCEPTED).with_context(what)?;
    socket.set_read_timeout(Some(ACCEPTED)).with_context(what)?;
    Ok(match socket.read(&mut [0; 1]) {
        Ok(bytes) => bytes > 0,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_and_the_login_are_those_of_the_address() {
        let login = |address: &str| Tunnels::to_host(address).map(|to| to.login.join(" "));
        assert_eq!(login("ssh://staging").as_deref(), Some("-- staging"));
        assert_eq!(login("ssh://ann@staging:2222").as_deref(), Some("-l ann -p 2222 -- staging"));
        assert_eq!(login("ssh://ann@[fd00::1]:22/run/x.sock").as_deref(), Some("-l ann -p 22 -- fd00::1"));
        // No option of ssh, whatever it looks like.
        assert_eq!(login("ssh://-oProxyCommand=x").as_deref(), Some("-- -oProxyCommand=x"));
        assert_eq!((login("tcp://staging"), login("ssh://ann@")), (None, None));
    }
}
