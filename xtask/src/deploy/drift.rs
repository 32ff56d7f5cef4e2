//! Compares an observation with a release, and says which scenarios follow. Pure: it reads nothing and
//! changes nothing. It asks `secrets` which values may be shown. Called by `converge`, `look` and the
//! commands.

use crate::base::count::count;
use crate::base::observed::Observed;
use crate::deploy::difference::{Change, Difference, Scenario};
use crate::deploy::observe::{Observation, TreeEnv};
use crate::host::HostCheck;
use crate::release::description::Release;
use crate::stack::definition::Environment;
use crate::stack::model::Health;
use crate::stack::model::{Instance, Service};
use crate::stack::names;
use std::collections::{BTreeMap, BTreeSet};

/// What a release wants, besides what its description says.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The settings in its env file.
    pub file: BTreeMap<String, String>,
    /// The environment of each service; none if it is not known, as in releases of older versions. Then every service gets
    /// all settings of the env file.
    pub environment: Option<Environment>,
    /// Its stored data; none if it is not known. Then each service has some.
    pub data: Option<BTreeSet<String>>,
    /// Services that may run beside it, such as prometheus.
    pub beside: BTreeSet<String>,
}

impl Wanted {
    /// What a service gets.
    fn of(&self, service: &str) -> &BTreeMap<String, String> {
        static NOTHING: BTreeMap<String, String> = BTreeMap::new();
        match &self.environment {
            Some(each) => each.get(service).unwrap_or(&NOTHING),
            None => &self.file,
        }
    }
}

/// Compares the observation with the release. Secret values do not leave this function.
pub fn drift(now: &Observation, release: &Release, wanted: &Wanted) -> Vec<Difference> {
    let mut found = Vec::new();
    match &now.stack {
        Observed::Unknown(why) => {
            found.push(Difference::Unknown { what: "what runs".into(), why: why.clone() })
        }
        Observed::Known(stack) => {
            let services: BTreeSet<String> = release.images.keys().cloned().collect();
            for data in wanted.data.as_ref().unwrap_or(&services).difference(&stack.data) {
                found.push(Difference::DataMissing { service: data.clone() });
            }
            for (service, image) in &release.images {
                service_drift(now, release, wanted, service, &mut found);
                if !stack.images.contains(&image.id) {
                    found.push(Difference::ImageLost { service: service.clone() });
                }
            }
            let own = |name: &&String| release.images.contains_key(*name) || wanted.beside.contains(*name);
            let extra = stack.services.keys().filter(|name| !own(name));
            found.extend(extra.map(|service| Difference::Extra { service: service.clone() }));
        }
    }
    let short = |c: &HostCheck| Difference::Shortage {
        what: format!("{}: {}", c.name, c.detail),
        fix: c.fix.clone(),
    };
    found.extend(now.shortages.iter().map(short));
    let env_file = |changes, trouble| Difference::EnvFile { release: release.id.clone(), changes, trouble };
    let whole = |trouble: String| env_file(Vec::new(), Some(trouble));
    match &now.tree_env {
        Observed::Known(TreeEnv::Fine(tree)) => {
            let changes = differing(tree, &wanted.file, true);
            if tree.is_empty() && !changes.is_empty() {
                found.push(whole(format!("it is empty: {} missing", are(changes.len()))));
            } else if !changes.is_empty() {
                found.push(env_file(changes, None));
            }
        }
        Observed::Known(TreeEnv::Missing) => found.push(whole("missing".into())),
        Observed::Known(TreeEnv::Malformed(why)) => found.push(whole(why.clone())),
        Observed::Unknown(why) => found.push(whole(why.clone())),
    }
    if let Observed::Known(tree) = &now.tree_compose
        && !tree.iter().eq(release
            .layout
            .compose
            .iter()
            .map(|name| release.files.get(name).cloned())
            .collect::<Vec<_>>()
            .iter())
    {
        found.push(Difference::ComposeFile);
    }
    found
}

