//! One line of the table: what is claimed, how it was attacked, how often, and how often it held.

use serde::Serialize;

/// What one search came to.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is claimed.
    pub claim: String,
    /// How it was attacked.
    pub attack: String,
    /// How often.
    pub tried: u64,
    /// How often it held.
    pub held: u64,
    /// What was found, each with the command that repeats it.
    pub found: Vec<String>,
}
