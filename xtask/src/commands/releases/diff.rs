//! `releases diff A B`: compares settings (with secrets masked), images, compose file and seed of two sides.
//! A side is a release, what runs, or your source code. What is unknown on one side is reported as unknown,
//! never as equal.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::base::proc::cmd;
use crate::base::secrets;
use crate::deploy::event::Event;
use crate::deploy::session::Session;
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One side. `None` means that it is unknown there.
struct Side {
    env: Option<BTreeMap<String, String>>,
    images: Option<BTreeMap<String, String>>,
    compose: Option<PathBuf>,
    seed: Option<PathBuf>,
}

/// Prints the differences.
pub fn run(session: &Session, a: &str, b: &str) -> Result<()> {
    let (left, right) = (side(session, a)?, side(session, b)?);
    let out = &session.out;
    let env = maps(left.env.as_ref(), right.env.as_ref(), a == "running" || b == "running");
    // If the value is a secret on one side, it is hidden on both.
    let shown = |name: &str, values: [Option<&String>; 2]| {
        let hidden = values.iter().flatten().any(|value| secrets::hides(name, value));
        values.map(|value| match value {
            None => "(none)".to_owned(),
            Some(_) if hidden => secrets::MASK.to_owned(),
            Some(value) => value.clone(),
        })
    };
    let mut value = json!({"a": a, "b": b});
    let mut same = true;
    match env {
        None => out.say("settings: unknown on one side"),
        Some(keys) => {
            same &= keys.is_empty();
            let (l, r) = (left.env.unwrap_or_default(), right.env.unwrap_or_default());
            let rows: Vec<(String, [String; 2])> =
                keys.iter().map(|k| (k.clone(), shown(k, [l.get(k), r.get(k)]))).collect();
            for (name, [left, right]) in &rows {
                out.say(format!("setting  {name:<32} {left} -> {right}"));
            }
            value["settings"] = json!(rows.into_iter().collect::<BTreeMap<_, _>>());
        }
    }
    match maps(left.images.as_ref(), right.images.as_ref(), false) {
        None => out.say("images: unknown on one side (source code has no images until it is built)"),
        Some(services) => {
            same &= services.is_empty();
            let (l, r) = (left.images.unwrap_or_default(), right.images.unwrap_or_default());
            let short = |id: Option<&String>| {
                id.map_or("(none)".into(), |id| {
                    id.trim_start_matches("sha256:").chars().take(12).collect::<String>()
                })
            };
            for service in &services {
                out.say(format!(
                    "image    {service:<32} {} -> {}",
                    short(l.get(service)),
                    short(r.get(service))
                ));
            }
            let rows: BTreeMap<_, _> = services.iter().map(|s| (s, [l.get(s), r.get(s)])).collect();
            value["images"] = json!(rows);
        }
    }
    for (what, left, right) in [("compose", &left.compose, &right.compose), ("seed", &left.seed, &right.seed)]
    {
        let (Some(left), Some(right)) = (left, right) else {
            out.say(format!("{what}: unknown on one side"));
            value[what] = Value::Null;
            continue;
        };
        let text = lines(left, right)?;
        same &= text.is_empty();
        value[what] = json!(text);
        if !text.is_empty() {
            out.say(format!("{what}:\n{text}"));
        }
    }
    out.event(&Event::Result { value: &value });
    if same {
        out.say(format!("{a} and {b} are the same in everything that is known on both sides"));
    }
    Ok(())
}

fn side(session: &Session, name: &str) -> Result<Side> {
    let pilot = &session.pilot;
    match name {
        "tree" => Ok(Side {
            env: Some(pilot.env()?.map()),
            images: None,
            compose: pilot.layout.compose.first().map(|name| pilot.pack.join(name)),
            seed: pilot.layout.seed.as_ref().map(|name| pilot.pack.join(name)),
        }),
        "running" => {
            let services = session.engine.services(Deadline::after(pilot.manifest.limits.engine))?;
            if services.is_empty() {
                return Err(fail(Exit::Usage, "nothing runs", Next::xtask("status")));
            }
            let mut env: BTreeMap<String, String> = BTreeMap::new();
            for name in pilot.services() {
                for (key, value) in services.get(name).into_iter().flat_map(|s| &s.0).flat_map(|i| &i.env) {
                    let known = env.entry(key.clone()).or_insert_with(|| value.clone());
                    if known != value {
                        *known = "(not the same in all services)".into();
                    }
                }
            }
            let image = |name: &str| Some((name.to_owned(), services.get(name)?.0.first()?.image.clone()));
            Ok(Side {
                env: Some(env),
                images: Some(pilot.services().filter_map(image).collect()),
                compose: None,
                seed: None,
            })
        }
        _ => {
            let release = session.store.named(name)?;
            session.store.check_files(&release)?;
            let env = session.store.settings(&release)?;
            let file = |name: &String| session.store.file(&release.id, name);
            Ok(Side {
                env: Some(env.map()),
                images: Some(release.images.iter().map(|(s, i)| (s.clone(), i.id.clone())).collect()),
                compose: release.layout.compose.first().map(file),
                seed: release.layout.seed.as_ref().map(file),
            })
        }
    }
}

/// The names whose values differ. A running service also has settings from its image and from Compose; with
/// `common`, only names that both sides have are compared.
fn maps(
    left: Option<&BTreeMap<String, String>>,
    right: Option<&BTreeMap<String, String>>,
    common: bool,
) -> Option<BTreeSet<String>> {
    let (left, right) = (left?, right?);
    let mut names: BTreeSet<String> = left.keys().chain(right.keys()).cloned().collect();
    if common {
        names.retain(|name| left.contains_key(name) && right.contains_key(name));
    }
    names.retain(|name| left.get(name) != right.get(name));
    Some(names)
}

/// The different lines, as `git diff` prints them; empty if there are none.
fn lines(left: &Path, right: &Path) -> Result<String> {
    // git exits with 1 if there are differences.
    let script = "git diff --no-index --no-color --unified=1 -- \"$0\" \"$1\" || test $? = 1";
    let (left, right) = (left.display().to_string(), right.display().to_string());
    let text = cmd("sh", &["-c", script, &left, &right]).run(Deadline::after(Duration::from_secs(10)))?;
    Ok(text.lines().skip_while(|line| !line.starts_with("@@")).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_cannot_tell_is_not_the_same() {
        let map = |text: &str| BTreeMap::from([("A".to_owned(), text.to_owned())]);
        assert_eq!(maps(None, Some(&map("1")), false), None);
        assert_eq!(maps(Some(&map("1")), Some(&map("1")), false), Some(BTreeSet::new()));
        assert_eq!(maps(Some(&map("1")), Some(&BTreeMap::new()), false).map(|names| names.len()), Some(1));
        assert_eq!(maps(Some(&map("1")), Some(&BTreeMap::new()), true).map(|names| names.len()), Some(0));
    }
}
