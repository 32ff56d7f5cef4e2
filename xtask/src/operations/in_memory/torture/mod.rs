//! Tests: counter-examples are searched in random sequences of commands, faults and events. `sequence` makes one from a
//! seed, `play` plays it in memory, `check` says what must hold. A sequence that fails is made shorter while it still
//! fails. The search runs in a process of its own, whose clock stands still (`base/fake`): `cargo xtask torture` starts
//! several of them, the test at the end of this file a short one.

#![expect(clippy::print_stdout, reason = "whoever starts the search reads what it prints")]

mod check;
mod play;
mod sequence;
mod stage;

use self::play::play;
use self::sequence::{Command, Event, GateKind, Quality, Sequence, Stack, Step};
use crate::base::fake;
use crate::engine::fake::world::Defect;
use std::time::Instant;

/// The first seed, how many are searched, and every which one: several processes share the work.
const NUMBERS: &str = "TORTURE_NUMBERS";

/// After how many failures the search ends.
const FAILURES: &str = "TORTURE_FAILURES";

/// How often the search says how far it is, in sequences.
const PROGRESS: usize = 50;

/// Leaves out steps and faults while it still fails. Returns the shorter sequence and how it fails.
fn shrunk(sequence: &Sequence, why: String) -> (Sequence, String) {
    let (mut best, mut why) = (sequence.clone(), why);
    let mut at = 0;
    while at < best.steps.len() {
        let mut shorter = best.clone();
        shorter.steps.remove(at);
        match fails(&shorter) {
            Some(still) => (best, why) = (shorter, still),
            None => at += 1,
        }
    }
    for at in 0..best.steps.len() {
        let mut plain = best.clone();
        if let Step::Run { trouble: trouble @ Some(_), .. } = &mut plain.steps[at] {
            *trouble = None;
            if let Some(still) = fails(&plain) {
                (best, why) = (plain, still);
            }
        }
    }
    (best, why)
}

fn fails(sequence: &Sequence) -> Option<String> {
    check::quietly(|| play(sequence)).unwrap_or_else(|panic| Err(format!("a panic: {panic}"))).err()
}

/// What the search has found, without the numbers of operations, which change with the code. Each is played before the
/// search begins.
fn found_before() -> Vec<Sequence> {
    let plain =
        Stack { gate: GateKind::Http, clients: 1, keeps_records: true, watches: true, snapshots: false };
    let stop = Stack { gate: GateKind::Stop, ..plain };
    let run = |command| Step::Run { client: 0, command, trouble: None, lock_ran_out: true };
    let up = |quality, stay| run(Command::Up { quality, stay });
    let corrupt = |service| Step::Happens(Event::DataIsCorrupted(service));
    let all = [
        // Data that nobody could see was corrupt: what uses it did not run.
        (stop, vec![Step::Happens(Event::EverythingIsPruned), corrupt("jobs")]),
        (stop, vec![Step::Happens(Event::EverythingIsPruned), corrupt("gateway")]),
        (stop, vec![corrupt("gateway"), up(Quality::Bad(Defect::Errors), false)]),
        (plain, vec![corrupt("gateway"), up(Quality::Good, true)]),
    ];
    all.into_iter().map(|(stack, steps)| Sequence { seed: 0, stack, steps }).collect()
}

/// What `cargo xtask torture` starts. The numbers are `SEED COUNT STRIDE`; without them there is nothing to do.
#[test]
#[ignore = "the search itself, in a process of its own"]
fn search() {
    let Ok(numbers) = std::env::var(NUMBERS) else { return };
    let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
    let [seed, count, stride] = numbers[..] else { panic!("not SEED COUNT STRIDE: {numbers:?}") };
    fake::stop_the_clock();
    std::panic::set_hook(Box::new(|_| {}));
    let most = std::env::var(FAILURES).map_or(1, |most| most.parse().unwrap());
    let (begun, mut failed, mut done) = (Instant::now(), 0, 0);
    let seeds = (0..count).map(|at| Sequence::from(seed.wrapping_add(at * stride)));
    for sequence in found_before().into_iter().chain(seeds) {
        done += usize::from(sequence.seed > 0);
        if let Some(why) = fails(&sequence) {
            let (shorter, still) = shrunk(&sequence, why);
            println!("FAILED {shorter}  {still}\n");
            failed += 1;
        }
        if done > 0 && done % PROGRESS == 0 {
            println!("DONE {done}");
        }
        if failed >= most {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("SEARCHED {done} sequences in {seconds:.1} s, {failed} failed");
}

/// A short search, and what was found before. In a process of its own, because its clock stands still.
#[test]
fn random_sequences_hold() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "operations::in_memory::torture::search", "--ignored", "--nocapture"]);
    let output = command.env(NUMBERS, "1 24 1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("SEARCHED 24 sequences") && said.contains(", 0 failed"), "{said}");
}

#[test]
fn the_same_seed_gives_the_same_sequence_and_others_differ() {
    let all: Vec<String> = (1..200).map(|seed| Sequence::from(seed).to_string()).collect();
    assert_eq!(all, (1..200).map(|seed| Sequence::from(seed).to_string()).collect::<Vec<_>>());
    let without_seed = |text: &String| text.split_once(':').unwrap().1.to_owned();
    let kinds: std::collections::BTreeSet<String> = all.iter().map(without_seed).collect();
    assert!(kinds.len() > 195, "{}", kinds.len());
    for word in ["Kills", "Hangs", "Lies", "FailsLate", "Meanwhile", "WithData", "FolderIsDeleted"] {
        assert!(all.iter().any(|text| text.contains(word)), "{word}");
    }
}
