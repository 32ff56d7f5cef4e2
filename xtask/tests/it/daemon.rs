//! A Docker daemon of a test's own, with its own data, socket and network namespace: to wipe, to stop and to
//! start again, which nobody may do to the one that everybody uses. Its ports are seen from within that
//! namespace alone, so a pilot on it runs its commands there. Needs root and `dockerd`.

use crate::pilot::{Folder, Pilot};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Stopped, with all that it held, when dropped.
pub struct Daemon {
    folder: Folder,
    data: PathBuf,
    child: Option<Child>,
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
        let folder = Folder::new("daemon");
        std::fs::write(folder.0.join("daemon.json"), "{}").unwrap();
        let mut daemon = Self { data: folder.0.join("data"), folder, child: None };
        daemon.start();
        daemon
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
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && exec dockerd \"$@\"", "dockerd"])
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
        Command::new("docker").args(args).env("DOCKER_HOST", self.host()).output().unwrap()
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
        pilot.within = match &self.child {
            Some(child) => vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", child.id())],
            None => Vec::new(),
        };
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Containers end with it, and networks with its namespace.
        self.stop();
    }
}
