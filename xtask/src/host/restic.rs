//! restic, the program that keeps copies in a repository off the host: how it is called, what it answers, and what its
//! errors mean. Nothing here knows what is in a copy. Called by `deploy/remote`.
//!
//! The password goes from its file to restic: it is never read here, and is in no argument. restic takes what else it
//! needs (`AWS_ACCESS_KEY_ID`, …) from the environment, and the settings of `ssh` from the user's own.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::proc::{Cmd, RunError, cmd};
use anyhow::{Context, Error, Result, ensure};
use serde::Deserialize;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The oldest version that is used: major and minor.
const OLDEST: (u64, u64) = (0, 14);

/// The largest answer that is read, in bytes.
const ANSWER: u64 = 32 << 20;

/// Lines of an error that are told.
const TOLD: usize = 6;

/// How long a call may take that moves no data. restic itself tries a read that fails again, for some minutes.
const CALL: Duration = Duration::from_secs(600);

/// How long any call may take, whatever its size.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A deadline grows for 4 MiB a second, which is a disk. A line to another place may be slower by this factor.
const SLOWER: u64 = 16;

/// Says that restic does not lock the repository, so that it can look while another restic is at work.
const WITHOUT_LOCK: &str = "--no-lock";

/// A repository, which need not exist yet.
#[derive(Clone, Debug)]
pub struct Repository {
    location: String,
    password_file: PathBuf,
}

/// One snapshot, which is a folder as it was.
#[derive(Clone, Debug, Deserialize)]
pub struct Snapshot {
    /// Its id: 64 hex digits.
    pub id: String,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// What restic says of a folder that it has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Stored {
    /// How many files.
    #[serde(rename = "total_files_processed")]
    pub files: u64,
    /// Their bytes.
    #[serde(rename = "total_bytes_processed")]
    pub bytes: u64,
}

/// What is wrong, as far as restic says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// There is no repository.
    Absent,
    /// The password is another one, or the keys of the repository are gone.
    Password,
    /// Another restic has locked it.
    Locked,
    /// What is stored in it was altered, or is gone.
    Damaged,
    /// Anything else: it does not answer, its disk is full, …
    Other,
}

impl Repository {
    /// The repository at this location. Errors: restic is missing or too old (exit 4); the password file is missing, or
    /// others can read it (exit 2).
    pub fn at(location: &str, password_file: &Path) -> Result<Self> {
        is_installed()?;
        let shown = password_file.display();
        let data = std::fs::metadata(password_file).ok().filter(std::fs::Metadata::is_file);
        let Some(data) = data else {
            let what = format!("there is no password file {shown}");
            let next = "write the password of the repository into it, so that only you can read it (umask 077), and \
                        keep another copy elsewhere: without the password no backup comes back";
            return Err(fail(Exit::Usage, what, next));
        };
        if data.mode() & 0o077 != 0 {
            let mode = data.mode() & 0o777;
            let what = format!("others can read the password file {shown}: its mode is {mode:o}, not 600");
            let next = Next::program(["chmod", "600", &shown.to_string()]).so("then run this command again");
            return Err(fail(Exit::Usage, what, next));
        }
        let password_file = std::path::absolute(password_file)?;
        Ok(Self { location: location.to_owned(), password_file })
    }

    /// Where it is.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// How many locks it has; none if restic clearly says that there is no repository. That it does not answer is an
    /// error.
    pub fn locks(&self) -> Result<Option<usize>> {
        match self.said(self.restic(&["list", "locks", WITHOUT_LOCK]), CALL, 0) {
            Ok(said) => Ok(Some(said.lines().filter(|line| !line.trim().is_empty()).count())),
            Err(error) if trouble(&error) == Trouble::Absent => Ok(None),
            Err(error) => Err(self.told("cannot open", error)),
        }
    }

    /// Makes it.
    pub fn init(&self) -> Result<()> {
        self.done("cannot make", self.restic(&["init"]), 0).map(drop)
    }

    /// What makes a repository here, for a user who knows that there is none.
    pub fn init_by_hand(&self) -> Next {
        self.by_hand(&["init"])
    }

    /// Is the repository to be a folder of this host, and has that something in it? None if it is elsewhere.
    pub fn is_empty_folder(&self) -> Option<bool> {
        let path = self.location.strip_prefix("local:").unwrap_or(&self.location);
        path.starts_with('/').then(|| files::names(Path::new(path)).is_ok_and(|names| names.is_empty()))
    }

    /// Removes the locks of processes that have ended; `restic unlock` leaves the others.
    pub fn unlock(&self) -> Result<()> {
        self.done("cannot unlock", self.restic(&["unlock"]), 0).map(drop)
    }

    /// Stores a folder of so many bytes under the name of a host, with these tags, none of which has a comma. A
    /// snapshot may be there after an error too: of what could be read.
    pub fn store(&self, folder: &Path, host: &str, tags: &[String], bytes: u64) -> Result<Stored> {
        let each = tags.iter().flat_map(|tag| ["--tag", tag]);
        let words = ["backup", "--json", "--host", host].into_iter().chain(each).chain(["."]);
        let all: Vec<&str> = words.collect();
        let said = self.done("cannot store a backup in", self.restic(&all).dir(folder), bytes)?;
        self.understood(said.lines().last().unwrap_or_default())
    }

