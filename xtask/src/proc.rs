//! The one way to run another program: in a process group of its own, with a deadline that ends the
//! whole group, output to files (a pipe that a grandchild holds would keep us waiting), and an error
//! that names what was run and what it said. Nothing here knows docker, git or cargo.

use crate::deadline::Deadline;
use crate::files;
use crate::secrets;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Groups that run now, for the signal handler.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Bytes of a program's output that an error repeats.
const TAIL: u64 = 2_000;

/// A command to be run, as a value.
#[derive(Clone, Debug)]
pub struct Cmd {
    program: PathBuf,
    args: Vec<String>,
    dir: Option<PathBuf>,
    env: Vec<(String, String)>,
    env_remove: Vec<String>,
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    show: bool,
    show_errors: bool,
}

/// How a program failed, for callers that tell the ways apart.
#[derive(Debug)]
pub enum RunError {
    /// It did not end by its deadline; its whole group was ended.
    Deadline(String),
    /// It ended with another code than 0.
    Status(String),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Deadline(text) | Self::Status(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for RunError {}

/// Starts describing a command.
pub fn cmd(program: impl AsRef<Path>, args: &[&str]) -> Cmd {
    Cmd {
        program: program.as_ref().to_owned(),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        dir: None,
        env: Vec::new(),
        env_remove: Vec::new(),
        stdin: None,
        stdout: None,
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

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes variables out of the inherited environment.
    pub fn env_remove(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.env_remove.extend(names);
        self
    }

    /// Standard input comes from this file.
    pub fn stdin_from(mut self, path: &Path) -> Self {
        self.stdin = Some(path.to_owned());
        self
    }

    /// Standard output goes to this file, however long it is.
    pub fn stdout_to(mut self, path: &Path) -> Self {
        self.stdout = Some(path.to_owned());
        self
    }

    /// The user sees what the program says on standard error, as it says it.
    pub fn show_errors(mut self) -> Self {
        self.show_errors = true;
        self
    }

    /// The user sees all that the program says, as it says it; `run` gives nothing back.
    pub fn show(mut self) -> Self {
        self.show = true;
        self.show_errors()
    }

    /// Runs to the end; the result is what it wrote to standard output. Errors: cannot be started,
    /// deadline, status (the last two as `RunError`).
    pub fn run(self, deadline: Deadline) -> Result<String> {
        let out = match &self.stdout {
            Some(path) => File::create(path).with_context(|| format!("cannot make {}", path.display()))?,
            None => files::anonymous()?,
        };
        let err = files::anonymous()?;
        let program = which::which(&self.program).with_context(|| format!("cannot find `{self}`"))?;
        let mut expression = duct::cmd(program, &self.args).unchecked().before_spawn(|command| {
            command.process_group(0);
            Ok(())
        });
        expression = match &self.stdin {
            Some(path) => expression.stdin_path(path),
            None => expression.stdin_null(),
        };
        if !self.show {
            expression = expression.stdout_file(out.try_clone().context("cannot share a file")?);
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
        let child = expression.start().with_context(|| format!("cannot start `{self}`"))?;
        let group = Group::enter(&child.pids());
        let ended = child.wait_timeout(deadline.left()).with_context(|| format!("waiting for `{self}`"))?;
        let status = ended.map(|output| output.status);
        match status {
            Some(status) if status.success() => {}
            Some(status) => {
                bail!(RunError::Status(format!("`{self}` ended with {status}: {}", said(&out, &err))))
            }
            None => {
                group.end();
                // Ended now; collect it, but never wait for what left the group.
                child.wait_timeout(Duration::from_secs(1)).ok();
                bail!(RunError::Deadline(format!("`{self}` did not end in time: {}", said(&out, &err))));
            }
        }
        drop(group);
        if self.stdout.is_some() || self.show {
            return Ok(String::new());
        }
        files::tail(&out, u64::MAX).with_context(|| format!("cannot read the output of `{self}`"))
    }
}

/// The end of what a program wrote, for an error: masked before it is cut, or half a secret would be left.
fn said(out: &File, err: &File) -> String {
    let end = |file| {
        let text = secrets::mask(&files::tail(file, 32 * TAIL).ok()?);
        let cut = text.len().saturating_sub(TAIL as usize);
        (cut..=text.len()).find_map(|at| text.get(at..)).map(str::to_owned)
    };
    let text: String = [out, err].into_iter().filter_map(end).collect();
    if text.trim().is_empty() { "no more was said".to_owned() } else { text.trim().to_owned() }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        write!(f, "{}", name.to_string_lossy())?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// A running process group, listed while it lives.
struct Group(Vec<i32>);

impl Group {
    fn enter(pids: &[u32]) -> Self {
        let pids: Vec<i32> = pids.iter().filter_map(|p| i32::try_from(*p).ok()).collect();
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).extend(&pids);
        Self(pids)
    }

    fn end(&self) {
        self.0.iter().for_each(|pid| end_group(*pid));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).retain(|pid| !self.0.contains(pid));
    }
}

/// Ends a group at once; one that is gone already is no error.
pub fn end_group(pid: i32) {
    signal_group(pid, Signal::KILL);
}

fn signal_group(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        kill_process_group(pid, signal).ok();
    }
}

/// What else is to be done when a signal ends this process.
type CleanUp = Box<dyn FnOnce() + Send>;
static CLEAN_UP: Mutex<Option<CleanUp>> = Mutex::new(None);

/// Sets what a signal does before it ends this process; a drill takes its pilot down.
pub fn on_signal(clean_up: impl FnOnce() + Send + 'static) {
    *CLEAN_UP.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(clean_up));
}

/// Ctrl-C and SIGTERM: the children are in groups of their own and would not hear them. Ends them,
/// then this process; what it was doing is in the journal and is resumed by the next call.
pub fn forward_signals() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .context("cannot listen for signals")?;
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // A child of ours may be this very program: it is told first, so that it ends its own.
        for last in [Signal::TERM, Signal::KILL] {
            let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner).clone();
            groups.iter().for_each(|pid| signal_group(*pid, last));
            std::thread::sleep(Duration::from_millis(if groups.is_empty() { 0 } else { 200 }));
        }
        eprintln!("\ninterrupted; the same command takes it up again");
        if let Some(clean_up) = CLEAN_UP.lock().unwrap_or_else(PoisonError::into_inner).take() {
            clean_up();
        }
        std::process::exit(128 + signal);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
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
}