fn service_drift(
    now: &Observation,
    release: &Release,
    wanted: &Wanted,
    service: &str,
    found: &mut Vec<Difference>,
) {
    let service = service.to_owned();
    let Some(seen) = now.service(&service).filter(|seen| !seen.0.is_empty()) else {
        found.push(Difference::Down { service, state: "missing".into() });
        return;
    };
    let other = content(seen, &service, release, wanted);
    let same_env = !other.iter().any(|d| matches!(d, Difference::Env { .. }));
    found.extend(other);
    if same_env
        && release.settings.get(&service).is_some_and(|known| seen.0.iter().any(|one| *known != one.settings))
        && !found.iter().any(|d| matches!(d, Difference::Image { service: s, .. } if *s == service))
    {
        found.push(Difference::Settings { service: service.clone() });
    }
    if seen.is_paused() {
        // While its data is copied it cannot answer, and soon it will.
        if !now.copied.contains(&service) {
            found.push(Difference::Paused { service });
        }
        return;
    }
    if !seen.is_running() {
        found.push(Difference::Down { service, state: seen.state().to_owned() });
        return;
    }
    match now.health(&service) {
        Some(Health::Healthy { .. }) => {}
        Some(Health::StoreCorrupt(reason)) => {
            found.push(Difference::StoreCorrupt { service, reason: reason.clone() });
        }
        Some(Health::Unhealthy(reason) | Health::Silent(reason)) => {
            found.push(Difference::Unhealthy { service, reason: reason.clone() });
        }
        None => {
            let why = "no published port to ask".to_owned();
            found.push(Difference::Unknown { what: format!("the health of {service}"), why });
        }
    }
}

/// Does a service have another image than the release, or other values for settings that the release gives it?
/// Settings from its image do not count. A setting that was added to the env file of the source is found there.
fn content(seen: &Service, service: &str, release: &Release, wanted: &Wanted) -> Vec<Difference> {
    let mut found = Vec::new();
    let image = release.images.get(service);
    let other = |instance: &&Instance| image.is_some_and(|image| image.id != instance.image);
    if let (Some(image), Some(instance)) = (image, seen.0.iter().find(other)) {
        found.push(Difference::Image {
            service: service.into(),
            running: instance.image.clone(),
            running_version: version_of(instance),
            release: release.id.clone(),
            image: image.id.clone(),
            version: release.label.clone(),
        });
    }
    let mut changes: Vec<Change> =
        seen.0.iter().flat_map(|instance| differing(&instance.env, wanted.of(service), false)).collect();
    changes.sort();
    changes.dedup();
    if !changes.is_empty() {
        found.push(Difference::Env { service: service.into(), release: release.id.clone(), changes });
    }
    found
}

/// The version that it says of itself, or that is built into its image.
fn version_of(instance: &Instance) -> Option<String> {
    match &instance.health {
        Some(Health::Healthy { version }) if version != "?" => Some(version.clone()),
        _ => names::version_in(&instance.env).cloned(),
    }
}

/// Compares what runs with the release that was just applied. Every service must be there, with the image and
/// the settings of the release. The result is empty if all are.
pub fn applied(services: &BTreeMap<String, Service>, release: &Release, wanted: &Wanted) -> Vec<Difference> {
    let service = |service: &String| match services.get(service).filter(|seen| !seen.0.is_empty()) {
        None => vec![Difference::Down { service: service.clone(), state: "missing".into() }],
        Some(seen) => content(seen, service, release, wanted),
    };
    release.images.keys().flat_map(service).collect()
}

/// Settings whose values differ between `now` and `wanted`. With `extra`, also settings that only `now` has.
fn differing(now: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>, extra: bool) -> Vec<Change> {
    let changed = wanted.iter().filter(|(name, value)| now.get(*name) != Some(*value)).map(|(name, _)| name);
    let added = now.keys().filter(|name| extra && !wanted.contains_key(*name));
    changed.chain(added).map(|name| Change::new(name, now.get(name), wanted.get(name))).collect()
}

/// `1 setting is`, `35 settings are`.
fn are(settings: usize) -> String {
    format!("{} {}", count(settings, "setting"), if settings == 1 { "is" } else { "are" })
}

