//! Builds the services inside Docker: where this machine is not Linux, a program for an image cannot be built without a
//! cross linker. The workspace is mounted read-only into a Rust image; what cargo makes and downloads stays in the
//! target folder. Called only by `source`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::proc::cmd;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Names the image to build in. If it is set, the build is in Docker on Linux too.
pub const IMAGE: &str = "PILOT_BUILD_IMAGE";

/// The official image, which has the linker and the static C library.
const OFFICIAL: &str = "rust:1-bookworm";

/// The folder of the workspace, and that of cargo, in the container.
const SOURCE: &str = "/source";
const TARGET: &str = "/target";

/// Builds for the architecture of the image, and leaves the program where its name does not depend on that.
const SCRIPT: &str = "set -e
target=$(rustc --version --verbose | sed -n 's/^host: //p')
cargo build --profile image --locked --package \"$1\" --target \"$target\"
cp \"/target/$target/image/$1\" \"/target/$1\"";

/// Builds the services of the source code at `root`. `target` is the folder for what cargo makes.
pub fn build(
    pilot: &Pilot,
    root: &Path,
    target: &Path,
    say: &dyn Fn(String),
    deadline: Deadline,
) -> Result<PathBuf> {
    let docker =
        which::which("docker").context("the services are built in Docker, and there is no docker client")?;
    let image =
        std::env::var(IMAGE).ok().filter(|name| !name.is_empty()).unwrap_or_else(|| OFFICIAL.to_owned());
    if cmd(&docker, &["image", "inspect", "--format", "{{.Id}}", &image]).run(deadline).is_err() {
        say(format!("pulling {image}, to build the services in"));
        cmd(&docker, &["pull", "--quiet", &image]).run(deadline).map_err(|error| no_image(&image, &error))?;
    }
    files::make_folder(target)?;
    // Docker takes a relative path for the name of a volume.
    let target = &std::path::absolute(target).context("cannot find the target folder")?;
    say(format!("building the services in {image}; only the first build takes some minutes"));
    let name = format!("{}-build-{}", pilot.project, std::process::id());
    let package = pilot.manifest.build.as_ref().map(|build| build.package.as_str());
    let package = package.context("the manifest of the stack has no [build]")?;
    let ran = cmd(&docker, &[]).args(words(&name, &image, root, target, package)).show_errors().run(deadline);
    if ran.is_err() {
        // Docker does not end a container with its client.
        cmd(&docker, &["rm", "--force", &name]).run(deadline).ok();
    }
    ran.with_context(|| format!("in a container of the image {image}"))?;
    Ok(target.join(package))
}

fn no_image(image: &str, error: &anyhow::Error) -> anyhow::Error {
    let what = format!(
        "the services are built in Docker, and the image {image} cannot be pulled; nothing was begun: {error:#}"
    );
    let next = Next::shell(format!("docker pull {image}")).so(format!(
        "or name an image with Rust in {IMAGE}; or use images that are built already: up --tag TAG"
    ));
    fail(Exit::Host, what, next)
}

/// The arguments of docker.
fn words(name: &str, image: &str, root: &Path, target: &Path, package: &str) -> Vec<String> {
    let user = format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut all: Vec<String> =
        ["run", "--rm", "--init", "--name", name, "--user", &user].map(str::to_owned).into();
    all.extend(["--volume".to_owned(), format!("{}:{SOURCE}:ro", root.display())]);
    all.extend(["--volume".to_owned(), format!("{}:{TARGET}", target.display())]);
    for variable in [
        "HOME=/target/home",
        "CARGO_HOME=/target/home/cargo",
        "CARGO_TARGET_DIR=/target",
        "RUSTFLAGS=-C target-feature=+crt-static",
    ] {
        all.extend(["--env".to_owned(), variable.to_owned()]);
    }
    all.extend(["--workdir", SOURCE, image, "sh", "-c", SCRIPT, "sh", package].map(str::to_owned));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_only_read_and_everything_made_is_in_the_target_folder() {
        let all =
            words("p-build-1", "rust:1", Path::new("/clone"), Path::new("/clone/target/in-docker"), "shop");
        let has = |pair: [&str; 2]| all.windows(2).any(|words| words == pair);
        assert!(
            has(["--volume", "/clone:/source:ro"]) && has(["--volume", "/clone/target/in-docker:/target"])
        );
        assert!(has(["--env", "RUSTFLAGS=-C target-feature=+crt-static"]) && has(["--workdir", "/source"]));
        let at = all.iter().position(|word| word == "rust:1").unwrap();
        assert_eq!(all[at + 1..], ["sh", "-c", SCRIPT, "sh", "shop"]);
    }
}
