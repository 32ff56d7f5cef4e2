//! Numbers with their word: `1 finding`, `2 findings`. Called by whatever says a number to people.

/// `n` with its word, which gets an `s` if it is not one.
pub fn count(n: usize, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}
