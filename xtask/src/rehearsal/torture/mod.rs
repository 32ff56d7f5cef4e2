//! The search for counter-examples: random sequences in memory (`search`), commands that are killed at random moments on
//! local processes (`kills`), and planted faults that must be found (`mutations`). One row is shown for each: what was
//! tried, and what held. Called by the command `torture`.

mod kills;
mod mutations;
mod row;
mod search;

use self::row::Row;
use crate::base::deadline::{now_ms, utc};
use crate::base::failure::Exit;
use crate::base::output::Output;
use crate::deploy::event::{Event, Finished};
use crate::release::source;
use crate::stack::pilot::Pilot;
use anyhow::Result;

/// What to search.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many random sequences.
    pub sequences: Option<u64>,
    /// The seed of the first one; none for one from the clock.
    pub seed: Option<u64>,
    /// How many commands are killed.
    pub kills: Option<u64>,
    /// Are faults planted?
    pub mutations: bool,
}

/// How many sequences are played if nothing is asked for.
const USUAL: u64 = 1000;

/// Searches what was asked for, and shows the table. Exit 1 if something did not hold.
pub fn run(options: &Options, pilot: &Pilot, out: &Output) -> Result<Finished> {
    let asked = options.kills.is_some() || options.mutations;
    let sequences = options.sequences.or((!asked).then_some(USUAL)).filter(|count| *count > 0);
    let seed = options.seed.unwrap_or_else(now_ms);
    let mut rows = Vec::new();
    if let Some(count) = sequences {
        rows.push(search::run(seed, count, pilot, out)?);
    }
    if let Some(count) = options.kills {
        rows.push(kills::run(seed, count, pilot, out)?);
    }
    if options.mutations {
        rows.extend(mutations::run(pilot, out)?);
    }
    let commit = source::head(pilot).unwrap_or_else(|| "no commit".into());
    out.say(format!("\n{}, {commit}\n", utc(now_ms())));
    out.say("| claim | attack | tried | held |\n|---|---|---:|---:|");
    for Row { claim, attack, tried, held, .. } in &rows {
        out.say(format!("| {claim} | {attack} | {tried} | {held} |"));
    }
    rows.iter().flat_map(|row| &row.found).for_each(|found| out.say(format!("\n{found}")));
    out.event(&Event::Result { value: &serde_json::json!({"seed": seed, "commit": commit, "rows": rows}) });
    let all_held = rows.iter().all(|row| row.held == row.tried && row.tried > 0);
    if all_held {
        return Ok(Finished::plain(Exit::Ok));
    }
    let error = Some("a counter-example was found; it is shown above".to_owned());
    Ok(Finished { error, ..Finished::plain(Exit::NotRestored) })
}
