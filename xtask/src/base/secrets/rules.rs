//! What looks secret: a variable that the manifest names, a name like `API_KEY`, a value like a token or a
//! URL with a password. Also finds values in text by the name before them. Pure. Called only by `Secrets`.

use serde::Deserialize;
use std::ops::Range;

/// What a secret is replaced by.
pub const MASK: &str = "********";

/// Fewest bytes of a part of a value that is searched for alone: one of several keys, one of several lines.
pub const SHORTEST_PART: usize = 8;

/// The `[secrets]` part of the manifest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Variables that are never shown. If one is empty, `up` generates its value.
    pub variables: Vec<String>,
    /// Variables that are shown although their name or value looks secret.
    #[serde(default)]
    pub public: Vec<String>,
}

/// Where the value is in a line of an env file.
pub enum Place<'a> {
    /// The line has no value (empty, or a comment).
    Nothing,
    /// From byte `at` on.
    Value {
        /// Name of the variable.
        name: &'a str,
        /// First byte of the value.
        at: usize,
    },
    /// The line cannot be parsed.
    Unclear,
}

/// Words that contain one of the marks below but mean something else.
const INNOCENT: [&str; 6] = ["BYPASS", "COMPASS", "MONKEY", "TURNKEY", "HOTKEY", "TOKENIZER"];

/// A name that contains one of these is the name of a secret.
const MARKS: [&str; 14] = [
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "PASSCODE",
    "CREDENTIAL",
    "PRIVATE",
    "APIKEY",
    "COOKIE",
    "WEBHOOK",
    "SIGNATURE",
    "CONNECTIONSTRING",
    "AUTHORIZATION",
];

/// A name is also secret if one of its words is, or ends with, one of these.
const ENDS: [&str; 9] = ["KEY", "KEYS", "PASS", "PWD", "AUTH", "JWT", "DSN", "SALT", "CREDS"];

/// A name that ends with one of these is the name of a password. A password may be a number or a short word.
const PASSWORDS: [&str; 8] = ["PASSWORD", "PASSWD", "PASS", "PWD", "PASSPHRASE", "PASSCODE", "SECRET", "PIN"];

/// The first characters of well-known tokens.
const TOKENS: [&str; 16] = [
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "xoxb-",
    "xoxp-",
    "AKIA",
    "ya29.",
    "npm_",
    "hf_",
    "AIza",
];

/// Fewest bytes of a token: a well-known one, or one that stands alone before the `@` of a URL.
const LONG: usize = 16;

impl Rules {
    /// Must the value of this variable be hidden?
    pub fn hides(&self, name: &str, value: &str) -> bool {
        let listed = |names: &[String]| names.iter().any(|n| n == name);
        if value.is_empty() {
            return false;
        }
        listed(&self.variables)
            || (!listed(&self.public) && (names_secret(name, value) || self.is_secret(value)))
    }

    /// Does the value itself look secret, whatever its name?
    fn is_secret(&self, value: &str) -> bool {
        let jwt = value.starts_with("eyJ") && value.len() > LONG && value.matches('.').count() == 2;
        let token = value.len() >= LONG && TOKENS.iter().any(|start| value.starts_with(start));
        let pem = value.contains("-----BEGIN") && !value.contains("-----BEGIN PUBLIC KEY");
        jwt || token || (pem && !value.contains("-----BEGIN CERTIFICATE")) || !self.parts(value).is_empty()
    }

    /// The same for a name in a text. Only a name in capitals, or a clear one like `password`, counts: in a
    /// text, `key` can mean anything.
    pub fn hides_in_text(&self, name: &str, value: &str) -> bool {
        let upper =
            name.len() > 2 && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        let plain = ["password", "passwd", "passphrase", "secret", "authorization", "api_key", "apikey"];
        let lower = name.to_lowercase();
        let told = upper
            || plain.iter().any(|word| lower.ends_with(word))
            || self.variables.iter().any(|v| v == name);
        told && value != MASK && !value.starts_with('(') && self.hides(name, value)
    }

