//! The ground: processes, HTTP, files, deadlines, locks, what is said and what goes wrong. Each file promises
//! something in its first lines, and none of them knows a stack.

pub mod archive;
pub mod ask;
pub mod deadline;
pub mod failure;
pub mod files;
pub mod http;
pub mod lock;
pub mod next;
pub mod observed;
pub mod output;
pub mod proc;
pub mod proctable;
pub mod secrets;
pub mod signals;
pub mod threads;
