//! The small commands, one file each: an args struct and `run`. The large ones are in `operations` (`up`,
//! `rollback`) and `rehearsal` (`drill`, `bench`). Called by `main`.

pub mod assess;
pub mod backup;
pub mod ci;
pub mod diagnose;
pub mod down;
pub mod evidence;
pub mod flags;
pub mod host;
pub mod kill_switch;
pub mod observe;
pub mod preflight;
pub mod releases;
pub mod reset;
pub mod seed;
pub mod smoke;
pub mod snapshot;
pub mod status;
