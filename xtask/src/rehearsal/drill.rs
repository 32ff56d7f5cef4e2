//! `drill`: deploys a good release, breaks it by hand, without any checks, and then runs the same rollback that an
//! operator would run. The rollback is a separate process, so its times are the operator's. Called by the command
//! `drill`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::output::Output;
use crate::base::packed;
use crate::deploy::archives::Archiving;
use crate::deploy::event::Finished;
use crate::deploy::paused::Longest;
use crate::engine;
use crate::engine::roles::{Engine, Kind};
use crate::rehearsal::{PART, Rehearsal};
use crate::release::description::Image;
use crate::stack::pilot::{By, Pilot};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

/// The label of the bad version.
const BAD: &str = "v9.9.9-bad";

/// What the bad version does if the user names no fault. The stack also gets the bad settings of its manifest then.
const DEFAULT_FAULT: &str = "error-5xx";

/// What is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A version that is built with this defect; none: the default one, and bad settings.
    Built(Option<&'static str>),
    /// A service runs another image, which the engine has.
    Image { service: String, tag: String },
    /// The containers of a service are stopped.
    Stopped(String),
    /// A setting of the env file has another value.
    Setting { name: String, value: String },
    /// Stored data is overwritten.
    Corrupted(String),
}

/// Runs the drill with this fault. Returns the result of the way back.
pub fn run(fault: &Fault, keep: bool, asked: Option<Kind>, real: &Pilot, out: Output) -> Result<Finished> {
    let engine = engine::choose(real, asked)?;
    let (real, engine) = engine::open(real.clone(), engine, By::Tree)?;
    check(fault, &real, engine.as_ref())?;
    out.say("1. deploy a good release in a separate project");
    let rehearsal = Rehearsal::begin(&real, asked, out, keep)?;
    let session = &rehearsal.session;
    rehearsal.breaks(fault)?;
    // Give the fault time to show, as it would before a person starts a rollback.
    std::thread::sleep(Duration::from_secs(1));
    session.out.say("\n3. roll back");
    let mut finished = rehearsal.go_back(&["rollback"], true)?;
    if matches!(fault, Fault::Corrupted(_)) && finished.exit == Exit::NotRestored {
        session.out.say("\n4. a release does not bring data back: restore the backup");
        finished = rehearsal.go_back(&["--yes", "backup", "restore", "latest", "--only", "data"], true)?;
    }
    if keep {
        session.out.say(format!("\nthe drill's stack still runs: {}", session.out.xtask("status")));
    }
    Ok(finished)
}

/// Errors (exit 2): the stack has no such thing.
fn check(fault: &Fault, real: &Pilot, engine: &dyn Engine) -> Result<()> {
    let services: Vec<&str> = real.services().collect();
    let data: Vec<String> =
        real.definition.iter().flat_map(|definition| definition.data().into_keys()).collect();
    let refused = |what: String| Err(fail(Exit::Usage, what, Next::xtask("drill --help")));
    match fault {
        Fault::Built(_) if real.manifest.build.is_none() => refused(format!(
            "say what is to break: --stop SERVICE or --image SERVICE=IMAGE ({}), --set NAME=VALUE, \
             --corrupt DATA ({})",
            services.join(", "),
            data.join(", ")
        )),
        Fault::Image { service, .. } | Fault::Stopped(service) if !services.contains(&service.as_str()) => {
            refused(format!("the stack has no service {service}; it has {}", services.join(", ")))
        }
        Fault::Image { tag, .. } => engine.named(tag, Deadline::after(PART)).map(drop),
        Fault::Setting { name, .. } if real.env()?.get(name).is_none() => {
            refused(format!("{} has no {name}", real.env_path.display()))
        }
        Fault::Corrupted(name) if !data.contains(name) => {
            refused(format!("the stack has no data {name}; it has {}", data.join(", ")))
        }
        _ => Ok(()),
    }
}

