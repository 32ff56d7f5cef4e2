//! `host`: the machine that the pilot runs on (scenario D). Checks it against the limits of `pilot.toml`,
//! frees what the pilot made and no longer needs, and restarts the Docker daemon, but only if the user asks
//! for that.

use super::diagnose::show_host;
use crate::base::ask;
use crate::base::count::count;
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::proc::cmd;
use crate::base::screen;
use crate::deploy::cleanup;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use crate::engine;
use crate::host;
use anyhow::Result;
use serde_json::json;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::time::Duration;

/// Limit for the daemon to restart and to answer again.
const RESTART: Duration = Duration::from_secs(90);

/// `cargo xtask host`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask host\n  cargo xtask host --free\n  cargo xtask host --restart-engine"
)]
pub struct Args {
    /// Delete what the pilot made and no longer needs: old images, builds and backups
    #[arg(long)]
    free: bool,
    /// Restart the Docker daemon; this stops every container of this host for a while, so it asks first
    #[arg(long)]
    restart_engine: bool,
}

impl Args {
    /// What it is called if it changes something.
    pub fn changes(&self) -> Option<&'static str> {
        match (self.free, self.restart_engine) {
            (_, true) => Some("host --restart-engine"),
            (true, false) => Some("host --free"),
            (false, false) => None,
        }
    }
}

/// Exit 0 if everything is within its limits, else 4.
pub fn run(args: &Args, yes: bool, session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let out = &session.out;
    if args.restart_engine {
        restart(yes, session)?;
    }
    if args.free {
        let _lock = session.lock("host --free")?;
        let limit = Deadline::after(pilot.manifest.limits.deploy);
        let freed = cleanup::free(pilot, session.engine.as_ref(), &session.store, limit)?;
        freed.iter().for_each(|f| out.say(format!("  freed {:>10}  {}", files::human(f.bytes), f.what)));
        let bytes: u64 = freed.iter().map(|f| f.bytes).sum();
        out.event(&Event::Result { value: &json!({"freed": freed, "freed_bytes": bytes}) });
        out.say(format!("freed {} in {}", files::human(bytes), count(freed.len(), "place")));
    }
    let deadline = Deadline::after(pilot.manifest.limits.ready);
    let shown = screen::doing("look at this machine");
    let checks = host::checks(pilot, session.engine.as_ref(), pilot.env().ok().as_ref(), deadline);
    drop(shown);
    out.event(&Event::Result { value: &json!({"host": checks}) });
    let elsewhere = session.engine.elsewhere();
    if let Some(host) = &elsewhere {
        out.say(format!("the engine is on {host}; of that machine only its engine is seen from here"));
    }
    checks.iter().for_each(|check| show_host(session, check));
    let Some(wrong) = checks.iter().find(|check| check.ok == Some(false)) else {
        let seen = elsewhere.map_or_else(
            || "this machine is within its limits".to_owned(),
            |host| format!("what is seen of this machine and of {host} is within its limits"),
        );
        out.verdict(out.marked(Some(true), &seen));
        return Ok(Finished::plain(Exit::Ok));
    };
    let error = Some(format!("{}: {}", wrong.name, wrong.detail));
    Ok(Finished { error, ..Finished::plain(Exit::Host) }.then(Some(&wrong.fix), out.context()))
}

/// The command that restarts the Docker daemon at this address: systemd, else the init script. Nothing if it is not
/// a service of this host (Docker Desktop, a daemon of a user, a remote one).
fn restart_command(daemon: Option<&str>, systemd: bool, init_script: bool) -> Option<[&'static str; 3]> {
    match daemon {
        _ if daemon != Some(engine::SYSTEM_DAEMON) => None,
        _ if systemd => Some(["systemctl", "restart", "docker"]),
        _ if init_script => Some(["service", "docker", "restart"]),
        _ => None,
    }
}

fn restart(yes: bool, session: &Session) -> Result<()> {
    let limit = Deadline::after(session.pilot.manifest.limits.engine);
    let daemon = engine::daemon(limit);
    let systemd = Path::new("/run/systemd/system").exists();
    let init_script = Path::new("/etc/init.d/docker").exists();
    let address = daemon.as_ref().map(|daemon| daemon.address.as_str());
    if let Some(host) = daemon.as_ref().and_then(engine::Daemon::elsewhere) {
        let what = format!("the engine is on {host}, and this command restarts only that of this machine");
        return Err(fail(Exit::Usage, what, format!("run it on {host}")));
    }
    let Some(words) = restart_command(address, systemd, init_script) else {
        let at = address.unwrap_or("another host");
        let what = format!(
            "cannot restart Docker: neither systemd nor an init script of this host runs the daemon at {at}"
        );
        let next = "restart Docker Desktop, or the daemon that DOCKER_HOST or the Docker context names";
        return Err(fail(Exit::Usage, what, next));
    };
    let running = session.engine.host(limit).ok().and_then(|host| host.running);
    let running = running.map_or("an unknown number of".into(), |n| n.to_string());
    let command = words.join(" ");
    ask::confirm(
        yes,
        &format!("`{command}` stops {running} containers of this host, also those of other projects"),
    )?;
    let deadline = Deadline::after(RESTART);
    let ran = cmd(words[0], &words[1..]).run(deadline);
    ran.map_err(|error| fail(Exit::Host, format!("{error:#}"), Next::shell(format!("sudo {command}"))))?;
    let back = deadline.poll(Duration::from_millis(500), || {
        match session.engine.host(deadline.within(session.pilot.manifest.limits.engine)) {
            Ok(_) => Break(()),
            Err(error) => Continue(error),
        }
    });
    back.map_err(|error| {
        let what = format!("the engine does not answer after `{command}`: {error:#}");
        fail(Exit::Host, what, Next::shell("journalctl -u docker"))
    })?;
    session.out.note(format!(
        "the engine answers again after `{command}`; to verify the pilot: {}",
        session.out.xtask("rollback")
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::restart_command;
    use crate::engine::SYSTEM_DAEMON;

    #[test]
    fn only_a_daemon_of_this_host_is_restarted() {
        let system = Some(SYSTEM_DAEMON);
        assert_eq!(restart_command(system, true, true).map(|c| c[0]), Some("systemctl"));
        assert_eq!(restart_command(system, false, true).map(|c| c[0]), Some("service"));
        assert_eq!(restart_command(system, false, false), None);
        for other in [None, Some("tcp://127.0.0.1:2375"), Some("unix:///home/me/.docker/desktop/docker.sock")]
        {
            assert_eq!(restart_command(other, true, true), None, "{other:?}");
        }
    }
}
