//! Every command of `docs/swarm.md`, in the order of the page, on the Swarm that the page itself makes: a lab in a folder of
//! this test, which is removed also when a command fails. Where the page says so in a comment, another exit code than 0.

use crate::daemon;
use crate::pilot::{Engine, Folder, Ran, available, ran, skip, workspace};
use std::path::Path;
use std::process::{Command, Stdio};

/// The folder of the lab, as the page has it.
const LAB: &str = "/tmp/lab";

/// Whatever is left of the lab is removed when this is dropped.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let script = workspace().join("scripts/swarm-lab");
        let removed = ran(Command::new("bash").arg(script).arg("down").arg(self.0).output().unwrap());
        if !std::thread::panicking() {
            assert_eq!(removed.code, 0, "{removed:?}");
        }
    }
}

/// The lines of the shell blocks that can run here. Nobody here has the nodes of an example.
fn lines(page: &str) -> Vec<&str> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    blocks.filter(|block| !block.contains("example.org")).flat_map(str::lines).collect()
}

/// The exit code that a line says, else 0.
fn code_of(line: &str) -> i32 {
    let said = line.split("# exit code ").nth(1).and_then(|rest| rest.split(':').next());
    said.map_or(0, |code| code.trim().parse().unwrap())
}

#[test]
fn every_command_of_the_page_on_swarms_runs() {
    if let Some(why) = available(Engine::Compose2).err().or_else(daemon::missing) {
        return skip("docs/swarm.md", &why);
    }
    let page = std::fs::read_to_string(workspace().join("docs/swarm.md")).unwrap();
    let folder = Folder::new("page");
    let lab = folder.0.join("lab");
    let _removed = Removed(&lab);
    let own = format!("{} --project pt-page-{}", env!("CARGO_BIN_EXE_xtask"), std::process::id());
    let mut client = None;
    let (mut count, mut acts) = (0, Vec::new());
    for line in lines(&page) {
        let text = line.replace(LAB, &lab.display().to_string());
        if let Some(config) = text.strip_prefix("export DOCKER_CONFIG=") {
            client = Some(config.to_owned());
            continue;
        }
        let text = text.replace("cargo xtask", &own);
        let mut command = Command::new("bash");
        command
            .args(["-c", &text])
            .current_dir(workspace())
            .env("PILOT_STATE_DIR", folder.0.join("state"))
            .env("PILOT_WATCH", "0s")
            .env("TMPDIR", &folder.0)
            .envs(client.iter().map(|config| ("DOCKER_CONFIG", config)))
            .stdin(Stdio::null());
        let Ran { code, out, err } = ran(command.output().unwrap());
        assert_eq!(code, code_of(line), "{line}\n--- out\n{out}\n--- err\n{err}");
        acts.extend(
            text.split("scripts/swarm-lab ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next().map(str::to_owned)),
        );
        count += 1;
    }
    assert!(count >= 11, "only {count} commands: is this still reading the page?");
    assert_eq!(acts, ["up", "lose", "back", "down"]);
    assert!(!lab.exists(), "the page leaves its lab behind");
}
