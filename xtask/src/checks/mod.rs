//! What must hold before the gate opens. The services themselves are asked. Called by `deploy` and by the
//! commands that only look.

pub mod ask;
pub mod defaults;
pub mod flags;
pub mod health;
pub mod memory;
pub mod run;
pub mod smoke;
pub mod target;
