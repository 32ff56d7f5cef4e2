//! Pins the services of a release: a second compose file names each image by a private tag that follows from
//! its id, and each mounted file by a path that follows from its content. Both are the same in every release,
//! so Compose replaces only the services that differ, and no tag of the user matters. The file is made from
//! the release each time it is applied; so releases of older versions and of other hosts have it too, and the
//! compose file of a release stays as it is. Called by `runtime`, `images` and `data`.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::base::proc::Cmd;
use crate::base::threads::side_by_side;
use crate::engine::compose::client::{Compose, Generation};
use crate::engine::compose::config::format_of;
use crate::release::description::{Image, Release};
use crate::stack::definition::{Definition, Mount, Source};
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The registry of private tags. No registry can have this name (RFC 6761), so nothing is ever pulled from it
/// or pushed to it.
const NOWHERE: &str = "rollback.invalid";

/// The label that changes if a file that the service mounts changes.
const FILES: &str = "rollback.invalid/files";

/// How many tags are set at a time.
pub const TAGS: usize = 8;

/// Characters of an image's id in its private tag.
const ID: usize = 12;

/// What one mounted file or folder is in a release, and where it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    /// The path that Compose gets.
    path: PathBuf,
    /// Names in the release, paths of the copies, checksums.
    files: Vec<(String, PathBuf, String)>,
}

/// The private tag of an image.
pub fn tag_of(project: &str, image: &Image) -> String {
    format!("{NOWHERE}/{project}/{}", name_of(image))
}

/// A name that no other image has: the last part of that in the compose file, with the id.
pub fn name_of(image: &Image) -> String {
    let id = image.id.trim_start_matches("sha256:");
    let id = id.get(..ID).unwrap_or(id);
    // The last part of a reference, without its tag and digest, may be a part of another one.
    let name = image.tag.split('@').next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let name = name.split(':').next().filter(|name| !name.is_empty()).unwrap_or("image");
    format!("{name}:{id}")
}

/// How all private tags of a project begin.
fn beginning(project: &str) -> String {
    format!("{NOWHERE}/{project}/")
}

/// Where the file or folder at `path` is kept; none if the release does not have it.
fn kept(path: &str, release: &Release, mounted: &Path) -> Option<Kept> {
    let name = path.rsplit('/').next()?;
    if let Some(sum) = release.files.get(path) {
        let to = mounted.join(sum).join(name);
        return Some(Kept { path: to.clone(), files: vec![(path.to_owned(), to, sum.clone())] });
    }
    let inside: Vec<(&String, &str, &String)> = release
        .files
        .iter()
        .filter_map(|(file, sum)| Some((file, file.strip_prefix(path)?.strip_prefix('/')?, sum)))
        .collect();
    if inside.is_empty() {
        return None;
    }
    let all: Vec<(&str, &String)> = inside.iter().map(|(_, rest, sum)| (*rest, *sum)).collect();
    let to = mounted.join(files::sha256_bytes(json!(all).to_string().as_bytes())).join(name);
    let files = inside.iter().map(|(file, rest, sum)| ((*file).clone(), to.join(rest), (*sum).clone()));
    Some(Kept { files: files.collect(), path: to })
}

/// A mount as the second compose file names it. The short form is known to every format of compose files.
fn mount(mount: &Mount, path: &str) -> Value {
    let Mount { target, read_only, selinux, .. } = mount;
    if path.contains(':') || target.contains(':') {
        let mut long = json!({
            "type": "bind", "source": path, "target": target, "read_only": read_only,
        });
        if let Some(label) = selinux {
            long["bind"] = json!({ "selinux": label });
        }
        return escaped(long);
    }
    let options = [read_only.then_some("ro"), selinux.as_deref()].into_iter().flatten();
    let parts: Vec<String> = options.map(str::to_owned).collect();
    let options = if parts.is_empty() { String::new() } else { format!(":{}", parts.join(",")) };
    escaped(format!("{path}:{target}{options}").into())
}

