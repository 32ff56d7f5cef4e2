//! `diagnose`: the full examination. Everything that `assess` shows, and also resource use, log lines,
//! networks and volumes, prometheus targets and the host. For each finding, the command that would fix it.
//! Read-only.

use super::assess::{self, is_error};
use super::status;
use crate::base::count::count;
use crate::base::deadline::Deadline;
use crate::base::failure::Exit;
use crate::base::http::Pass;
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::deploy::backup;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use crate::engine::roles::Usage;
use crate::host;
use crate::host::HostCheck;
use crate::operations::findings::{self, Finding};
use crate::operations::look::{Look, look};
use crate::stack::endpoint::Endpoint;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How many log lines of each service are read.
const LINES: usize = 100;

/// `cargo xtask diagnose`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask diagnose")]
pub struct Args {}

/// Examines everything. Exit codes as for `status`; also 4 if the host is over a limit.
pub fn run(session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    let deadline = Deadline::after(pilot.manifest.limits.ready);
    let env = pilot.env().ok();
    // All of these ask the engine, which is slow one after the other. So they run at the same time.
    let (look, usage, around, host, targets) = std::thread::scope(|scope| {
        let engine = session.engine.as_ref();
        let usage =
            scope.spawn(|| Observed::from(engine.usage(deadline.within(pilot.manifest.limits.engine))));
        let around = scope.spawn(|| {
            Observed::from(engine.networks_and_volumes(deadline.within(pilot.manifest.limits.engine)))
        });
        let host = scope.spawn(|| host::checks(pilot, engine, env.as_ref(), deadline));
        let targets = scope.spawn(|| Observed::from(prometheus_targets(session)));
        let look = look(session, LINES, deadline);
        let lost = || "this examination panicked".to_owned();
        (
            look,
            usage.join().unwrap_or_else(|_| Observed::Unknown(lost())),
            around.join().unwrap_or_else(|_| Observed::Unknown(lost())),
            host.join().unwrap_or_default(),
            targets.join().unwrap_or_else(|_| Observed::Unknown(lost())),
        )
    });
    let look = look?;
    let found = findings_of(session, &look, &host, &targets);
    let more = json!({
        "sessions": look.sessions, "logs": look.logs, "usage": usage, "networks_and_volumes": around, "host": host,
        "prometheus": targets, "findings": found,
    });
    session.out.event(&Event::Result { value: &look.told(more) });
    show(session, &look, &usage, &around, &host, &targets);
    show_findings(session, &found);
    let (exit, next) = look.verdict();
    let short = host.iter().any(|check| check.ok == Some(false));
    let exit = if exit == Exit::Ok && short { Exit::Host } else { exit };
    let next = next.or_else(|| found.first().map(|finding| finding.next.clone()));
    Ok(Finished::plain(exit).then(next.as_ref(), session.out.context()))
}

fn show(
    session: &Session,
    look: &Look,
    usage: &Observed<Vec<Usage>>,
    around: &Observed<BTreeMap<String, String>>,
    host: &[HostCheck],
    targets: &Observed<Vec<(String, String)>>,
) {
    let out = &session.out;
    status::show(session, look);
    assess::show_sessions(session, look);
    out.say("\nresource use");
    match usage {
        Observed::Unknown(why) => out.say(out.marked(None, &format!("cannot tell: {why}"))),
        Observed::Known(all) if all.is_empty() => out.say("  nothing runs"),
        Observed::Known(all) => all.iter().for_each(|u| {
            out.say(format!(
                "  {:<28} cpu {:<9} memory {:<22} processes {}",
                u.name, u.cpu, u.memory, u.processes
            ));
        }),
    }
    out.say(format!("\nlogs, last {LINES} lines of each"));
    for (name, lines) in &look.logs {
        match lines {
            Observed::Unknown(why) => out.say(out.marked(None, &format!("{name}: cannot tell: {why}"))),
            Observed::Known(lines) => {
                let bad = lines.iter().filter(|line| is_error(line)).count();
                out.say(out.marked(
                    Some(bad == 0),
                    &format!("{name}: {}, {}", count(lines.len(), "line"), count(bad, "error")),
                ));
                // Print the log only if it has errors.
                let shown = lines.iter().filter(|_| bad > 0);
                shown.for_each(|line| out.say(format!("    {line}")));
            }
        }
    }
    out.say("\nnetworks and volumes");
    match around {
        Observed::Unknown(why) => out.say(out.marked(None, &format!("cannot tell: {why}"))),
        Observed::Known(all) => {
            all.iter().for_each(|(name, text)| out.say(format!("  {name}  {}", brief(text))))
        }
    }
    out.say("\nprometheus targets");
    match targets {
        Observed::Unknown(why) => out.say(format!("  {why}")),
        Observed::Known(all) => all.iter().for_each(|(name, health)| {
            out.say(out.marked(Some(health == "up"), &format!("{name}: {health}")));
        }),
    }
    out.say("\nhost");
    host.iter().for_each(|check| show_host(session, check));
}

