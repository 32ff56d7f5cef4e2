//! Shuts the public out by any means, and lets it in again. To close: by the gate, with proof; if that fails,
//! stop what the gate covers, or every published service if what runs belongs to no known release. To open:
//! only if no hold stands, which is checked before and after; if anything fails, the gate is closed again.
//! Statements about the gate are only what was seen. Called by `steps`, `rollback` and `kill-switch`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::deploy::gate::stop::settle;
use crate::deploy::gate::{self, Closer, Gate, Switch};
use crate::deploy::observe::Observation;
use crate::deploy::step::left_open;
use crate::deploy::view::View;
use crate::release::description::Release;
use crate::release::store::Store;
use crate::stack::cover::Cover;
use crate::stack::gate_rule::Kind;
use crate::stack::hold::{self, Hold};
use crate::stack::ledger::{Ledger, Record};
use crate::stack::model::Service;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// The time limit of one request to the gate. It is short, because the public waits meanwhile.
pub const REQUEST: Duration = Duration::from_secs(1);

/// The time limit for opening the gate, including the first public request.
const OPENING: Duration = Duration::from_secs(10);

/// How long instances of a gateway that was just applied are asked at the same addresses.
const MOVED: Duration = Duration::from_secs(3);

/// The pause before they are looked for again.
const AGAIN: Duration = Duration::from_millis(20);

/// How long to wait for another command that is opening the gate.
pub const OTHERS: Duration = Duration::from_secs(15);

/// How the public was shut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The gate is proved closed: what was seen.
    Proved(String),
    /// The gate could not be closed: these services were stopped, and it was checked that they are down. If
    /// the list is empty, nothing served the public.
    Stopped {
        /// Which services.
        services: Vec<String>,
        /// Why the gate could not be closed.
        why: String,
    },
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proved(proof) => f.write_str(proof),
            Self::Stopped { services, why } if services.is_empty() => {
                write!(f, "nothing serves the public: no gateway runs ({why})")
            }
            Self::Stopped { services, why } => {
                write!(f, "could not close the gate ({why}), so {} was stopped", services.join(", "))
            }
        }
    }
}

/// What the public gets, as last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Public {
    /// It is shut out, and how.
    ShutOut(String),
    /// The gate is closed, but it does not cover all that is published: what was seen.
    Partly(String),
    /// It is served.
    Served,
    /// Unknown, and why.
    Unknown(String),
}

impl Public {
    /// Is the gate proved closed?
    pub fn is_shut(&self) -> bool {
        matches!(self, Self::ShutOut(_) | Self::Partly(_))
    }
}

impl fmt::Display for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShutOut(how) => write!(f, "the public is shut out: {how}"),
            Self::Partly(how) => write!(f, "the public is shut out in part: {how}"),
            Self::Served => write!(f, "the public is served"),
            Self::Unknown(why) => write!(f, "it is unknown whether the public is served: {why}"),
        }
    }
}

/// Shuts the public out. It is an error if this could not be done, or could not be proved.
pub fn shut(view: &View, now: &Observation, reason: &str, deadline: Deadline) -> Result<Closed> {
    shut_by(view.gate_seen(now, REQUEST), view, now, reason, deadline)
}

/// The same, by the gate that was looked for just now, if there is one.
pub fn shut_by(
    gate: Result<Box<dyn Switch + '_>>,
    view: &View,
    now: &Observation,
    reason: &str,
    deadline: Deadline,
) -> Result<Closed> {
    let why = match gate.and_then(|gate| gate.close(reason)) {
        Ok(proof) => return Ok(Closed::Proved(proof)),
        Err(error) => format!("{error:#}"),
    };
    let services = stop(view, now, deadline)
        .with_context(|| format!("could not close the gate ({why}) or stop what serves the public"))?;
    Ok(Closed::Stopped { services, why })
}

