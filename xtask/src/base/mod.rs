//! The base layer: processes, HTTP, files, deadlines, locks, output, errors. The first lines of each file say
//! what it promises. Nothing here knows what a stack is.

pub mod archive;
pub mod ask;
pub mod board;
pub mod count;
pub mod courier;
pub mod deadline;
pub mod durable;
pub mod failure;
#[cfg(test)]
pub mod fake;
pub mod files;
pub mod http;
pub mod lock;
pub mod machine;
pub mod newest;
pub mod next;
pub mod observed;
pub mod output;
pub mod packed;
pub mod passing;
pub mod pipe;
pub mod proc;
pub mod random;
pub mod screen;
pub mod secrets;
pub mod signals;
pub mod socket;
pub mod stderr;
pub mod threads;
pub mod tunnel;
pub mod yaml;
