//! The lines that show what runs now. On a terminal they stand below the output, and are drawn anew as time goes on:
//! what is done, since when, its limit, what it waits for, what comes next. Elsewhere a line now and then says the same,
//! so that no log is silent. Everything that this process writes to a terminal goes through here, or the two would
//! overwrite each other. What is drawn is decided by `lines`, which is pure. Nothing here knows an event.
//!
//! Called by `output`, `stderr`, `ask` and `proc`, and by whatever has something to show.

use crate::base::files::human;
use std::io::{IsTerminal, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The time between two drawings.
const FRAME: Duration = Duration::from_millis(100);

/// What takes less than this is not drawn: it would only flicker.
const SOON: Duration = Duration::from_millis(300);

/// The longest silence in a log.
const SILENCE: Duration = Duration::from_secs(10);

/// Most lines that are drawn.
const MOST: usize = 12;

/// A sign that turns.
const TURNS: [char; 4] = ['◐', '◓', '◑', '◒'];

/// Where the lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nowhere: what is printed is read by a program, or nothing but the end is wanted.
    Off,
    /// To a log.
    Log,
    /// To a terminal, with colours or without.
    Terminal {
        /// With colours?
        color: bool,
    },
}

impl Kind {
    /// What standard output is. `TERM=dumb` is a terminal that cannot move its cursor.
    pub fn of_stdout(color: bool) -> Self {
        let moves = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        if std::io::stdout().is_terminal() && moves { Self::Terminal { color } } else { Self::Log }
    }
}

/// Something that is done now.
#[derive(Clone, Debug)]
struct Doing {
    id: u64,
    what: String,
    since: Instant,
    limit: Option<Duration>,
    /// What it waits for, or how far it is.
    detail: Option<String>,
}

/// What there is to show.
#[derive(Clone, Debug, Default)]
struct Board {
    doing: Vec<Doing>,
    next: Vec<String>,
    /// When the budget ends.
    until: Option<Instant>,
    gate: Option<&'static str>,
}

/// A change of what there is to show, as an event brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These steps are planned, and the run has this long.
    Planned(Vec<String>, Duration),
    /// The next step begins, and may take so long.
    Begins(String, Option<Duration>),
    /// It ended. If it moved the gate: where the gate is now.
    Ended(Option<&'static str>),
    /// What is waited for, or how far it is.
    Detail(String),
}

struct Screen {
    kind: Kind,
    board: Board,
    begun: Instant,
    /// When something was last printed.
    last: Instant,
    /// The widths of the lines that stand below the output now.
    drawn: Vec<usize>,
    /// How many have the terminal for themselves now.
    lent: usize,
    count: u64,
    /// The step that runs now.
    step: u64,
    turns: usize,
    /// Is this thread to print nothing any more?
    stopped: fn() -> bool,
    verbose: bool,
}

static SCREEN: Mutex<Option<Screen>> = Mutex::new(None);

fn screen() -> MutexGuard<'static, Option<Screen>> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to show what runs. A thread that is `stopped` prints nothing any more. `verbose`: commands are shown too.
pub fn begin(kind: Kind, verbose: bool, stopped: fn() -> bool) {
    let now = Instant::now();
    *screen() = Some(Screen {
        kind,
        board: Board::default(),
        begun: now,
        last: now,
        drawn: Vec::new(),
        lent: 0,
        count: 0,
        step: 0,
        turns: 0,
        stopped,
        verbose,
    });
    if kind != Kind::Off {
        thread::spawn(|| {
            loop {
                thread::sleep(FRAME);
                match &mut *screen() {
                    Some(screen) => screen.tick(),
                    None => return,
                }
            }
        });
    }
}

/// Shows nothing any more: only the last words follow.
pub fn end() {
    if let Some(mut screen) = screen().take() {
        screen.clear();
    }
}

/// Writes a line to standard output. False if this thread is stopped; then nothing was written.
pub fn print(line: &str, stopped: fn() -> bool) -> bool {
    let mut screen = screen();
    if stopped() {
        return false;
    }
    aside(screen.as_mut(), || {
        let mut out = std::io::stdout().lock();
        // A reader that has ended (`| head`) must not stop a rollback.
        writeln!(out, "{line}").and_then(|()| out.flush()).ok();
    });
    true
}

/// Writes a line to standard error.
pub fn complain(line: &str) {
    aside(screen().as_mut(), || {
        writeln!(std::io::stderr(), "{line}").ok();
    });
}