/// Stops what the gate covers, or every published service if that is unknown. Then checks that they are down.
fn stop(view: &View, now: &Observation, deadline: Deadline) -> Result<Vec<String>> {
    let Observed::Known(stack) = &now.stack else {
        let what = format!("the engine does not say what runs: {}", now.stack.why());
        return Err(fail(Exit::Host, what, Next::xtask("host")));
    };
    let covered = view.release.as_ref().and_then(|_| view.cover().ok()).map(|cover| cover.services);
    let lets_in = |name: &String, service: &Service| match &covered {
        Some(covered) => covered.contains(name),
        None => service.is_published(),
    };
    let live = stack.services.iter().filter(|(name, s)| s.is_live() && lets_in(name, s));
    let services: Vec<String> = live.map(|(name, _)| name.clone()).collect();
    services.iter().try_for_each(|service| view.engine.stop(service, deadline))?;
    if !services.is_empty() {
        let after = view.engine.services(deadline)?;
        let up = |name: &&String| after.get(*name).is_some_and(Service::is_live);
        let left: Vec<&str> = services.iter().filter(up).map(String::as_str).collect();
        ensure!(left.is_empty(), "still up after stopping it: {}", left.join(", "));
    }
    Ok(services)
}

/// Closes the gate on disk, for the release that runs: the gateway comes up closed, however it is started.
pub fn close_on_disk(view: &View, store: &Store, reason: &str, deadline: Deadline) -> Result<()> {
    let release = view.release.as_ref().context("no release is deployed")?;
    let rule = &view.pilot.manifest.gate;
    let offline = rule.offline().context("this gate cannot be closed while its service does not run")?;
    if rule.kind() == Kind::Exec {
        gate::remember(&store.ledger(), reason)?;
    }
    let words = offline.words(reason)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let dir = store.dir(&release.id);
    let said = view.engine.run_once(release, &dir, view.pilot.gateway(), &words, deadline)?;
    ensure!(said.trim() == offline.prints, "the gate on disk is {:?} after closing it", said.trim());
    Ok(())
}

/// Closes the gate where the gateway does not run now and may start, by the release that runs: an engine with several
/// machines may move it there at any moment, and may have begun it since the gate was closed. An engine with one machine has no
/// such place.
pub fn close_where_none(view: &View, reason: &str, deadline: Deadline) -> Result<()> {
    let (Some(release), Some(offline)) = (&view.release, view.pilot.manifest.gate.offline()) else {
        return Ok(());
    };
    let words = offline.words(reason)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let dir = view.pilot.state.release(&release.id);
    let closed = view.engine.run_where_none(release, &dir, view.pilot.gateway(), &words, deadline);
    if closed.context("a gateway that is started on another machine may come up open")? {
        close_what_began(view.gate(REQUEST)?.as_ref(), reason)?;
    }
    Ok(())
}

/// One that does not answer yet began after the gate was closed on its disk, or is looked at when it is up.
fn close_what_began(gate: &dyn Switch, reason: &str) -> Result<()> {
    match gate.position() {
        Gate::Open => gate.close(reason).map(drop).context("a gateway that began meanwhile is open"),
        _ => Ok(()),
    }
}

/// Undoes it where the gateway does not run now and may run later: the public has been let in to this release.
pub fn open_on_disk(view: &View, store: &Store, release: &Release, deadline: Deadline) -> Result<()> {
    let Some(open) = view.pilot.manifest.gate.offline().and_then(|offline| offline.open.as_ref()) else {
        return Ok(());
    };
    let words: Vec<&str> = open.iter().map(String::as_str).collect();
    let dir = store.dir(&release.id);
    view.engine.run_where_none(release, &dir, view.pilot.gateway(), &words, deadline).map(drop)
}

/// How an attempt to open the gate ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is open: a public request was served.
    Open,
    /// A hold stands, and it is proved that the gate is closed.
    Held(Hold),
}

/// Which closings by a person may be undone.
#[derive(Clone, Copy, Debug)]
pub struct Lift<'a> {
    /// The ids of the holds that stood when the user asked to open the gate.
    pub holds: &'a [String],
    /// Also undo a closing that was done without this tool.
    pub by_hand: bool,
}

