//! Configs and secrets: those of the compose file, and the files that services mount. Each is named by its content,
//! because the engine never changes one. Called by `container`.

use super::parts::{Draft, File, Kind};
use super::reading::{is_empty, list, map, mode, text};
use crate::base::files;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Every engine takes less than this for one, in bytes. Many take twice as much for a config.
const LARGEST: usize = 500 * 1024;

/// The longest name that the engine takes.
const LONGEST_NAME: usize = 64;

/// The rights of a file for which the stack says none.
const READABLE: u32 = 0o444;

/// A file in a container: its path, owner, group and rights.
struct Target<'a> {
    path: &'a str,
    uid: &'a str,
    gid: &'a str,
    mode: u32,
}

impl Target<'_> {
    /// The reference in a `ContainerSpec`. The caller of `plan` fills in the id, which is empty here.
    fn reference(&self, kind: Kind, name: &str) -> Value {
        let file = json!({ "Name": self.path, "UID": self.uid, "GID": self.gid, "Mode": self.mode });
        match kind {
            Kind::Config => json!({ "ConfigID": "", "ConfigName": name, "File": file }),
            Kind::Secret => json!({ "SecretID": "", "SecretName": name, "File": file }),
        }
    }
}

/// A path as `Source::read` wants it; none if it is outside the folder of the stack.
pub fn inside(dir: &Path, path: &str) -> Option<String> {
    let within = Path::new(path).strip_prefix(dir).ok()?;
    let plain = within.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    Some(within.display().to_string()).filter(|_| plain)
}

/// The references to the configs or secrets that a service uses. They are added to the plan.
pub fn used(draft: &mut Draft<'_>, service: &str, kind: Kind, settings: &Value) -> Vec<Value> {
    let section = match kind {
        Kind::Config => "configs",
        Kind::Secret => "secrets",
    };
    let config = draft.source.config;
    let mut all = Vec::new();
    for used in list(&settings[section]) {
        // The short form is the name alone.
        let Some(key) = text(used).or_else(|| text(&used["source"])) else { continue };
        let subject = format!("{service}: the {} {key}", kind.as_str());
        let default = match kind {
            Kind::Config => format!("/{key}"),
            Kind::Secret => key.to_owned(),
        };
        let mode = match &used["mode"] {
            Value::Null => Some(READABLE),
            told => mode(told),
        };
        let Some(mode) = mode else {
            draft.refuse(&subject, format!("the mode {} is not one; write 0440, for example", used["mode"]));
            continue;
        };
        let or = |value, default| text(value).filter(|text| !text.is_empty()).unwrap_or(default);
        let target = Target {
            path: or(&used["target"], default.as_str()),
            uid: or(&used["uid"], "0"),
            gid: or(&used["gid"], "0"),
            mode,
        };
        if let Some(name) = of_section(draft, &subject, kind, key, &config[section][key]) {
            all.push(target.reference(kind, &name));
        }
    }
    all
}

/// The name of a config or secret of the compose file. If it is not external, it is added to the plan.
fn of_section(draft: &mut Draft<'_>, subject: &str, kind: Kind, key: &str, value: &Value) -> Option<String> {
    if !is_empty(&value["external"]) {
        return Some(text(&value["name"]).unwrap_or(key).to_owned());
    }
    for word in ["driver", "driver_opts", "template_driver"] {
        if !is_empty(&value[word]) {
            draft.refuse(subject, format!("`{word}` is not supported; put the content into a file"));
            return None;
        }
    }
    let data = if let Some(content) = text(&value["content"]) {
        content.as_bytes().to_vec()
    } else if let Some(path) = text(&value["file"]) {
        let Some(relative) = inside(draft.source.dir, path) else {
            let what =
                format!("its file {path} is outside the stack's folder, so no release has it; move it there");
            draft.refuse(subject, what);
            return None;
        };
        match (draft.source.read)(&relative) {
            Ok(data) => data,
            Err(error) => {
                draft.refuse(subject, format!("cannot read its file {relative}: {error:#}; put it there"));
                return None;
            }
        }
    } else {
        let from =
            text(&value["environment"]).map_or(String::new(), |name| format!(" but the variable {name}"));
        draft.refuse(
            subject,
            format!("it has no file{from}, so no release has its content; give it a `file`"),
        );
        return None;
    };
    add(draft, subject, kind, key, data, &value["labels"])
}

