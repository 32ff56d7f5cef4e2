//! Makes one check of a manifest: sends its requests, connects, or runs its command or program. What the results mean
//! is decided in `smoke`.

use crate::base::deadline::{Deadline, wait};
use crate::base::files;
use crate::base::http::{Client, Event, is_silence};
use crate::base::proc::cmd;
use crate::base::threads::joined;
use crate::base::tunnel;
use crate::checks::ask::{answer, ask, stream};
use crate::checks::health::wait_for_its_word;
use crate::checks::target::Target;
use crate::stack::call::Call;
use crate::stack::check::{Cancel, Check, Exchange, Kind};
use anyhow::{Context, Error, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a connection must last: Docker's proxy accepts one for a container in which nobody listens, and closes it.
const ACCEPTED: Duration = Duration::from_millis(100);

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Median and worst of several measurements, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub median_ms: f64,
    /// The slowest.
    pub worst_ms: f64,
}

/// The median and the worst. An error if nothing was measured.
pub fn latency(mut measured: Vec<Duration>) -> Result<Latency> {
    measured.sort_unstable();
    let worst = measured.last().context("nothing was measured")?;
    let ms = |d: &Duration| d.as_secs_f64() * 1e3;
    Ok(Latency { median_ms: ms(&measured[measured.len() / 2]), worst_ms: ms(worst) })
}

/// What a check found: how long it took, and a few words.
pub type Found = (Duration, String);

/// Makes a check as often as it says, and tries again as often as it says. Where the engine alone says what is well, a
/// service without a health check counts from its start on, so nobody may listen there until `ready`.
pub fn run(target: &Target<'_>, check: &Check, ready: Deadline) -> Result<(Latency, String)> {
    let by_engine = target.pilot.manifest.health.is_none();
    let silent = |error: &Error| matches!(check.kind, Kind::Tcp { .. }) || is_silence(error);
    let mut tried = 1;
    loop {
        let deadline = Deadline::after(check.deadline);
        let all: Result<Vec<Found>> = (0..check.times).map(|_| once(target, check, deadline)).collect();
        match all {
            Ok(all) => {
                let detail = all.last().map(|(_, detail)| detail.clone()).unwrap_or_default();
                return Ok((latency(all.into_iter().map(|(took, _)| took).collect())?, detail));
            }
            Err(error) if by_engine && silent(&error) && !ready.passed() => wait(PAUSE),
            Err(error) if tried >= check.tries => return Err(error),
            Err(_) => wait(PAUSE),
        }
        tried += 1;
    }
}

fn once(target: &Target<'_>, check: &Check, deadline: Deadline) -> Result<Found> {
    ensure!(!deadline.passed(), "it did not end in {}", humantime::format_duration(check.deadline));
    let begun = Instant::now();
    let detail = match &check.kind {
        Kind::Http(exchange) => return exchanged(target, exchange, deadline),
        Kind::Tcp { service, port } => connect(target, service, *port, deadline)?,
        Kind::Exec { service, command } => {
            let words: Vec<String> = command.iter().map(|word| target.filled(word)).collect::<Result<_>>()?;
            in_containers(target, service, &words, deadline)?
        }
        Kind::Script(path) => last_line(&script(target, path, deadline)?),
        Kind::Healthy { service } => {
            // The engine asks only now and then.
            let ready = Deadline::after(target.pilot.manifest.limits.ready);
            wait_for_its_word(target, &[service], PAUSE, ready)?;
            "healthy by the engine's word".to_owned()
        }
    };
    Ok((begun.elapsed(), detail))
}

/// Runs a command in every container of a service. It must end with 0 in each.
fn in_containers(target: &Target<'_>, service: &str, words: &[String], deadline: Deadline) -> Result<String> {
    let services = target.runtime.services(deadline)?;
    let seen = services.get(service).map(|seen| seen.0.as_slice()).unwrap_or_default();
    ensure!(!seen.is_empty(), "{service} has no container");
    let mut said = String::new();
    for instance in seen {
        let (code, printed) = target.runtime.exec(instance, words, &[], deadline)?;
        ensure!(code == 0, "`{}` ended with {code} in {service}: {}", words.join(" "), last_line(&printed));
        said = printed;
    }
    Ok(last_line(&said))
}

fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("passed").trim().to_owned()
}

