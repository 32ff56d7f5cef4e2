//! `seed`: loads a scenario into the running stack, by the request in `[seed]` of the manifest.

use crate::base::failure::{Exit, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::checks::ask::send;
use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::engine::reach::clients;
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// Limit for one request.
const LIMIT: Duration = Duration::from_secs(10);

/// `cargo xtask seed`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask seed\n  cargo xtask seed my-scenario.json")]
pub struct Args {
    /// File with the scenario [default: the demo scenario in pilot-deploy/seed]
    file: Option<PathBuf>,
}

/// The pilot refuses a scenario that does not fit its schema; the error shows its reason.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let nothing = || {
        fail(Exit::Usage, "the stack has no seed: its manifest has no [seed]", "docs/manifest.md says how")
    };
    let rule = pilot.manifest.seed.as_ref().ok_or_else(nothing)?;
    let own = pilot.layout.seed.as_ref().map(|name| pilot.pack.join(name));
    let path = args.file.clone().or(own).ok_or_else(nothing)?;
    let scenario: serde_json::Value = files::read_json(&path).map_err(|error| {
        fail(Exit::Usage, format!("{error:#}"), "give the path of a JSON file with a scenario")
    })?;
    let mut clients = clients(pilot, session.engine.as_ref(), &pilot.env()?, LIMIT)?;
    let gateway = clients.remove(rule.request.service.as_deref().unwrap_or(pilot.gateway()));
    let gateway = gateway.ok_or_else(|| fail(Exit::Usage, "pilot.toml names no gateway", ""))?;
    let answer = send(&gateway, &rule.request, Some(&scenario))
        .map_err(|error| fail(Exit::NotRestored, format!("{error:#}"), Next::xtask("status")))?;
    if answer.status != 200 {
        let exit = if answer.status == 400 { Exit::Usage } else { Exit::NotRestored };
        let what = format!("the pilot refused {}: {}", path.display(), answer.brief());
        return Err(fail(exit, what, Next::xtask("assess")));
    }
    session.out.say(format!("{} is loaded: {}", path.display(), answer.body.trim()));
    Ok(Finished::plain(Exit::Ok))
}