/// Compose reads `$` as the start of a variable, in its second file too.
fn escaped(value: Value) -> Value {
    match value {
        Value::String(text) => text.replace('$', "$$").into(),
        Value::Object(all) => all.into_iter().map(|(key, value)| (key, escaped(value))).collect(),
        other => other,
    }
}

/// The second compose file of a release, and what has to be kept for it. Pure.
fn pinned(
    project: &str,
    release: &Release,
    definition: Option<&Definition>,
    mounted: &Path,
    format: Option<&str>,
) -> (Value, Vec<Kept>) {
    let mut all = Vec::new();
    let mut keep = |path: &str| {
        let kept = kept(path, release, mounted)?;
        let path = kept.path.display().to_string();
        all.push(kept);
        Some(path)
    };
    let mut services: BTreeMap<&str, Value> = BTreeMap::new();
    for (name, image) in &release.images {
        services.insert(name, json!({ "image": tag_of(project, image) }));
    }
    let mut top = Map::new();
    for (name, service) in definition.into_iter().flat_map(|definition| &definition.services) {
        let bound = service.mounts.iter().filter_map(|one| match &one.source {
            Source::Bind(path) => keep(path).map(|path| mount(one, &path)),
            _ => None,
        });
        let bound: Vec<Value> = bound.collect();
        let sums: Vec<_> =
            service.files.iter().filter_map(|file| release.files.get_key_value(file)).collect();
        let pin = services.entry(name).or_insert_with(|| json!({}));
        if !bound.is_empty() {
            pin["volumes"] = bound.into();
        }
        if !sums.is_empty() {
            // Compose does not see that the content of a config or secret has changed.
            pin["labels"] = json!({ FILES: files::sha256_bytes(json!(sums).to_string().as_bytes()) });
        }
    }
    for (kind, files) in
        definition.into_iter().flat_map(|d| [("configs", &d.configs), ("secrets", &d.secrets)])
    {
        let each = files.iter().filter_map(|(name, path)| {
            let path = keep(path)?;
            Some((name.clone(), json!({ "file": escaped(path.into()) })))
        });
        let each: Map<String, Value> = each.collect();
        if !each.is_empty() {
            top.insert(kind.to_owned(), each.into());
        }
    }
    services.retain(|_, pin| pin.as_object().is_some_and(|pin| !pin.is_empty()));
    top.insert("services".to_owned(), json!(services));
    if let Some(format) = format {
        top.insert("version".to_owned(), format.into());
    }
    (top.into(), all)
}

impl Compose {
    /// A Compose command on a release whose files are in `dir`, with its services pinned; its images are
    /// proved to be there. A release that is not in the store is taken as it stands, with the tags that its
    /// compose file names.
    pub fn compose_release(&self, release: &Release, dir: &Path, deadline: Deadline) -> Result<Cmd> {
        let compose = self.compose(dir, deadline)?;
        if !release.is_recorded() {
            return Ok(compose);
        }
        let format = self.format(dir, deadline)?;
        let state = &self.pilot.state;
        let (definition, mounted) = (self.pilot.definition.as_ref(), state.mounted());
        let (pin, all) = pinned(&self.pilot.project, release, definition, &mounted, format.as_deref());
        all.iter().try_for_each(|kept| keep(kept, dir))?;
        let (path, text) = (state.pin(&release.id), serde_json::to_string_pretty(&pin)?);
        if files::read_if_there(&path)?.as_deref() != Some(text.as_bytes()) {
            files::write(&path, text.as_bytes(), Mode::Plain)?;
        }
        self.pin_images(&release.images, deadline)?;
        Ok(compose.args(["--file", &path.display().to_string()]))
    }

    /// The format that a second compose file must name: Compose 1 wants the same in both.
    pub fn format(&self, dir: &Path, deadline: Deadline) -> Result<Option<String>> {
        Ok(match self.generation(deadline)? {
            Generation::Two => None,
            Generation::One(_) => format_of(&files::read_text(&dir.join(&self.pilot.layout.compose[0]))?),
        })
    }

