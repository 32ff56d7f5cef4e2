//! Restores stored data from a backup: a copy of a volume into a service that does not run, a dump into its database,
//! which runs alone. If that fails, what was there is put back. Called by `execute`.

use crate::base::deadline::Deadline;
use crate::base::failure::{exit_of, fail, next_of};
use crate::base::files;
use crate::base::next::Next;
use crate::base::packed;
use crate::checks::health::wait_behind;
use crate::deploy::archives::Dumped;
use crate::deploy::backup::Backup;
use crate::deploy::execution::{End, Execution};
use crate::deploy::past::Past;
use crate::deploy::progress::Counted;
use crate::deploy::view::View;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// How long putting back what was there may take, whatever its size.
const PUT_BACK: Duration = Duration::from_secs(24 * 3600);

impl Execution<'_> {
    /// Restores data from the backup in this folder. If that fails, the copies that this run has made are put back, and
    /// the error says so.
    pub(super) fn restore_data(&self, from: &Path, data: &[String], past: &mut Past) -> Result<End> {
        let Err(error) = self.restore_all(from, data, self.deadline) else { return Ok(End::Done) };
        let back: Vec<String> = past.copies.keys().filter(|name| data.contains(name)).cloned().collect();
        if back.is_empty() {
            return Err(error);
        }
        // Also where the budget is used up.
        let limit = Deadline::after(PUT_BACK);
        let one = |name: &String| self.restore_all(&past.copies[name], std::slice::from_ref(name), limit);
        if let Err(also) = back.iter().try_for_each(one) {
            let what = format!("{error:#}; and what was there could not be put back: {also:#}");
            let ids = past.backups(&self.run.id);
            let restore =
                ids.first().map(|id| Next::xtask(&format!("backup restore {id} --only data --yes")));
            let next = next_of(&error).cloned().or(restore).unwrap_or_default();
            return Err(fail(exit_of(&error), what, next));
        }
        past.is_back(&back);
        let what =
            format!("{error:#}; the data of {} was put back as it was before this run", back.join(", "));
        let ran = self.running.release.as_ref();
        let again = ran.map(|ran| {
            Next::xtask(&format!("rollback --to {}", ran.id)).so("starts what ran before, with its data")
        });
        Err(fail(exit_of(&error), what, next_of(&error).cloned().or(again).unwrap_or_default()))
    }

    /// Restores the data that this run copied while it was whole. Each service has its own copy.
    pub(super) fn return_data(&self, except: &[String], past: &Past) -> Result<End> {
        let mut copies = past.copies.iter().filter(|(name, _)| !except.contains(name));
        copies
            .try_for_each(|(name, from)| self.restore_all(from, std::slice::from_ref(name), self.deadline))?;
        Ok(End::Done)
    }

    fn restore_all(&self, from: &Path, data: &[String], until: Deadline) -> Result<()> {
        let backup = Backup::read(from)?.with_context(|| format!("{} has no backup", from.display()))?;
        data.iter().try_for_each(|name| {
            let restored = self.restore_one(&backup, from, name, until);
            match restored.with_context(|| format!("restoring the data of {name}")) {
                // What no service of the release needs, such as the figures of Prometheus, must not fail a rollback.
                Err(error) if !self.target.pilot.needs_data(name) => {
                    self.out.note(format!("{name}: its data is only in the backup: {error:#}"));
                    Ok(())
                }
                other => other,
            }
        })
    }

    fn restore_one(&self, backup: &Backup, from: &Path, data: &str, until: Deadline) -> Result<()> {
        let View { pilot, engine, .. } = self.target;
        let archive = backup.archive(from, data)?;
        let deadline = until.growing(pilot.manifest.limits.deploy).for_bytes(files::size(&archive)?);
        let mut stored = Counted::new(packed::open(&archive)?, self.out, format!("restoring {data}"));
        if let Some(dumped) = backup.dumps.get(data) {
            return self.feed_database(dumped, &mut stored, deadline);
        }
        // If the run was interrupted in this step, the data may be incomplete, so it is removed first.
        engine.remove_data(data, deadline)?;
        engine.restore(self.release, &self.folder(), data, &mut stored, deadline)
    }

    /// Starts the database alone, and lets it read the dump.
    fn feed_database(&self, dumped: &Dumped, dump: &mut dyn Read, deadline: Deadline) -> Result<()> {
        let View { pilot, engine, .. } = self.target;
        let Dumped { service, restore } = dumped;
        let (own, others): (Vec<&str>, Vec<&str>) = pilot.services().partition(|name| name == service);
        if own.is_empty() {
            bail!(
                "release {} has no service {service}, whose database has to read the dump",
                self.release.id
            );
        }
        ensure!(
            !self.target.cover()?.stopped().contains(service),
            "{service} would let the public in while it reads the dump, because it is what the gate stops"
        );
        let others: BTreeSet<String> = others.into_iter().map(str::to_owned).collect();
        let held_back: Vec<String> = others.iter().cloned().collect();
        engine.apply(self.release, &self.folder(), &[], &held_back, deadline)?;
        wait_behind(&self.target.target()?, &others, deadline.within(pilot.manifest.limits.ready))?;
        let services = engine.services(deadline.within(pilot.manifest.limits.engine))?;
        let database = services.get(service).and_then(|all| all.0.iter().find(|one| one.is_running()));
        let database = database.with_context(|| format!("{service} does not run"))?;
        let fed = engine.feed(database, restore, dump, deadline);
        fed.with_context(|| format!("{service} did not take the dump"))
    }
}