    /// The secrets inside a value: the password in a URL, a value in a connection string, a bearer token.
    pub fn parts(&self, value: &str) -> Vec<String> {
        let mut found: Vec<Range<usize>> = user_info(value);
        found.extend(self.assigned(value));
        for scheme in ["Bearer ", "Basic "] {
            let long = value.len() >= scheme.len() + SHORTEST_PART;
            found.extend((long && value.starts_with(scheme)).then_some(scheme.len()..value.len()));
        }
        let parts = found.into_iter().map(|range| value[range].to_owned());
        parts.flat_map(|part| [decoded(&part), part]).collect()
    }

    /// Where a text assigns a value to a secret variable: `NAME=VALUE`, `NAME: VALUE`, `"NAME": "VALUE"`.
    pub fn assigned(&self, text: &str) -> Vec<Range<usize>> {
        let bytes = text.as_bytes();
        let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(start) = bytes[at..].iter().position(word).map(|n| at + n) {
            let end = bytes[start..].iter().position(|b| !word(b)).map_or(bytes.len(), |n| start + n);
            at = end;
            let Some(value) = assigned_at(bytes, end) else { continue };
            if self.hides_in_text(&text[start..end], &text[value.clone()]) {
                found.push(value);
            }
        }
        found
    }
}

/// The value that stands behind a name which ends at `at`.
fn assigned_at(text: &[u8], at: usize) -> Option<Range<usize>> {
    let run = |at: usize, of: &[u8]| at + text[at..].iter().take_while(|b| of.contains(b)).count();
    let mut at = run(run(at, b"\\"), b"\"'");
    at = run(at, b" ");
    match text.get(at)? {
        b'=' => at += 1,
        // `::` and `://` assign nothing.
        b':' if !matches!(text.get(at + 1), Some(b':' | b'/')) => at += 1,
        _ => return None,
    }
    at = run(at, b" ");
    let open = run(at, b"\\");
    let quote = text.get(open).copied().filter(|b| matches!(b, b'"' | b'\''));
    let start = if quote.is_some() { open + 1 } else { at };
    let ends = |b: &u8| match quote {
        Some(quote) => *b == quote || *b == b'\n',
        None => b.is_ascii_whitespace() || b"\"'`,;&<>()[]{}".contains(b),
    };
    let length = text[start..].iter().position(ends).unwrap_or(text.len() - start);
    // The backslashes before a closing quote are the quote's.
    let slashes = text[start..start + length].iter().rev().take_while(|b| **b == b'\\').count();
    let escaped = quote.is_some() && open > at;
    let end = start + length - if escaped { slashes } else { 0 };
    (end > start).then_some(start..end)
}

/// Where URLs have a password: `scheme://user:HERE@host`, or `scheme://HERE@host` where it is long.
pub fn user_info(text: &str) -> Vec<Range<usize>> {
    let one = |at: usize| {
        let start = at + 3;
        let rest = &text[start..];
        let authority = &rest
            [..rest.find(['/', '?', '#', ' ', '"', '\'', '<', '>', '\\', '\n', ',']).unwrap_or(rest.len())];
        // A password may have a slash in it that nobody encoded.
        let line = &rest[..rest.find([' ', '"', '<', '>', '\n']).unwrap_or(rest.len())];
        let end = authority.rfind('@').or_else(|| {
            let colon = authority.find(':')?;
            let port = authority[colon + 1..].chars().all(|c| c.is_ascii_digit());
            (!port).then(|| line.rfind('@')).flatten()
        })?;
        let info = &rest[..end];
        let from = match info.find(':') {
            Some(colon) => colon + 1,
            None if info.len() >= LONG => 0,
            None => return None,
        };
        let range = start + from..start + end;
        (!range.is_empty() && text[range.clone()] != *MASK).then_some(range)
    };
    text.match_indices("://").filter_map(|(at, _)| one(at)).collect()
}

/// The lines of a value, the items of a list, the texts of a JSON document: programs print these one by one.
pub fn pieces(value: &str) -> Vec<String> {
    let long = |piece: &&str| piece.len() >= SHORTEST_PART && !piece.starts_with("-----");
    let mut pieces: Vec<String> = Vec::new();
    for separators in [['\n', '\r'], [',', ';']] {
        if value.contains(separators) {
            pieces.extend(value.split(separators).map(str::trim).filter(long).map(str::to_owned));
        }
    }
    if let Ok(document) = serde_json::from_str::<serde_json::Value>(value) {
        pieces = Vec::new();
        texts(&document, &mut pieces);
    }
    // Several lines written as one, with `\n` in it, as env files have them.
    let lines = value.split("\\n").filter(|_| value.contains("\\n")).map(str::trim).filter(long);
    pieces.extend(lines.map(str::to_owned));
    pieces
}

