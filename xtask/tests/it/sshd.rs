//! An SSH server of a test's own, with a port and keys of its own, and the settings of a client that may log in there.

use crate::pilot::{program, ran};
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Ended when dropped.
pub struct Server {
    child: Child,
    name: String,
    bin: PathBuf,
}

/// Why there can be none here.
pub fn missing() -> Option<String> {
    let there = Path::new("/usr/sbin/sshd").exists() && Path::new("/run/sshd").is_dir();
    (!there).then(|| "there is no /usr/sbin/sshd, or no folder /run/sshd".to_owned())
}

impl Server {
    /// Starts one, behind the words `within`, that listens at `address` and is called `name` by its client. `more` is
    /// added to its settings.
    pub fn start(folder: &Path, name: &str, address: &str, within: &[String], more: &str) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        for key in ["host", "key"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).output();
            ran(made.unwrap()).expect(0);
        }
        std::fs::copy(at("key.pub"), at("authorized")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n{more}\n",
            at("host"),
            at("authorized")
        );
        std::fs::write(at("sshd_config"), config).unwrap();
        let user = Command::new("id").arg("--user").arg("--name").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap();
        let config = format!(
            "Host {name}\nHostName {address}\nPort {port}\nUser {}\nIdentityFile {}\nIdentitiesOnly yes\n\
             BatchMode yes\nStrictHostKeyChecking accept-new\nUserKnownHostsFile {}\nLogLevel ERROR\n",
            user.trim(),
            at("key"),
            at("known")
        );
        std::fs::write(at("config"), config).unwrap();
        // As `~/.ssh/config` of a user: ssh takes it from no variable.
        let bin = folder.join("bin");
        program(&bin.join("ssh"), &format!("#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n", at("config")));
        let words: Vec<&str> = within.iter().map(String::as_str).chain(["/usr/sbin/sshd"]).collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .args(["-f", &at("sshd_config"), "-D", "-E", &at("log")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while TcpStream::connect((address, port)).is_err() {
            let log = std::fs::read_to_string(at("log")).unwrap_or_default();
            assert!(start.elapsed() < Duration::from_secs(20), "sshd does not answer: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, name: name.to_owned(), bin }
    }

    /// The client logs in once, and shares that connection, as the page on platforms advises.
    pub fn share(&self) {
        let folder = self.bin.parent().unwrap();
        let shared = "ControlMaster auto\nControlPersist 10m\nControlPath";
        let more = format!("{shared} {}\n", folder.join("shared").display());
        let mut config = File::options().append(true).open(folder.join("config")).unwrap();
        config.write_all(more.as_bytes()).unwrap();
    }

    /// The `PATH` of its client.
    pub fn path(&self) -> String {
        format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A connection that is shared outlasts its server.
        let exit = ["-O", "exit", &self.name];
        Command::new(self.bin.join("ssh")).args(exit).output().ok();
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
