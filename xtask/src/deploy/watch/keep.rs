//! The step that keeps watch after the gate was opened, or left closed under a hold. Meanwhile the images of a new release
//! are saved. What turns bad is shut out at once, which ends the step; what then becomes of the run is decided by its
//! caller. Called by `execute`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::base::screen;
use crate::base::threads::joined;
use crate::deploy::execution::{End, Execution, Measured, Stance, TurnedBad, Unrecorded};
use crate::deploy::gate::{self, Closer, Gate};
use crate::deploy::lockout;
use crate::deploy::run::Command;
use crate::deploy::watch::look::look;
use crate::deploy::watch::{Verdict, Watch};
use crate::engine::carry;
use crate::stack::hold::{self, Hold};
use crate::stack::manifest::WatchRule;
use anyhow::{Result, ensure};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

impl Execution<'_> {
    /// Watches for so long, and as long again as a service may take to start while something is not decided.
    pub(in crate::deploy) fn keep_watch(&self, time: Duration, measured: &mut Measured) -> Result<End> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let saving = scope.spawn(|| {
                let limit = self.target.pilot.manifest.limits.deploy;
                carry::save(&self.release.id, self.target.engine.as_ref(), self.store, limit, &over)
            });
            let watched = self.watched(time, measured);
            // What has turned bad is not worth saving.
            over.store(watched.is_err(), Ordering::Relaxed);
            // If they could not be saved, that is tried again, and told, when the release is recorded.
            joined(saving).ok();
            watched
        })
    }

    fn watched(&self, time: Duration, measured: &mut Measured) -> Result<End> {
        let (pilot, runtime) = (&self.target.pilot, &self.target.engine);
        let rule = WatchRule { time, ..pilot.manifest.watch.clone() };
        let ready = pilot.manifest.limits.ready;
        let (mut watch, mut at) = (Watch::new(rule.clone(), ready, true), Duration::ZERO);
        let told = humantime::format_duration(time);
        loop {
            let begun = Instant::now();
            // Whoever has the lock by now may be replacing what is watched. An engine that does not answer is seen below.
            if let Err(error) = self.store.ledger().keep(rule.every)
                && exit_of(&error) == Exit::Locked
            {
                return Err(error);
            }
            let verdict = watch.see(&look(self.target, &rule, at));
            at += begun.elapsed();
            match &verdict {
                Verdict::Bad(why) => return Err(self.turned_bad(why, measured)),
                Verdict::Well if at >= time => break,
                Verdict::Unseen(why) if at >= time + ready => return self.unseen(why, measured),
                Verdict::NotYet(why) if at >= time + ready => return Err(self.turned_bad(why, measured)),
                Verdict::Well => screen::detail(format!("{} s: all is well", at.as_secs())),
                Verdict::NotYet(why) | Verdict::Unseen(why) => screen::detail(why.clone()),
            }
            at += runtime.pass(rule.every);
        }
        let held = match self.held_by_now() {
            Ok(held) => held,
            Err(error) => return Err(self.turned_bad(&format!("{error:#}"), measured)),
        };
        let behind = if held.is_some() { " behind the closed gate" } else { "" };
        self.out.note(format!("watched for {told}{behind}: steady"));
        if held.is_some() && measured.held.is_none() {
            (measured.held, measured.stopped) = (held, self.target.cover()?.stopped());
        }
        Ok(End::Done)
    }

    /// Who holds the gate closed at the end: somebody may have closed it meanwhile, with this tool or without. An error if it
    /// is closed and nobody holds it.
    fn held_by_now(&self) -> Result<Option<String>> {
        let ledger = self.store.ledger();
        let gate = self.target.gate(lockout::REQUEST).map(|gate| gate.position());
        let held = match (hold::standing(&ledger), &gate) {
            (Ok(holds), _) => Observed::Known(holds).held(&[]),
            // What cannot be read counts as a hold of a gate that is closed. Of another one nobody says that it is closed.
            (Err(error), Ok(Gate::Closed(_))) => Observed::from(Err(error)).held(&[]),
            (Err(error), _) => {
                self.out.note(format!("cannot tell whether somebody holds the gate closed: {error:#}"));
                return Ok(None);
            }
        };
        match (gate, held) {
            (Ok(Gate::Open), Some(held)) => {
                // Opened without this tool, or not closed yet by whoever holds it.
                let limit = Deadline::after(self.target.pilot.manifest.limits.engine);
                let now = self.target.observe(self.target.engine.as_ref(), limit);
                lockout::shut(self.target, &now, &self.run.reason_under(&now.holds), limit)?;
                Ok(Some(held))
            }
            (Ok(Gate::Closed(reason)), None) => {
                let closer = gate::closer_by(&self.target.pilot.manifest.gate, &reason);
                ensure!(closer == Closer::Person, "the gate was closed meanwhile: {reason}");
                let hold = Hold::found(&reason);
                hold.place(&ledger)?;
                Ok(Some(hold.to_string()))
            }
            (_, held) => Ok(held),
        }
    }

    /// Shuts the public out at once. What could not be closed is closed again at the end of the run.
    fn turned_bad(&self, why: &str, measured: &mut Measured) -> anyhow::Error {
        let view = self.target;
        let limit = Deadline::after(view.pilot.manifest.limits.engine);
        let now = view.observe(view.engine.as_ref(), limit);
        let closed = lockout::shut(view, &now, &self.run.reason_under(&now.holds), limit);
        let closed = match closed {
            Ok(closed) => {
                measured.gate_closed_ms = Some(self.out.elapsed_ms());
                closed.to_string()
            }
            Err(error) => format!("THE GATE MAY BE OPEN: {error:#}"),
        };
        measured.stance = Stance::Wrong;
        let what = format!("{why}; {closed}");
        fail(Exit::NotRestored, what, Next::xtask("rollback")).context(TurnedBad(self.release.id.clone()))
    }

    /// The engine does not answer, so nobody knows. The release was verified, and serves.
    fn unseen(&self, why: &str, measured: &mut Measured) -> Result<End> {
        let what = format!("cannot tell whether it stays well: {why}");
        if self.run.request.command != Command::Up {
            return Ok(End::Warned(what, None));
        }
        measured.stance = Stance::LeftServed;
        Err(fail(Exit::Host, what, Next::xtask("host")).context(Unrecorded(self.release.id.clone())))
    }
}