    /// The snapshots of a host. The repository is not locked for it.
    pub fn list(&self, host: &str) -> Result<Vec<Snapshot>> {
        let said = self.restic(&["snapshots", "--json", "--host", host, WITHOUT_LOCK]);
        let said = self.done("cannot list what is in", said, 0)?;
        self.understood::<Option<Vec<Snapshot>>>(&said).map(Option::unwrap_or_default)
    }

    /// Writes what is in a snapshot, of so many bytes, into a folder.
    pub fn fetch(&self, snapshot: &str, into: &Path, bytes: u64) -> Result<()> {
        let into = into.display().to_string();
        let restore = self.restic(&["restore", snapshot, "--target", &into]);
        self.done("cannot fetch a backup from", restore, bytes).map(drop)
    }

    /// Removes snapshots, and what no other snapshot needs. `bytes` is what the repository has.
    pub fn forget(&self, snapshots: &[String], bytes: u64) -> Result<()> {
        let words = ["forget", "--prune"].into_iter().chain(snapshots.iter().map(String::as_str));
        let forget = self.restic(&words.collect::<Vec<_>>());
        self.done("cannot remove old backups from", forget, bytes).map(drop)
    }

    /// How many bytes it has, of all its hosts.
    pub fn bytes(&self) -> Result<u64> {
        #[derive(Deserialize)]
        struct Size {
            total_size: u64,
        }
        let stats = self.restic(&["stats", "--mode", "raw-data", "--json", WITHOUT_LOCK]);
        let said = self.done("cannot read the size of", stats, 0)?;
        self.understood::<Size>(&said).map(|size| size.total_size)
    }

    /// Checks its structure, and reads a part of its data back, such as `5%`. `bytes` is what it has.
    pub fn check(&self, part: &str, bytes: u64) -> Result<()> {
        let check = self.restic(&["check", &format!("--read-data-subset={part}")]);
        self.done("cannot check", check, bytes).map(drop)
    }

    /// A call. Without `--quiet`, restic tells with `--json` sixty times a second how far it is.
    fn restic(&self, words: &[&str]) -> Cmd {
        let others = ["RESTIC_PASSWORD", "RESTIC_PASSWORD_COMMAND", "RESTIC_REPOSITORY_FILE"];
        cmd("restic", words)
            .args(["--quiet"])
            .env("RESTIC_REPOSITORY", &self.location)
            .env("RESTIC_PASSWORD_FILE", &self.password_file.display().to_string())
            .env_remove(others.map(str::to_owned))
    }

    /// The same as a line that a user can paste.
    fn by_hand(&self, words: &[&str]) -> Next {
        let file = self.password_file.display().to_string();
        let all = ["restic", "--repo", &self.location, "--password-file", &file];
        Next::program(all.iter().chain(words))
    }

    /// Runs a call that moves or reads so many bytes; its error is told.
    fn done(&self, tried: &str, call: Cmd, bytes: u64) -> Result<String> {
        self.said(call, CALL, bytes).map_err(|error| self.told(tried, error))
    }

    fn said(&self, call: Cmd, limit: Duration, bytes: u64) -> Result<String> {
        let deadline = Deadline::after(LONGEST).growing(limit).for_bytes(bytes.saturating_mul(SLOWER));
        let answer = call.read_by(deadline, |from| {
            let mut answer = Vec::new();
            from.take(ANSWER + 1).read_to_end(&mut answer)?;
            ensure!(answer.len() as u64 <= ANSWER, "restic said more than {}", files::human(ANSWER));
            Ok(answer)
        })?;
        String::from_utf8(answer).context("restic said something that is not UTF-8 text")
    }

    fn understood<'a, T: Deserialize<'a>>(&self, text: &'a str) -> Result<T> {
        serde_json::from_str(text).with_context(|| {
            let begin: String = text.chars().take(100).collect();
            format!("cannot understand what restic said of {}: {begin:?}", self.location)
        })
    }

    /// An error of restic as what it is, with what to do.
    fn told(&self, tried: &str, error: Error) -> Error {
        let (place, said) = (&self.location, shortened(&format!("{error:#}")));
        match trouble(&error) {
            Trouble::Absent => fail(
                Exit::Host,
                format!("there is no repository at {place}: {said}"),
                Next::xtask("backup push")
                    .so("makes it, if there was none before; else find out where it is"),
            ),
            Trouble::Password => fail(
                Exit::Usage,
                format!(
                    "the password in {} does not open the repository {place}: {said}",
                    self.password_file.display()
                ),
                self.by_hand(&["key", "list"]).so("tries the password; write the right one into that file"),
            ),
            Trouble::Locked => fail(
                Exit::Locked,
                format!("another restic has locked the repository {place}: {said}"),
                self.by_hand(&["unlock"]).so(
                    "removes the locks of processes that have ended (on another machine: after 30 minutes), \
                     and leaves the others; then run this command again",
                ),
            ),
            Trouble::Damaged => fail(
                Exit::Host,
                format!("the repository {place} is damaged; the backups on this machine are not: {said}"),
                self.by_hand(&["check", "--read-data"]).so("names all that is damaged; to repair it: \
                     https://restic.readthedocs.io/en/stable/077_troubleshooting.html"),
            ),
            Trouble::Other => fail(
                Exit::Host,
                format!("{tried} the repository {place}: {said}"),
                self.by_hand(&["snapshots"]).so("shows whether it answers; then run this command again"),
            ),
        }
    }
}

