//! Tests: an env file that may be anything. Its text comes back byte for byte, also where it is malformed; and a changed
//! setting changes nothing else. Called by `hostile`.

use crate::stack::envfile::{EnvFile, Piece, pieces, with_value};
use std::collections::BTreeMap;

/// The name of the file in errors.
const NAME: &str = "the env file";

/// Values that are awkward to write.
const VALUES: [&str; 8] = ["1", "", "a b", "it's", "\"$x\" # y", "a\nb", "\\", "#"];

/// The most bytes that all values of a file may have together.
const LONGEST: usize = 1024 * 1024;

pub(super) fn body(bytes: &[u8]) {
    let read = EnvFile::parse(NAME, bytes);
    if let Err(error) = &read {
        has_a_place(&error.to_string(), bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        assert!(read.is_err(), "what is no text was read");
        return;
    };
    let parts = pieces(text);
    let whole: String = parts.iter().map(written).collect();
    assert_eq!(whole, text, "the text does not come back byte for byte");
    let Ok(read) = read else {
        assert!(with_value(text, "ANY", "1").is_err(), "a malformed file was changed");
        return;
    };
    let settings: BTreeMap<&str, &str> = parts.iter().filter_map(setting).collect();
    let all = read.map();
    let same = all.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(settings);
    assert!(same, "its parts do not say the same as the whole");
    assert!(all.values().map(String::len).sum::<usize>() <= LONGEST);
    assert!(all.keys().all(|key| read.names().any(|name| name == key)));
    // Another one for each input.
    let number = bytes.iter().fold(0, |sum, byte| sum + usize::from(*byte));
    let own = all.keys().nth(number % all.len().max(1)).map(String::as_str);
    for key in ["NEW_ONE"].into_iter().chain(own) {
        changes(text, &read, key, VALUES[0]);
        changes(text, &read, key, VALUES[number % VALUES.len()]);
    }
}

/// A piece as it stands in the file.
fn written(piece: &Piece<'_>) -> String {
    match piece {
        Piece::Setting { head, written, .. } => format!("{head}{written}"),
        Piece::Other(text) => (*text).to_owned(),
    }
}

fn setting<'a>(piece: &'a Piece<'a>) -> Option<(&'a str, &'a str)> {
    match piece {
        Piece::Setting { key, value, .. } => Some((key, value.as_str())),
        Piece::Other(_) => None,
    }
}

/// An error begins with the name of the file, and a line and a column in it.
fn has_a_place(error: &str, bytes: &[u8]) {
    let numbers = error.strip_prefix(NAME).and_then(|rest| rest.strip_prefix(':'));
    let mut numbers = numbers.into_iter().flat_map(|rest| rest.split(':'));
    let line: Option<usize> = numbers.next().and_then(|line| line.parse().ok());
    let column: Option<usize> = numbers.next().and_then(|column| column.parse().ok());
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
    let is_in_it = line.is_some_and(|line| (1..=lines).contains(&line)) && column >= Some(1);
    assert!(is_in_it, "the error has no place in the file: {error}");
}

/// One setting gets this value: what is written then says so, and every other byte is as it was.
fn changes(text: &str, read: &EnvFile, key: &str, value: &str) {
    let Ok(changed) = with_value(text, key, value) else {
        // A name of Docker's own, and one that another value depends on, cannot be set.
        let plain = !text.contains('$') && !key.starts_with("DOCKER_") && key.is_ascii();
        assert!(value != "1" || !plain, "{key} cannot be set to {value:?}");
        return;
    };
    let again = EnvFile::parse(NAME, changed.as_bytes());
    assert!(again.is_ok(), "{key} with {value:?}: the file cannot be read any more: {again:?}");
    let again = again.unwrap_or_default();
    assert_eq!(again.get(key), Some(value), "{key} has another value than it was given");
    let parts = pieces(text);
    let last = parts.iter().rposition(|piece| setting(piece).is_some_and(|(name, _)| name == key));
    let at = last.unwrap_or(parts.len());
    let before: String = parts[..at].iter().map(written).collect();
    let behind: String = parts[at..].iter().skip(1).map(written).collect();
    assert!(changed.starts_with(&before) && changed.ends_with(&behind), "other bytes were changed");
    if !text.contains('$') {
        let other = |env: &EnvFile| {
            let mut all = env.map();
            all.remove(key);
            all
        };
        assert_eq!(other(&again), other(read), "{key} with {value:?} changes other settings");
    }
}
