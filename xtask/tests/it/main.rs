//! End to end: real commands on real pilots, each test with a project, ports and state of its own.
//! `pilot.rs` is the builder; every other file is about one part of the product.

mod bad_input;
mod contract;
mod docs;
mod drill;
mod pilot;
mod resume;
mod rollback;
mod tidy;
