//! The tree that a release is made from: its commit, building its services, another commit in a
//! worktree of its own. The user's checkout, index and stashes are only read.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::files::Freed;
use crate::base::next::Next;
use crate::base::proc::{RunError, cmd};
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest that git takes for a question, and a worktree to be made.
const GIT: Duration = Duration::from_secs(20);

/// Longest that a build takes.
const BUILD: Duration = Duration::from_secs(30 * 60);

/// Folder, in cargo's, with the builds of other commits than the tree's.
pub const OTHER_COMMITS: &str = "other-commits";

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
    /// What people call it.
    pub label: String,
    /// Its commit.
    pub commit: String,
    /// Tag of its images, where there are any.
    pub tag: Option<String>,
}

/// The named restore points; a malformed file is an error with line and column.
fn restore_points(pilot: &Pilot) -> Result<Vec<RestorePoint>> {
    let path = pilot.pack.join("known-good.toml");
    let Some(bytes) = files::read_if_there(&path)? else { return Ok(Vec::new()) };
    let broken = |why: String| {
        fail(Exit::Usage, format!("cannot understand {}: {why}", path.display()), "fix the file")
    };
    let text = std::str::from_utf8(&bytes).map_err(|e| broken(e.to_string()))?;
    let file: KnownGood = toml::from_str(text).map_err(|e| broken(e.to_string()))?;
    if file.version != 1 {
        return Err(broken(format!("version {}, this xtask knows 1", file.version)));
    }
    Ok(file.restore_point)
}

/// The restore point of this label, if `known-good.toml` has it.
pub fn restore_point(pilot: &Pilot, label: &str) -> Result<Option<RestorePoint>> {
    Ok(restore_points(pilot)?.into_iter().find(|point| point.label == label))
}

