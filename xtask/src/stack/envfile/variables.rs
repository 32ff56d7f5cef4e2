//! Puts values in for `$NAME`, `${NAME}`, `${NAME:-default}` and so on, by the rules of Compose 2 (compose-go's
//! `template`). Only earlier lines of the file count, never the environment of a process: a release must mean
//! the same whoever starts it. Pure. Called only by `reading`.

use super::reading::{LONGEST, Reader, Remark, wrong};

/// How deep a default may stand in a default.
const DEEPEST: usize = 16;

/// Where in the file a text stands.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    /// Is the text there as it is? Otherwise every place in it is `at`.
    exact: bool,
    depth: usize,
}

impl Reader<'_> {
    /// For a text that stands at `at` of the file, as it is.
    pub(super) fn expand_at(&mut self, text: &str, at: usize) -> Result<String, Remark> {
        self.expand(text, Place { at, exact: true, depth: 0 })
    }

    /// For a text that was changed, of a value that stands at `at`.
    pub(super) fn expand_in(&mut self, text: &str, at: usize) -> Result<String, Remark> {
        self.expand(text, Place { at, exact: false, depth: 0 })
    }

    fn expand(&mut self, text: &str, place: Place) -> Result<String, Remark> {
        if place.depth > DEEPEST {
            return wrong(place.at, format!("more than {DEEPEST} defaults inside one another"));
        }
        let (mut out, mut rest) = (String::new(), text);
        while let Some(dollar) = rest.find('$') {
            out.push_str(&rest[..dollar]);
            let from = text.len() - rest.len() + dollar;
            let at = place.at + if place.exact { from } else { 0 };
            let behind = &rest[dollar + 1..];
            let name = name_in(behind);
            rest = if let Some(more) = behind.strip_prefix('$') {
                self.differ(at, "$$: put the value in single quotes, and write $ once");
                out.push('$');
                more
            } else if behind.starts_with('{') {
                let place = Place { at, exact: false, depth: place.depth + 1 };
                let (value, more) = self.braced(behind, place)?;
                out.push_str(&value);
                more
            } else if name.is_empty() {
                out.push('$');
                behind
            } else {
                self.differ(at, format!("write ${{{name}}} instead of ${name}"));
                out.push_str(&self.needed(name, at)?);
                &behind[name.len()..]
            };
            if out.len() > LONGEST {
                return wrong(at, "the value is too long: no program can get more than 1 MiB of settings");
            }
        }
        Ok(out + rest)
    }

    /// `{NAME}`, or with an operator; and the text behind it.
    fn braced<'t>(&mut self, text: &'t str, place: Place) -> Result<(String, &'t str), Remark> {
        let name = name_in(&text[1..]);
        let behind = &text[1 + name.len()..];
        if let Some(more) = behind.strip_prefix('}').filter(|_| !name.is_empty()) {
            return Ok((self.needed(name, place.at)?, more));
        }
        let operator = [":-", ":+", ":?", "-", "+", "?"].into_iter().find(|op| behind.starts_with(op));
        let last = text.split('\n').next().and_then(|line| line.rfind('}'));
        let (Some(operator), Some(last), false) = (operator, last, name.is_empty()) else {
            return wrong(
                place.at,
                "expected ${NAME} or ${NAME:-default}; for a dollar sign use single quotes",
            );
        };
        let end = closing(&text.as_bytes()[..=last]).unwrap_or(last);
        let word = &text[1 + name.len() + operator.len()..end];
        self.differ(place.at, format!("write the value of {name} itself, or ${{{name}}}"));
        let value = self.asked(name, place.at)?;
        let filled = value.as_ref().is_some_and(|value| !operator.starts_with(':') || !value.is_empty());
        let value = match (operator.trim_start_matches(':'), filled) {
            ("-", false) | ("+", true) => self.expand(word, place)?,
            ("?", false) => return wrong(place.at, format!("the file must set {name} above: {word}")),
            _ => value.unwrap_or_default(),
        };
        Ok((value, &text[end + 1..]))
    }

    /// The value of a variable that has no default.
    fn needed(&mut self, name: &str, at: usize) -> Result<String, Remark> {
        match self.asked(name, at)? {
            Some(value) => Ok(value),
            None => wrong(
                at,
                format!(
                    "no line above sets {name}, and a variable of the shell is not read: set it above, or \
                     write ${{{name}:-default}}; for a dollar sign use single quotes"
                ),
            ),
        }
    }

    /// The value that an earlier line gave to this variable.
    fn asked(&mut self, name: &str, at: usize) -> Result<Option<String>, Remark> {
        let value = self.set.get(name).cloned();
        // Compose gets none of the variables that a file asks for, but it needs these to find its engine.
        if value.is_none() && name.starts_with("DOCKER_") {
            return wrong(at, format!("{name} belongs to Docker: use another name"));
        }
        self.asked.entry(name.to_owned()).or_insert(at);
        Ok(value)
    }
}

/// The name of a variable at the beginning of a text; it may be empty.
fn name_in(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) { "" } else { &text[..end] }
}

/// The brace that closes the first one. As in Compose, the byte behind an opening brace is not looked at.
fn closing(text: &[u8]) -> Option<usize> {
    let (mut open, mut at) = (0, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'}' if open == 1 => return Some(at),
            b'}' => open -= 1,
            b'{' => {
                open += 1;
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}
