//! Stored data of local processes: copies folders into archives, and back.

use crate::base::deadline::Deadline;
use crate::base::files;
use crate::base::machine::Process;
use crate::base::packed::pass;
use crate::base::proc::{Cmd, cmd};
use crate::engine::copying;
use crate::engine::process::home::Processes;
use crate::engine::process::runtime::no_container;
use crate::engine::roles::{Data, Runtime, Use, User};
use crate::release::description::Release;
use crate::stack::model::Instance;
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::time::Duration;

/// How long a process may take to stop after it was told to.
const STOPS: Duration = Duration::from_secs(2);

impl Data for Processes {
    fn stored(&self, _: Deadline) -> Result<BTreeSet<String>> {
        // Also data of services that the manifest does not name, because a teardown removes it too.
        let mut data = files::names(&self.home.join("volumes"))?;
        data.retain(|name| self.data(name).is_dir());
        Ok(data.into_iter().collect())
    }

    fn bytes(&self, data: &str, _: Deadline) -> Result<Option<u64>> {
        files::size(&self.data(data)).map(Some)
    }

    fn users(&self, service: &str, _: Deadline) -> Result<Vec<User>> {
        let members = self.members()?.remove(service).unwrap_or_default();
        let user = |process: Process| {
            let started = process.started()?.to_string();
            Some(User {
                handle: format!("{}@{started}", process.id()),
                name: format!("{service} (process {})", process.id()),
                service: Some(service.to_owned()),
                state: if process.is_stopped() { Use::Paused } else { Use::Runs },
                started,
            })
        };
        Ok(members.into_iter().filter_map(|member| user(member.process)).collect())
    }

    fn pause(&self, handles: &[String], deadline: Deadline) -> Result<()> {
        let mut there = named(handles);
        there.iter().for_each(|process| process.halt(true));
        // A signal arrives after a moment.
        deadline
            .within(STOPS)
            .poll(Duration::from_millis(1), || {
                there.retain(|process| process.may_run());
                match there.first() {
                    None => Break(Ok(())),
                    Some(process) => Continue(Err(anyhow!("process {} does not stop", process.id()))),
                }
            })
            .unwrap_or_else(|error| error)
    }

    fn unpause(&self, handles: &[String], deadline: Deadline) -> Result<()> {
        unpause(handles, deadline)
    }

    fn snapshot(&self, service: &str, into: &mut dyn Write, deadline: Deadline) -> Result<()> {
        let from = self.data(service);
        let copied = tar("--create", "-", &from).args(["."]).run_into(into, deadline);
        copied.with_context(|| format!("copying {}", from.display()))
    }

    fn restore(
        &self,
        _: &Release,
        _: &Path,
        service: &str,
        from: &mut dyn Read,
        deadline: Deadline,
    ) -> Result<()> {
        let to = self.data(service);
        files::make_folder(&to)?;
        let restored = tar("--extract", "-", &to).write_by(deadline, |into| Ok(pass(from, into).map(drop)?));
        restored.map_err(|error| copying::is_full_there(&to.display().to_string(), error))?;
        // The journal says from now on that it is restored. tar syncs nothing.
        files::sync_below(&to)
    }

    fn dump(&self, _: &Instance, words: &[String], _: &mut dyn Write, _: Deadline) -> Result<()> {
        Err(no_container(words))
    }

    fn feed(&self, _: &Instance, words: &[String], _: &mut dyn Read, _: Deadline) -> Result<()> {
        Err(no_container(words))
    }

    fn remove_data(&self, service: &str, deadline: Deadline) -> Result<()> {
        self.stop(service, deadline)?;
        self.remove_whole(&self.data(service))
    }
}

/// The processes of these handles that still exist: `ID@START`, where the start is in clock ticks from the boot.
fn named(handles: &[String]) -> Vec<Process> {
    let process = |handle: &String| {
        let (id, started) = handle.split_once('@')?;
        let process = Process::new(id.parse().ok()?);
        (process.started() == started.parse().ok()).then_some(process)
    };
    handles.iter().filter_map(process).collect()
}

/// Lets processes continue. One that has ended, or is another one by now, is passed over.
pub fn unpause(handles: &[String], _: Deadline) -> Result<()> {
    named(handles).into_iter().for_each(|process| process.halt(false));
    Ok(())
}

/// A tar command. Its messages are parsed, so they must be in English.
fn tar(what: &str, archive: &str, folder: &Path) -> Cmd {
    let words = [what, "--file", archive, "--directory", &folder.display().to_string()];
    cmd("tar", &words).env("LC_ALL", "C")
}