/// Opens the gate of a stack that was just verified, unless a hold stands that must not be lifted. The other
/// holds are deleted first: if the process is killed here, no gate is open under a hold. If the gate has
/// started its services, `started` checks them. If anything fails after that, the gate is closed again, with
/// `reason`.
pub fn open(
    view: &View,
    ledger: &Ledger,
    lift: Lift<'_>,
    reason: &str,
    deadline: Deadline,
    started: &mut dyn FnMut() -> Result<()>,
) -> Result<Opened> {
    // `kill-switch on` waits for this lock. So its hold is seen here, or it closes the gate after this.
    let _opening = ledger.opening(deadline.within(OTHERS))?;
    let gate = view.gate(OPENING.min(deadline.left()))?;
    let stops = view.cover()?.stops();
    let holds = hold::standing(ledger).context("cannot tell whether somebody holds the gate closed")?;
    if let Some(hold) = Hold::first_of(&holds, lift.holds) {
        return stay_closed(view, gate.as_ref(), hold, deadline);
    }
    // A person closed the gate since the run began, without a hold: this counts as a hold.
    if let (Gate::Closed(reason), false, true) = (gate.position(), lift.by_hand, holds.is_empty())
        && gate::closer_by(&view.pilot.manifest.gate, &reason) == Closer::Person
    {
        let hold = Hold::found(&reason);
        hold.place(ledger)?;
        return stay_closed(view, gate.as_ref(), &hold, deadline);
    }
    // A gate before this one may have stopped services.
    let stopped = stops || ledger.read(Record::Closing)?.is_some();
    holds.iter().try_for_each(|hold| hold.lift(ledger))?;
    let mut opening = || {
        gate.open()?;
        if stops {
            started()?;
        }
        if stopped {
            let limit = Deadline::after(view.pilot.manifest.limits.engine);
            settle(view.engine.as_ref(), view.definition().as_ref(), ledger, limit)?;
        }
        hold::standing(ledger)
    };
    match opening() {
        Ok(holds) => match holds.first() {
            None => Ok(Opened::Open),
            Some(hold) => stay_closed(view, gate.as_ref(), hold, deadline),
        },
        Err(error) => Err(match close_again(view, gate.as_ref(), reason, deadline) {
            Ok(closed) => error.context(format!("the public was let in and shut out again ({closed})")),
            Err(left) => error.context(format!("THE GATE MAY BE OPEN: {left:#}")),
        }),
    }
}

/// Under a hold: proves that the gate is closed, with the reason of the person who holds it.
fn stay_closed(view: &View, gate: &dyn Switch, hold: &Hold, deadline: Deadline) -> Result<Opened> {
    close_again(view, gate, &hold.reason, deadline)?;
    Ok(Opened::Held(hold.clone()))
}

/// Waits for a gate that was just applied, closes it if it came up open, and proves that it refuses the
/// public. If that fails, its services are stopped at once. Returns true if it had come up open.
pub fn closed_after_start(view: &View, reason: &str, deadline: Deadline) -> Result<bool> {
    let stops = view.cover()?.stops();
    let error = match close_what_starts(|| view.gate(REQUEST), reason, stops, deadline)? {
        Ok(open) => return Ok(open),
        Err(error) => error,
    };
    let limit = Deadline::after(view.pilot.manifest.limits.engine);
    let stopped = view.cover().and_then(|Cover { services, .. }| {
        services.iter().try_for_each(|service| view.engine.stop(service, limit))
    });
    let how = match stopped {
        Ok(()) => "it was stopped".to_owned(),
        Err(error) => format!("it could not be stopped: {error:#}"),
    };
    bail!("the new gateway does not prove that it refuses the public ({error:#}); {how}")
}

/// The same for the gate alone. It is looked for again and again: the engine may move an instance meanwhile. The outer error
/// is that of a gateway that does not answer, the inner one that of a gateway that answers and cannot be closed.
fn close_what_starts<'a>(
    look: impl Fn() -> Result<Box<dyn Switch + 'a>>,
    reason: &str,
    stops: bool,
    deadline: Deadline,
) -> Result<Result<bool>> {
    // One that begins to answer at the end of a look has failed that look and answers all the same: it is tried once more.
    let mut answered = false;
    deadline.poll(AGAIN, || {
        let gate = match look() {
            Ok(gate) => gate,
            Err(error) => return Continue(error),
        };
        match gate.close_applied(reason, deadline.within(MOVED)) {
            Ok(open) => Break(Ok(open)),
            Err(error) if stops => Break(Err(error)),
            Err(error) => {
                let was_last = answered || deadline.passed();
                answered = !matches!(gate.position(), Gate::Unknown(_));
                // A gateway that does not answer lets nobody in yet.
                if answered && was_last { Break(Err(error)) } else { Continue(error) }
            }
        }
    })
}

