//! The sources of xtask, built with `cfg(fuzzing)`, and the one function of them that a fuzz target calls. xtask is a
//! program and no library, so its modules are named here by their paths. What targets check is in its `operations/hostile`.

// Most of xtask is not called from here.
#![allow(dead_code, unused_imports)]

#[path = "../../src/base/mod.rs"]
mod base;
#[path = "../../src/checks/mod.rs"]
mod checks;
#[path = "../../src/deploy/mod.rs"]
mod deploy;
#[path = "../../src/engine/mod.rs"]
mod engine;
#[path = "../../src/host/mod.rs"]
mod host;
#[path = "../../src/operations/mod.rs"]
mod operations;
#[path = "../../src/release/mod.rs"]
mod release;
#[path = "../../src/stack/mod.rs"]
mod stack;

/// Gives these bytes to the target of that name.
pub fn attack(name: &str, bytes: &[u8]) {
    let target = operations::hostile::TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("there is no target {name}")).body)(bytes);
}
