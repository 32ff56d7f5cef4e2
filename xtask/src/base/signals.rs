//! What Ctrl-C and SIGTERM do. The children are in groups of their own and would not hear them: they are ended
//! here. What was being done stops where it is, as if the process had been killed, so that nothing takes the end
//! of a child for a failure of its own; the journal has how far it came. There is one last word: that of the
//! command, or that of the signal. Called by `proc` around each child, by `journal` before each line, by `main`.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// Time that children have to end by themselves.
const GRACE: Duration = Duration::from_millis(200);

/// How far the end of this process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No signal came, or it came too late to matter.
    Running,
    /// Nobody but this thread goes on.
    Stopped(ThreadId),
    /// Anybody but this thread, which was at work when the signal came: what cleans up may have helpers.
    CleaningUp(ThreadId),
}

struct State {
    stage: Stage,
    /// The command is over, and about to say how: a signal changes nothing any more.
    over: bool,
    /// Groups that run now.
    groups: BTreeSet<i32>,
    clean_up: Option<Box<dyn FnOnce() + Send>>,
}

static STATE: Mutex<State> =
    Mutex::new(State { stage: Stage::Running, over: false, groups: BTreeSet::new(), clean_up: None });

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

/// Was this thread stopped by a signal? Then it must `wait_for_the_end`, holding no lock.
pub fn stopped() -> bool {
    state().stops_me()
}

/// The process ends meanwhile.
pub fn wait_for_the_end() -> ! {
    loop {
        thread::park();
    }
}

/// Goes on, unless this thread was stopped by a signal.
pub fn pass() {
    if stopped() {
        wait_for_the_end();
    }
}

/// The command is over. From here on its last word stands, whatever signal comes.
pub fn over() {
    let mut state = state();
    if state.stops_me() {
        drop(state);
        wait_for_the_end();
    }
    state.over = true;
}

/// Starts a child and lists its group, in one: no signal comes between.
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

/// A running process group, listed while it lives.
pub struct Group(Vec<i32>);

impl Group {
    /// Ends it at once.
    pub fn end(&self) {
        self.0.iter().for_each(|pid| end_group(*pid));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        state().groups.retain(|pid| !self.0.contains(pid));
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

/// Sets what a signal does before it ends this process; a drill takes its pilot down.
pub fn on_signal(clean_up: impl FnOnce() + Send + 'static) {
    state().clean_up = Some(Box::new(clean_up));
}

/// Listens for signals, which end this process with `code`, after its children, the clean-up and `last_word`.
/// The thread that calls this is the one that does the work.
pub fn listen(code: i32, last_word: impl FnOnce() + Send + 'static) -> Result<()> {
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
            drop(state);
            end_children();
            clean_up(worker, me);
            last_word();
            std::process::exit(code);
        }
    });
    Ok(())
}

/// A child may be this very program: it is told first, so that it ends its own.
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
    eprintln!("\ninterrupted: cleaning up");
    state().stage = Stage::CleaningUp(worker);
    clean_up();
    state().stage = Stage::Stopped(me);
}
