//! The files of a stack that Compose reads, by their names in the stack's folder: a release has them under the same
//! names. Finds them in a folder; what the compose file mentions is read from its text, because `compose config`
//! resolves these names away. Called by `pilot` and by `operations`.

use crate::base::failure::{Exit, exit_of, fail};
use crate::base::files;
use crate::base::next::Next;
use crate::base::yaml;
use crate::stack::envfile::EnvFile;
use crate::stack::manifest::Manifest;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use yaml_rust2::Yaml;

/// The names that Compose 2 looks for, in its order, each with the name of the file that it merges into it.
const COMPOSE_FILES: [(&str, [&str; 2]); 4] = [
    ("compose.yaml", ["compose.override.yaml", "compose.override.yml"]),
    ("compose.yml", ["compose.override.yml", "compose.override.yaml"]),
    ("docker-compose.yml", ["docker-compose.override.yml", "docker-compose.override.yaml"]),
    ("docker-compose.yaml", ["docker-compose.override.yaml", "docker-compose.override.yml"]),
];

/// The env file that Compose reads if it is told no other.
pub const ENV_FILE: &str = ".env";

/// The largest compose file, in bytes.
const LARGEST: u64 = 1 << 20;

/// The files of a stack, relative to its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The compose files, in the order in which Compose merges them.
    pub compose: Vec<String>,
    /// The env file with the values for the compose files; none if the stack has none.
    pub env: Option<String>,
    /// The file that `[seed]` of the manifest loads.
    pub seed: Option<String>,
    /// The env files of single services. They can have secrets, as `env` can.
    #[serde(default)]
    pub env_files: BTreeSet<String>,
    /// Compose files that the compose files include or extend.
    #[serde(default)]
    pub included: BTreeSet<String>,
    /// The folders that images are built from. A release does not need what is in them, but Compose 1 wants them to
    /// exist.
    #[serde(default)]
    pub build_folders: BTreeSet<String>,
}

/// That of releases of older versions.
impl Default for Layout {
    fn default() -> Self {
        Self {
            compose: vec!["docker-compose.poc.yml".to_owned()],
            env: Some(".env.poc".to_owned()),
            seed: Some("demo-scenario.json".to_owned()),
            env_files: BTreeSet::new(),
            included: BTreeSet::new(),
            build_folders: BTreeSet::new(),
        }
    }
}

impl Layout {
    /// Finds the files in the folder of a stack. Errors: there is no compose file, or it cannot be read, or it mentions a
    /// file outside the folder.
    pub fn of(folder: &Path, manifest: &Manifest) -> Result<Self> {
        let is_there = |name: &&str| folder.join(name).is_file();
        let compose = match &manifest.compose_file {
            Some(name) if folder.join(name).is_file() => vec![name.clone()],
            Some(name) => {
                let path = folder.join(name).display().to_string();
                let what = format!("there is no compose file {path}; nothing was begun");
                let next = Next::shell(format!("git checkout {path}"));
                return Err(fail(Exit::Usage, what, next.so("or name the one that there is in pilot.toml")));
            }
            None => {
                let found = COMPOSE_FILES.iter().find(|(name, _)| is_there(name));
                let (name, overrides) = found.ok_or_else(|| no_compose_file(folder))?;
                let all = [*name].into_iter().chain(overrides.iter().copied().find(is_there));
                all.map(str::to_owned).collect()
            }
        };
        let default = Some(ENV_FILE).filter(is_there).map(str::to_owned);
        let mut layout = Self {
            env: manifest.env_file.clone().or(default),
            seed: manifest.seed_file.clone(),
            compose: compose.clone(),
            ..Self::none()
        };
        let unusable = |error: anyhow::Error| match exit_of(&error) {
            Exit::NotRestored => fail(Exit::Usage, format!("{error:#}"), "fix that file; nothing was begun"),
            _ => error,
        };
        compose.iter().try_for_each(|name| layout.read(folder, name)).map_err(unusable)?;
        Ok(layout)
    }

    fn none() -> Self {
        Self { compose: Vec::new(), env: None, seed: None, ..Self::default() }
    }

    /// Does a file of this name have settings, which can be secret?
    pub fn is_private(&self, name: &str) -> bool {
        self.env.as_deref() == Some(name) || self.env_files.contains(name)
    }

    /// The names of all files with settings.
    pub fn private(&self) -> impl Iterator<Item = &String> {
        self.env.iter().chain(&self.env_files)
    }

