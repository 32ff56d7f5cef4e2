//! What this process knows to be secret, and the only way to mask it. Code that reads settings registers them
//! here (`learn`). Code that writes text which leaves the tool masks it here (`mask`). So a secret that was
//! read is written nowhere, in no encoding. `rules` says what looks secret; `spelling` finds a known value in
//! a text. Nothing here knows a pilot or a file.

mod rules;
mod spelling;

use rules::{Place, SHORTEST_PART};
use serde_json::Value;
use spelling::Spelled;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{PoisonError, RwLock};

pub use rules::{MASK, Rules};

/// Shorter secrets are not searched for: they would mask half of every text. They are
/// masked only after their name.
const SHORTEST: usize = 4;
/// The same for numbers, because a short number is often a part of another number.
const SHORTEST_NUMBER: usize = 6;

/// Words of the journal. They are never masked, because the journal is read again. A password like
/// these protects nothing anyway.
const OWN: [&str; 24] = [
    "event",
    "step",
    "started",
    "done",
    "failed",
    "missed",
    "note",
    "result",
    "finished",
    "restored",
    "not-restored",
    "nothing-to-do",
    "refused",
    "rollback",
    "compose",
    "process",
    "config",
    "version",
    "reset",
    "host",
    "commit",
    "known",
    "unknown",
    "known-good",
];

/// Unreadable lines of one env file that are registered as secrets. A file with more
/// of them is not an env file.
const UNCLEAR: usize = 100;

/// One for the whole process, because a text may contain the secrets of any pilot
/// that the process works with.
static KNOWN: RwLock<Option<Secrets>> = RwLock::new(None);

fn with<T>(ask: impl FnOnce(&Secrets) -> T) -> T {
    match &*KNOWN.read().unwrap_or_else(PoisonError::into_inner) {
        Some(known) => ask(known),
        None => ask(&Secrets::new(Rules::default())),
    }
}

fn change(how: impl FnOnce(&mut Secrets)) {
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    how(known.get_or_insert_with(|| Secrets::new(Rules::default())));
}

/// From now on the rules of the manifest apply. The `words` (names of services and of the project) are never
/// masked, or no message could name them.
pub fn follow(rules: &Rules, words: impl IntoIterator<Item = String>) {
    change(|known| {
        // A second manifest may add secret variables, never remove them.
        let listed: BTreeSet<String> =
            known.rules.variables.iter().chain(&rules.variables).cloned().collect();
        known.rules = Rules { variables: listed.into_iter().collect(), ..rules.clone() };
        known.words.extend(words);
    });
}

/// Registers the secrets among these settings: from now on they are masked.
pub fn learn(settings: &BTreeMap<String, String>) {
    change(|known| known.learn(settings));
}

/// The same for the text of an env file, even if it is malformed.
pub fn learn_env_file(text: &str) {
    change(|known| known.learn_env_file(text));
}

/// Text with its secrets masked.
pub fn mask(text: &str) -> String {
    with(|known| known.mask(text))
}

/// A JSON document, JSON lines or other text with its secrets masked. JSON stays JSON.
pub fn mask_document(text: &str) -> String {
    with(|known| known.mask_document(text))
}

/// A JSON value with its secrets masked.
pub fn mask_json(value: &Value) -> Value {
    with(|known| known.mask_json(value))
}

/// The text of an env file, even a malformed one, with its secret values masked.
pub fn mask_env_file(text: &str) -> String {
    with(|known| known.mask_env_file(text))
}

/// Is the value of this setting secret?
pub fn hides(name: &str, value: &str) -> bool {
    with(|known| known.rules.hides(name, value))
}

/// The values that must not be shown, and the rules by which they are recognised.
#[derive(Debug)]
pub struct Secrets {
    rules: Rules,
    words: BTreeSet<String>,
    known: BTreeSet<String>,
    spelled: Spelled,
}

