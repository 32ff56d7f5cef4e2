//! The only way to run another program: in its own process group, with a deadline that ends the whole group.
//! Output goes to files, because a pipe that a grandchild holds open would keep us waiting; output without a limit of
//! size goes through a pipe that has the deadline too. An error names the command and what it wrote. Nothing here knows
//! docker, git or cargo.

use crate::base::deadline::Deadline;
use crate::base::failure::over_budget;
use crate::base::files;
use crate::base::pipe::Pipe;
use crate::base::screen;
use crate::base::secrets;
use crate::base::signals;
use anyhow::{Context, Error, Result, bail};
use std::fmt;
use std::fs::File;
use std::io::{BufReader, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a program's standard error that an error message shows.
const TAIL: u64 = 2_000;

/// If standard error is empty: lines of standard output that an error message shows, and their bytes.
const LINES: usize = 5;
const LAST_WORDS: u64 = 400;

/// Characters of one line of it.
const LINE: usize = 300;

/// Bytes that are passed on at a time.
const BLOCK: usize = 256 << 10;

/// How long a program that lost its pipe, or was killed, may take to end.
const LAST: Duration = Duration::from_secs(1);

/// A command, as a value.
#[derive(Clone, Debug)]
pub struct Cmd {
    program: PathBuf,
    args: Vec<String>,
    dir: Option<PathBuf>,
    env: Vec<(String, String)>,
    env_remove: Vec<String>,
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

    /// The user sees what the program writes to standard error: all of it, or on a terminal its last line.
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
        let child = self.start(deadline, |expression| {
            let expression = expression.stdin_null();
            if self.show { expression } else { expression.stdout_file(shared) }
        })?;
        child.end(&self, Some(&out), deadline)?;
        if self.show {
            return Ok(String::new());
        }
        files::tail(&out, u64::MAX).with_context(|| format!("cannot read the output of `{self}`"))
    }

    /// Runs the command, and gives its standard output to `into` as it comes, so that none of it has to fit into
    /// memory or on a disk. Errors: those of `run`, and that of `into`; then the command was killed.
    pub fn run_into(self, into: &mut dyn Write, deadline: Deadline) -> Result<()> {
        let what = format!("cannot keep the output of `{self}`");
        self.read_by(deadline, |from| {
            std::io::copy(&mut BufReader::with_capacity(BLOCK, from), into).context(what).map(drop)
        })
    }

    /// Runs the command while `take` reads its standard output, which has no limit of size. Errors: those of
    /// `run`, and that of `take`.
    pub fn read_by<T>(self, deadline: Deadline, take: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
        let (ours, theirs) = std::io::pipe().context("cannot make a pipe")?;
        let mut pipe = Pipe::new(ours, deadline).context("cannot make a pipe")?;
        let child = self.start(deadline, |expression| expression.stdin_null().stdout_file(theirs))?;
        let took = take(&mut pipe);
        let deadline = pipe.deadline();
        drop(pipe);
        child.after(took, &self, None, deadline)
    }

    /// Runs the command while `give` writes its standard input. Errors: those of `run`, and that of `give`; then the
    /// command was killed before its input had an end.
    pub fn write_by(
        self,
        deadline: Deadline,
        give: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<String> {
        let (theirs, ours) = std::io::pipe().context("cannot make a pipe")?;
        let mut pipe = Pipe::new(ours, deadline).context("cannot make a pipe")?;
        let out = files::anonymous()?;
        let shared = out.try_clone().context("cannot share a file")?;
        let child = self.start(deadline, |expression| expression.stdin_file(theirs).stdout_file(shared))?;
        let gave = give(&mut pipe);
        let deadline = pipe.deadline();
        // The input has an end only if all of it was given.
        let open = gave.is_err().then_some(pipe);
        child.after(gave, &self, Some(&out), deadline)?;
        drop(open);
        files::tail(&out, u64::MAX).with_context(|| format!("cannot read the output of `{self}`"))
    }

    /// Starts the command to talk to it: for programs that pass on to a server what they read, and its answers back. Errors:
    /// it cannot be started.
    pub fn talk(self, deadline: Deadline) -> Result<Talk> {
        let (input, mine) = std::io::pipe().context("cannot make a pipe")?;
        let (ours, output) = std::io::pipe().context("cannot make a pipe")?;
        let to = Pipe::new(mine, deadline).context("cannot make a pipe")?;
        let from = Pipe::new(ours, deadline).context("cannot make a pipe")?;
        let child = self.start(deadline, |expression| expression.stdin_file(input).stdout_file(output))?;
        Ok(Talk { cmd: self, child, to, from })
    }

    /// Starts it. `io` sets its standard input and output.
    fn start(
        &self,
        deadline: Deadline,
        io: impl FnOnce(duct::Expression) -> duct::Expression,
    ) -> Result<Child> {
        let err = files::anonymous()?;
        let program = which::which(&self.program).with_context(|| format!("cannot find `{self}`"))?;
        if deadline.passed() {
            return Err(late(deadline, format!("`{self}` was not started, because no time was left for it")));
        }
        let mut expression = io(duct::cmd(program, &self.args).unchecked().before_spawn(|command| {
            command.process_group(0);
            Ok(())
        }));
        let followed = screen::follow(&err).filter(|_| self.show_errors && !self.show);
        if !self.show_errors || followed.is_some() {
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
        screen::runs(|| secrets::mask(&self.to_string()));
        let lent = (self.show_errors && followed.is_none()).then(screen::lend);
        let (handle, group) =
            signals::start(&expression).with_context(|| format!("cannot start `{self}`"))?;
        Ok(Child { handle, group, err, _shown: (lent, followed) })
    }
}

/// A program that is talked to. It is killed when this is dropped, and ends by itself if this process does.
pub struct Talk {
    cmd: Cmd,
    child: Child,
    to: Pipe<PipeWriter>,
    from: Pipe<PipeReader>,
}

impl Talk {
    /// `talk` writes its standard input and reads its standard output. Errors: those of `Cmd::run`, and that of `talk`;
    /// after one the program is ended, and nothing more can be said.
    pub fn part<T>(
        &mut self,
        deadline: Deadline,
        talk: impl FnOnce(&mut dyn Write, &mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        self.to.until(deadline);
        self.from.until(deadline);
        let talked = talk(&mut self.to, &mut self.from);
        talked.map_err(|error| self.child.failed(error, &self.cmd, None, deadline))
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // The number of one that has ended may be another program's by now.
        if let Ok(None) = self.child.handle.try_wait() {
            self.child.kill();
        }
    }
}

/// A program that runs.
struct Child {
    handle: duct::Handle,
    group: signals::Group,
    err: File,
    _shown: (Option<screen::Lent>, Option<screen::Followed>),
}

impl Child {
    /// Waits for its end; kills its group at the deadline. `out` has its output, for a message.
    fn end(&self, cmd: &Cmd, out: Option<&File>, deadline: Deadline) -> Result<()> {
        let ended = self.handle.wait_timeout(deadline.left());
        let ended = ended.with_context(|| format!("cannot wait for `{cmd}`"))?;
        signals::pass();
        match ended.map(|output| output.status) {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let what = format!("`{cmd}` ended with {status}: {}", said(out, &self.err));
                bail!(RunError::Status(what, status.code()))
            }
            None => Err(self.stop(cmd, out, deadline)),
        }
    }

    /// Kills it, because it missed the deadline; returns that as the error.
    fn stop(&self, cmd: &Cmd, out: Option<&File>, deadline: Deadline) -> Error {
        self.kill();
        late(deadline, format!("`{cmd}` did not end in time: {}", said(out, &self.err)))
    }

    /// The same after the other end of its pipe was used up, or failed: then it is killed.
    fn after<T>(&self, used: Result<T>, cmd: &Cmd, out: Option<&File>, deadline: Deadline) -> Result<T> {
        match used {
            Ok(value) => self.end(cmd, out, deadline).map(|()| value),
            Err(error) => Err(self.failed(error, cmd, out, deadline)),
        }
    }

    /// What went wrong with it: it was too slow, or it says why it ended, or this error. Then it has ended.
    fn failed(&self, error: Error, cmd: &Cmd, out: Option<&File>, deadline: Deadline) -> Error {
        let is = |kind| {
            let mut all = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            all.any(|error| error.kind() == kind)
        };
        if is(ErrorKind::TimedOut) {
            return self.stop(cmd, out, deadline);
        }
        // A program that ended too early says why better than what it left behind.
        let cut = is(ErrorKind::BrokenPipe) || is(ErrorKind::UnexpectedEof);
        let limit = if cut { deadline.within(LAST) } else { Deadline::after(Duration::ZERO) };
        let ended = self.handle.wait_timeout(limit.left()).ok().flatten();
        if cut && ended.is_some_and(|output| !output.status.success()) {
            return self.end(cmd, out, deadline).err().unwrap_or(error);
        }
        signals::pass();
        self.kill();
        error
    }

    fn kill(&self) {
        self.group.end();
        // Collect the killed child. The limit is for a process that has left the group.
        self.handle.wait_timeout(LAST).ok();
    }
}

/// A missed deadline: of a run's budget, or of one action.
pub fn late(deadline: Deadline, what: String) -> Error {
    let late = Error::new(RunError::Deadline(what));
    if deadline.is_budget() { late.context(over_budget()) } else { late }
}

/// Lines that a person can read: without those that are no text, and not longer than a statement that a database repeats
/// with all of its data.
fn readable(text: &str) -> String {
    let is_text =
        |line: &&str| !line.contains('\u{FFFD}') && !line.chars().any(|c| c.is_control() && c != '\t');
    let cut = |line: &str| match line.char_indices().nth(LINE) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    };
    text.split(['\n', '\r']).filter(is_text).map(cut).collect::<Vec<_>>().join("\n")
}

/// Why a program failed, in its own words: the end of its standard error. If that is empty, the end of its
/// standard output. Secrets are masked before the text is cut, or half a secret could be left.
fn said(out: Option<&File>, err: &File) -> String {
    let end = |file, bytes: u64| {
        let text = readable(&secrets::mask(&files::tail(file, 32 * bytes).unwrap_or_default()));
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
        self.args.iter().try_for_each(|arg| write!(f, " {}", with_short_ids(arg)))
    }
}

/// An id of 64 hexadecimal digits is shown by its first twelve, which programs take as well: a message has to be read.
fn with_short_ids(arg: &str) -> String {
    let is_part = |c: char| !c.is_ascii_hexdigit();
    let short = |part: &str| {
        let (digits, rest) = part.split_at(part.find(is_part).unwrap_or(part.len()));
        let shown = if digits.len() == 64 { &digits[..12] } else { digits };
        format!("{shown}{rest}")
    };
    arg.split_inclusive(is_part).map(short).collect()
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
    fn an_error_has_no_lines_that_nobody_can_read() {
        let much = "x".repeat(2 * LINE);
        let said =
            readable(&format!("insert into t values ('{much}')\n\u{FFFD}\0\u{7}\nERROR 1114: it is full\n"));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            (lines.len(), lines[0].chars().count(), lines[1]),
            (2, LINE + 1, "ERROR 1114: it is full")
        );
    }

    #[test]
    fn an_error_has_the_short_form_of_an_id() {
        let id = "0123456789abcdef".repeat(4);
        let shown = cmd("docker", &["cp", "-", &format!("{id}:/data"), &format!("sha256:{id}"), "abc"]);
        assert_eq!(shown.to_string(), "docker cp - 0123456789ab:/data sha256:0123456789ab abc");
    }

    #[test]
    fn what_passes_through_a_pipe_is_whole_and_neither_end_waits_for_the_other() {
        let limit = || Deadline::after(Duration::from_secs(20));
        let most = 3_000_000;
        let counted = cmd("head", &["--bytes", &format!("{most}"), "/dev/zero"]);
        let take = |from: &mut dyn Read| Ok(std::io::copy(from, &mut std::io::sink())?);
        assert_eq!(counted.read_by(limit(), take).unwrap(), most);
        let said = cmd("wc", &["--bytes"]).write_by(limit(), |to| Ok(to.write_all(&vec![0; 3_000_000])?));
        assert_eq!(said.unwrap().trim(), format!("{most}"));
        // A program that fails says why, also where its end of the pipe was missed first.
        let failed = cmd("sh", &["-c", "echo full >&2; exit 3"]);
        let said = failed.clone().write_by(limit(), |to| Ok(to.write_all(&vec![0; 3_000_000])?));
        assert!(format!("{:#}", said.unwrap_err()).contains("full"));
        let early = failed.read_by(limit(), |from| Ok(from.read_exact(&mut [0; 9])?));
        assert!(format!("{:#}", early.unwrap_err()).contains("full"));
        // What fails here is what is told, and the program gets no end of its input.
        let scratch = files::Scratch::new("proc-test").unwrap();
        let whole = scratch.path().join("whole");
        let counts = cmd("sh", &["-c", "cat >/dev/null && touch \"$0\"", &whole.display().to_string()]);
        let error = counts.write_by(limit(), |to| {
            to.write_all(b"a part")?;
            bail!("damaged")
        });
        assert_eq!(error.unwrap_err().to_string(), "damaged");
        assert!(!whole.exists());
        let start = Instant::now();
        let short = || Deadline::after(Duration::from_millis(300));
        let late = cmd("sleep", &["60"]).read_by(short(), take).unwrap_err();
        assert!(matches!(late.downcast_ref(), Some(RunError::Deadline(_))), "{late:#}");
        let late = cmd("sleep", &["60"]).write_by(short(), |to| Ok(to.write_all(&vec![0; 3_000_000])?));
        assert!(matches!(late.unwrap_err().downcast_ref(), Some(RunError::Deadline(_))));
        assert!(start.elapsed() < Duration::from_secs(10));
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
