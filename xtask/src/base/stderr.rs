//! Lines for people on stderr. Every part of the program uses this, and none `eprintln!`, which ends the program when
//! nobody reads them any more, as after `2>&1 | head`: a rollback must not stop there, nor its exit code change.

use crate::base::screen;
use std::fmt::Display;

/// Writes a line, if anybody reads it.
pub fn line(text: impl Display) {
    screen::complain(&text.to_string());
}