    /// The names of all files that Compose reads, but for those that services mount.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        self.compose.iter().chain(&self.included).chain(self.private())
    }

    /// Adds what a compose file mentions. A name with a variable in it is left out: Compose then says that the file is
    /// missing in the release, unless the manifest names it as an extra file.
    fn read(&mut self, folder: &Path, name: &str) -> Result<()> {
        let path = folder.join(name);
        ensure!(
            files::size(&path)? <= LARGEST,
            "{} is larger than {}",
            path.display(),
            files::human(LARGEST)
        );
        let text = files::read_text(&path)?;
        let within = Path::new(name).parent().unwrap_or(Path::new(""));
        // What is not YAML mentions nothing; Compose says what is wrong with it.
        let mentioned = Mentioned::of(&text).unwrap_or_default();
        let relative = |word: &String| {
            inside(&within.join(word)).with_context(|| format!("{} names {word}", path.display()))
        };
        let literal = |words: &[String]| -> Result<Vec<String>> {
            words.iter().filter(|word| !word.contains('$')).map(relative).collect()
        };
        let there = literal(&mentioned.env_files)?.into_iter().filter(|name| folder.join(name).is_file());
        self.env_files.extend(there.filter(|name| self.env.as_ref() != Some(name)).collect::<Vec<_>>());
        // A build context outside the folder is no part of a release.
        let contexts = mentioned.build_folders.iter().filter(|word| !word.contains(['$', ':']));
        self.build_folders.extend(contexts.filter_map(|word| inside(&within.join(word)).ok()));
        for other in literal(&mentioned.included)? {
            if folder.join(&other).is_file() && self.included.insert(other.clone()) {
                self.read(folder, &other)?;
            }
        }
        Ok(())
    }
}

fn no_compose_file(folder: &Path) -> anyhow::Error {
    let names: Vec<&str> = COMPOSE_FILES.iter().map(|(name, _)| *name).collect();
    let what = format!("there is no compose file ({}) in {}", names.join(", "), folder.display());
    fail(
        Exit::Usage,
        what,
        "name the folder of the stack with --stack DIR, or `compose_file` in its pilot.toml",
    )
}

/// Has the folder a compose file that Compose would find?
pub fn has_compose_file(folder: &Path) -> bool {
    COMPOSE_FILES.iter().any(|(name, _)| folder.join(name).is_file())
}

/// The project of the stack in a folder, by the rules of Compose: `COMPOSE_PROJECT_NAME` of its env file, `name` of its
/// compose file, or the name of the folder.
pub fn project_name(folder: &Path) -> String {
    let env = files::read(&folder.join(ENV_FILE)).ok();
    let env = env.and_then(|bytes| EnvFile::parse(ENV_FILE, &bytes).ok()).unwrap_or_default();
    let in_compose_file = || {
        let (name, _) = COMPOSE_FILES.iter().find(|(name, _)| folder.join(name).is_file())?;
        let text = files::read_text(&folder.join(name)).ok()?;
        // Only where it is written: to parse the whole file would cost every command some milliseconds.
        let line = text.lines().find_map(|line| line.strip_prefix("name:"))?;
        let word = line.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        Some(word.to_owned()).filter(|word| !word.is_empty() && !word.contains('$'))
    };
    let of_folder = || {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let kept: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
        kept.trim_start_matches(['-', '_']).to_owned()
    };
    env.get("COMPOSE_PROJECT_NAME").map(str::to_owned).or_else(in_compose_file).unwrap_or_else(of_folder)
}

/// A relative path without `.` and `..`. An error if it leaves the folder, because a release must be complete.
fn inside(path: &Path) -> Result<String> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if clean.pop() => {}
            _ => anyhow::bail!(
                "{} is outside the stack's folder, so a release could not have it",
                path.display()
            ),
        }
    }
    Ok(clean.display().to_string())
}

/// The variables that a compose file mentions, such as `${TAG:-1}` and `$TAG`. `$$` is a dollar.
pub fn variables(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        rest = after.strip_prefix('$').unwrap_or(after);
        if rest.len() == after.len() {
            let name = after.strip_prefix('{').unwrap_or(after);
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
            if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                found.insert(name[..end].to_owned());
            }
        }
    }
    found
}

/// The names of files that a compose file mentions.
#[derive(Default)]
struct Mentioned {
    env_files: Vec<String>,
    included: Vec<String>,
    build_folders: Vec<String>,
}

impl Mentioned {
    fn of(text: &str) -> Option<Self> {
        let mut found = Self::default();
        yaml::documents(text).ok()?.iter().for_each(|document| found.search(document));
        Some(found)
    }

