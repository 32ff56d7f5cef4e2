//! A Docker daemon of a test's own, with its own data, socket and network namespace: to wipe, to stop and to
//! start again, which nobody may do to the one that everybody uses. Its ports are seen from within that
//! namespace alone, so a pilot on it runs its commands there; or it is a daemon `elsewhere`, which stands for that of
//! another machine: a pair of virtual cards joins its namespace with ours, so that it and the ports that it publishes are
//! reached at an address of its own. Needs root and `dockerd`. It ends with the test, also if that is killed.

use crate::pilot::{Folder, Pilot, docker_client};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Stopped, with all that it held, when dropped.
pub struct Daemon {
    folder: Folder,
    data: PathBuf,
    child: Option<Child>,
    link: Option<Link>,
}

/// The virtual card in our namespace, and the addresses of both ends. It goes with the namespace of the daemon.
struct Link {
    card: String,
    ours: String,
    theirs: String,
}

impl Link {
    /// Another one in each test, out of the range for tests of networks (RFC 2544).
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = (std::process::id() * 8 + COUNT.fetch_add(1, Ordering::Relaxed) % 8) % (1 << 15);
        let at = |last: u32| {
            let bits = n * 4 + last;
            format!("198.{}.{}.{}", 18 + (bits >> 16), (bits >> 8) & 255, bits & 255)
        };
        Self { card: format!("pt{n}"), ours: at(1), theirs: at(2) }
    }

    /// Joins our namespace with that of a process, once that has one of its own.
    fn join(&self, child: &Child) {
        let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        let pid = child.id().to_string();
        while space(&pid) == space("self") {
            std::thread::sleep(Duration::from_millis(5));
        }
        let ip = |words: &str| run(Command::new("ip").args(words.split(' ')));
        let inside = |words: &str| {
            let space = format!("--net=/proc/{pid}/ns/net");
            run(Command::new("nsenter").args([&space, "ip"]).args(words.split(' ')));
        };
        ip(&format!("link add name {} type veth peer name eth0 netns {pid}", self.card));
        ip(&format!("addr add {}/30 dev {}", self.ours, self.card));
        ip(&format!("link set {} up", self.card));
        inside(&format!("addr add {}/30 dev eth0", self.theirs));
        inside("link set eth0 up");
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Why there can be none here.
pub fn missing() -> Option<String> {
    let root = Command::new("id").arg("--user").output().is_ok_and(|o| o.stdout == b"0\n");
    let there = Command::new("dockerd").arg("--version").output().is_ok_and(|o| o.status.success());
    match (root, there) {
        (true, true) => None,
        (false, _) => Some("a Docker daemon of its own needs root".into()),
        (_, false) => Some("there is no dockerd".into()),
    }
}

impl Daemon {
    /// Starts one.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// Starts one that stands for the daemon of another machine.
    pub fn elsewhere() -> Self {
        Self::with(Some(Link::new()))
    }

    fn with(link: Option<Link>) -> Self {
        let folder = Folder::new("daemon");
        std::fs::write(folder.0.join("daemon.json"), "{}").unwrap();
        let mut daemon = Self { data: folder.0.join("data"), folder, child: None, link };
        daemon.start();
        daemon
    }

    /// Where one that is elsewhere is reached, and the ports that it publishes.
    pub fn address(&self) -> &str {
        &self.link.as_ref().unwrap().theirs
    }

    /// Our own end of the connection to it: an address of this machine that is not of its loopback.
    pub fn here(&self) -> &str {
        &self.link.as_ref().unwrap().ours
    }

    /// The names of the containers that it has, but for the records that it keeps for every client.
    pub fn containers(&self) -> String {
        self.names(&["ps", "--all", "--format", "{{.Names}}"], "rollback.")
    }

    /// The names of the images that it has, but for those of records.
    pub fn images(&self) -> String {
        self.names(&["images", "--format", "{{.Repository}}"], "ledger.rollback.invalid/")
    }

    fn names(&self, list: &[&str], of_records: &str) -> String {
        let listed = String::from_utf8(self.docker(list).stdout).unwrap();
        listed.lines().filter(|name| !name.starts_with(of_records)).collect()
    }

    /// The name of our virtual card.
    pub fn card(&self) -> &str {
        &self.link.as_ref().unwrap().card
    }

    /// The same for `DOCKER_HOST`: without TLS, which nobody but this machine sees.
    pub fn tcp(&self) -> String {
        format!("tcp://{}:2375", self.address())
    }

    /// What a command is put behind to run where the daemon is.
    pub fn within(&self) -> Vec<String> {
        match &self.child {
            Some(child) => vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", child.id())],
            None => Vec::new(),
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.0.join(name).display().to_string()
    }

    /// For `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.file("docker.sock"))
    }

    /// Starts it, with the data it had.
    pub fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.file("log")).unwrap();
        let joined = self.file("joined");
        // Without a card it waits for nothing.
        let begin = "ip link set lo up && while [ -n \"$0\" ] && [ ! -e \"$0\" ]; do sleep 0.02; done; exec dockerd \"$@\"";
        let wait_for = if self.link.is_some() { joined.as_str() } else { "" };
        std::fs::remove_file(&joined).ok();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "unshare", "--net", "sh", "-c", begin, wait_for])
            .args(self.link.iter().flat_map(|_| ["--host", "tcp://0.0.0.0:2375", "--tls=false"]))
            .args(["--config-file", &self.file("daemon.json"), "--host", &self.host()])
            .args(["--data-root", &self.data.display().to_string(), "--exec-root", &self.file("exec")])
            .args([
                "--pidfile",
                &self.file("pid"),
                "--bridge",
                "none",
                "--iptables=false",
                "--ip6tables=false",
            ])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        if let Some(link) = &self.link {
            link.join(&child);
            std::fs::write(&joined, "").unwrap();
        }
        self.child = Some(child);
        let limit = Instant::now() + Duration::from_secs(60);
        while !self.docker(&["version"]).status.success() {
            let log = std::fs::read_to_string(self.file("log")).unwrap();
            assert!(Instant::now() < limit, "the daemon does not come up:\n{log}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The same daemon with nothing in it.
    pub fn start_empty(&mut self) {
        self.data = self.folder.0.join("data-2");
        self.start();
    }

    /// Ends it, and its containers with it.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It may have been stopped in its tracks.
        Command::new("kill").args(["-s", "CONT", &child.id().to_string()]).status().unwrap();
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        child.wait().unwrap();
    }

    /// Stops it in its tracks, or lets it go on.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn docker(&self, args: &[&str]) -> std::process::Output {
        docker_client().args(args).env("DOCKER_HOST", self.host()).output().unwrap()
    }

    /// Everything that it has, by hand.
    pub fn wipe(&self) {
        let list = |args: &[&str]| -> Vec<String> {
            String::from_utf8_lossy(&self.docker(args).stdout).lines().map(str::to_owned).collect()
        };
        let remove = |args: &[&str], names: Vec<String>| {
            names.iter().for_each(|name| drop(self.docker(&[args, &[name]].concat())));
        };
        remove(&["rm", "--force"], list(&["ps", "--all", "--quiet"]));
        remove(&["volume", "rm"], list(&["volume", "ls", "--quiet"]));
        remove(&["network", "rm"], list(&["network", "ls", "--quiet", "--filter", "type=custom"]));
        remove(&["rmi", "--force"], list(&["images", "--quiet", "--no-trunc"]));
        let left = [
            list(&["ps", "--all", "--quiet"]),
            list(&["volume", "ls", "--quiet"]),
            list(&["images", "--quiet"]),
        ];
        assert!(left.concat().is_empty(), "{left:?}");
    }

    /// Makes a pilot work on this one, as it runs now.
    pub fn serve(&self, pilot: &mut Pilot) {
        pilot.set("DOCKER_HOST", &self.host());
        pilot.within = self.within();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Containers end with it, and networks with its namespace.
        self.stop();
    }
}
