//! What a service mounts: volumes, memory, and files of the stack, which become configs. Called by `container`.

use super::files;
use super::parts::{Draft, Volume};
use super::reading::{bytes, is_empty, list, map, mode, text};
use serde_json::{Map, Value, json};

/// What the mounts of a service become.
#[derive(Default)]
pub struct Mounts {
    /// For `ContainerSpec.Mounts`.
    pub mounts: Vec<Value>,
    /// For `ContainerSpec.Configs`: the files.
    pub configs: Vec<Value>,
}

/// Text in which the engine would read `{{` as the beginning of a template, written so that it stays what it is. It does
/// so in the environment, the host name and the mounts.
pub fn literal(text: &str) -> String {
    text.replace("{{", "{{\"{{\"}}")
}

/// The mounts of a service: `volumes`, `tmpfs` and `shm_size`.
pub fn mounts(draft: &mut Draft<'_>, service: &str, settings: &Value) -> Mounts {
    let mut all = Mounts::default();
    for mount in list(&settings["volumes"]) {
        let target = text(&mount["target"]).unwrap_or_default();
        let subject = format!("{service}: the mount at {target}");
        match text(&mount["type"]).unwrap_or_default() {
            "volume" => all.mounts.extend(volume(draft, &subject, mount)),
            "tmpfs" => {
                let options = &mount["tmpfs"];
                if let Some(memory) = memory(draft, &subject, target, &options["size"], &options["mode"]) {
                    all.mounts.push(with_rights(memory, mount));
                }
            }
            "bind" => all.configs.extend(bind(draft, service, &subject, mount)),
            other => {
                draft.refuse(&subject, format!("a mount of type {other:?} is not supported; use a volume"));
            }
        }
    }
    // One is a text, several are a list.
    let short = list(&settings["tmpfs"]).chain(Some(&settings["tmpfs"])).filter_map(text);
    all.mounts.extend(short.filter_map(|short| short_memory(draft, service, short)));
    // There is no setting for it, but a mount at its place does the same.
    let size = &settings["shm_size"];
    if !is_empty(size) {
        let subject = format!("{service}: `shm_size`");
        all.mounts.extend(memory(draft, &subject, "/dev/shm", size, &Value::Null));
    }
    all
}

fn with_rights(mut mount: Value, settings: &Value) -> Value {
    if settings["read_only"] == true {
        mount["ReadOnly"] = true.into();
    }
    mount
}

/// A volume, which is added to the plan if it has a name.
fn volume(draft: &mut Draft<'_>, subject: &str, mount: &Value) -> Option<Value> {
    let target = literal(text(&mount["target"])?);
    if !is_empty(&mount["volume"]["subpath"]) {
        draft.refuse(subject, "a Swarm of Docker 20.10 mounts whole volumes; mount it without `subpath`");
        return None;
    }
    let Some(key) = text(&mount["source"]).filter(|key| !key.is_empty()) else {
        draft.note(subject, "the volume has no name, so each new task begins with an empty one");
        return Some(with_rights(json!({ "Type": "volume", "Target": target }), mount));
    };
    let of_stack = &draft.source.config["volumes"][key];
    let external = !is_empty(&of_stack["external"]);
    let default = if external { key.to_owned() } else { format!("{}_{key}", draft.source.project) };
    let name = text(&of_stack["name"]).map_or(default, str::to_owned);
    let given = &of_stack["driver_opts"];
    let is_bind =
        text(&given["o"]).is_some_and(|o| o.split(',').any(|word| matches!(word, "bind" | "rbind")));
    if is_bind {
        let device = text(&given["device"]).unwrap_or_default();
        let what = format!(
            "the volume {name} is the folder {device} of one machine, which other nodes do not have; use a volume \
             without `driver_opts`"
        );
        draft.refuse(subject, what);
        return None;
    }
    let mut options = Map::new();
    if !external {
        let of = |(name, value): (&String, &Value)| Some((name.clone(), literal(text(value)?).into()));
        let labels = draft.labels(&of_stack["labels"]);
        let labels: Map<String, Value> = labels.iter().filter_map(of).collect();
        options.insert("Labels".to_owned(), labels.into());
        if !is_empty(&of_stack["driver"]) || !is_empty(given) {
            let driver = text(&of_stack["driver"]).filter(|name| !name.is_empty()).unwrap_or("local");
            let given: Map<String, Value> = map(given).filter_map(of).collect();
            options.insert("DriverConfig".to_owned(), json!({ "Name": driver, "Options": given }));
        }
    }
    if mount["volume"]["nocopy"] == true {
        options.insert("NoCopy".to_owned(), true.into());
    }
    draft.plan.volumes.insert(name.clone(), Volume { external });
    let mut made = json!({ "Type": "volume", "Source": literal(&name), "Target": target });
    if !options.is_empty() {
        made["VolumeOptions"] = options.into();
    }
    Some(with_rights(made, mount))
}

/// A file or folder of the machine. Only a file of the stack can be carried over.
fn bind(draft: &mut Draft<'_>, service: &str, subject: &str, mount: &Value) -> Option<Value> {
    let (path, target) = (text(&mount["source"])?, text(&mount["target"])?);
    let Some(relative) = files::inside(draft.source.dir, path) else {
        let what = format!(
            "{path} belongs to one machine, and other nodes do not have it; put it into the image, or use a volume"
        );
        draft.refuse(subject, what);
        return None;
    };
    let made = files::mounted(draft, service, &relative, target)?;
    if mount["read_only"] != true {
        draft.note(subject, format!("./{relative} is a config on a Swarm, which the service can only read"));
    }
    Some(made)
}

/// Memory. Sizes are bytes.
fn memory(draft: &mut Draft<'_>, subject: &str, target: &str, size: &Value, rights: &Value) -> Option<Value> {
    let mut options = Map::new();
    let given = [("SizeBytes", size, bytes(size)), ("Mode", rights, mode(rights).map(i64::from))];
    for (name, told, read) in given {
        match read {
            Some(number) => drop(options.insert(name.to_owned(), number.into())),
            None if is_empty(told) => {}
            None => {
                draft.refuse(subject, format!("{told} is not understood; write `size=64m` or `mode=1777`"));
                return None;
            }
        }
    }
    let mut made = json!({ "Type": "tmpfs", "Target": literal(target) });
    if !options.is_empty() {
        made["TmpfsOptions"] = options.into();
    }
    Some(made)
}

/// The short form `/path:size=64m,mode=1777`.
fn short_memory(draft: &mut Draft<'_>, service: &str, short: &str) -> Option<Value> {
    let (target, options) = short.split_once(':').unwrap_or((short, ""));
    let subject = format!("{service}: the mount at {target}");
    let (mut size, mut rights) = (Value::Null, Value::Null);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", value) => size = value.into(),
            ("mode", value) => rights = value.into(),
            // What the engine does by itself.
            ("rw" | "noexec" | "nosuid" | "nodev", "") => {}
            _ => {
                let what = format!("the option {option} is not supported; use only `size` and `mode`");
                draft.refuse(&subject, what);
                return None;
            }
        }
    }
    memory(draft, &subject, target, &size, &rights)
}
