//! The source code that a release is made from: its commit, the build of the services, and worktrees of other
//! commits. The user's index and stashes are only read; the checkout is switched only by `--checkout`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail, next_of};
use crate::base::files::{self, Freed};
use crate::base::next::Next;
use crate::base::proc::{RunError, cmd};
use crate::base::stderr;
use crate::release::in_docker;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Limit for one git command.
const GIT: Duration = Duration::from_secs(20);

/// Limit for a build.
const BUILD: Duration = Duration::from_secs(30 * 60);

/// Folder, inside cargo's target folder, for builds of other commits.
pub const OTHER_COMMITS: &str = "other-commits";

/// Folder, inside the one of a build, for what is built in Docker.
const IN_DOCKER: &str = "in-docker";

/// `known-good.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownGood {
    version: u32,
    #[serde(default)]
    restore_point: Vec<RestorePoint>,
}

/// A name for a commit that worked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePoint {
    /// Its name.
    pub label: String,
    /// Its commit.
    pub commit: String,
    /// Tag of its images, if it has any.
    pub tag: Option<String>,
}

/// The restore points of `known-good.toml`; none if there is no such file. A malformed file is an
/// error with line and column.
fn restore_points(pilot: &Pilot) -> Result<Vec<RestorePoint>> {
    let path = pilot.pack.join("known-good.toml");
    let Some(bytes) = files::read_if_there(&path)? else { return Ok(Vec::new()) };
    let broken = |why: String| {
        fail(Exit::Usage, format!("{} is malformed: {why}", path.display()), "correct that file")
    };
    let text = std::str::from_utf8(&bytes).map_err(|e| broken(e.to_string()))?;
    let file: KnownGood = toml::from_str(text).map_err(|e| broken(e.to_string()))?;
    if file.version != 1 {
        return Err(broken(format!("its version is {}, but this xtask only knows version 1", file.version)));
    }
    Ok(file.restore_point)
}

/// The restore point with this label, if `known-good.toml` has one.
pub fn restore_point(pilot: &Pilot, label: &str) -> Result<Option<RestorePoint>> {
    Ok(restore_points(pilot)?.into_iter().find(|point| point.label == label))
}

/// The full id of a commit, from a label of `known-good.toml` or any revision that git understands.
/// Nothing if the word is not a revision of this clone. An error if it is a label or a commit id whose
/// commit is not in this clone.
pub fn commit_of(pilot: &Pilot, rev: &str) -> Result<Option<String>> {
    let label = restore_point(pilot, rev)?;
    let wanted = label.as_ref().map_or(rev, |p| p.commit.as_str());
    let found = git(
        pilot,
        &["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{wanted}^{{commit}}")],
    );
    match found {
        Ok(id) => Ok(Some(id.trim().to_owned())),
        Err(error) if matches!(error.downcast_ref(), Some(RunError::Status(..))) => {
            let looks_like_id = wanted.len() >= 7 && wanted.chars().all(|c| c.is_ascii_hexdigit());
            if label.is_none() && !looks_like_id {
                return Ok(None);
            }
            let what = format!("commit {wanted} is not in this clone");
            Err(fail(
                Exit::Usage,
                what,
                Next::shell(format!("git fetch origin {wanted}")).so("or git fetch --unshallow"),
            ))
        }
        Err(error) => Err(error),
    }
}

/// The commit of the checkout, with `-dirty` if there are uncommitted changes; nothing outside a repository.
pub fn head(pilot: &Pilot) -> Option<String> {
    let commit = git(pilot, &["rev-parse", "HEAD"]).ok()?.trim().to_owned();
    let changed = git(pilot, &["status", "--porcelain", "--untracked-files=no"]).ok()?;
    Some(if changed.trim().is_empty() { commit } else { format!("{commit}-dirty") })
}

fn git(pilot: &Pilot, args: &[&str]) -> Result<String> {
    let git = which::which("git").context("git is not on the PATH")?;
    cmd(git, args).dir(&pilot.root).run(Deadline::after(GIT))
}

