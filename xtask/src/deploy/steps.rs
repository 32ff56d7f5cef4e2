//! What each step does: one function for each step. What the plan could have decided is not decided here.
//! Called only by `execute`.

use crate::base::count::count;
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::base::threads::{joined, side_by_side};
use crate::checks::health::{wait_behind, wait_healthy};
use crate::checks::memory::memory;
use crate::deploy::backup;
use crate::deploy::cleanup;
use crate::deploy::drift;
use crate::deploy::edge;
use crate::deploy::event::Event;
use crate::deploy::evidence;
use crate::deploy::execution::{End, Execution, Measured, Stale, Stance};
use crate::deploy::gate::Gate;
use crate::deploy::lockout::{self, Closed, Lift, Opened};
use crate::deploy::past::Past;
use crate::deploy::paused::Longest;
use crate::deploy::run::Command;
use crate::deploy::view::View;
use crate::engine::carry;
use crate::engine::roles::Extent;
use crate::host;
use crate::stack::gate_rule::Kind;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{Break, Continue};
use std::path::PathBuf;
use std::time::Duration;

/// How long to wait for an engine that did not answer a moment ago.
const ASK: Duration = Duration::from_secs(2);

/// How many services are stopped at a time.
const STOPS: usize = 4;

/// The time between two measurements of what the services use.
const MEASURES: Duration = Duration::from_secs(1);

/// What a service, or a container, did and used so far.
#[derive(Default)]
struct Sample {
    restarts: u64,
    /// Zero if only its restarts are known.
    memory: f64,
}

