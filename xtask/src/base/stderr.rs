//! Lines for people on stderr. Every part of the program uses this, and none `eprintln!`, which ends the program when
//! nobody reads them any more, as after `2>&1 | head`: a rollback must not stop there, nor its exit code change.

use std::fmt::Display;
use std::io::Write;

/// Writes a line, if anybody reads it.
pub fn line(text: impl Display) {
    writeln!(std::io::stderr(), "{text}").ok();
}
