//! Tests: what `docker inspect` and `docker compose config` print, which may be anything. Called by `engine/hostile`.

use crate::engine::compose::config::{Place, format_of};
use crate::engine::compose::state;
use crate::stack::definition::{Definition, Resolved, Source};
use serde_json::Value;
use std::path::Path;

/// What both versions of Compose print.
pub fn config(text: &str) {
    let place =
        Place { project: "shop", dir: Path::new("/shop"), is_file: &|path| path.len().is_multiple_of(2) };
    format_of(text);
    for resolved in [place.compose_1(text), place.compose_2(text)] {
        match resolved {
            Ok(resolved) => understood(&resolved),
            Err(error) => {
                assert!(format!("{error:#}").starts_with("cannot parse the output of docker"), "{error:#}")
            }
        }
    }
}

/// What was understood is kept, and read again later.
fn understood(Resolved { definition, environment }: &Resolved) {
    let kept = serde_json::to_vec(definition).unwrap_or_default();
    match Definition::parse(&kept) {
        Ok(again) => assert_eq!(again, *definition, "what is kept is not what was understood"),
        Err(error) => {
            assert!(error.to_string().contains("is not the name of a volume or network"), "{error:#}")
        }
    }
    let named = environment.iter().flatten().map(|(name, _)| name);
    assert!(named.eq(definition.services.keys()), "the environment is of other services");
    for (name, service) in &definition.services {
        let none = service.ports.iter().any(|port| port.target == 0 || port.published == Some(0));
        assert!(!none, "{name} has a port that there is not");
        let leads_out = |path: &String| path.starts_with('/');
        assert!(!service.files.iter().any(leads_out), "{name} has files elsewhere: {:?}", service.files);
        let known = service
            .mounts
            .iter()
            .all(|mount| !matches!(&mount.source, Source::Volume(key) if key.starts_with('/')));
        assert!(known, "{name} has a path for a volume");
    }
}

/// What `docker inspect` prints.
pub fn containers(value: &Value) {
    let Some(all) = value.as_array() else { return };
    let Ok(services) = state::services(all) else { return };
    let instances: Vec<_> = services.values().flat_map(|service| &service.0).collect();
    assert!(instances.len() <= all.len() && services.values().all(|service| !service.0.is_empty()));
    for instance in instances {
        assert!(!instance.handle.is_empty(), "it cannot be found again: {instance:?}");
        let same = serde_json::from_str::<Value>(&instance.inspect).is_ok_and(|whole| all.contains(&whole));
        assert!(same, "the evidence is not what docker says");
    }
}
