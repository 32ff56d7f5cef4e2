//! Writes a manifest for a stack that has none: what Compose says of the stack, and what this program assumes where the
//! manifest says nothing, as comments to change. Called by the command `init`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode};
use crate::base::next::{Context, Next};
use crate::deploy::session::Session;
use crate::engine::tree;
use crate::stack::cover::Cover;
use crate::stack::definition::{Definition, Port, Service};
use crate::stack::gate_rule::GateRule;
use crate::stack::layout::Layout;
use crate::stack::manifest::MANIFEST_FILE;
use anyhow::Result;
use std::fmt::Write;
use std::path::PathBuf;

/// Writes the manifest, and returns its path. An existing one is never changed (exit 2).
pub fn write(session: &Session) -> Result<PathBuf> {
    let pilot = &session.pilot;
    let path = pilot.pack.join(MANIFEST_FILE);
    if path.exists() {
        let what = format!("{} exists already; it is not changed", path.display());
        return Err(fail(Exit::Usage, what, Next::xtask("up").so("uses it")));
    }
    let env = pilot.env_path.clone();
    let place = |name: &str| pilot.source(name, &env);
    let deadline = Deadline::after(pilot.manifest.limits.deploy);
    let resolved = tree::resolve(pilot, &place, session.engine.as_ref(), deadline)?;
    files::write(&path, text(&pilot.project, &resolved.definition, &pilot.layout)?.as_bytes(), Mode::Plain)?;
    Ok(path)
}

/// What is assumed of a stack without a manifest.
pub fn assumed(definition: &Definition, context: &Context) -> String {
    let cover = Cover::of(&GateRule::default(), Some(definition));
    let gate = match cover.map(|cover| cover.stopped().join(", ")) {
        Ok(names) if !names.is_empty() => format!("the gate is closed by stopping {names}"),
        _ => "no service can be stopped to shut the public out".to_owned(),
    };
    let data: Vec<String> = definition.data().into_keys().collect();
    let data = if data.is_empty() { "none".to_owned() } else { data.join(", ") };
    format!(
        "there is no {MANIFEST_FILE}, so this is assumed: {gate}; a service is good if it is healthy and its published \
         ports accept connections; data: {data}. To write one: {}",
        context.xtask("init")
    )
}

/// The manifest as text.
fn text(project: &str, definition: &Definition, layout: &Layout) -> Result<String> {
    let mut text = String::new();
    let compose = layout.compose.join(" and ");
    writeln!(text, "# What `xtask` knows about the stack {project}, besides what Compose says ({compose}).")?;
    writeln!(text, "# Everything here has a default: a line that begins with # shows it.\nversion = 2\n")?;
    writeln!(text, "# compose_file = {:?}", layout.compose[0])?;
    match &layout.env {
        Some(env) => writeln!(text, "# env_file = {env:?}")?,
        None => writeln!(text, "# env_file = \".env\"   # there is none now")?,
    }
    writeln!(text, "\n# Found:")?;
    for (name, service) in &definition.services {
        writeln!(text, "#   service {name}: {}", told(service))?;
    }
    for (name, volume) in definition.data() {
        let external = if volume.external { ", made by somebody else: copied, never removed" } else { "" };
        writeln!(text, "#   data {name}: volume {}{external}", volume.name)?;
    }
    gate(&mut text, definition)?;
    checks(&mut text, definition)?;
    text.push_str(
        "
# [limits]
# budget = \"5m\"         # a whole rollback; after that, escalate
# ready = \"1m\"          # from the start of the services until all are healthy
# keep_releases = 5

# Variables that are never shown, besides those whose name or value looks secret.
# [secrets]
# variables = [\"SOME_KEY\"]

# Who is called if a rollback fails.
# [[escalation]]
# level = 2
# name = \"technical lead\"
# contact = \"a name and a number\"
",
    );
    Ok(text)
}

