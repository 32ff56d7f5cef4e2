//! Does nothing: `bench` measures what `cargo run` itself costs in this workspace.

fn main() {}
