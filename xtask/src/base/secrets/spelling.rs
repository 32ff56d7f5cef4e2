//! Finds a known value in a text, however it is written there. Each character may be plain or escaped in any
//! way that shells, JSON, URLs, HTML, YAML and Rust's `Debug` use, also nested. The whole value may be in
//! base64. Called only by `Secrets`.

use std::ops::Range;

/// Most backslashes before one character. JSON nested in JSON four deep has 15.
const BACKSLASHES: usize = 64;

/// Fewest base64 letters that are searched for. Shorter ones also occur in ordinary text.
const SHORTEST_BASE64: usize = 8;

/// The values to search for, indexed by the bytes that a spelling of them can begin with.
#[derive(Debug)]
pub struct Spelled {
    values: Vec<Vec<char>>,
    beginning: Vec<Vec<usize>>,
}

impl Default for Spelled {
    fn default() -> Self {
        Self { values: Vec::new(), beginning: vec![Vec::new(); 256] }
    }
}

impl Spelled {
    /// Adds a value to search for, and its base64 forms.
    pub fn add(&mut self, value: &str) {
        self.add_one(value.chars().collect());
        for text in base64(value.as_bytes()).into_iter().filter(|text| text.len() >= SHORTEST_BASE64) {
            let in_urls = text.replace('+', "-").replace('/', "_");
            if in_urls != text {
                self.add_one(in_urls.chars().collect());
            }
            self.add_one(text.chars().collect());
        }
    }

    fn add_one(&mut self, value: Vec<char>) {
        let Some(first) = value.first() else { return };
        let own = first.to_string().as_bytes()[0];
        // The bytes that a spelling can begin with: the character itself, an escape, or a plus for a space.
        for byte in [Some(own), Some(b'\\'), Some(b'%'), Some(b'&'), (*first == ' ').then_some(b'+')] {
            let all = byte.map(|byte| &mut self.beginning[usize::from(byte)]);
            if let Some(all) = all.filter(|all| all.last() != Some(&self.values.len())) {
                all.push(self.values.len());
            }
        }
        self.values.push(value);
    }

    /// Every range of the text that is one of the values.
    pub fn find(&self, text: &str) -> Vec<Range<usize>> {
        let bytes = text.as_bytes();
        let mut found = Vec::new();
        for (at, byte) in bytes.iter().enumerate() {
            for value in &self.beginning[usize::from(*byte)] {
                if let Some(end) = end(bytes, at, &self.values[*value]) {
                    found.push(at..end);
                }
            }
        }
        found
    }
}

/// The end of the value, if it begins at `at`.
fn end(text: &[u8], at: usize, value: &[char]) -> Option<usize> {
    // A quick test of the second character rules out most places, before anything is allocated.
    if let ([first, second, ..], Some([one, two])) = (value, text.get(at..at + 2))
        && first.is_ascii_alphanumeric()
        && second.is_ascii_alphanumeric()
        && *one == *first as u8
        && *two != *second as u8
        && !matches!(two, b'\\' | b'%' | b'&')
    {
        return None;
    }
    let (mut places, mut next) = (vec![at], Vec::new());
    for c in value {
        for place in &places {
            spellings(text, *place, *c, &mut next);
        }
        if next.is_empty() {
            return None;
        }
        next.sort_unstable();
        next.dedup();
        std::mem::swap(&mut places, &mut next);
        next.clear();
    }
    places.pop()
}

/// Collects every possible end of a spelling of `c` that begins at `at`.
fn spellings(text: &[u8], at: usize, c: char, ends: &mut Vec<usize>) {
    let mut buffer = [0; 4];
    let raw = c.encode_utf8(&mut buffer).as_bytes();
    once(text, at, c, raw, ends);
    let behind = past(text, at, |slash| ends.extend((c == '\\').then_some(slash)));
    if behind == at {
        return;
    }
    // `\"` and similar. Not for letters: `\n` is not an n.
    if !c.is_alphanumeric() {
        once(text, behind, c, raw, ends);
    }
    ends.extend((text.get(behind) == Some(&letter(c))).then_some(behind + 1));
    numbered(text, at, behind, c, raw, ends);
}

/// The position after the backslashes that begin at `at`. They may be percent-encoded.
/// `each` gets the end of each.
fn past(text: &[u8], at: usize, mut each: impl FnMut(usize)) -> usize {
    let mut behind = at;
    for _ in 0..BACKSLASHES {
        behind = match text.get(behind) {
            Some(b'\\') => behind + 1,
            Some(b'%') => match percent(text, behind, b'\\') {
                Some(end) => end,
                None => break,
            },
            _ => break,
        };
        each(behind);
    }
    behind
}