    /// Gives images their private tags. It is an error if the engine does not have one of them: Compose 1
    /// would pull it.
    pub fn pin_images(&self, images: &BTreeMap<String, Image>, deadline: Deadline) -> Result<()> {
        let there = self.pins(deadline)?;
        let mut missing: BTreeMap<String, (&String, &Image)> = BTreeMap::new();
        for (service, image) in images {
            let tag = tag_of(&self.pilot.project, image);
            if there.get(&tag) != Some(&image.id) {
                missing.insert(tag, (service, image));
            }
        }
        let missing: Vec<_> = missing.into_iter().collect();
        let tagged = side_by_side(TAGS, missing, |(tag, (service, image))| {
            self.docker(&["tag", &image.id, &tag], deadline).map_err(|error| match exit_of(&error) {
                Exit::Host | Exit::OverBudget => error,
                _ => {
                    let Image { id, tag, .. } = image;
                    let what = format!("the engine does not have image {id} ({tag}) of {service}: {error:#}");
                    fail(Exit::NotRestored, what, Next::xtask("rollback").so("which loads it"))
                }
            })
        });
        tagged.into_iter().try_for_each(|tagged| tagged.map(drop))
    }

    /// Ids of images by their private tags.
    pub fn pins(&self, deadline: Deadline) -> Result<BTreeMap<String, String>> {
        let begin = beginning(&self.pilot.project);
        let mut all = self.images_there(deadline)?.tags;
        all.retain(|tag, _| tag.starts_with(&begin));
        Ok(all)
    }
}

