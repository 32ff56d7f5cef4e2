//! A stack of somebody else on the same Swarm, which must never change. Called by `swarm`.

use std::path::{Path, PathBuf};

use crate::lab::{Lab, Stack};
use crate::pilot::Folder;

/// A stack of somebody else on the same Swarm: a service on node 1 with an image of its own, a config, a secret, a network, a
/// volume. Whatever a test does, all of it is as it was.
pub struct Foreign<'a> {
    lab: &'a Lab,
    before: Vec<String>,
}

impl<'a> Foreign<'a> {
    /// Makes it beside a stack, on whose image it is built.
    pub fn beside(stack: &Stack<'a>) -> Self {
        let lab = stack.lab;
        let image = stack.image("jobs");
        let context = Folder::new("context");
        let at = context.0.display().to_string();
        let listen = "SCENARIO_LISTEN=127.0.0.1:3003";
        std::fs::write(context.0.join("Dockerfile"), format!("FROM {image}\nENV FOREIGN=1 {listen}\n"))
            .unwrap();
        // The node that runs the image has it.
        let has = |node: &usize| lab.try_docker(*node, &["image", "inspect", &image]).code == 0;
        assert!(has(&1), "node 1 lacks {image}");
        lab.docker(1, &["build", "--quiet", "--tag", "foreign:1", &at]);
        let id = lab.docker(1, &["image", "inspect", "--format", "{{.Id}}", "foreign:1"]);
        for kind in ["config", "secret"] {
            let file = context.0.join("Dockerfile").display().to_string();
            lab.docker(
                1,
                &[kind, "create", "--label", "com.docker.stack.namespace=foreign", "foreign", &file],
            );
        }
        lab.docker(1, &["network", "create", "--driver", "overlay", "foreign"]);
        lab.docker(1, &["volume", "create", "foreign"]);
        let create = ["service", "create", "--detach", "--no-resolve-image", "--name", "foreign"];
        let with = ["--constraint", "node.hostname==node1", "--network", "foreign", "--config", "foreign"];
        let more =
            ["--endpoint-mode", "dnsrr", "--mount", "type=volume,source=foreign,target=/data", id.trim()];
        lab.docker(1, &[create.as_slice(), &with, &more].concat());
        let mut foreign = Self { lab, before: Vec::new() };
        lab.wait("the foreign service runs", || foreign.tasks(1).contains("Running"));
        std::fs::write(foreign.kept(), "of somebody else").unwrap();
        foreign.before = foreign.look(1);
        foreign
    }

    fn tasks(&self, manager: usize) -> String {
        let format = ["--no-trunc", "--format", "{{.ID}} {{.CurrentState}}"];
        self.lab.docker(manager, &[["service", "ps", "foreign"].as_slice(), &format].concat())
    }

    /// A file in its volume.
    fn kept(&self) -> PathBuf {
        let mountpoint = self.lab.docker(1, &["volume", "inspect", "--format", "{{.Mountpoint}}", "foreign"]);
        Path::new(mountpoint.trim()).join("kept")
    }

    fn look(&self, manager: usize) -> Vec<String> {
        let inspect = |node: usize, kind: &str, format: &str| {
            self.lab.docker(node, &[kind, "inspect", "--format", format, "foreign"])
        };
        let versioned = "{{.ID}} {{.Version.Index}} {{json .Spec}}";
        let cluster = ["service", "config", "secret"].map(|kind| inspect(manager, kind, versioned));
        // Managers differ in how they tell that there are no labels.
        let network = inspect(manager, "network", "{{.Id}} {{len .Labels}} {{json .Options}}");
        let node = [
            // What Docker calls the time of its making changes with each file that its service writes.
            std::fs::read_to_string(self.kept()).unwrap_or_else(|error| error.to_string()),
            self.lab.docker(1, &["image", "inspect", "--format", "{{.Id}}", "foreign:1"]),
        ];
        cluster.into_iter().chain([network]).chain(node).collect()
    }

    /// All of it is as it was.
    #[track_caller]
    pub fn is_untouched(&self, manager: usize) {
        assert_eq!(self.look(manager), self.before, "something of another stack was touched");
    }

    /// Its first task still runs, too: no node was lost meanwhile.
    #[track_caller]
    pub fn has_run_on(&self) {
        self.is_untouched(1);
        let tasks = self.tasks(1);
        assert!(tasks.lines().count() == 1 && tasks.contains("Running"), "{tasks}");
    }
}