fn texts(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(all) => {
            for (name, value) in all {
                match value.as_str() {
                    Some(text) if names_secret(name, text) => {
                        found.extend([pieces(text), vec![text.to_owned()]].concat())
                    }
                    _ => texts(value, found),
                }
            }
        }
        serde_json::Value::Array(all) => all.iter().for_each(|value| texts(value, found)),
        _ => {}
    }
}

/// Percent-decoded; unchanged if the result is not UTF-8 text.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).filter(|_| *first == b'%').and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// Does the name say that this value is secret?
fn names_secret(name: &str, value: &str) -> bool {
    let words = words(name);
    let innocent = |word: &String| INNOCENT.iter().any(|w| word == w || word.strip_suffix('S') == Some(*w));
    let marked = |word: &String| {
        MARKS.iter().any(|mark| word.contains(mark)) || ENDS.iter().any(|end| word.ends_with(end))
    };
    let joined = words.concat();
    // PWD is the working folder of a shell.
    let secret = name != "PWD"
        && (words.iter().any(|word| !innocent(word) && marked(word))
            || ["APIKEY", "CONNECTIONSTRING"].iter().any(|mark| joined.contains(mark)));
    let password = words.last().is_some_and(|last| PASSWORDS.iter().any(|end| last.ends_with(end)));
    secret && !is_switch(value) && (password || !is_plain(value))
}

/// `apiKey2` and `API_KEY_2` are `API`, `KEY`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut lower = false;
    for c in name.chars() {
        let cut = !c.is_ascii_alphabetic() || (lower && c.is_ascii_uppercase());
        if cut && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphabetic()) {
            word.push(c.to_ascii_uppercase());
        }
        lower = c.is_ascii_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Is the value a switch (`true`, `off`, …)? Then it is not a secret, whatever its name.
pub fn is_switch(value: &str) -> bool {
    let words =
        ["", "true", "false", "yes", "no", "on", "off", "none", "null", "enabled", "disabled", "0", "1"];
    words.iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Is the value a number, with or without a unit, or a very short word: `4000`, `30s`, `basic`?
fn is_plain(value: &str) -> bool {
    let unit = value.trim_start_matches(|c: char| c.is_ascii_digit() || ".,_-+".contains(c));
    let longest = if unit.is_empty() { 15 } else { 8 };
    let letters = unit.len() <= 3 && unit.chars().all(|c| c.is_ascii_alphabetic());
    let number = letters && unit.len() < value.len() && value.len() <= longest;
    number
        || (value.len() <= 5 && value.chars().all(|c| c.is_ascii_alphabetic()))
        || value.chars().count() < 4
}

/// Parses a line of an env file as far as possible.
pub fn env_line(line: &str) -> Place<'_> {
    let begin = line.len() - line.trim_start_matches(|c: char| c.is_whitespace() || c == '#').len();
    let comment = line.trim_start().starts_with('#');
    let begin = begin + if line[begin..].starts_with("export ") { "export ".len() } else { 0 };
    let rest = &line[begin..];
    let name = &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())];
    let behind = rest[name.len()..].trim_start_matches([' ', '\t']);
    if let Some(value) = behind.strip_prefix('=').filter(|_| is_name(name)) {
        let value = value.trim_start_matches([' ', '\t']);
        return Place::Value { name, at: line.len() - value.len() };
    }
    if comment || rest.trim().is_empty() { Place::Nothing } else { Place::Unclear }
}

/// Is this the name of a variable? Names use one case. A piece of a broken base64
/// value has both, and is long.
fn is_name(name: &str) -> bool {
    let mixed =
        name.contains(|c: char| c.is_ascii_uppercase()) && name.contains(|c: char| c.is_ascii_lowercase());
    let longest = if mixed { 16 } else { 64 };
    name.starts_with(|c: char| !c.is_ascii_digit()) && name.len() <= longest
}
