//! `preflight`: is the pilot ready for a demo, go or no-go? Every row is checked now. A row that cannot be
//! checked is a no-go. What of the host is unknown, because its system does not tell, is shown as unknown: it is not
//! counted as checked, and stops no demo.

use crate::base::count::count;
use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::checks::smoke::verify;
use crate::checks::target::Target;
use crate::deploy::backup;
use crate::deploy::difference::Difference;
use crate::deploy::event::{Event, Finished};
use crate::deploy::gate::Gate;
use crate::deploy::session::Session;
use crate::host;
use crate::host::HostCheck;
use crate::operations::look::{Look, look};
use crate::stack::manifest::Contact;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// `cargo xtask preflight`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask preflight")]
pub struct Args {}

/// Limit for the services to be healthy. Before a demo they run already, but an engine that is busy may take some seconds
/// to say so.
const READY: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// None: unknown.
    go: Option<bool>,
    detail: String,
    /// What to do.
    #[serde(skip)]
    next: Next,
    /// The same as a line that can be pasted.
    fix: String,
}

/// Exit 0 means GO.
pub fn run(session: &Session) -> Result<Finished> {
    let look = look(session, 1, Deadline::after(session.pilot.manifest.limits.ready))?;
    let rows = rows(session, &look);
    let out = &session.out;
    let go = rows.iter().all(|row| row.go != Some(false));
    out.event(&Event::Result { value: &json!({"go": go, "rows": rows}) });
    for row in &rows {
        out.say(out.marked(row.go, &format!("{:<34} {}", row.name, row.detail)));
        if row.go == Some(false) {
            out.say(format!("    fix: {}", row.fix));
        }
    }
    let unknown: Vec<&str> = rows.iter().filter(|row| row.go.is_none()).map(|row| row.name).collect();
    out.verdict(match (go, unknown.as_slice()) {
        (false, _) => "\nNO-GO".to_owned(),
        (true, []) => "\nGO".to_owned(),
        (true, unknown) => format!("\nGO; unknown: {}", unknown.join(", ")),
    });
    let exit = match &look.now.stack {
        Observed::Unknown(_) => Exit::Host,
        Observed::Known(_) if go => Exit::Ok,
        Observed::Known(_) => Exit::NotRestored,
    };
    let next = rows.iter().find(|row| row.go == Some(false)).map(|row| &row.next);
    Ok(Finished::plain(exit).then(next, out.context()))
}

fn rows(session: &Session, look: &Look) -> Vec<Row> {
    let context = session.out.context();
    let row_of = |name, outcome: Result<String>, next: Next| {
        let (go, detail) = match outcome {
            Ok(detail) => (Some(true), detail),
            Err(error) => (Some(false), format!("{error:#}")),
        };
        Row { name, go, detail, fix: context.line(&next), next }
    };
    let row = |name, outcome, fix: &str| row_of(name, outcome, Next::xtask(fix));
    vec![
        row("the engine answers", engine(session, look), "host"),
        row("a known-good release is deployed", deployed(look), "up"),
        row("nothing differs from it", same(look), "rollback"),
        row("the gate is open", gate(look), "kill-switch off"),
        row("all smoke checks pass", smoke(session), "smoke"),
        row("there is a way back", way_back(session), "releases verify"),
        row("the data is backed up", backed_up(session), "backup create"),
        row_of(
            "it is known who to call",
            people(&session.pilot.manifest.escalation),
            Next::xtask("up").so("after you have put names and numbers into [[escalation]] of pilot.toml"),
        ),
        host(session),
    ]
}

/// Who is called when a rollback does not help. A stack need not name anybody, but what is to be filled in must be.
fn people(contacts: &[Contact]) -> Result<String> {
    let open: Vec<&str> =
        contacts.iter().filter(|contact| contact.is_nobody()).map(|c| c.name.as_str()).collect();
    ensure!(open.is_empty(), "nobody is named as {}", open.join(", "));
    Ok(count(contacts.len(), "contact"))
}

fn engine(session: &Session, look: &Look) -> Result<String> {
    match &look.now.stack {
        Observed::Known(_) => {
            Ok(session.engine.describe(Deadline::after(session.pilot.manifest.limits.engine)))
        }
        Observed::Unknown(why) => bail!("{why}"),
    }
}

