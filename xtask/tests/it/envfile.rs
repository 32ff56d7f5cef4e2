//! The env file is read as Compose reads it: each form, and random ones, against what both Composes hand to a
//! container and put into a compose file; and a pilot whose file has such forms goes through a whole rollback.

use crate::pilot::Engine::{self, Compose1, Compose2, Process};
use crate::pilot::{Folder, Pilot, Random, available, docker, on, remove, skip, tries};
use read::EnvFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

// The reader itself: the program shows no values.
#[allow(dead_code, clippy::duplicate_mod)]
#[path = "../../src/stack/envfile/mod.rs"]
mod read;

/// One setting each, of a variable that is called `K` here.
const FORMS: &[&str] = &[
    "K=a b",
    "K=\"a b\" # c",
    "K='a b' # c",
    "K=\"a\"#c",
    "K=\"a\" K2=\"b\"",
    "K=a # c # d",
    "K=a#b",
    "K=#b",
    "K = # b",
    "K=a\t# c",
    "K=a\u{a0}# c",
    "K=a \t# c",
    r#"K="a\nb\t\"q\" \\ \$Y \x41 \0101 \z \a \c \'""#,
    r#"K="\07 \0 \01234 \0777 \08 \0044B\n""#,
    r"K='a\nb \' \\ \z'",
    r#"K=a\nb\\ \"q\" z"#,
    "K='a\\\\'",
    "K=\"a\\\\\"",
    "K=$B",
    "K=\"$B ${B}\"",
    "K='$B ${B}'",
    "K='$B'",
    "K=${B}${B}",
    "K=${N:-d}${N-d}${E:-d}${E-d}",
    "K=${B:+x}${N+x}${E:+x}${E+x}${B:?x}",
    "K=${N:-${B}}${N:-$B}c}",
    "K=${B:-x}-${N:-y}/${B}",
    "K=${N:-{}",
    "K=\"${N:-a}\n${B}\"",
    "K=a$$b$$",
    "K=\"a$$b\"",
    "K='a$$b'",
    "K=a$",
    "K=a$1 $ b",
    "K=\"\\\\$B \\\\\\$B\"",
    "K=$B$B.b$B_B",
    "export K=1",
    "export\tK = 1",
    "  K=1  ",
    "K\t=\t1\t",
    "K=",
    "K= ",
    "K=\"\"",
    "K='' # c",
    "K=1\nK=2",
    "K=a\r",
    "K=\"a\"\r",
    "K=a\rb",
    "K: a",
    "K:http://a",
    "K=\"a\nb\"",
    "K='a\n# b\nc=1'",
    "K=\"a\r\nb\"",
    "K.x-y[0]=1",
    "Kä=1",
    "K=ä€😀\u{2028}.",
    "K=\u{a0}a\u{2003}",
    "K=a\u{1}b\u{1c}",
    "K=a\"b\"",
    "K=it's",
    "K={\"a\": \"b\"}",
    "K=a=b==",
    "K=a\\",
    "  # K=1\nK=2",
];

/// What both refuse; Compose 2 at least.
const REFUSED: &[&str] = &[
    "K L=1",
    "K/L=1",
    "K+=1",
    "'K'=1",
    "=1",
    "K # c",
    "K=\"a\nL=1",
    "K='a",
    "K=\"\\\"",
    "K=\"a\"\"b\"",
    "K=${a b}",
    "K=${B",
    "K=${",
    "K=${N:?why}",
    "K=${B:-a\n}",
    "- a",
];

const HEAD: &str = "\u{feff}B=b\nB_B=\nE=''\n\n";

/// What a container gets, and what stands in the compose file for the same variables.
type Got = (BTreeMap<String, String>, BTreeMap<String, String>);

struct Lab {
    engine: Engine,
    folder: Folder,
    config: Folder,
    project: String,
}

impl Lab {
    fn new(engine: Engine) -> Self {
        let folder = Folder::new("envfile");
        let project = folder.0.file_name().unwrap().to_string_lossy().replace("pilot-test-", "pt-");
        let config = Folder::new("docker-config");
        let lab = Self { engine, folder, config, project };
        let empty = lab.folder.0.join("empty.tar");
        std::fs::write(&empty, [0; 1024]).unwrap();
        docker(&["import", &empty.display().to_string(), &lab.image()]);
        lab
    }

    fn image(&self) -> String {
        format!("{}:1", self.project)
    }