/// The scenarios that follow from the differences, each once, in the order of the runbook.
pub fn scenarios(drift: &[Difference]) -> Vec<Scenario> {
    let mut all: Vec<Scenario> = drift
        .iter()
        .filter_map(|difference| match difference {
            Difference::Image { .. } => Some(Scenario::Version),
            Difference::Env { .. } | Difference::Settings { .. } | Difference::EnvFile { .. } => {
                Some(Scenario::Config)
            }
            Difference::StoreCorrupt { .. } | Difference::DataMissing { .. } => Some(Scenario::Reset),
            Difference::ImageLost { .. } | Difference::Shortage { .. } => Some(Scenario::Host),
            Difference::Extra { .. } => Some(Scenario::Version),
            _ => None,
        })
        .collect();
    // A service that is down or unhealthy after a change of image or setting: the change is the reason. If
    // nothing changed, the host is.
    let ill = |d: &Difference| {
        use Difference::{Down, Paused, Unhealthy, Unknown};
        matches!(d, Down { .. } | Paused { .. } | Unhealthy { .. } | Unknown { .. })
    };
    if all.is_empty() && drift.iter().any(ill) {
        all.push(Scenario::Host);
    }
    if all.is_empty() && drift.iter().any(|d| matches!(d, Difference::Release { .. })) {
        all.push(Scenario::Version);
    }
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::deploy::gate::Gate;
    use crate::release::description::Image;
    use crate::stack::model::Stack;
    use crate::stack::model::{Instance, Service};
    use std::net::SocketAddr;

    /// A release of two services and an observation that matches it; used by the plan's tests too.
    pub fn matching() -> (Observation, Release, Wanted) {
        let env =
            BTreeMap::from([("A".to_owned(), "1".to_owned()), ("SECRET".to_owned(), "hush".to_owned())]);
        let image = |id: &str| Image::new(id.into(), "x:latest".into());
        let images =
            BTreeMap::from([("engine".to_owned(), image("e1")), ("gateway".to_owned(), image("g1"))]);
        let mut release = Release::unrecorded("v1", "compose", images);
        release.id = "r1".into();
        release.files.insert(release.layout.compose[0].clone(), "sum".into());
        let healthy = || Health::Healthy { version: "v1".into() };
        let service = |image: &str| {
            Service(vec![Instance {
                state: "running".into(),
                image: image.into(),
                env: env.clone(),
                address: Some(SocketAddr::from(([127, 0, 0, 1], 1))),
                node: None,
                health: Some(healthy()),
                settings: "s".into(),
                state_dir: None,
                restarts: 0,
                restart: None,
                handle: "h".into(),
                inspect: String::new(),
            }])
        };
        let services =
            BTreeMap::from([("engine".to_owned(), service("e1")), ("gateway".to_owned(), service("g1"))]);
        release.settings =
            BTreeMap::from([("engine".to_owned(), "s".to_owned()), ("gateway".to_owned(), "s".to_owned())]);
        let data = ["engine".to_owned(), "gateway".to_owned()].into();
        let now = Observation {
            stack: Observed::Known(Stack { services, images: vec!["e1".into(), "g1".into()], data }),
            unseen: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            gate: Gate::Open,
            not_closed: Vec::new(),
            holds: Observed::Known(Vec::new()),
            tree_env: Observed::Known(TreeEnv::Fine(env.clone())),
            tree_compose: Observed::Known(vec![Some("sum".into())]),
            copied: BTreeSet::new(),
            shortages: Vec::new(),
            passes: false,
        };
        (now, release, Wanted { file: env, ..Wanted::default() })
    }

    /// Changes the instance of a service in an observation.
    pub fn change(now: &mut Observation, service: &str, how: impl FnOnce(&mut Instance)) {
        if let Observed::Known(stack) = &mut now.stack {
            how(&mut stack.services.get_mut(service).unwrap().0[0]);
        }
    }

    /// Sets what a service answers, whether the engine or only the service reports it.
    pub fn says(now: &mut Observation, service: &str, health: Health) {
        match &now.stack {
            Observed::Known(_) => change(now, service, |instance| instance.health = Some(health)),
            Observed::Unknown(_) => drop(now.unseen.insert(service.into(), health)),
        }
    }

    #[test]
    fn what_matches_has_no_drift() {
        let (now, release, env) = matching();
        assert_eq!(drift(&now, &release, &env), []);
    }

    #[test]
    fn what_is_paused_differs_unless_its_data_is_copied_and_its_health_is_not_judged() {
        let (mut now, release, env) = matching();
        change(&mut now, "engine", |s| s.state = "paused".into());
        says(&mut now, "engine", Health::Silent("no answer".into()));
        assert_eq!(drift(&now, &release, &env), [Difference::Paused { service: "engine".into() }]);
        now.copied.insert("engine".into());
        assert_eq!(drift(&now, &release, &env), []);
    }

    #[test]
    fn each_difference_makes_its_scenario() {
        let case = |how: &dyn Fn(&mut Observation)| {
            let (mut now, release, env) = matching();
            how(&mut now);
            let found = drift(&now, &release, &env);
            assert!(!found.is_empty());
            scenarios(&found)
        };
        assert_eq!(case(&|n| change(n, "engine", |s| s.image = "e2".into())), [Scenario::Version]);
        assert_eq!(case(&|n| change(n, "engine", |s| drop(s.env.remove("A")))), [Scenario::Config]);
        assert_eq!(case(&|n| change(n, "engine", |s| s.settings = "t".into())), [Scenario::Config]);
        assert_eq!(case(&|n| n.tree_env = Observed::Known(TreeEnv::Missing)), [Scenario::Config]);
        assert_eq!(case(&|n| change(n, "engine", |s| s.state = "exited".into())), [Scenario::Host]);
        assert_eq!(case(&|n| n.stack = Observed::Unknown("hung".into())), [Scenario::Host]);
        assert_eq!(case(&|n| change(n, "engine", |s| s.state = "paused".into())), [Scenario::Host]);
        let ill = |reason: &str| Health::Unhealthy(reason.to_owned());
        let corrupt = || Health::StoreCorrupt("noise".to_owned());
        assert_eq!(case(&|n| says(n, "engine", corrupt())), [Scenario::Reset]);
        assert_eq!(case(&|n| says(n, "engine", ill("tired"))), [Scenario::Host]);
        let stack = |n: &mut Observation, how: &dyn Fn(&mut Stack)| {
            if let Observed::Known(stack) = &mut n.stack {
                how(stack);
            }
        };
        assert_eq!(case(&|n| stack(n, &|s| s.data.retain(|name| name != "engine"))), [Scenario::Reset]);
        assert_eq!(case(&|n| stack(n, &|s| s.images.clear())), [Scenario::Host]);
        let full =
            HostCheck { name: "disk".into(), ok: Some(false), detail: "0 free".into(), fix: "x".into() };
        assert_eq!(case(&|n| n.shortages.push(full.clone())), [Scenario::Host]);
        assert_eq!(
            case(&|n| {
                change(n, "engine", |s| s.image = "e2".into());
                says(n, "engine", ill("tired"));
                n.tree_env = Observed::Known(TreeEnv::Malformed("x:1:2".into()));
            }),
            [Scenario::Config, Scenario::Version]
        );
    }

    #[test]
    fn a_changed_setting_is_told_with_its_values_but_for_a_secret() {
        let (mut now, release, env) = matching();
        let mut tree = env.file.clone();
        tree.insert("NEW".into(), "x".into());
        tree.insert("SECRET".into(), "other-hush".into());
        now.tree_env = Observed::Known(TreeEnv::Fine(tree));
        let found = drift(&now, &release, &env);
        let text = format!("{} {}", found[0], serde_json::to_string(&found).unwrap());
        let want =
            "env file: NEW is x, release r1 does not set it; SECRET has another value than in release r1";
        assert!(text.contains("SECRET has another value than in release r1"), "{text}");
        assert_eq!(found[0].to_string().len(), want.len(), "{text}");
        assert!(!text.contains("hush"), "{text}");
        let (mut now, release, env) = matching();
        change(&mut now, "engine", |s| drop(s.env.insert("A".into(), "2".into())));
        let found = drift(&now, &release, &env);
        assert_eq!(found[0].to_string(), "engine: A is 2, release r1 has 1");
    }
}
