//! The services are built in a container where this machine is not Linux, or where an image for it is named. The image
//! of this test has a shell of this machine, and a cargo that stands in for the real one.

use crate::pilot::Engine::Compose2;
use crate::pilot::{Folder, Pilot, docker, on, program, workspace};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Removed when dropped.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.0]);
    }
}

/// Copies a program of this machine, with its libraries, to the same place below `root`.
fn copy_program(root: &Path, name: &str) {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
    let path = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    let needed = Command::new("ldd").arg(&path).output().unwrap();
    let needed = String::from_utf8(needed.stdout).unwrap();
    let libraries = needed.split_whitespace().filter(|word| word.starts_with('/'));
    for from in libraries {
        let to = root.join(from.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy(path, root.join("bin").join(name)).unwrap();
}

fn built_before(pilot: &Pilot) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let names = std::fs::read_dir(target).unwrap().flatten().map(|entry| entry.path().join("image/scenario"));
    let found =
        names.filter(|path| path.exists()).max_by_key(|path| path.metadata().unwrap().modified().unwrap());
    found.unwrap_or_else(|| panic!("{} was built by no test", pilot.project))
}

fn image(pilot: &Pilot) -> Image {
    let root = Folder::new("rust-image");
    ["sh", "sed", "cp", "mkdir"].iter().for_each(|name| copy_program(&root.0, name));
    std::fs::copy(built_before(pilot), root.0.join("built")).unwrap();
    program(&root.0.join("bin/rustc"), "#!/bin/sh\necho 'rustc 1.0'\necho 'host: here-unknown-linux'\n");
    let cargo = "#!/bin/sh\nset -e\n[ -f Cargo.lock ]\nif (: > /source/pt-written) 2>/dev/null; then exit 9; fi\n\
                 echo \"$RUSTFLAGS, $*\" > /target/told\nmkdir -p /target/here-unknown-linux/image\n\
                 cp /built /target/here-unknown-linux/image/scenario\n";
    program(&root.0.join("bin/cargo"), cargo);
    let image = Image(format!("{}-rust:1", pilot.project));
    let archive = pilot.folder.0.join("rust-image.tar").display().to_string();
    let packed = Command::new("tar").args(["-cf", &archive, "-C"]).arg(&root.0).arg(".").status().unwrap();
    assert!(packed.success());
    docker(&["import", &archive, &image.0]);
    image
}

#[test]
fn the_services_can_be_built_in_a_container() {
    on(&[Compose2], "in-docker", |pilot| {
        let mut pilot = pilot.up();
        let image = image(&pilot);
        let target = Folder::new("in-docker-target");
        pilot.set("CARGO_TARGET_DIR", &target.0.display().to_string());
        pilot.set("PILOT_BUILD_IMAGE", &image.0);
        let ran = pilot.xtask(&["up"]).expect(0);
        assert!(ran.all().contains(&format!("building the services in {}", image.0)), "{}", ran.all());
        let told = std::fs::read_to_string(target.0.join("in-docker/told")).unwrap();
        let args = "build --profile image --locked --package scenario --target here-unknown-linux";
        assert_eq!(told.trim(), format!("-C target-feature=+crt-static, {args}"));
        pilot.xtask(&["smoke"]).expect(0);
        // An image that is nowhere.
        let before = pilot.containers("{{.Id}}");
        pilot.set("PILOT_BUILD_IMAGE", &format!("{}-none:1", pilot.project));
        let refused = pilot.xtask(&["up"]).expect(4).err;
        for words in ["cannot be pulled", "nothing was begun", "docker pull", "up --tag"] {
            assert!(refused.contains(words), "{words}: {refused}");
        }
        assert_eq!(pilot.containers("{{.Id}}"), before);
        // Names of the container and of the image are the project's own, so both are gone.
        assert_eq!(
            docker(&["ps", "--all", "--quiet", "--filter", &format!("name={}-build", pilot.project)]),
            ""
        );
    });
}
