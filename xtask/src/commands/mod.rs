//! The commands, one file each: an args struct, and a `run` of a few lines over the code that does the work.
//! Called by `main`.

pub mod assess;
pub mod backup;
pub mod bench;
pub mod ci;
pub mod completions;
pub mod diagnose;
pub mod down;
pub mod drill;
pub mod evidence;
pub mod flags;
pub mod guard;
pub mod guide;
pub mod history;
pub mod host;
pub mod init;
pub mod kill_switch;
pub mod logs;
pub mod man;
pub mod nodes;
pub mod observe;
pub mod preflight;
pub mod releases;
pub mod report;
pub mod reset;
pub mod rollback;
pub mod seed;
pub mod smoke;
pub mod snapshot;
pub mod status;
pub mod torture;
pub mod up;
pub mod values;
pub mod watch;
