//! Which processes of this host belong to the pilot, and ending them. A process of a service is called a
//! member. It has the service's `alive` file as standard input. If that file or the whole state folder was
//! deleted or moved, a member is found by its command line and environment. Nothing depends on a process id
//! that was written down. So a command may be killed at any moment, and the next command still finds every
//! member.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::machine::{self, Process};
use crate::engine::process::home::Processes;
use crate::stack::names as env;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{Metadata, TryLockError};
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::time::Duration;

/// How long the lock may be held although no member is visible: a command that was
/// killed may be starting one.
const UNSEEN: Duration = Duration::from_secs(2);

/// One process of a service.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// The process.
    pub process: Process,
    /// Is it the supervisor, which restarts the service?
    pub supervisor: bool,
    /// Has it the present `alive` file open?
    here: bool,
}

/// Is the service run correctly: by exactly one supervisor, without a process that was left over?
pub fn run_well(members: &[Member]) -> bool {
    let supervisors = members.iter().filter(|m| m.supervisor).count();
    supervisors == 1 && members.len() <= 2 && members.iter().all(|m| m.here)
}

impl Processes {
    /// All members of this moment, by service.
    pub fn members(&self) -> Result<BTreeMap<String, Vec<Member>>> {
        let alive = self.alive_files()?;
        let mut all: BTreeMap<String, Vec<Member>> = BTreeMap::new();
        let me = std::process::id().cast_signed();
        for process in machine::all()?.into_iter().filter(|process| process.id() != me) {
            if let Some((service, member)) = self.member(process, &alive) {
                all.entry(service).or_default().push(member);
            }
        }
        Ok(all)
    }

    /// The services of the manifest, and services of an earlier manifest that still have a folder.
    pub fn known_services(&self) -> Result<Vec<String>> {
        let mut all: Vec<String> = self.pilot.services().map(str::to_owned).collect();
        let more = files::names(&self.home.join("services"))?;
        all.extend(more.into_iter().filter(|name| self.pilot.services().all(|known| known != name)));
        Ok(all)
    }

    fn alive_files(&self) -> Result<Vec<(String, Metadata)>> {
        let alive = |service: String| {
            let data = std::fs::symlink_metadata(self.dir(&service).join("alive")).ok()?;
            data.is_file().then_some((service, data))
        };
        Ok(self.known_services()?.into_iter().filter_map(alive).collect())
    }

    fn member(&self, process: Process, alive: &[(String, Metadata)]) -> Option<(String, Member)> {
        let words = process.words();
        let supervisor = words.get(1).is_some_and(|word| word == "supervise");
        if let Some((service, _)) = alive.iter().find(|(_, file)| process.has_open(0, file)) {
            return Some((service.clone(), Member { process, supervisor, here: true }));
        }
        let service = self.service_in(&words, process)?;
        process.sees_our_files().then_some((service, Member { process, supervisor, here: false }))
    }

    /// The service of a process, from its command line and environment: a supervisor gets the path of its
    /// description, a service gets its role and its data folder.
    fn service_in(&self, words: &[String], process: Process) -> Option<String> {
        let below = |path: &str, folder: &str| {
            let rest = Path::new(path).strip_prefix(self.home.join(folder)).ok()?;
            Some(rest.iter().next()?.to_str()?.to_owned())
        };
        match words {
            [_, word, path] if word == "supervise" => below(path, "services"),
            [_, role] => {
                let service = below(&process.variable(env::DATA)?, "volumes")?;
                let ours = process.variable(env::OWNER)? == self.pilot.project;
                (ours && service == *role).then_some(service)
            }
            _ => None,
        }
    }

    /// Kills every member of these services, and returns when their locks are free.
    pub fn end(&self, services: &[String], deadline: Deadline) -> Result<()> {
        let unseen = deadline.within(UNSEEN);
        let ask = || {
            let mut members = self.members()?;
            members.retain(|service, _| services.contains(service));
            let alive = self.alive_files()?;
            for member in members.values().flatten() {
                member.process.end(|process| {
                    self.member(process, &alive).is_some_and(|(service, _)| services.contains(&service))
                });
            }
            if members.is_empty() {
                let held: Vec<&String> = services.iter().filter(|s| self.is_held(s)).collect();
                match held.first() {
                    None => return Ok(None),
                    Some(service) if unseen.passed() => return Err(self.held_by_a_stranger(service)),
                    Some(_) => {}
                }
            }
            Ok(Some(members))
        };
        let ended = deadline.poll(Duration::from_millis(2), || match ask() {
            Ok(None) => Break(Ok(())),
            Ok(Some(members)) => Continue(members),
            Err(error) => Break(Err(error)),
        });
        ended.unwrap_or_else(|members| {
            let ids = |all: &[Member]| all.iter().map(|m| m.process.id()).collect::<Vec<_>>();
            let left: Vec<String> =
                members.iter().map(|(service, all)| format!("{service} {:?}", ids(all))).collect();
            bail!("still there after SIGKILL: {}", left.join(", "))
        })
    }

    /// Does any process hold the `alive` file, visible or not? This check does not block a start of the
    /// service, because a start makes a new file.
    fn is_held(&self, service: &str) -> bool {
        let file = files::open_regular(&self.dir(service).join("alive"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn held_by_a_stranger(&self, service: &str) -> anyhow::Error {
        let path = self.dir(service).join("alive");
        let holder = files::open_regular(&path).ok().and_then(|file| machine::holder_of(&file));
        let who = match holder {
            Some(process) => format!("process {} (`{}`)", process.id(), process.words().join(" ")),
            None => "a process that this user cannot see".to_owned(),
        };
        let what = format!(
            "cannot stop {service}: {} is locked by {who}, which is not a process of {service}",
            path.display()
        );
        let next = match holder {
            Some(process) => format!("kill {}", process.id()),
            None => format!("run the same command as the user who started {service}, or as root"),
        };
        fail(Exit::Host, what, next)
    }
}

/// Makes a new `alive` file and locks it before it gets its name, so that a process that has the old file
/// open cannot block the start. The supervisor and the service get the file as standard input.
pub fn new_alive(path: &Path) -> Result<std::fs::File> {
    let fresh = path.with_extension("new");
    files::remove(&fresh)?;
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&fresh);
    let file = file.with_context(|| format!("cannot create {}", fresh.display()))?;
    file.try_lock().with_context(|| format!("cannot lock {}", fresh.display()))?;
    files::clear_way(path)?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(file)
}