/// Full id of a commit given by a label of `known-good.toml` or anything that git understands.
/// Nothing when the word does not look like a revision of this clone; an error where it is a label or
/// a commit id that is not here.
pub fn commit_of(pilot: &Pilot, rev: &str) -> Result<Option<String>> {
    let label = restore_point(pilot, rev)?;
    let wanted = label.as_ref().map_or(rev, |p| p.commit.as_str());
    let found = git(
        pilot,
        &["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{wanted}^{{commit}}")],
    );
    match found {
        Ok(id) => Ok(Some(id.trim().to_owned())),
        Err(error) if matches!(error.downcast_ref(), Some(RunError::Status(_))) => {
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

/// Commit of the tree, with `-dirty` where it was changed; nothing outside a repository.
pub fn head(pilot: &Pilot) -> Option<String> {
    let commit = git(pilot, &["rev-parse", "HEAD"]).ok()?.trim().to_owned();
    let changed = git(pilot, &["status", "--porcelain", "--untracked-files=no"]).ok()?;
    Some(if changed.trim().is_empty() { commit } else { format!("{commit}-dirty") })
}

fn git(pilot: &Pilot, args: &[&str]) -> Result<String> {
    let git = which::which("git").context("git is not on the PATH")?;
    cmd(git, args).dir(&pilot.root).run(Deadline::after(GIT))
}

/// Where the user's own checkout is switched to.
pub struct Checkout {
    /// As git is told.
    pub rev: String,
}

/// Refuses over uncommitted work, untracked files included: it would be carried along or lost.
pub fn checkout_of(pilot: &Pilot, rev: &str) -> Result<Checkout> {
    let commit = commit_of(pilot, rev)?.ok_or_else(|| {
        fail(
            Exit::Usage,
            format!("git knows no commit {rev}"),
            Next::shell("git log --oneline").so("shows those there are; git fetch gets more"),
        )
    })?;
    let changed = git(pilot, &["status", "--porcelain"])?;
    if !changed.trim().is_empty() {
        let what = format!("--checkout would go over uncommitted work:\n{}", changed.trim_end());
        let next = Next::shell(
            "git switch --create saved-work && git add --all && git commit --message \"saved work\"",
        );
        return Err(fail(Exit::Usage, what, next));
    }
    // A branch stays a branch; anything else is a commit without one.
    let branch = git(pilot, &["rev-parse", "--verify", "--quiet", &format!("refs/heads/{rev}")]).is_ok();
    Ok(Checkout { rev: if branch { rev.to_owned() } else { commit } })
}

impl Checkout {
    /// Switches.
    pub fn switch(&self, pilot: &Pilot) -> Result<()> {
        git(pilot, &["checkout", "--quiet", &self.rev, "--"]).map(drop)
    }
}

/// A commit checked out in a folder of its own; removed when dropped.
pub struct Worktree {
    root: PathBuf,
    path: PathBuf,
}

impl Worktree {
    /// Checks `commit` out beside everything else.
    pub fn new(pilot: &Pilot, commit: &str) -> Result<Self> {
        let path = pilot.state.worktrees().join(format!("{}-{}", &commit[..12], std::process::id()));
        let text = path.display().to_string();
        git(pilot, &["worktree", "add", "--detach", "--quiet", &text, commit])?;
        Ok(Self { root: pilot.root.clone(), path })
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes worktrees that a killed command left behind. Only for the holder of the lock.
pub fn remove_worktrees(pilot: &Pilot) -> Result<Vec<Freed>> {
    let folder = pilot.state.worktrees();
    let mut freed = Vec::new();
    for name in files::names(&folder)? {
        let path = folder.join(name);
        let bytes = files::size(&path)?;
        git(pilot, &["worktree", "remove", "--force", &path.display().to_string()]).ok();
        // What git does not know any more is still there.
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
            eprintln!("warning: {error:#}");
        }
    }
}

/// Would git take this file up? Yes, unless it is in no work tree or git says that it is ignored.
pub fn sees(path: &Path) -> bool {
    let Some(folder) = path.parent().filter(|_| path.ancestors().any(|dir| dir.join(".git").exists())) else {
        return false;
    };
    let asked = cmd("git", &["check-ignore", "--quiet", "--", &path.display().to_string()]).dir(folder);
    asked.run(Deadline::after(GIT)).is_err()
}

/// Builds the services of the tree at `root` into one static binary. For the user's own tree it shares
/// xtask's target folder: with `--target` the flags do not touch what xtask was built with. Another
/// commit gets a folder of its own, or the two would overwrite each other's binary.
pub fn build(pilot: &Pilot, root: &Path, say: &dyn Fn(String)) -> Result<PathBuf> {
    let target = host_triple()?;
    let package = &pilot.manifest.build.package;
    let target_dir = target_dir(pilot, (root != pilot.root).then_some(OTHER_COMMITS));
    let binary = target_dir.join(&target).join("image").join(package);
    if !binary.exists() {
        say(format!("building the services, {} crates: a minute or two, once", crates(root, package)));
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let static_flags = if target.contains("linux") { "-C target-feature=+crt-static" } else { "" };
    let args = ["build", "--profile", "image", "--locked", "--package", package, "--target", &target];
    let build = cmd(cargo, &args)
        .dir(root)
        .env("RUSTFLAGS", static_flags)
        .env("CARGO_TARGET_DIR", &target_dir.display().to_string())
        // What `cargo xtask` and `cargo test` set for us is not meant for this build.
        .env_remove(std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).filter(
            |name| {
                name.starts_with("CARGO_PKG_")
                    || name == "CARGO_ENCODED_RUSTFLAGS"
                    || name == "CARGO_MANIFEST_DIR"
            },
        ));
    // Cargo tells how far it is.
    build.show_errors().run(Deadline::after(BUILD)).map_err(|e| {
        fail(
            Exit::NotRestored,
            format!("the services do not build: {e:#}"),
            Next::xtask("up --from HEAD").so("or another commit; or fix the tree"),
        )
    })?;
    Ok(binary)
}

/// Where cargo builds, or a folder in it.
pub fn target_dir(pilot: &Pilot, below: Option<&str>) -> PathBuf {
    let dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| pilot.root.join("target"), PathBuf::from);
    below.map_or_else(|| dir.clone(), |name| dir.join(name))
}

/// Crates that a cold build compiles, for the announcement alone.
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
    host.map(str::to_owned).context("rustc does not tell its host")
}