/// Collects the ends of spellings without backslashes.
fn once(text: &[u8], at: usize, c: char, raw: &[u8], ends: &mut Vec<usize>) {
    let rest = &text[at..];
    let Some(first) = rest.first() else { return };
    if rest.starts_with(raw) {
        ends.push(at + raw.len());
    }
    // Doubled in YAML, SQL and Compose files; in shells, the quote is closed, escaped and opened again.
    let doubled: &[&str] = match c {
        '\'' => &["''", r"'\''", "'\"'\"'", r"'\\''"],
        '"' => &["\"\""],
        '$' => &["$$"],
        ' ' => &["+"],
        _ => &[],
    };
    ends.extend(doubled.iter().filter(|text| rest.starts_with(text.as_bytes())).map(|text| at + text.len()));
    match first {
        b'%' => ends.extend(each_byte(text, at, raw, percent)),
        b'&' => ends.extend(entity(rest, c).map(|length| at + length)),
        _ => {}
    }
}

/// The letter that stands for a control character after a backslash; 0 for any other character.
fn letter(c: char) -> u8 {
    match c {
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        '\0' => b'0',
        '\u{7}' => b'a',
        '\u{8}' => b'b',
        '\u{b}' => b'v',
        '\u{c}' => b'f',
        '\u{1b}' => b'e',
        _ => 0,
    }
}

/// `\x22`, `\u0022`, `\u{22}`, `\U00000022`. The backslashes go from `at` to `behind`.
fn numbered(text: &[u8], at: usize, behind: usize, c: char, raw: &[u8], ends: &mut Vec<usize>) {
    let rest = &text[behind..];
    match rest.first() {
        Some(b'x') => ends.extend(each_byte(text, at, raw, |text, at, byte| {
            let at = past(text, at, |_| ());
            (text.get(at) == Some(&b'x') && hex(text, at + 1, 2) == Some(byte.into())).then_some(at + 3)
        })),
        Some(b'u') if rest.get(1) == Some(&b'{') => {
            let digits = rest[2..].iter().take(8).take_while(|b| b.is_ascii_hexdigit()).count();
            let fits = rest.get(2 + digits) == Some(&b'}') && hex(rest, 2, digits) == Some(c.into());
            ends.extend(fits.then_some(behind + digits + 3));
        }
        // A character that has two units in UTF-16 is written as two of these.
        Some(b'u') => {
            let unit = |at: usize, unit: &u16| {
                let at = past(text, at, |_| ());
                (text.get(at) == Some(&b'u') && hex(text, at + 1, 4) == Some((*unit).into()))
                    .then_some(at + 5)
            };
            ends.extend(c.encode_utf16(&mut [0; 2]).iter().try_fold(at, unit));
        }
        Some(b'U') => ends.extend((hex(rest, 1, 8) == Some(c.into())).then_some(behind + 9)),
        _ => {}
    }
}

/// The end of a character whose UTF-8 bytes are each spelled in the way of `one`.
fn each_byte(
    text: &[u8],
    at: usize,
    raw: &[u8],
    one: impl Fn(&[u8], usize, u8) -> Option<usize>,
) -> Option<usize> {
    raw.iter().try_fold(at, |at, byte| one(text, at, *byte))
}

/// `%22`, `%2522` and so on.
fn percent(text: &[u8], at: usize, byte: u8) -> Option<usize> {
    let mut at = (text.get(at) == Some(&b'%')).then_some(at + 1)?;
    loop {
        if hex(text, at, 2) == Some(byte.into()) {
            // A percent sign that is itself encoded, once or several times.
            let more = text[at + 2..].chunks(2).take_while(|pair| byte == b'%' && *pair == b"25").count();
            return Some(at + 2 + 2 * more);
        }
        at = text[at..].starts_with(b"25").then_some(at + 2)?;
    }
}

/// The length of an HTML entity for `c`: `&quot;`, `&#34;`, `&#x22;`, and the same with `&amp;` for `&`.
fn entity(rest: &[u8], c: char) -> Option<usize> {
    let mut at = 1;
    while rest[at..].starts_with(b"amp;") {
        at += 4;
    }
    if c == '&' && at > 1 {
        return Some(at);
    }
    let length = rest[at..].iter().take(10).position(|b| *b == b';')?;
    let name = std::str::from_utf8(&rest[at..at + length]).ok()?;
    let number = |text: &str| match text.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let found = match name {
        "quot" => Some('"'),
        "apos" => Some('\''),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "nbsp" => Some(' '),
        _ => name.strip_prefix('#').and_then(number).and_then(char::from_u32),
    };
    (found == Some(c)).then_some(at + length + 1)
}

/// The value of exactly `digits` hexadecimal digits at `at`.
fn hex(text: &[u8], at: usize, digits: usize) -> Option<u32> {
    let text = text.get(at..at + digits).filter(|text| text.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

/// The base64 letters that depend only on the value, for each alignment: after zero, one and two other bytes.
fn base64(value: &[u8]) -> Vec<String> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextet = |bit: usize| {
        let one = |n: usize| value[(bit + n) / 8] >> (7 - (bit + n) % 8) & 1;
        (0..6).fold(0, |sum, n| sum << 1 | usize::from(one(n)))
    };
    // Bits to skip until the first letter that has no bits of a neighbour.
    let from = |skip: usize| {
        let letters = (value.len() * 8).saturating_sub(skip) / 6;
        (0..letters).map(|n| char::from(LETTERS[sextet(skip + 6 * n)])).collect()
    };
    [0, 4, 2].map(from).into()
}