/// Prints one check of the host.
pub fn show_host(session: &Session, check: &HostCheck) {
    let out = &session.out;
    out.say(out.marked(check.ok, &format!("{:<24} {}", check.name, check.detail)));
}

/// A short form of Docker's description: the path of a volume; the subnet and containers of a network.
fn brief(text: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    let one = &value[0];
    if let Some(path) = one["Mountpoint"].as_str() {
        return path.to_owned();
    }
    let members = one["Containers"].as_object().into_iter().flat_map(|all| all.values());
    let names: Vec<&str> = members.filter_map(|container| container["Name"].as_str()).collect();
    let subnet = one.pointer("/IPAM/Config/0/Subnet").and_then(Value::as_str).unwrap_or("no subnet");
    format!("{subnet}, {}", if names.is_empty() { "no containers".into() } else { names.join(", ") })
}

/// The health of each scrape target. An error if prometheus does not run.
fn prometheus_targets(session: &Session) -> Result<Vec<(String, String)>> {
    let pilot = &session.pilot;
    let first = pilot.manifest.observability.first().context("pilot.toml names no observability services")?;
    let services = session.engine.services(Deadline::after(pilot.manifest.limits.engine))?;
    let port = services.get(&first.name).filter(|s| s.is_running()).and_then(|s| s.port());
    let port = port.context("prometheus does not run; `observe` starts it")?;
    let endpoint = Endpoint { port, at: None, pass: Pass::default() };
    let answer = session.engine.reach(&endpoint, Duration::from_secs(2)).get("/api/v1/targets")?;
    ensure!(answer.status == 200, "prometheus answered {}", answer.brief());
    let body = answer.json();
    let all = body
        .pointer("/data/activeTargets")
        .and_then(Value::as_array)
        .context("the answer of prometheus has no targets")?;
    let text =
        |target: &Value, path: &str| target.pointer(path).and_then(Value::as_str).unwrap_or("?").to_owned();
    Ok(all.iter().map(|target| (text(target, "/labels/instance"), text(target, "/health"))).collect())
}

fn findings_of(
    session: &Session,
    look: &Look,
    host: &[HostCheck],
    targets: &Observed<Vec<(String, String)>>,
) -> Vec<Finding> {
    let context = session.out.context();
    let mut found = findings::of(look, is_error, context);
    let mut add = |what: String, next: Next| found.push(Finding::new(what, None, next, context));
    for (name, lines) in &look.logs {
        if let Some(bad) = lines.known().and_then(|lines| lines.iter().rev().find(|line| is_error(line))) {
            add(format!("{name} logged an error: {bad}"), Next::xtask(&format!("logs {name}")));
        }
    }
    for check in host.iter().filter(|check| check.ok == Some(false)) {
        add(format!("{}: {}", check.name, check.detail), check.fix.clone());
    }
    for (name, health) in targets.known().into_iter().flatten().filter(|(_, health)| health != "up") {
        add(format!("prometheus cannot scrape {name}: {health}"), Next::xtask("observe"));
    }
    match session.store.known_good() {
        Ok(good) if good.is_empty() => add("there is no known-good release".into(), Next::xtask("up")),
        Ok(good) => {
            for release in good {
                if let Err(error) = session.store.check_files(&release) {
                    add(format!("release {}: {error:#}", release.id), Next::xtask("releases verify"));
                }
            }
        }
        Err(error) => add(format!("cannot read the releases: {error:#}"), Next::xtask("releases verify")),
    }
    if backup::list(&session.pilot.state).is_ok_and(|(all, _)| all.is_empty()) {
        add("there is no backup".into(), Next::xtask("backup create"));
    }
    found
}

fn show_findings(session: &Session, findings: &[Finding]) {
    let out = &session.out;
    out.verdict(format!("\n{} {}", out.mark(Some(findings.is_empty())), count(findings.len(), "finding")));
    findings.iter().for_each(|finding| assess::show_finding(out, finding));
}
