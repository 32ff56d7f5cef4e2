//! Reads the settings of an env file one after another, by the rules of Compose 2 (compose-go's `dotenv`), and
//! notes what Compose 1 (python-dotenv) reads in another way. `variables` puts values in for `$`. Pure.
//!
//! Why not a crate: none reads as Compose does. dotenvy 0.15 refuses `A=a b`, `A: a` and `A="\z"`, and makes
//! something else of `A=${B:-x}`, `A=a$$b` and `A="a"#b`. `tests/it/envfile.rs` compares this reader with both.

use std::collections::BTreeMap;
use std::ops::Range;

/// Most bytes of all values together. Linux gives a program no more, and `$` can make a short file long.
pub(super) const LONGEST: usize = 1024 * 1024;

/// What is to be said about one place of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    /// Byte of the text.
    pub at: usize,
    /// What is wrong there, and what to write instead.
    pub says: String,
}

/// An error about the place `at`.
pub(super) fn wrong<T>(at: usize, says: impl Into<String>) -> Result<T, Remark> {
    Err(Remark { at, says: says.into() })
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting<'a> {
    /// Its name.
    pub key: &'a str,
    /// What a program gets.
    pub value: String,
    /// Where it begins: at `export`, or at the name.
    pub start: usize,
    /// Where its value stands, with its quotes.
    pub written: Range<usize>,
}

/// The position in a file, and what was read up to there.
pub(super) struct Reader<'a> {
    text: &'a str,
    /// The next byte to read.
    pub at: usize,
    /// The values of the settings before this position.
    pub set: BTreeMap<String, String>,
    /// The variables that these values asked for, each with the first place.
    pub asked: BTreeMap<String, usize>,
    /// What Compose 1 reads in another way.
    pub differs: Vec<Remark>,
    longest: usize,
}