/// The reference to a config for a file of the stack that a service mounts, which is added to the plan. `None` after a
/// refusal.
pub fn mounted(draft: &mut Draft<'_>, service: &str, relative: &str, target: &str) -> Option<Value> {
    let subject = format!("{service}: the mounted ./{relative}");
    let data = match (draft.source.read)(relative) {
        Ok(data) => data,
        Err(error) => {
            let what = format!(
                "it cannot be read as a file ({error:#}), and a Swarm has no folders of the stack on its nodes; mount its \
                 files one by one, put them into the image, or use a volume"
            );
            draft.refuse(&subject, what);
            return None;
        }
    };
    let key: String = relative.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = add(draft, &subject, Kind::Config, &key, data, &Value::Null)?;
    Some(Target { path: target, uid: "0", gid: "0", mode: READABLE }.reference(Kind::Config, &name))
}

/// Adds a file to the plan, unless it is there, and returns its name; none if the engine would not take it.
fn add(
    draft: &mut Draft<'_>,
    subject: &str,
    kind: Kind,
    key: &str,
    data: Vec<u8>,
    labels: &Value,
) -> Option<String> {
    let kind_word = kind.as_str();
    if data.is_empty() {
        draft.refuse(
            subject,
            format!("it is empty, and a Swarm takes no empty {kind_word}; write a line into it"),
        );
        return None;
    }
    if data.len() >= LARGEST {
        let what = format!(
            "it has {} bytes, and a Swarm takes less than {LARGEST} for a {kind_word}; put it into the image",
            data.len()
        );
        draft.refuse(subject, what);
        return None;
    }
    let labels = draft.labels(labels);
    let labels: BTreeMap<_, _> =
        map(&Value::Object(labels)).filter_map(|(k, v)| Some((k.clone(), text(v)?.to_owned()))).collect();
    let name = name(draft.source.project, key, &data);
    let all = match kind {
        Kind::Config => &mut draft.plan.configs,
        Kind::Secret => &mut draft.plan.secrets,
    };
    if all.iter().all(|file| file.name != name) {
        all.push(File { name: name.clone(), labels, data });
    }
    Some(name)
}

/// `PROJECT_key-<12 digits of the checksum>`. The engine takes only some characters, and no long name: then the beginning
/// is cut, and the checksum is also that of the whole beginning.
fn name(project: &str, key: &str, data: &[u8]) -> String {
    let key: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    let begin = format!("{project}_{key}");
    let sum = files::sha256_bytes(data);
    let most = LONGEST_NAME - "-".len() - SUM;
    if begin.len() <= most {
        return format!("{begin}-{}", &sum[..SUM]);
    }
    let sum = files::sha256_bytes(format!("{begin} {sum}").as_bytes());
    format!("{}-{}", &begin[..most], &sum[..SUM])
}

/// How many digits of a checksum are in a name.
const SUM: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_contents_apart_and_is_one_that_the_engine_takes() {
        assert_eq!(name("shop", "app", b"one"), "shop_app-7692c3ad3540");
        assert_ne!(name("shop", "app", b"one"), name("shop", "app", b"two"));
        assert!(name("shop", "a b/ü", b"one").starts_with("shop_a-b---"));
        let (long, longer) = ("p".repeat(60), "p".repeat(61));
        for project in [&long, &longer] {
            assert!(name(project, "app", b"one").len() <= LONGEST_NAME);
            assert_ne!(name(project, "app", b"one"), name(project, "app", b"two"));
        }
        assert_ne!(name(&long, "app", b"one"), name(&longer, "app", b"one"));
        assert_ne!(name(&long, "app", b"one"), name(&long, "apple", b"one"));
    }

    #[test]
    fn only_what_is_in_the_folder_is_a_file_of_the_stack() {
        let inside = |path| inside(Path::new("/shop"), path);
        assert_eq!(inside("/shop/conf/a.conf").as_deref(), Some("conf/a.conf"));
        assert_eq!(inside("/shop").as_deref(), Some(""));
        for path in ["/shopping/a", "/etc/passwd", "/shop/../etc/passwd", "conf/a.conf"] {
            assert_eq!(inside(path), None, "{path}");
        }
    }
}