fn deployed(look: &Look) -> Result<String> {
    match &look.current {
        Some(release) if release.is_known_good() => Ok(format!("{} ({})", release.id, release.label)),
        Some(release) => bail!("{} is {}", release.id, release.state.as_str()),
        None => bail!("no release is recorded as deployed"),
    }
}

fn same(look: &Look) -> Result<String> {
    let matters = look.drift.iter().filter(|d| **d != Difference::ComposeFile);
    let all: Vec<String> = matters.map(ToString::to_string).collect();
    ensure!(all.is_empty(), "{}", all.join("; "));
    Ok("no drift".into())
}

fn gate(look: &Look) -> Result<String> {
    match &look.now.gate {
        Gate::Open => Ok("open".into()),
        Gate::Closed(reason) => bail!("closed: {reason}"),
        Gate::Unknown(why) => bail!("{why}"),
    }
}

fn backed_up(session: &Session) -> Result<String> {
    let (all, _) = backup::list(&session.pilot.state)?;
    let kept = all.last().context("there is no backup")?;
    kept.backup.check(&kept.dir)?;
    Ok(format!("backup {}", kept.id))
}

fn host(session: &Session) -> Row {
    let (pilot, engine) = (&session.pilot, session.engine.as_ref());
    let checks =
        host::checks(pilot, engine, pilot.env().ok().as_ref(), Deadline::after(pilot.manifest.limits.ready));
    let (go, detail) = within_limits(&checks);
    let next = Next::xtask("host");
    Row { name: "the host is within its limits", go, detail, fix: session.out.context().line(&next), next }
}

/// Is every check within its limit? None if none is over it and some are unknown.
fn within_limits(checks: &[HostCheck]) -> (Option<bool>, String) {
    let told = |ok: Option<bool>| -> Vec<String> {
        let of = checks.iter().filter(|check| check.ok == ok);
        of.map(|check| format!("{}: {}", check.name, check.detail)).collect()
    };
    let (wrong, unknown) = (told(Some(false)), told(None));
    match (wrong.as_slice(), unknown.as_slice()) {
        ([], []) => (Some(true), count(checks.len(), "check")),
        ([], unknown) => (None, unknown.join("; ")),
        (_, _) => (Some(false), [wrong, unknown].concat().join("; ")),
    }
}

fn smoke(session: &Session) -> Result<String> {
    let smoke = verify(
        &Target::new(&session.pilot, session.engine.as_ref(), &session.pilot.env()?)?,
        Deadline::after(READY),
    );
    ensure!(smoke.passed, "{}", smoke.summary());
    Ok(smoke.summary())
}

/// Is the last known-good release complete, with every file and image unchanged?
fn way_back(session: &Session) -> Result<String> {
    let good = session.store.known_good()?;
    let Some(release) = good.first() else { bail!("there is no known-good release") };
    session.store.check(release)?;
    Ok(format!(
        "release {}, every file and image unchanged; {} known-good releases in all",
        release.id,
        good.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_called_must_be_filled_in() {
        let contact =
            |contact: &str| Contact { level: 2, name: "technical lead".into(), contact: contact.into() };
        let of = |all: &[&str]| people(&all.iter().map(|one| contact(one)).collect::<Vec<_>>());
        assert_eq!(of(&["A. Person, 555"]).unwrap(), "1 contact");
        assert_eq!(of(&[]).unwrap(), "0 contacts");
        let missing = of(&["put a name and a number here", "A. Person"]).unwrap_err().to_string();
        assert_eq!(missing, "nobody is named as technical lead");
    }

    #[test]
    fn what_is_unknown_of_the_host_is_neither_within_its_limits_nor_over_them() {
        let check =
            |name: &str, ok| HostCheck { name: name.into(), ok, detail: "seen".into(), fix: Next::default() };
        let (good, unknown, bad) =
            (check("disk", Some(true)), check("memory", None), check("port", Some(false)));
        let of = |checks: &[HostCheck]| within_limits(checks);
        assert_eq!(of(std::slice::from_ref(&good)), (Some(true), "1 check".into()));
        assert_eq!(of(&[good.clone(), unknown.clone()]), (None, "memory: seen".into()));
        assert_eq!(of(&[good, unknown, bad]), (Some(false), "port: seen; memory: seen".into()));
    }
}
