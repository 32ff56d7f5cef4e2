//! What to do next, as a value: a command that can be pasted, a sentence, or both. A command of this program
//! is stored without `cargo xtask`. When it is shown, the project, the state folder and the engine of the
//! present command are put in front; without them it would act on another stack.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The next thing to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    command: Option<Command>,
    /// A sentence; after a command it says why.
    words: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Command {
    /// Words for this program.
    Xtask(Vec<String>),
    /// A command of another program, as a shell line.
    Shell(String),
}

impl Next {
    /// A command of this program: `rollback --to r1`.
    pub fn xtask(words: &str) -> Self {
        Self::words_of(words.split_whitespace())
    }

    /// The same, for words that may have spaces.
    pub fn words_of<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Self {
        let words = words.into_iter().map(Into::into).collect();
        Self { command: Some(Command::Xtask(words)), words: String::new() }
    }

    /// A command of another program.
    pub fn shell(line: impl Into<String>) -> Self {
        Self { command: Some(Command::Shell(line.into())), words: String::new() }
    }

    /// A command of another program, as words.
    pub fn program<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Self {
        let words: Vec<String> = words.into_iter().map(|word| quoted(word.as_ref())).collect();
        Self::shell(words.join(" "))
    }

    /// Adds a sentence that says why, or what else to do.
    pub fn so(self, words: impl Into<String>) -> Self {
        Self { words: words.into(), ..self }
    }

    /// Only the sentence.
    pub fn words(&self) -> &str {
        &self.words
    }

    /// Is there nothing to say?
    pub fn is_empty(&self) -> bool {
        self.command.is_none() && self.words.is_empty()
    }
}

impl From<&str> for Next {
    fn from(words: &str) -> Self {
        Self { command: None, words: words.to_owned() }
    }
}

impl From<String> for Next {
    fn from(words: String) -> Self {
        Self { command: None, words }
    }
}

/// What must stand before the words of a command so that it acts on the same stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// This program, if cargo did not start it: it is installed, or the copy that a release keeps.
    program: Option<PathBuf>,
    /// `PILOT_STATE_DIR`, if it is set.
    state: Option<PathBuf>,
    /// `--stack`, if it was given.
    stack: Option<PathBuf>,
    /// `--project`, if it was given.
    project: Option<String>,
    /// `--engine`, if it was given.
    engine: Option<String>,
    /// `--context`, if it was given.
    docker: Option<String>,
}

impl Context {
    /// For this project, state folder and engine; `None` is the default of each.
    pub fn new(project: Option<&str>, state: Option<&Path>, engine: Option<&str>) -> Self {
        Self {
            program: program(),
            state: state.map(Path::to_owned),
            stack: None,
            project: project.map(str::to_owned),
            engine: engine.map(str::to_owned),
            docker: None,
        }
    }

    /// The same through a Docker context.
    pub fn through(self, docker: Option<String>) -> Self {
        Self { docker, ..self }
    }

    /// The same for a stack in another folder.
    pub fn in_stack(self, stack: Option<PathBuf>) -> Self {
        Self { stack, ..self }
    }

    /// A complete command of this program.
    pub fn xtask(&self, words: &str) -> String {
        self.whole(&words.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    /// The command of `next`, ready to be pasted, if it has one.
    pub fn command(&self, next: &Next) -> Option<String> {
        Some(match next.command.as_ref()? {
            Command::Xtask(words) => self.whole(words),
            Command::Shell(line) => match (&self.docker, line.strip_prefix("docker ")) {
                (Some(docker), Some(words)) if !words.starts_with("context ") => {
                    format!("docker --context {} {words}", quoted(docker))
                }
                _ => line.clone(),
            },
        })
    }

    /// One line for people. The sentence after a command is a comment for the shell.
    pub fn line(&self, next: &Next) -> String {
        match self.command(next) {
            None => next.words.clone(),
            Some(command) if next.words.is_empty() => command,
            Some(command) => format!("{command}   # {}", next.words),
        }
    }

    fn whole(&self, words: &[String]) -> String {
        let path = |path: &Path| quoted(&path.display().to_string());
        let state = self.state.iter().map(|state| format!("PILOT_STATE_DIR={}", path(state)));
        let program = self.program.as_deref().map_or_else(|| "cargo xtask".to_owned(), path);
        let stack = self.stack.as_ref().map(|stack| stack.display().to_string());
        let options = [
            ("--stack", &stack),
            ("--project", &self.project),
            ("--engine", &self.engine),
            ("--context", &self.docker),
        ]
        .into_iter();
        // An option that the command has already is not added.
        let options = options.filter(|(name, _)| words.iter().all(|word| word != name));
        let options = options.filter_map(|(name, value)| Some(format!("{name} {}", quoted(value.as_ref()?))));
        let words = words.iter().map(|word| quoted(word));
        state.chain([program]).chain(options).chain(words).collect::<Vec<_>>().join(" ")
    }
}

/// How this program is called: nothing if cargo runs it, its name if it is installed, else its path.
fn program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let kept = program.parent().is_some_and(|folder| folder.ends_with("bin"));
    if std::env::var_os("CARGO").is_some() && !kept {
        return None;
    }
    let name = PathBuf::from(program.file_name()?);
    let installed = which::which(&name).is_ok_and(|found| found == program);
    Some(if installed { name } else { program })
}

/// Quoted, so that a shell reads it as one word.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_carries_the_context_of_whoever_asked() {
        let here = Context { program: None, ..Context::default() };
        assert_eq!(here.line(&Next::xtask("up")), "cargo xtask up");
        assert_eq!(here.line(&Next::xtask("up").so("makes one")), "cargo xtask up   # makes one");
        assert_eq!(here.line(&"wait".into()), "wait");
        let other = Context {
            state: Some("/a b/state".into()),
            project: Some("other".into()),
            engine: Some("process".into()),
            ..here
        };
        let whole =
            "PILOT_STATE_DIR='/a b/state' cargo xtask --project other --engine process rollback --to r1";
        assert_eq!(other.command(&Next::xtask("rollback --to r1")).as_deref(), Some(whole));
        assert_eq!(other.line(&Next::shell("git fetch")), "git fetch");
        let through = Context { program: None, ..Context::default() }.through(Some("staging".into()));
        assert_eq!(through.xtask("status"), "cargo xtask --context staging status");
        assert_eq!(through.line(&Next::shell("docker version")), "docker --context staging version");
        assert_eq!(through.line(&Next::shell("docker context ls")), "docker context ls");
        let elsewhere = other.command(&Next::xtask("--project third status")).unwrap();
        assert!(!elsewhere.contains("other"), "{elsewhere}");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