/// What Compose says of a service, in a few words.
fn told(service: &Service) -> String {
    let image = match (&service.image, service.has_build) {
        (Some(image), true) => format!("built by Compose as {image}"),
        (Some(image), false) => format!("image {image}"),
        (None, _) => "built by Compose".to_owned(),
    };
    let mut words = vec![image];
    if service.containers != 1 {
        words.push(format!("{} containers", service.containers));
    }
    words.extend(service.ports.iter().map(|port| format!("published at {}", address(port))));
    words.push(if service.has_health_check { "health check" } else { "no health check" }.to_owned());
    if !service.profiles.is_empty() {
        words.push("not started by itself (profile)".to_owned());
    }
    words.join(", ")
}

fn address(port: &Port) -> String {
    let published =
        port.published.map_or_else(|| "a port that Docker chooses".to_owned(), |port| port.to_string());
    format!("{}:{published}", port.host_ip.as_deref().unwrap_or("0.0.0.0"))
}

/// What shuts the public out, and what it does not cover.
fn gate(text: &mut String, definition: &Definition) -> Result<()> {
    let published = |service: &&Service| !service.ports.is_empty() && service.profiles.is_empty();
    let needed = |name: &String| definition.services.values().any(|other| other.depends_on.contains(name));
    let all = definition.services.iter().filter(|(_, service)| published(service));
    let (inner, edge): (Vec<_>, Vec<_>) = all.map(|(name, _)| name).partition(|name| needed(name));
    text.push_str(
        "
# How the public is shut out. \"stop\": the services with a published port are stopped, and started last. A service with
# a kill switch of its own can be closed by a request instead (kind = \"http\"), or by a command (kind = \"exec\").
[gate]
kind = \"stop\"
",
    );
    writeln!(text, "# services = {edge:?}")?;
    if !inner.is_empty() {
        let names = inner.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        writeln!(
            text,
            "# Not closed, because other services need it: {names}. Is it meant to be published?"
        )?;
    }
    Ok(())
}

/// The default checks, and the form of others.
fn checks(text: &mut String, definition: &Definition) -> Result<()> {
    text.push_str(
        "
# What must hold before the public is let in. By default: every service runs, passes its own health check, and accepts
# connections at each of its published ports. A check of your own says more: that something can be written, for example.
",
    );
    let published = definition.services.iter().find(|(_, service)| !service.ports.is_empty());
    let name = published.map_or("web", |(name, _)| name.as_str());
    writeln!(text, "# [[check]]\n# name = \"{name} answers\"\n# request = \"GET {name}/\"\n# status = 200")?;
    writeln!(text, "# within = \"1s\"")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::definition::{Mount, Resource, Source};
    use std::collections::BTreeMap;

    #[test]
    fn what_is_written_says_what_was_found_and_is_a_manifest() {
        let port = Port { host_ip: None, published: Some(80), target: 80, protocol: "tcp".into() };
        let web =
            Service { ports: vec![port.clone()], depends_on: ["db".into()].into(), ..Service::default() };
        let source = Source::Volume("pgdata".into());
        let mount = Mount { source, target: "/var".into(), read_only: false, selinux: None };
        let db = Service {
            image: Some("pg:1".into()),
            ports: vec![port],
            mounts: vec![mount],
            ..Service::default()
        };
        let volume = Resource { name: "shop_pgdata".into(), external: false };
        let definition = Definition::new(
            [("db".to_owned(), db), ("web".to_owned(), web)].into(),
            [("pgdata".to_owned(), volume)].into(),
            BTreeMap::new(),
        );
        let text = text("shop", &definition, &Layout::default()).unwrap();
        for line in [
            "#   service db: image pg:1, 0 containers, published at 0.0.0.0:80, no health check",
            "#   data db: volume shop_pgdata",
            "# services = [\"web\"]",
            "# Not closed, because other services need it: db.",
            "# request = \"GET db/\"",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
