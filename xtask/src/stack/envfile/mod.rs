//! `.env.poc`: the settings as Compose 2 reads them, changing one of them, and the places that Compose 1 reads
//! in another way. `reading` and `variables` have the rules. Pure, and without an import from outside this folder,
//! because `tests/it/envfile.rs` includes it to compare it with both Composes. Callers read the file.

mod reading;
mod variables;

use anyhow::{Context, Result, bail};
use reading::{Reader, Setting};
use std::collections::{BTreeMap, BTreeSet};

/// How many of the places that Compose 1 reads in another way are told.
const TOLD: usize = 10;

/// The settings of an env file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvFile {
    settings: BTreeMap<String, String>,
    asked: BTreeSet<String>,
    differs: Vec<String>,
}

impl EnvFile {
    /// Parses the bytes of a file. Errors begin with `name`, line and column.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let at = |at: usize, says: &str| {
            let before = String::from_utf8_lossy(&bytes[..at]);
            let (line, column) = (
                before.matches('\n').count() + 1,
                before.chars().rev().take_while(|c| *c != '\n').count() + 1,
            );
            format!("{name}:{line}:{column}: {says}")
        };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => bail!(at(error.valid_up_to(), "not UTF-8 text")),
        };
        if let Some(nul) = text.find('\0') {
            bail!(at(nul, "there is a NUL byte, so this is not a text file"));
        }
        let mut reader = Reader::new(text);
        while reader.next().map_err(|wrong| anyhow::Error::msg(at(wrong.at, &wrong.says)))?.is_some() {}
        reader.differs.sort_unstable_by_key(|remark| remark.at);
        let differs = reader.differs.iter().take(TOLD).map(|remark| at(remark.at, &remark.says)).collect();
        Ok(Self { settings: reader.set, asked: reader.asked.into_keys().collect(), differs })
    }

    /// The environment of a running service, as an env file.
    pub fn of(env: &BTreeMap<String, String>) -> Self {
        Self { settings: env.clone(), ..Self::default() }
    }

    /// The value of a setting.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// All settings, for comparing.
    pub fn map(&self) -> BTreeMap<String, String> {
        self.settings.clone()
    }

    /// Every name that the file sets or asks for. Compose may get none of them from the shell.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.keys().map(String::as_str).chain(self.asked.iter().map(String::as_str))
    }

    /// The places that Compose 1 reads in another way, each with what to write instead.
    pub fn differs(&self) -> &[String] {
        &self.differs
    }
}

/// A part of a file, which may be malformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A setting.
    Setting {
        /// Its name.
        key: &'a str,
        /// What a program gets.
        value: String,
        /// What stands before the value: the name, `=` and so on.
        head: &'a str,
        /// The value as it is written, with its quotes.
        written: &'a str,
    },
    /// Text that sets nothing: comments and blank lines; and what cannot be read.
    Other(&'a str),
}

/// All of a text, in its order. From its first error on, it is unknown what is meant as a setting.
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut reader = Reader::new(text);
    let (mut pieces, mut from) = (Vec::new(), 0);
    loop {
        match reader.next() {
            Ok(Some(Setting { key, value, start, written })) => {
                pieces.push(Piece::Other(&text[from..start]));
                let head = &text[start..written.start];
                pieces.push(Piece::Setting { key, value, head, written: &text[written] });
            }
            Ok(None) | Err(_) => {
                pieces.push(Piece::Other(&text[from..]));
                return pieces;
            }
        }
        from = reader.at;
    }
}

/// `text` with one setting changed and every other byte as it was. A new setting is added at the end. The
/// value is written in a form that Compose 1 and 2 read alike, and that fits to what stands behind it; it is an error if
/// there is none.
pub fn with_value(text: &str, key: &str, value: &str) -> Result<String> {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r");
    let forms = [value.to_owned(), format!("'{}'", value.replace('\'', "\\'")), format!("\"{escaped}\"")];
    let alike = |form: &&String| {
        let line = format!("{key}={form} # note\nNEXT_{key}=\"1\"\n");
        EnvFile::parse("", line.as_bytes()).is_ok_and(|env| {
            env.get(key) == Some(value) && env.names().count() == 2 && env.differs.is_empty()
        })
    };
    let (mut reader, mut settings, mut last) = (Reader::new(text), Vec::new(), None);
    while let Some(setting) = reader.next().map_err(|wrong| anyhow::Error::msg(wrong.says))? {
        if setting.key == key {
            last = Some((settings.len(), setting.written.clone()));
        }
        settings.push((setting.key, &text[setting.written]));
    }
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let put = |form: &String| match &last {
        Some((_, written)) => format!("{}{form}{}", &text[..written.start], &text[written.end..]),
        None => format!("{text}{end}{key}={form}\n"),
    };
    // What stands behind it on its line, or depends on it, may be read in another way now.
    let fits = |form: &&String| {
        let mut wanted = settings.clone();
        match &last {
            Some((at, _)) => wanted[*at].1 = form.as_str(),
            None => wanted.push((key, form.as_str())),
        }
        let changed = put(form);
        let found = pieces(&changed);
        let found = found.iter().filter_map(|piece| match piece {
            Piece::Setting { key, written, .. } => Some((*key, *written)),
            Piece::Other(_) => None,
        });
        let reads = |env: EnvFile| env.get(key) == Some(value);
        found.eq(wanted) && EnvFile::parse("", changed.as_bytes()).is_ok_and(reads)
    };
    let form = forms.iter().filter(alike).find(fits).with_context(|| {
        format!(
            "no way to write {key} that Compose 1 and 2 read alike, and that leaves what stands beside it as it is"
        )
    })?;
    Ok(put(form))
}

#[cfg(test)]
mod tests;
