//! Which processes of this host belong to the pilot, and ending them. A member holds the service's `alive`
//! file as its standard input; where that file, or the whole state folder, was deleted or moved, what it was
//! started with tells. Nothing depends on an id that somebody wrote down, so there is no moment at which a
//! command may be killed and leave a member that the next one does not find.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::proctable;
use crate::base::proctable::Process;
use crate::engine::process::home::Processes;
use crate::stack::contract::env;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{Metadata, TryLockError};
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::time::Duration;

/// A member that nobody sees while the lock is held is being started by a command that was killed: so long.
const UNSEEN: Duration = Duration::from_secs(2);

/// One process of a service.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Which.
    pub process: Process,
    /// Does it start the service again when that ends?
    pub supervisor: bool,
    /// Does it hold the `alive` file that is there now?
    here: bool,
}

/// Do these run a service as they should: one supervisor, and nobody who was left over?
pub fn run_well(members: &[Member]) -> bool {
    let supervisors = members.iter().filter(|m| m.supervisor).count();
    supervisors == 1 && members.len() <= 2 && members.iter().all(|m| m.here)
}

impl Processes {
    /// The members that there are now, by service.
    pub fn members(&self) -> Result<BTreeMap<String, Vec<Member>>> {
        let alive = self.alive_files()?;
        let mut all: BTreeMap<String, Vec<Member>> = BTreeMap::new();
        let me = std::process::id().cast_signed();
        for process in proctable::all()?.into_iter().filter(|process| process.id() != me) {
            if let Some((service, member)) = self.member(process, &alive) {
                all.entry(service).or_default().push(member);
            }
        }
        Ok(all)
    }

    /// Services of the manifest, and those that have a folder from before it was changed.
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

    /// The service that a process was started for: a supervisor is told the path of its description, a
    /// service its role and the folder of its data.
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

    /// Ends every member of these services, and does not come back before their locks are free.
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

    /// Is anybody there, seen or not? Whoever only asks keeps nobody from starting the service: that takes a
    /// new file.
    fn is_held(&self, service: &str) -> bool {
        let file = files::open_regular(&self.dir(service).join("alive"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn held_by_a_stranger(&self, service: &str) -> anyhow::Error {
        let path = self.dir(service).join("alive");
        let holder = files::open_regular(&path).ok().and_then(|file| proctable::holder_of(&file));
        let who = match holder {
            Some(process) => format!("process {} (`{}`)", process.id(), process.words().join(" ")),
            None => "a process that this user cannot see".to_owned(),
        };
        let what = format!("{} is locked by {who}, which is no process of {service}", path.display());
        let next = match holder {
            Some(process) => format!("kill {}", process.id()),
            None => format!("run this as the user who started {service}, or as root"),
        };
        fail(Exit::Host, what, next)
    }
}

/// A file of this service that nobody has, locked before it has its name: whoever looked at the one before
/// keeps nobody from starting. It is handed to the supervisor and the service as standard input.
pub fn new_alive(path: &Path) -> Result<std::fs::File> {
    let fresh = path.with_extension("new");
    files::remove(&fresh)?;
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&fresh);
    let file = file.with_context(|| format!("cannot make {}", fresh.display()))?;
    file.try_lock().with_context(|| format!("cannot lock {}", fresh.display()))?;
    files::clear_way(path)?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(file)
}
