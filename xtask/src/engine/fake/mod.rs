//! An engine and a pilot in memory, for tests alone: whatever a run does can be made to fail, or be cut off, at any
//! point, in milliseconds. The `world` outlives the engines and the runs that act on it, as Docker outlives a
//! command; `runtime` is the engine on it, `pilot` what its services answer.

mod pilot;
mod runtime;
pub mod world;
