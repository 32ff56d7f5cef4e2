//! The event that begins a run: which command, who, where, when, and what ran. Called by `rollback`, `up` and `ending`.

use crate::base::deadline::now_ms;
use crate::base::machine;
use crate::deploy::event::{Brief, Event};
use crate::deploy::run::{Command, Run};
use crate::deploy::session::Session;

/// A command begins; with its run, if it has one already. `engine` is what is known of the engine without asking it: in
/// an incident nobody waits for its version.
pub fn started<'a>(
    session: &'a Session,
    command: Command,
    engine: &'a str,
    run: Option<&'a Run>,
) -> Event<'a> {
    let running = session.store.current().ok().flatten();
    Event::Started {
        version: 1,
        command: command.as_str(),
        rollback: run.map(|run| run.id.as_str()),
        project: &session.pilot.project,
        engine,
        at_ms: now_ms(),
        resumed: run.is_some_and(Run::resumed),
        since_ms: session.out.elapsed_ms(),
        who: machine::person(),
        host: machine::host_name(),
        xtask: env!("CARGO_PKG_VERSION"),
        running: running.as_ref().map(Brief::from),
    }
}
