//! What a person sees: real runs in a terminal of a given width, and in logs. What the screen shows at the end is compared
//! with a file in `terminal/`, with times and other figures masked. `PILOT_BLESS=1` writes these files anew: then read
//! what has changed.

use crate::pilot::Engine::Process;
use crate::pilot::{Pilot, Ran, on, program, workspace};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a run in a terminal showed.
struct Shown {
    /// Each different picture, in order.
    frames: Vec<String>,
    /// Everything, also what has left the screen.
    last: String,
    /// The longest time in which nothing changed on the screen.
    still: Duration,
    /// What was written, with its control codes.
    raw: Vec<u8>,
    code: i32,
}

/// The program writes nothing for 11 s, so the screen changes because of us: ten times a second, but for a machine that is
/// very busy.
const SILENT: Duration = Duration::from_secs(6);

/// Rows enough that nothing leaves the screen.
const ROWS: u16 = 60;

/// Runs the command in a terminal that is so wide.
fn seen(pilot: &Pilot, columns: u16, env: &[(&str, &str)], args: &[&str]) -> Shown {
    let plain = pilot.command(args);
    let words = std::iter::once(plain.get_program()).chain(plain.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let line = format!("stty cols {columns} rows {ROWS}; exec {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    script.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.current_dir(plain.get_current_dir().unwrap());
    script.env("TERM", "xterm").env_remove("NO_COLOR").envs(env.iter().copied());
    let mut child = script.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let size = |n| std::num::NonZero::new(n).unwrap();
    let mut terminal = vt100::Parser::new(size(ROWS), size(columns), 0);
    let (mut frames, mut raw, mut block) = (Vec::new(), Vec::new(), [0; 4096]);
    let (mut since, mut still) = (Instant::now(), Duration::ZERO);
    loop {
        let read = out.read(&mut block).unwrap();
        if read == 0 {
            break;
        }
        still = still.max(since.elapsed());
        since = Instant::now();
        raw.extend(&block[..read]);
        terminal.process(&block[..read]);
        frames.push(terminal.screen().contents());
    }
    let code = child.wait().unwrap().code().unwrap();
    frames.dedup();
    Shown { last: terminal.screen().contents(), frames, still, raw, code }
}

/// Figures, ids and paths become `N` and `…`, so that two runs are the same.
fn masked(pilot: &Pilot, text: &str) -> String {
    let text = text.replace(&pilot.project, "PROJECT").replace(&pilot.state().display().to_string(), "STATE");
    let mut all = String::new();
    for line in text.lines() {
        let line = line.trim_end();
        let path = line.trim_start().starts_with("report ");
        let words = line.split(' ').map(|word| match word {
            who if who.contains('@') => "WHO".to_owned(),
            url if url.contains("sessionId=check-") => {
                format!("{}sessionId=…", url.split("sessionId=").next().unwrap())
            }
            word => word.to_owned(),
        });
        let shown = if path { "  report …".to_owned() } else { words.collect::<Vec<_>>().join(" ") };
        let mut number = false;
        for c in shown.chars() {
            // What stands before a figure to align it is no part of it.
            let is = c.is_ascii_digit() || c == '.' && number;
            if is && !number {
                let kept = all.trim_end_matches(' ').len();
                let spaces = all.len() - kept;
                all.truncate(kept + spaces.min(1));
                all.push('N');
            }
            if !is {
                all.push(c);
            }
            number = is;
        }
        all.push('\n');
    }
    all
}

#[track_caller]
fn is_as_kept(name: &str, found: &str) {
    let path = workspace().join("xtask/tests/it/terminal").join(format!("{name}.txt"));
    if std::env::var_os("PILOT_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == found, "{name} is shown differently now:\n{found}\nit was:\n{kept}");
}

/// Lines of a log that say how long something has lasted.
fn signs_of_life(ran: &Ran) -> usize {
    ran.out.lines().filter(|line| line.starts_with("  … ")).count()
}

#[test]
fn a_run_is_calm_when_it_is_good_and_loud_when_it_is_bad() {
    on(&[Process], "terminal", |pilot| {
        let pilot = pilot.up();
        for columns in [80, 200] {
            pilot.edit_env("ENABLE_CACHE", "true");
            let good = seen(&pilot, columns, &[], &["rollback"]);
            assert_eq!(good.code, 0, "{}", good.last);
            is_as_kept(&format!("good-{columns}"), &masked(&pilot, &good.last));
        }
        // The engine is never healthy with this setting, so the new release is waited for, and then fails.
        pilot.edit_env("USE_SIMULATION", "false");
        for columns in [80, 200] {
            let bad = seen(&pilot, columns, &[], &["up", "--stay"]);
            assert_eq!(bad.code, 1, "{}", bad.last);
            is_as_kept(&format!("bad-{columns}"), &masked(&pilot, &bad.last));
        }
        // In a log, and on terminals that can do less, people read the same.
        for env in [("TERM", "dumb"), ("NO_COLOR", "1")] {
            pilot.xtask(&["rollback"]).expect(0);
            pilot.edit_env("ENABLE_CACHE", "true");
            let shown = seen(&pilot, 80, &[env], &["rollback"]);
            assert_eq!(shown.code, 0, "{}", shown.last);
            is_as_kept("good-80", &masked(&pilot, &shown.last));
        }
        pilot.edit_env("ENABLE_CACHE", "true");
        let piped = pilot.xtask(&["rollback"]).expect(0);
        is_as_kept("good-80", &masked(&pilot, &piped.all()));
        pilot.xtask(&["kill-switch", "on", "--reason", "bad answers"]).expect(0);
        for columns in [80, 200] {
            pilot.edit_env("ENABLE_CACHE", "true");
            let held = seen(&pilot, columns, &[], &["rollback"]);
            assert_eq!(held.code, 9, "{}", held.last);
            is_as_kept(&format!("held-{columns}"), &masked(&pilot, &held.last));
        }
    });
}

#[test]
fn colours_and_moves_are_for_terminals_that_want_them() {
    on(&[Process], "colours", |pilot| {
        let pilot = pilot.up();
        let has =
            |shown: &Shown, what: &str| shown.raw.windows(what.len()).any(|part| part == what.as_bytes());
        let status =
            |env: &[(&str, &str)], args: &[&str]| seen(&pilot, 80, env, &[&["status"], args].concat());
        assert!(has(&status(&[], &[]), "\x1b[32m"));
        for (env, args) in
            [(("NO_COLOR", "1"), vec![]), (("A", "b"), vec!["--color", "never"]), (("TERM", "dumb"), vec![])]
        {
            let shown = status(&[env], &args);
            assert!(!has(&shown, "\x1b[3"), "{env:?} {args:?}: {}", shown.last);
        }
        assert!(!has(&status(&[("TERM", "dumb")], &[]), "\x1b"));
        // A pipe gets none, unless they are asked for.
        assert!(!pilot.xtask(&["status"]).expect(0).all().contains('\x1b'));
        assert!(pilot.xtask(&["status", "--color", "always"]).expect(0).out.contains("\x1b[32m"));
        // Only how it ended, or everything.
        pilot.edit_env("ENABLE_CACHE", "true");
        let quiet = pilot.xtask(&["rollback", "--quiet"]).expect(0);
        assert!(quiet.out.trim_start().starts_with("✓ RESTORED"), "{}", quiet.out);
        let loud = pilot.xtask(&["status", "--verbose"]).expect(0);
        assert!(quiet.err.is_empty() && !loud.out.is_empty(), "{}", quiet.err);
        pilot.edit_env("ENABLE_CACHE", "true");
        let loud = pilot.xtask(&["rollback", "--verbose"]).expect(0);
        assert!(loud.out.contains("first token in time"), "{}", loud.out);
        pilot.xtask(&["status", "--verbose", "--quiet"]).expect(2);
    });
}

#[test]
fn what_takes_long_shows_what_it_does() {
    on(&[Process], "slow", |mut pilot| {
        // The real build, and a wait before it as a larger project would have.
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let slow = pilot.folder.0.join("cargo");
        let wait = "case \"$1\" in build) echo '   Compiling the-large-crate v1.0.0' >&2; sleep 11;; esac";
        program(&slow, &format!("#!/bin/sh\n{wait}; exec '{cargo}' \"$@\""));
        pilot.set("CARGO", &slow.display().to_string());
        let shown = seen(&pilot, 80, &[], &["up"]);
        assert_eq!(shown.code, 0, "{}", shown.last);
        assert!(shown.still < SILENT, "nothing changed for {:?}", shown.still);
        let frame = shown.frames.iter().find(|frame| frame.contains("the-large-crate"));
        let frame = frame.unwrap_or_else(|| panic!("never shown: {}", shown.last));
        assert!(frame.contains("build what is new") && frame.contains(" s\n"), "{frame}");
        assert!(!shown.last.contains("build what is new"), "{}", shown.last);
        is_as_kept("build-80", &masked(&pilot, &shown.last));
        pilot.edit_env("DEFAULT_SEED", "6");
        let wide = seen(&pilot, 200, &[], &["up"]);
        assert_eq!(wide.code, 0, "{}", wide.last);
        assert!(wide.still < SILENT, "nothing changed for {:?}", wide.still);
        is_as_kept("build-200", &masked(&pilot, &wide.last));
        // A log gets a line instead, and no control codes.
        pilot.edit_env("DEFAULT_SEED", "7");
        let log = pilot.xtask(&["up"]).expect(0);
        assert!(signs_of_life(&log) > 0 && !log.all().contains('\x1b'), "{}", log.all());
    });
}