/// Copies to its place what is not there unchanged.
fn keep(kept: &Kept, dir: &Path) -> Result<()> {
    for (name, to, sum) in &kept.files {
        if to.is_file() && files::sha256(to)? == *sum {
            continue;
        }
        // It may be a secret, so it is private until it has the mode of its original.
        let from = dir.join(name);
        let found = files::copy(&from, to, Mode::Private)?;
        ensure!(found == *sum, "{} was altered: its checksum is not the one in the release", from.display());
        std::fs::metadata(&from)
            .and_then(|original| std::fs::set_permissions(to, original.permissions()))
            .with_context(|| format!("cannot give {} the mode of {}", to.display(), from.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::definition::{Port, Service};

    fn image(id: &str, tag: &str) -> Image {
        Image::new(format!("sha256:{id:0<64}"), tag.into())
    }

    fn bind(path: &str, target: &str, read_only: bool) -> Mount {
        Mount { source: Source::Bind(path.into()), target: target.into(), read_only, selinux: None }
    }

    #[test]
    fn a_private_tag_follows_from_the_id_and_no_registry_answers_to_it() {
        let tag = |tag: &str| tag_of("shop", &image("ab", tag));
        for (user, own) in [
            ("web", "web"),
            ("web:1.2", "web"),
            ("registry:5000/team/web:1.2", "web"),
            ("registry:5000/team/web@sha256:00", "web"),
            ("", "image"),
        ] {
            assert_eq!(tag(user), format!("rollback.invalid/shop/{own}:ab0000000000"));
        }
    }

    /// A stack with a mounted file, a folder, a secret, and things that no release has.
    fn stack() -> (Release, Definition) {
        let images = [("web", image("1", "web:1")), ("db", image("2", "postgres:15"))];
        let mut release = Release::unrecorded("v1", "compose", images.map(|(s, i)| (s.to_owned(), i)).into());
        let files = [("a.conf", "s1"), ("conf/x", "s2"), ("conf/y", "s3"), ("confer", "s4"), ("key", "s5")];
        release.files = files.map(|(name, sum)| (name.to_owned(), sum.to_owned())).into();
        let web = Service {
            mounts: vec![
                bind("a.conf", "/etc/a.conf", true),
                bind("conf", "/etc/conf", false),
                bind("data", "/data", false),
                bind("/var/run/docker.sock", "/sock", false),
            ],
            files: ["a.conf".to_owned(), "key".to_owned()].into(),
            ports: Vec::<Port>::new(),
            ..Service::default()
        };
        let services = [("web".to_owned(), web), ("tool".to_owned(), Service::default())].into();
        let mut definition = Definition::new(services, BTreeMap::new(), BTreeMap::new());
        definition.secrets = [("key".to_owned(), "key".to_owned())].into();
        (release, definition)
    }

    fn pin(release: &Release, definition: &Definition) -> Value {
        pinned("shop", release, Some(definition), Path::new("/m$"), Some("3.8")).0
    }

    #[test]
    fn images_mounted_files_and_secrets_are_pinned_and_the_rest_is_left_to_the_compose_file() {
        let (release, definition) = stack();
        let found = pin(&release, &definition);
        let web = &found["services"]["web"];
        assert_eq!(web["image"], tag_of("shop", &release.images["web"]));
        // Compose reads `$$` as `$`.
        assert_eq!(web["volumes"][0], "/m$$/s1/a.conf:/etc/a.conf:ro");
        let folder = web["volumes"][1].as_str().unwrap();
        assert!(folder.starts_with("/m$$/") && folder.ends_with("/conf:/etc/conf"), "{folder}");
        assert_eq!(web["volumes"].as_array().unwrap().len(), 2);
        assert_eq!(found["secrets"]["key"]["file"], "/m$$/s5/key");
        assert_eq!(found["services"]["db"], json!({ "image": tag_of("shop", &release.images["db"]) }));
        assert_eq!((&found["version"], &found["services"]["tool"]), (&json!("3.8"), &Value::Null));
        // Without a model, images alone.
        let (old, kept) = pinned("shop", &release, None, Path::new("/m"), None);
        assert_eq!(old["services"].as_object().unwrap().len(), 2);
        assert_eq!((kept, &old["version"]), (Vec::new(), &Value::Null));
    }

    #[test]
    fn a_service_differs_only_if_something_of_its_own_does() {
        let (release, definition) = stack();
        let before = pin(&release, &definition);
        let changed = |how: &dyn Fn(&mut Release)| {
            let mut release = release.clone();
            how(&mut release);
            let after = pin(&release, &definition);
            let differs = |name: &&str| before["services"][*name] != after["services"][*name];
            ["web", "db"].into_iter().filter(differs).collect::<Vec<_>>()
        };
        assert_eq!(changed(&|r| r.id = "r2".into()), [""; 0]);
        assert_eq!(changed(&|r| drop(r.images.insert("db".into(), image("3", "postgres:15")))), ["db"]);
        for (file, services) in
            [("a.conf", ["web"].as_slice()), ("conf/y", &["web"]), ("key", &["web"]), ("confer", &[])]
        {
            assert_eq!(changed(&|r| drop(r.files.insert(file.into(), "other".into()))), services, "{file}");
        }
    }

    #[test]
    fn a_path_with_a_colon_takes_the_long_form() {
        let plain = bind("a", "/a", true);
        assert_eq!(mount(&plain, "/m:/x")["source"], "/m:/x");
        let labelled = Mount { selinux: Some("Z".into()), ..plain };
        assert_eq!(mount(&labelled, "/m"), "/m:/a:ro,Z");
        assert_eq!(mount(&labelled, "/m:")["bind"]["selinux"], "Z");
    }

    #[test]
    fn what_is_kept_is_copied_once_and_an_altered_original_is_refused() {
        let scratch = files::Scratch::new("pin-test").unwrap();
        let (dir, mounted) = (scratch.path().join("r1"), scratch.path().join("mounted"));
        files::write(&dir.join("run.sh"), b"one", Mode::Program).unwrap();
        let mut release = Release::unrecorded("v1", "compose", BTreeMap::new());
        release.files.insert("run.sh".into(), files::sha256_bytes(b"one"));
        let found = kept("run.sh", &release, &mounted).unwrap();
        keep(&found, &dir).unwrap();
        let to = &found.files[0].1;
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(to).unwrap().permissions().mode() & 0o777, 0o755);
        // A service may have written to it.
        std::fs::write(to, "two").unwrap();
        keep(&found, &dir).unwrap();
        assert_eq!(std::fs::read(to).unwrap(), b"one");
        std::fs::write(to, "two").unwrap();
        std::fs::write(dir.join("run.sh"), "three").unwrap();
        assert!(keep(&found, &dir).unwrap_err().to_string().contains("was altered"));
    }
}
