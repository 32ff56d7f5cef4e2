//! Commands that are killed at random moments: a stack of local processes in a folder of its own is broken, brought back
//! with its whole process group killed (SIGKILL) in the middle, and brought back again by the same command. One stack for
//! each processor; nothing is left of them.

use super::row::Row;
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode, Scratch};
use crate::base::machine;
use crate::base::next::Next;
use crate::base::output::Output;
use crate::base::proc::{RunError, cmd};
use crate::base::random::Random;
use crate::base::screen;
use crate::base::threads::joined;
use crate::stack::envfile::with_value;
use crate::stack::names::HARMLESS;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// How long a command may take that is not killed. The first `up` builds the services.
const COMMAND: Duration = Duration::from_secs(300);

/// What is in the data of the engine, and must stay in it.
const KEPT: &str = "torture-kept";

/// What is done to a stack, and the command that is killed.
#[derive(Clone, Copy, Debug)]
enum Case {
    /// A setting was changed by hand; a rollback takes it back.
    Rollback,
    /// Everything is removed, and the data brought back.
    Reset,
    /// A release with another setting.
    Up,
    /// A release that its checks refuse: it goes back by itself.
    BadUp,
}

impl Case {
    const ALL: [Self; 8] = [
        Self::Rollback,
        Self::Rollback,
        Self::Rollback,
        Self::Reset,
        Self::Reset,
        Self::Up,
        Self::Up,
        Self::BadUp,
    ];

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Rollback => &["rollback"],
            Self::Reset => &["reset", "--yes", "--keep-data"],
            Self::Up | Self::BadUp => &["up"],
        }
    }

    /// How the command ends when nobody kills it.
    fn ends(self) -> Exit {
        if matches!(self, Self::BadUp) { Exit::RolledBack } else { Exit::Ok }
    }
}

/// Kills `count` commands.
pub fn run(seed: u64, count: u64, pilot: &Pilot, out: &Output) -> Result<Row> {
    out.say(format!("{count} commands killed on local processes, from seed {seed}"));
    let shown = screen::doing("kill commands");
    let stacks = available_parallelism().map_or(1, |cores| cores.get() as u64).min(count);
    let building = Mutex::new(());
    let ended: Vec<Result<Share>> = std::thread::scope(|scope| {
        let share = |at| count / stacks + u64::from(at < count % stacks);
        let jobs: Vec<_> = (0..stacks)
            .map(|at| (seed.wrapping_add(at), share(at), &building))
            .map(|(seed, share, building)| {
                scope.spawn(move || Stack::new(pilot)?.kill_all(seed, share, building))
            })
            .collect();
        jobs.into_iter().map(joined).collect()
    });
    drop(shown);
    let mut all = Share::default();
    for share in ended {
        let Share { killed, in_time, found } = share?;
        (all.killed, all.in_time) = (all.killed + killed, all.in_time + in_time);
        all.found.extend(found);
    }
    out.say(format!("{} were killed in the middle, {} had ended by then", all.killed, all.in_time));
    let tried = all.killed + all.in_time + all.found.len() as u64;
    Ok(Row {
        claim: "killed at any moment and run again, a command finishes, and no data is lost".into(),
        attack: "SIGKILL of the whole group at a random moment, on local processes".into(),
        tried,
        held: tried - all.found.len() as u64,
        found: all.found,
    })
}

/// What one stack came to.
#[derive(Default)]
struct Share {
    /// How many commands were killed in the middle, and came to a good end when they were run again.
    killed: u64,
    /// How many had ended before they could be killed.
    in_time: u64,
    found: Vec<String>,
}

/// A stack of its own.
struct Stack {
    root: PathBuf,
    program: PathBuf,
    project: String,
    folder: Scratch,
    /// The name of its env file.
    env_file: String,
    /// Settings that its checks refuse.
    bad: Vec<(String, String)>,
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.command(&["down"]).run(Deadline::after(COMMAND)).ok();
    }
}