    /// A Compose command on this file, with nothing in its environment that the file could ask for.
    fn compose(&self, text: &str, names: &[String], words: &[&str]) -> Output {
        let [env, file] = ["f.env", "compose.yml"].map(|name| self.folder.0.join(name));
        std::fs::write(&env, text).unwrap();
        let fits = |name: &&String| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let label = |name: &String| format!("      is.{name}: \"[${{{name}-none}}]\"\n");
        let labels: String = names.iter().filter(fits).map(label).collect();
        let start = "version: \"3\"\nservices:\n  a:\n    command: [a]\n    env_file: f.env";
        std::fs::write(&file, format!("{start}\n    image: {}\n    labels:\n{labels}", self.image()))
            .unwrap();
        let mut command = Command::new(if self.engine == Compose1 { "docker-compose" } else { "docker" });
        if self.engine == Compose2 {
            command.arg("compose");
        } else {
            command.env("DOCKER_CONFIG", &self.config.0);
        }
        let options = |path: &Path| path.display().to_string();
        command.args(["-p", &self.project, "-f", &options(&file), "--env-file", &options(&env)]).args(words);
        command.output().unwrap()
    }

    /// What Compose makes of this file.
    fn got(&self, text: &str, names: &[String]) -> Got {
        let made = self.compose(text, names, &["up", "--no-start", "--force-recreate"]);
        assert!(
            made.status.success(),
            "{:?}: {}\n{text}",
            self.engine,
            String::from_utf8_lossy(&made.stderr)
        );
        let told: Value = serde_json::from_str(&docker(&["inspect", self.containers().trim()])).unwrap();
        let config = &told[0]["Config"];
        let pair = |one: &Value| {
            let (name, value) = one.as_str()?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        let env =
            config["Env"].as_array().unwrap().iter().filter_map(pair).filter(|(name, _)| name != "PATH");
        let labels = config["Labels"].as_object().unwrap().iter().filter_map(|(name, value)| {
            let value = value.as_str()?.strip_prefix('[')?.strip_suffix(']')?;
            Some((name.strip_prefix("is.")?.to_owned(), value.to_owned()))
        });
        (env.collect(), labels.collect())
    }

    fn containers(&self) -> String {
        let filter = format!("label=com.docker.compose.project={}", self.project);
        docker(&["ps", "--all", "--quiet", "--filter", &filter])
    }

    /// Compares what the container gets, and what the compose file gets, with what we read.
    fn compare(&self, text: &str) {
        let env = EnvFile::parse("f.env", text.as_bytes()).unwrap();
        let (map, names) = (env.map(), env.map().into_keys().collect::<Vec<_>>());
        let (handed, put) = self.got(text, &names);
        for (name, value) in &map {
            let line = || text.lines().find(|line| line.contains(name.as_str())).unwrap_or_default();
            assert_eq!(handed.get(name), Some(value), "{:?}, container: {:?}", self.engine, line());
            assert!(put.get(name).is_none_or(|put| put == value), "{:?}, file: {:?}", self.engine, line());
        }
        assert_eq!(handed.len(), map.len(), "{:?}: {handed:?}", self.engine);
        assert!(put.len() * 2 > map.len());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove(&["rm", "--force"], &self.containers());
        let filter = format!("label=com.docker.compose.project={}", self.project);
        remove(&["network", "rm"], &docker(&["network", "ls", "--quiet", "--filter", &filter]));
        docker(&["rmi", &self.image()]);
    }
}

/// A random setting of the variable `K`.
fn random(random: &mut Random) -> String {
    const PARTS: &[&str] = &[
        "\"", "\"", "'", "'", "\\", "\\", "$", "$", "$B", "${B}", "${", "}", "{", ":-", "-", ":+", "+", "N",
        "B", "#", " #", " ", "\t", "\n", "\r", "=", ":", "a", "n", "0", "0101", "ä", "\u{a0}", "x y",
    ];
    let mut one = |all: &[&str]| all[random.below(all.len() as u64) as usize].to_owned();
    let quote = one(&["", "", "\"", "\"", "'"]);
    let mut text = one(&["K=", "K = ", "export K=", "K: "]) + &quote;
    for _ in 0..one(&["1", "3", "9", "20"]).parse().unwrap() {
        text += &one(PARTS);
    }
    text + &quote + &one(&["", "", " ", " # c", "\r"])
}

/// The texts that we read, each with a variable of its own; for Compose 1 those that it reads alike. And
/// those that we refuse.
fn sorted(texts: impl Iterator<Item = String>, engine: Engine) -> (String, Vec<String>) {
    let (mut file, mut refused) = (HEAD.to_owned(), Vec::new());
    for (n, text) in texts.enumerate() {
        let text = text.replace('K', &format!("K_{n}_"));
        match EnvFile::parse("", format!("{HEAD}{text}\n").as_bytes()) {
            Ok(env) if engine == Compose1 && !env.differs().is_empty() => {}
            // A random text may set something else as well, which another one sets too.
            Ok(env)
                if env
                    .names()
                    .any(|name| !name.starts_with('K') && !["B", "B_B", "E", "N"].contains(&name)) => {}
            Ok(env) if env.get("B") != Some("b") || env.get("N").is_some() => {}
            Ok(_) => file += &format!("{text}\n"),
            Err(_) => refused.push(text),
        }
    }
    (file, refused)
}

#[test]
fn every_form_is_read_as_compose_reads_it() {
    for engine in [Compose2, Compose1] {
        if let Err(why) = available(engine) {
            skip(&format!("envfile on {engine:?}"), &why);
            continue;
        }
        let lab = Lab::new(engine);
        let (file, refused) = sorted(FORMS.iter().map(|text| (*text).to_owned()), engine);
        assert_eq!(refused, [""; 0]);
        assert!(engine == Compose1 || file.matches("K_").count() >= FORMS.len());
        lab.compare(&file);
        let mut source = Random::new();
        let (file, refused) = sorted((0..tries(60)).map(|_| random(&mut source)), engine);
        lab.compare(&file);
        if engine == Compose2 {
            // Random ones may be refused by us alone: what would come from the shell, what has two
            // readings, and a name with a tab in it.
            let ours = [
                "a variable of the shell",
                "no value is taken from the shell",
                "another value further down",
                "no white space",
            ];
            let both = refused.into_iter().filter(|text| {
                let error = EnvFile::parse("", format!("{HEAD}{text}\n").as_bytes()).unwrap_err().to_string();
                !ours.iter().any(|ours| error.contains(ours))
            });
            for text in REFUSED.iter().map(|text| (*text).to_owned()).chain(both.take(30)) {
                let text = format!("{HEAD}{text}\n");
                assert!(EnvFile::parse("", text.as_bytes()).is_err(), "{text:?}");
                let made = lab.compose(&text, &["B".into()], &["config", "--quiet"]);
                assert!(!made.status.success(), "Compose reads {text:?}");
            }
        }
    }
}

/// Changes lines of a pilot's env file by hand.
fn rewritten(pilot: &Pilot, changes: &[(&str, &str)]) -> String {
    let text = pilot.env_text();
    let line = |line: &str| {
        let change = changes.iter().find(|(name, _)| line.starts_with(&format!("{name}=")));
        change.map_or(line, |(_, new)| new).to_owned() + "\n"
    };
    let text: String = text.lines().map(line).collect();
    std::fs::write(pilot.env_path(), &text).unwrap();
    text
}

/// Variables of the gateway's container.
fn handed(pilot: &Pilot, name: &str) -> String {
    let all = pilot.containers("{{json .Config.Env}}");
    let gateway = all.into_iter().find(|(service, _)| service == "gateway").unwrap().1;
    let env: Vec<String> = serde_json::from_str(&gateway).unwrap();
    let start = format!("{name}=");
    env.iter().find_map(|one| one.strip_prefix(&start)).unwrap_or_else(|| panic!("no {name}")).to_owned()
}

#[test]
fn a_file_with_quotes_variables_and_comments_is_deployed_and_restored_byte_for_byte() {
    on(&[Process, Compose2, Compose1], "quoted", |pilot| {
        let mut pilot = pilot.up();
        // A variable of the shell counts neither where the file sets it nor where it has a default for it.
        pilot.set("LOG_LEVEL", "debug");
        pilot.set("PT_SEED", "99");
        let jobs = format!("export JOBS_PORT='{}' # quoted", pilot.setting("JOBS_PORT"));
        let seed =
            if pilot.engine == Compose1 { "DEFAULT_SEED= \"7\"" } else { "DEFAULT_SEED = \"${PT_SEED:-7}\"" };
        let origins = if pilot.engine == Compose1 { "${HOST}:5173 # one" } else { "$HOST:5173 # one" };
        let text = rewritten(
            &pilot,
            &[
                ("LOG_LEVEL", "export LOG_LEVEL='info'\t # as it was"),
                ("JOBS_PORT", &jobs),
                ("CORS_ORIGINS", &format!("HOST=\"http://localhost\"\nCORS_ORIGINS={origins}")),
                ("DEFAULT_SEED", seed),
                ("ADMIN_TOKEN", "ADMIN_TOKEN='t0ken # \\'of\\' $mine'"),
                ("GRAFANA_ADMIN_PASSWORD", "GRAFANA_ADMIN_PASSWORD=\"pass\\tw0rd\\n\\\"$5\" # grafana"),
            ],
        );
        pilot.xtask(&["up"]).expect(0);
        assert_eq!(pilot.env_text(), text);
        if pilot.engine != Process {
            assert_eq!(handed(&pilot, "ADMIN_TOKEN"), "t0ken # 'of' $mine");
            assert_eq!(handed(&pilot, "GRAFANA_ADMIN_PASSWORD"), "pass\tw0rd\n\"$5");
            assert_eq!(handed(&pilot, "CORS_ORIGINS"), "http://localhost:5173");
            assert_eq!(
                (handed(&pilot, "DEFAULT_SEED"), handed(&pilot, "LOG_LEVEL")),
                ("7".into(), "info".into())
            );
        }
        // What runs is what the file says: there is no drift, and the token opens the admin routes.
        assert_eq!(pilot.json(&["rollback"]).expect(0).finished()["outcome"], "nothing-to-do");
        let edited = text.replace("# one", "# two") + "ENABLE_CACHE=\"true\" # for a test\n";
        std::fs::write(pilot.env_path(), edited).unwrap();
        let plan = pilot.xtask(&["rollback", "--plan"]).expect(0).all();
        assert!(plan.contains("~ ENABLE_CACHE  true → false"), "{plan}");
        assert!(!plan.contains("CORS_ORIGINS"), "{plan}");
        let said = plan + &pilot.json(&["rollback"]).expect(0).all() + &pilot.xtask(&["assess"]).all();
        assert_eq!(pilot.env_text(), text);
        let bundle = pilot.told(&["evidence"], 0);
        let masked = Path::new(bundle["folder"].as_str().unwrap()).join("env.masked");
        let masked = std::fs::read_to_string(masked).unwrap();
        assert!(
            masked.contains("ADMIN_TOKEN=********\n") && masked.contains("export LOG_LEVEL='info'"),
            "{masked}"
        );
        for piece in ["t0ken", "mine", "w0rd"] {
            assert!(!(said.clone() + &masked).contains(piece), "{piece} is shown");
        }
        pilot.xtask(&["rollback", "--to", "r1"]).expect(0);
        assert!(pilot.env_text().contains("LOG_LEVEL=info\n"));
    });
}

#[test]
fn what_compose_1_reads_differently_is_refused_with_compose_1_before_anything_is_changed() {
    on(&[Compose1], "older", |pilot| {
        let mut pilot = pilot.up();
        let text = rewritten(&pilot, &[("DEFAULT_SEED", "SEED=7\nDEFAULT_SEED=$SEED\nENABLE_CACHE: false")]);
        let line = text.lines().position(|line| line == "DEFAULT_SEED=$SEED").unwrap() + 1;
        let said = [
            format!(".env.poc:{line}:14: write ${{SEED}} instead of $SEED"),
            format!(".env.poc:{}:13: write = instead of the colon", line + 1),
        ];
        let before = (pilot.runs(), pilot.running_images());
        let refused = pilot.xtask(&["up"]).expect(2).all();
        assert!(said.iter().all(|said| refused.contains(said)), "{refused}");
        assert_eq!(((pilot.runs(), pilot.running_images()), pilot.env_text()), (before, text));
        if available(Compose2).is_err() {
            return;
        }
        // Compose 2 takes it (but not a network of Compose 1); then a rollback to that release with Compose 1 is
        // refused too.
        pilot.xtask(&["down"]).expect(0);
        pilot.engine = Compose2;
        pilot.xtask(&["up"]).expect(0);
        assert_eq!(handed(&pilot, "DEFAULT_SEED"), "7");
        let before = (pilot.runs(), pilot.running_images());
        pilot.engine = Compose1;
        let refused = pilot.xtask(&["rollback", "--to", "r2"]).expect(6).all();
        assert!(said.iter().all(|said| refused.contains(said)), "{refused}");
        assert_eq!((pilot.runs(), pilot.running_images()), before);
    });
}