impl Execution<'_> {
    pub(super) fn close_gate(&self, deadline: Deadline, measured: &mut Measured) -> Result<End> {
        let gate = self.running.gate_just_seen(self.now, lockout::REQUEST);
        // If the gate is already closed, the reason that was given stays.
        if gate.as_ref().is_ok_and(|gate| gate.prove_closed().is_ok()) {
            measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
            lockout::close_where_none(self.running, &self.reason(), deadline)?;
            return Ok(End::Skipped("it was closed already, and this was proved".into()));
        }
        let closed = lockout::shut_by(gate, self.running, self.now, &self.reason(), deadline)?;
        measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
        if let Closed::Stopped { .. } = closed {
            bail!(Stale::because(closed.to_string()));
        }
        lockout::close_where_none(self.running, &self.reason(), deadline)?;
        Ok(End::Done)
    }

    pub(super) fn stop(
        &self,
        services: &[String],
        deadline: Deadline,
        measured: &mut Measured,
    ) -> Result<End> {
        services.iter().try_for_each(|service| self.running.engine.stop(service, deadline))?;
        measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
        Ok(End::Done)
    }

    pub(super) fn close_gate_on_disk(&self, deadline: Deadline, measured: &mut Measured) -> Result<End> {
        lockout::close_on_disk(self.target, self.store, &self.reason(), deadline)?;
        measured.gate_closed_ms.get_or_insert(self.out.elapsed_ms());
        Ok(End::Done)
    }

    pub(super) fn tear_down(&self, deadline: Deadline) -> Result<End> {
        self.running.engine.down(Extent::Data, deadline)?;
        let left =
            self.target.engine.resources(self.deadline.within(self.target.pilot.manifest.limits.engine))?;
        ensure!(left.is_empty(), "still there after the teardown: {}", left.join(", "));
        Ok(End::Done)
    }

    /// Only asks. If the engine answers again, a new plan is needed.
    pub(super) fn ask_engine(&self, measured: &mut Measured) -> Result<End> {
        if self.now.gate == Gate::Open && measured.gate_closed_ms.is_none() {
            self.out.note("the services answer and are healthy: their gate is left open");
            measured.stance = Stance::LeftServed;
        }
        self.target.engine.services(self.deadline.within(ASK))?;
        bail!(Stale::because("the engine answers again"))
    }

    pub(super) fn record_release(&self) -> Result<End> {
        self.store.set_current(&self.release.id)?;
        Ok(End::Done)
    }

    /// The release runs already, so a tag that cannot be moved is no reason to go to another one.
    pub(super) fn retag(&self, measured: &Measured, deadline: Deadline) -> Result<End> {
        if measured.restored_ms.is_some()
            && let Err(error) = lockout::open_on_disk(self.target, self.store, self.release, deadline)
        {
            self.out
                .note(format!("where the gateway may start later it starts with a closed gate: {error:#}"));
        }
        Ok(match self.target.engine.retag(self.release, deadline) {
            Ok(()) => End::Done,
            Err(error) => End::Warned(format!("plain Compose may start other images: {error:#}"), None),
        })
    }

    pub(super) fn remove_data(&self, services: &[String], deadline: Deadline) -> Result<End> {
        services.iter().try_for_each(|service| self.running.engine.remove_data(service, deadline))?;
        Ok(End::Done)
    }

    pub(super) fn remove_services(&self, services: &[String], deadline: Deadline) -> Result<End> {
        self.target.engine.remove(services, deadline)?;
        Ok(End::Done)
    }

    pub(super) fn keep_closed(
        &self,
        hold: &str,
        stopped: &[String],
        not_closed: &[String],
        measured: &mut Measured,
    ) -> Result<End> {
        self.wait_for_gateway()?;
        measured.held = Some(hold.to_owned());
        measured.stopped = stopped.to_vec();
        measured.not_closed = not_closed.to_vec();
        Ok(End::Done)
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.store.dir(&self.release.id)
    }

    /// While the public is served this may take half of the time that is left; then the gate is closed first.
    pub(super) fn load(&self, services: &[String], served: bool) -> Result<End> {
        let View { pilot, engine, .. } = self.target;
        let until = if served { self.deadline.within(self.deadline.left() / 2) } else { self.deadline };
        let images = services.iter().map(|service| &self.release.images[service]);
        match carry::load(images, engine.as_ref(), self.store, pilot.manifest.limits.deploy, until) {
            Err(error) if served && until.passed() => {
                bail!(Stale::because(format!(
                    "loading the images takes long, so the gate is closed first: {error:#}"
                )))
            }
            loaded => loaded.map(|()| End::Done),
        }
    }

    /// Keeps a copy of the env file if it was edited after the backup was made.
    pub(super) fn restore_env_file(&self) -> Result<End> {
        let Some(name) = &self.release.layout.env else {
            return Ok(End::Skipped("the release has no env file".into()));
        };
        let (to, from) = (&self.target.pilot.env_path, self.store.file(&self.release.id, name));
        let Some(old) = files::exchange(&from, to, Mode::Private)? else { return Ok(End::Done) };
        let mut copies = self.run.copies_of(name);
        copies.push(from);
        // A copy that cannot be read does not count.
        if !copies.iter().any(|copy| files::read(copy).is_ok_and(|bytes| bytes == old)) {
            let kept = self.run.dir.edited_env_file();
            files::write(&kept, &old, Mode::Private)?;
            let (file, kept) = (to.display(), kept.display());
            self.out.note(format!("{file} was edited after its backup was made; a copy is in {kept}"));
        }
        Ok(End::Done)
    }

    pub(super) fn settle(&self, deadline: Deadline) -> Result<End> {
        let target = self.target.target()?;
        let healthy = self.wait_for_gateway().and_then(|()| wait_healthy(&target, deadline));
        let settled = healthy.and_then(|_| target.runtime.agreed(self.deadline));
        let end = settled.map(|missing| missing.map_or(End::Done, |why| End::Warned(why, None)));
        end.map_err(|error| self.unless_corrupt(error))
    }

    /// Before it was started, a service could not report that its store is corrupt. If one does now, the plan of a
    /// rollback is stale; otherwise it is this error.
    fn unless_corrupt(&self, error: anyhow::Error) -> anyhow::Error {
        if self.run.request.command == Command::Up {
            return error;
        }
        let once = Deadline::after(Duration::ZERO);
        let asked = || -> Result<()> {
            let (target, cover) = (self.target.target()?, self.target.cover()?);
            let stopped = if cover.stops() { cover.services.clone() } else { BTreeSet::new() };
            wait_behind(&target, &stopped, once).map(drop)
        };
        let found = error.downcast_ref().map(Stale::corrupt);
        let found = found.or_else(|| asked().err()?.downcast_ref().map(Stale::corrupt));
        found.map_or(error, Into::into)
    }

    pub(super) fn seed(&self) -> Result<End> {
        edge::seed(self.target, self.store, &self.release.id)?;
        Ok(End::Done)
    }

    pub(super) fn open_gate(&self, measured: &mut Measured) -> Result<End> {
        let ledger = self.store.ledger();
        let lift = Lift { holds: &self.run.request.lift, by_hand: self.run.request.open };
        let mut checked = None;
        let mut started = || {
            checked = Some(edge::check_started(self.target, self.store, self.out, self.deadline)?);
            Ok(())
        };
        let reason = self.run.reason();
        let opened = lockout::open(self.target, &ledger, lift, &reason, self.deadline, &mut started)
            .map_err(|error| self.unless_corrupt(error))?;
        if let Some(smoke) = checked {
            measured.smoke = Some(smoke);
        }
        match opened {
            Opened::Open => measured.restored_ms = Some(self.out.elapsed_ms()),
            Opened::Held(hold) => {
                self.out.note(format!("the gate stays closed, {hold}"));
                measured.held = Some(hold.to_string());
            }
        }
        Ok(End::Done)
    }

    /// Collects evidence and makes the backup, at the same time. Missing evidence is not a failure. Data that will be
    /// replaced is copied when nothing writes any more, so `stop` is stopped first, but after the evidence.
    /// Of data that an earlier attempt of this run has copied and then replaced in part, the copy counts that is there.
    pub(super) fn preserve(&self, data: &[String], stop: &[String], past: &Past) -> Result<End> {
        let is_kept = |name: &&String| past.gone.contains(*name) && past.copies.contains_key(*name);
        let data: Vec<String> = data.iter().filter(|name| !is_kept(name)).cloned().collect();
        let View { pilot, engine, .. } = self.running;
        let limits = &pilot.manifest.limits;
        let limit = self.deadline.within(limits.evidence);
        let to = backup::next_of_run(&self.run.dir)?;
        let evidence = || {
            let items = evidence::items(pilot, engine.as_ref(), self.now, limit);
            evidence::gather(pilot, items, &self.run.dir.evidence())
        };
        let (evidence, backup) = std::thread::scope(|scope| {
            let gathering = data.is_empty().then(|| scope.spawn(evidence));
            // What is paused while its data is copied does not answer, so then the evidence comes first.
            let gathered = gathering.is_none().then(evidence);
            // A teardown also removes the logs, so they are part of its backup. The public is shut out.
            let running = self.running.release.as_ref().map(|release| release.id.as_str());
            let (longest, logs) = (Longest::Copy, !data.is_empty());
            let what = backup::Contents {
                release: running,
                data: &data,
                longest,
                logs,
                snapshot: false,
                out: self.out,
            };
            let backup =
                self.halted(stop, || backup::create(pilot, engine.as_ref(), what, &to, self.deadline));
            (gathering.map(joined).or(gathered), backup)
        });
        let backup = backup.context("nothing was changed, because there is no backup")?;
        backup.remarks.into_iter().for_each(|remark| self.out.note(remark));
        let evidence = evidence.context("nothing was gathered")?;
        let folder = to.file_name().map(PathBuf::from).unwrap_or_default();
        Ok(match evidence {
            Ok(manifest) if manifest.missed.is_empty() => End::Filled(folder),
            Ok(manifest) => {
                let names: Vec<&str> = manifest.missed.keys().map(String::as_str).collect();
                let what = format!("missed {} (why: evidence/{})", names.join(", "), evidence::INDEX);
                End::Warned(what, Some(folder))
            }
            Err(error) => End::Warned(format!("no evidence: {error:#}"), Some(folder)),
        })
    }

    /// Stops services for this work. If it fails, nothing will be replaced, so they are started again, but none that might
    /// let the public in.
    fn halted<T>(&self, services: &[String], work: impl FnOnce() -> Result<T>) -> Result<T> {
        let engine = self.running.engine.as_ref();
        // A kill switch stays as it is when its service starts again. That of another kind may not.
        let gate = self.running.cover().ok();
        let stays = |name: &&String| {
            gate.as_ref().is_some_and(|gate| gate.kind == Kind::Http || !gate.services.contains(*name))
        };
        let again: Vec<String> = services.iter().filter(stays).cloned().collect();
        let limit = || self.deadline.within(self.running.pilot.manifest.limits.engine);
        let stop = |service: &String| engine.stop(service, limit());
        let stopped: Result<()> = side_by_side(STOPS, services.iter().collect(), stop).into_iter().collect();
        stopped.and_then(|()| work()).map_err(|error| match engine.start(&again, limit()) {
            Ok(()) => error,
            Err(also) => error.context(format!("{} may be down: {also:#}", again.join(", "))),
        })
    }

    /// Takes a snapshot that belongs to the release that is left. What an earlier attempt has started may have changed the
    /// data, so then the snapshot counts that is there.
    pub(super) fn snapshot(&self, data: &[String], past: &Past) -> Result<End> {
        if let Some(folder) = past.snapshot.clone().filter(|_| past.changed) {
            let what = format!("the one from before anything was changed counts: {}", folder.display());
            return Ok(End::Warned(what, Some(folder)));
        }
        let View { pilot, engine, .. } = self.target;
        let to = backup::next_of_run(&self.run.dir)?;
        let release = self.running.release.as_ref().map(|release| release.id.as_str());
        let what = backup::Contents {
            release,
            data,
            longest: Longest::Copy,
            logs: false,
            snapshot: true,
            out: self.out,
        };
        let snapshot = backup::create(pilot, engine.as_ref(), what, &to, self.deadline);
        let snapshot = snapshot.context("nothing was changed, because there is no snapshot of the data")?;
        snapshot.remarks.into_iter().for_each(|remark| self.out.note(remark));
        Ok(End::Filled(to.file_name().map(PathBuf::from).unwrap_or_default()))
    }

    /// If space could not be freed, this step does not fail; a later step will.
    pub(super) fn free_space(&self, deadline: Deadline) -> Result<End> {
        let View { pilot, engine, .. } = self.running;
        match cleanup::free(pilot, engine.as_ref(), self.store, deadline) {
            Ok(freed) if freed.is_empty() => Ok(End::Skipped("there was nothing to free".into())),
            Ok(freed) => {
                let bytes = freed.iter().map(|f| f.bytes).sum();
                self.out.note(format!("freed {} in {}", files::human(bytes), count(freed.len(), "place")));
                Ok(End::Done)
            }
            Err(error) => Ok(End::Warned(format!("{error:#}"), None)),
        }
    }

    /// Steady means: no service restarted, memory changed by less than a tenth, and the host is within its
    /// limits. If this does not become steady, a note says so, and the verification decides.
    pub(super) fn steady(&self, deadline: Deadline) -> Result<End> {
        let mut last: Option<BTreeMap<String, Sample>> = None;
        let steady = deadline.poll(MEASURES, || {
            let now = match self.sample(deadline) {
                Ok(now) => now,
                Err(error) => return Break(Err(error)),
            };
            let moved = |(name, sample): (&String, &Sample)| {
                let old = last.as_ref()?.get(name)?;
                let grown = (sample.memory - old.memory).abs() > old.memory * 0.1;
                (sample.restarts != old.restarts || grown).then(|| name.clone())
            };
            let moved: Vec<String> = now.iter().filter_map(moved).collect();
            let elsewhere = self.target.engine.elsewhere();
            let checks = host::quick(&self.target.pilot, elsewhere.as_deref());
            let short = checks.into_iter().find(|check| check.ok == Some(false));
            let why = match (&last, short) {
                (_, Some(check)) => format!("{}: {}", check.name, check.detail),
                (Some(_), None) if moved.is_empty() => {
                    let known = now.iter().filter(|(_, sample)| sample.memory > 0.0);
                    let each =
                        known.map(|(name, sample)| format!("{name} {}", files::human(sample.memory as u64)));
                    self.out.note(format!("steady: {}", each.collect::<Vec<_>>().join(", ")));
                    return Break(Ok(()));
                }
                (Some(_), None) => format!("not steady: {}", moved.join(", ")),
                (None, None) => "nothing to compare with yet".to_owned(),
            };
            last = Some(now);
            Continue(why)
        });
        match steady {
            Ok(steady) => steady.map(|()| End::Done),
            Err(why) => Ok(End::Warned(why, None)),
        }
    }

    /// The restarts of each service and what it uses; where the engine is asked, what each container uses.
    fn sample(&self, deadline: Deadline) -> Result<BTreeMap<String, Sample>> {
        let View { engine, .. } = self.target;
        let services = engine.services(deadline)?;
        let restarts = services
            .iter()
            .map(|(name, service)| (name.clone(), Sample { restarts: service.restarts(), memory: 0.0 }));
        let mut all: BTreeMap<String, Sample> = restarts.collect();
        for (name, bytes) in memory(&self.target.target()?, engine.as_ref(), deadline)? {
            all.entry(name).or_default().memory = bytes;
        }
        Ok(all)
    }

    /// Repeats until it works: a client that was killed earlier may have left the engine busy.
    pub(super) fn apply(&self, force: &[String], held_back: &[String], deadline: Deadline) -> Result<End> {
        let (dir, mut tries) = (self.folder(), 0);
        let applied = deadline.poll(Duration::from_millis(300), || {
            tries += 1;
            match self.target.engine.apply(self.release, &dir, force, held_back, deadline) {
                Ok(()) => Break(Ok(())),
                Err(error) if exit_of(&error) == Exit::Host || tries == 3 => Break(Err(error)),
                Err(error) => {
                    self.out.note(format!("trying again: {error:#}"));
                    Continue(error)
                }
            }
        });
        applied.flatten().map_err(|error| self.name_port_owner(error))?;
        let left_out = self.target.engine.left_out();
        Ok(if left_out.is_empty() { End::Done } else { End::Warned(left_out.join("; "), None) })
    }

    /// A port that is in use is a problem of the host. The error names the process that uses it.
    fn name_port_owner(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        if !text.contains("port is already allocated") && !text.contains("address already in use") {
            return error;
        }
        let View { pilot, engine, .. } = self.target;
        let taken = pilot.services().filter_map(|service| {
            let port = pilot.port(service, self.env).ok()??;
            let ours = engine.services(self.deadline).ok()?.get(service)?.is_running();
            let owner = engine.taken_by(port, self.deadline).ok().flatten().filter(|_| !ours)?;
            Some(format!("port {port} of {service} is taken by {owner}"))
        });
        let taken: Vec<String> = taken.collect();
        let what = if taken.is_empty() { text } else { taken.join("; ") };
        fail(Exit::Host, what, "end that process, or change the port in the env file, and run this again")
    }

    fn wait_for_gateway(&self) -> Result<()> {
        let ready = self.deadline.within(self.target.pilot.manifest.limits.ready);
        if lockout::closed_after_start(self.target, &self.reason(), ready)? {
            self.out.note("the gate came up open; it was closed before anything else");
        }
        Ok(())
    }

    /// Checks everything behind the closed gate. At the same time, compares what runs with the release.
    pub(super) fn verify(&self, measured: &mut Measured) -> Result<End> {
        self.wait_for_gateway().map_err(|error| self.unless_corrupt(error))?;
        let limits = &self.target.pilot.manifest.limits;
        let ready = self.deadline.within(limits.ready);
        let (smoke, differs) = std::thread::scope(|scope| {
            let looked = scope.spawn(|| self.target.engine.services(self.deadline.within(limits.engine)));
            let smoke = edge::verify(self.target, true, ready);
            (
                smoke,
                joined(looked).map(|services| drift::applied(&services, self.release, &self.target.wanted())),
            )
        });
        let smoke = smoke?;
        self.out.event(&Event::Smoke { smoke: &smoke });
        let summary = smoke.summary();
        let passed = smoke.passed;
        measured.smoke = Some(smoke);
        let differs = differs.context("cannot tell whether the release's own images run")?;
        if !differs.is_empty() {
            let all: Vec<String> = differs.iter().map(ToString::to_string).collect();
            let what = format!("what runs is not release {}: {}", self.release.id, all.join("; "));
            return Err(fail(Exit::NotRestored, what, Next::xtask("diagnose")));
        }
        if !passed {
            let what = format!("release {} is not verified: {summary}", self.release.id);
            return Err(self.unless_corrupt(fail(Exit::NotRestored, what, Next::xtask("status"))));
        }
        Ok(End::Done)
    }
}
