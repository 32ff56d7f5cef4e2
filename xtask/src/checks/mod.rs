//! What must hold before the gate opens. The services themselves are asked. Called by `deploy` and by the
//! commands that only look.

pub mod endpoint;
pub mod flags;
pub mod health;
pub mod smoke;
pub mod target;
