//! What Ctrl-C, SIGTERM and SIGHUP do. Child processes are in their own groups and do not get these signals,
//! so they are ended here. The work stops where it is, as if the process had been killed: otherwise the end
//! of a child would look like a failure. The journal shows how far the work came. Only one of the two has the
//! last word: the command or the signal.
//!
//! Called by `proc` around each child, by `output` before each line, and by `main`.

use crate::base::stderr;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// Time that children have to end by themselves after SIGTERM.
const GRACE: Duration = Duration::from_millis(200);

/// How far the end of this process has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No signal came, or it came after the command was over.
    Running,
    /// Only this thread goes on.
    Stopped(ThreadId),
    /// Every thread but this one goes on. It did the work when the signal came; the clean-up may use threads.
    CleaningUp(ThreadId),
}

struct State {
    stage: Stage,
    /// The command is over and will now report its result: a signal changes nothing any more.
    over: bool,
    /// The command only looks: whoever ends it has seen enough.
    looks: bool,
    /// Process groups of the children that run now.
    groups: BTreeSet<i32>,
    clean_up: Option<Box<dyn FnOnce() + Send>>,
    release: Option<Box<dyn FnOnce() + Send>>,
}

static STATE: Mutex<State> = Mutex::new(State {
    stage: Stage::Running,
    over: false,
    looks: false,
    groups: BTreeSet::new(),
    clean_up: None,
    release: None,
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Was this thread stopped by a signal?
    fn stops_me(&self) -> bool {
        let me = thread::current().id();
        match self.stage {
            Stage::Running => false,
            Stage::Stopped(but) => me != but,
            Stage::CleaningUp(not) => me == not,
        }
    }
}

/// Was this thread stopped by a signal? Then it must release its locks and `wait_for_the_end`.
pub fn stopped() -> bool {
    state().stops_me()
}

/// Waits; another thread ends the process.
pub fn wait_for_the_end() -> ! {
    loop {
        thread::park();
    }
}

/// Returns, unless this thread was stopped by a signal; then it waits for the end.
pub fn pass() {
    if stopped() {
        wait_for_the_end();
    }
}

/// Says that the command is over. A later signal does not change its result.
pub fn over() {
    let mut state = state();
    if state.stops_me() {
        drop(state);
        wait_for_the_end();
    }
    state.over = true;
}

/// Says whether the command only looks from here on. A signal ends one that does as if it had come to its end; it interrupts
/// any other.
pub fn only_looks(looks: bool) {
    state().looks = looks;
}

/// Starts a child and registers its process group. No signal is handled in between.
pub fn start(expression: &duct::Expression) -> std::io::Result<(duct::Handle, Group)> {
    let mut state = state();
    if state.stops_me() {
        drop(state);
        wait_for_the_end();
    }
    let child = expression.start()?;
    let pids: Vec<i32> = child.pids().iter().filter_map(|pid| i32::try_from(*pid).ok()).collect();
    state.groups.extend(&pids);
    Ok((child, Group(pids)))
}

/// A process group, registered until this is dropped.
pub struct Group(Vec<i32>);

impl Group {
    /// Kills it.
    pub fn end(&self) {
        self.0.iter().for_each(|pid| end_group(*pid));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        state().groups.retain(|pid| !self.0.contains(pid));
    }
}

/// Kills a process group. It is no error if the group is gone already.
pub fn end_group(pid: i32) {
    signal_group(pid, Signal::KILL);
}

fn signal_group(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        kill_process_group(pid, signal).ok();
    }
}

/// Sets the clean-up that a signal runs before it ends this process. A drill removes its pilot there.
pub fn on_signal(clean_up: impl FnOnce() + Send + 'static) {
    state().clean_up = Some(Box::new(clean_up));
}

/// Sets what gives back the lock, after the clean-up: so nobody has to wait for an interrupted command.
pub fn on_release(release: impl FnOnce() + Send + 'static) {
    state().release = Some(Box::new(release));
}

/// There is no lock any more.
pub fn forget_release() {
    state().release = None;
}

/// Listens for signals. A signal ends the children, runs the clean-up and `last_word`, which is told whether the command only
/// looked, and then ends this process with the code that it returns. The thread that calls this function must be the one
/// that does the work.
pub fn listen(last_word: impl FnOnce(bool) -> i32 + Send + 'static) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .context("cannot listen for signals")?;
    let worker = thread::current().id();
    thread::spawn(move || {
        let me = thread::current().id();
        while signals.forever().next().is_some() {
            let mut state = state();
            if state.over {
                continue;
            }
            state.stage = Stage::Stopped(me);
            let looks = state.looks;
            drop(state);
            end_children();
            clean_up(worker, me);
            let release = crate::base::signals::state().release.take();
            release.into_iter().for_each(|release| release());
            std::process::exit(last_word(looks));
        }
    });
    Ok(())
}

/// First SIGTERM, then SIGKILL: a child may be this same program, which must end its own children.
fn end_children() {
    for last in [Signal::TERM, Signal::KILL] {
        let groups = state().groups.clone();
        groups.iter().for_each(|pid| signal_group(*pid, last));
        if !groups.is_empty() && last == Signal::TERM {
            thread::sleep(GRACE);
        }
    }
}

fn clean_up(worker: ThreadId, me: ThreadId) {
    let Some(clean_up) = state().clean_up.take() else { return };
    stderr::line("\ninterrupted: cleaning up");
    state().stage = Stage::CleaningUp(worker);
    clean_up();
    state().stage = Stage::Stopped(me);
}