/// What the user's checkout will be switched to.
pub struct Checkout {
    /// The branch or commit, as git gets it.
    pub rev: String,
}

/// Finds the commit for `--checkout`. Refuses if there is uncommitted work, untracked files included, because
/// a checkout would carry it along or lose it.
pub fn checkout_of(pilot: &Pilot, rev: &str) -> Result<Checkout> {
    let commit = commit_of(pilot, rev)?.ok_or_else(|| {
        fail(
            Exit::Usage,
            format!("git does not know the commit {rev}"),
            Next::shell("git log --oneline").so("to see the commits; git fetch gets more"),
        )
    })?;
    let changed = git(pilot, &["status", "--porcelain"])?;
    if !changed.trim().is_empty() {
        let what =
            format!("--checkout is refused, because there is uncommitted work:\n{}", changed.trim_end());
        let next = Next::shell(
            "git switch --create saved-work && git add --all && git commit --message \"saved work\"",
        );
        return Err(fail(Exit::Usage, what, next));
    }
    // A branch is checked out as a branch, anything else as a detached commit.
    let branch = git(pilot, &["rev-parse", "--verify", "--quiet", &format!("refs/heads/{rev}")]).is_ok();
    Ok(Checkout { rev: if branch { rev.to_owned() } else { commit } })
}

impl Checkout {
    /// Switches the checkout.
    pub fn switch(&self, pilot: &Pilot) -> Result<()> {
        git(pilot, &["checkout", "--quiet", &self.rev, "--"]).map(drop)
    }
}

/// A commit in a separate git worktree. It is removed when dropped.
pub struct Worktree {
    root: PathBuf,
    path: PathBuf,
}

