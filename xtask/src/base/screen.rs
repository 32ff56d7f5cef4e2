//! The lines that show what runs now. On a terminal they stand below the output, and are drawn anew as time goes on:
//! what is done, since when, its limit, what it waits for, what comes next. Elsewhere a line now and then says the same,
//! so that no log is silent. Everything that this process writes to a terminal goes through here, or the two would
//! overwrite each other. What is drawn is decided in `board`. Nothing here knows an event.
//!
//! Called by `output`, `stderr`, `ask` and `proc`, and by whatever has something to show.

use crate::base::board::{Board, Doing, Line};
use crate::base::secrets;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The time between two drawings.
const FRAME: Duration = Duration::from_millis(100);

/// The longest silence in a log.
const SILENCE: Duration = Duration::from_secs(10);

/// Bytes of a growing file in which its last line is looked for.
const LAST: usize = 500;

/// Most lines that are drawn.
const MOST: usize = 12;

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
    /// When something was last printed.
    last: Instant,
    /// When something was last printed, or done.
    idle: Instant,
    /// The widths of the lines that stand below the output now.
    drawn: Vec<usize>,
    /// What programs write that run now.
    followed: Vec<(u64, File)>,
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

/// Why something could not be printed.
static LOST: Mutex<Option<String>> = Mutex::new(None);

fn screen() -> MutexGuard<'static, Option<Screen>> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to show what runs. A thread that is `stopped` prints nothing any more. `verbose`: commands are shown too.
pub fn begin(kind: Kind, verbose: bool, stopped: fn() -> bool) {
    let now = Instant::now();
    *screen() = Some(Screen {
        kind,
        board: Board::default(),
        last: now,
        idle: now,
        drawn: Vec::new(),
        followed: Vec::new(),
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
        // A reader that has ended (`| head`) has seen what it wanted.
        if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush())
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            LOST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
        }
    });
    true
}

/// Makes the terminal empty; nothing where there is none.
pub fn wipe() {
    if let Some(Screen { kind: Kind::Terminal { .. }, .. }) = &*screen() {
        write_raw("\x1b[H\x1b[2J");
    }
}

/// Why something could not be printed, if that is so.
pub fn lost() -> Option<String> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    screen.idle = screen.last;
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
            screen.idle = Instant::now();
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
            screen.idle = Instant::now();
        }
    }
}

/// A file in which a program writes what it does.
pub struct Followed(u64);

/// Shows the last line of this file, which grows, as what the newest thing waits for; until the value is dropped. None
/// if nothing is drawn, or if the user wants to see everything: then the program shows it by itself.
pub fn follow(file: &File) -> Option<Followed> {
    let mut screen = screen();
    let screen = screen.as_mut()?;
    if screen.verbose || !matches!(screen.kind, Kind::Terminal { .. }) {
        return None;
    }
    screen.count += 1;
    screen.followed.push((screen.count, file.try_clone().ok()?));
    Some(Followed(screen.count))
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(screen) = screen().as_mut() {
            screen.followed.retain(|(id, _)| *id != self.0);
        }
    }
}

/// The last line of a file that others write at its end.
fn last_line(file: &File) -> Option<String> {
    let length = file.metadata().ok()?.len();
    let mut end = [0; LAST];
    // Not by moving the place that the writer shares.
    let read = file.read_at(&mut end, length.saturating_sub(LAST as u64)).ok()?;
    let text = String::from_utf8_lossy(&end[..read]).into_owned();
    text.split(['\n', '\r']).rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
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
        if (self.stopped)() {
            return;
        }
        match self.kind {
            Kind::Off => {}
            Kind::Terminal { .. } if self.lent > 0 => {}
            Kind::Terminal { .. } => {
                self.turns += 1;
                let line = self.followed.last().and_then(|(_, file)| last_line(file));
                if let (Some(line), Some(doing)) = (line, self.board.doing.last_mut()) {
                    doing.detail = Some(secrets::mask(&line));
                }
                self.clear();
                self.draw();
            }
            Kind::Log if self.last.elapsed() < SILENCE => {}
            Kind::Log => {
                self.last = Instant::now();
                let line = self.board.said(self.last, self.idle);
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
        let lines = self.board.lines(now, self.idle, self.turns, height.saturating_sub(2).min(MOST));
        let cut = |line: &Line| -> String { line.text.chars().take(width.saturating_sub(1)).collect() };
        self.drawn = lines.iter().map(|line| cut(line).chars().count()).collect();
        let shown = |line: &Line| match (line.faint, color) {
            (true, true) => format!("\x1b[2m{}\x1b[0m\n", cut(line)),
            _ => cut(line) + "\n",
        };
        write_raw(&lines.iter().map(shown).collect::<String>());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_growing_file_is_found_without_moving_its_end() {
        let mut file = crate::base::files::anonymous().unwrap();
        assert_eq!(last_line(&file), None);
        write!(file, "one\rtwo\nthree\n\n").unwrap();
        assert_eq!(last_line(&file).as_deref(), Some("three"));
        write!(file, "{}\nfour", "x".repeat(2 * LAST)).unwrap();
        assert_eq!(last_line(&file).as_deref(), Some("four"));
    }
}
