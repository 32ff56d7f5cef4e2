//! A registry of a test's own (Debian's `docker-registry`), at the address that this machine has for the nodes of a lab.

use crate::http::try_http_at;
use crate::lab::Stack;
use crate::pilot::Folder;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// Ends when dropped.
pub struct Registry {
    folder: Folder,
    child: Child,
    address: String,
}

impl Registry {
    /// None where there is no such program; with CI=true that is an error.
    pub fn beside(stack: &Stack<'_>) -> Option<Self> {
        let folder = Folder::new("registry");
        let (net, _) = stack.lab.ip(1).rsplit_once('.').unwrap();
        let port = TcpListener::bind((format!("{net}.254"), 0)).unwrap().local_addr().unwrap().port();
        let address = format!("{net}.254:{port}");
        let settings = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {}/data }} }}\n\
             http: {{ addr: \"{address}\" }}\n",
            folder.0.display()
        );
        let file = folder.0.join("config.yml");
        std::fs::write(&file, settings).unwrap();
        let log = std::fs::File::create(folder.0.join("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        match command.spawn() {
            Ok(child) => {
                stack.lab.wait("the registry answers", || {
                    try_http_at(&address, "GET", "/v2/", &[], None).is_ok_and(|answer| answer.status == 200)
                });
                Some(Self { folder, child, address })
            }
            Err(error) => {
                assert!(std::env::var("CI").is_err(), "docker-registry: {error}");
                println!("the part with a registry is skipped: docker-registry: {error}");
                None
            }
        }
    }

    /// What a manifest says of it.
    pub fn section(&self) -> String {
        format!("\n[images]\nregistry = \"{}/pilot\"\n", self.address)
    }

    /// The names of the images that it has.
    pub fn has(&self) -> String {
        try_http_at(&self.address, "GET", "/v2/_catalog", &[], None).unwrap().body
    }

    /// As if its machine were lost.
    pub fn lose(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        drop(std::fs::remove_dir_all(self.folder.0.join("data")));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
