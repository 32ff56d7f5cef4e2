//! `observe`: starts prometheus and grafana with the files of the running release: scrape config, alert rules
//! and dashboard. They are published on 127.0.0.1 only.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::http::Pass;
use crate::base::next::Next;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use crate::release::description::mode_of;
use crate::stack::endpoint::Endpoint;
use crate::stack::judge;
use anyhow::{Context, Result, anyhow};
use serde_json::json;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// `cargo xtask observe`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask observe\n  cargo xtask observe --only prometheus")]
pub struct Args {
    /// Only this service; can be given more than once [default: all]
    #[arg(long, value_name = "SERVICE")]
    only: Vec<String>,
}

/// Starts them and waits until they answer.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let _lock = session.lock("observe")?;
    let all: Vec<&str> = pilot.manifest.observability.iter().map(|s| s.name.as_str()).collect();
    if let Some(unknown) = args.only.iter().find(|name| !all.contains(&name.as_str())) {
        let what =
            format!("there is no observability service {unknown}; the services are {}", all.join(", "));
        return Err(fail(Exit::Usage, what, Next::xtask("observe")));
    }
    let chosen: Vec<String> = all
        .iter()
        .filter(|n| args.only.is_empty() || args.only.iter().any(|o| o == *n))
        .map(|n| (*n).to_owned())
        .collect();
    let release = session.store.current()?;
    let release =
        release.ok_or_else(|| fail(Exit::NoRelease, "no release is deployed", Next::xtask("up")))?;
    for file in &pilot.manifest.extra_files {
        if !release.files.contains_key(file) {
            let what =
                format!("release {} has no file {file}: an older version of this tool made it", release.id);
            return Err(fail(Exit::Usage, what, Next::xtask("up")));
        }
    }
    session.store.check_files(&release)?;
    works_there(session, &chosen)?;
    let deadline = Deadline::after(pilot.manifest.limits.deploy);
    // A copy, because they may run longer than retention keeps the release.
    let dir = pilot.state.observability();
    for name in release.files.keys() {
        let mode = mode_of(name, &release.layout);
        files::copy(&session.store.file(&release.id, name), &dir.join(name), mode)?;
    }
    session.engine.add(&dir, &chosen, deadline).map_err(|error| match exit_of(&error) {
        Exit::NotRestored => {
            let next = "load their images (docker load), or name other images in the env file (PROMETHEUS_IMAGE, GRAFANA_IMAGE) and run `up`; the pilot itself was not touched";
            fail(Exit::NotRestored, format!("cannot start {}: {error:#}", chosen.join(", ")), next)
        }
        _ => error,
    })?;
    let env = session.store.settings(&release)?;
    let mut places = serde_json::Map::new();
    for service in &chosen {
        let port = pilot.port(service, &env)?.with_context(|| format!("{service} publishes no port"))?;
        wait(service, port, session, deadline)?;
        session.out.say(format!("{service} answers on {}", session.engine.shown(port)));
        places.insert(service.clone(), json!(port));
    }
    session.out.event(&Event::Result { value: &json!({"observability": places}) });
    Ok(Finished::plain(Exit::Ok))
}

/// Refuses services that mount files, where the engine is on another machine.
fn works_there(session: &Session, chosen: &[String]) -> Result<()> {
    let (Some(host), Some(definition)) = (session.engine.elsewhere(), &session.pilot.definition) else {
        return Ok(());
    };
    let all = chosen.iter().filter_map(|name| {
        let files = judge::files_of(definition.services.get(name)?);
        (!files.is_empty()).then(|| format!("{name} mounts {}", files.join(", ")))
    });
    let all: Vec<String> = all.collect();
    if all.is_empty() {
        return Ok(());
    }
    let what = format!(
        "the engine is on {host}, which does not have the files of this machine: {}; nothing was started",
        all.join("; ")
    );
    Err(fail(Exit::Usage, what, format!("run the command on {host}")))
}

/// Waits until the health path of a service answers (prometheus `/-/ready`, grafana `/api/health`).
fn wait(service: &str, port: u16, session: &Session, deadline: Deadline) -> Result<()> {
    let path = if service == "grafana" { "/api/health" } else { "/-/ready" };
    let client =
        session.engine.reach(&Endpoint { port, at: None, pass: Pass::default() }, Duration::from_secs(1));
    let silent = |why: String| Continue(anyhow!("{service} does not answer on port {port}: {why}"));
    deadline.poll(Duration::from_millis(100), || match client.get(path) {
        Ok(answer) if answer.status == 200 => Break(()),
        Ok(answer) => silent(answer.brief()),
        Err(error) => silent(format!("{error:#}")),
    })
}