/// Connects to each instance of a service.
fn connect(target: &Target<'_>, service: &str, port: u16, deadline: Deadline) -> Result<String> {
    let lasts = if target.runtime.elsewhere().is_some() { tunnel::ACCEPTED } else { ACCEPTED };
    let accepted = target.published(service, port)?.into_iter().map(|address| {
        accepts(address, lasts, deadline.left().max(Duration::from_millis(1)))
            .with_context(|| service.to_owned())
    });
    Ok(accepted.collect::<Result<Vec<_>>>()?.join("; "))
}

fn accepts(address: SocketAddr, lasts: Duration, limit: Duration) -> Result<String> {
    let what = || format!("cannot connect to {address}");
    let mut socket = TcpStream::connect_timeout(&address, limit).with_context(what)?;
    socket.set_read_timeout(Some(lasts.min(limit))).with_context(what)?;
    match socket.read(&mut [0; 1]) {
        Ok(0) => {
            bail!("{address} accepted the connection and closed it at once: nobody listens there")
        }
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        Err(error) => return Err(error).with_context(what),
    }
    Ok(format!("{address} accepts connections"))
}

/// A program in the folder of the stack. In a release files are not executable, so its `#!` line is followed.
fn script(target: &Target<'_>, path: &str, deadline: Deadline) -> Result<String> {
    let folder = target.pilot.manifest.folder.as_ref().context("the built-in manifest has no programs")?;
    let file = folder.join(path);
    let text = files::read(&file)?;
    let first = text.split(|byte| *byte == b'\n').next().and_then(|line| line.strip_prefix(b"#!"));
    let first =
        first.with_context(|| format!("{} does not begin with a line such as #!/bin/sh", file.display()))?;
    let first = String::from_utf8_lossy(first).into_owned();
    let mut words = first.split_whitespace();
    let program = words.next().with_context(|| format!("{} names no program after #!", file.display()))?;
    let run = cmd(program, &[]).args(words).args([file.display().to_string()]).dir(folder);
    let run = run.env("PROJECT", &target.pilot.project);
    target.urls()?.iter().fold(run, |run, (name, url)| run.env(name, url)).run(deadline)
}

/// Each instance of the service is asked, and without a service in the request those of every one; the slowest counts.
fn exchanged(target: &Target<'_>, exchange: &Exchange, deadline: Deadline) -> Result<Found> {
    let mut all = Vec::new();
    for service in target.reachable(exchange.call.request.service.as_deref()) {
        let found =
            target.each(service, deadline.left(), |client| one(target, exchange, service, client, deadline));
        all.extend(found?);
    }
    all.into_iter().max_by_key(|(took, _)| *took).context("no service could be asked")
}

fn one(
    target: &Target<'_>,
    exchange: &Exchange,
    service: &str,
    client: &Client,
    deadline: Deadline,
) -> Result<Found> {
    let Exchange { call, same_twice, resume_after, cancel, then, .. } = exchange;
    let begun = Instant::now();
    let session = Target::session();
    let values = target.values(&session);
    // What follows for the same service goes to the same instance, and ends with the deadline.
    let after = |call: &Call| match call.request.service.as_deref().filter(|other| *other != service) {
        Some(other) => target.client(other, deadline),
        None => Ok(client.within(deadline.left())),
    };
    if let Some(cancel) = cancel {
        return cancelled(target, call, cancel, client, &after);
    }
    let (mut took, detail) = match (call.is_stream(), resume_after) {
        (true, Some(id)) => resumed(target, exchange, client, id)?,
        (true, None) if *same_twice => twice(target, exchange, client)?,
        (true, None) => streamed(client, call, &values)?,
        (false, _) => {
            let first = answer(client, call, &values)?;
            let took = begun.elapsed();
            if *same_twice {
                let second = answer(client, call, &target.values(&Target::session()))?;
                ensure!(first.body == second.body, "{}: two answers differ", call.request);
            }
            let same = if *same_twice { ", the same twice" } else { "" };
            (took, format!("answered {}{same}", first.status))
        }
    };
    for call in then {
        ask(&after(call)?, call, &values)?;
        took = begun.elapsed();
    }
    Ok((took, detail))
}

fn streamed(client: &Client, call: &Call, values: &[(&str, &str)]) -> Result<Found> {
    let begun = Instant::now();
    let mut events = stream(client, call, values, None)?;
    if let Some(name) = &call.sse {
        return events.until(name).map(|event| (event.after, format!("{name} came")));
    }
    let all = ended(call, events.rest()?)?;
    Ok((begun.elapsed(), format!("{} events", all.len())))
}