/// Writes what this closure writes, above the lines that are drawn.
fn aside(screen: Option<&mut Screen>, write: impl FnOnce()) {
    let Some(screen) = screen else { return write() };
    let drawn = !screen.drawn.is_empty();
    screen.clear();
    write();
    screen.last = Instant::now();
    if drawn {
        screen.draw();
    }
}

/// Something is done from now on, until the value is dropped.
pub fn doing(what: impl Into<String>) -> Doer {
    Doer(screen().as_mut().map_or(0, |screen| screen.begins(what.into(), None)))
}

/// Says what the newest thing that is done waits for, or how far it is.
pub fn detail(what: impl Into<String>) {
    change(Change::Detail(what.into()));
}

/// Says how many bytes of this stream have passed, and of how many.
pub struct Passing<R> {
    stream: R,
    doer: Doer,
    passed: u64,
    all: Option<u64>,
    told: Instant,
}

impl<R> Passing<R> {
    /// `what` is done with this stream, which has `all` bytes if that is known.
    pub fn new(stream: R, what: impl Into<String>, all: Option<u64>) -> Self {
        Self { stream, doer: doing(what), passed: 0, all, told: Instant::now() }
    }
}

impl<R: Read> Read for Passing<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stream.read(into)?;
        self.passed += read as u64;
        if self.told.elapsed() >= FRAME {
            self.told = Instant::now();
            let all = self.all.map(|all| format!(" of {}", human(all))).unwrap_or_default();
            self.doer.detail(human(self.passed) + &all);
        }
        Ok(read)
    }
}

/// Shows this change.
pub fn change(change: Change) {
    let mut screen = screen();
    let Some(screen) = screen.as_mut().filter(|screen| screen.kind != Kind::Off) else { return };
    match change {
        Change::Planned(steps, left) => {
            screen.board.until = Instant::now().checked_add(left);
            screen.board.next = steps;
        }
        Change::Begins(what, limit) => {
            screen.board.next.retain(|next| *next != what);
            screen.step = screen.begins(what, limit);
        }
        Change::Ended(gate) => {
            let step = screen.step;
            screen.board.doing.retain(|doing| doing.id < step);
            screen.board.gate = gate.or(screen.board.gate);
        }
        Change::Detail(what) => {
            if let Some(doing) = screen.board.doing.last_mut() {
                doing.detail = Some(what);
            }
        }
    }
}

/// Shows a command that is run, if somebody wants to see that.
pub fn runs(command: impl FnOnce() -> String) {
    if screen().as_ref().is_some_and(|screen| screen.verbose) {
        complain(&format!("    $ {}", command()));
    }
}

/// Something that is done; it is over when this is dropped.
pub struct Doer(u64);

impl Doer {
    /// Says what it waits for, or how far it is.
    pub fn detail(&self, what: String) {
        if let Some(screen) = screen().as_mut() {
            let mine = screen.board.doing.iter_mut().find(|doing| doing.id == self.0);
            mine.into_iter().for_each(|doing| doing.detail = Some(what.clone()));
        }
    }
}

impl Drop for Doer {
    fn drop(&mut self) {
        if let Some(screen) = screen().as_mut() {
            screen.board.doing.retain(|doing| doing.id != self.0);
        }
    }
}

/// The terminal belongs to somebody else until this is dropped: a question, or a program that shows its own progress.
pub struct Lent;

/// Lends the terminal.
pub fn lend() -> Lent {
    if let Some(screen) = screen().as_mut() {
        screen.clear();
        screen.lent += 1;
    }
    Lent
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(screen) = screen().as_mut() {
            screen.lent = screen.lent.saturating_sub(1);
            screen.last = Instant::now();
        }
    }
}

impl Screen {
    fn begins(&mut self, what: String, limit: Option<Duration>) -> u64 {
        self.count += 1;
        let doing = Doing { id: self.count, what, since: Instant::now(), limit, detail: None };
        self.board.doing.push(doing);
        self.count
    }

    /// What time alone changes.
    fn tick(&mut self) {
        if (self.stopped)() || self.lent > 0 {
            return;
        }
        match self.kind {
            Kind::Off => {}
            Kind::Terminal { .. } => {
                self.turns += 1;
                self.clear();
                self.draw();
            }
            Kind::Log if self.last.elapsed() < SILENCE => {}
            Kind::Log => {
                self.last = Instant::now();
                let line = self.board.said(self.last, self.begun);
                let mut out = std::io::stdout().lock();
                writeln!(out, "  … {line}").and_then(|()| out.flush()).ok();
            }
        }
    }

