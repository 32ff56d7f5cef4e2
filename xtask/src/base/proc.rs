//! The only way to run another program: in its own process group, with a deadline that ends the whole group.
//! Output goes to files, because a pipe that a grandchild holds open would keep us waiting; only what may be too large
//! for that comes through a pipe, which is read until the deadline at most. An error names the command and what it wrote. Nothing here knows docker, git or cargo.

use crate::base::deadline::Deadline;
use crate::base::failure::over_budget;
use crate::base::files;
use crate::base::secrets;
use crate::base::signals;
use anyhow::{Context, Error, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a program's standard error that an error message shows.
const TAIL: u64 = 2_000;

/// If standard error is empty: lines of standard output that an error message shows, and their bytes.
const LINES: usize = 5;
const LAST_WORDS: u64 = 400;

/// Bytes that are passed on at a time.
const BLOCK: usize = 256 << 10;

/// A command, as a value.
#[derive(Clone, Debug)]
pub struct Cmd {
    program: PathBuf,
    args: Vec<String>,
    dir: Option<PathBuf>,
    env: Vec<(String, String)>,
    env_remove: Vec<String>,
    stdin: Option<PathBuf>,
    show: bool,
    show_errors: bool,
}

/// How a program failed, for callers that must tell the two ways apart.
#[derive(Debug)]
pub enum RunError {
    /// It did not end before its deadline; its whole process group was killed.
    Deadline(String),
    /// It ended with an exit code other than 0; without one if a signal ended it.
    Status(String, Option<i32>),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Deadline(text) | Self::Status(text, _)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for RunError {}

/// A new command.
pub fn cmd(program: impl AsRef<Path>, args: &[&str]) -> Cmd {
    Cmd {
        program: program.as_ref().to_owned(),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        dir: None,
        env: Vec::new(),
        env_remove: Vec::new(),
        stdin: None,
        show: false,
        show_errors: false,
    }
}

impl Cmd {
    /// Adds arguments.
    pub fn args<S: AsRef<str>>(mut self, more: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(more.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Runs in this folder.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes variables from the inherited environment.
    pub fn env_remove(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.env_remove.extend(names);
        self
    }

    /// Standard input comes from this file.
    pub fn stdin_from(mut self, path: &Path) -> Self {
        self.stdin = Some(path.to_owned());
        self
    }

    /// The program's standard error goes directly to the user.
    pub fn show_errors(mut self) -> Self {
        self.show_errors = true;
        self
    }

    /// All output of the program goes directly to the user; `run` returns an empty string.
    pub fn show(mut self) -> Self {
        self.show = true;
        self.show_errors()
    }

    /// Runs the command to its end and returns its standard output. Errors: it cannot be started; it missed
    /// the deadline, or its exit code is not 0 (both as `RunError`).
    pub fn run(self, deadline: Deadline) -> Result<String> {
        let out = files::anonymous()?;
        let shared = out.try_clone().context("cannot share a file")?;
        self.start((!self.show).then_some(shared), deadline)?.end(&self, Some(&out), deadline)?;
        if self.show {
            return Ok(String::new());
        }
        files::tail(&out, u64::MAX).with_context(|| format!("cannot read the output of `{self}`"))
    }

    /// Runs the command, and gives its standard output to `into` as it comes, so that none of it has to fit into
    /// memory or on a disk. Errors as of `run`; if `into` fails, the command is ended and that is the error.
    pub fn run_into(self, into: &mut dyn Write, deadline: Deadline) -> Result<()> {
        let (from, out) = std::io::pipe().context("cannot make a pipe")?;
        let running = self.start(Some(out), deadline)?;
        match pump(&from, into, deadline) {
            Ok(passed) => running.end(&self, None, deadline.for_bytes(passed)),
            Err(Pumped::Late) => Err(running.stop(&self, None, deadline)),
            Err(Pumped::Failed(error)) => {
                running.group.end();
                Err(error).with_context(|| format!("cannot keep the output of `{self}`"))
            }
        }
    }

    /// Starts it, with standard output to `out`; none to show it to the user.
    fn start(&self, out: Option<impl Into<OwnedFd>>, deadline: Deadline) -> Result<Running> {
        let err = files::anonymous()?;
        let program = which::which(&self.program).with_context(|| format!("cannot find `{self}`"))?;
        if deadline.passed() {
            return Err(late(deadline, format!("`{self}` was not started, because no time was left for it")));
        }
        let mut expression = duct::cmd(program, &self.args).unchecked().before_spawn(|command| {
            command.process_group(0);
            Ok(())
        });
        expression = match &self.stdin {
            Some(path) => expression.stdin_path(path),
            None => expression.stdin_null(),
        };
        if let Some(out) = out {
            expression = expression.stdout_file(out.into());
        }
        if !self.show_errors {
            expression = expression.stderr_file(err.try_clone().context("cannot share a file")?);
        }
        for name in &self.env_remove {
            expression = expression.env_remove(name);
        }
        for (name, value) in &self.env {
            expression = expression.env(name, value);
        }
        if let Some(dir) = &self.dir {
            expression = expression.dir(dir);
        }
        let (child, group) = signals::start(&expression).with_context(|| format!("cannot start `{self}`"))?;
        Ok(Running { child, group, err })
    }
}

/// A program that was started.
struct Running {
    child: duct::Handle,
    group: signals::Group,
    err: File,
}

impl Running {
    /// Waits for its end, which must come before the deadline. `out` has its output, if it went to a file.
    fn end(self, command: &Cmd, out: Option<&File>, deadline: Deadline) -> Result<()> {
        let ended = self.child.wait_timeout(deadline.left());
        let ended =
            ended.with_context(|| format!("cannot wait for `{command}`"))?.map(|output| output.status);
        signals::pass();
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let what = format!("`{command}` ended with {status}: {}", said(out, &self.err));
                bail!(RunError::Status(what, status.code()))
            }
            None => Err(self.stop(command, out, deadline)),
        }
    }

    /// Kills its whole group, because it missed the deadline; returns that as the error.
    fn stop(self, command: &Cmd, out: Option<&File>, deadline: Deadline) -> Error {
        self.group.end();
        // Collect the killed child. The limit is for a process that has left the group.
        self.child.wait_timeout(Duration::from_secs(1)).ok();
        late(deadline, format!("`{command}` did not end in time: {}", said(out, &self.err)))
    }
}

/// Why the output of a program could not be passed on.
enum Pumped {
    Late,
    Failed(std::io::Error),
}

/// Passes on what comes through a pipe until all its writers have closed it. A read waits until the deadline at most,
/// which may grow with the bytes, because a process that has left the group of the program may keep the pipe open.
fn pump(from: &PipeReader, into: &mut dyn Write, deadline: Deadline) -> Result<u64, Pumped> {
    let (mut block, mut passed) = (vec![0; BLOCK], 0);
    loop {
        let left = Timespec::try_from(deadline.for_bytes(passed).left())
            .unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        match poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => continue,
            Ok(0) => return Err(Pumped::Late),
            Ok(_) => {}
            Err(error) => return Err(Pumped::Failed(error.into())),
        }
        match (&mut &*from).read(&mut block) {
            Ok(0) => return Ok(passed),
            Ok(read) => {
                into.write_all(&block[..read]).map_err(Pumped::Failed)?;
                passed += read as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Pumped::Failed(error)),
        }
    }
}

/// A missed deadline: of a run's budget, or of one action.
fn late(deadline: Deadline, what: String) -> Error {
    let late = Error::new(RunError::Deadline(what));
    if deadline.is_budget() { late.context(over_budget()) } else { late }
}

/// Why a program failed, in its own words: the end of its standard error. If that is empty, the end of its
/// standard output. Secrets are masked before the text is cut, or half a secret could be left.
fn said(out: Option<&File>, err: &File) -> String {
    let end = |file, bytes: u64| {
        let text = secrets::mask(&files::tail(file, 32 * bytes).unwrap_or_default());
        let cut = text.len().saturating_sub(bytes as usize);
        (cut..=text.len()).find_map(|at| text.get(at..)).unwrap_or_default().trim().to_owned()
    };
    let error = end(err, TAIL);
    if !error.is_empty() {
        return error;
    }
    let output = out.map(|out| end(out, LAST_WORDS)).unwrap_or_default();
    let lines: Vec<&str> = output.lines().collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
    if last.is_empty() { "it wrote no message".to_owned() } else { last }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        write!(f, "{}", name.to_string_lossy())?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::{Exit, exit_of};
    use std::time::Instant;

    #[test]
    fn the_deadline_ends_grandchildren_too() {
        let scratch = files::Scratch::new("proc-test").unwrap();
        let pid_file = scratch.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        let start = Instant::now();
        let error = cmd("sh", &["-c", &script]).run(Deadline::after(Duration::from_millis(300))).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(RunError::Deadline(_))), "{error:#}");
        assert!(start.elapsed() < Duration::from_secs(5));
        let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        // SIGKILL is asynchronous and the orphan is collected by somebody else: give it a moment.
        let gone = |pid| {
            let state = cmd("ps", &["-o", "stat=", "-p", &format!("{pid}")]);
            let state = state.run(Deadline::after(Duration::from_secs(5))).unwrap_or_default();
            state.trim().is_empty() || state.starts_with('Z')
        };
        let limit = Deadline::after(Duration::from_secs(5));
        while !gone(pid) {
            assert!(!limit.passed(), "grandchild {pid} is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn an_error_names_the_command_and_what_it_said() {
        let error =
            cmd("sh", &["-c", "echo no such thing >&2; exit 3"]).run(Deadline::after(Duration::from_secs(5)));
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.contains("sh -c") && text.contains("no such thing") && text.contains('3'), "{text}");
    }

    #[test]
    fn an_error_repeats_what_went_wrong_and_not_the_result() {
        let said = |script: &str| {
            let limit = Deadline::after(Duration::from_secs(5));
            format!("{:#}", cmd("sh", &["-c", script, "seq"]).run(limit).unwrap_err())
        };
        let both = said("$0 1000; echo no such container >&2; exit 1");
        assert!(both.contains("no such container") && !both.contains("999"), "{both}");
        let output = said("$0 1000; exit 1");
        assert!(output.contains("1000") && output.lines().count() == LINES, "{output}");
    }

    #[test]
    fn output_is_passed_on_as_it_comes_and_not_past_the_deadline() {
        let mut all = Vec::new();
        let much = cmd("sh", &["-c", "head -c 3000000 /dev/zero"]);
        much.run_into(&mut all, Deadline::after(Duration::from_secs(20))).unwrap();
        assert_eq!(all.len(), 3_000_000);
        // A process that has left the group keeps the pipe open.
        let start = Instant::now();
        let left = cmd("sh", &["-c", "setsid sleep 20 & echo begun"]);
        let error = left.run_into(&mut all, Deadline::after(Duration::from_millis(300))).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(RunError::Deadline(_))), "{error:#}");
        assert!(start.elapsed() < Duration::from_secs(10));
        // Where it cannot be kept, the program does not go on.
        let endless = cmd("sh", &["-c", "exec cat /dev/zero"]);
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = endless.run_into(&mut full, Deadline::after(Duration::from_secs(20))).unwrap_err();
        assert!(format!("{error:#}").contains("No space left"), "{error:#}");
        let fails = cmd("sh", &["-c", "echo half; echo why >&2; exit 3"]);
        let error = fails.run_into(&mut all, Deadline::after(Duration::from_secs(20))).unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(RunError::Status(text, Some(3))) if text.contains("why"))
        );
    }

    #[test]
    fn what_a_budget_cuts_short_is_the_budgets_end() {
        let exit = |deadline: Deadline| {
            let error = cmd("sleep", &["60"]).run(deadline).unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(RunError::Deadline(_))), "{error:#}");
            exit_of(&error)
        };
        let (short, long) = (Duration::from_millis(100), Duration::from_secs(60));
        let now = Instant::now();
        assert_eq!(exit(Deadline::from(now, short).within(long)), Exit::OverBudget);
        assert_eq!(exit(Deadline::from(now, long).within(short)), Exit::NotRestored);
        assert_eq!(exit(Deadline::after(short)), Exit::NotRestored);
    }
}