    /// Looks everywhere, because services can take their parts from anchors and from `x-` sections.
    fn search(&mut self, yaml: &Yaml) {
        match yaml {
            Yaml::Array(all) => all.iter().for_each(|inner| self.search(inner)),
            Yaml::Hash(all) => {
                for (key, inner) in all {
                    match key.as_str().unwrap_or_default() {
                        "env_file" => texts(inner, "path", &mut self.env_files),
                        "include" => texts(inner, "path", &mut self.included),
                        "extends" => texts(&inner["file"], "", &mut self.included),
                        "build" => texts(inner, "context", &mut self.build_folders),
                        _ => {}
                    }
                    self.search(inner);
                }
            }
            _ => {}
        }
    }
}

/// A text, a list of texts, or either of them under `key`.
fn texts(yaml: &Yaml, key: &str, into: &mut Vec<String>) {
    match yaml {
        Yaml::String(text) => into.push(text.clone()),
        Yaml::Array(all) => all.iter().for_each(|inner| texts(inner, key, into)),
        Yaml::Hash(all) => {
            if let Some(inner) = all.get(&Yaml::String(key.to_owned())) {
                texts(inner, "", into);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> files::Scratch {
        let scratch = files::Scratch::new("layout-test").unwrap();
        for (name, text) in files {
            files::write(&scratch.path().join(name), text.as_bytes(), files::Mode::Plain).unwrap();
        }
        scratch
    }

    fn names(all: &BTreeSet<String>) -> Vec<&str> {
        all.iter().map(String::as_str).collect()
    }

    #[test]
    fn what_compose_reads_is_found_in_the_folder_and_in_the_compose_file() {
        let main = "
include: [{path: [more/inc.yml]}]
x-common: &common
  env_file: [./a.env, {path: b.env, required: false}, {path: gone.env, required: false}, '${NAME}.env']
services:
  one: {<<: *common, build: ./api}
  two: {extends: {file: base.yml, service: x}, build: {context: web, dockerfile: D}, env_file: .env}
  three: {build: https://example.org/x.git}
";
        let folder = folder(&[
            ("compose.yaml", main),
            ("compose.override.yml", "services: {one: {env_file: c.env}}"),
            ("more/inc.yml", "services: {four: {env_file: ../d.env}}"),
            ("base.yml", "services: {x: {image: x}}"),
            (".env", ""),
            ("a.env", ""),
            ("b.env", ""),
            ("c.env", ""),
            ("d.env", ""),
        ]);
        let layout = Layout::of(folder.path(), &Manifest::none()).unwrap();
        assert_eq!(layout.compose, ["compose.yaml", "compose.override.yml"]);
        assert_eq!((layout.env.as_deref(), &layout.seed), (Some(".env"), &None));
        assert_eq!(names(&layout.env_files), ["a.env", "b.env", "c.env", "d.env"]);
        assert_eq!(names(&layout.included), ["base.yml", "more/inc.yml"]);
        assert_eq!(names(&layout.build_folders), ["api", "web"]);
        assert!(layout.is_private(".env") && layout.is_private("d.env") && !layout.is_private("base.yml"));
    }

    #[test]
    fn no_compose_file_and_a_file_outside_are_refused() {
        let told = |folder: &files::Scratch| {
            format!("{:#}", Layout::of(folder.path(), &Manifest::none()).unwrap_err())
        };
        assert!(
            told(&folder(&[])).contains("no compose file (compose.yaml, compose.yml, docker-compose.yml")
        );
        let outside = folder(&[("compose.yml", "services: {a: {env_file: ../x.env}}")]);
        assert!(told(&outside).contains("../x.env is outside the stack's folder"), "{}", told(&outside));
    }

    #[test]
    fn the_project_is_called_as_compose_calls_it() {
        let name = |files: &[(&str, &str)]| project_name(folder(files).path());
        assert!(name(&[]).starts_with("pilot-layout-test-"));
        assert_eq!(name(&[("compose.yml", "services: {}\nname: \"shop\" # ours\n")]), "shop");
        assert_eq!(name(&[("compose.yml", "name: shop"), (".env", "COMPOSE_PROJECT_NAME=other\n")]), "other");
        let odd = files::Scratch::new("x").unwrap().path().join("_My Shop.2");
        assert_eq!(project_name(&odd), "myshop2");
    }

    #[test]
    fn the_variables_of_a_compose_file_are_found() {
        let text = "image: ${IMAGE:-x}:$TAG\ncommand: echo $$HOME ${A} ${B?say $C} $1 $";
        assert_eq!(names(&variables(text)), ["A", "B", "C", "IMAGE", "TAG"]);
    }
}
