//! The simulated model: which tokens a run gives, and how fast. Pure and repeatable: the same route and seed
//! give the same tokens, byte for byte. Called by the engine; the gateway uses only the list of routes.

use std::time::Duration;

/// The routes that a run can have.
pub const ROUTES: [&str; 4] = ["critique", "summary", "compare", "plan"];

/// Pause between tokens after the first one: 25 tokens a second, about the speed of a hosted model.
pub const TOKEN_INTERVAL: Duration = Duration::from_millis(40);

const WORDS: [&str; 48] = [
    "the",
    "option",
    "shows",
    "a",
    "clear",
    "trade-off",
    "between",
    "cost",
    "and",
    "speed",
    "while",
    "risk",
    "stays",
    "within",
    "limits",
    "that",
    "team",
    "accepted",
    "evidence",
    "suggests",
    "moderate",
    "confidence",
    "in",
    "this",
    "choice",
    "because",
    "latency",
    "improves",
    "under",
    "load",
    "yet",
    "capacity",
    "remains",
    "tight",
    "for",
    "two",
    "quarters",
    "so",
    "plan",
    "should",
    "keep",
    "fallback",
    "ready",
    "with",
    "weekly",
    "review",
    "of",
    "results",
];

/// Token number `index` of a run.
pub fn token(route: &str, seed: u64, index: u32) -> &'static str {
    WORDS[(mix(route, seed, u64::from(index)) % WORDS.len() as u64) as usize]
}

/// A pseudo-random number from a name, a seed and a position (splitmix64, started with FNV-1a).
pub fn mix(name: &str, seed: u64, index: u64) -> u64 {
    let start =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut z = start ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index << 1 | 1);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_tokens_and_others_differ() {
        let run = |route: &str, seed| (0..24).map(|i| token(route, seed, i)).collect::<Vec<_>>();
        assert_eq!(run("critique", 42), run("critique", 42));
        assert_ne!(run("critique", 42), run("critique", 43));
        assert_ne!(run("critique", 42), run("summary", 42));
    }
}
