//! The small commands, one file each: an args struct and `run`. The large ones (`up`, `rollback`,
//! `drill`, `bench`) are modules of the crate.

pub mod ci;
pub mod down;
pub mod kill_switch;
pub mod releases;
pub mod smoke;
pub mod status;