impl Rehearsal {
    /// Breaks the stack, as a colleague or bad luck would.
    fn breaks(&self, fault: &Fault) -> Result<()> {
        let session = &self.session;
        let deadline = Deadline::after(PART);
        let say = |what: String| session.out.say(format!("\n2. {what}"));
        match fault {
            Fault::Built(defect) => {
                let bad = session.pilot.manifest.drill.pairs();
                let settings = if defect.is_none() { bad } else { Vec::new() };
                let defect = defect.unwrap_or(DEFAULT_FAULT);
                let also = if settings.is_empty() { "" } else { " and a bad env file" };
                say(format!("deploy by hand: version {BAD} with the fault {defect}{also}"));
                self.deploy_by_hand(self.images(BAD, defect)?, &settings)
            }
            Fault::Image { service, tag } => {
                say(format!("deploy by hand: {service} with the image {tag}"));
                let mut images = self.good_images()?;
                let image = images.get_mut(service).with_context(|| format!("{service} has no image"))?;
                image.id = session.engine.named(tag, deadline)?;
                self.badly(self.deploy_by_hand(images, &[]))
            }
            Fault::Stopped(service) => {
                say(format!("stop {service}"));
                session.engine.stop(service, deadline)
            }
            Fault::Setting { name, value } => {
                say(format!("deploy by hand: {name}={value} in the env file"));
                self.badly(self.deploy_by_hand(self.good_images()?, &[(name, value)]))
            }
            Fault::Corrupted(data) => {
                session.out.say("\nback up the data");
                self.operate(&["backup", "create"], true)?;
                say(format!("overwrite every file of {data}"));
                self.corrupt(data, deadline)
            }
        }
    }

    /// That a bad deployment does not come up is what a drill is for.
    fn badly(&self, deployed: Result<()>) -> Result<()> {
        match deployed {
            Err(error) if exit_of(&error) == Exit::NotRestored => {
                self.session.out.note(format!("it did not come up: {error:#}"));
                Ok(())
            }
            other => other,
        }
    }

    fn good_images(&self) -> Result<BTreeMap<String, Image>> {
        let current = self.session.store.current()?;
        Ok(current.context("no release is recorded as running")?.images)
    }

    fn corrupt(&self, data: &str, deadline: Deadline) -> Result<()> {
        let Rehearsal { session, .. } = self;
        let _lock = session.lock("drill")?;
        let release = session.store.current()?.context("no release is recorded as running")?;
        let dir = session.store.dir(&release.id);
        let scratch = files::Scratch::new("drill")?;
        let engine = session.engine.as_ref();
        let (pilot, longest, out) = (&session.pilot, Longest::Copy, &session.out);
        let archiving = Archiving { pilot, engine, longest, deadline, out };
        let copied = archiving.copied(data, scratch.path())?;
        let tar = scratch.path().join("data.tar");
        let mut plain = File::create(&tar)?;
        packed::pass(&mut packed::open(&scratch.path().join(copied.name))?, &mut plain)?;
        overwrite(&tar).with_context(|| format!("cannot overwrite {data}"))?;
        engine.remove_data(data, deadline)?;
        engine.restore(&release, &dir, data, &mut File::open(&tar)?, deadline)?;
        self.badly(session.engine.apply(&release, &dir, &[], &[], deadline))
    }
}

/// Overwrites the content of every file in an archive.
fn overwrite(archive: &Path) -> Result<()> {
    const NOISE: [u8; 4096] = [0xA5; 4096];
    let mut places = Vec::new();
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let entry = entry?;
        if entry.header().entry_type().is_file() && entry.size() > 0 {
            places.push((entry.raw_file_position(), entry.size()));
        }
    }
    ensure!(!places.is_empty(), "it has no file with content");
    let mut file = File::options().write(true).open(archive)?;
    for (at, bytes) in places {
        file.seek(SeekFrom::Start(at))?;
        let mut left = bytes;
        while left > 0 {
            let some = left.min(NOISE.len() as u64);
            file.write_all(NOISE.get(..usize::try_from(some)?).unwrap_or(&NOISE))?;
            left -= some;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_an_archive_is_overwritten_and_keeps_its_size() {
        let scratch = files::Scratch::new("drill-test").unwrap();
        let path = scratch.path().join("a.tar");
        let mut made = tar::Builder::new(File::create(&path).unwrap());
        for (name, bytes) in [("a", &b"small"[..]), ("empty", b""), ("b", &[7; 9000])] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            made.append_data(&mut header, name, bytes).unwrap();
        }
        made.finish().unwrap();
        overwrite(&path).unwrap();
        let mut found = Vec::new();
        for entry in tar::Archive::new(File::open(&path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            found.push((bytes.len(), bytes.iter().all(|byte| *byte == 0xA5)));
        }
        assert_eq!(found, [(5, true), (0, true), (9000, true)]);
    }
}
