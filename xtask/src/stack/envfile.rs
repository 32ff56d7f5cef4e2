//! `.env.poc`: strict reading, and changing single lines. Compose 1 and Compose 2 have different rules about
//! quotes, `$` and comments. What they would read differently is refused here, with line and column. Pure,
//! except `load`.

use crate::base::files;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::Path;

/// The settings of an env file, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvFile {
    entries: Vec<(String, String)>,
}

impl EnvFile {
    /// Reads and parses a file. Errors have its path.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(&path.display().to_string(), &files::read(path)?)
    }

    /// Parses the bytes of a file. Errors begin with `name`, line and column.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        if let Some(at) = bytes.iter().position(|b| *b == 0) {
            let line = bytes[..at].iter().filter(|b| **b == b'\n').count() + 1;
            bail!("{name}:{line}: there is a NUL byte, so this is not a text file");
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => {
                let line = bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
                bail!("{name}:{line}: not UTF-8 text");
            }
        };
        let mut entries: Vec<(String, String)> = Vec::new();
        for (number, line) in text.split('\n').enumerate() {
            let at = |column: usize| format!("{name}:{}:{column}", number + 1);
            if let Some(column) = line.find('\r') {
                bail!("{}: a carriage return: save the file with Unix line ends", at(column + 1));
            }
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                bail!("{}: expected KEY=VALUE, found no =", at(1));
            };
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if let Some(column) = key.find(|c| !fits(c)) {
                bail!("{}: a name may have only letters, digits and _", at(column + 1));
            }
            if key.is_empty() || key.starts_with(|c: char| c.is_ascii_digit()) {
                bail!("{}: a name must start with a letter or _", at(1));
            }
            let start = key.len() + 2;
            if value.starts_with(['"', '\'']) {
                bail!("{}: remove the quotes: the value goes to the end of the line", at(start));
            }
            if let Some(column) = value.find('$') {
                bail!("{}: remove the $: Compose 1 and 2 read it differently", at(start + column));
            }
            if let Some(column) = value.find(" #") {
                bail!("{}: put the comment on its own line", at(start + column + 1));
            }
            if value.trim() != value {
                bail!("{}: remove the space before or after the value", at(start));
            }
            if entries.iter().any(|(other, _)| other == key) {
                bail!("{}: {key} is set twice", at(1));
            }
            entries.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self { entries })
    }

    /// The environment of a running service, as an env file.
    pub fn of(env: &BTreeMap<String, String>) -> Self {
        Self { entries: env.iter().map(|(key, value)| (key.clone(), value.clone())).collect() }
    }

    /// The value of a setting.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All settings, for comparing.
    pub fn map(&self) -> BTreeMap<String, String> {
        self.entries.iter().cloned().collect()
    }

    /// The names, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
    }
}

/// `text` with one setting changed and all other lines as they were. A new setting is added at the end.
pub fn with_value(text: &str, key: &str, value: &str) -> String {
    let mut found = false;
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| match line.split_once('=') {
            Some((k, _)) if k == key => {
                found = true;
                format!("{key}={value}")
            }
            _ => line.to_owned(),
        })
        .collect();
    if !found {
        lines.push(format!("{key}={value}"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        EnvFile::parse(".env.poc", bytes).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        assert!(error(b"A=1\nB 2\n").starts_with(".env.poc:2:1: expected KEY=VALUE"));
        assert!(error(b"A=1\r\nB=2\r\n").starts_with(".env.poc:1:4: a carriage return"));
        assert!(error(b"A=1\n\nA=2\n").starts_with(".env.poc:3:1: A is set twice"));
        assert!(error(b"A=1\n\0\x01").starts_with(".env.poc:2: there is a NUL byte"));
        assert!(error(b"\xff\xfeA").starts_with(".env.poc:1: not UTF-8"));
        assert!(error(b"A=\"x\"").starts_with(".env.poc:1:3: remove the quotes"));
        assert!(error(b"A=b$c").starts_with(".env.poc:1:4: remove the $"));
        assert!(error(b"A=b # c").starts_with(".env.poc:1:5: put the comment"));
        assert!(error(b"A-B=1").starts_with(".env.poc:1:2: a name"));
    }

    #[test]
    fn one_setting_changes_and_the_rest_stays() {
        let text = "# note\nA=1\nB=\n";
        assert_eq!(with_value(text, "B", "2"), "# note\nA=1\nB=2\n");
        assert_eq!(with_value(text, "C", "3"), "# note\nA=1\nB=\nC=3\n");
        assert_eq!(EnvFile::parse("x", with_value(text, "B", "2").as_bytes()).unwrap().get("B"), Some("2"));
    }
}