impl Secrets {
    /// No values yet, only rules.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            words: OWN.map(str::to_owned).into(),
            known: BTreeSet::new(),
            spelled: Spelled::default(),
        }
    }

    /// Registers the secrets among these settings.
    pub fn learn(&mut self, settings: &BTreeMap<String, String>) {
        settings.iter().for_each(|(name, value)| self.learn_one(name, value));
    }

    fn learn_one(&mut self, name: &str, value: &str) {
        if self.rules.hides(name, value) {
            self.learn_value(value);
        }
    }

    /// Registers a whole value, and those parts of it that a program may print alone.
    fn learn_value(&mut self, value: &str) {
        self.keep(value);
        let parts = self.rules.parts(value);
        let parts = if parts.is_empty() { rules::pieces(value) } else { parts };
        parts.iter().for_each(|part| self.keep(part));
    }

    fn keep(&mut self, value: &str) {
        let number = value.chars().all(|c| c.is_ascii_digit());
        let shortest = if number { SHORTEST_NUMBER } else { SHORTEST };
        let kept =
            value.chars().count() >= shortest && !rules::is_switch(value) && !self.words.contains(value);
        if kept && self.known.insert(value.to_owned()) {
            self.spelled.add(value);
        }
    }

    /// Registers secrets from lines that may be malformed.
    pub fn learn_env_file(&mut self, text: &str) {
        let mut unclear = 0;
        for line in text.lines() {
            match rules::env_line(line) {
                Place::Nothing => {}
                Place::Value { name, at } => {
                    let value = &line[at..];
                    self.learn_one(name, value);
                    for value in [value, value.split(" #").next().unwrap_or_default()] {
                        self.learn_one(name, value.trim().trim_matches(['"', '\'']));
                    }
                }
                // It is unknown what such a line was meant to be, so it counts as a secret.
                Place::Unclear if unclear == UNCLEAR => {}
                Place::Unclear => {
                    unclear += 1;
                    let behind = line.trim().split_once([' ', '\t', ':', '=']).map(|(_, value)| value);
                    for part in [Some(line), behind].into_iter().flatten() {
                        let part = part.trim_matches(|c: char| c.is_whitespace() || "\"':=".contains(c));
                        if part.len() >= SHORTEST_PART {
                            self.learn_value(part);
                        }
                    }
                }
            }
        }
    }

    /// Masks every known value in every spelling, and every value that follows a secret's name.
    pub fn mask(&self, text: &str) -> String {
        let mut found = self.spelled.find(text);
        found.extend(self.rules.assigned(text));
        found.extend(rules::user_info(text));
        replace(text, found)
    }

    /// The same for text that may be JSON. Each string is masked separately, so that JSON stays JSON.
    pub fn mask_document(&self, text: &str) -> String {
        let masked = self.mask(text);
        if masked == text {
            return masked;
        }
        let object =
            |text: &str| serde_json::from_str::<Value>(text).ok().filter(|v| v.is_object() || v.is_array());
        let lines = || text.lines().map(|line| Some(self.mask_json(&object(line)?).to_string() + "\n"));
        match object(text) {
            // JSON on one line stays on one line.
            Some(value) if text.trim().contains('\n') => format!("{:#}\n", self.mask_json(&value)),
            Some(value) => self.mask_json(&value).to_string() + if text.ends_with('\n') { "\n" } else { "" },
            None => lines().collect::<Option<String>>().unwrap_or(masked),
        }
    }

    /// A JSON value with its secrets masked.
    pub fn mask_json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.mask_string(text)),
            Value::Array(all) => all.iter().map(|value| self.mask_json(value)).collect(),
            Value::Object(all) => all.iter().map(|(name, value)| self.mask_member(name, value)).collect(),
            Value::Number(number) if self.mask(&number.to_string()) != number.to_string() => MASK.into(),
            other => other.clone(),
        }
    }

    fn mask_member(&self, name: &str, value: &Value) -> (String, Value) {
        let masked = match value {
            Value::String(text) if self.rules.hides_in_text(name, text) => MASK.into(),
            other => self.mask_json(other),
        };
        (self.mask(name), masked)
    }

    /// In `NAME=VALUE`, as engines list an environment, the value goes to the end of the string.
    fn mask_string(&self, text: &str) -> String {
        match text.split_once('=') {
            Some((name, value)) if self.rules.hides_in_text(name, value) => format!("{name}={MASK}"),
            _ => self.mask(text),
        }
    }

    /// An env file that can be shown. A line that cannot be parsed is masked, because it
    /// may be the rest of a secret.
    pub fn mask_env_file(&self, text: &str) -> String {
        let shown = |line: &str| match rules::env_line(line) {
            Place::Nothing => self.mask(line),
            Place::Value { name, at } if self.rules.hides(name, &line[at..]) => {
                format!("{}{MASK}", &line[..at])
            }
            Place::Value { .. } => self.mask(line),
            Place::Unclear => format!("{MASK} (not NAME=VALUE)"),
        };
        let one = |line: &str| {
            let text = line.trim_end_matches(['\r', '\n']);
            shown(text) + &line[text.len()..]
        };
        text.split_inclusive('\n').map(one).collect()
    }
}

/// Replaces the ranges by the mask. Ranges that overlap become one.
fn replace(text: &str, mut found: Vec<Range<usize>>) -> String {
    found.sort_unstable_by_key(|range| range.start);
    let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
    let mut found = found.into_iter().peekable();
    while let Some(mut range) = found.next() {
        while let Some(next) = found.next_if(|next| next.start < range.end) {
            range.end = range.end.max(next.end);
        }
        masked.push_str(&text[at..range.start]);
        masked.push_str(MASK);
        at = range.end;
    }
    masked + &text[at..]
}

#[cfg(test)]
mod tests;