impl Worktree {
    /// Checks out `commit` in a new worktree in the state folder.
    pub fn new(pilot: &Pilot, commit: &str) -> Result<Self> {
        let path = pilot.state.worktrees().join(&commit[..12]);
        let text = path.display().to_string();
        // By force: git still lists the worktree of a killed command whose folder somebody deleted.
        git(pilot, &["worktree", "add", "--force", "--detach", "--quiet", &text, commit])?;
        Ok(Self { root: pilot.root.clone(), path })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes worktrees that a killed command left behind. The caller must hold the lock.
pub fn remove_worktrees(pilot: &Pilot) -> Result<Vec<Freed>> {
    let folder = pilot.state.worktrees();
    let mut freed = Vec::new();
    for name in files::names(&folder)? {
        let path = folder.join(name);
        let bytes = files::size(&path)?;
        git(pilot, &["worktree", "remove", "--force", &path.display().to_string()]).ok();
        // The folder may still exist if git no longer knows the worktree.
        files::remove(&path)?;
        freed.push(Freed { what: format!("worktree {}", path.display()), bytes });
    }
    Ok(freed)
}

impl Drop for Worktree {
    fn drop(&mut self) {
        let text = self.path.display().to_string();
        let removed = cmd("git", &["worktree", "remove", "--force", &text]).dir(&self.root);
        if let Err(error) = removed.run(Deadline::after(GIT)) {
            stderr::line(format!("warning: {error:#}"));
        }
    }
}

/// Could git commit this file? Yes, unless it is outside every work tree, or git ignores it.
pub fn sees(path: &Path) -> bool {
    let Some(folder) = path.parent().filter(|_| path.ancestors().any(|dir| dir.join(".git").exists())) else {
        return false;
    };
    let asked = cmd("git", &["check-ignore", "--quiet", "--", &path.display().to_string()]).dir(folder);
    asked.run(Deadline::after(GIT)).is_err()
}

/// Is a build made in a container, which mounts the source code?
fn is_built_in_docker(target: &str) -> bool {
    !target.contains("linux") || std::env::var_os(in_docker::IMAGE).is_some_and(|image| !image.is_empty())
}

/// Refuses a build that mounts files of this machine into a container of another one, `host`.
pub fn builds_with(host: &str) -> Result<()> {
    if !is_built_in_docker(&host_triple()?) {
        return Ok(());
    }
    let what = format!(
        "the services are built in a container that mounts the source code, and the engine is on {host}, which does \
         not have it; nothing was begun"
    );
    Err(fail(Exit::Usage, what, Next::xtask("up --tag TAG").so("uses images that are built already")))
}

/// Builds the services of the source code at `root` into one static binary, and returns its path. Where this machine is
/// not Linux, or an image for it is named, the build is in Docker. The user's
/// own source code shares xtask's target folder, because with `--target` the flags do not apply to xtask's
/// dependencies. Another commit gets a separate folder, or the two would overwrite each other's binary.
pub fn build(pilot: &Pilot, root: &Path, say: &dyn Fn(String)) -> Result<PathBuf> {
    let target = host_triple()?;
    let package = package(pilot)?;
    let shared = target_dir(pilot);
    let own = if root == pilot.root { shared.clone() } else { shared.join(OTHER_COMMITS) };
    if is_built_in_docker(&target) {
        let built = in_docker::build(pilot, root, &own.join(IN_DOCKER), say, Deadline::after(BUILD));
        return built.map_err(not_built);
    }
    let binary = own.join(&target).join("image").join(package);
    if !binary.exists() {
        say(format!(
            "building the services, {} crates; only the first build takes a minute or two",
            crates(root, package)
        ));
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let args = ["build", "--profile", "image", "--locked", "--package", package, "--target", &target];
    let build = cmd(cargo, &args)
        .dir(root)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_DIR", &own.display().to_string())
        // Compiled crates are shared by all commits (cargo 1.91; an older cargo compiles them again).
        .env("CARGO_BUILD_BUILD_DIR", &shared.display().to_string())
        // `cargo xtask` and `cargo test` set these variables for this program, not for
        // the build that it starts.
        .env_remove(std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).filter(
            |name| {
                name.starts_with("CARGO_PKG_")
                    || name == "CARGO_ENCODED_RUSTFLAGS"
                    || name == "CARGO_MANIFEST_DIR"
            },
        ));
    // The user sees cargo's progress.
    build.show_errors().run(Deadline::after(BUILD)).map_err(not_built)?;
    Ok(binary)
}

/// The cargo package of the services.
fn package(pilot: &Pilot) -> Result<&str> {
    let build = pilot.manifest.build.as_ref();
    build.map(|build| build.package.as_str()).context("the manifest of the stack has no [build]")
}

fn not_built(error: anyhow::Error) -> anyhow::Error {
    if next_of(&error).is_some() {
        return error;
    }
    let what = format!("cannot build the services: {error:#}");
    let next = Next::xtask("up --from HEAD");
    fail(
        Exit::NotRestored,
        what,
        next.so("to deploy the last commit (or name another one); or correct the source code"),
    )
}

/// The version of the services at `root`, for example `v1.0.0`.
pub fn label(pilot: &Pilot, root: &Path) -> Result<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let asked = cmd(cargo, &["pkgid", "--locked", "--package", package(pilot)?]).dir(root);
    let said = asked.run(Deadline::after(GIT))?;
    // `path+file:///clone/pilot-deploy/services#scenario@1.0.0` (cargo-pkgid(1), "Package ID Specification").
    let version = said.trim().rsplit(['@', '#']).next().filter(|version| !version.is_empty());
    Ok(format!("v{}", version.with_context(|| format!("cargo pkgid says {said:?}"))?))
}

/// Cargo's target folder.
pub fn target_dir(pilot: &Pilot) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| pilot.root.join("target"), PathBuf::from)
}

/// How many crates a first build compiles; only for the message.
fn crates(root: &Path, package: &str) -> String {
    let args = ["tree", "--package", package, "--edges", "normal,build", "--prefix", "none", "--locked"];
    let listed = cmd("cargo", &args).dir(root).run(Deadline::after(GIT)).unwrap_or_default();
    let mut names: Vec<&str> = listed.lines().filter_map(|l| l.split(" (").next()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "some 100".into() } else { names.len().to_string() }
}

fn host_triple() -> Result<String> {
    let said = cmd("rustc", &["--version", "--verbose"]).run(Deadline::after(GIT))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc --version --verbose` shows no host")
}
