//! Another project on the same Docker: a running and a stopped container, an image, a volume with a file in
//! it and a network that nobody uses. After whatever a test does, all of it is as it was, bit for bit.

use crate::pilot::{Folder, Pilot, docker, docker_client, remove};
use std::process::Command;

/// Gone when dropped.
pub struct Canary {
    name: String,
    folder: Folder,
    before: Vec<String>,
}

impl Canary {
    /// Makes it beside a pilot, whose images it is built on.
    pub fn beside(pilot: &Pilot) -> Self {
        let folder = Folder::new("canary");
        let name = folder.0.file_name().unwrap().to_string_lossy().replace("pilot-test-", "foreign-");
        let at = folder.0.clone();
        let file = |name: &str| at.join(name).display().to_string();
        // Images of its own: a tag on somebody else's would not tell that it was removed by id.
        std::fs::write(
            file("Dockerfile"),
            format!("FROM {}-jobs:latest\nENV CANARY={name}\n", pilot.project),
        )
        .unwrap();
        let context = Folder::new("canary-context");
        let (image, unused) = (format!("{name}:1"), format!("{name}-unused:1"));
        docker(&[
            "build",
            "--quiet",
            "--file",
            &file("Dockerfile"),
            "--tag",
            &image,
            &context.0.display().to_string(),
        ]);
        std::fs::write(file("note"), format!("the data of {name}\n")).unwrap();
        let tar =
            Command::new("tar").args(["cf", &file("unused.tar"), "-C"]).arg(&folder.0).arg("note").status();
        assert!(tar.unwrap().success());
        docker(&["import", &file("unused.tar"), &unused]);
        docker(&["volume", "create", &name]);
        docker(&["network", "create", &format!("{name}-unused")]);
        let mut canary = Self { name: name.clone(), folder, before: Vec::new() };
        canary.with_volume(|id| drop(docker(&["cp", &file("note"), &format!("{id}:/data/note")])));
        let service = format!(
            "image: {image}\n    environment: {{SCENARIO_LISTEN: '127.0.0.1:3003'}}\n    volumes: ['own:/data']"
        );
        let compose =
            format!("services:\n  up:\n    {service}\n  stopped:\n    {service}\nvolumes:\n  own:\n");
        std::fs::write(file("docker-compose.yml"), compose).unwrap();
        for words in [["up", "--detach"].as_slice(), &["stop", "--timeout", "0", "stopped"]] {
            let mut compose = pilot.compose();
            compose.args(["--project-name", &name, "--file", &file("docker-compose.yml")]).args(words);
            let output = compose.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        canary.before = canary.look();
        canary
    }

    /// All that Docker tells of it, and the bytes in its volumes.
    fn look(&self) -> Vec<String> {
        let name = &self.name;
        let label = format!("label=com.docker.compose.project={name}");
        let mut ids: Vec<String> = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &label])
            .lines()
            .map(str::to_owned)
            .collect();
        ids.sort();
        assert_eq!(ids.len(), 2);
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut all = vec![
            docker(&[&["inspect"], ids.as_slice()].concat()),
            docker(&["image", "inspect", &format!("{name}:1"), &format!("{name}-unused:1")]),
            docker(&["volume", "inspect", name, &format!("{name}_own")]),
            docker(&["network", "inspect", &format!("{name}-unused"), &format!("{name}_default")]),
        ];
        let to = self.folder.0.join("seen");
        self.with_volume(|id| drop(docker(&["cp", &format!("{id}:/data/note"), &to.display().to_string()])));
        all.push(std::fs::read_to_string(to).unwrap());
        all
    }

    /// A container that is there only to reach into the unused volume.
    fn with_volume(&self, work: impl Fn(&str)) {
        let mount = format!("{}:/data", self.name);
        let id = docker(&["create", "--volume", &mount, &format!("{}:1", self.name)]);
        work(id.trim());
        docker(&["rm", id.trim()]);
    }

    /// Compares; it may be asked again after something else was done.
    #[track_caller]
    pub fn assert_untouched(&self) {
        for (before, after) in self.before.iter().zip(self.look()) {
            assert_eq!(*before, after);
        }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let of_project = |list: &[&str]| docker(&[list, &["--quiet", "--filter", &label]].concat());
        remove(&["rm", "--force"], &of_project(&["ps", "--all"]));
        remove(&["volume", "rm"], &of_project(&["volume", "ls"]));
        remove(&["network", "rm"], &of_project(&["network", "ls"]));
        let name = &self.name;
        for words in [
            ["volume", "rm", name].as_slice(),
            &["network", "rm", &format!("{name}-unused")],
            &["rmi", &format!("{name}:1")],
            &["rmi", &format!("{name}-unused:1")],
        ] {
            docker_client().args(words).output().unwrap();
        }
    }
}
