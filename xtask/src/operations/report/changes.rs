//! The settings and images that differed, as rows: what, where, old and new. Pure. Called by `reading`.

use crate::deploy::difference::Difference;
use crate::operations::report::story::Change;

/// The rows: images first.
pub fn changes(drift: &[Difference]) -> Vec<Change> {
    let mut rows: Vec<Change> = Vec::new();
    let mut add = |what: &str, of: &str, old: Option<String>, new: Option<String>| {
        let row = Change { what: what.to_owned(), of: Vec::new(), old, new };
        let same =
            |other: &&mut Change| (&other.what, &other.old, &other.new) == (&row.what, &row.old, &row.new);
        match rows.iter_mut().find(same) {
            Some(other) => other.of.push(of.to_owned()),
            None => rows.push(Change { of: vec![of.to_owned()], ..row }),
        }
    };
    for difference in drift {
        if let Difference::Image { service, running, running_version, image, version, .. } = difference {
            let now = running_version.as_deref().unwrap_or("unknown version");
            add(
                "image",
                service,
                Some(format!("{now} ({})", short(running))),
                Some(format!("{version} ({})", short(image))),
            );
        }
    }
    for difference in drift {
        let (of, changes) = match difference {
            Difference::Env { service, changes, .. } => (service.as_str(), changes),
            Difference::EnvFile { changes, trouble: None, .. } => ("env file", changes),
            _ => continue,
        };
        changes.iter().for_each(|change| add(&change.name, of, change.now.clone(), change.release.clone()));
    }
    rows
}

/// The first characters of a content id.
fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::difference::Change as Setting;

    #[test]
    fn the_same_change_of_several_services_is_one_row() {
        let change = |now: &str| Setting {
            name: "CACHE".into(),
            now: Some(now.into()),
            release: Some("false".into()),
        };
        let env = |service: &str, now: &str| Difference::Env {
            service: service.into(),
            release: "r1".into(),
            changes: vec![change(now)],
        };
        let file = Difference::EnvFile { release: "r1".into(), changes: vec![change("true")], trouble: None };
        let image = Difference::Image {
            service: "api".into(),
            running: format!("sha256:{}", "a".repeat(64)),
            running_version: None,
            release: "r1".into(),
            image: "b".repeat(64),
            version: "v1".into(),
        };
        let rows = changes(&[env("api", "true"), env("web", "true"), env("db", "maybe"), file, image]);
        assert_eq!(rows[0].old.as_deref(), Some("unknown version (aaaaaaaaaaaa)"));
        assert_eq!((rows[1].what.as_str(), rows[1].of.join(" ")), ("CACHE", "api web env file".to_owned()));
        assert_eq!((rows.len(), rows[2].of.join(" ")), (3, "db".to_owned()));
    }
}
