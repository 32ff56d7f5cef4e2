//! See `operations/hostile` in xtask.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| xtask_fuzz::attack("env_file", bytes));