    fn clear(&mut self) {
        if self.drawn.is_empty() {
            return;
        }
        // A terminal that has become narrower has broken the lines.
        let width = size().map_or(80, |(width, _)| width).max(1);
        let rows: usize = self.drawn.drain(..).map(|drawn| drawn.div_ceil(width).max(1)).sum();
        write_raw(&format!("\x1b[{rows}A\r\x1b[J"));
    }

    fn draw(&mut self) {
        let Kind::Terminal { color } = self.kind else { return };
        let now = Instant::now();
        let Some((width, height)) = size().filter(|_| self.lent == 0 && !(self.stopped)()) else { return };
        let lines = self.board.lines(now, self.begun, self.turns, height.saturating_sub(2).min(MOST));
        let cut = |line: &Line| -> String { line.text.chars().take(width.saturating_sub(1)).collect() };
        self.drawn = lines.iter().map(|line| cut(line).chars().count()).collect();
        let shown = |line: &Line| match (line.faint, color) {
            (true, true) => format!("\x1b[2m{}\x1b[0m\n", cut(line)),
            _ => cut(line) + "\n",
        };
        write_raw(&lines.iter().map(shown).collect::<String>());
    }
}

/// One line below the output.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    text: String,
    faint: bool,
}

impl Board {
    /// The lines, at most so many: what is done, what it waits for, what comes next, and the state of the run.
    fn lines(&self, now: Instant, begun: Instant, turns: usize, most: usize) -> Vec<Line> {
        let turn = TURNS[turns % TURNS.len()];
        let old = |doing: &&Doing| now.duration_since(doing.since) >= SOON;
        let bright = |text: String| Line { text, faint: false };
        let mut lines: Vec<Line> = Vec::new();
        for doing in self.doing.iter().filter(old) {
            lines.push(bright(format!("{turn} {}", doing.said(now))));
            lines.extend(doing.detail.iter().map(|detail| bright(format!("    {}", one_line(detail)))));
        }
        if lines.is_empty() && now.duration_since(begun) >= SOON {
            lines.push(bright(format!("{turn} {}", self.said(now, begun))));
        }
        let state: Vec<String> = self
            .until
            .map(|until| format!("{} left", clock(until.saturating_duration_since(now))))
            .into_iter()
            .chain(self.gate.map(|gate| format!("gate {gate}")))
            .collect();
        let room = most.saturating_sub(lines.len() + 1);
        let faint = |text: String| Line { text, faint: true };
        let (all, shown) = (self.next.len(), self.next.len().min(room));
        let more = if all > shown { format!(" (and {} more)", all - shown) } else { String::new() };
        for (n, next) in self.next.iter().take(shown).enumerate() {
            let more = if n + 1 == shown { more.as_str() } else { "" };
            lines.push(faint(format!("○ {}{more}", one_line(next))));
        }
        if !state.is_empty() {
            lines.push(faint(format!("  {}", state.join(" · "))));
        }
        lines.truncate(most);
        lines
    }

    /// What is done, in one line.
    fn said(&self, now: Instant, begun: Instant) -> String {
        match self.doing.last() {
            Some(doing) => {
                let detail = doing.detail.as_ref().map(|detail| format!("; {}", one_line(detail)));
                doing.said(now) + &detail.unwrap_or_default()
            }
            None => format!("working, {}", clock(now.duration_since(begun))),
        }
    }
}

impl Doing {
    fn said(&self, now: Instant) -> String {
        let limit = self.limit.map(|limit| format!(" of {}", clock(limit))).unwrap_or_default();
        format!("{}, {}{limit}", one_line(&self.what), clock(now.duration_since(self.since)))
    }
}

/// A time as people say it: seconds, or minutes and seconds.
fn clock(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 60 => format!("{seconds} s"),
        seconds => format!("{}:{:02} min", seconds / 60, seconds % 60),
    }
}

/// Without what would move the cursor.
fn one_line(text: &str) -> String {
    text.split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Columns and rows of the terminal.
pub fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some((usize::from(size.ws_col), usize::from(size.ws_row)))
}

fn write_raw(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}