/// White space that does not end a line.
fn is_space(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

impl<'a> Reader<'a> {
    /// At the beginning of a text. A byte order mark there is skipped.
    pub fn new(text: &'a str) -> Self {
        let mut reader = Self {
            text,
            at: if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 },
            set: BTreeMap::new(),
            asked: BTreeMap::new(),
            differs: Vec::new(),
            longest: 0,
        };
        for (at, _) in text.match_indices('\r').filter(|(at, _)| !text[at + 1..].starts_with('\n')) {
            reader.differ(at, "a carriage return alone ends a line: remove it");
        }
        reader
    }

    /// The next setting; none at the end. Nothing can be read after an error.
    pub fn next(&mut self) -> Result<Option<Setting<'a>>, Remark> {
        self.skip(char::is_whitespace);
        while self.rest().starts_with('#') {
            self.at += self.line().len();
            self.skip(char::is_whitespace);
        }
        if self.rest().is_empty() {
            return Ok(None);
        }
        self.setting().map(Some)
    }

    /// Notes that Compose 1 reads this place in another way.
    pub fn differ(&mut self, at: usize, says: impl Into<String>) {
        self.differs.push(Remark { at, says: says.into() });
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Up to the end of the line.
    fn line(&self) -> &'a str {
        self.rest().split('\n').next().unwrap_or_default()
    }

    fn skip(&mut self, what: fn(char) -> bool) {
        self.at = self.text.len() - self.rest().trim_start_matches(what).len();
    }

    fn setting(&mut self) -> Result<Setting<'a>, Remark> {
        let start = self.at;
        let key = self.key()?;
        self.skip(is_space);
        let from = self.at;
        let value = match self.rest().chars().next() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote)?,
            _ => self.plain()?,
        };
        if value.contains('\0') {
            return wrong(from, "a value may have no NUL");
        }
        self.longest += value.len();
        if self.longest > LONGEST {
            return wrong(from, "the values are too long: no program can get more than 1 MiB of settings");
        }
        // Compose 2 reads the file twice: for the compose file as it goes, and for the containers with the last
        // value of everything.
        let old = self.set.insert(key.to_owned(), value.clone());
        if let Some(at) = self.asked.get(key).filter(|_| old.as_ref() != Some(&value)) {
            let says = format!(
                "{key} gets another value further down, and Compose would use the one or the other: set {key} \
                 once, above this line"
            );
            return wrong(*at, says);
        }
        Ok(Setting { key, value, start, written: from..self.at })
    }

    /// The name, up to behind its `=`.
    fn key(&mut self) -> Result<&'a str, Remark> {
        let export = self.rest().strip_prefix("export");
        if export.is_some_and(|behind| behind.starts_with(['\t', '\n', '\u{c}', '\r', ' '])) {
            self.at += "export".len();
            self.skip(is_space);
        }
        let (start, line) = (self.at, self.line());
        let Some(end) = line.find(['=', ':']) else {
            return wrong(start, "expected NAME=VALUE, found no =; no value is taken from the shell");
        };
        let key = line[..end].trim_end();
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']');
        if let Some(at) = key.find(|c| !fits(c)) {
            let space = key[at..].starts_with(char::is_whitespace);
            let says = if space {
                "a name may have no white space"
            } else {
                "a name may have only letters, digits and _.-[]"
            };
            return wrong(start + at, says);
        }
        if key.is_empty() {
            return wrong(start, "expected NAME=VALUE, found no name");
        }
        if line[end..].starts_with(':') {
            self.differ(start + end, "write = instead of the colon");
        }
        if key.starts_with("DOCKER_") {
            self.differ(start, "Compose 1 would take this for its own Docker engine: use another name");
        }
        self.at += end + 1;
        Ok(key)
    }

    /// A value without quotes: up to a comment or the end of the line.
    fn plain(&mut self) -> Result<String, Remark> {
        let (from, line) = (self.at, self.line());
        let value = line.split(" #").next().unwrap_or_default().trim_end();
        self.at += value.len();
        if let Some(at) = value.find("\t#") {
            self.differ(from + at, "put the value in double quotes, or write a space before the comment");
        }
        let odd = |c: char| matches!(c, '\u{1c}'..='\u{1f}') || (c.is_whitespace() && !" \t\r".contains(c));
        if let Some(at) = line.find(odd) {
            self.differ(from + at, "unusual white space: put the value in double quotes, or remove it");
        }
        self.expand_at(value, from)
    }

    /// A value in quotes, which may have several lines.
    fn quoted(&mut self, quote: char) -> Result<String, Remark> {
        let (start, from) = (self.at, self.at + 1);
        let (mut escaped, mut end) = (false, None);
        for (n, c) in self.text[from..].char_indices() {
            if !escaped && c == quote {
                end = Some(from + n);
                break;
            }
            escaped = !escaped && c == '\\';
        }
        let Some(end) = end else {
            return wrong(
                start,
                format!("the value begins with {quote}, and there is no {quote} at its end"),
            );
        };
        let inner = &self.text[from..end];
        self.at = end + 1;
        let behind = self.line().trim();
        if !behind.is_empty() && !behind.starts_with('#') {
            self.differ(self.at, "begin a new line behind the closing quote");
        }
        if inner.contains('\r') {
            self.differ(start, "a carriage return in a value: write \\r, or save with Unix line ends");
        }
        let value = inner.replace(&format!("\\{quote}"), &quote.to_string());
        if quote == '\'' {
            if inner.contains("\\\\") {
                self.differ(start, "two backslashes: use double quotes, and write \\\\ for each backslash");
            }
            if inner.contains("${") {
                self.differ(start, "Compose 1 has no way to write ${: use a value without it");
            }
            return Ok(value);
        }
        if inner.ends_with('\\') {
            self.differ(start, "a backslash before the closing quote: use a value without quotes");
        }
        let others = |part: &str| ["\\'", "\\$", "\\0"].iter().any(|pair| part.contains(pair));
        if inner.split("\\\\").any(others) {
            self.differ(start, "\\' or \\$ or \\0: write the character itself, for $ in single quotes");
        }
        self.expand_in(&unescaped(&value), start)
    }
}

/// The escapes in double quotes. Others stay as they are. `\$` becomes `$$`, which later becomes `$`.
fn unescaped(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let mut behind = rest[at + 1..].chars();
        let one = behind.next();
        rest = behind.as_str();
        match one {
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\u{b}'),
            Some('$') => out.push_str("$$"),
            Some(c @ ('\\' | '"')) => out.push(c),
            // Three octal digits; fewer, or a number that is no byte, lose the 0 alone.
            Some('0') => {
                let digits = rest.bytes().take(3).take_while(u8::is_ascii_digit).count();
                match u8::from_str_radix(&rest[..digits], 8) {
                    Ok(byte) if digits == 3 => out.push(char::from(byte)),
                    _ => out.extend(["\\", &rest[..digits]]),
                }
                rest = &rest[digits..];
            }
            other => {
                out.push('\\');
                out.extend(other);
            }
        }
    }
    out + rest
}