/// Is there a restic that is new enough?
fn is_installed() -> Result<()> {
    let next = || {
        Next::shell("sudo apt-get install restic").so(
            "on Debian and Ubuntu; elsewhere: https://restic.readthedocs.io/en/stable/020_installation.html",
        )
    };
    if which::which("restic").is_err() {
        let what = "restic is not on the PATH; it keeps the backups that are not on this machine";
        return Err(fail(Exit::Host, what, next()));
    }
    let said = cmd("restic", &["version"]).run(Deadline::after(Duration::from_secs(30)))?;
    match version(&said) {
        Some(version) if version < OLDEST => {
            let (major, minor) = OLDEST;
            let what = format!("{} is too old: at least {major}.{minor} is needed", said.trim());
            Err(fail(Exit::Host, what, next()))
        }
        // One that calls its version otherwise is newer.
        _ => Ok(()),
    }
}

/// Major and minor, of `restic 0.14.0 compiled with …`.
fn version(said: &str) -> Option<(u64, u64)> {
    let mut numbers = said.split_whitespace().nth(1)?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// What an error of restic means: by its exit code (from 0.17 on), else by its words.
fn trouble(error: &Error) -> Trouble {
    let Some(RunError::Status(text, code)) = error.downcast_ref::<RunError>() else { return Trouble::Other };
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // A repository that cannot be read (no permission, no answer) is said in the same words up to here.
    let none = ["no such file or directory", "does not exist", "doesn't exist", "(404)"];
    let damaged = [
        "repository contains errors",
        "ciphertext verification failed",
        "invalid data returned",
        "LoadIndex returned errors",
        "Pack ID does not match",
        "unable to load index",
    ];
    match code {
        Some(10) => Trouble::Absent,
        Some(11) => Trouble::Locked,
        Some(12) => Trouble::Password,
        _ if has(&["unable to open config file"]) && has(&none) => Trouble::Absent,
        _ if has(&["wrong password or no key found"]) => Trouble::Password,
        _ if has(&["unable to create lock in backend: repository is already locked"]) => Trouble::Locked,
        _ if has(&damaged) => Trouble::Damaged,
        _ => Trouble::Other,
    }
}

/// The last lines, without those that only say that something was tried again.
fn shortened(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains("returned error, retrying"))
        .collect();
    let first = lines.len().saturating_sub(TOLD);
    lines[first..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_apart_by_its_words_and_by_its_code() {
        let of = |text: &str, code| trouble(&Error::new(RunError::Status(text.into(), Some(code))));
        let local = "Fatal: unable to open config file: stat /r/config: no such file or directory\n\
                     Is there a repository at the following location?\n/r";
        for (text, code, is) in [
            (local, 1, Trouble::Absent),
            ("Fatal: unable to open config file: Lstat: file does not exist", 1, Trouble::Absent),
            ("Fatal: unable to open config file: stat /r/config: permission denied", 1, Trouble::Other),
            ("Fatal: unable to open config file: Lstat: connection lost", 1, Trouble::Other),
            ("open /some/file: no such file or directory", 1, Trouble::Other),
            ("Fatal: wrong password or no key found", 1, Trouble::Password),
            (
                "unable to create lock in backend: repository is already locked by PID 7 on vm by root",
                1,
                Trouble::Locked,
            ),
            ("Fatal: repository contains errors", 1, Trouble::Damaged),
            ("Fatal: load <index/42a0f782fc>: invalid data returned", 1, Trouble::Damaged),
            ("anything", 10, Trouble::Absent),
            ("anything", 11, Trouble::Locked),
            ("anything", 12, Trouble::Password),
            ("Fatal: unable to start the sftp session, error: EOF", 1, Trouble::Other),
        ] {
            assert_eq!(of(text, code), is, "{text} {code}");
        }
        assert_eq!(trouble(&Error::new(RunError::Deadline(local.into()))), Trouble::Other);
    }

    #[test]
    fn what_is_told_is_the_end_and_not_each_try() {
        let tries = "Load(<data/e1>) returned error, retrying after 5s: gone\n".repeat(30);
        assert_eq!(shortened(&format!("{tries}a\n\n b\n")), "a; b");
    }

    #[test]
    fn a_version_is_read() {
        assert_eq!(version("restic 0.14.0 compiled with go1.19.8 on linux/amd64"), Some((0, 14)));
        assert_eq!(version("restic 0.9.6 (v0.9.6) compiled"), Some((0, 9)));
        assert_eq!(version("restic"), None);
        assert!((0, 9) < OLDEST && (0, 18) > OLDEST && (1, 0) > OLDEST);
    }
}