/// The events of a stream that ended as it must.
fn ended(call: &Call, all: Vec<Event>) -> Result<Vec<Event>> {
    let last = all.last().map_or("nothing", |event| event.name.as_str());
    let wanted = call.ends_with.as_deref().unwrap_or(last);
    ensure!(last == wanted, "{}: the stream ended with {last}, expected {wanted}", call.request);
    Ok(all)
}

/// Two streams at the same time. The second is resumed after that event, if there is one.
fn both(target: &Target<'_>, call: &Call, client: &Client, after: Option<&str>) -> Result<[Vec<Event>; 2]> {
    let run = |after: Option<&str>| {
        let session = Target::session();
        ended(call, stream(client, call, &target.values(&session), after)?.rest()?)
    };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| run(after));
        Ok([run(None)?, joined(second)?])
    })
}

/// The events that are compared.
fn compared<'e>(exchange: &Exchange, all: &'e [Event]) -> Vec<(&'e str, &'e str, &'e str)> {
    let named = |event: &&Event| exchange.events.is_empty() || exchange.events.contains(&event.name);
    all.iter()
        .filter(named)
        .map(|event| (event.id.as_str(), event.name.as_str(), event.data.as_str()))
        .collect()
}

fn twice(target: &Target<'_>, exchange: &Exchange, client: &Client) -> Result<Found> {
    let begun = Instant::now();
    let [one, two] = both(target, &exchange.call, client, None)?;
    let (first, second) = (compared(exchange, &one), compared(exchange, &two));
    ensure!(!first.is_empty(), "{}: there is no event to compare", exchange.call.request);
    ensure!(first == second, "{}: two streams differ", exchange.call.request);
    Ok((begun.elapsed(), format!("{} events twice", one.len())))
}

fn resumed(target: &Target<'_>, exchange: &Exchange, client: &Client, id: &str) -> Result<Found> {
    let begun = Instant::now();
    let [whole, rest] = both(target, &exchange.call, client, Some(id))?;
    let at = whole.iter().position(|event| event.id == id);
    let at = at.with_context(|| format!("{}: no event has the id {id}", exchange.call.request))?;
    let (before, after) = whole.split_at(at + 1);
    let (wanted, found) = (compared(exchange, after), compared(exchange, &rest));
    ensure!(!wanted.is_empty(), "{}: there is no event to compare after {id}", exchange.call.request);
    ensure!(found == wanted, "after {id} expected {} events, got {}", wanted.len(), found.len());
    let repeated =
        rest.iter().any(|event| !event.id.is_empty() && before.iter().any(|old| old.id == event.id));
    ensure!(!repeated, "events were repeated");
    Ok((begun.elapsed(), format!("{} of {} events after {id}", rest.len(), whole.len())))
}

fn cancelled(
    target: &Target<'_>,
    call: &Call,
    cancel: &Cancel,
    client: &Client,
    after: &dyn Fn(&Call) -> Result<Client>,
) -> Result<Found> {
    let session = Target::session();
    let values = target.values(&session);
    let mut events = stream(client, call, &values, None)?;
    events
        .until(call.sse.as_deref().context("a check with cancel needs the event after which it cancels")?)?;
    let canceller = after(&cancel.call)?;
    let sent = Instant::now();
    ask(&canceller, &cancel.call, &values)?;
    events.until(&cancel.ends_with)?;
    let took = sent.elapsed();
    if let Some(again) = &cancel.again {
        ask(&canceller, again, &values).context("the same request once more")?;
    }
    Ok((took, format!("ended with {}", cancel.ends_with)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_is_accepted_only_while_somebody_keeps_the_connection() {
        let limit = Duration::from_secs(5);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(accepts(address, ACCEPTED, limit).unwrap().contains("accepts connections"));
        // As Docker's proxy does for a container in which nobody listens.
        drop(listener.accept().unwrap());
        let closes = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let error = accepts(address, ACCEPTED, limit).unwrap_err().to_string();
        closes.join().unwrap();
        assert!(error.contains("nobody listens there"), "{error}");
        assert!(accepts(address, ACCEPTED, limit).unwrap_err().to_string().contains("cannot connect"));
    }
}
