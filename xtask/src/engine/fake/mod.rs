//! Tests: an engine and a pilot in memory. Every operation of a run can be made to fail, and the run can be
//! interrupted before it, in milliseconds. The `world` outlives the engines and the runs that use it, as
//! Docker outlives a command. `runtime` is the engine, `pilot` is what its services answer.

mod pilot;
mod runtime;
mod shelf;
pub mod world;