impl Stack {
    fn new(pilot: &Pilot) -> Result<Self> {
        let folder = Scratch::new("torture")?;
        let unique = folder.path().file_name().context("a folder has a name")?.to_string_lossy();
        let project = unique.replace("pilot-torture-", "pt-").chars().take(20).collect();
        let program = machine::this_program()?;
        let env_file = pilot.layout.env.clone().context("the stack has no env file")?;
        let bad = pilot.manifest.drill.pairs();
        let bad = bad.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { root: pilot.root.clone(), program, project, folder, env_file, bad })
    }

    fn command(&self, words: &[&str]) -> crate::base::proc::Cmd {
        let state = self.folder.path().join("state");
        cmd(&self.program, &["--project", &self.project, "--engine", "process"])
            .args(words)
            .dir(&self.root)
            .env("PILOT_STATE_DIR", &state.display().to_string())
            .env("PILOT_WATCH", "0s")
            .env("TMPDIR", &self.folder.path().display().to_string())
            .env_remove(["GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "PILOT_REPORTS"].map(str::to_owned))
    }

    /// The code that a command ends with; none if it was killed after this time.
    fn code(&self, words: &[&str], limit: Duration) -> Result<(Option<Exit>, String)> {
        match self.command(words).run(Deadline::after(limit)) {
            Ok(_) => Ok((Some(Exit::Ok), String::new())),
            Err(error) => match error.downcast_ref() {
                Some(RunError::Deadline(_)) => Ok((None, "killed".into())),
                Some(RunError::Status(text, Some(code))) => {
                    let exit = u8::try_from(*code).ok().and_then(|code| Exit::try_from(code).ok());
                    Ok((Some(exit.unwrap_or(Exit::Host)), text.clone()))
                }
                _ => Err(error),
            },
        }
    }

    fn env_file(&self) -> PathBuf {
        self.folder.path().join("state").join(&self.env_file)
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let text = with_value(&files::read_text(&self.env_file())?, name, value)?;
        files::write(&self.env_file(), text.as_bytes(), Mode::Private)
    }

    fn kill_all(&self, seed: u64, count: u64, building: &Mutex<()>) -> Result<Share> {
        let first = {
            let _one = building.lock();
            self.code(&["up"], COMMAND)?
        };
        if first.0 != Some(Exit::Ok) {
            return Err(fail(
                Exit::NotRestored,
                format!("the first `up` failed: {}", first.1),
                Next::xtask("up"),
            ));
        }
        let scenario = self.folder.path().join("kept.json");
        let options = r#"[{"id":"a","name":"a"},{"id":"b","name":"b"}]"#;
        let text = format!(r#"{{"scenarioId":"{KEPT}","title":"{KEPT}","options":{options}}}"#);
        files::write(&scenario, text.as_bytes(), Mode::Plain)?;
        self.code(&["seed", &scenario.display().to_string()], COMMAND)?;
        let (mut random, mut share) = (Random::new(seed), Share::default());
        // How long each command takes is learned from those that were run to their end.
        let mut took = Duration::from_millis(900);
        for at in 0..count {
            let case = random.one(&Case::ALL);
            // One in ten right at the beginning, where the lock is taken and the run is begun.
            let most = if random.chance(10) { 100 } else { 1100 };
            let after = took.mul_f64(random.below(most) as f64 / 1000.0).max(Duration::from_millis(1));
            let case_text = format!("kill {at} of seed {seed}: {case:?} after {after:?}");
            match self.kill(case, at, after).with_context(|| case_text.clone())? {
                Ok((true, time)) => {
                    share.killed += 1;
                    took = (took * 7 + time) / 8;
                }
                Ok((false, _)) => share.in_time += 1,
                Err(why) => share.found.push(format!("{case_text}: {why}")),
            }
        }
        Ok(share)
    }

    /// Breaks the stack, kills the command that brings it back, and runs it again. Returns whether it was killed in the
    /// middle, and how long it took then; or what does not hold.
    fn kill(&self, case: Case, at: u64, after: Duration) -> Result<Result<(bool, Duration), String>> {
        match case {
            // Another number each time, so that it differs from every release.
            Case::Rollback | Case::Up => self.set(HARMLESS, &(1000 + at).to_string())?,
            Case::BadUp => self.bad.iter().try_for_each(|(name, value)| self.set(name, value))?,
            Case::Reset => {}
        }
        let (first, _) = self.code(case.words(), after)?;
        let begun = Instant::now();
        let (again, said) = self.code(case.words(), COMMAND)?;
        let time = begun.elapsed();
        // A deployment that was killed after it had failed and gone back finds the settings of before.
        let is_good = |exit: Exit| exit == case.ends() || matches!(case, Case::BadUp) && exit == Exit::Ok;
        if !again.is_some_and(is_good) {
            return Ok(Err(format!("run again, it ends with {again:?}: {said}")));
        }
        if let Some(why) = self.what_is_wrong()? {
            return Ok(Err(why));
        }
        Ok(Ok((first.is_none(), time)))
    }

    /// Nothing differs from the release, the public is served, and the data is there.
    fn what_is_wrong(&self) -> Result<Option<String>> {
        let (planned, said) = self.code(&["rollback", "--plan", "--detailed-exitcode"], COMMAND)?;
        if planned != Some(Exit::Ok) {
            return Ok(Some(format!("afterwards there is still something to do: {planned:?} {said}")));
        }
        let (smoke, said) = self.code(&["smoke"], COMMAND)?;
        if smoke != Some(Exit::Ok) {
            return Ok(Some(format!("afterwards a check fails: {said}")));
        }
        let volume = self.folder.path().join("state/process/volumes/engine");
        let has = |name: &String| {
            let bytes = files::read(&volume.join(name)).unwrap_or_default();
            bytes.windows(KEPT.len()).any(|window| window == KEPT.as_bytes())
        };
        Ok((!files::names(&volume)?.iter().any(has)).then(|| "the data is lost".to_owned()))
    }
}