fn close_again(view: &View, gate: &dyn Switch, reason: &str, deadline: Deadline) -> Result<Closed> {
    if let Ok(proof) = gate.close(reason) {
        return Ok(Closed::Proved(proof));
    }
    // Close it even if the budget is used up.
    let limit = Deadline::after(view.pilot.manifest.limits.engine.max(deadline.left()));
    let now = view.observe(view.engine.as_ref(), limit);
    shut(view, &now, reason, limit)
}

/// What the public gets now: asked, not remembered.
pub fn public(view: &View, deadline: Deadline) -> Public {
    let now = view.observe(view.engine.as_ref(), deadline);
    seen(view, &now)
}

/// Shut out in whole, or but for these.
fn shut_out(how: &str, not_closed: &[String]) -> Public {
    match not_closed {
        [] => Public::ShutOut(how.to_owned()),
        some => Public::Partly(format!("{how}{}", left_open(some))),
    }
}

/// The same, from an observation that was just made.
pub fn seen(view: &View, now: &Observation) -> Public {
    if let Observed::Known(stack) = &now.stack {
        let published: Vec<&str> = stack
            .services
            .iter()
            .filter(|(_, service)| service.is_published())
            .map(|(name, _)| name.as_str())
            .collect();
        if published.is_empty() {
            return shut_out("no published service runs", &view.beyond_reach());
        }
        let gateway = view.pilot.manifest.gate.service().filter(|_| view.release.is_some());
        if gateway.is_some_and(|name| !stack.services.get(name).is_some_and(|s| s.is_live())) {
            return shut_out("the gateway does not run", &view.beyond_reach());
        }
    }
    let proof = view.gate_seen(now, REQUEST).and_then(|gate| gate.prove_closed());
    match (proof, &now.gate) {
        (Ok(proof), _) => shut_out(&proof, &now.not_closed),
        (Err(_), Gate::Open) => Public::Served,
        (Err(error), _) => Public::Unknown(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A gate that fails so many times, and always answers if it is asked in between.
    struct Fails<'a>(&'a Cell<usize>);

    impl Switch for Fails<'_> {
        fn position(&self) -> Gate {
            Gate::Open
        }

        fn close(&self, _: &str) -> Result<String> {
            bail!("not asked here")
        }

        fn prove_closed(&self) -> Result<String> {
            bail!("not asked here")
        }

        fn open(&self) -> Result<()> {
            bail!("not asked here")
        }

        fn close_applied(&self, _: &str, _: Deadline) -> Result<bool> {
            match self.0.replace(self.0.get().saturating_sub(1)) {
                0 => Ok(true),
                _ => bail!("it did not answer until now"),
            }
        }
    }

    /// A gate whose position is asked and which can be closed, with how often it was.
    struct Stands<'a>(Gate, &'a Cell<usize>);

    impl Switch for Stands<'_> {
        fn position(&self) -> Gate {
            self.0.clone()
        }

        fn close(&self, _: &str) -> Result<String> {
            self.1.set(self.1.get() + 1);
            Ok("the gate is closed".into())
        }

        fn prove_closed(&self) -> Result<String> {
            bail!("not asked here")
        }

        fn open(&self) -> Result<()> {
            bail!("not asked here")
        }
    }

    #[test]
    fn what_began_open_since_the_gate_was_closed_is_closed_too() {
        let closings = |position| {
            let count = Cell::new(0);
            close_what_began(&Stands(position, &count), "r").unwrap();
            count.get()
        };
        assert_eq!(closings(Gate::Open), 1);
        assert_eq!(closings(Gate::Closed("r".into())), 0);
        assert_eq!(closings(Gate::Unknown("it does not answer".into())), 0);
    }

    #[test]
    fn a_gateway_that_begins_to_answer_at_the_end_of_a_look_is_closed_by_the_next() {
        let tried = |fails, stops, seconds| {
            let left = Cell::new(fails);
            let limit = Deadline::after(Duration::from_secs(seconds));
            close_what_starts(|| Ok(Box::new(Fails(&left))), "r", stops, limit).unwrap().ok()
        };
        assert_eq!(tried(1, false, 10), Some(true));
        // One that answers and cannot be closed is not tried for ever, and not after the deadline.
        assert_eq!(tried(2, false, 10), None);
        assert_eq!(tried(1, false, 0), None);
        assert_eq!(tried(1, true, 10), None);
    }
}
