//! `status --watch`: the screen of `status` again and again, with what changes from moment to moment: how fast the public
//! is answered, what the services use, who works on the stack, and the last runs. Read-only; ends with Ctrl-C.

use super::{assess, status};
use crate::base::deadline::{Deadline, now_ms, utc};
use crate::base::observed::Observed;
use crate::base::screen;
use crate::base::threads::joined;
use crate::checks::health::health;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use crate::engine::roles::Usage;
use crate::operations::history;
use crate::operations::look::{Look, look};
use crate::stack::model::Health;
use anyhow::Result;
use serde_json::json;
use std::time::{Duration, Instant};

/// How many latencies the line shows.
const SHOWN: usize = 40;

/// How many runs are shown.
const RUNS: usize = 3;

/// The heights of the line, lowest first.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Looks every `pause`, for `times` times; without it, until a signal comes.
pub fn run(pause: Duration, times: Option<u32>, session: &Session) -> Result<Finished> {
    let mut latencies: Vec<Option<Duration>> = Vec::new();
    let mut last = None;
    for _ in 0..times.unwrap_or(u32::MAX) {
        if last.is_some() {
            std::thread::sleep(pause);
        }
        // If the engine does not tell, the look says so.
        session.meet().ok();
        latencies.push(latency(session));
        latencies.drain(..latencies.len().saturating_sub(SHOWN));
        let limits = &session.pilot.manifest.limits;
        let (looked, usage) = std::thread::scope(|scope| {
            let usage = scope.spawn(|| session.engine.usage(Deadline::after(limits.engine)));
            let looked = look(session, 0, Deadline::after(limits.ready));
            (looked, joined(usage))
        });
        last = Some(shown(session, looked?, &Observed::from(usage), &latencies));
    }
    Ok(last.unwrap_or_else(|| Finished::plain(crate::base::failure::Exit::Ok)))
}

/// How long the gateway takes to say that it is healthy; none if it does not say so, or cannot be asked.
fn latency(session: &Session) -> Option<Duration> {
    let limits = &session.pilot.manifest.limits;
    let view = session.running(Deadline::after(limits.engine)).ok()?;
    let (client, rule) = (view.client(limits.probe).ok()?, view.pilot.manifest.health.as_ref()?);
    let begun = Instant::now();
    matches!(health(&client, rule), Health::Healthy { .. }).then(|| begun.elapsed())
}

fn shown(
    session: &Session,
    look: Look,
    usage: &Observed<Vec<Usage>>,
    latencies: &[Option<Duration>],
) -> Finished {
    let Session { out, pilot, .. } = session;
    let ms: Vec<Option<f64>> = latencies.iter().map(|one| one.map(|one| one.as_secs_f64() * 1e3)).collect();
    let holder = Observed::from(session.ledger().holder());
    let more = json!({"sessions": look.sessions, "usage": usage, "latency_ms": ms.last(), "lock": holder.known().cloned().flatten()});
    out.event(&Event::Result { value: &look.told(more) });
    screen::wipe();
    out.say(utc(now_ms()));
    status::show(session, &look);
    assess::show_sessions(session, &look);
    if pilot.manifest.health.is_some() {
        let now = ms.last().copied().flatten().map_or("no answer".into(), |ms| format!("{ms:.1} ms"));
        out.say(format!("\n  answers in {now:<10} {}", line(&ms)));
    }
    out.say("\n  uses");
    match usage {
        Observed::Unknown(why) => out.say(format!("    cannot tell: {why}")),
        Observed::Known(all) => {
            all.iter()
                .for_each(|u| out.say(format!("    {:<28} cpu {:<9} memory {}", u.name, u.cpu, u.memory)));
        }
    }
    out.say("\n  last runs");
    let runs = history::all(&pilot.state).unwrap_or_else(|error| {
        out.say(format!("    cannot tell: {error:#}"));
        Vec::new()
    });
    for entry in runs.into_iter().take(RUNS) {
        let (when, command) = (entry.began_ms.map(utc), entry.command);
        let or = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        out.say(format!("    {}  {}  {}", or(when), or(command), entry.outcome));
    }
    let at_work = match holder {
        Observed::Known(holder) => holder.unwrap_or_else(|| "nobody".into()),
        Observed::Unknown(why) => format!("cannot tell: {why}"),
    };
    out.say(format!("\n  at work: {at_work}"));
    status::verdict(session, &look)
}

/// The latencies as a line of bars, the newest on the right; what did not answer is a cross.
fn line(all: &[Option<f64>]) -> String {
    let most = all.iter().flatten().fold(0.0, |most: f64, one| most.max(*one));
    let bar = |one: &Option<f64>| match one {
        None => '✗',
        Some(ms) => BARS[((ms / most * 7.0).round() as usize).min(7)],
    };
    all.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_a_bar_for_each_answer_and_a_cross_for_none() {
        assert_eq!(line(&[Some(1.0), Some(4.0), None, Some(8.0)]), "▂▅✗█");
        assert_eq!(line(&[None]), "✗");
        assert_eq!(line(&[]), "");
    }
}
